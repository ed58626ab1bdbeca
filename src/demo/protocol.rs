//! What a client and the order engine say to each other: one JSON object a line.
//!
//! Every request gets exactly one of `accepted`, `cancelled` or `rejected`, in the order of the requests. A `fill` may
//! come at any time between `accepted` and the end of its order; each party hears of its own order on its own
//! connection. Order ids belong to their connection, and what rests when it ends is cancelled.
//!
//! ```text
//! > {"type":"new","id":1,"side":"buy","price":100,"quantity":5}
//! < {"type":"accepted","id":1}
//! < {"type":"fill","id":1,"price":99,"quantity":2,"left":3}
//! > {"type":"cancel","id":1}
//! < {"type":"cancelled","id":1,"left":3}
//! > {"type":"cancel","id":1}
//! < {"type":"rejected","id":1,"reason":"unknown order"}
//! ```

use super::book::{Refusal, Side};
use crate::config::limits::ENGINE_LINE_BYTES_MAX;
use serde::{Deserialize, Serialize};

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// A new limit order.
    New {
        /// The client's number for it.
        id: u64,
        /// Which way.
        side: Side,
        /// In ticks.
        price: u64,
        /// In units.
        quantity: u64,
    },
    /// Take an order out of the book.
    Cancel {
        /// The client's number for it.
        id: u64,
    },
}

impl Request {
    /// The order it speaks of.
    #[must_use]
    pub const fn id(&self) -> u64 {
        match self {
            Self::New { id, .. } | Self::Cancel { id } => *id,
        }
    }
}

/// What the engine says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Answer {
    /// A new order was taken; its fills follow.
    Accepted {
        /// The client's number for it.
        id: u64,
    },
    /// An order traded.
    Fill {
        /// The client's number for it.
        id: u64,
        /// At which price, in ticks.
        price: u64,
        /// How much.
        quantity: u64,
        /// What is left of the order; at 0 it is gone.
        left: u64,
    },
    /// An order was taken out.
    Cancelled {
        /// The client's number for it.
        id: u64,
        /// What had been left of it.
        left: u64,
    },
    /// Nothing was done.
    Rejected {
        /// The client's number for the order, where the line could be read.
        id: Option<u64>,
        /// Why.
        reason: Reason,
    },
}

/// Why nothing was done. All are the client's to mend but the two that speak of room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The price is not one the book takes.
    #[serde(rename = "bad price")]
    BadPrice,
    /// The quantity is not one the book takes.
    #[serde(rename = "bad quantity")]
    BadQuantity,
    /// An order of this number rests already.
    #[serde(rename = "duplicate id")]
    DuplicateId,
    /// No order of this number rests: it never did, or it was filled.
    #[serde(rename = "unknown order")]
    UnknownOrder,
    /// The book has no room for one more order.
    #[serde(rename = "book full")]
    BookFull,
    /// The line is no request.
    #[serde(rename = "unreadable line")]
    Unreadable,
    /// The line has more than [`ENGINE_LINE_BYTES_MAX`] bytes; the connection ends.
    #[serde(rename = "line too long")]
    LineTooLong,
    /// The engine has no room for one more connection; this one ends.
    #[serde(rename = "engine full")]
    EngineFull,
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::BadPrice => Self::BadPrice,
            Refusal::BadQuantity => Self::BadQuantity,
            Refusal::DuplicateId => Self::DuplicateId,
            Refusal::UnknownOrder => Self::UnknownOrder,
            Refusal::BookFull => Self::BookFull,
        }
    }
}

/// Adds `message` to `out` as a line.
pub fn write_line(message: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(&mut *out, message).expect("numbers and words always fit a Vec as JSON");
    out.push(b'\n');
}

/// Cuts a stream of bytes into lines, however it arrives. Holds at most one unfinished line.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

/// A line has more than [`ENGINE_LINE_BYTES_MAX`] bytes; where the next one begins is not known.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

