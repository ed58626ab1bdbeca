use super::*;
use crate::admin::harness::Endpoint as Admin;
use crate::control::order::Orders;
use proptest::prelude::*;
use std::sync::mpsc;

/// An endpoint whose control does all it is told, and what it was told.
fn obedient(token: Option<&str>) -> (Admin, mpsc::Receiver<Order>) {
    let (tell, told) = mpsc::channel();
    let orders = Orders::answered_by(move |order| {
        tell.send(order).unwrap();
        Some(Answer::Done { generation: 3, what: "done".into() })
    });
    (Admin::new(token, orders), told)
}

#[test]
fn health_is_always_good_and_readiness_follows_the_board() {
    let admin = Admin::new(None, Orders::unheard());
    assert_eq!(admin.ask("GET /healthz", "", "").status, 200);
    let before = admin.ask("GET /readyz", "", "");
    assert_eq!((before.status, before.error().starts_with("not ready")), (503, true));
    admin.board.ready.store(true, Relaxed);
    let after = admin.ask("GET /readyz", "", "");
    assert_eq!((after.status, after.body.trim()), (200, r#"{"generation":1,"what":"ready"}"#));
}

#[test]
fn metrics_are_prometheus_text() {
    let said = Admin::new(None, Orders::unheard()).ask("GET /metrics?name=all", "", "");
    assert_eq!(said.status, 200);
    assert!(said.head.contains("content-type: text/plain; version=0.0.4"), "{}", said.head);
    assert!(said.body.contains("\n# TYPE ringway_ready gauge\nringway_ready 0\n"), "{}", said.body);
}

#[test]
fn status_is_json_of_the_board() {
    let said = Admin::new(None, Orders::unheard()).ask("GET /api/v1/status", "", "");
    let json: serde_json::Value = serde_json::from_str(&said.body).unwrap();
    assert_eq!(json["listeners"][0]["name"], "fix");
    assert_eq!(json["listeners"][0]["canary_percent"], 5.0);
    assert_eq!(json["shards"][0]["path"], "epoll");
}

#[test]
fn the_list_names_every_endpoint() {
    let said = Admin::new(None, Orders::unheard()).ask("GET /", "", "");
    for endpoint in &ENDPOINTS {
        let named = |line: &str| line.contains(endpoint.path) && line.ends_with(endpoint.what);
        assert!(said.body.lines().any(named), "{} is not in\n{}", endpoint.path, said.body);
    }
}

#[test]
fn a_head_request_is_a_get_without_its_body() {
    let said = Admin::new(None, Orders::unheard()).ask("HEAD /metrics", "", "");
    assert_eq!((said.status, said.body.as_str()), (200, ""));
}

#[test]
fn orders_reach_control_and_its_answer_comes_back() {
    let (admin, told) = obedient(None);
    let said = admin.ask("POST /api/v1/reload", "", "");
    assert_eq!((said.status, said.body.trim()), (200, r#"{"generation":3,"what":"done"}"#));
    assert_eq!(told.recv().unwrap(), Order::Reload);

    assert_eq!(admin.ask("POST /api/v1/reload", "", "{}").status, 200);
    assert_eq!(told.recv().unwrap(), Order::Reload);

    for (body, hundredths) in [(r#"{"percent": 5}"#, 500), (r#"{"percent": 0.25}"#, 25)] {
        assert_eq!(admin.ask("PUT /api/v1/listeners/fix.1/canary", "", body).status, 200);
        let percent = Percent::from_hundredths(hundredths).unwrap();
        assert_eq!(told.recv().unwrap(), Order::Canary { listener: "fix.1".into(), percent });
    }

    assert_eq!(admin.ask("PUT /api/v1/datapath", "", r#"{"path": "epoll"}"#).status, 200);
    let path = DataPath::Epoll;
    assert_eq!(
        told.recv().unwrap(),
        Order::DataPath { path, live: None, percent: Percent::HUNDRED }
    );
    let live = r#"{"path": "epoll", "live": true}"#;
    assert_eq!(admin.ask("PUT /api/v1/datapath", "", live).status, 200);
    assert_eq!(
        told.recv().unwrap(),
        Order::DataPath { path, live: Some(true), percent: Percent::HUNDRED }
    );

    assert_eq!(admin.ask("POST /api/v1/sessions/17/move", "", r#"{"shard": 1}"#).status, 200);
    assert_eq!(told.recv().unwrap(), Order::Move { session: 17, shard: 1 });
    assert_eq!(admin.ask("POST /api/v1/sessions/x/move", "", r#"{"shard": 1}"#).status, 400);
}

#[test]
fn a_body_that_is_wrong_is_answered_by_what_was_expected() {
    let (admin, told) = obedient(None);
    let canary = "PUT /api/v1/listeners/fix/canary";
    let path = "PUT /api/v1/datapath";
    for (head, body, expected) in [
        (canary, "", r#"expected {"percent": 5}"#),
        (canary, "{", r#"expected {"percent": 5}"#),
        (canary, r#"{"percent": "5"}"#, r#"expected {"percent": 5}"#),
        (canary, r#"{"percent": 5, "soak": 1}"#, "unknown field `soak`"),
        (canary, r#"{"percent": 5} {}"#, "trailing characters"),
        (canary, r#"{"percent": 5, "percent": 6}"#, "duplicate field"),
        (canary, r#"{"percent": 101}"#, "from 0 to 100"),
        (canary, r#"{"percent": -1}"#, "from 0 to 100"),
        (canary, r#"{"percent": 0.125}"#, "at most two decimals"),
        (canary, r#"{"percent": 1e999}"#, "expected"),
        (canary, r#"{"percent": NaN}"#, "expected"),
        (path, r#"{"path": "dpdk"}"#, "one of auto, uring, epoll, not \"dpdk\""),
        ("POST /api/v1/reload", r#"{"now": true}"#, "unknown field `now`"),
    ] {
        let said = admin.ask(head, "", body);
        assert_eq!(said.status, 400, "{head} {body}");
        assert!(said.error().contains(expected), "{body}: {}", said.error());
    }
    assert!(told.try_recv().is_err(), "control was told of a wrong order");
}

#[test]
fn what_control_refuses_or_does_not_know_is_passed_on() {
    let admin = Admin::new(
        None,
        Orders::answered_by(|order| {
            Some(match order {
                Order::Reload => Answer::Refused(vec!["one".into(), "two".into()]),
                _ => Answer::Unknown("there is no listener `oe`".into()),
            })
        }),
    );
    let refused = admin.ask("POST /api/v1/reload", "", "");
    assert_eq!((refused.status, refused.body.trim()), (400, r#"{"errors":["one","two"]}"#));
    let unknown = admin.ask("PUT /api/v1/listeners/oe/canary", "", r#"{"percent": 1}"#);
    assert_eq!((unknown.status, unknown.error().as_str()), (404, "there is no listener `oe`"));
}

#[test]
fn control_that_has_gone_or_drops_the_order_is_a_503() {
    assert_eq!(Admin::new(None, Orders::unheard()).ask("POST /api/v1/reload", "", "").status, 503);
    let drops = Orders::answered_by(|_| None);
    assert_eq!(Admin::new(None, drops).ask("POST /api/v1/reload", "", "").status, 503);
}

#[test]
fn other_methods_and_paths_are_named_as_such() {
    let admin = Admin::new(None, Orders::unheard());
    for (head, allowed) in [
        ("POST /metrics", "allow: get, head"),
        ("GET /api/v1/reload", "allow: post"),
        ("DELETE /api/v1/listeners/fix/canary", "allow: put"),
    ] {
        let said = admin.ask(head, "", "");
        assert_eq!(said.status, 405, "{head}");
        assert!(said.head.contains(allowed), "{}", said.head);
        assert!(said.head.contains("connection: close"), "{}", said.head);
    }
    for path in
        ["/nothing", "/api/v1/listeners//canary", "/api/v1/listeners/a/b/canary", "/metrics/"]
    {
        assert_eq!(admin.ask(&format!("GET {path}"), "", "").status, 404, "{path}");
    }
}

#[test]
fn a_token_guards_all_but_the_health_checks() {
    let (admin, told) = obedient(Some("secret"));
    assert_eq!(admin.ask("GET /healthz", "", "").status, 200);
    assert_eq!(admin.ask("GET /readyz", "", "").status, 503);
    let heads = ["GET /", "GET /metrics", "GET /api/v1/status", "POST /api/v1/reload", "GET /none"];
    for head in heads {
        for wrong in ["", "Authorization: Bearer secreT\r\n", "Authorization: Basic secret\r\n"] {
            let said = admin.ask(head, wrong, "");
            assert_eq!(said.status, 401, "{head} {wrong}");
            assert!(said.head.contains("www-authenticate: bearer"), "{}", said.head);
        }
    }
    assert!(told.try_recv().is_err(), "an order without the token was given");
    let right = "Authorization: Bearer secret\r\n";
    assert_eq!(admin.ask("GET /metrics", right, "").status, 200);
    // With a token a browser knows nothing to send along, so a proxy's name as Host is good.
    let proxied = format!("{right}Origin: https://console.example\r\n");
    assert_eq!(admin.ask("POST /api/v1/reload", &proxied, "").status, 200);
    assert_eq!(told.recv().unwrap(), Order::Reload);
}

#[test]
fn without_a_token_a_web_page_gives_no_orders() {
    let (admin, told) = obedient(None);
    let page = admin.ask("POST /api/v1/reload", "Origin: http://127.0.0.1\r\n", "");
    assert_eq!(page.status, 403);
    let rebound = admin.send(
        "POST /api/v1/reload HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    );
    assert!(rebound.starts_with("HTTP/1.1 403"), "{rebound}");
    assert!(told.try_recv().is_err());
    // Looking is not ordering: a page cannot read the answer.
    assert_eq!(admin.ask("GET /metrics", "Origin: http://127.0.0.1\r\n", "").status, 200);
}

/// A body that some endpoint takes, or nearly.
fn bodies() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        any::<f64>().prop_map(|n| n.to_string()),
        (0_u16..=10_000).prop_map(|n| Percent::from_hundredths(n).unwrap().as_f64().to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        "\"(auto|uring|epoll|[ -~]{0,6})\"",
        "true|false|null|[ -~]{0,6}",
    ];
    let field = ("percent|path|live|shard|[a-z]{0,4}", value);
    let object = prop::collection::vec(field, 0..3).prop_map(|fields| {
        let fields: Vec<String> =
            fields.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
        format!("{{{}}}", fields.join(", "))
    });
    prop_oneof![4 => object, 1 => any::<String>()]
}

proptest! {
    #[test]
    fn any_body_is_an_order_or_says_what_is_wrong(at in any::<prop::sample::Index>(), body in bodies()) {
        let paths = ENDPOINTS.iter().filter(|e| matches!(e.does, Does::Order(_)));
        let paths: Vec<&Endpoint> = paths.collect();
        let endpoint = paths[at.index(paths.len())];
        let path = endpoint.path.replace("NAME", "17").replace("ID", "17");
        match order_of(&endpoint.method, &path, body.as_bytes()) {
            Ok(Order::Canary { listener, percent }) => {
                prop_assert_eq!(&listener, "17");
                // Written as it was read, it says the same.
                let again = format!(r#"{{"percent": {}}}"#, percent.as_f64());
                let order = order_of(&endpoint.method, &path, again.as_bytes()).unwrap();
                prop_assert_eq!(order, Order::Canary { listener, percent });
            }
            Ok(Order::Move { session, .. }) => prop_assert_eq!(session, 17),
            Ok(
                Order::Reload
                | Order::Upgrade
                | Order::DataPath { .. }
                | Order::Sessions { .. }
                | Order::RollBack,
            ) => {}
            Err(fault) => {
                prop_assert_eq!(fault.status(), StatusCode::BAD_REQUEST);
                prop_assert!(fault.sentences().iter().any(|sentence| !sentence.is_empty()));
            }
        }
    }

    #[test]
    fn any_method_and_path_is_found_or_refused(
        method in "[A-Z]{1,7}",
        path in "(/(api|v1|listeners|sessions|[^/]{0,4})){0,6}/?",
    ) {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        match find(&method, &path) {
            Ok((endpoint, name)) => {
                let pattern = if endpoint.path.contains("ID") { "ID" } else { "NAME" };
                prop_assert_eq!(endpoint.path.replace(pattern, name), path);
            }
            Err(fault) => prop_assert!([404, 405].contains(&fault.status().as_u16()), "{fault:?}"),
        }
    }
}
