//! The new side: what a process gets from before it began. Listening sockets a service manager kept, or all that the
//! process before it had.

use super::{Channel, ENVIRONMENT, Lost};
use crate::config::file::parse_carried;
use crate::config::{Config, DataPath, Percent, limits, overlap};
use crate::control::board::Board;
use crate::control::notify::Notify;
use crate::control::ports::wait_until_free;
use crate::control::{Cause, Prepared, changes, reload};
use crate::driver::{handoff, sys};
use crate::policy::snapshot::Snapshot;
use crate::session::parcel::Parcel;
use crate::time::Time;
use crate::wire::handover::{ADMIN, Hello, Message, SessionRecord};
use socket2::Socket;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};

/// What a process gets from before it began; most get nothing.
#[derive(Debug, Default)]
pub struct Legacy {
    sockets: Vec<Heirloom>,
    from: Option<Predecessor>,
    /// Names of the old process's listeners whose sockets serve on here.
    taken: Vec<String>,
    /// What of the config file is another than the old process read, for people.
    edits: String,
    /// Names under which a service manager keeps sockets that are not theirs any more.
    stale: Vec<String>,
}

/// A listening socket that was open before this process began.
#[derive(Debug)]
struct Heirloom {
    name: String,
    /// What the config of the process before asked for; a service manager does not say.
    wanted: Option<SocketAddr>,
    socket: Socket,
    /// The listener that serves on it from now on, or the admin endpoint.
    heir: Option<String>,
}

/// The process that this one is to take the place of.
#[derive(Debug)]
struct Predecessor {
    channel: Channel,
    hello: Box<Hello>,
}

impl Heirloom {
    fn bound(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()?.as_socket()
    }

    /// Whether it is what `name` and `bind` of this config ask for, though its address is another: one of any port.
    fn is_for(&self, name: &str, bind: SocketAddr) -> bool {
        let any_port = |bound: SocketAddr| bind.port() == 0 && bound.ip() == bind.ip();
        let fits = match self.wanted {
            Some(wanted) => wanted == bind,
            None => self.bound().is_some_and(any_port),
        };
        self.name == name && fits
    }

    /// Who of these serves on it: whose address it has, whatever its name was; or else who had it before.
    fn heir_of<'h>(&self, heirs: &[(&'h str, SocketAddr)]) -> Option<&'h str> {
        let at = heirs.iter().find(|(_, bind)| self.bound() == Some(*bind));
        let heir = at.or_else(|| heirs.iter().find(|(name, bind)| self.is_for(name, *bind)));
        heir.map(|(name, _)| *name)
    }
}

impl Legacy {
    /// Looks for it in the environment. To be called before anything is opened.
    ///
    /// # Errors
    /// A process that is to be taken over from says something that is not understood, or nothing.
    pub fn find() -> Result<Self, String> {
        if std::env::var_os(ENVIRONMENT).is_none() {
            return Ok(Self { sockets: passed(), ..Self::default() });
        }
        let failed = |why: &dyn std::fmt::Display| {
            format!("{ENVIRONMENT} is set, but nobody hands over at standard input: {why}")
        };
        let (channel, pid) = Channel::at_stdin().map_err(|e| failed(&e))?;
        match channel.hear(Some(limits::HANDOVER_STEP_MS_MAX)) {
            Ok((Message::Hello(hello), _)) if hello.pid == pid => {
                Ok(Self { from: Some(Predecessor { channel, hello }), ..Self::default() })
            }
            Ok(_) => Err(failed(&Lost::OutOfTurn)),
            Err(why) => {
                // It may understand, and tell who asked.
                let _ = channel.say(&Message::Failed(why.to_string()), &[]);
                Err(failed(&why))
            }
        }
    }

    /// Tells the process before this one, if there is one, that this one gives up.
    pub fn refuse(&mut self, why: &str) {
        if let Some(from) = self.from.take() {
            // Where it has gone, nobody asks why.
            let _ = from.channel.say(&Message::Failed(why.to_owned()), &[]);
        }
    }

    /// Takes the listening sockets: what can be checked without them is good. Those that nobody of this config asks for
    /// are closed before any other is opened, for they may be in its way.
    ///
    /// # Errors
    /// The process before this one went silent.
    pub fn take_sockets(&mut self, prepared: &Prepared) -> Result<(), Lost> {
        self.receive_sockets()?;
        let config = &prepared.config;
        let admin = config.admin.iter().map(|admin| (ADMIN, admin.bind));
        let listeners = config.listeners.iter().map(|l| (&*l.name, l.bind));
        let heirs: Vec<(&str, SocketAddr)> = admin.chain(listeners).collect();
        let gone = self.allot(&heirs);
        if self.from.is_none() {
            self.settle(&heirs, gone);
        }
        Ok(())
    }

