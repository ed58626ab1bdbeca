//! Taste as a test: what reviewers would say again and again is said here once. Each check is shown to be able to fail.

#[path = "tidy/code.rs"]
mod code;

use code::{code, functions, without_tests, words};
use std::collections::BTreeMap;
use std::path::Path;

/// The layers, lowest first: a module may name itself and what stands before it.
const LAYERS: [&str; 15] = [
    "config", "event", "time", "tally", "policy", "wire", "driver", "session", "shard", "control",
    "admin", "run", "demo", "bench", "main",
];
/// Layers that get what they need of the world as arguments.
const PURE: [&str; 6] = ["config", "event", "time", "tally", "policy", "wire"];
/// What they may not name.
const WORLD: [&str; 12] = [
    "Instant",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "thread",
    "libc",
    "socket2",
    "tokio",
    "hyper",
];
/// Who may name a concrete driver, beside the drivers: who starts shards, and who chooses.
const DRIVER_STARTERS: [&str; 2] = ["src/control/worker.rs", "src/driver/pick.rs"];
const LINE_CHARS_MAX: usize = 120;
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;
/// Files that are longer than that, and why: none is best.
const LONG_FILES: [(&str, &str); 0] = [];

/// Texts by their paths from the root of the repository.
type Tree = BTreeMap<String, String>;

/// The files with one of these endings under `folder`, build output and hidden files aside.
fn files(folder: &str, endings: &[&str], tree: &mut Tree) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Ok(entries) = std::fs::read_dir(root.join(folder)) else { return };
    for entry in entries {
        let name = entry.expect("readable").file_name().into_string().expect("names are UTF-8");
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        if root.join(&path).is_dir() {
            if name != "target" && name != ".git" {
                files(&path, endings, tree);
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            let text = std::fs::read_to_string(root.join(&path)).expect("text files are UTF-8");
            tree.insert(path, text);
        }
    }
}

fn rust() -> Tree {
    let mut tree = Tree::new();
    for folder in ["src", "tests", "benches"] {
        files(folder, &[".rs"], &mut tree);
    }
    assert!(tree.contains_key("src/lib.rs") && tree.len() > 50, "{:?}", tree.keys());
    tree
}

/// Code under `src` that ships: without comments, strings, and what is only compiled for tests.
fn shipped() -> Tree {
    shipped_of(rust())
}

fn shipped_of(tree: Tree) -> Tree {
    let for_tests: Vec<String> =
        tree.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    let ships = |path: &str| {
        let module = path.trim_end_matches(".rs").trim_end_matches("/mod");
        let is_of = |test: &String| module == test || module.starts_with(&format!("{test}/"));
        path.starts_with("src/") && !for_tests.iter().any(is_of)
    };
    let shipped = tree.into_iter().filter(|(path, _)| ships(path));
    shipped.map(|(path, text)| (path, without_tests(&code(&text)))).collect()
}

/// Modules in files of their own that `#[cfg(test)]` stands above, as paths without an ending.
fn test_modules(path: &str, text: &str) -> Vec<String> {
    let stem = path.trim_end_matches(".rs");
    let folder =
        ["/mod", "/lib", "/main"].iter().find_map(|last| stem.strip_suffix(last)).unwrap_or(stem);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let whole = lines.contains(&"#![cfg(test)]").then(|| folder.to_owned());
    let below = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]").map(|pair| pair[1]);
    below
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .map(|name| format!("{folder}/{name}"))
        .chain(whole)
        .collect()
}

/// The top-level module a file under `src` belongs to, and how many `super::` lead out of it.
fn place(path: &str) -> (&str, usize) {
    let inner = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    (inner.split('/').next().unwrap_or(inner), inner.split('/').count())
}

/// Top-level modules that code names by `crate::`, by `ringway::` or by enough of `super::`.
fn named(code: &str, depth: usize) -> Vec<&str> {
    let all: Vec<(usize, &str)> = words(code).collect();
    let mut found = Vec::new();
    let mut supers = 0;
    for (i, &(at, word)) in all.iter().enumerate() {
        let after = &code[at + word.len()..];
        supers = if word == "super" { supers + 1 } else { 0 };
        let is_root = word == "crate" || word == "ringway" || (word == "super" && supers >= depth);
        let Some(after) = after.strip_prefix("::").filter(|_| is_root) else { continue };
        if let Some(group) = after.strip_prefix('{') {
            found.extend(heads(group));
        } else if let Some((_, next)) = all.get(i + 1) {
            found.push(next);
        }
    }
    found
}

