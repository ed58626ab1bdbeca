//! Connections and requests, each within its bounds.
//!
//! A connection may be silent, slow or never read: it is dropped when twice the time for a request has passed since its
//! last one began, once for the request and once for its answer. After its end it is read on for a moment, for closing
//! a socket with unread bytes resets the connection and may take the last answer with it.

use super::endpoints::{self, Does, Endpoint};
use super::fault::{Fault, Response};
use super::trust;
use crate::config::{Percent, limits};
use crate::control::board::Board;
use crate::control::order::{Order, Orders};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

/// What a request may look at, and whom it may ask.
pub(super) struct Window {
    pub(super) token: Option<Arc<str>>,
    pub(super) board: Arc<Board>,
    pub(super) orders: Orders,
}

/// What bounds connections and requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) connections: usize,
    /// For a head, for a body and control's answer to it, and for sending the answer.
    pub(super) request: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: limits::ADMIN_CONNECTIONS_MAX,
            request: Duration::from_millis(limits::ADMIN_REQUEST_MS_MAX),
        }
    }
}

/// Who asks, and what is needed to answer.
#[derive(Clone)]
struct Caller {
    who: SocketAddr,
    window: Rc<Window>,
    bounds: Bounds,
    /// Free again when the connection has ended and its last order too: orders outlive who gave them.
    _place: Rc<OwnedSemaphorePermit>,
}

/// Serves until `stop` says so or is dropped.
pub(super) async fn serve(
    listener: TcpListener,
    window: Rc<Window>,
    bounds: Bounds,
    mut stop: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    let places = Arc::new(Semaphore::new(bounds.connections));
    let (stopping, told) = watch::channel(false);
    let mut deaf = false;
    loop {
        // Who finds all places taken waits in the backlog, until a bound frees one.
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place.expect("nobody closes it"), listener.accept().await)
        };
        tokio::select! {
            _ = &mut stop => break,
            Some(ended) = connections.join_next() => report(ended),
            (place, accepted) = next => match accepted {
                Ok((stream, who)) => {
                    deaf = false;
                    let caller = Caller { who, window: Rc::clone(&window), bounds, _place: Rc::new(place) };
                    connections.spawn_local(connection(stream, caller, told.clone()));
                }
                Err(error) => {
                    if !std::mem::replace(&mut deaf, true) {
                        tracing::warn!(%error, "the admin endpoint cannot accept; it goes on trying");
                    }
                    sleep(Duration::from_millis(limits::ADMIN_ACCEPT_REST_MS)).await;
                }
            },
        }
    }
    drop(listener);
    // Who was let in a moment ago has not asked yet, and would take the end of an idle connection for a refusal.
    all_end(&mut connections, limits::ADMIN_LAST_ASK_MS).await;
    // Nobody listens where there is no connection.
    let _ = stopping.send(true);
    all_end(&mut connections, limits::ADMIN_STOP_MS_MAX).await;
}

/// Waits until all connections have ended, for so long at most.
async fn all_end(connections: &mut JoinSet<io::Result<()>>, most_ms: u64) {
    let all = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    // Those that are left are dropped with the set.
    let _ = timeout(Duration::from_millis(most_ms), all).await;
}

fn report(ended: Result<io::Result<()>, JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an admin connection failed"),
        Err(panic) => tracing::error!(%panic, "an admin connection panicked, which is a bug"),
    }
}

async fn connection(
    stream: TcpStream,
    caller: Caller,
    mut stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let Caller { who, bounds, .. } = caller;
    // A second descriptor of the same socket, for hyper closes its own.
    let stream = stream.into_std()?;
    let afterwards = stream.try_clone()?;
    let stream = TcpStream::from_std(stream)?;

    let until = Rc::new(Cell::new(Instant::now() + 2 * bounds.request));
    let moved = Rc::clone(&until);
    let service = service_fn(move |request| {
        until.set(Instant::now() + 2 * bounds.request);
        let caller = caller.clone();
        async move { Ok::<_, Infallible>(answer(request, caller).await) }
    });
    let mut http = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.request)
            .max_buf_size(limits::ADMIN_HEAD_BYTES_MAX)
            .half_close(true) // a script may finish sending before it reads
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut told = false;
    loop {
        tokio::select! {
            ended = http.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%who, %error, "an admin connection ended early");
                }
                break;
            }
            () = sleep_until(moved.get()) => {
                if Instant::now() >= moved.get() {
                    tracing::debug!(%who, "an admin connection was silent for too long");
                    return Ok(());
                }
            }
            _ = stopping.wait_for(|stopping| *stopping), if !told => {
                told = true;
                http.as_mut().graceful_shutdown();
            }
        }
    }
    if told {
        return Ok(());
    }
    let most = Duration::from_millis(limits::ADMIN_LINGER_MS_MAX);
    // However it ends, there is nothing left to say.
    let _ = timeout(most, read_on(afterwards)).await;
    Ok(())
}