    fn receive_sockets(&mut self) -> Result<(), Lost> {
        let Some(Predecessor { channel, .. }) = &self.from else { return Ok(()) };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        channel.say(&Message::Ready { version, edits: self.edits.clone() }, &[])?;
        loop {
            match channel.hear(Some(limits::HANDOVER_STEP_MS_MAX))? {
                (Message::Sockets { name, wanted, count }, descriptors)
                    if descriptors.len() == count as usize =>
                {
                    let one = |fd: OwnedFd| Heirloom {
                        name: name.clone(),
                        wanted: Some(wanted),
                        socket: fd.into(),
                        heir: None,
                    };
                    self.sockets.extend(descriptors.into_iter().map(one));
                }
                (Message::AllSockets, _) => return Ok(()),
                _ => return Err(Lost::OutOfTurn),
            }
        }
    }

    /// Says who serves on which socket; gives those that nobody does.
    fn allot(&mut self, heirs: &[(&str, SocketAddr)]) -> Vec<Heirloom> {
        let mut admin_has_one = false;
        for heirloom in &mut self.sockets {
            let heir = heirloom.heir_of(heirs);
            // It has one socket: clients would wait for ever in the queues of others.
            let is_spare = heir == Some(ADMIN) && std::mem::replace(&mut admin_has_one, true);
            heirloom.heir = heir.filter(|_| !is_spare).map(str::to_owned);
            let name = &heirloom.name;
            if heirloom.heir.is_some() && !self.taken.contains(name) {
                self.taken.push(name.clone());
            }
            if heirloom.heir.as_ref() != Some(name) && !self.stale.contains(name) {
                self.stale.push(name.clone());
            }
        }
        self.sockets.extract_if(.., |heirloom| heirloom.heir.is_none()).collect()
    }

    /// Closes what a service manager passed in vain, and has it do the same. It knows sockets by their names alone:
    /// those in use that have such a name as well are given to it anew, at once.
    fn settle(&mut self, heirs: &[(&str, SocketAddr)], gone: Vec<Heirloom>) {
        for heirloom in &gone {
            tracing::warn!(name = heirloom.name, address = ?heirloom.bound(),
                "a socket was passed (LISTEN_FDS) whose address no listener asks for: it is closed, and the service \
                manager is to keep it no more; where a .socket unit opened it, that one still has it");
        }
        let closed: Vec<SocketAddr> = gone.iter().filter_map(Heirloom::bound).collect();
        drop(gone);
        let stale = std::mem::take(&mut self.stale);
        if stale.is_empty() {
            return;
        }
        let notify = Notify::from_env();
        stale.iter().for_each(|name| notify.forget(name));
        for (heir, _) in heirs {
            let is_its =
                |h: &&Heirloom| h.heir.as_deref() == Some(*heir) && stale.contains(&h.name);
            let again = self.sockets.iter().filter(is_its);
            let again: Vec<RawFd> = again.map(|heirloom| heirloom.socket.as_raw_fd()).collect();
            notify.keep(heir, &again);
        }
        let until = sys::now().plus_ms(limits::LET_GO_MS_MAX);
        let has_none = |heir: &str| !self.sockets.iter().any(|h| h.heir.as_deref() == Some(heir));
        for (heir, bind) in heirs.iter().filter(|(heir, _)| has_none(heir)) {
            if closed.iter().any(|address| overlap(*address, *bind)) {
                tracing::info!(name = heir, address = %bind, "waiting until it is free");
                wait_until_free(*bind, until);
            }
        }
    }

    /// How many sockets [`sockets_of`](Self::sockets_of) would return.
    pub(in crate::control) fn count_of(&self, name: &str) -> usize {
        self.sockets.iter().filter(|heirloom| heirloom.heir.as_deref() == Some(name)).count()
    }

    /// The sockets that a listener of this config serves on.
    pub(in crate::control) fn sockets_of(&mut self, name: &str) -> Vec<Socket> {
        let is_its = |heirloom: &mut Heirloom| heirloom.heir.as_deref() == Some(name);
        self.sockets.extract_if(.., is_its).map(|heirloom| heirloom.socket).collect()
    }

