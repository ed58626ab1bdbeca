//! What can be asked: one table of endpoints, from which requests are answered and `GET /` is written.

use super::fault::{Fault, Response, answer, json};
use super::metrics;
use super::serve::Window;
use super::sessions;
use crate::config::{DataPath, Percent};
use crate::control::order::{Answer, Order};
use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering::Relaxed;

/// One thing that can be asked.
pub(super) struct Endpoint {
    pub(super) method: Method,
    /// `NAME` stands for a listener's name, `ID` for a session's id.
    pub(super) path: &'static str,
    /// For people.
    pub(super) what: &'static str,
    pub(super) does: Does,
}

/// What an endpoint does.
pub(super) enum Does {
    /// Shows something to anybody: a load balancer carries no token.
    ShowAll(fn(&Window) -> Result<Response, Fault>),
    /// Shows something.
    Show(fn(&Window) -> Result<Response, Fault>),
    /// Asks control, and through it the shards: what, is read from the query.
    Ask(fn(&str) -> Result<Order, Fault>),
    /// Has control do something: what, is read from the name in the path and from the body.
    Order(fn(&str, &[u8]) -> Result<Order, Fault>),
}

/// All of them.
pub(super) static ENDPOINTS: [Endpoint; 11] = [
    Endpoint {
        method: Method::GET,
        path: "/",
        what: "this list",
        does: Does::Show(|_| Ok(answer(StatusCode::OK, "text/plain", list().into_bytes()))),
    },
    Endpoint {
        method: Method::GET,
        path: "/healthz",
        what: "200 while the process runs",
        does: Does::ShowAll(|w| Ok(said(generation(w), "running"))),
    },
    Endpoint {
        method: Method::GET,
        path: "/readyz",
        what: "200 while new clients are wanted, else 503",
        does: Does::ShowAll(ready),
    },
    Endpoint {
        method: Method::GET,
        path: "/metrics",
        what: "numbers for Prometheus",
        does: Does::Show(scrape),
    },
    Endpoint {
        method: Method::GET,
        path: "/api/v1/status",
        what: "data path, shards, listeners and pools, as JSON",
        does: Does::Show(|w| Ok(json(StatusCode::OK, &w.board.status()))),
    },
    Endpoint {
        method: Method::POST,
        path: "/api/v1/reload",
        what: "reads the config file again",
        does: Does::Order(reload),
    },
    Endpoint {
        method: Method::POST,
        path: "/api/v1/upgrade",
        what: "starts the program anew and hands sockets and live sessions over to it",
        does: Does::Order(upgrade),
    },
    Endpoint {
        method: Method::PUT,
        path: "/api/v1/listeners/NAME/canary",
        what: r#"{"percent": 5} sends 5 % of the listener's new sessions to its canary pool"#,
        does: Does::Order(canary),
    },
    Endpoint {
        method: Method::PUT,
        path: "/api/v1/datapath",
        what: r#"{"path": "uring", "percent": 10, "live": true} sets the data path (auto, uring, epoll) and its share"#,
        does: Does::Order(data_path),
    },
    Endpoint {
        method: Method::GET,
        path: "/api/v1/sessions",
        what: "live sessions, a page at a time: ?from=SLOT&slots=200&shard=0",
        does: Does::Ask(sessions::wanted),
    },
    Endpoint {
        method: Method::POST,
        path: "/api/v1/sessions/ID/move",
        what: r#"{"shard": 1} carries the live session of this id to that shard"#,
        does: Does::Order(move_session),
    },
];

/// The endpoint of a request, and the name or id in its path (empty where there is none).
pub(super) fn find<'p>(
    method: &Method,
    path: &'p str,
) -> Result<(&'static Endpoint, &'p str), Fault> {
    // What answers GET also answers HEAD, for which hyper leaves the body out.
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let at_path: Vec<(&Endpoint, &str)> =
        ENDPOINTS.iter().filter_map(|e| Some((e, name_in(e.path, path)?))).collect();
    if at_path.is_empty() {
        return Err(Fault::Unknown(
            "there is nothing at this path; GET / lists what there is".into(),
        ));
    }
    at_path.iter().find(|(e, _)| e.method == *method).copied().ok_or_else(|| {
        let allowed = at_path.iter().map(|(e, _)| match e.method {
            Method::GET => "GET, HEAD",
            ref other => other.as_str(),
        });
        Fault::Method(allowed.collect::<Vec<_>>().join(", "))
    })
}

