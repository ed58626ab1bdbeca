//! Every bound has a name here, and how bounds depend on each other is checked when this is compiled.

/// Shards of one process.
pub const SHARDS_MAX: usize = 256;
/// Bits of a session id that count a shard's sessions; those above name the shard.
pub const SESSION_COUNT_BITS: u32 = 40;
/// Shards that one process starts in its life: each has a number of its own. Session ids stay below 2^53 by it, beyond
/// which programs that keep JSON's numbers as floating point (jq, JavaScript) change them.
pub const SHARDS_STARTED_MAX: usize = 1 << (53 - SESSION_COUNT_BITS);
/// Shards that have ended and are still shown one by one.
pub const ENDED_SHARDS_MAX: usize = 16;
/// Sessions of one shard: a slot number has 24 bits and leaves room beside it in a completion's token.
pub const SESSIONS_PER_SHARD_MAX: u32 = 1 << 20;
/// Sessions of one process.
pub const SESSIONS_MAX: u32 = 256 * SESSIONS_PER_SHARD_MAX;
/// Default of `limits.sessions_max`.
pub const SESSIONS_DEFAULT: u32 = 10_000;
/// CPU numbers: as many as the kernel's `cpu_set_t` has bits.
pub const CPUS_MAX: usize = 1024;
/// Clients that may wait to be accepted; the kernel cuts this to `net.core.somaxconn`.
pub const BACKLOG_MAX: u32 = 65_535;
/// Any time limit: 30 days.
pub const DURATION_MS_MAX: u32 = 30 * 24 * 60 * 60 * 1000;
/// TCP_USER_TIMEOUT: 7 days.
pub const USER_TIMEOUT_MS_MAX: u32 = 7 * 24 * 60 * 60 * 1000;
/// TCP_KEEPIDLE and TCP_KEEPINTVL, as the kernel bounds them (MAX_TCP_KEEPIDLE).
pub const KEEPALIVE_S_MAX: u32 = 32_767;
/// TCP_KEEPCNT, as the kernel bounds it (MAX_TCP_KEEPCNT).
pub const KEEPALIVE_PROBES_MAX: u32 = 127;
/// SO_SNDBUF, SO_RCVBUF and TCP_NOTSENT_LOWAT; the kernel cuts the first two to `net.core.[wr]mem_max`.
pub const SOCKET_BUFFER_BYTES_MAX: u32 = 64 << 20;
/// What the kernel may hold of one direction on its way in and, unsent, on its way out: with more, a reader that stalls
/// finds orders of long ago.
pub const RECEIVE_BUFFER_DEFAULT: u32 = 256 * 1024;
/// See [`RECEIVE_BUFFER_DEFAULT`].
pub const NOTSENT_LOWAT_DEFAULT: u32 = 128 * 1024;
/// Characters of a congestion control's name (TCP_CA_NAME_MAX, less the zero that ends it).
pub const CONGESTION_CHARS_MAX: usize = 15;
/// Lines at level warn of sessions that ended by the fault of a backend or of Ringway, in one second. What is beyond
/// them is said by one more line, and these sessions' lines are at level info as all others.
pub const FAULT_LINES_PER_S_MAX: u32 = 20;
/// Lines that one look at all backends may bring about; what else changed is told by a later one.
pub const REACH_LINES_PER_LOOK: usize = 16;
/// How long what was said of a backend holds before the opposite is said.
pub const REACH_HOLD_MS: u64 = 10_000;
/// One line for every so many ended sessions.
pub const SESSION_EVERY_MAX: u32 = 1_000_000;
/// Fewest characters of an admin token: what is shorter can be guessed.
pub const TOKEN_CHARS_MIN: usize = 16;
/// Most characters of an admin token: it must fit a request's head.
pub const TOKEN_CHARS_MAX: usize = 1024;
/// Listeners of one config.
pub const LISTENERS_MAX: usize = 256;
/// Pools of one config.
pub const POOLS_MAX: usize = 1024;
/// Backends of one pool.
pub const BACKENDS_PER_POOL_MAX: usize = 256;
/// Weight of one backend.
pub const WEIGHT_MAX: u16 = 1000;
/// Steps of one rotation through a pool: weights are divided by their common factor, then their sum is at most this.
pub const ROTATION_MAX: usize = BACKENDS_PER_POOL_MAX * WEIGHT_MAX as usize;
/// Attempts after the first to reach a backend.
pub const RETRIES_MAX: u32 = 16;
/// Connections a shard keeps ready to one backend.
pub const SPARES_PER_BACKEND_MAX: u16 = 64;
/// Connections a shard keeps ready to all backends: each costs a system call a second, and a descriptor.
pub const SPARES_PER_SHARD_MAX: usize = 256;
/// How long a connection may be ready by default before another takes its place: less than firewalls forget after.
pub const SPARE_IDLE_MS_DEFAULT: u32 = 30_000;
/// Least such time: ready connections are looked at once a second.
pub const SPARE_IDLE_MS_MIN: u32 = 1000;
/// Ready connections that a shard begins to make in one turn: sessions that live wait for no more than these.
pub const SPARE_CONNECTS_PER_TURN_MAX: u32 = 4;
/// How long a backend that refused a ready connection, or closed one, is left alone at first; then twice as long each
/// time.
pub const SPARE_REST_MS: u64 = 250;
/// And at most.
pub const SPARE_REST_MS_MAX: u64 = 8000;
/// How long no connection is kept ready after descriptors or memory ran out.
pub const SPARE_SHORT_MS: u64 = 5000;
/// One part in so many of all descriptors is kept free of sessions at most, for connections that are ready.
pub const SPARE_DESCRIPTORS_PART: u64 = 4;
/// Bytes of a config file.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Changes that the answer to a reload names.
pub const CHANGES_SHOWN: usize = 50;
/// Longest text of a key or value that a fault or a change of a config repeats: a log line is read by people.
pub const SHOWN_CHARS_MAX: usize = 80;
/// Characters of a name.
pub const NAME_CHARS_MAX: usize = 64;