/// The first word of each item of a `use` group, up to the group's end.
fn heads(group: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    let mut heads = Vec::new();
    let mut from = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                heads.extend(words(&group[from..at]).next().map(|(_, word)| word));
                from = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    heads
}

fn layer_faults(path: &str, code: &str) -> Vec<String> {
    let (own, depth) = place(path);
    if own == "lib" {
        return vec![];
    }
    let rank = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    let Some(here) = rank(own) else { return vec![format!("{path}: {own} has no layer yet")] };
    let above = named(code, depth).into_iter().filter(|name| rank(name).is_some_and(|r| r > here));
    above.map(|name| format!("{path}: {own} names {name}, a layer above it")).collect()
}

fn unsafe_faults(path: &str, code: &str) -> Vec<String> {
    let found = words(code).any(|(_, word)| word == "unsafe") && !path.starts_with("src/driver/");
    if found { vec![format!("{path}: unsafe code belongs under src/driver")] } else { vec![] }
}

/// Top-level modules but `driver` that do not open with `forbid(unsafe_code)`.
fn forbid_faults(tree: &Tree) -> Vec<String> {
    let top = |path: &&String| place(path).1 == 1 && !["lib", "driver"].contains(&place(path).0);
    let opens = |text: &str| {
        let mut lines = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with("//"));
        lines.next() == Some("#![forbid(unsafe_code)]")
    };
    let src = tree.keys().filter(|path| path.starts_with("src/")).filter(top);
    src.filter(|path| !opens(&tree[*path]))
        .map(|path| format!("{path}: must open with #![forbid(unsafe_code)]"))
        .collect()
}

fn driver_faults(path: &str, code: &str) -> Vec<String> {
    let own = ["src/driver/uring", "src/driver/epoll"].iter().any(|own| path.starts_with(own));
    if own || DRIVER_STARTERS.contains(&path) {
        return vec![];
    }
    let is_concrete = |(at, word): (usize, &str)| {
        let (before, after) = (&code[..at], &code[at + word.len()..]);
        let is_path =
            before.ends_with("driver::") || before.ends_with("super::") || after.starts_with("::");
        ["uring", "epoll"].contains(&word) && is_path
    };
    let grouped =
        code.match_indices("driver::{").flat_map(|(at, open)| heads(&code[at + open.len()..]));
    let found =
        words(code).any(is_concrete) || grouped.into_iter().any(|w| w == "uring" || w == "epoll");
    if found { vec![format!("{path}: names a concrete driver")] } else { vec![] }
}

fn pure_faults(path: &str, code: &str) -> Vec<String> {
    if !PURE.contains(&place(path).0) {
        return vec![];
    }
    let found = words(code).filter(|(_, word)| WORLD.contains(word));
    found
        .map(|(_, word)| format!("{path}: {word} is of the world: take it as an argument"))
        .collect()
}

fn size_faults(path: &str, text: &str) -> Vec<String> {
    let long = |(i, line): (usize, &str)| {
        let chars = line.chars().count();
        (chars > LINE_CHARS_MAX).then(|| format!("{path}:{}: {chars} characters", i + 1))
    };
    let mut faults: Vec<String> = text.lines().enumerate().filter_map(long).collect();
    for (name, lines) in functions(&code(text)) {
        if lines > FUNCTION_LINES_MAX {
            faults.push(format!("{path}: fn {name} has {lines} lines"));
        }
    }
    let (lines, excused) = (text.lines().count(), LONG_FILES.iter().any(|(file, _)| *file == path));
    if lines > FILE_LINES_MAX && !excused {
        faults.push(format!("{path}: {lines} lines: split it along an idea"));
    }
    faults
}

