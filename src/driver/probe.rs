//! What this kernel and sandbox allow for io_uring, found by trying it.
//!
//! A version number promises nothing: features are carried back to old kernels, and a container's filter takes them
//! away from new ones. So [`probe`] makes one ring the way a shard would and does with it, on sockets of its own, what
//! a session will. The version decides one thing alone: whether `auto` dares it ([`kernels`] says where it does not).

mod bench;
pub mod kernels;
pub mod refusal;
mod trials;

use kernels::{KnownBad, Severity, Version};
use refusal::{Circumstances, Failure, Refusal};
use serde::Serialize;
use std::fmt;

/// What Ringway asks of io_uring, in the order in which it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// A ring of one thread that runs its own work: SINGLE_ISSUER, DEFER_TASKRUN, SUBMIT_ALL, CLAMP, CQSIZE.
    Ring,
    /// A ring without the array of indices (NO_SQARRAY).
    NoSqArray,
    /// A wait that ends in time without a submission for it (EXT_ARG).
    TimedWait,
    /// Every opcode a session uses.
    Opcodes,
    /// A ring of provided receive buffers.
    BufferRing,
    /// Many clients from one accept.
    AcceptMulti,
    /// Many receives from one submission.
    RecvMulti,
    /// Those receives end by themselves after a number of bytes.
    RecvCredit,
    /// A send that takes all its bytes, however long it must wait (MSG_WAITALL).
    SendWhole,
    /// A receive that begins when a send is done, and does not when the send failed.
    SendThenRecv,
    /// Waiting by polling the network card's queues (NAPI).
    BusyPoll,
    /// Entering the ring without looking up its descriptor.
    RegisteredRing,
}

impl Feature {
    /// All of them, in the order in which they are tried.
    pub const ALL: [Self; 12] = [
        Self::Ring,
        Self::NoSqArray,
        Self::TimedWait,
        Self::Opcodes,
        Self::BufferRing,
        Self::AcceptMulti,
        Self::RecvMulti,
        Self::RecvCredit,
        Self::SendWhole,
        Self::SendThenRecv,
        Self::BusyPoll,
        Self::RegisteredRing,
    ];

    /// Its name, as people read it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ring => "ring set-up",
            Self::NoSqArray => "ring without index array",
            Self::TimedWait => "timed wait",
            Self::Opcodes => "set of opcodes",
            Self::BufferRing => "provided-buffer ring",
            Self::AcceptMulti => "multishot accept",
            Self::RecvMulti => "multishot receive",
            Self::RecvCredit => "receive credit",
            Self::SendWhole => "send of all bytes",
            Self::SendThenRecv => "send linked to receive",
            Self::BusyPoll => "NAPI busy poll",
            Self::RegisteredRing => "registered ring",
        }
    }

    /// Whether the uring driver cannot do without it; for the others it has another way.
    #[must_use]
    pub const fn needed(self) -> bool {
        match self {
            Self::Ring
            | Self::TimedWait
            | Self::Opcodes
            | Self::BufferRing
            | Self::AcceptMulti
            | Self::SendWhole
            | Self::SendThenRecv => true,
            Self::NoSqArray
            | Self::RecvMulti
            | Self::RecvCredit
            | Self::BusyPoll
            | Self::RegisteredRing => false,
        }
    }
}

/// What was found of one feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Which.
    pub feature: Feature,
    /// Its name, as people read it.
    pub name: &'static str,
    /// Whether the uring driver cannot do without it.
    pub needed: bool,
    /// Whether it did what it should.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
    /// Why not and what to change; `None` where it works or was not tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
}

/// What became of each trial, in the order in which they were made; one that could not be made is absent.
pub(in crate::driver) type Outcomes = Vec<(Feature, Result<String, Failure>)>;

/// What this kernel and sandbox allow.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What the kernel calls itself, as `uname -r`.
    pub kernel: String,
    /// What bears on a refusal.
    pub circumstances: Circumstances,
    /// Every feature once, in the order of [`Feature::ALL`].
    found: Vec<Found>,
    /// What is known against this version.
    pub known_bad: Vec<KnownBad>,
}