/// Receive buffers of one shard by default. Address space, not memory: a buffer takes memory when it is first used, and
/// those used last are used first. So many that sessions which all stand before full destinations still have theirs.
pub const BUFFERS_DEFAULT: u16 = 16_384;
/// Fewest receive buffers of one shard: the window and as many again.
pub const BUFFERS_MIN: u16 = 128;
/// Most receive buffers of one shard: a provided buffer's number has 16 bits (io_uring_register_buf_ring(3)).
pub const BUFFERS_MAX: u16 = u16::MAX - 1;
/// Bytes of one receive buffer by default.
pub const BUFFER_BYTES_DEFAULT: u32 = 16 * 1024;
/// Fewest bytes of one receive buffer.
pub const BUFFER_BYTES_MIN: u32 = 512;
/// Most bytes of one receive buffer.
pub const BUFFER_BYTES_MAX: u32 = 1 << 20;
/// Buffers published to a uring at first: reused while they are hot, so fewer than the pool.
pub const WINDOW_MIN: u16 = 64;
/// Buffers published to a uring at most: a power of two (io_uring_register_buf_ring(3)).
pub const WINDOW_MAX: u16 = 4096;
/// Bytes a bulky direction moves at once, and the size of the buffer it does so through: what fits the cache beside the
/// rest.
pub const WIDE_BYTES: u32 = 512 * 1024;
/// Size of a shard's pipe: places for 64 packets.
pub const PIPE_BYTES: i32 = 256 * 1024;
/// Receives in a row that fill their buffer and so prove a direction bulky.
pub const WIDE_AFTER: u8 = 8;
/// Wide steps in a row that move less than a receive buffer holds and so prove that it is not bulky any more.
pub const WIDE_UNTIL: u8 = 2;
/// Longest time a shard may be told to look for work without sleeping after something moved.
pub const BUSY_POLL_US_MAX: u32 = 1_000_000;
/// Longest time it may be told to look for an answer; longer waits are low-latency mode's.
pub const ANSWER_POLL_US_MAX: u32 = 1000;
/// How long one wait may ask the network card: epoll does so before it looks at its own timeout, so timers may be as
/// late.
pub const NAPI_BUSY_POLL_US_MAX: u32 = 10_000;
/// Highest real-time priority (sched_get_priority_max of SCHED_FIFO).
pub const FIFO_PRIORITY_MAX: u8 = 99;
/// How many windows of looking in vain a shard may save up.
pub const SPIN_BUDGET_WINDOWS: u64 = 10;
/// One part in so many of all time may be spent on looking in vain.
pub const SPIN_WASTE_PART: u64 = 50;
/// The same where it looks for answers alone: late ones are not to be seen in what the shard costs.
pub const ANSWER_WASTE_PART: u64 = 500;
/// What a look for work without sleeping is charged at most: a longer one was stopped or disturbed meanwhile.
pub const SPIN_LOOK_NS_MAX: u64 = 100_000;
/// How many sockets of hot sessions are read before a spinning shard asks its driver again, which has the messages of
/// all others: with 64 and more reads in between, those waited for tens of microseconds.
pub const HOT_READS: usize = 16;
/// Sessions that are read straight while a shard spins, if no others carry traffic.
pub const HOT_SESSIONS_MAX: usize = 4;
/// Most sessions a spinning shard reads straight where listeners ask for it.
pub const HOT_FORCED_MAX: usize = 64;
/// Movements after which it is judged which sessions are hot.
pub const HEAT_SAMPLE: u32 = 64;
/// Free buffers that keep their memory when a shard is calm.
pub const BUFFERS_WARM: usize = 64;
/// Buffers whose memory goes back to the kernel in one turn: each costs a call of some microseconds, and all sessions
/// of the shard wait.
pub const TRIM_BUFFERS_MAX: usize = 64;
/// Bytes of memory that go back in one turn, but for a buffer that is larger: the kernel takes them page by page.
pub const TRIM_BYTES_MAX: usize = 1 << 20;
/// How long a shard that has more to give back waits before it goes on: a full pool of the default size has gone back
/// within two seconds.
pub const TRIM_PAUSE_MS: u64 = 5;
/// Bytes one direction may hold by default.
pub const HIGH_WATER_DEFAULT: u32 = 64 * 1024;
/// Most bytes one direction may be allowed to hold.
pub const HIGH_WATER_MAX: u32 = 16 << 20;

