//! The old side: starts the new process, and gives it what this one has, on a thread of its own.

use super::{Channel, ENVIRONMENT, Lost};
use crate::config::limits;
use crate::control::Cause;
use crate::control::board::Board;
use crate::control::totals::Totals;
use crate::driver::{signal, sys};
use crate::session::parcel::Parcel;
use crate::shard::mailbox::{Mail, Order};
use crate::shard::placement::{Load, Neighbour};
use crate::time::Time;
use crate::wire::handover::{Hello, Message};
use std::collections::HashSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// What a new process hears that is to end, because the old one goes on.
const GIVEN_UP: &str = "it gave the upgrade up, and goes on itself";

/// How this program was started, for the next one to be started the same.
#[derive(Debug, Clone)]
pub(in crate::control) struct Invocation {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Invocation {
    /// Of this process. To be called while the working directory is still that of the start: a package that is updated
    /// puts another file at the same path, which is what an upgrade wants.
    #[must_use]
    pub(in crate::control) fn of_this_process() -> Self {
        let mut arguments = std::env::args_os();
        let named = PathBuf::from(arguments.next().unwrap_or_default());
        // A bare name is looked for in PATH, as it was the first time.
        let is_path = named.components().count() > 1;
        let program = if is_path { std::path::absolute(&named).unwrap_or(named) } else { named };
        Self { program, arguments: arguments.collect() }
    }
}

/// All that the new process is given at first.
pub(in crate::control) struct Estate {
    pub(in crate::control) invocation: Invocation,
    pub(in crate::control) hello: Hello,
    pub(in crate::control) sockets: Vec<Shared>,
    pub(in crate::control) board: Arc<Board>,
}

/// A listener's sockets, which this process keeps as well.
pub(in crate::control) struct Shared {
    pub(in crate::control) name: String,
    pub(in crate::control) wanted: SocketAddr,
    pub(in crate::control) sockets: Vec<OwnedFd>,
}

/// What control hears of an upgrade.
pub(crate) enum Said {
    /// The new process accepts clients at these listeners.
    Accepting {
        /// Its process id.
        pid: u32,
        /// Its version, for people.
        version: String,
        /// What of the config file is another than this process read, for people.
        edits: String,
        /// Names of listeners.
        taken: Vec<String>,
    },
    /// The new process is no more, and why; with it went the sessions of these ids.
    Failed(String, Vec<u64>),
    /// All was handed over.
    Over,
}

/// What control tells the thread that gives.
#[derive(Default)]
struct Told {
    /// Shards have let go of the sockets, windows are closed: totals and sessions may go.
    go: AtomicBool,
    /// The new process is the main one.
    main: AtomicBool,
    /// Nothing is left but the last word.
    finish: AtomicBool,
    cancelled: AtomicBool,
    /// How often the new process is to be asked to stop.
    stops: AtomicU32,
}

/// Control's side of an upgrade that is under way.
pub(in crate::control) struct Giving {
    told: Arc<Told>,
    channel: Channel,
    /// Where sessions are sent that are to go.
    pub(in crate::control) to: Neighbour,
}

impl Giving {
    pub(in crate::control) fn go(&self) {
        self.told.go.store(true, Relaxed);
    }

    pub(in crate::control) fn main(&self) {
        self.told.main.store(true, Relaxed);
    }

    pub(in crate::control) fn finish(&self) {
        // Stops that were told before it are seen with it.
        self.told.finish.store(true, Release);
    }

    /// Asks the new process to stop, so that it was asked this often. [`Said::Over`] then waits for its end.
    pub(in crate::control) fn stop(&self, times: u32) {
        self.told.stops.store(times, Relaxed);
    }

