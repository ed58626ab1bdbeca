//! The load and the echo backend of a bench, in one thread over one of Ringway's own drivers.
//!
//! One thread for both, because what it costs must be small and the same for all contenders: no thread waits for
//! another, every answer is the buffer that brought the question, and all clients send the same message from the same
//! buffer. It knows sessions as *seats*, which live on when their connection is replaced.

use crate::config::Tcp;
use crate::driver::pool::BufferId;
use crate::driver::{
    Arm, Completion, Driver, Errno, Key, Kind, ListenerId, Received, Side, Socket, listening, pick,
};
use crate::time::Time;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;

/// Bytes of a message.
pub(super) const MESSAGE_BYTES: u32 = 64;
/// Bytes of a receive buffer and of one send of bulk.
const BUFFER_BYTES: u32 = 64 * 1024;
/// Receive buffers, in address space: few are ever touched.
const BUFFERS: u16 = 2048;
/// Connections that are being made at once: fewer than any listening socket lets wait.
const CONNECTING_MAX: usize = 64;
/// Bytes one receive is armed for.
const CREDIT_BYTES: u32 = 1 << 30;
/// How long connections may take to be made, or to end.
const PATIENCE_NS: u64 = 5_000_000_000;
/// The only listener.
const BACKEND: ListenerId = ListenerId(0);
/// Generations have 24 bits.
const GENERATIONS: u32 = 1 << 24;

/// Clients of one contender, by their seats.
pub(super) struct Crew {
    /// Whose sessions they are, for messages.
    pub(super) name: String,
    /// Their seats, one after the other.
    pub(super) seats: Range<usize>,
}

impl Crew {
    /// One of them alone, the first being 0: a crew of its own whose connection is shared with this one.
    pub(super) fn member(&self, at: usize) -> Self {
        let seat = self.seats.start + at;
        Self { name: self.name.clone(), seats: seat..seat + 1 }
    }
}

/// What a client's connection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// It is connected.
    Connected(usize),
    /// So many bytes came back.
    Answered(usize, u32),
    /// Its message was taken.
    Sent(usize),
    /// It is over, as was wanted.
    Closed(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Echo,
    /// A client; `once`: its receives are armed by hand, so that it can be closed without waiting.
    Client {
        seat: usize,
        once: bool,
    },
}

/// One connection.
struct Line {
    socket: Option<Socket>,
    generation: u32,
    role: Role,
    /// What the echo is to send; the first is under way.
    queue: VecDeque<BufferId>,
    sending: bool,
    receiving: bool,
    leaving: bool,
}

struct Seat {
    at: SocketAddr,
    slot: u32,
    /// Messages that wait until the one before is taken.
    pending: u32,
}

/// The load and the echo backend.
pub(super) struct Load {
    driver: Box<dyn Driver>,
    listener: TcpListener,
    arm: Arm,
    lines: Vec<Line>,
    free: Vec<u32>,
    seats: Vec<Seat>,
    message: BufferId,
    bulk: BufferId,
    /// What clients send: the message, or bulk.
    sends_bulk: bool,
    /// Bytes of bulk the backend has received: it echoes none of them.
    sunk: u64,
}

