//! Any bytes from a client of the order engine, in any pieces: the same lines, the same verdict, and a book that holds.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::config::limits;
use ringway::demo::book::{Book, NewOrder, OrderId};
use ringway::demo::protocol::{Answer, Lines, Reason, Request, TooLong, write_line};

/// What came of a stream.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    lines: Vec<Vec<u8>>,
    verdict: Result<(), TooLong>,
}

// The first byte says how many that follow are sizes of pieces; what is left is the stream.
fuzz_target!(|bytes: &[u8]| {
    let Some((count, rest)) = bytes.split_first() else { return };
    let (sizes, stream) = rest.split_at(usize::from(count % 16).min(rest.len()));
    let whole = read([stream].into_iter());
    assert_eq!(whole, read(pieces(stream, sizes).into_iter()), "in pieces of {sizes:?}");
    assert_eq!(whole, read(stream.chunks(1)), "byte by byte");

    let longest = stream.split(|byte| *byte == b'\n').map(<[u8]>::len).max().unwrap_or(0);
    assert_eq!(whole.verdict.is_err(), longest > limits::ENGINE_LINE_BYTES_MAX);
    let mut book = Book::new(8);
    for line in &whole.lines {
        assert!(!line.contains(&b'\n') && line.len() <= limits::ENGINE_LINE_BYTES_MAX);
        if let Ok(request) = serde_json::from_slice(line) {
            comes_back(&request);
            follow(&request, &mut book);
        }
        if let Ok(answer) = serde_json::from_slice::<Answer>(line) {
            let mut out = Vec::new();
            write_line(&answer, &mut out);
            assert!(out.len() <= limits::ENGINE_ANSWER_BYTES_MAX);
            assert_eq!(serde_json::from_slice::<Answer>(&out).expect("it was written"), answer);
        }
    }
    book.cancel_session(0);
    book.cancel_session(1);
    assert!(book.is_empty(), "{} orders rest after their sessions", book.len());
});

/// A stream cut at these sizes, again and again.
fn pieces<'s>(stream: &'s [u8], sizes: &[u8]) -> Vec<&'s [u8]> {
    let (mut pieces, mut rest) = (Vec::new(), stream);
    for size in sizes.iter().cycle().take(if sizes.is_empty() { 0 } else { stream.len() }) {
        let (piece, after) = rest.split_at(usize::from(*size).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

fn read<'s>(pieces: impl Iterator<Item = &'s [u8]>) -> Read {
    let (mut reader, mut lines) = (Lines::default(), Vec::new());
    for piece in pieces {
        let verdict = reader.feed(piece, |line| lines.push(line.to_vec()));
        if verdict.is_err() {
            return Read { lines, verdict };
        }
    }
    Read { lines, verdict: Ok(()) }
}

/// A request, written, reads as itself.
fn comes_back(request: &Request) {
    let mut out = Vec::new();
    write_line(request, &mut out);
    assert!(out.len() <= limits::ENGINE_LINE_BYTES_MAX);
    assert_eq!(serde_json::from_slice::<Request>(&out).expect("it was written"), *request);
}

/// A request does to the book what it may; odd ids are another session's.
fn follow(request: &Request, book: &mut Book) {
    let id = OrderId { session: request.id() % 2, id: request.id() };
    match *request {
        Request::New { side, price, quantity, .. } => {
            let mut trades = Vec::new();
            let before = book.len();
            let placed = book.place(NewOrder { id, side, price, quantity }, &mut trades);
            assert!(placed.is_ok() || (trades.is_empty() && book.len() == before), "{placed:?}");
            let traded: u64 = trades.iter().map(|trade| trade.quantity).sum();
            assert!(traded <= quantity && trades.iter().all(|trade| trade.quantity > 0));
            assert!(book.len() <= 8, "the book has its bound");
            let _ = placed.map_err(Reason::from);
        }
        Request::Cancel { .. } => {
            let left = book.cancel(id);
            assert!(left.is_err() || book.cancel(id).is_err(), "cancelled twice");
        }
    }
}