/// Submissions a ring takes before it must be entered.
pub const SQ_ENTRIES: u32 = 1024;
/// Completions a ring holds; far more than submissions, for a full ring is slow.
pub const CQ_ENTRIES: u32 = 8192;
/// Smallest submission queue that is tried when locked memory is short.
pub const SQ_ENTRIES_MIN: u32 = 128;
/// Completions handled in one turn before timers and mail are looked at again.
pub const COMPLETIONS_PER_TURN_MAX: usize = 1024;
/// Completions of one turn that are few: what they bring is passed on one after the other, not all at once at the end.
pub const SPARSE_COMPLETIONS_MAX: usize = 4;
/// Sockets that a ring closes in one turn, with what else it submits: their descriptors are taken until then, so others
/// are closed at once.
pub const CLOSES_PER_TURN_MAX: usize = 16;
/// How long the probe of io_uring waits for one completion.
pub const PROBE_WAIT_MS: u64 = 1000;
/// Readiness reports taken from epoll in one turn.
pub const EPOLL_EVENTS_PER_TURN: usize = 512;

/// Longest sleep of a shard: how soon a stopped thread is told from a late one.
pub const SLEEP_MS_MAX: u64 = 1000;
/// A turn later than this was stopped, not busy: its deadlines move.
pub const FREEZE_MS: u64 = 250;
/// How often a shard looks after itself: gives memory back, reports its gauges. Less than the second after which it is
/// woken for that: woken a moment early, it would wait for the next time.
pub const UPKEEP_MS: u64 = 900;
/// Descriptors kept free of sessions: for the admin endpoint's clients, the endpoint itself, the log and what upgrades
/// open. What each shard needs comes on top: [`DESCRIPTORS_OF_SHARD`], its sockets of listeners, and
/// [`CLOSES_PER_TURN_MAX`].
pub const DESCRIPTORS_SPARE: u64 = ADMIN_CONNECTIONS_MAX as u64 + 36;
/// A ring or a poller, its waker and a pipe, and the same again while the other data path takes over.
pub const DESCRIPTORS_OF_SHARD: u64 = 8;
/// How long a listener that is being closed waits for connections that were being made.
pub const CLOSE_AFTER_MS: u64 = 50;
/// How long shards may take to end sessions that were told to, before the process ends without them.
pub const CUT_MS_MAX: u64 = 3000;
/// How long a listener rests after accept failed for want of descriptors or memory, or for what is not one client's.
pub const ACCEPT_REST_MS: u64 = 100;
/// How long it rests where clients are being refused: their descriptors are about to come free.
pub const REFUSED_REST_MS: u64 = 1;
/// How long a shard says nothing more of a listener after it said that it cannot accept there.
pub const ACCEPT_SAID_MS: u64 = 1000;
/// How long an ending session may wait for what is in flight before it is cancelled, and counted.
pub const ENDING_MS_MAX: u64 = 1000;
/// Age at which a session's backend socket gets its keepalive and TCP_USER_TIMEOUT: six calls that a short one is
/// spared.
pub const GUARD_AFTER_MS: u32 = 1000;
/// How long a session may take to come to rest before its move is given up and it goes on where it is.
pub const SETTLE_MS_MAX: u64 = 1000;
/// How often a session is tried again that came back from a move when its own shard had no room for it either.
pub const PARKED_RETRY_MS: u64 = 10;
/// Looks at a ring, a second each, that are judged together.
pub const RING_LOOKS: usize = 10;
/// So many of them must have seen its completion queue overflow.
pub const RING_OVERFLOWN_LOOKS: usize = 5;
/// Calls into the kernel that may not fail within them.
pub const RING_ENTER_FAILED: u64 = 3;
/// Endings that may not be forced within them.
pub const RING_WATCHDOG: u64 = 3;
/// How long a shard whose ring misbehaved stays on epoll, unless an operator asks for io_uring before: six hours.
pub const RING_HOLD_MS: u64 = 6 * 60 * 60 * 1000;
/// Calls into the kernel that may fail one after the other before a ring is given up.
pub const ENTER_FAILURES_MAX: u32 = 64;
/// How long a ring rests after such a call failed.
pub const ENTER_REST_MS: i32 = 1;
/// Returns to epoll that status shows.
pub const ROLLBACKS_SHOWN: usize = 16;
/// Thousandths of a core that must lie between two shards before live sessions change over.
pub const BALANCE_GAP: u64 = 200;
/// And at least one part in so many of what the busier one does.
pub const BALANCE_PART: u64 = 4;
/// Looks in a row, a second each, that must see it.
pub const BALANCE_LOOKS: u32 = 5;
/// Looks after a step before the next.
pub const BALANCE_REST_LOOKS: u32 = 10;
/// Sessions that change over in one step.
pub const BALANCE_MOVES_MAX: usize = 8;
/// A session that carries less than one part in so many of the difference is not worth a pause.
pub const BALANCE_WORTH_PART: u64 = 100;
/// Heaviest sessions a shard names when it is asked.
pub const WEIGHED_MAX: usize = 64;
/// Seconds in which control mends what a share of the live sessions is off by, after it was ordered.
pub const SHARE_LOOKS: u32 = 5;
/// Slots of each shard that one page of sessions covers at most.
pub const LISTED_SLOTS_MAX: u32 = 1000;
/// And by default.
pub const LISTED_SLOTS_DEFAULT: u32 = 200;
/// Sessions of one shard that come to rest at once: each pause stays short.
pub const SETTLING_MAX: usize = 8;
/// Sessions at rest that may be on their way to one shard: none waits behind many.
pub const COMING_MAX: u32 = 8;
/// After how long a shard looks again whether another wants more of its sessions.
pub const COMING_LOOK_MS: u64 = 1;
/// Least age of a session that is ended because no backend could be reached: a client that comes back at once in a loop
/// is slowed down, and its connect(2) is over before it hears the answer.
pub const REFUSE_AFTER_MS: u64 = 10;
/// How long a connect goes on before the client is watched for having left.
pub const WATCH_CLIENT_AFTER_MS: u64 = 100;
/// How long a session whose destination keeps it waiting stands still before a poll listens for its source's end.
pub const WATCH_PAUSED_AFTER_MS: u32 = 100;
/// Of how many turns one is measured: each costs a look at the clock.
pub const WORK_SAMPLE: u64 = 64;
/// How many sessions begin in one turn of a shard: those that live wait for no more than these.
pub const BEGINNINGS_PER_TURN_MAX: u32 = 8;
/// How many clients that waited for their turn are looked at in one; those that have left begin no session. No more
/// wait than there are places, and no more without one.
pub const ARRIVALS_PER_TURN_MAX: u32 = 64;
/// While the pool is low: how often sessions are looked at for what waits for slow destinations. What waits for two
/// looks moves out of the pool.
pub const SPILL_LOOK_MS: u64 = 5;
/// How many slots one such look takes at most.
pub const SPILL_LOOKS_MAX: u32 = 4096;