impl Load {
    /// Load by a driver of this kind; `credit` as for the uring driver.
    ///
    /// # Errors
    /// The system refuses the driver or the backend's port: a sentence that says so.
    pub(super) fn new(kind: Kind, credit: bool) -> Result<Self, String> {
        let failed = |e| format!("the load could not start: {e}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        listening::set_options(&listener, &Tcp::PLAIN).map_err(|e| failed(e.into()))?;
        let mut driver = pick::start(kind, BUFFERS, BUFFER_BYTES, credit).map_err(failed)?;
        let mut filled = |bytes: u32| {
            let buffer = driver.pool().take().expect("a new pool has more than two");
            driver.pool().fill(buffer, &vec![b'r'; bytes as usize]);
            buffer
        };
        let (message, bulk) = (filled(MESSAGE_BYTES), filled(BUFFER_BYTES));
        driver.accept(BACKEND, &Socket::of(&listener));
        let arm = if driver.counts_credit() { Arm::Multi(CREDIT_BYTES) } else { Arm::Once };
        Ok(Self {
            driver,
            listener,
            arm,
            lines: Vec::new(),
            free: Vec::new(),
            seats: Vec::new(),
            message,
            bulk,
            sends_bulk: false,
            sunk: 0,
        })
    }

    /// Where the echo backend listens.
    ///
    /// # Errors
    /// What getsockname(2) says.
    pub(super) fn backend(&self) -> Result<SocketAddr, String> {
        self.listener.local_addr().map_err(|e| format!("the echo backend has no address: {e}"))
    }

    /// The end of the last [`turn`](Self::turn).
    pub(super) fn now(&self) -> Time {
        self.driver.now()
    }

    /// Lets the kernel work until something is there, or until `until`.
    ///
    /// # Errors
    /// The driver is broken.
    pub(super) fn turn(&mut self, until: Time) -> Result<(), String> {
        self.driver.turn(Some(until)).map_err(|e| format!("the load's driver failed: {e}"))
    }

    /// Whether clients send bulk, and the backend keeps what it gets to itself.
    pub(super) const fn send_bulk(&mut self, on: bool) {
        self.sends_bulk = on;
    }

    /// Bytes of bulk that have arrived.
    pub(super) const fn sunk(&self) -> u64 {
        self.sunk
    }

    /// Bytes of one thing a client says.
    pub(super) const fn said_bytes(&self) -> u32 {
        if self.sends_bulk { BUFFER_BYTES } else { MESSAGE_BYTES }
    }

    /// Seats for `count` clients that connect to `at`, still without a connection.
    pub(super) fn hire(&mut self, name: &str, at: SocketAddr, count: usize) -> Crew {
        let from = self.seats.len();
        self.seats.extend((0..count).map(|_| Seat { at, slot: 0, pending: 0 }));
        Crew { name: name.to_owned(), seats: from..from + count }
    }

    /// Connects a whole crew.
    ///
    /// # Errors
    /// Who did not get a connection, and why.
    pub(super) fn connect_all(&mut self, crew: &Crew) -> Result<(), String> {
        let (mut next, mut up) = (0, 0);
        self.turn(Time(0))?;
        let patience = self.now() + PATIENCE_NS;
        while up < crew.seats.len() {
            while next < crew.seats.len() && next < up + CONNECTING_MAX {
                self.connect(crew.seats.start + next, false)?;
                next += 1;
            }
            self.turn(patience)?;
            while let Some(event) = self.next()? {
                if let Event::Connected(seat) = event {
                    self.receive(seat);
                    up += 1;
                }
            }
            if self.now() > patience {
                return Err(format!("{}: only {up} connections in 5 s", crew.name));
            }
        }
        Ok(())
    }

    /// Ends a crew's connections in good order, and waits until the backend's are over as well.
    ///
    /// # Errors
    /// Some did not end in time.
    pub(super) fn dismiss(&mut self, crew: &Crew) -> Result<(), String> {
        for seat in crew.seats.clone() {
            self.leave(seat);
        }
        let patience = self.now() + PATIENCE_NS;
        while self.lines.len() > self.free.len() + self.others(crew) {
            self.turn(patience)?;
            while self.next()?.is_some() {}
            if self.now() > patience {
                return Err(format!("{}: sessions do not end", crew.name));
            }
        }
        Ok(())
    }

    /// Connections that belong to other crews, with their echoes.
    fn others(&self, crew: &Crew) -> usize {
        let is_other = |line: &&Line| match line.role {
            Role::Client { seat, .. } => line.socket.is_some() && !crew.seats.contains(&seat),
            Role::Echo => false,
        };
        2 * self.lines.iter().filter(is_other).count()
    }

    /// Begins to connect a seat; `once`: see [`Role::Client`].
    ///
    /// # Errors
    /// No socket, or no port, is left.
    pub(super) fn connect(&mut self, seat: usize, once: bool) -> Result<(), String> {
        let at = self.seats[seat].at;
        let socket = self.driver.socket(at, &Tcp::PLAIN).map_err(|e| format!("no socket: {e}"))?;
        let slot = self.open(Role::Client { seat, once }, socket)?;
        self.seats[seat].slot = slot;
        let (key, _) = self.name(slot);
        let socket = socket_of(&self.lines[slot as usize]);
        self.driver.connect(key, socket, at);
        Ok(())
    }

    /// Receives what comes for a seat.
    pub(super) fn receive(&mut self, seat: usize) {
        self.arm(self.seats[seat].slot);
    }

    /// Lets a client say its message, after those it is still saying.
    pub(super) fn say(&mut self, seat: usize) {
        let slot = self.seats[seat].slot;
        if self.lines[slot as usize].sending {
            self.seats[seat].pending += 1;
        } else {
            let buffer = if self.sends_bulk { self.bulk } else { self.message };
            // Several sends may read the same buffer: nobody writes to it.
            self.send(slot, buffer);
        }
    }

    /// Ends a client's connection; [`Event::Closed`] follows unless it is over at once. Whether it is.
    pub(super) fn leave(&mut self, seat: usize) -> bool {
        let slot = self.seats[seat].slot;
        let line = &mut self.lines[slot as usize];
        if line.socket.is_none() {
            return true;
        }
        line.leaving = true;
        if line.receiving {
            // It fails where the connection is gone, and then its receive ends as well.
            let _ = self.driver.finish(socket_of(&self.lines[slot as usize]));
            return false;
        }
        self.close(slot)
    }

    /// What happened to clients since the last turn, one by one.
    ///
    /// # Errors
    /// A connection broke that nobody had told to end.
    pub(super) fn next(&mut self) -> Result<Option<Event>, String> {
        while let Some(completion) = self.driver.next() {
            if let Some(event) = self.take(completion)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn take(&mut self, completion: Completion) -> Result<Option<Event>, String> {
        match completion {
            Completion::Accepted { result, more, .. } => {
                if let Ok(socket) = result {
                    let slot = self.open(Role::Echo, socket)?;
                    self.arm(slot);
                }
                if !more {
                    self.driver.accept(BACKEND, &Socket::of(&self.listener));
                }
                Ok(None)
            }
            Completion::Connected { key, result } => match (self.role(key), result) {
                (Some(Role::Client { seat, .. }), Ok(())) => Ok(Some(Event::Connected(seat))),
                (Some(Role::Client { .. }), Err(e)) => Err(no_connection(e)),
                _ => Ok(None),
            },
            Completion::Received { key, what, more, .. } => {
                let Some(role) = self.role(key) else { return Ok(None) };
                self.lines[key.slot as usize].receiving = more;
                self.received(key.slot, role, what)
            }
            Completion::Sent { key, result, .. } => {
                let Some(role) = self.role(key) else { return Ok(None) };
                self.lines[key.slot as usize].sending = false;
                self.sent(key.slot, role, result)
            }
            Completion::Woken | Completion::Polled { .. } => Ok(None),
        }
    }

    fn received(&mut self, slot: u32, role: Role, what: Received) -> Result<Option<Event>, String> {
        let buffer = match what {
            Received::Bytes(buffer) => buffer,
            Received::Failed(Errno::NO_BUFFERS) => {
                self.arm(slot);
                return Ok(None);
            }
            Received::End => return self.ended(slot, role, "a session ended".to_owned()),
            Received::Failed(e) => return self.ended(slot, role, format!("a session ended: {e}")),
        };
        let line = &mut self.lines[slot as usize];
        let (bytes, more) = (self.driver.pool().filled(buffer), line.receiving);
        match role {
            Role::Echo if !self.sends_bulk => {
                line.queue.push_back(buffer);
                if !line.sending {
                    self.send(slot, buffer);
                }
            }
            Role::Echo => {
                self.sunk += u64::from(bytes);
                self.driver.pool().give_back(buffer);
            }
            Role::Client { .. } => self.driver.pool().give_back(buffer),
        }
        if !more && !matches!(role, Role::Client { once: true, .. }) {
            self.arm(slot);
        }
        Ok(match role {
            Role::Client { seat, .. } => Some(Event::Answered(seat, bytes)),
            Role::Echo => None,
        })
    }

    /// Nothing more comes on a line: an error, with what to say, where a client did not ask for that.
    fn ended(&mut self, slot: u32, role: Role, what: String) -> Result<Option<Event>, String> {
        let line = &mut self.lines[slot as usize];
        let seat = match role {
            Role::Client { .. } if !line.leaving => return Err(what),
            Role::Client { seat, .. } => Some(seat),
            Role::Echo => None,
        };
        line.leaving = true;
        let closed = self.close(slot);
        Ok(seat.filter(|_| closed).map(Event::Closed))
    }

    fn sent(
        &mut self,
        slot: u32,
        role: Role,
        result: Result<u32, Errno>,
    ) -> Result<Option<Event>, String> {
        let line = &mut self.lines[slot as usize];
        match role {
            Role::Echo => {
                if let Some(sent) = line.queue.pop_front() {
                    self.driver.pool().give_back(sent);
                }
                // A broken connection takes nothing more; its receive ends too, and closes it.
                let rest = if result.is_err() { line.queue.len() } else { 0 };
                for buffer in line.queue.drain(..rest) {
                    self.driver.pool().give_back(buffer);
                }
                if let Some(&next) = line.queue.front() {
                    self.send(slot, next);
                }
                self.close(slot);
                Ok(None)
            }
            Role::Client { seat, .. } => {
                if line.leaving {
                    return Ok(self.close(slot).then_some(Event::Closed(seat)));
                }
                result.map_err(|e| format!("a session took no message: {e}"))?;
                if self.seats[seat].pending > 0 {
                    self.seats[seat].pending -= 1;
                    self.say(seat);
                }
                Ok(Some(Event::Sent(seat)))
            }
        }
    }

    /// A line for a new socket.
    fn open(&mut self, role: Role, socket: Socket) -> Result<u32, String> {
        let fresh = Line {
            socket: Some(socket),
            generation: 0,
            role,
            queue: VecDeque::new(),
            sending: false,
            receiving: false,
            leaving: false,
        };
        let slot = if let Some(slot) = self.free.pop() {
            let line = &mut self.lines[slot as usize];
            let generation = (line.generation + 1) % GENERATIONS;
            *line = Line { generation, ..fresh };
            slot
        } else {
            self.lines.push(fresh);
            u32::try_from(self.lines.len() - 1).expect("a bench has some thousand connections")
        };
        let (key, side) = self.name(slot);
        let socket = socket_of(&self.lines[slot as usize]);
        self.driver.attach(key, side, socket).map_err(|e| format!("no socket: {e}"))?;
        Ok(slot)
    }

    fn name(&self, slot: u32) -> (Key, Side) {
        let line = &self.lines[slot as usize];
        let side = if line.role == Role::Echo { Side::Client } else { Side::Backend };
        (Key { slot, generation: line.generation }, side)
    }

    /// What a line is, unless the name is that of an earlier one.
    fn role(&self, key: Key) -> Option<Role> {
        let line = self.lines.get(key.slot as usize)?;
        (line.generation == key.generation && line.socket.is_some()).then_some(line.role)
    }

    fn arm(&mut self, slot: u32) {
        let (key, side) = self.name(slot);
        let line = &mut self.lines[slot as usize];
        let once = matches!(line.role, Role::Client { once: true, .. });
        line.receiving = true;
        let arm = if once { Arm::Once } else { self.arm };
        self.driver.arm_recv(key, side, socket_of(line), arm);
    }

    fn send(&mut self, slot: u32, buffer: BufferId) {
        let (key, side) = self.name(slot);
        let line = &mut self.lines[slot as usize];
        line.sending = true;
        self.driver.send(key, side, socket_of(line), buffer);
    }

    /// Closes a line that is leaving and has nothing in flight. Whether it did.
    fn close(&mut self, slot: u32) -> bool {
        let (key, side) = self.name(slot);
        let line = &mut self.lines[slot as usize];
        if !line.leaving || line.sending || line.receiving {
            return false;
        }
        let Some(socket) = line.socket.take() else { return false };
        self.driver.close(Some((key, side)), socket);
        self.free.push(slot);
        true
    }
}

fn socket_of(line: &Line) -> &Socket {
    line.socket.as_ref().expect("a line that is used has its socket")
}

fn no_connection(e: Errno) -> String {
    let hint = if e == Errno::NO_PORTS {
        "; no local port is left: net.ipv4.tcp_tw_reuse = 2, or fewer rounds, helps"
    } else {
        ""
    };
    format!("no connection: {e}{hint}")
}
