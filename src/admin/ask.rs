//! The other end of the admin endpoint: what `ringway status`, `reload`, `datapath` and `upgrade` ask with.

use crate::config::{Admin, limits};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Sends one request to the endpoint of this config. The status, and the body as it came.
///
/// # Errors
/// Nobody listens there, or what listens does not answer as Ringway does; a sentence.
pub fn ask(admin: &Admin, method: &str, path: &str, body: &str) -> Result<(u16, String), String> {
    let at = reachable(admin.bind);
    if at.port() == 0 {
        return Err("admin.bind says port 0: only the running Ringway knows where that is".into());
    }
    let token = admin.token.as_deref();
    let token = token.map_or_else(String::new, |t| format!("Authorization: Bearer {t}\r\n"));
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n{token}\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    // The endpoint itself answers within its bound, if only to say that there is no answer yet.
    let patience = Duration::from_millis(2 * limits::ADMIN_REQUEST_MS_MAX);
    let exchange = || {
        let mut stream = TcpStream::connect_timeout(&at, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(limits::ADMIN_ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        if answer.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = exchange().map_err(|e| {
        format!(
            "the admin endpoint at {at} does not answer: {e} (does Ringway run with this config?)"
        )
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| format!("what listens on {at} is no Ringway"))?;
    if length_said(head).is_some_and(|said| said != body.len()) {
        return Err(format!("the answer of the admin endpoint at {at} was cut short: ask again"));
    }
    Ok((status, body.to_owned()))
}

/// How many bytes an answer says it has behind its head.
fn length_said(head: &str) -> Option<usize> {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let (_, length) =
        fields.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    length.trim().parse().ok()
}

/// What an answer to an order says in words, or the errors it names; what it shows where it is about no order, a line
/// for each thing; as it is where it is none of Ringway's.
#[must_use]
pub fn sentences(body: &str) -> String {
    let answer: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    if let Some(what) = answer["what"].as_str() {
        return what.to_owned();
    }
    let errors = answer["errors"].as_array().into_iter().flatten();
    let errors: Vec<&str> = errors.filter_map(serde_json::Value::as_str).collect();
    if !errors.is_empty() {
        return errors.join("; ");
    }
    let shown = answer.is_object().then(|| serde_json::to_string_pretty(&answer).ok()).flatten();
    shown.unwrap_or_else(|| body.trim_end().to_owned())
}

/// Where an endpoint that listens on every address can be asked from its own machine.
fn reachable(bind: SocketAddr) -> SocketAddr {
    let ip = match bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bind.port())
}

#[cfg(test)]
mod tests {
    use super::super::harness::Endpoint;
    use super::*;
    use crate::control::order::{Answer, Order, Orders};

    fn admin(bind: SocketAddr, token: Option<&str>) -> Admin {
        Admin { bind, token: token.map(Into::into) }
    }

    #[test]
    fn an_endpoint_is_asked_with_its_token() {
        let orders = Orders::answered_by(|order| {
            let what = format!("{order:?}");
            matches!(order, Order::DataPath { .. }).then_some(Answer::Done { generation: 7, what })
        });
        let token = "a token that is long enough";
        let endpoint = Endpoint::new(Some(token), orders);
        let put = |token| {
            let body = r#"{"path": "epoll", "live": null, "percent": 12.5}"#;
            ask(&admin(endpoint.address, token), "PUT", "/api/v1/datapath", body)
        };
        let (status, said) = put(Some(token)).unwrap();
        assert_eq!(status, 200, "{said}");
        assert!(said.contains("Epoll") && said.contains("1250"), "{said}");
        assert_eq!(put(None).unwrap().0, 401);
    }

    #[test]
    fn what_control_says_is_what_is_told() {
        let upgrade = |orders| {
            let endpoint = Endpoint::new(None, orders);
            ask(&admin(endpoint.address, None), "POST", "/api/v1/upgrade", "").unwrap()
        };
        let (status, said) = upgrade(Orders::answered_by(|order| {
            assert_eq!(order, Order::Upgrade);
            Some(Answer::Done { generation: 1, what: "process 7 accepts clients".into() })
        }));
        assert_eq!((status, sentences(&said)), (200, "process 7 accepts clients".into()));
        let refused = Answer::Refused(vec!["one".into(), "two".into()]);
        let (status, said) = upgrade(Orders::answered_by(move |_| Some(refused.clone())));
        assert!(status >= 400, "{status}");
        assert_eq!(sentences(&said), "one; two");
        assert_eq!(sentences("no json\n"), "no json");
        assert_eq!(sentences("{\"ready\":true}"), "{\n  \"ready\": true\n}");
    }

    #[test]
    fn a_long_answer_comes_whole_or_not_at_all() {
        let answer = |bytes: usize| {
            let there = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let at = there.local_addr().unwrap();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = there.accept().unwrap();
                assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
                let head = "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n";
                stream.write_all(format!("{head}{}", "x".repeat(bytes)).as_bytes()).unwrap();
            });
            let got = ask(&admin(at, None), "GET", "/", "");
            server.join().unwrap();
            got
        };
        assert_eq!(answer(100_000).unwrap().1.len(), 100_000);
        let why = answer(65_000).unwrap_err();
        assert!(why.contains("cut short"), "{why}");
    }

    #[test]
    fn nobody_there_is_told() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let why = ask(&admin(free, None), "GET", "/", "").unwrap_err();
        assert!(why.contains(&format!("{free} does not answer")), "{why}");
        assert!(ask(&admin("127.0.0.1:0".parse().unwrap(), None), "GET", "/", "").is_err());
        assert_eq!(reachable("0.0.0.0:9".parse().unwrap()), "127.0.0.1:9".parse().unwrap());
        assert_eq!(reachable("[::]:9".parse().unwrap()), "[::1]:9".parse().unwrap());
    }
}
