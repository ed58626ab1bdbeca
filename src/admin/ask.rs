//! An order given to a Ringway that runs, from the command line: by its admin endpoint, as any operator would.

use crate::config::{Admin, limits};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Posts an order without a body; what is answered, in a line.
///
/// # Errors
/// What is answered where it is refused, or why there is no answer.
pub fn post(admin: &Admin, path: &str) -> Result<String, String> {
    let at = reachable(admin.bind);
    let answer = exchange(at, admin.token.as_deref(), path).map_err(|e| {
        format!(
            "the admin endpoint at {at} does not answer: {e} (does Ringway run with this config?)"
        )
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let is_done = head.split(' ').nth(1) == Some("200");
    let said = sentences(body).unwrap_or_else(|| head.lines().next().unwrap_or("").to_owned());
    if is_done { Ok(said) } else { Err(said) }
}

/// Where this process reaches what is bound to `bind`.
fn reachable(bind: SocketAddr) -> SocketAddr {
    let ip = match bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    (ip, bind.port()).into()
}

fn exchange(at: SocketAddr, token: Option<&str>, path: &str) -> io::Result<String> {
    // The endpoint itself answers within its bound, if only to say that there is no answer yet.
    let patience = Duration::from_millis(2 * limits::ADMIN_REQUEST_MS_MAX);
    let mut stream = TcpStream::connect_timeout(&at, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let token = token.map_or_else(String::new, |t| format!("Authorization: Bearer {t}\r\n"));
    let head = format!("POST {path} HTTP/1.1\r\nHost: {at}\r\n{token}");
    stream.write_all(format!("{head}Content-Length: 0\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(limits::UPGRADE_ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// What an answer says, or the errors it names. `None`: it is none of Ringway's.
fn sentences(body: &str) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_str(body).ok()?;
    if let Some(what) = answer.get("what") {
        return what.as_str().map(str::to_owned);
    }
    let errors = answer.get("errors")?.as_array()?;
    let errors: Vec<&str> = errors.iter().filter_map(serde_json::Value::as_str).collect();
    Some(errors.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::harness::Endpoint;
    use crate::control::order::{Answer, Order, Orders};

    fn post_to(endpoint: &Endpoint, token: Option<&str>) -> Result<String, String> {
        let admin = Admin { bind: endpoint.address, token: token.map(Into::into) };
        post(&admin, "/api/v1/upgrade")
    }

    #[test]
    fn what_control_says_is_what_is_told() {
        let done = Orders::answered_by(|order| {
            assert_eq!(order, Order::Upgrade);
            Some(Answer::Done { generation: 1, what: "process 7 accepts clients".into() })
        });
        let endpoint = Endpoint::new(None, done);
        assert_eq!(post_to(&endpoint, None), Ok("process 7 accepts clients".into()));
        let refused =
            Orders::answered_by(|_| Some(Answer::Refused(vec!["one".into(), "two".into()])));
        let endpoint = Endpoint::new(None, refused);
        assert_eq!(post_to(&endpoint, None), Err("one; two".into()));
    }

    #[test]
    fn who_does_not_answer_is_named() {
        let nobody = Admin { bind: "127.0.0.1:1".parse().unwrap(), token: None };
        let why = post(&nobody, "/api/v1/upgrade").unwrap_err();
        assert!(why.contains("127.0.0.1:1 does not answer"), "{why}");
        assert_eq!(reachable("0.0.0.0:5".parse().unwrap()), "127.0.0.1:5".parse().unwrap());
        assert_eq!(reachable("[::]:5".parse().unwrap()), "[::1]:5".parse().unwrap());
    }
}