async fn read_on(stream: std::net::TcpStream) -> io::Result<()> {
    stream.shutdown(std::net::Shutdown::Write)?;
    let stream = TcpStream::from_std(stream)?;
    let mut scratch = [0; 4096];
    let mut thrown_away = 0;
    while thrown_away < limits::ADMIN_LINGER_BYTES_MAX {
        stream.readable().await?;
        match stream.try_read(&mut scratch) {
            Ok(0) => break,
            Ok(n) => thrown_away += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn answer(request: hyper::Request<Incoming>, caller: Caller) -> Response {
    let who = caller.who;
    caught(who, async move {
        let (head, body) = request.into_parts();
        let answer = respond(&head, body, &caller).await;
        answer.unwrap_or_else(|fault| {
            let (status, why) = (fault.status().as_u16(), fault.sentences().join("; "));
            let (method, path) = (&head.method, head.uri.path());
            tracing::debug!(%who, %method, path, status, why, "an admin request failed");
            fault.into_response()
        })
    })
    .await
}

/// Runs on a task of its own: a panic is caught there, and an order is followed to its end, and logged, also where who
/// gave it has gone.
async fn caught(who: SocketAddr, answer: impl Future<Output = Response> + 'static) -> Response {
    tokio::task::spawn_local(answer).await.unwrap_or_else(|panic| {
        tracing::error!(%who, %panic, "an admin request panicked, which is a bug");
        Fault::Broken("it panicked".into()).into_response()
    })
}

async fn respond(head: &Parts, body: Incoming, caller: &Caller) -> Result<Response, Fault> {
    let Caller { who, window, bounds, .. } = caller;
    let until = Instant::now() + bounds.request;
    let found = endpoints::find(&head.method, head.uri.path());
    if !matches!(found, Ok((Endpoint { does: Does::ShowAll(_), .. }, _))) {
        // First of all: who may not ask is not told what there is.
        believe(head, *who, window)?;
    }
    match found? {
        (Endpoint { does: Does::ShowAll(show) | Does::Show(show), .. }, _) => show(window),
        (Endpoint { does: Does::Ask(read), .. }, _) => {
            give(read(head.uri.query().unwrap_or(""))?, window, until).await
        }
        (Endpoint { does: Does::Order(read), .. }, name) => {
            if window.token.is_none() {
                trust::refuse_web_pages(&head.headers).inspect_err(|_| {
                    let path = head.uri.path();
                    tracing::warn!(%who, path, "an order from a web page was refused");
                })?;
            }
            let body = timeout_at(until, whole(body)).await.unwrap_or(Err(Fault::Slow))?;
            obey(read(name, &body)?, *who, window, until).await
        }
    }
}

fn believe(head: &Parts, who: SocketAddr, window: &Window) -> Result<(), Fault> {
    match &window.token {
        Some(token) if !trust::token_matches(&head.headers, token) => {
            let (method, path) = (&head.method, head.uri.path());
            tracing::warn!(%who, %method, path, "an admin request without the token was refused");
            Err(Fault::NoToken)
        }
        _ => Ok(()),
    }
}

async fn whole(body: Incoming) -> Result<Bytes, Fault> {
    let max = limits::ADMIN_BODY_BYTES_MAX;
    // Not even begun where its length is told: whoever waits for a 100 keeps the body to themselves.
    if body.size_hint().lower() > max as u64 {
        return Err(Fault::TooLarge);
    }
    match Limited::new(body, max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Fault::TooLarge),
        Err(error) => Err(Fault::Wrong(vec![format!("the body broke off: {error}")])),
    }
}

/// Gives the order and waits for what becomes of it.
async fn give(order: Order, window: &Window, until: Instant) -> Result<Response, Fault> {
    let (said, hear) = oneshot::channel();
    window.orders.give(order, move |answer| {
        // Nobody hears it where the wait was over.
        let _ = said.send(answer);
    });
    match timeout_at(until, hear).await {
        Ok(Ok(answer)) => endpoints::told(answer),
        Ok(Err(_)) => Err(Fault::NotReady("Ringway is stopping and takes no orders")),
        Err(_) => Err(Fault::Unanswered),
    }
}

/// Gives the order, waits for what becomes of it, and writes down who gave it.
async fn obey(
    order: Order,
    who: SocketAddr,
    window: &Window,
    until: Instant,
) -> Result<Response, Fault> {
    let what = sentence(&order);
    let told = give(order, window, until).await;
    match &told {
        Ok(_) => tracing::info!(%who, what, result = "done", "admin order"),
        Err(fault) => {
            let why = fault.sentences().join("; ");
            tracing::warn!(%who, what, result = "not done", why, "admin order");
        }
    }
    told
}

fn sentence(order: &Order) -> String {
    match order {
        Order::Reload => "reload the config".into(),
        Order::Upgrade => "upgrade".into(),
        Order::Canary { listener, percent } => format!("canary of {listener} to {percent} %"),
        Order::DataPath { path, live, percent } => {
            let along = match live {
                Some(true) => ", live sessions along",
                Some(false) => ", live sessions left",
                None => "",
            };
            let part = match *percent {
                Percent::HUNDRED => String::new(),
                percent => format!(" for {percent} %"),
            };
            format!("data path to {}{part}{along}", path.label())
        }
        Order::RollBack => "everything back to epoll".into(),
        Order::Sessions { .. } => "list sessions".into(),
        Order::Move { session, shard } => format!("session {session} to shard {shard}"),
    }
}

#[cfg(test)]
mod tests;