    /// Gives the upgrade up; [`Said::Failed`] follows.
    pub(in crate::control) fn cancel(&self) {
        self.told.cancelled.store(true, Relaxed);
        let _ = self.channel.say(&Message::Failed(GIVEN_UP.to_owned()), &[]);
        self.channel.end();
    }
}

/// Wakes nobody: the thread that gives looks by itself.
struct Asleep;

impl crate::driver::Wake for Asleep {
    fn wake(&self) {}
}

/// Starts the new process, and the thread that gives it what this one has.
///
/// # Errors
/// A sentence: the program cannot be started, or the system refuses what is needed for it.
pub(in crate::control) fn start(
    estate: Estate,
    causes: mpsc::Sender<Cause>,
) -> Result<Giving, String> {
    let refused = |e: std::io::Error| format!("the system refused what an upgrade needs: {e}");
    let (channel, theirs) = Channel::pair().map_err(refused)?;
    let Invocation { program, arguments } = &estate.invocation;
    let mut command = Command::new(program);
    command.args(arguments).env(ENVIRONMENT, "stdin").stdin(theirs);
    // Meant for this process, not for the next one.
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    let child =
        command.spawn().map_err(|e| format!("{} cannot be started: {e}", program.display()))?;
    // It holds the other end, which is to be the new process's alone.
    drop(command);
    let (mail, came) = Mail::new(Arc::new(Asleep));
    let load = Arc::new(Load::taking(limits::HANDOVER_WAITING_MAX));
    let told = Arc::new(Told::default());
    let to = Neighbour { load: Arc::clone(&load), mail };
    let giving =
        Giving { told: Arc::clone(&told), channel: channel.try_clone().map_err(refused)?, to };
    let giver = Giver {
        channel,
        child,
        board: Arc::clone(&estate.board),
        causes,
        came,
        load,
        told,
        known: HashSet::new(),
        given: Vec::new(),
        refused: HashSet::new(),
        totals_at: Time::default(),
        said_main: false,
        stops_sent: 0,
    };
    let thread = std::thread::Builder::new().name("hand-over".into());
    thread.spawn(move || giver.live(estate)).map_err(refused)?;
    Ok(giving)
}

/// A session that has come to rest and waits to go, and where it goes on if it cannot.
type Waiting = (Box<Parcel>, Option<Neighbour>);

struct Giver {
    channel: Channel,
    child: Child,
    board: Arc<Board>,
    causes: mpsc::Sender<Cause>,
    came: mpsc::Receiver<Order>,
    load: Arc<Load>,
    told: Arc<Told>,
    /// Numbers of the snapshots that were told.
    known: HashSet<u64>,
    /// Ids of the sessions that were taken.
    given: Vec<u64>,
    /// Ids of those that could not be taken.
    refused: HashSet<u64>,
    totals_at: Time,
    said_main: bool,
    stops_sent: u32,
}

impl Giver {
    fn live(mut self, estate: Estate) {
        let mut batch = Vec::new();
        let said = match self.give(estate, &mut batch) {
            Ok(()) => {
                self.see_off();
                Said::Over
            }
            Err(why) => self.fail(&why, batch),
        };
        // Control that has gone needs no word.
        let _ = self.causes.send(Cause::Upgrade(said));
        // Whoever was on the way goes home; it ends when no shard knows the way any more.
        while let Ok(order) = self.came.recv() {
            if let Some((parcel, home)) = self.arrived(order) {
                self.send_home(parcel, home);
            }
        }
    }