    /// The admin endpoint's socket, where there is one already.
    pub fn admin(&mut self) -> Option<TcpListener> {
        self.sockets_of(ADMIN).into_iter().next().map(Into::into)
    }

    /// Names under which a service manager is to keep nothing that it has from the process before this one.
    pub(in crate::control) fn stale(&mut self) -> Vec<String> {
        std::mem::take(&mut self.stale)
    }

    /// The config with what operators ordered of the process before: the last change wins, as with a reload. And lanes
    /// that it held on epoll, with the end of that.
    #[must_use]
    pub(in crate::control) fn with_orders(
        &mut self,
        config: &Config,
    ) -> (Config, Vec<(usize, Time)>) {
        let Some(Predecessor { hello, .. }) = &self.from else { return (config.clone(), vec![]) };
        let Ok(file) = parse_carried(&hello.text) else {
            tracing::warn!(
                "the config of the process before cannot be read here: canary percents and data path \
                are those of the file"
            );
            return (config.clone(), vec![]);
        };
        let mut running = file.clone();
        for listener in &mut running.listeners {
            let percent = hello.percents.get(&*listener.name).copied();
            if let Some(percent) = percent.and_then(Percent::from_hundredths) {
                listener.canary_percent = percent;
            }
        }
        let plan = reload::plan(&file, &running, config);
        let mut config = config.clone();
        for (own, planned) in config.listeners.iter_mut().zip(&plan.config.listeners) {
            own.canary_percent = planned.canary_percent;
        }
        self.edits = changes::of_upgrade(&file, &running, &config);
        // A file that asks for another data path asks for io_uring to be tried again as well.
        if plan.data_path.is_some() {
            return (config, vec![]);
        }
        let percent = Percent::from_hundredths(hello.data_path_percent);
        if let (Some(path), Some(percent)) = (DataPath::from_label(&hello.data_path), percent) {
            (config.data_path, config.data_path_percent) = (path, percent);
        }
        (config, hello.held.iter().map(|(lane, until_ns)| (*lane, Time(*until_ns))).collect())
    }

    /// Says what of the config file is another than the process before read, where anything is.
    pub(in crate::control) fn tell_edits(&self) {
        if !self.edits.is_empty() {
            let what = self.edits.as_str();
            tracing::info!(what, "the config file was edited since the process before read it");
        }
    }

    /// Number of the first snapshot, lower 40 bits of the first session's id, and which of a line of processes this is.
    pub(in crate::control) fn firsts(&self) -> (u64, u64, u64) {
        self.from.as_ref().map_or((1, 1, 1), |Predecessor { hello, .. }| {
            let next = |n: u64| n.saturating_add(1);
            (next(hello.snapshot), hello.first_id, next(hello.generation))
        })
    }

    /// The process that hands over, where one does.
    #[must_use]
    pub fn predecessor(&self) -> Option<u32> {
        self.from.as_ref().map(|Predecessor { hello, .. }| hello.pid)
    }

    /// Says that clients are accepted here, and takes over what was counted: windows may be opened afterwards. Then
    /// follows the process before this one to its end, on a thread of its own.
    ///
    /// # Errors
    /// It does not answer, though it is there: it goes on alone, and this process is to end.
    pub(in crate::control) fn follow(
        mut self,
        board: &Arc<Board>,
        causes: mpsc::Sender<Cause>,
    ) -> Result<(), Lost> {
        let Some(Predecessor { channel, hello }) = self.from.take() else { return Ok(()) };
        board.predecessor.store(hello.pid, Relaxed);
        let first = channel
            .say(&Message::Accepting(std::mem::take(&mut self.taken)), &[])
            .and_then(|()| channel.hear(Some(limits::HANDOVER_STEP_MS_MAX)));
        match first {
            Ok((Message::Totals(totals), _)) => board.inherit(*totals),
            Ok(_) => return Err(Lost::OutOfTurn),
            Err(Lost::Gone) => tracing::warn!("the process before has gone, with its sessions"),
            Err(why) => return Err(why),
        }
        board.upgrades_done.fetch_add(1, Relaxed);
        let taker = Taker { channel, board: Arc::clone(board), causes, snapshots: HashMap::new() };
        let thread = std::thread::Builder::new().name("take-over".into());
        thread.spawn(move || taker.live()).map(drop).map_err(Lost::Broken)
    }
}

