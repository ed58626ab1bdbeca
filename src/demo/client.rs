//! One client session of the order flow: it asks, waits for the answer, and checks everything it is told.

use super::protocol::{Answer, Lines, Reason, Request, write_line};
use crate::config::limits;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// What should not have happened.
#[derive(Debug)]
pub(super) enum Trouble {
    /// No connection.
    Connect(io::Error),
    /// The connection broke.
    Broken(io::Error),
    /// The other end closed it, unasked.
    Closed,
    /// Nothing came in time.
    Late,
    /// A line that is no answer, or one that answers nothing.
    Wrong(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(e) => write!(f, "could not connect: {e}"),
            Self::Broken(e) => write!(f, "the connection broke: {e}"),
            Self::Closed => f.write_str("the connection was closed from the other end"),
            Self::Late => write!(f, "no answer within {} ms", limits::FLOW_ANSWER_MS_MAX),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Late,
            _ => Self::Broken(e),
        }
    }
}

/// One client session.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    lines: Lines,
    ears: Ears,
}

/// What the session knows of its orders.
#[derive(Debug, Default)]
struct Ears {
    resting: Vec<u64>,
    asked: Option<Request>,
}

impl Client {
    /// Connects.
    pub(super) fn connect(address: SocketAddr) -> Result<Self, Trouble> {
        let patience = Duration::from_millis(limits::FLOW_ANSWER_MS_MAX);
        let stream = TcpStream::connect_timeout(&address, patience).map_err(Trouble::Connect)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { stream, lines: Lines::default(), ears: Ears::default() })
    }

    /// Ids of its orders that rest, as far as it was told.
    pub(super) fn resting(&self) -> &[u64] {
        &self.ears.resting
    }

    /// Sends a request and waits for its answer; takes in the fills that come before it.
    pub(super) fn ask(&mut self, request: Request) -> Result<Answer, Trouble> {
        self.ears.asked = Some(request);
        let mut line = Vec::with_capacity(limits::ENGINE_ANSWER_BYTES_MAX);
        write_line(&request, &mut line);
        self.stream.write_all(&line)?;
        loop {
            match self.listen()? {
                Heard::Answer(answer) => return Ok(answer),
                Heard::Fills => {}
                Heard::End => return Err(Trouble::Closed),
            }
        }
    }

    /// Finishes, takes in what is still on the way and waits until the other end has finished too.
    pub(super) fn log_out(mut self) -> Result<(), Trouble> {
        self.stream.shutdown(Shutdown::Write)?;
        while !matches!(self.listen()?, Heard::End) {}
        Ok(())
    }

    /// One read, and all that it brought.
    fn listen(&mut self) -> Result<Heard, Trouble> {
        let mut bytes = [0; 4096];
        let count = match self.stream.read(&mut bytes) {
            Ok(0) => return Ok(Heard::End),
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(Heard::Fills),
            read => read?,
        };
        let (mut heard, ears) = (Ok(Heard::Fills), &mut self.ears);
        let fed = self.lines.feed(&bytes[..count], |line| match ears.hear(line) {
            Ok(Some(answer)) if heard.is_ok() => heard = Ok(Heard::Answer(answer)),
            Err(trouble) => heard = Err(trouble),
            Ok(_) => {}
        });
        fed.map_err(|_| Trouble::Wrong("an answer has no end".into()))?;
        heard
    }
}

enum Heard {
    Answer(Answer),
    Fills,
    End,
}

impl Ears {
    /// Takes in one line; `Some`: it answers what was asked.
    fn hear(&mut self, line: &[u8]) -> Result<Option<Answer>, Trouble> {
        let answer: Answer = serde_json::from_slice(line).map_err(|e| {
            let line = String::from_utf8_lossy(line);
            Trouble::Wrong(format!("this is no answer: {line:?}: {e}"))
        })?;
        let unasked = || Trouble::Wrong(format!("nothing asked for this answer: {answer:?}"));
        if let Answer::Fill { id, left, .. } = answer {
            let at = self.resting.iter().position(|&resting| resting == id).ok_or_else(unasked)?;
            if left == 0 {
                self.resting.swap_remove(at);
            }
            return Ok(None);
        }
        match (self.asked.take(), answer) {
            (Some(Request::New { id, .. }), Answer::Accepted { id: named }) if id == named => {
                self.resting.push(id);
            }
            (Some(Request::New { id, .. }), Answer::Rejected { id: Some(named), reason })
                if id == named && reason == Reason::BookFull => {}
            (Some(Request::Cancel { id }), Answer::Cancelled { id: named, .. }) if id == named => {
                self.resting.retain(|&resting| resting != id);
            }
            // It was filled while its cancel was on the way; then the fill has come before.
            (Some(Request::Cancel { id }), Answer::Rejected { id: Some(named), reason })
                if id == named && reason == Reason::UnknownOrder && !self.resting.contains(&id) => {
            }
            _ => return Err(unasked()),
        }
        Ok(Some(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::book::Side;

    fn hear(ears: &mut Ears, line: &str) -> Result<Option<Answer>, Trouble> {
        ears.hear(line.as_bytes())
    }

    #[test]
    fn what_was_not_asked_for_is_trouble() {
        let asked = Some(Request::New { id: 1, side: Side::Buy, price: 5, quantity: 5 });
        let fresh = || Ears { asked, resting: vec![] };
        assert!(hear(&mut fresh(), r#"{"type":"accepted","id":1}"#).unwrap().is_some());
        for wrong in [
            r#"{"type":"accepted","id":2}"#,
            r#"{"type":"cancelled","id":1,"left":5}"#,
            r#"{"type":"fill","id":1,"price":5,"quantity":5,"left":0}"#,
            r#"{"type":"rejected","id":1,"reason":"bad price"}"#,
            r#"{"type":"rejected","id":null,"reason":"engine full"}"#,
            r#"{"type":"acc"#,
        ] {
            assert!(matches!(hear(&mut fresh(), wrong), Err(Trouble::Wrong(_))), "{wrong}");
        }
        let mut twice = fresh();
        hear(&mut twice, r#"{"type":"accepted","id":1}"#).unwrap();
        assert!(hear(&mut twice, r#"{"type":"accepted","id":1}"#).is_err(), "a line came twice");
    }

    #[test]
    fn a_cancel_may_lose_against_a_fill_but_only_if_the_fill_came() {
        let late = r#"{"type":"rejected","id":1,"reason":"unknown order"}"#;
        let asked = Some(Request::Cancel { id: 1 });
        assert!(hear(&mut Ears { asked, resting: vec![1] }, late).is_err(), "a fill was lost");
        let mut ears = Ears { asked, resting: vec![1] };
        let fill = r#"{"type":"fill","id":1,"price":5,"quantity":5,"left":0}"#;
        assert!(hear(&mut ears, fill).unwrap().is_none());
        assert!(hear(&mut ears, late).unwrap().is_some());
    }
}