/// Records of ended sessions that wait to be logged, for all shards.
pub const JOURNAL_RECORDS_MAX: usize = 16_384;
/// How long a shard that has failed waits for what was promised to it and not sent yet.
pub const ABANDON_MS_MAX: u64 = 200;
/// Panics of shards within a minute that end the process.
pub const PANICS_PER_MINUTE_MAX: usize = 3;

/// Bytes of one message between a process and the one that replaces it: the longest session, and room for its text.
pub const HANDOVER_BYTES_MAX: u64 = 2 * (HIGH_WATER_MAX + BUFFER_BYTES_MAX) as u64 + (16 << 20);
/// Sessions that go to the new process in one message: two descriptors each, of which one takes 253 (SCM_MAX_FD).
pub const HANDOVER_BATCH: usize = 64;
/// Unsent bytes after which a message takes no further session.
pub const HANDOVER_BATCH_BYTES: usize = 1 << 20;
/// Sessions that may have come to rest and wait for their turn to go: each pause stays short.
pub const HANDOVER_WAITING_MAX: u32 = 128;
/// How long a new process may take until it has checked its config and is ready.
pub const HANDOVER_READY_MS_MAX: u64 = 5000;
/// How long any further step of a hand-over may take: a message to be taken, or answered.
pub const HANDOVER_STEP_MS_MAX: u64 = 3000;
/// How long a message that is under way when a hand-over fails may take to be read.
pub const HANDOVER_LAST_MS_MAX: u64 = 100;
/// How often the old process looks whether the new one is still there, and how far its own sessions have come.
pub const HANDOVER_LOOK_MS: u64 = 10;
/// When the new process becomes the main one, if sessions are left that cannot be carried yet.
pub const HANDOVER_MAIN_MS: u64 = 5000;
/// How long a start waits for a service manager to close what this process closed, where its address is asked for.
pub const LET_GO_MS_MAX: u64 = 2000;
/// How often it looks.
pub const LET_GO_LOOK_MS: u64 = 10;
/// Session ids that are left to the old process while the new one accepts already.
pub const HANDOVER_IDS: u64 = 1 << 24;