    /// Gives everything. What of `batch` is left was not taken.
    fn give(&mut self, estate: Estate, batch: &mut Vec<Waiting>) -> Result<(), Lost> {
        let step = Some(limits::HANDOVER_STEP_MS_MAX);
        self.channel.say(&Message::Hello(Box::new(estate.hello)), &[])?;
        let ready = self.channel.hear(Some(limits::HANDOVER_READY_MS_MAX))?;
        let (Message::Ready { version, edits }, _) = ready else { return Err(Lost::OutOfTurn) };
        for Shared { name, wanted, sockets } in &estate.sockets {
            let sockets: Vec<RawFd> = sockets.iter().map(|socket| socket.as_raw_fd()).collect();
            for some in sockets.chunks(crate::driver::handoff::DESCRIPTORS_MAX) {
                let count = u32::try_from(some.len()).unwrap_or(0);
                let message = Message::Sockets { name: name.clone(), wanted: *wanted, count };
                self.channel.say(&message, some)?;
            }
        }
        self.channel.say(&Message::AllSockets, &[])?;
        let (Message::Accepting(taken), _) = self.channel.hear(step)? else {
            return Err(Lost::OutOfTurn);
        };
        drop(estate.sockets);
        let said = Said::Accepting { pid: self.child.id(), version, edits, taken };
        let _ = self.causes.send(Cause::Upgrade(said));
        while !self.told.go.load(Relaxed) {
            self.look()?;
            self.wait(batch);
        }
        self.tell_totals()?;
        loop {
            self.collect(batch);
            if !batch.is_empty() {
                self.send(batch)?;
                continue;
            }
            self.look()?;
            if self.told.main.load(Relaxed) && !self.said_main {
                self.said_main = true;
                self.channel.say(&Message::Main, &[])?;
            }
            if self.told.finish.load(Acquire) {
                self.tell_totals()?;
                self.channel.say(&Message::Done, &[])?;
                return match self.channel.hear(step)? {
                    (Message::Done, _) => Ok(()),
                    _ => Err(Lost::OutOfTurn),
                };
            }
        }
    }

    /// Whether the new process is still there; tells it what was counted, now and then.
    fn look(&mut self) -> Result<(), Lost> {
        if self.told.cancelled.load(Relaxed) || !matches!(self.child.try_wait(), Ok(None)) {
            return Err(Lost::Gone);
        }
        self.pass_stops_on();
        if self.totals_at > Time::default() && sys::now() >= self.totals_at {
            self.tell_totals()?;
        }
        Ok(())
    }

    /// Asks the new process to stop, as often as this one was. Until its end was seen nobody else can have its id.
    fn pass_stops_on(&mut self) {
        if self.stops_sent < self.told.stops.load(Relaxed) {
            self.stops_sent += 1;
            if let Err(error) = signal::stop(self.child.id()) {
                tracing::warn!(%error, "the new process cannot be asked to stop");
            }
        }
    }

    /// Waits for the end of a new process that stops because this one does.
    fn see_off(&mut self) {
        while self.told.stops.load(Relaxed) > 0 && matches!(self.child.try_wait(), Ok(None)) {
            self.pass_stops_on();
            self.wait(&mut Vec::new());
        }
    }

    fn tell_totals(&mut self) -> Result<(), Lost> {
        self.totals_at = sys::now().plus_ms(limits::UPKEEP_MS);
        let totals = Totals::of(&self.board).record();
        self.channel.say(&Message::Totals(Box::new(totals)), &[])
    }

    fn arrived(&self, order: Order) -> Option<Waiting> {
        match order {
            Order::Attach(parcel, home) => Some((parcel, home)),
            // Nothing else is sent here.
            _ => None,
        }
    }

    /// Waits a moment for a session.
    fn wait(&self, batch: &mut Vec<Waiting>) {
        let look = Duration::from_millis(limits::HANDOVER_LOOK_MS);
        let came = self.came.recv_timeout(look).ok();
        batch.extend(came.and_then(|order| self.arrived(order)));
    }

    /// Fills `batch` with those that wait: as many as go with one message.
    fn collect(&self, batch: &mut Vec<Waiting>) {
        if batch.is_empty() {
            self.wait(batch);
        }
        let mut bytes: usize = batch.iter().map(|(parcel, _)| parcel.tail_bytes()).sum();
        while !batch.is_empty()
            && batch.len() < limits::HANDOVER_BATCH
            && bytes < limits::HANDOVER_BATCH_BYTES
        {
            let Some(waiting) = self.came.try_recv().ok().and_then(|o| self.arrived(o)) else {
                break;
            };
            bytes += waiting.0.tail_bytes();
            batch.push(waiting);
        }
    }

