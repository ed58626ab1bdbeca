//! Reading Rust as text: what of a file is code, which of it is for tests, and where its functions end.

/// The text with comments and the insides of strings and characters blanked; lines stay where they are.
pub(crate) fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skipped(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where a comment or literal that begins at `at` ends; `at` itself where none does.
fn skipped(chars: &[char], at: usize) -> usize {
    let is = |from: usize, what: &str| {
        what.chars().enumerate().all(|(i, c)| chars.get(from + i) == Some(&c))
    };
    let find = |from: usize, what: &str| {
        (from..chars.len()).find(|&i| is(i, what)).map_or(chars.len(), |i| i + what.chars().count())
    };
    let in_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    if is(at, "//") {
        return (at..chars.len()).find(|&i| chars[i] == '\n').unwrap_or(chars.len());
    }
    if is(at, "/*") {
        return find(at + 2, "*/");
    }
    if chars[at] == 'r' && !in_word {
        let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
        if chars.get(at + 1 + hashes) == Some(&'"') {
            return find(at + 2 + hashes, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    if chars[at] == '"' {
        let mut i = at + 1;
        while i < chars.len() && chars[i] != '"' {
            i += if chars[i] == '\\' { 2 } else { 1 };
        }
        return (i + 1).min(chars.len());
    }
    // A character, not a lifetime.
    if chars[at] == '\'' && chars.get(at + 1) == Some(&'\\') {
        return find(at + 3, "'");
    }
    if chars[at] == '\'' && chars.get(at + 2) == Some(&'\'') {
        return at + 3;
    }
    at
}

/// Code without the blocks of `#[cfg(test)] mod NAME { .. }`.
pub(crate) fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]\nmod ";
    let mut rest = code;
    let mut out = String::new();
    while let Some(at) = rest.find(MARK) {
        out.push_str(&rest[..at]);
        let after = &rest[at..];
        let end = match (after.find('{'), after.find(';')) {
            (Some(open), semicolon) if semicolon.is_none_or(|s| open < s) => block_end(after, open),
            (_, Some(semicolon)) => semicolon + 1,
            _ => after.len(),
        };
        rest = &after[end..];
    }
    out + rest
}

/// Where the block that opens at `open` has ended.
pub(crate) fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return open + at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// Identifiers and where they begin.
pub(crate) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut from = 0;
    std::iter::from_fn(move || {
        let start = from + code[from..].find(is_word)?;
        let len = code[start..].find(|c| !is_word(c)).unwrap_or(code.len() - start);
        from = start + len;
        Some((start, &code[start..from]))
    })
}

/// Names and lengths in lines of all functions with a body.
pub(crate) fn functions(code: &str) -> Vec<(String, usize)> {
    let all: Vec<(usize, &str)> = words(code).collect();
    let named = all.windows(2).filter(|pair| pair[0].1 == "fn");
    named
        .filter_map(|pair| {
            let (at, name) = pair[1];
            // Semicolons of array types stand in brackets; one outside ends a function without a body.
            let mut depth = 0_i32;
            let ends = code[at..].char_indices().find(|&(_, c)| {
                depth += i32::from("([".contains(c)) - i32::from(")]".contains(c));
                c == '{' || (c == ';' && depth == 0)
            });
            let open = ends.filter(|&(_, c)| c == '{').map(|(i, _)| at + i)?;
            let lines = code[pair[0].0..block_end(code, open)].matches('\n').count() + 1;
            Some((name.to_owned(), lines))
        })
        .collect()
}