impl Lines {
    /// Takes bytes as they came and gives each finished line, without its end, to `each`.
    ///
    /// # Errors
    /// [`TooLong`], after the lines before it were given.
    pub fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), TooLong> {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.hold(&bytes[..end])?;
            each(&self.0);
            self.0.clear();
            bytes = &bytes[end + 1..];
        }
        self.hold(bytes)
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.0.len() + bytes.len() > ENGINE_LINE_BYTES_MAX {
            return Err(TooLong);
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::limits;
    use proptest::prelude::*;

    #[test]
    fn requests_read_as_the_page_above_says() {
        let new = br#"{"type":"new","id":1,"side":"buy","price":100,"quantity":5}"#;
        let wanted = Request::New { id: 1, side: Side::Buy, price: 100, quantity: 5 };
        assert_eq!(serde_json::from_slice::<Request>(new).unwrap(), wanted);
        let cancel = br#"{"type":"cancel","id":1}"#;
        assert_eq!(serde_json::from_slice::<Request>(cancel).unwrap(), Request::Cancel { id: 1 });
        for bad in ["", "{}", r#"{"type":"cancel","id":-1}"#, r#"{"type":"cancel","id":1,"x":2}"#] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn answers_write_as_the_page_above_says_and_fit_their_bound() {
        let line = |answer: Answer| {
            let mut out = Vec::new();
            write_line(&answer, &mut out);
            assert!(out.len() <= limits::ENGINE_ANSWER_BYTES_MAX);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(line(Answer::Accepted { id: 1 }), "{\"type\":\"accepted\",\"id\":1}\n");
        let reason = Reason::UnknownOrder;
        assert_eq!(
            line(Answer::Rejected { id: Some(1), reason }),
            "{\"type\":\"rejected\",\"id\":1,\"reason\":\"unknown order\"}\n"
        );
        let most = u64::MAX;
        line(Answer::Fill { id: most, price: most, quantity: most, left: most });
    }

    #[test]
    fn a_line_over_the_bound_is_refused_whether_or_not_it_has_ended() {
        let longest = vec![b'x'; ENGINE_LINE_BYTES_MAX];
        let mut lines = Lines::default();
        let mut lengths = Vec::new();
        lines.feed(&longest, |l| lengths.push(l.len())).unwrap();
        lines.feed(b"\n", |l| lengths.push(l.len())).unwrap();
        assert_eq!(lengths, [ENGINE_LINE_BYTES_MAX]);
        lines.feed(&longest, |_| ()).unwrap();
        assert_eq!(lines.feed(b"x", |_| ()), Err(TooLong));
        let ended = [&longest[..], b"x\n"].concat();
        assert_eq!(Lines::default().feed(&ended, |_| ()), Err(TooLong));
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_they_arrive(
            sent in prop::collection::vec("[a-z]{0,9}", 0..9),
            sizes in prop::collection::vec(1_usize..7, 1..9),
        ) {
            let bytes: Vec<u8> = sent.iter().flat_map(|l| format!("{l}\n").into_bytes()).collect();
            let (mut lines, mut got, mut rest) = (Lines::default(), Vec::new(), &bytes[..]);
            for size in sizes.iter().cycle() {
                let (piece, after) = rest.split_at((*size).min(rest.len()));
                lines.feed(piece, |l| got.push(String::from_utf8_lossy(l).into_owned())).unwrap();
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(got, sent);
        }

        /// Also where a line is too long: what came before it is given, and how the bytes were cut decides nothing.
        #[test]
        fn any_bytes_get_one_verdict(
            runs in prop::collection::vec((any::<u8>(), 0_usize..700), 0..6),
            size in 1_usize..1500,
        ) {
            let bytes: Vec<u8> = runs
                .iter()
                .flat_map(|(byte, n)| [vec![*byte; *n], vec![b'\n'; usize::from(byte % 3 == 0)]].concat())
                .collect();
            let read = |size: usize| {
                let (mut lines, mut got) = (Lines::default(), Vec::new());
                let fed = bytes.chunks(size).try_for_each(|it| lines.feed(it, |l| got.push(l.to_vec())));
                (got, fed)
            };
            let (got, fed) = read(bytes.len().max(1));
            let too_long = fed.is_err();
            prop_assert_eq!((got, fed), read(size));
            let longest = bytes.split(|byte| *byte == b'\n').map(<[u8]>::len).max().unwrap_or(0);
            prop_assert_eq!(too_long, longest > ENGINE_LINE_BYTES_MAX);
        }

        #[test]
        fn any_line_is_a_request_that_reads_as_it_was_written_or_none(
            line in prop_oneof![
                any::<String>(),
                "\\{(\"(type|id|side|price|quantity)\":(\"(new|cancel|buy|sell)\"|[0-9]{1,21}),?){0,6}\\}",
            ],
            (id, price, quantity) in (any::<u64>(), any::<u64>(), any::<u64>()),
            buys in any::<bool>(),
        ) {
            let side = if buys { Side::Buy } else { Side::Sell };
            let own = [Request::New { id, side, price, quantity }, Request::Cancel { id }];
            for request in serde_json::from_str::<Request>(&line).into_iter().chain(own) {
                let mut out = Vec::new();
                write_line(&request, &mut out);
                prop_assert!(out.len() <= ENGINE_LINE_BYTES_MAX);
                prop_assert_eq!(serde_json::from_slice::<Request>(&out).unwrap(), request);
            }
        }
    }
}
