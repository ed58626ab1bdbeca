use super::*;
use crate::admin::harness::{self, Endpoint as Admin, Said, read_all};
use crate::config::{LogFormat, LogLevel, Percent};
use crate::control::order::Answer;
use std::io::{Read as _, Write as _};

const HURRIED: Bounds = Bounds { connections: 2, request: Duration::from_millis(150) };

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
}

#[test]
fn a_body_that_is_too_large_is_refused_whether_its_length_is_told_or_not() {
    let admin = Admin::new(None, Orders::unheard());
    let body = " ".repeat(limits::ADMIN_BODY_BYTES_MAX + 1);
    let told = admin.ask("PUT /api/v1/datapath", "", &body);
    assert_eq!(told.status, 413);
    assert!(told.head.contains("connection: close"), "{}", told.head);
    let head = "PUT /api/v1/datapath HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked";
    let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    assert_eq!(Said::parse(&admin.send(format!("{head}\r\n\r\n{chunk}"))).status, 413);
    // The largest body that is taken is not too large, only not what was expected.
    let most = " ".repeat(limits::ADMIN_BODY_BYTES_MAX);
    assert_eq!(admin.ask("PUT /api/v1/datapath", "", &most).status, 400);
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let admin = Admin::new(None, Orders::unheard());
    let filler = "x".repeat(limits::ADMIN_HEAD_BYTES_MAX);
    let said = admin.send(format!("GET /healthz HTTP/1.1\r\nHost: a\r\nX: {filler}\r\n\r\n"));
    assert!(said.starts_with("HTTP/1.1 431"), "{said}");
}

#[test]
fn garbage_is_a_400_and_hurts_nobody_else() {
    let admin = Admin::new(None, Orders::unheard());
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n"[..],
        b"\0\0\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ] {
        let said = admin.send(garbage);
        assert!(said.starts_with("HTTP/1.1 400"), "{garbage:?}: {said}");
    }
    assert_eq!(admin.ask("GET /healthz", "", "").status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_order_on_one_connection() {
    let admin = Admin::new(None, Orders::unheard());
    let said = admin.send(get("/healthz") + &get("/metrics") + &get("/nothing") + &get("/healthz"));
    let statuses: Vec<&str> =
        said.match_indices("HTTP/1.1 ").map(|(at, _)| &said[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "200", "404"], "nothing is answered after an error");
}

#[test]
fn a_connection_is_kept_for_the_next_request() {
    let admin = Admin::new(None, Orders::unheard());
    let mut stream = admin.connect();
    for _ in 0..3 {
        stream.write_all(get("/healthz").as_bytes()).unwrap();
        let mut said = [0; 15];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"HTTP/1.1 200 OK");
        let mut rest = [0; 512];
        assert!(stream.read(&mut rest).unwrap() > 0);
    }
}

#[test]
fn a_client_that_finished_sending_still_gets_its_answer() {
    let admin = Admin::new(None, Orders::unheard());
    let mut stream = admin.connect();
    stream.write_all(get("/metrics").as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(read_all(&mut stream).contains("ringway_ready 0"));
}

#[test]
fn who_is_slow_or_silent_gives_their_place_to_the_next() {
    let admin = Admin::bounded(None, Orders::unheard(), HURRIED);
    let mut silent = admin.connect();
    let mut slow = admin.connect();
    slow.write_all(b"GET /healthz HTT").unwrap();
    // Both places are taken; this one waits in the backlog until a bound frees one.
    assert_eq!(admin.ask("GET /healthz", "", "").status, 200);
    assert_eq!((read_all(&mut silent), read_all(&mut slow)), (String::new(), String::new()));
}

#[test]
fn a_body_that_does_not_come_is_a_408() {
    let admin = Admin::bounded(None, Orders::unheard(), HURRIED);
    let head = "PUT /api/v1/datapath HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{";
    assert_eq!(Said::parse(&admin.send(head)).status, 408);
}

#[test]
fn control_that_does_not_answer_is_a_504() {
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let orders = Orders::answered_by(move |_| {
        let _ = held.recv();
        None
    });
    let admin = Admin::bounded(None, orders, HURRIED);
    assert_eq!(admin.ask("POST /api/v1/reload", "", "").status, 504);
    drop(hold);
}

#[test]
fn who_does_not_read_is_dropped() {
    let admin = Admin::bounded(None, Orders::unheard(), Bounds { connections: 1, ..HURRIED });
    let mut deaf = admin.connect();
    // Far more answers than two socket buffers hold.
    deaf.write_all(get("/metrics").repeat(4000).as_bytes()).unwrap();
    // There is one place, so this is answered when the other is gone.
    assert_eq!(admin.ask("GET /healthz", "", "").status, 200);
    let mut said = Vec::new();
    let _ = deaf.read_to_end(&mut said);
    let answers = String::from_utf8_lossy(&said).matches("HTTP/1.1 200").count();
    assert!((1..4000).contains(&answers), "{answers}");
}

#[test]
fn an_order_keeps_the_place_of_who_gave_it_and_left() {
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let orders = Orders::answered_by(move |_| {
        let _ = held.recv();
        None
    });
    let bounds = Bounds { connections: 1, request: Duration::from_secs(5) };
    let admin = Admin::bounded(None, orders, bounds);
    let mut leaving = admin.connect();
    let order = "POST /api/v1/reload HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    leaving.write_all(order.as_bytes()).unwrap();
    drop(leaving);
    let mut next = admin.connect();
    next.write_all(get("/nothing").as_bytes()).unwrap();
    next.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(next.read(&mut [0]).is_err(), "it was answered while the order held the place");
    next.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    drop(hold);
    assert!(read_all(&mut next).starts_with("HTTP/1.1 404"));
}

#[test]
fn a_handler_that_panics_costs_one_answer() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let outcome = local.block_on(&runtime, async {
        caught(SocketAddr::from(([127, 0, 0, 1], 1)), async { panic!("on purpose") }).await
    });
    assert_eq!(outcome.status(), 500);
}

#[test]
fn an_order_is_written_down_with_who_what_and_its_result() {
    let orders = Orders::answered_by(|order| {
        Some(match order {
            Order::Reload => Answer::Refused(vec!["no such pool".into()]),
            _ => Answer::Done { generation: 2, what: "done".into() },
        })
    });
    let window = Window { token: None, board: harness::board(0), orders };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let given = |order: Order| {
        harness::written(LogFormat::Human, LogLevel::Info, || {
            runtime.block_on(async {
                let until = Instant::now() + Duration::from_secs(5);
                let _ = obey(order, "127.0.0.1:77".parse().unwrap(), &window, until).await;
            });
        })
    };
    let percent = Percent::from_hundredths(525).unwrap();
    let done = given(Order::Canary { listener: "fix".into(), percent });
    let expected = r#"admin order who=127.0.0.1:77 what="canary of fix to 5.25 %" result="done""#;
    assert!(done.contains("INFO") && done.contains(expected), "{done}");
    let refused = given(Order::Reload);
    let expected = r#"what="reload the config" result="not done" why="no such pool""#;
    assert!(refused.contains("WARN") && refused.contains(expected), "{refused}");
}

#[test]
fn a_stop_closes_the_port_and_idle_connections_at_once() {
    let admin = Admin::new(None, Orders::unheard());
    let mut idle = admin.connect();
    idle.write_all(get("/healthz").as_bytes()).unwrap();
    let mut some = [0; 15];
    idle.read_exact(&mut some).unwrap();
    admin.running.stop();
    read_all(&mut idle);
    assert!(std::net::TcpStream::connect(admin.address).is_err());
}