/// Words this file may not spell out itself.
fn banned() -> [(String, &'static str); 9] {
    let word = |parts: [&str; 2]| parts.concat();
    [
        (word(["TO", "DO"]), "finish it, or say what is absent and why"),
        (word(["FIX", "ME"]), "finish it, or say what is absent and why"),
        (word(["XX", "X"]), "finish it, or say what is absent and why"),
        (word(["pe", "er"]), "say client or backend"),
        (word(["pe", "ers"]), "say clients or backends"),
        (word(["up", "stream"]), "say backend"),
        (word(["down", "stream"]), "say client"),
        (word(["Pe", "er"]), "say Client or Backend"),
        (word(["Up", "stream"]), "say Backend"),
    ]
}

fn word_faults(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    // The standard library's name for it.
    let text = text.replace(&["pe", "er_addr"].concat(), "");
    for (_, identifier) in words(&text) {
        for (word, instead) in banned() {
            if identifier.split('_').any(|part| part == word) {
                faults.push(format!("{path}: {identifier}: {instead}"));
            }
        }
    }
    let file = path.trim_end_matches(".rs").rsplit('/').next().unwrap_or(path);
    let text = code(&text);
    let inner: Vec<&str> = words(&text).map(|(_, word)| word).collect();
    let modules = inner.windows(2).filter(|pair| pair[0] == "mod").map(|pair| pair[1]);
    for name in modules.chain([file]) {
        if ["utils", "util", "helpers", "helper", "common", "misc"].contains(&name) {
            faults
                .push(format!("{path}: {name} says nothing: name a module after what it is about"));
        }
    }
    faults
}

fn ignore_faults(path: &str, text: &str) -> Vec<String> {
    let bare = code(text).matches("#[ignore]").count();
    let plain = text.matches("#[ignore = \"\"]").count();
    let without = bare + plain.min(code(text).matches("#[ignore =").count());
    (0..without).map(|_| format!("{path}: #[ignore] must give its reason")).collect()
}

fn path_faults(path: &str, text: &str) -> Vec<String> {
    let machines = [["/ho", "me/"], ["/ro", "ot/"], ["/Us", "ers/"], ["/wo", "rk/"], ["/tm", "p/"]];
    let found =
        machines.iter().map(|parts| parts.concat()).filter(|dir| text.contains(dir.as_str()));
    found.map(|dir| format!("{path}: {dir} is a path of somebody's machine")).collect()
}

/// Fuzz targets that the manifest does not build, or the page beside it does not name.
fn fuzz_faults(tree: &Tree, manifest: &str, page: &str) -> Vec<String> {
    let targets = tree.keys().filter_map(|path| {
        path.strip_prefix("tests/fuzz/targets/")?.strip_suffix(".rs").map(str::to_owned)
    });
    let targets: Vec<String> = targets.collect();
    let missing = |text: &str, of: &dyn Fn(&str) -> String, what: &str| -> Vec<String> {
        let without = targets.iter().filter(|target| !text.contains(&of(target)));
        without.map(|target| format!("tests/fuzz: {target} is not {what}")).collect()
    };
    let built = missing(manifest, &|t| format!("path = \"targets/{t}.rs\""), "built");
    let told = missing(page, &|t| format!("| `{t}` |"), "in its README");
    let none = targets.is_empty().then(|| "tests/fuzz: it has no targets".to_owned());
    none.into_iter().chain(built).chain(told).collect()
}

/// Tests that the map promises and that do not exist; promises without a test.
fn map_faults(map: &str, text_of: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let section = map.split("# What always holds").nth(1).unwrap_or_default();
    let section = section.split("//! # ").next().unwrap_or_default();
    let is_number = |c: char| c.is_ascii_digit();
    let mut items: Vec<String> = Vec::new();
    for line in section.lines().map(|line| line.trim_start_matches("//! ")) {
        match items.last_mut() {
            Some(item) if !line.starts_with(is_number) => item.push_str(line),
            _ => items.push(line.to_owned()),
        }
    }
    items.retain(|item| item.starts_with(is_number));
    let mut faults = Vec::new();
    if items.is_empty() {
        faults.push("src/lib.rs: it promises nothing".to_owned());
    }
    for promise in items {
        let mut tests = 0;
        for inside in promise.split("(`").skip(1).filter_map(|rest| rest.split(')').next()) {
            let mut text = None;
            for token in format!("`{inside}").split('`').skip(1).step_by(2) {
                if token.ends_with(".rs") {
                    text = text_of(token);
                } else if text.as_ref().is_some_and(|text| text.contains(&format!("fn {token}("))) {
                    tests += 1;
                } else {
                    faults.push(format!("src/lib.rs: there is no test {token}, which it names"));
                }
            }
        }
        if tests == 0 {
            faults.push(format!("src/lib.rs: no test holds: {promise}"));
        }
    }
    faults
}

fn none(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn all(tree: &Tree, check: impl Fn(&str, &str) -> Vec<String>) {
    none(tree.iter().flat_map(|(path, text)| check(path, text)).collect());
}

#[test]
fn layers() {
    all(&shipped(), layer_faults);
}

#[test]
fn unsafe_code() {
    let tree = rust();
    let src: Tree = tree
        .iter()
        .filter(|(p, _)| p.starts_with("src/"))
        .map(|(p, t)| (p.clone(), code(t)))
        .collect();
    all(&src, unsafe_faults);
    none(forbid_faults(&tree));
}

#[test]
fn concrete_drivers() {
    all(&shipped(), driver_faults);
}

#[test]
fn pure_layers() {
    all(&shipped(), pure_faults);
}

#[test]
fn sizes() {
    all(&rust(), size_faults);
}

#[test]
fn banned_words() {
    let mut tree = rust();
    tree.retain(|path, _| path.starts_with("src/"));
    all(&tree, word_faults);
}

#[test]
fn ignored_tests_have_a_reason() {
    all(&rust(), ignore_faults);
}

#[test]
fn no_path_of_a_machine() {
    let mut tree = Tree::new();
    files("", &[".rs", ".toml", ".md", ".service", ".json", "Dockerfile", "run"], &mut tree);
    assert!(tree.contains_key("README.md") && tree.contains_key("Cargo.toml"));
    all(&tree, path_faults);
}

#[test]
fn fuzz_targets_are_built_and_told_of() {
    none(fuzz_faults(&rust(), include_str!("fuzz/Cargo.toml"), include_str!("fuzz/README.md")));
}

#[test]
fn the_map_promises_what_tests_hold() {
    let tree = rust();
    none(map_faults(&tree["src/lib.rs"], |path| tree.get(path).cloned()));
}

/// How many faults a check finds in a text.
fn count(check: impl Fn(&str, &str) -> Vec<String>, path: &str, text: &str) -> usize {
    check(path, text).len()
}

#[test]
fn code_is_told_from_what_is_not() {
    let text = "a // b\n/* c\n */ \"d \\\" e\" r#\"f \" g\"# 'h' '\\'' i::<'j>('k') \"l\nm\" n";
    let blanked = code(text);
    assert_eq!(words(&blanked).map(|(_, w)| w).collect::<Vec<_>>(), ["a", "i", "j", "n"]);
    assert_eq!(blanked.lines().count(), text.lines().count());
    let shipped =
        without_tests("x\n#[cfg(test)]\nmod tests { fn a() { b } }\ny\n#[cfg(test)]\nmod t;\nz");
    assert_eq!(words(&shipped).map(|(_, w)| w).collect::<Vec<_>>(), ["x", "y", "z"]);
    let of = functions("fn a(x: [u8; 2]) {\n{ }\n}\ntrait T { fn b();\nfn c() {} }");
    assert_eq!(of, [("a".to_owned(), 3), ("c".to_owned(), 1)]);
}

#[test]
fn each_layer_fault_is_found() {
    for (path, text, faults) in [
        ("src/policy/split.rs", "use crate::shard::Shard;", 1),
        ("src/policy/split.rs", "use super::super::driver;", 1),
        ("src/policy/mod.rs", "use super::driver;", 1),
        ("src/policy/mod.rs", "use crate::{config, session::{Session, a}, run};", 2),
        ("src/session/mod.rs", "fn f() { crate::control::x() }", 1),
        (
            "src/session/mod.rs",
            "use super::config; use crate::driver; use crate::session::relay;",
            0,
        ),
        ("src/policy/split.rs", "use super::driver;", 0),
        ("src/demo/mod.rs", "use crate::run;", 0),
        ("src/main.rs", "use ringway::{admin, demo};", 0),
        ("src/tls/mod.rs", "", 1),
    ] {
        assert_eq!(count(layer_faults, path, text), faults, "{path}: {text}");
    }
}

#[test]
fn each_fault_of_a_driver_or_of_purity_is_found() {
    assert_eq!(count(unsafe_faults, "src/shard/mod.rs", "unsafe { x() }"), 1);
    assert_eq!(count(unsafe_faults, "src/shard/mod.rs", "#![forbid(unsafe_code)]"), 0);
    for text in [
        "use crate::driver::uring::Uring;",
        "use crate::driver::{Key, epoll};",
        "epoll::Epoll::new()",
    ] {
        assert_eq!(count(driver_faults, "src/shard/mod.rs", text), 1, "{text}");
        assert_eq!(count(driver_faults, "src/control/worker.rs", text), 0, "{text}");
    }
    assert_eq!(count(driver_faults, "src/shard/mod.rs", "Kind::Uring => io_uring::x()"), 0);
    for text in
        ["std::time::Instant::now()", "std::thread::spawn(f)", "libc::close(1)", "use tokio::net;"]
    {
        assert_eq!(count(pure_faults, "src/policy/split.rs", text), 1, "{text}");
        assert_eq!(count(pure_faults, "src/admin/serve.rs", text), 0, "{text}");
    }
    assert_eq!(count(pure_faults, "src/config/mod.rs", "use std::net::SocketAddr;"), 0);
}

#[test]
fn what_is_compiled_for_tests_is_left_out() {
    let texts = [
        ("src/a/mod.rs", "#[cfg(test)]\nmod tests;\nmod b;"),
        ("src/a/tests.rs", "x"),
        ("src/a/b.rs", "#[cfg(test)]\nmod tests;"),
        ("src/a/b/tests.rs", "x"),
        ("src/d.rs", "#![cfg(test)]"),
        ("src/d/e.rs", "x"),
        ("tests/c.rs", "x"),
    ];
    let tree = texts.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    assert_eq!(shipped_of(tree).into_keys().collect::<Vec<_>>(), ["src/a/b.rs", "src/a/mod.rs"]);
}

#[test]
fn each_other_fault_is_found() {
    let tree = |text: &str| Tree::from([("src/event.rs".to_owned(), text.to_owned())]);
    assert_eq!(forbid_faults(&tree("//! Docs.\n\nuse a;\n#![forbid(unsafe_code)]")).len(), 1);
    assert_eq!(forbid_faults(&tree("//! Docs.\n\n#![forbid(unsafe_code)]\nuse a;")).len(), 0);

    assert_eq!(count(size_faults, "src/a.rs", &"x".repeat(121)), 1);
    assert_eq!(count(size_faults, "src/a.rs", &"\u{2192}".repeat(120)), 0);
    assert_eq!(count(size_faults, "src/a.rs", &format!("fn f() {{{}}}", "\n".repeat(70))), 1);
    assert_eq!(count(size_faults, "src/a.rs", &"\n".repeat(601)), 1);

    for (word, _) in banned() {
        assert_eq!(
            count(word_faults, "src/a.rs", &format!("let the_{word} = 1; // {word}")),
            2,
            "{word}"
        );
    }
    assert_eq!(count(word_faults, "src/a.rs", &["x.pe", "er_addr()"].concat()), 0);
    assert_eq!(count(word_faults, "src/utils.rs", "mod helpers;"), 2);

    assert_eq!(count(ignore_faults, "tests/a.rs", "#[ignore]\nfn f() {}"), 1);
    assert_eq!(count(ignore_faults, "tests/a.rs", "#[ignore = \"\"]\nfn f() {}"), 1);
    assert_eq!(count(ignore_faults, "tests/a.rs", "#[ignore = \"takes a minute\"]\nfn f() {}"), 0);
    assert_eq!(count(path_faults, "README.md", &["cd /ho", "me/me"].concat()), 1);

    let target = Tree::from([("tests/fuzz/targets/a.rs".to_owned(), String::new())]);
    assert_eq!(fuzz_faults(&target, "path = \"targets/a.rs\"", "| `a` |").len(), 0);
    assert_eq!(fuzz_faults(&target, "path = \"targets/ab.rs\"", "`a`").len(), 2);
    assert_eq!(fuzz_faults(&Tree::new(), "", "").len(), 1);

    let map = |test: &str| {
        format!(
            "//! # What always holds\n//!\n//! 1. So. (`tests/a.rs`: `{test}`)\n//!\n//! # Next"
        )
    };
    let text_of =
        |path: &str| (path == "tests/a.rs").then(|| "fn it() {}".replace("it", "it_holds"));
    assert_eq!(map_faults(&map("it_holds"), text_of).len(), 0);
    assert_eq!(map_faults(&map("it_does_not"), text_of).len(), 2);
    assert_eq!(map_faults("//! # What always holds\n//! 1. So.\n", text_of).len(), 1);
}
