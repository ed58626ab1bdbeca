//! `GET /api/v1/sessions`: what is asked in the query, and a page of sessions as JSON.

use super::fault::{Fault, Response, json};
use crate::config::limits;
use crate::control::order::Order;
use crate::session::glance::{Glance, State};
use crate::shard::inquiry::Listed;
use hyper::StatusCode;
use serde::Serialize;

/// The order in a query.
pub(super) fn wanted(query: &str) -> Result<Order, Fault> {
    let (mut shard, mut from, mut slots) = (None, 0, limits::LISTED_SLOTS_DEFAULT);
    let max = limits::LISTED_SLOTS_MAX;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let wrong = |rule: &str| Fault::Wrong(vec![format!("{key} must be {rule}, not {value:?}")]);
        match key {
            "shard" => shard = Some(value.parse().map_err(|_| wrong("a shard's number"))?),
            "from" => from = value.parse().map_err(|_| wrong("what `next` said"))?,
            "slots" => {
                let fits = value.parse().ok().filter(|slots| (1..=max).contains(slots));
                slots = fits.ok_or_else(|| wrong(&format!("1..={max}")))?;
            }
            _ => {
                let known = "shard, from and slots can be asked for";
                return Err(Fault::Wrong(vec![format!("{known}, not {key:?}")]));
            }
        }
    }
    Ok(Order::Sessions { shard, from, slots })
}

#[derive(Serialize)]
struct Page<'a> {
    sessions: Vec<Row<'a>>,
    /// Of the sessions of this page.
    not_movable: NotMovable,
    /// What to ask for next; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u32>,
}

#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    session: &'a Glance,
    shard: usize,
    path: &'static str,
}

/// Sessions that cannot be carried elsewhere now, by what they do.
#[derive(Serialize)]
struct NotMovable {
    opening: usize,
    ending: usize,
    /// They came back from a move and wait for room; they are in no page.
    waiting_for_room: usize,
}

/// A page of sessions.
pub(super) fn page(shards: &[Listed], next: Option<u32>) -> Response {
    let of = |listed: &'_ Listed| (listed.shard, listed.path);
    let rows = shards.iter().flat_map(|listed| {
        let (shard, path) = of(listed);
        listed.sessions.iter().map(move |session| Row { session, shard, path })
    });
    let sessions: Vec<Row<'_>> = rows.collect();
    let count = |state| sessions.iter().filter(|row| row.session.state == state).count();
    let not_movable = NotMovable {
        opening: count(State::Opening),
        ending: count(State::Ending),
        waiting_for_room: shards.iter().map(|listed| listed.parked).sum(),
    };
    json(StatusCode::OK, &Page { not_movable, sessions, next })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_or_told_what_is_wrong() {
        let slots = limits::LISTED_SLOTS_DEFAULT;
        let all = Order::Sessions { shard: None, from: 0, slots };
        assert_eq!(wanted("").unwrap(), all);
        let some = Order::Sessions { shard: Some(1), from: 400, slots: 50 };
        assert_eq!(wanted("from=400&shard=1&slots=50").unwrap(), some);
        for wrong in ["slots=0", "slots=1001", "from=-1", "shard=x", "page=2", "shard"] {
            let fault = wanted(wrong).unwrap_err();
            assert!(matches!(fault, Fault::Wrong(_)), "{wrong}: {fault:?}");
        }
    }
}