/// Sockets that a service manager passed to this very process (sd_listen_fds(3)), by the names it gave them.
fn passed() -> Vec<Heirloom> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    if number("LISTEN_PID") != usize::try_from(std::process::id()).ok() {
        return Vec::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let passed = handoff::take_passed(number("LISTEN_FDS").unwrap_or(0)).into_iter();
    let one = |fd: OwnedFd| Heirloom {
        name: names.next().unwrap_or_default(),
        wanted: None,
        socket: fd.into(),
        heir: None,
    };
    passed.map(one).filter(|heirloom| heirloom.socket.is_listener().unwrap_or(false)).collect()
}

/// Takes sessions over until the process before has none left.
struct Taker {
    channel: Channel,
    board: Arc<Board>,
    causes: mpsc::Sender<Cause>,
    /// Configs of the process before that sessions live by, by number; or why they cannot be read here.
    snapshots: HashMap<u64, Result<Arc<Snapshot>, String>>,
}

impl Taker {
    fn live(mut self) {
        match self.take_all() {
            Ok(()) => tracing::info!("the process before has handed everything over"),
            Err(Lost::Failed(why)) => {
                let _ = self.causes.send(Cause::Dismissed(why));
                return;
            }
            Err(why) => tracing::warn!(%why, "the process before ended the hand-over"),
        }
        self.board.stand_alone();
        // Control that has gone takes nothing over.
        let _ = self.causes.send(Cause::Alone);
    }

    fn take_all(&mut self) -> Result<(), Lost> {
        loop {
            match self.channel.hear(None)? {
                (Message::Totals(totals), _) => self.board.inherit(*totals),
                (Message::Snapshot { number, text }, _) => {
                    let snapshot = self.snapshot_of(number, &text);
                    self.snapshots.insert(number, snapshot);
                }
                (Message::Sessions(records), descriptors) => self.take(records, descriptors)?,
                (Message::Main, _) => {
                    let _ = self.causes.send(Cause::Main);
                }
                (Message::Done, _) => return self.channel.say(&Message::Done, &[]),
                _ => return Err(Lost::OutOfTurn),
            }
        }
    }

    fn snapshot_of(&self, number: u64, text: &str) -> Result<Arc<Snapshot>, String> {
        let config = parse_carried(text).map_err(|faults| {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            format!("the config they live by cannot be read here: {}", faults.join("; "))
        })?;
        let now = self.board.snapshot.load();
        let snapshot = Arc::new(Snapshot::new(config, Some(&now)).numbered(number));
        self.board.keep_in_sight(&snapshot);
        Ok(snapshot)
    }

    /// Makes sessions this process's own; says so, and only then lets them go on.
    fn take(&self, records: Vec<SessionRecord>, descriptors: Vec<OwnedFd>) -> Result<(), Lost> {
        if descriptors.len() != 2 * records.len() {
            let refused = records.iter().map(|record| record.id).collect();
            let why =
                "it may not open as many descriptors: raise LimitNOFILE or ulimit -n".to_owned();
            return self.channel.say(&Message::Taken { refused, why }, &[]);
        }
        let mut descriptors = descriptors.into_iter();
        let (mut parcels, mut refused, mut why) = (Vec::new(), Vec::new(), String::new());
        for record in records {
            let id = record.id;
            let snapshot = self.snapshots.get(&record.snapshot).cloned();
            let ends = (descriptors.next(), descriptors.next());
            let (Some(client), Some(backend)) = ends else { return Err(Lost::OutOfTurn) };
            let parcel = snapshot
                .unwrap_or_else(|| Err("the config they live by was never told".to_owned()))
                .and_then(|snapshot| Parcel::of_record(record, [client, backend], snapshot));
            match parcel {
                Ok(parcel) => parcels.push(parcel),
                Err(reason) => {
                    refused.push(id);
                    why = reason;
                }
            }
        }
        let said = self.channel.say(&Message::Taken { refused, why }, &[]);
        let unsent = match said {
            Ok(()) => match self.causes.send(Cause::Carried(parcels)) {
                Ok(()) => return Ok(()),
                Err(mpsc::SendError(Cause::Carried(parcels))) => parcels,
                Err(_) => return Err(Lost::Gone),
            },
            Err(_) => parcels,
        };
        // They are the other process's: it never heard that they were taken, or all is over.
        unsent.into_iter().for_each(|parcel| parcel.release());
        said
    }
}
