//! Faults put into the code on purpose, to see that the simulation catches each. Outside of tests there are none.

/// One fault, at the place that asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A receive is not armed again when its send is done.
    LostWakeUp,
    /// Sockets are closed while something is in flight.
    ClosedInFlight,
    /// A buffer is given back twice.
    DoubleGiveBack,
    /// The end of a stream is passed on before its last bytes.
    EndBeforeBytes,
    /// A direction receives however much it holds.
    CreditIgnored,
    /// A reset is shown to the other end as an orderly end.
    ResetAsEnd,
    /// A direction that found no buffer is not fed.
    StarvedForgotten,
    /// Deadlines are not set.
    TimerNeverSet,
    /// A buffer is queued before one that came earlier.
    WrongOrder,
    /// Bytes are counted twice.
    CountedTwice,
    /// A session that is carried loses its unsent bytes.
    TailLost,
    /// A session that is carried doubles its unsent bytes.
    TailDoubled,
    /// A session that is carried forgets an end of stream it has to pass on.
    EndForgotten,
    /// What waits for slow readers stays in the pool while others need its buffers.
    NeverSpills,
    /// Of what is spilled a byte is lost.
    SpillLosesByte,
    /// Nobody listens whether the source of a paused direction has gone.
    DeafWhilePaused,
    /// What a wide step's destination does not take is dropped.
    WideTailLost,
    /// What a hot session's destination took at once is sent again.
    HotSentTwice,
    /// A hot session is read straight before its receive is over.
    ReadWhileArmed,
    /// A session that does not come to rest in time waits on.
    SettlesForever,
    /// A shard that fails leaves its mailbox as it is.
    MailForgotten,
    /// A shard that fails leaves clients as they are that were accepted and have no session.
    AcceptedForgotten,
    /// A shard keeps ready connections to backends that begins no sessions any more.
    SparesForgotten,
}

/// Whether this thread runs with that fault.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn is(_: Mutation) -> bool {
    false
}

#[cfg(test)]
pub(crate) use switch::{is, with};

#[cfg(test)]
mod switch {
    use super::Mutation;
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Whether this thread runs with that fault.
    pub(crate) fn is(mutation: Mutation) -> bool {
        ON.get() == Some(mutation)
    }

    /// Runs something with a fault, which must not panic.
    pub(crate) fn with<T>(mutation: Mutation, run: impl FnOnce() -> T) -> T {
        ON.set(Some(mutation));
        let result = run();
        ON.set(None);
        result
    }
}
