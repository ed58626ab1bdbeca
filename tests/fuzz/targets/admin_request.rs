//! Any method, path and body: an order that says what was asked for, or at least one reason why not.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::admin;
use ringway::config::{Percent, limits};
use ringway::control::order::Order;

/// Where orders are given; beside them the fuzzer makes up its own.
const PATHS: [(&str, &str); 4] = [
    ("POST", "/api/v1/reload"),
    ("PUT", "/api/v1/listeners/orders/canary"),
    ("PUT", "/api/v1/datapath"),
    ("POST", "/api/v1/sessions/1099511627777/move"),
];

// The first byte chooses one of the paths, and the rest is the body; or the rest is a method and a path, each ended by
// a line feed, and the body.
fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    if let Some((method, path)) = PATHS.get(usize::from(*kind)) {
        return check(method, path, rest);
    }
    let mut parts = rest.splitn(3, |byte| *byte == b'\n');
    let mut word = || std::str::from_utf8(parts.next()?).ok();
    let (Some(method), Some(path)) = (word(), word()) else { return };
    check(method, path, parts.next().unwrap_or_default());
});

fn check(method: &str, path: &str, body: &[u8]) {
    let body = &body[..body.len().min(limits::ADMIN_BODY_BYTES_MAX)];
    let read = admin::order_of(method, path, body);
    assert_eq!(read, admin::order_of(method, path, body), "the same request reads the same");
    match read {
        Ok(Order::Reload) => assert_eq!((method, path), PATHS[0]),
        Ok(Order::Upgrade) => assert_eq!((method, path), ("POST", "/api/v1/upgrade")),
        Ok(Order::Canary { listener, percent }) => {
            assert_eq!(path, format!("/api/v1/listeners/{listener}/canary"));
            assert!(percent.hundredths() <= Percent::WHOLE && !listener.is_empty());
            // Written as it was read, it says the same.
            let again = format!(r#"{{"percent": {}}}"#, percent.as_f64());
            let order = admin::order_of(method, path, again.as_bytes());
            assert_eq!(order, Ok(Order::Canary { listener, percent }));
        }
        Ok(Order::DataPath { path: to, live, percent }) => {
            assert_eq!((method, path), PATHS[2]);
            let live_again = live.map_or_else(|| "null".to_owned(), |live| live.to_string());
            let again = format!(
                r#"{{"path": "{}", "live": {live_again}, "percent": {}}}"#,
                to.label(),
                percent.as_f64()
            );
            let order = admin::order_of(method, path, again.as_bytes());
            assert_eq!(order, Ok(Order::DataPath { path: to, live, percent }));
        }
        Ok(Order::Move { session, .. }) => {
            let named = path.split('/').nth(4).and_then(|word| word.parse::<u64>().ok());
            assert_eq!(named, Some(session), "{path}");
        }
        Ok(Order::Sessions { .. } | Order::RollBack) => panic!("no body says so"),
        Err(sentences) => {
            assert!(!sentences.is_empty() && sentences.iter().all(|it| !it.is_empty()));
        }
    }
}
