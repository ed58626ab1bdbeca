//! Why a request gets no good answer: each case with its status, and its sentences for who asked.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{StatusCode, header};
use serde::Serialize;

/// What is sent back.
pub(super) type Response = hyper::Response<Full<Bytes>>;

/// Why a request gets no good answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The token is missing or wrong.
    NoToken,
    /// It may come from a web page; the sentence says what shows that.
    Untrusted(String),
    /// There is no such thing.
    Unknown(String),
    /// The path is known, this method of it is not; these are.
    Method(String),
    /// The request says something wrong; nothing was changed.
    Wrong(Vec<String>),
    /// The body is larger than it may be.
    TooLarge,
    /// The body did not come in time.
    Slow,
    /// Not now: Ringway is starting or stopping.
    NotReady(&'static str),
    /// Control did not answer in time; the order may still be done.
    Unanswered,
    /// A bug of ours.
    Broken(String),
}

#[derive(Serialize)]
struct Errors {
    errors: Vec<String>,
}

impl Fault {
    /// Its HTTP status.
    pub(super) const fn status(&self) -> StatusCode {
        match self {
            Self::NoToken => StatusCode::UNAUTHORIZED,
            Self::Untrusted(_) => StatusCode::FORBIDDEN,
            Self::Unknown(_) => StatusCode::NOT_FOUND,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Wrong(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::NotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unanswered => StatusCode::GATEWAY_TIMEOUT,
            Self::Broken(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// What to tell who asked.
    pub(super) fn sentences(&self) -> Vec<String> {
        let one = match self {
            Self::Wrong(sentences) => return sentences.clone(),
            Self::Untrusted(sentence) | Self::Unknown(sentence) => sentence.clone(),
            Self::NoToken => "send the token of [admin] as `Authorization: Bearer TOKEN`".into(),
            Self::Method(allowed) => format!("this path takes {allowed}"),
            Self::TooLarge => {
                let max = crate::config::limits::ADMIN_BODY_BYTES_MAX;
                format!("the body is larger than {max} bytes")
            }
            Self::Slow => "the body did not come in time".into(),
            Self::NotReady(why) => (*why).into(),
            Self::Unanswered => {
                "control did not answer in time; ask /api/v1/status whether the order was done"
                    .into()
            }
            Self::Broken(what) => format!("a bug of Ringway, please report it: {what}"),
        };
        vec![one]
    }

    /// As an answer; the connection ends with it, for what follows may be misread after an error.
    pub(super) fn into_response(self) -> Response {
        let mut response = json(self.status(), &Errors { errors: self.sentences() });
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        match self {
            Self::NoToken => {
                let how = header::HeaderValue::from_static("Bearer realm=\"ringway\"");
                headers.insert(header::WWW_AUTHENTICATE, how);
            }
            Self::Method(allowed) => {
                let allowed = allowed.parse().expect("methods are plain words");
                headers.insert(header::ALLOW, allowed);
            }
            _ => {}
        }
        response
    }
}

/// An answer in JSON, and a line end for people at a terminal.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let mut text = serde_json::to_vec(body).expect("our types have nothing that JSON cannot say");
    text.push(b'\n');
    answer(status, "application/json", text)
}

/// An answer.
pub(super) fn answer(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let content_type = header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