/// Bytes of an admin request's body.
pub const ADMIN_BODY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an admin request's head.
pub const ADMIN_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Bytes of an admin answer that the commands read: the status of tens of thousands of backends.
pub const ADMIN_ANSWER_BYTES_MAX: u64 = 16 << 20;
/// Connections to the admin endpoint that may wait for their turn.
pub const ADMIN_WAITING_MAX: u32 = 128;
/// Connections to the admin endpoint at once.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;
/// Time for one admin request's head, and for its answer.
pub const ADMIN_REQUEST_MS_MAX: u64 = 10_000;
/// How long the admin endpoint rests after accept failed, for want of descriptors or memory.
pub const ADMIN_ACCEPT_REST_MS: u64 = 100;
/// How long a finished admin connection is read on, so that its last answer is not lost to a reset.
pub const ADMIN_LINGER_MS_MAX: u64 = 1000;
/// Bytes that are thrown away meanwhile.
pub const ADMIN_LINGER_BYTES_MAX: usize = 1 << 20;
/// How long whoever was let in at the last moment may take to ask, when the admin endpoint stops.
pub const ADMIN_LAST_ASK_MS: u64 = 50;
/// How long admin answers that are under way may hold up a stop.
pub const ADMIN_STOP_MS_MAX: u64 = 500;
/// How long the writer of session lines sleeps when a record has come: those that follow wake it no more.
pub const JOURNAL_PAUSE_MS: u64 = 20;
/// Lines of the log that wait to be written. Those of sessions take half of the room at most.
pub const LOG_LINES_MAX: usize = 4096;
/// And their bytes.
pub const LOG_BYTES_MAX: usize = 2 << 20;
/// How long what is still to be logged may hold up the end of the process.
pub const LOG_LAST_MS_MAX: u64 = 1000;
/// How long a thread that panics waits until that is written, for the process may be about to abort.
pub const LOG_PANIC_MS_MAX: u64 = 100;
/// How often whoever waits for the log looks at it again.
pub const LOG_LOOK_MS: u64 = 2;