    /// Gives a batch. This process's descriptors of it are closed when the new one has said that it has its own.
    fn send(&mut self, batch: &mut Vec<Waiting>) -> Result<(), Lost> {
        for (parcel, _) in batch.iter() {
            let snapshot = parcel.snapshot();
            if self.known.insert(snapshot.number) {
                let text = snapshot.config.source.0.to_string();
                self.channel.say(&Message::Snapshot { number: snapshot.number, text }, &[])?;
            }
        }
        // A session's tails are bounded far below a message's length.
        let records = batch.iter().filter_map(|(parcel, _)| parcel.record()).collect();
        let descriptors: Vec<RawFd> =
            batch.iter().flat_map(|(parcel, _)| parcel.descriptors()).collect();
        self.channel.say(&Message::Sessions(records), &descriptors)?;
        let (answer, _) = self.channel.hear(Some(limits::HANDOVER_STEP_MS_MAX))?;
        self.answered(answer, batch)
    }

    /// Lets go of the sessions that were taken.
    fn answered(&mut self, answer: Message, batch: &mut Vec<Waiting>) -> Result<(), Lost> {
        let Message::Taken { refused, why } = answer else { return Err(Lost::OutOfTurn) };
        // They are asked for again once a second, and named once.
        let news: Vec<u64> =
            refused.iter().copied().filter(|id| self.refused.insert(*id)).collect();
        if !news.is_empty() {
            tracing::warn!(sessions = ?news, why, "sessions stay: the new process cannot take them");
        }
        let mut homes: Vec<Mail> = Vec::new();
        for (parcel, home) in batch.drain(..) {
            if refused.contains(&parcel.id()) {
                self.send_home(parcel, home);
                continue;
            }
            self.given.push(parcel.id());
            homes.extend(home.map(|home| home.mail));
            parcel.release();
            self.let_go();
        }
        // There is room again for those that come to rest next.
        homes.iter().for_each(Mail::tick);
        Ok(())
    }

    /// One less is on its way.
    fn let_go(&self) {
        self.load.came();
        self.load.sub();
    }

    /// Lets a session go on where it was.
    fn send_home(&self, parcel: Box<Parcel>, home: Option<Neighbour>) {
        let (id, mut parcel) = (parcel.id(), Some(parcel));
        if let Some(home) = home.filter(|home| home.load.promise()) {
            let unsent =
                home.mail.send(Order::Attach(parcel.take().expect("just put"), None)).err();
            parcel = unsent.and_then(|order| self.arrived(order)).map(|(parcel, _)| parcel);
        }
        self.let_go();
        if let Some(parcel) = parcel {
            tracing::error!(session = id, "its shard has gone: the session is lost");
            parcel.release();
        }
    }

    /// Ends the new process, and takes back what it did not take.
    fn fail(&mut self, why: &Lost, mut batch: Vec<Waiting>) -> Said {
        // It may have given up by itself: then the exit code says more.
        let _ = self.child.kill();
        let status = self.child.wait();
        // Where the child was but a script around the new process, that one lives on, and is to end as well.
        let _ = self.channel.say(&Message::Failed(GIVEN_UP.to_owned()), &[]);
        self.channel.end();
        // What it said before it ended still holds.
        while let Ok((answer, _)) = self.channel.hear(Some(limits::HANDOVER_LAST_MS_MAX)) {
            if self.answered(answer, &mut batch).is_err() {
                break;
            }
        }
        for (parcel, home) in batch {
            self.send_home(parcel, home);
        }
        let why = match (why, status) {
            (Lost::Gone, _) if self.told.cancelled.load(Relaxed) => {
                "the upgrade was given up".to_owned()
            }
            (Lost::Gone, Ok(status)) => format!("the new process ended ({status}): {why}"),
            _ => format!("the new process: {why}"),
        };
        Said::Failed(why, std::mem::take(&mut self.given))
    }
}
