//! Who may ask: the bearer token, and without one the care that no web page gives orders through its reader's browser.

use super::fault::Fault;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use hyper::http::uri::Authority;
use std::net::IpAddr;

/// Whether the request carries the token. The comparison takes as long for a token that is nearly right.
pub(super) fn token_matches(headers: &HeaderMap, token: &str) -> bool {
    let Some(given) = headers.get(AUTHORIZATION) else { return false };
    let Some((scheme, given)) = given.as_bytes().split_at_checked("Bearer ".len()) else {
        return false;
    };
    scheme.eq_ignore_ascii_case(b"Bearer ") && equal(given, token.as_bytes())
}

/// Looks at every byte of `given`, so that the time it takes tells nothing about where it differs.
fn equal(given: &[u8], token: &[u8]) -> bool {
    let mut differs = u8::from(given.len() != token.len());
    for (at, byte) in given.iter().enumerate() {
        differs |= byte ^ token.get(at).copied().unwrap_or(0);
    }
    std::hint::black_box(differs) == 0
}

/// Refuses an order that a web page may have sent.
///
/// Without a token, whoever can connect is believed, and a browser on this machine can connect. A page it shows may
/// send it here in two ways: straight (then the browser adds `Origin`), or by a name of the page's own that was made to
/// point at this address (then `Host` is that name). A tool on this machine does neither.
pub(super) fn refuse_web_pages(headers: &HeaderMap) -> Result<(), Fault> {
    if headers.contains_key(ORIGIN) {
        return Err(Fault::Untrusted(
            "without a token in [admin], orders with an Origin header, from a web page, are refused".into(),
        ));
    }
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next().map(|host| names_this_machine(host.as_bytes())), hosts.next()) {
        (Some(true), None) => Ok(()),
        _ => Err(Fault::Untrusted(
            "without a token in [admin], the Host of an order must be an IP address or localhost"
                .into(),
        )),
    }
}

fn names_this_machine(host: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(host) else { return false };
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    address.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_matches() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            token_matches(&headers, "secret")
        };
        assert!(with("Bearer secret") && with("bearer secret"));
        for wrong in ["Bearer secre", "Bearer secrets", "Bearer ", "secret", "Basic secret", ""] {
            assert!(!with(wrong), "{wrong}");
        }
        assert!(!token_matches(&HeaderMap::new(), ""));
    }

    #[test]
    fn a_host_is_an_address_or_localhost() {
        for good in ["127.0.0.1", "127.0.0.1:9901", "[::1]:80", "[::1]", "localhost", "LOCALHOST:1"]
        {
            assert!(names_this_machine(good.as_bytes()), "{good}");
        }
        for bad in ["", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "a b"] {
            assert!(!names_this_machine(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn an_order_without_a_host_or_with_two_is_refused() {
        let mut headers = HeaderMap::new();
        assert!(refuse_web_pages(&headers).is_err());
        headers.append(HOST, "127.0.0.1".parse().unwrap());
        assert!(refuse_web_pages(&headers).is_ok());
        headers.append(HOST, "127.0.0.1".parse().unwrap());
        assert!(refuse_web_pages(&headers).is_err());
    }
}