/// Orders that rest in one book of the embedded order engine.
pub const BOOK_ORDERS_MAX: usize = 16_384;
/// Highest price of an order, in ticks: JSON readers that know only doubles hold it exactly.
pub const BOOK_PRICE_MAX: u64 = (1 << 53) - 1;
/// Highest quantity of an order: JSON readers that know only doubles hold it exactly.
pub const BOOK_QUANTITY_MAX: u64 = (1 << 53) - 1;
/// Bytes of one line of the order engine's protocol, without its end.
pub const ENGINE_LINE_BYTES_MAX: usize = 1024;
/// Bytes of the longest answer of the order engine.
pub const ENGINE_ANSWER_BYTES_MAX: usize = 192;
/// Answers a client of the order engine may leave unread, in bytes beyond what its socket holds.
pub const ENGINE_OUTBOX_BYTES_MAX: usize = 4 << 20;
/// Connections of one order engine at once: each has a thread.
pub const ENGINE_CONNECTIONS_MAX: usize = 1024;
/// Stack of such a thread, in bytes.
pub const ENGINE_STACK_BYTES: usize = 256 * 1024;
/// How long the order engine waits for a client to take an answer before it cuts it off.
pub const ENGINE_WRITE_MS_MAX: u64 = 5_000;
/// How long a line of another session's trade may lie unsent after its client's socket was full.
pub const ENGINE_LOOK_MS: u64 = 200;
/// How long the order engine reads on after a last reject, so that a reset does not destroy it.
pub const ENGINE_LINGER_MS_MAX: u64 = 1_000;
/// Sessions of one order flow: each has a thread.
pub const FLOW_SESSIONS_MAX: usize = 1024;
/// Resting orders one session of the order flow keeps.
pub const FLOW_ORDERS_MAX: usize = 32;
/// How long the order flow waits for a connection or an answer before it counts an error.
pub const FLOW_ANSWER_MS_MAX: u64 = 1_000;
/// How long a session of the order flow rests after an error.
pub const FLOW_REST_MS: u64 = 100;

const _: () =
    assert!(WINDOW_MIN <= BUFFERS_MIN / 2, "the window leaves buffers for what is carried here");
const _: () = assert!(HIGH_WATER_DEFAULT >= BUFFER_BYTES_DEFAULT, "a receive may fill a buffer");
const _: () = assert!(CQ_ENTRIES >= 4 * SQ_ENTRIES, "completions may not overflow");
const _: () = assert!(WINDOW_MAX.is_power_of_two() && WINDOW_MAX <= 32_768);
const _: () = assert!(SESSIONS_PER_SHARD_MAX <= 1 << 24, "a slot must fit a token");
const _: () = assert!(USER_TIMEOUT_MS_MAX <= i32::MAX as u32, "setsockopt takes an int");
const _: () =
    assert!(SOCKET_BUFFER_BYTES_MAX <= i32::MAX as u32 / 2, "the kernel doubles it in an int");
const _: () = assert!(2 * HANDOVER_BATCH <= 253, "the descriptors of a batch go with one message");
const _: () = assert!(SPARES_PER_BACKEND_MAX as usize <= SPARES_PER_SHARD_MAX);
const _: () = assert!(SPARE_REST_MS < SPARE_REST_MS_MAX, "a rest can grow");
const _: () = assert!(SPARE_IDLE_MS_MIN as u64 >= UPKEEP_MS, "the age is seen when it is over");
const _: () = assert!(
    HANDOVER_READY_MS_MAX + HANDOVER_STEP_MS_MAX < ADMIN_REQUEST_MS_MAX,
    "who asked for an upgrade is told"
);
const _: () = assert!(TOKEN_CHARS_MAX < ADMIN_HEAD_BYTES_MAX, "a token comes in a request's head");
const _: () = assert!(
    SESSIONS_MAX as usize == SHARDS_MAX * SESSIONS_PER_SHARD_MAX as usize,
    "every shard may be full"
);
const _: () = assert!(
    BOOK_ORDERS_MAX * ENGINE_ANSWER_BYTES_MAX < ENGINE_OUTBOX_BYTES_MAX,
    "one order may trade with a whole book and its owner is told of all of it"
);