/// Tries every feature on a ring and sockets of its own, and takes them down again. Takes milliseconds where io_uring
/// works and, as every wait in it is bounded by [`limits::PROBE_WAIT_MS`](crate::config::limits::PROBE_WAIT_MS),
/// seconds where it misbehaves.
///
/// To be called by a thread with the rights, filters and limits the shards will have: they are what is found out.
#[must_use]
pub fn probe() -> Report {
    let circumstances = Circumstances::read();
    let kernel = kernels::running_release();
    Report::new(kernel, circumstances, trials::run())
}

impl Report {
    pub(in crate::driver) fn new(
        kernel: String,
        circumstances: Circumstances,
        mut outcomes: Outcomes,
    ) -> Self {
        let found = Feature::ALL.map(|feature| {
            let at = outcomes.iter().position(|(tried, _)| *tried == feature);
            let (ok, detail, refusal) = match at.map(|at| outcomes.swap_remove(at).1) {
                Some(Ok(seen)) => (true, seen, None),
                Some(Err(failure)) => {
                    let refusal = refusal::explain(feature, &failure, &circumstances);
                    (false, failure.to_string(), Some(refusal))
                }
                None => (false, "not tried: what it stands on failed".to_owned(), None),
            };
            let (name, needed) = (feature.label(), feature.needed());
            Found { feature, name, needed, ok, detail, refusal }
        });
        let known_bad = kernels::known_bad(Version::parse(&kernel));
        Self { kernel, circumstances, found: found.into(), known_bad }
    }

    /// Every feature once, in the order of [`Feature::ALL`].
    #[must_use]
    pub fn found(&self) -> &[Found] {
        &self.found
    }

    /// Whether `feature` does what it should.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.found.iter().any(|f| f.feature == feature && f.ok)
    }

    /// Whether the uring driver can run here.
    ///
    /// # Errors
    /// The needed features that were tried and failed, each with its reason and what to change.
    pub fn usable(&self) -> Result<(), Vec<Refusal>> {
        if Feature::ALL.into_iter().filter(|f| f.needed()).all(|f| self.has(f)) {
            return Ok(());
        }
        Err(self.found.iter().filter(|f| f.needed).filter_map(|f| f.refusal.clone()).collect())
    }

    /// Whether `auto` takes io_uring here: it is usable, and nothing is known against this kernel.
    ///
    /// # Errors
    /// Why not, in a sentence.
    pub fn advisable(&self) -> Result<(), String> {
        self.usable().map_err(|refusals| refusal::sentence(&refusals))?;
        if Version::parse(&self.kernel).is_none() {
            return Err(format!("no version can be read from the kernel's name `{}`", self.kernel));
        }
        match self.known_bad.iter().find(|bad| bad.severity == Severity::Avoid) {
            Some(bad) => Err(format!("kernel {} is one of {bad}", self.kernel)),
            None => Ok(()),
        }
    }

    /// The report as JSON, for programs, with the verdicts beside the findings.
    #[must_use]
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Judged<'r> {
            usable: bool,
            advisable: bool,
            why_not: Option<String>,
            #[serde(flatten)]
            report: &'r Report,
        }
        let judged = Judged {
            usable: self.usable().is_ok(),
            advisable: self.advisable().is_ok(),
            why_not: self.advisable().err(),
            report: self,
        };
        serde_json::to_string_pretty(&judged).expect("no map with other keys than strings in it")
    }
}

impl fmt::Display for Report {
    /// The report for people: a line a feature, what is known of the kernel, and what must change for io_uring.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {}; {}", self.kernel, self.circumstances)?;
        for found in &self.found {
            let mark = match (found.ok, found.needed) {
                (true, _) => "yes",
                (false, true) => "NO",
                (false, false) => "no",
            };
            let needed = if found.needed { "needed" } else { "" };
            writeln!(f, "  {mark:<4}{:<26}{needed:<8}{}", found.name, found.detail)?;
        }
        for bad in &self.known_bad {
            writeln!(f, "known of this kernel: {bad}")?;
        }
        let usable = self.usable();
        for refusal in usable.as_ref().err().into_iter().flatten() {
            writeln!(f, "{refusal}")?;
        }
        match (usable, self.advisable()) {
            (Ok(()), Ok(())) => write!(f, "io_uring is usable, and `auto` takes it"),
            (Ok(()), Err(why)) => write!(f, "io_uring is usable, but `auto` takes epoll: {why}"),
            (Err(_), _) => write!(f, "io_uring is not usable: `auto` takes epoll"),
        }
    }
}

#[cfg(test)]
mod tests;