/// The order in a request.
pub(super) fn order_of(method: &Method, path: &str, body: &[u8]) -> Result<Order, Fault> {
    match find(method, path)? {
        (Endpoint { does: Does::Order(read), .. }, name) => read(name, body),
        (Endpoint { what, .. }, _) => Err(Fault::Unknown(format!("no order: it shows {what}"))),
    }
}

/// What stands for NAME or ID in `path`, or nothing where the two differ. Neither a [`Name`](crate::config::Name) nor
/// an id has a character that a path would have to encode.
fn name_in<'p>(pattern: &str, path: &'p str) -> Option<&'p str> {
    let mut name = "";
    let mut given = path.split('/');
    for expected in pattern.split('/') {
        let segment = given.next()?;
        if matches!(expected, "NAME" | "ID") && !segment.is_empty() {
            name = segment;
        } else if expected != segment {
            return None;
        }
    }
    given.next().is_none().then_some(name)
}

fn list() -> String {
    let line = |e: &Endpoint| format!("{:<5}{:<31}{}\n", e.method.as_str(), e.path, e.what);
    ENDPOINTS.iter().map(line).collect()
}

fn generation(window: &Window) -> u64 {
    window.board.snapshot.load().number
}

fn ready(window: &Window) -> Result<Response, Fault> {
    if window.board.ready.load(Relaxed) {
        Ok(said(generation(window), "ready"))
    } else {
        Err(Fault::NotReady("not ready: Ringway is starting or stopping"))
    }
}

fn scrape(window: &Window) -> Result<Response, Fault> {
    let text = metrics::text(&window.board).map_err(|error| Fault::Broken(error.to_string()))?;
    Ok(answer(StatusCode::OK, metrics::CONTENT_TYPE, text))
}

fn reload(_: &str, body: &[u8]) -> Result<Order, Fault> {
    no_body(body).map(|()| Order::Reload)
}

fn upgrade(_: &str, body: &[u8]) -> Result<Order, Fault> {
    no_body(body).map(|()| Order::Upgrade)
}

fn no_body(body: &[u8]) -> Result<(), Fault> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {}
    if body.is_empty() { Ok(()) } else { parse::<Body>(body, "no body, or {}").map(|Body {}| ()) }
}

fn canary(listener: &str, body: &[u8]) -> Result<Order, Fault> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        percent: f64,
    }
    let Body { percent } = parse(body, r#"{"percent": 5}"#)?;
    Ok(Order::Canary { listener: listener.to_owned(), percent: percent_of(percent)? })
}

fn percent_of(percent: f64) -> Result<Percent, Fault> {
    Percent::from_f64(percent).ok_or_else(|| {
        let rule = "percent must be a number from 0 to 100 with at most two decimals";
        Fault::Wrong(vec![format!("{rule}, not {percent}")])
    })
}

fn data_path(_: &str, body: &[u8]) -> Result<Order, Fault> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        path: String,
        live: Option<bool>,
        percent: Option<f64>,
    }
    let Body { path, live, percent } = parse(body, r#"{"path": "epoll"}"#)?;
    let path = DataPath::from_label(&path).ok_or_else(|| {
        let all = DataPath::ALL.map(DataPath::label).join(", ");
        Fault::Wrong(vec![format!("path must be one of {all}, not {path:?}")])
    })?;
    let percent = percent.map_or(Ok(Percent::HUNDRED), percent_of)?;
    Ok(Order::DataPath { path, live, percent })
}

fn move_session(session: &str, body: &[u8]) -> Result<Order, Fault> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        shard: usize,
    }
    let Body { shard } = parse(body, r#"{"shard": 1}"#)?;
    let session = session
        .parse()
        .map_err(|_| Fault::Wrong(vec![format!("a session's id is a number, not {session:?}")]))?;
    Ok(Order::Move { session, shard })
}

fn parse<B: DeserializeOwned>(body: &[u8], expected: &str) -> Result<B, Fault> {
    serde_json::from_slice(body)
        .map_err(|error| Fault::Wrong(vec![format!("expected {expected}: {error}")]))
}

#[derive(Serialize)]
struct Said<'a> {
    generation: u64,
    what: &'a str,
}

fn said(generation: u64, what: &str) -> Response {
    json(StatusCode::OK, &Said { generation, what })
}

/// What control said, as an answer.
pub(super) fn told(answer: Answer) -> Result<Response, Fault> {
    match answer {
        Answer::Done { generation, what } => Ok(said(generation, &what)),
        Answer::Sessions { shards, next } => Ok(sessions::page(&shards, next)),
        Answer::Refused(errors) => Err(Fault::Wrong(errors)),
        Answer::Unknown(what) => Err(Fault::Unknown(what)),
    }
}

#[cfg(test)]
mod tests;
