//! What is refused, and in which words: one mistake, one fault.

use crate::config::file::parse;

const GOOD: &str = r#"
[limits]
high_water_bytes = 65536
[listeners.orders]
bind = "127.0.0.1:9000"
stable = "v1"
canary = "v2"
[pools.v1]
backends = [{ address = "10.0.0.1:9000", name = "a" }, { address = "10.0.0.2:9000" }]
[pools.v2]
backends = ["10.0.0.3:9000", "[::1]:9000"]
[admin]
bind = "127.0.0.1:9900"
"#;

fn faults(text: &str) -> Vec<String> {
    parse(text).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

/// The faults of [`GOOD`] with one text in the place of another.
fn faults_with(old: &str, new: &str) -> Vec<String> {
    assert_eq!(GOOD.matches(old).count(), 1, "{old} is in the good config once");
    faults(&GOOD.replace(old, new))
}

#[track_caller]
fn one_fault(old: &str, new: &str, starts: &str) {
    let faults = faults_with(old, new);
    assert_eq!(faults.len(), 1, "{faults:#?}");
    assert!(faults[0].starts_with(starts), "{}\nis not\n{starts}", faults[0]);
}

#[test]
fn a_good_config_is_read_as_written() {
    let config = parse(GOOD).expect("it is good");
    let listener = &config.listeners[0];
    assert_eq!((&*listener.name, listener.stable, listener.canary), ("orders", 0, Some(1)));
    assert_eq!(listener.sessions_max, config.limits.sessions_max);
    let names: Vec<&str> =
        config.pools.iter().flat_map(|p| &p.backends).map(|b| &*b.name).collect();
    assert_eq!(names, ["a", "10.0.0.2:9000", "10.0.0.3:9000", "[::1]:9000"]);
}

#[test]
fn five_mistakes_are_five_faults() {
    let text = r#"
        [limits]
        high_water_bytes = "much"
        buffer_bytes = 131072
        [listeners.orders]
        bind = "127.0.0.1"
        stable = "v3"
        baklog = 1
        [pools.v1]
        backends = ["10.0.0.1:9000", { address = "10.0.0.1:9000" }]
    "#;
    assert_eq!(
        faults(text),
        [
            "limits.high_water_bytes = \"much\": must be 512..=16777216 (what one direction of a \
             session may hold before it stops receiving; at least buffer_bytes)",
            "listeners.orders.baklog: unknown key; did you mean 'backlog'?",
            "listeners.orders.bind = \"127.0.0.1\": must be ip:port, as \"10.0.0.1:9000\" or \
             \"[::1]:9000\", port 0..=65535 (where clients connect; port 0: any free one)",
            "listeners.orders.stable = \"v3\": unknown pool; did you mean 'v1'?",
            "pools.v1.backends[1].address = \"10.0.0.1:9000\": must be in this pool once; to send \
             it more sessions raise its weight",
        ]
    );
}

#[test]
fn an_empty_config_lacks_two_things() {
    assert_eq!(
        faults(""),
        [
            "listeners: missing; must be 1..=256 tables [listeners.NAME]",
            "pools: missing; must be 1..=1024 tables [pools.NAME]"
        ]
    );
    // A pool that nothing is known of is one mistake, not one more for each listener that names it.
    assert_eq!(faults("[listeners.a]\nbind = \"[::]:1\"\nstable = \"v1\"").len(), 1);
    one_fault(
        "stable = \"v1\"\n",
        "",
        "listeners.orders.stable: missing; must be the name of a pool",
    );
}

#[test]
fn what_is_not_toml_is_told_with_its_place() {
    assert!(faults("a = 1\n  b == 2")[0].starts_with("line 2, column "));
    assert_eq!(faults("a = 1\n  b == 2").len(), 1);
    let secret = faults("[admin]\ntoken = \"hunter2hunter2hunter2");
    assert!(secret.len() == 1 && !secret[0].contains("hunter2"), "{secret:?}");
    let long = "#".repeat(1 << 20) + "#";
    assert_eq!(faults(&long), ["config: must be at most 1048576 bytes"]);
}

#[test]
fn keys_are_known_or_told() {
    one_fault("[admin]", "[stopp]\n[admin]", "stopp: unknown key; did you mean 'stop'?");
    one_fault("[admin]", "[zzz]\n[admin]", "zzz: unknown key; known here: data_path, ");
    one_fault(
        "name = \"a\"",
        "wieght = 2",
        "pools.v1.backends[0].wieght: unknown key; did you mean 'weight'?",
    );
    one_fault("[pools.v2]", "[log]\n\"a\\nb\" = 1\n[pools.v2]", "log.\"a\\nb\": unknown key");
}

#[test]
fn types_and_ranges_hold() {
    let listener = |line: &str| format!("stable = \"v1\"\n{line}");
    for (line, starts) in [
        ("backlog = 0", "listeners.orders.backlog = 0: must be 1..=65535 (how many"),
        ("backlog = 65536", "listeners.orders.backlog = 65536: must be 1..=65535"),
        ("backlog = -1", "listeners.orders.backlog = -1: must be"),
        ("backlog = \"8\"", "listeners.orders.backlog = \"8\": must be"),
        ("hop = \"jump\"", "listeners.orders.hop = \"jump\": must be \"auto\" or \"multishot\""),
        ("on_backend_fail = true", "listeners.orders.on_backend_fail = true: must be"),
        ("canary_percent = 100.01", "listeners.orders.canary_percent = 100.01: must be 0..=100"),
        ("canary_percent = 0.125", "listeners.orders.canary_percent = 0.125: must be"),
        ("canary_percent = nan", "listeners.orders.canary_percent = nan: must be"),
        ("timeouts = 5", "listeners.orders.timeouts = 5: must be a table"),
        ("timeouts.connect_ms = 0", "listeners.orders.timeouts.connect_ms = 0: must be 1..="),
        ("tcp.congestion = \"CUBIC\"", "listeners.orders.tcp.congestion = \"CUBIC\": must be"),
        ("tcp.nodelay = 1", "listeners.orders.tcp.nodelay = 1: must be true or false"),
        ("sessions_max = 10001", "listeners.orders.sessions_max = 10001: must be at most limits"),
    ] {
        one_fault("stable = \"v1\"", &listener(line), starts);
    }
    one_fault(
        "name = \"a\"",
        "weight = 1001",
        "pools.v1.backends[0].weight = 1001: must be 0..=1000",
    );
    assert_eq!(faults_with("name = \"a\"", "weight = 0"), Vec::<String>::new());
    one_fault("name = \"a\"", "name = \"a b\"", "pools.v1.backends[0].name = \"a b\": must be");
    one_fault(
        "\"10.0.0.3:9000\"",
        "\"10.0.0.3:0\"",
        "pools.v2.backends[0].address = \"10.0.0.3:0\": ",
    );
    one_fault("\"10.0.0.3:9000\"", "7", "pools.v2.backends[0] = 7: must be a string (address) or");
    one_fault(
        "[\"10.0.0.3:9000\", \"[::1]:9000\"]",
        "[]",
        "pools.v2.backends = []: must be a list of 1..=256",
    );
    one_fault(
        "[admin]",
        "[pools.\"a b\"]\nbackends = [\"[::1]:1\"]\n[admin]",
        "pools.\"a b\": a name must be",
    );
    one_fault("[admin]", "[pools]\nv3 = 5\n[admin]", "pools.v3 = 5: must be a table [pools.v3]");
}

#[test]
fn pools_are_known_and_compared_with_others() {
    one_fault(
        "\"v2\"",
        "\"v22\"",
        "listeners.orders.canary = \"v22\": unknown pool; did you mean 'v2'?",
    );
    one_fault(
        "\"v2\"",
        "\"zebra\"",
        "listeners.orders.canary = \"zebra\": unknown pool; must be a [pools.NAME]",
    );
    one_fault(
        "\"v2\"",
        "\"v1\"",
        "listeners.orders.canary = \"v1\": must be another pool than stable",
    );
    one_fault(
        "canary = \"v2\"",
        "canary_percent = 2.5",
        "listeners.orders.canary_percent = 2.5: must be 0 without a canary pool",
    );
    one_fault(
        "canary = \"v2\"",
        "canary = 2\ncanary_percent = 5",
        "listeners.orders.canary = 2: must be the name of a pool",
    );
    one_fault(
        "{ address = \"10.0.0.2:9000\" }",
        "{ address = \"10.0.0.2:9000\", name = \"a\" }",
        "pools.v1.backends[1].name = \"a\": another backend",
    );
}

#[test]
fn an_address_is_bound_once() {
    let second = |bind: &str| {
        format!(
            "stable = \"v1\"\n[listeners.zulu]\nbind = \"{bind}\"\nstable = \"v2\"\n[listeners.orders.tcp]"
        )
    };
    let with = |bind: &str| faults_with("stable = \"v1\"\ncanary = \"v2\"", &second(bind));
    assert_eq!(
        with("127.0.0.1:9000"),
        ["listeners.zulu.bind = \"127.0.0.1:9000\": already bound by listeners.orders.bind"]
    );
    assert_eq!(
        with("0.0.0.0:9000"),
        [
            "listeners.zulu.bind = \"0.0.0.0:9000\": overlaps listeners.orders.bind = \"127.0.0.1:9000\""
        ]
    );
    for other in ["127.0.0.1:0", "127.0.0.2:9000", "127.0.0.1:9001", "[::1]:9000", "[::]:9000"] {
        assert_eq!(with(other), Vec::<String>::new(), "{other}");
    }
    let any_port =
        GOOD.replace(":9000\"\nstable", ":0\"\nstable").replace("127.0.0.1:9900", "127.0.0.1:0");
    assert_eq!(faults(&any_port), Vec::<String>::new(), "port 0 is another each time");
    assert_eq!(any_port.matches("127.0.0.1:0").count(), 2);
    one_fault(
        "127.0.0.1:9900",
        "127.0.0.1:9000",
        "admin.bind = \"127.0.0.1:9000\": already bound by listeners.orders.bind",
    );
}

#[test]
fn limits_fit_each_other() {
    one_fault(
        "65536",
        "16383",
        "limits.high_water_bytes = 16383: must be at least limits.buffer_bytes, 16384",
    );
    let shards = |lines: &str| format!("[shards]\n{lines}\n[admin]");
    assert_eq!(
        faults_with("[admin]", &shards("cpus = \"2-5, 8\"\ncount = 5")),
        Vec::<String>::new()
    );
    let starts = "shards.count = 6: must be at most the 5 of shards.cpus";
    one_fault("[admin]", &shards("cpus = \"2-5,8\"\ncount = 6"), starts);
    assert_eq!(
        faults_with("[admin]", &shards("cpus = \"2-5,8\"\ncount = 6\npin = false")),
        Vec::<String>::new()
    );
    for wrong in ["5-2", "1,1", "0-3,2", "1024", "-1", "+1", "a", ",", "1-2-3", " "] {
        let starts = format!("shards.cpus = \"{wrong}\": must be CPU numbers below 1024");
        one_fault("[admin]", &shards(&format!("cpus = \"{wrong}\"")), &starts);
    }
    let many = "high_water_bytes = 65536\nsessions_max = 1048577";
    assert_eq!(faults_with("high_water_bytes = 65536", many), Vec::<String>::new());
    let one_shard = GOOD.replace("high_water_bytes = 65536", many) + "[shards]\ncount = 1";
    assert_eq!(
        faults(&one_shard),
        [
            "limits.sessions_max = 1048577: must be at most 1048576, what shards hold with shards.count = 1"
        ]
    );
}

#[test]
fn what_shards_ask_of_the_kernel_is_bounded() {
    let shards = |lines: &str| format!("[shards]\n{lines}\n[admin]");
    let good = "napi_busy_poll_us = 10000\nfifo_priority = 99\nsteer = \"cpu\"";
    let text = GOOD.replace("[admin]", &shards(good));
    let read = parse(&text).expect("it is good").shards;
    assert_eq!((read.napi_busy_poll_us, read.fifo_priority), (10_000, 99));
    assert_eq!(read.steer, crate::config::Steer::Cpu);
    for (line, starts) in [
        ("napi_busy_poll_us = 10001", "shards.napi_busy_poll_us = 10001: must be 0..=10000"),
        ("fifo_priority = 100", "shards.fifo_priority = 100: must be 0..=99"),
        ("fifo_priority = -1", "shards.fifo_priority = -1: must be 0..=99"),
        ("steer = \"numa\"", "shards.steer = \"numa\": must be \"hash\" or \"cpu\""),
        (
            "steer = \"cpu\"\npin = false",
            "shards.steer = \"cpu\": must be \"hash\" without shards.pin",
        ),
        ("steer = \"cpu\"\npin = 3", "shards.pin = 3: must be true or false"),
    ] {
        one_fault("[admin]", &shards(line), starts);
    }
}

#[test]
fn the_admin_endpoint_is_guarded() {
    let open = "bind = \"127.0.0.1:9900\"";
    let wide = |more: &str| format!("bind = \"0.0.0.0:9900\"\n{more}");
    one_fault(open, &wide(""), "admin.bind = \"0.0.0.0:9900\": must be a loopback address");
    assert_eq!(faults_with(open, &wide("token = \"0123456789abcdef\"")), Vec::<String>::new());
    let short = "admin.token = (hidden): must be 16..=1024 visible ASCII";
    one_fault(open, &wide("token = \"0123456789abcde\""), short);
    one_fault(open, &wide("token = \"0123456789 abcdef\""), short);
    one_fault(open, &wide("token = 123456789"), short);
    let both = "token = \"0123456789abcdef\"\ntoken_file = \"token\"";
    one_fault(open, &wide(both), "admin.token_file = \"token\": must be \"\" where admin.token");
    let none = "token_file = \"/nonexistent/token\"";
    let starts = "admin.token_file = \"/nonexistent/token\": cannot be read: No such file";
    one_fault(open, &wide(none), starts);
    one_fault(
        open,
        &wide("token_file = \"/\""),
        "admin.token_file = \"/\": cannot be read: not a regular",
    );
    let six = GOOD.replace(open, "bind = \"[::1]:9900\"");
    assert_eq!(faults(&six), Vec::<String>::new());
}

#[test]
fn a_listener_inherits_what_it_does_not_set() {
    let text = GOOD.to_owned()
        + "[timeouts]\nidle_ms = 5000\nhalf_closed_ms = 0\n[tcp]\nkeepalive_idle_s = 0\nkeepalive_probes = 9\n\
           congestion = \"cubic\"\n[listeners.orders.timeouts]\nidle_ms = 0\nconnect_ms = 7\n\
           [listeners.orders.tcp]\nnodelay = false\nuser_timeout_ms = 0";
    let listener = parse(&text).expect("it is good").listeners.remove(0);
    let timeouts = listener.timeouts;
    assert_eq!((timeouts.connect_ms, timeouts.idle_ms), (7, None), "its own");
    assert_eq!((timeouts.half_closed_ms, timeouts.age_ms), (None, None), "inherited");
    assert_eq!((listener.tcp.nodelay, listener.tcp.user_timeout_ms), (false, None), "its own");
    assert_eq!(listener.tcp.keepalive, None);
    assert_eq!(listener.tcp.congestion.as_deref(), Some("cubic"));
    // Probing that is off for all may be on for one, with the rest as all have it.
    let on = text + "\nkeepalive_idle_s = 10";
    let keepalive = parse(&on).expect("it is good").listeners.remove(0).tcp.keepalive;
    let keepalive = keepalive.expect("it is on");
    assert_eq!((keepalive.idle_s, keepalive.interval_s, keepalive.probes), (10, 5, 9));
}

#[test]
fn one_mistake_in_what_is_inherited_is_one_fault() {
    one_fault("high_water_bytes = 65536", "sessions_max = 0", "limits.sessions_max = 0: ");
    one_fault("[admin]", "[timeouts]\nidle_ms = -1\n[admin]", "timeouts.idle_ms = -1: ");
}

#[test]
fn too_many_spares_are_one_fault_at_the_pool_that_has_them() {
    let text = |a: u32, b: u32, weight: u32| {
        let backends: Vec<String> = (1..=4).map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        let backends = backends.join(", ");
        format!(
            "[listeners.l]\nbind = \"127.0.0.1:0\"\nstable = \"a\"\n\
             [pools.a]\nspare = {a}\nbackends = [{backends}]\n[pools.b]\nspare = {b}\n\
             backends = [{{ address = \"127.0.0.1:5\", weight = {weight} }}]"
        )
    };
    assert_eq!(faults(&text(64, 0, 1)), [""; 0], "as many as there may be");
    assert_eq!(faults(&text(64, 1, 0)), [""; 0], "none is kept without weight");
    let told = faults(&text(64, 1, 1));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("pools.b.spare = 1: too many") && told[0].contains("256"),
        "{told:?}"
    );
    let told = faults(&text(65, 1, 1));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("pools.a.spare = 65: must be 0..=64"), "{told:?}");
}

#[test]
fn a_hostile_text_is_survived() {
    let room = usize::try_from(super::limits::CONFIG_BYTES_MAX).expect("1 MiB");
    let lines =
        |line: &dyn Fn(usize) -> String, count: usize| (0..count).map(line).collect::<String>();
    for text in [
        "[".repeat(room),
        "a=".to_owned() + &"[".repeat(room - 2),
        "a=".to_owned() + &"{a=".repeat(room / 3 - 1),
        "a.".repeat(room / 2 - 2) + "a=1",
        "[".to_owned() + &"a.".repeat(room / 2 - 3) + "a]",
        lines(&|n| format!("k{n}=1\n"), room / 10),
        lines(&|n| format!("[listeners.l{n}]\nbackl={n}\nbind='[::]:7'\n"), 250),
        lines(&|n| format!("[pools.p{n}]\n"), 1024)
            + &lines(&|n| format!("[listeners.l{n}]\nstable='x'\n"), 256),
    ] {
        assert!(text.len() <= room);
        assert!(!faults(&text).is_empty());
    }
}
