//! The fault matrix: the same faults for Ringway on each data path and, where installed, for HAProxy and nginx, row by
//! row with what was measured and whether that meets the target.
//!
//! Rows that ask for more than a machine of two cores has are scaled, and say so in their name.

use super::backend::Manner;
use super::exhaustion::cut_off;
use super::healthy::Figures;
use super::island::Island;
use super::process;
use super::stage::{LOOPBACK, Rig, client, echoes, reset, served_after, until};
use super::target::Kind;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

/// Figures, and whether they meet the target.
type Row = (String, bool);

struct Rule {
    fault: &'static str,
    figures: &'static str,
    target: &'static str,
    measure: fn(Kind) -> Row,
}

const fn rule(
    fault: &'static str,
    figures: &'static str,
    target: &'static str,
    measure: fn(Kind) -> Row,
) -> Rule {
    Rule { fault, figures, target, measure }
}

const RULES: [Rule; 12] = [
    rule(
        "10 reloads in 4 s (new clients as fast as 1 thread makes them, not 4000/s)",
        "dropped / refused of n / gap (without a reload)",
        "0 / 0 / <= 10 ms",
        reloads,
    ),
    rule(
        "SIGKILL of one worker; a service manager keeps Ringway's sockets and starts it again",
        "dropped of 100 / refused of 200, not served / back after",
        "<= 100 / 0, 0 / <= 200 ms",
        killed,
    ),
    rule(
        "backend killed, back after 1 s",
        "resets of 100, told within / recovery",
        "100 of 100 / <= 10 ms",
        backend_killed,
    ),
    rule("backend frozen 2 s", "dropped / lost / gap", "0 / 0 / <= 2.005 s", backend_frozen),
    rule("proxy frozen 2 s", "dropped / lost / gap", "0 / 0 / <= 2.010 s", frozen),
    rule("5000 connect + RST", "dropped / gap / fds leaked", "0 / <= 20 ms / 0", reset_storm),
    rule(
        "330 descriptors, 600 idle clients, release after 2 s",
        "dropped / CPU beyond calm / recovery / leaked; closed within",
        "0 / <= 5 % / <= 2 ms / 0; <= 50 ms",
        descriptors,
    ),
    rule(
        "251 local ports, 300 sessions",
        "dropped / excess closed / CPU beyond calm / served after",
        "0 / all / <= 5 % / 50 of 50",
        local_ports,
    ),
    rule(
        "graceful stop under load",
        "cut / exit after the last left",
        "0 / <= 100 ms",
        graceful_stop,
    ),
    rule(
        "40 stalled readers",
        "user / kernel a session / p90 of another (before)",
        "<= 64 KiB / <= 1 MiB / <= 0.1 ms",
        stalled_readers,
    ),
    rule(
        "20 connects pending on a black hole",
        "median / p90 of another; pending after FIN / RST of 10 clients each",
        "p90 <= 0.14 ms; 0 / 0",
        pending_connects,
    ),
    rule(
        "2000 idle sessions (24 h of mixed traffic: see soak)",
        "RSS / fds a session",
        "<= 4 KB / 2.0",
        idle_mass,
    ),
];

#[test]
#[ignore = "takes minutes: cargo test --release --test hostile -- --ignored --nocapture fault_matrix"]
fn fault_matrix() {
    let wanted = std::env::var("RINGWAY_ROWS").unwrap_or_default();
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.is_installed()).collect();
    let heads: Vec<&str> = kinds.iter().map(|kind| kind.label()).collect();
    println!("\n| # | fault | figures | {} | target |", heads.join(" | "));
    println!("|---|---|---|{}---|", "---|".repeat(heads.len()));
    let mut unmet = 0;
    for (at, rule) in RULES.iter().enumerate() {
        let number = (at + 1).to_string();
        if !wanted.is_empty() && !wanted.split(',').any(|w| w == number) {
            continue;
        }
        let cell = |kind: &Kind| {
            let (figures, met) = (rule.measure)(*kind);
            unmet += usize::from(kind.is_ours() && !met);
            format!("{figures} {}", if met { "(met)" } else { "**(not met)**" })
        };
        let cells: Vec<String> = kinds.iter().map(cell).collect();
        let Rule { fault, figures, target, .. } = rule;
        println!("| {number} | {fault} | {figures} | {} | {target} |", cells.join(" | "));
    }
    println!(
        "Not measured: packet loss, a step of the wall's clock (a machine of its own is needed for both)."
    );
    println!("{unmet} cells of Ringway's do not meet their target.");
}

impl Rig {
    fn clients(&self, count: usize) -> Vec<TcpStream> {
        (0..count).filter_map(|_| client(self.target.other, PATIENCE).ok()).collect()
    }

    /// CPU in percent of one, over this time from now on.
    fn cpu(&self, time: Duration) -> f64 {
        let before = process::cpu(self.target.pid());
        std::thread::sleep(time);
        100.0 * (process::cpu(self.target.pid()).saturating_sub(before)).as_secs_f64()
            / time.as_secs_f64()
    }
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn or_never(after: Option<Duration>) -> String {
    after.map_or_else(|| "never".into(), |after| format!("{after:.1?}"))
}

/// Makes new clients as fast as it can while something is done: how many, and how many were not served.
fn new_clients_while(to: SocketAddr, act: impl FnOnce()) -> (usize, usize) {
    let (stop, made, refused) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !stop.load(Relaxed) {
                made.fetch_add(1, Relaxed);
                if !echoes(to, PATIENCE) {
                    refused.fetch_add(1, Relaxed);
                    std::thread::sleep(ms(1));
                }
            }
        });
        act();
        stop.store(true, Relaxed);
    });
    (made.load(Relaxed), refused.load(Relaxed))
}

fn reloads(kind: Kind) -> Row {
    let rig = Rig::new(kind, Manner::Echo);
    new_clients_while(rig.target.orders, || std::thread::sleep(ms(4000)));
    let without = rig.healthy.gap();
    rig.healthy.forget();
    let (made, refused) = new_clients_while(rig.target.orders, || {
        for _ in 0..10 {
            rig.target.reload();
            std::thread::sleep(ms(400));
        }
    });
    let (gap, f) = (rig.healthy.gap(), rig.healthy.stop());
    let met = f.harmed == 0 && refused == 0 && gap <= ms(10);
    (format!("{} / {refused} of {made} / {gap:.1?} ({without:.1?} without)", f.harmed), met)
}

fn killed(kind: Kind) -> Row {
    let mut rig = Rig::with(kind, Manner::Echo, [LOOPBACK; 2], |setup| {
        setup.is_kept = kind.is_ours();
    });
    let to = rig.target.orders;
    let worker = *process::family(rig.target.pid()).last().unwrap();
    let began = Instant::now();
    process::signal(worker, "KILL");
    // Who comes while nobody is there, and while somebody starts.
    let mut waiting = Vec::new();
    let mut come = || waiting.extend((0..100).map(|_| client(to, ms(500))));
    if kind.is_ours() {
        rig.target.await_exit(ms(1000)).expect("it was killed");
        come();
        rig.target.start_again();
    } else {
        come();
    }
    come();
    let back = until(ms(3000), || echoes(to, ms(500)));
    let after = began.elapsed();
    let refused = waiting.iter().filter(|client| client.is_err()).count();
    let unserved = waiting.into_iter().flatten().filter(|client| !answers(client)).count();
    let f = rig.healthy.stop();
    let after_text = or_never(back.then_some(after));
    let met = f.harmed <= 100 && refused + unserved == 0 && back && after <= ms(200);
    (format!("{} / {refused}, {unserved} / {after_text}", f.harmed), met)
}

/// Whether a client that is connected gets its bytes back.
fn answers(mut client: &TcpStream) -> bool {
    let mut back = [0; 4];
    client.write_all(b"ping").and_then(|()| client.read_exact(&mut back)).is_ok()
        && back == *b"ping"
}

fn backend_killed(kind: Kind) -> Row {
    let rig = Rig::new(kind, Manner::Silent);
    let mut clients = rig.clients(100);
    until(PATIENCE, || rig.other.open() == 100);
    let began = Instant::now();
    rig.other.die();
    let is_reset = |stream: &mut TcpStream| {
        stream.read(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::ConnectionReset)
    };
    let resets = clients.iter_mut().map(is_reset).filter(|is| *is).count();
    let told = began.elapsed();
    std::thread::sleep(ms(1000).saturating_sub(told));
    rig.other.behave(Manner::Echo);
    rig.other.rise();
    let recovery = served_after(rig.target.other, PATIENCE);
    let harmed = rig.healthy.stop().harmed;
    let met = resets == 100 && recovery.is_some_and(|after| after <= ms(10)) && harmed == 0;
    (format!("{resets} of 100 in {told:.1?} / {}", or_never(recovery)), met)
}

fn backend_frozen(kind: Kind) -> Row {
    let rig = Rig::new(kind, Manner::Echo);
    rig.echo.freeze(ms(2000));
    std::thread::sleep(ms(2500));
    pause_row(&rig.healthy.gap(), rig.healthy.stop(), ms(2005))
}

fn frozen(kind: Kind) -> Row {
    let rig = Rig::new(kind, Manner::Echo);
    let family = process::family(rig.target.pid());
    family.iter().for_each(|pid| process::signal(*pid, "STOP"));
    std::thread::sleep(ms(2000));
    family.iter().rev().for_each(|pid| process::signal(*pid, "CONT"));
    std::thread::sleep(ms(500));
    pause_row(&rig.healthy.gap(), rig.healthy.stop(), ms(2010))
}

fn pause_row(gap: &Duration, f: Figures, bound: Duration) -> Row {
    let met = f.harmed == 0 && f.lost == 0 && *gap <= bound;
    (format!("{} / {} / {gap:.3?}", f.harmed, f.lost), met)
}

fn reset_storm(kind: Kind) -> Row {
    let rig = Rig::new(kind, Manner::Echo);
    let before = process::sockets(rig.target.pid());
    for _ in 0..5000 {
        if let Ok(stream) = client(rig.target.other, PATIENCE) {
            reset(stream);
        }
    }
    let leaked = leaked(&rig, before);
    let (gap, f) = (rig.healthy.gap(), rig.healthy.stop());
    let met = f.harmed == 0 && gap <= ms(20) && leaked == 0;
    (format!("{} / {gap:.1?} / {leaked}", f.harmed), met)
}

/// Sockets that are left over when clients have gone.
fn leaked(rig: &Rig, before: u64) -> u64 {
    let extra = || process::sockets(rig.target.pid()).saturating_sub(before);
    until(ms(5000), || extra() == 0);
    extra()
}

fn descriptors(kind: Kind) -> Row {
    let rig = Rig::with(kind, Manner::Echo, [LOOPBACK; 2], |setup| {
        setup.by = ["prlimit", "--nofile=330:330"].map(str::to_owned).into();
    });
    let before = process::sockets(rig.target.pid());
    let calm = rig.cpu(ms(2000));
    let began = Instant::now();
    let mut clients: Vec<TcpStream> = Vec::new();
    let mut closed = 0;
    for _ in 0..600 {
        match client(rig.target.other, PATIENCE) {
            Ok(stream) => clients.push(stream),
            // It was turned away while it connected.
            Err(_) => closed += 1,
        }
    }
    let offering = began.elapsed();
    let at_once = cut_off(&mut clients, ms(50));
    let within = began.elapsed().saturating_sub(offering);
    let later = cut_off(&mut clients, ms(500)).saturating_sub(at_once);
    closed += at_once;
    let short = rig.cpu(ms(2000)) - calm;
    drop(clients);
    let recovery = served_after(rig.target.other, PATIENCE);
    let leaked = leaked(&rig, before);
    let f = rig.healthy.stop();
    let quick = short <= 5.0 && later == 0 && recovery.is_some_and(|after| after <= ms(2));
    let met = f.harmed == 0 && quick && leaked == 0;
    let figures = format!(
        "{} / {short:.0} % / {} / {leaked}; {closed} in {within:.0?}, {later} later",
        f.harmed,
        or_never(recovery)
    );
    (figures, met)
}

fn local_ports(kind: Kind) -> Row {
    let Some(island) = Island::make() else { return ("skipped".into(), false) };
    island.local_ports(40_000, 40_250);
    let rig = Rig::with(kind, Manner::Echo, island.near(), |setup| {
        (setup.ip, setup.by) = (island.proxy(), island.by());
    });
    let calm = rig.cpu(ms(1000));
    let mut clients = rig.clients(300);
    let short = rig.cpu(ms(1000)) - calm;
    let cut = cut_off(&mut clients, ms(50)) + 300 - clients.len();
    clients.into_iter().for_each(reset);
    std::thread::sleep(ms(100));
    let served = (0..50).filter(|_| echoes(rig.target.other, ms(1000))).count();
    let f = rig.healthy.stop();
    // The kernel gives out an even number of them.
    let met = f.harmed == 0 && (49..=50).contains(&cut) && short <= 5.0 && served == 50;
    (format!("{} / {cut} / {short:.0} % / {served} of 50", f.harmed), met)
}

fn graceful_stop(kind: Kind) -> Row {
    let mut rig = Rig::new(kind, Manner::Echo);
    let signal = match kind {
        Kind::Uring | Kind::Epoll => "TERM",
        Kind::Haproxy => "USR1",
        Kind::Nginx => "QUIT",
    };
    process::signal(rig.target.pid(), signal);
    std::thread::sleep(ms(1000));
    let f = rig.healthy.stop();
    let began = Instant::now();
    let code = rig.target.await_exit(PATIENCE);
    let exit = began.elapsed();
    let met = f.harmed == 0 && code.is_some() && exit <= ms(100);
    (format!("{} / {exit:.1?}", f.harmed), met)
}

/// How long one session's echoes take while all other healthy ones are silent: median and 90 in 100. As in the runner
/// the targets come from, one thread is the client and the backend, so that only the proxy has to be woken.
fn echoes_of_one(rig: &Rig) -> (Duration, Duration) {
    const WARM_UP: usize = 100;
    const TURNS: usize = 2000;
    rig.healthy.hush();
    rig.echo.behave(Manner::Lent);
    let mut near = client(rig.target.orders, PATIENCE).unwrap();
    let mut far = rig.echo.lent();
    rig.echo.behave(Manner::Echo);
    far.set_nodelay(true).unwrap();
    let mut turn = || {
        let (began, mut bytes) = (Instant::now(), [b'p'; 32]);
        near.write_all(&bytes).unwrap();
        far.read_exact(&mut bytes).unwrap();
        far.write_all(&bytes).unwrap();
        near.read_exact(&mut bytes).unwrap();
        began.elapsed()
    };
    let mut took: Vec<Duration> = (0..WARM_UP + TURNS).map(|_| turn()).skip(WARM_UP).collect();
    took.sort_unstable();
    rig.healthy.go_on();
    (took[TURNS / 2], took[TURNS * 9 / 10])
}

fn stalled_readers(kind: Kind) -> Row {
    let rig = Rig::new(kind, Manner::Flood);
    let anonymous = || process::status_bytes(rig.target.pid(), "RssAnon");
    let before = anonymous();
    let (_, calm) = echoes_of_one(&rig);
    let deaf = rig.clients(40);
    std::thread::sleep(ms(5000));
    let user = anonymous().saturating_sub(before) / 40 / 1024;
    let (near, far) = (rig.target.other.port(), rig.other.address.port());
    let kernel = process::kernel_bytes(&format!("( sport = :{near} or dport = :{far} )"));
    let kernel = kernel as f64 / 40.0 / f64::from(1 << 20);
    let (_, p90) = echoes_of_one(&rig);
    drop(deaf);
    let f = rig.healthy.stop();
    let met = f.harmed == 0 && user <= 64 && kernel <= 1.0 && p90 <= Duration::from_micros(100);
    (format!("{user} KiB / {kernel:.1} MiB / {p90:.1?} ({calm:.1?} before)"), met)
}

fn pending_connects(kind: Kind) -> Row {
    let Some(island) = Island::make() else { return ("skipped".into(), false) };
    let rig = Rig::with(kind, Manner::Echo, [island.near()[0], LOOPBACK], |setup| {
        (setup.ip, setup.by) = (island.proxy(), island.by());
        (setup.other, setup.connect_ms) = (island.black_hole(), 8000);
    });
    let before = process::sockets(rig.target.pid());
    let mut clients = rig.clients(20);
    std::thread::sleep(ms(500));
    let (median, p90) = echoes_of_one(&rig);
    let pending = || process::sockets(rig.target.pid()).saturating_sub(before).div_ceil(2);
    drop(clients.split_off(10));
    std::thread::sleep(ms(500));
    let after_fin = pending().saturating_sub(10);
    clients.into_iter().for_each(reset);
    std::thread::sleep(ms(500));
    let after_reset = pending().saturating_sub(after_fin);
    let f = rig.healthy.stop();
    let met = f.harmed == 0 && p90 <= Duration::from_micros(140) && after_fin + after_reset == 0;
    (format!("{median:.1?} / {p90:.1?}; {after_fin} / {after_reset}"), met)
}

fn idle_mass(kind: Kind) -> Row {
    let rig = Rig::with(kind, Manner::Silent, [LOOPBACK; 2], |setup| setup.sessions_max = 8000);
    let of = |pid| (process::status_bytes(pid, "VmRSS"), process::sockets(pid));
    let (memory, sockets) = of(rig.target.pid());
    let clients = rig.clients(2000);
    until(PATIENCE, || rig.other.open() == 2000);
    std::thread::sleep(ms(2500));
    let now = of(rig.target.pid());
    let bytes = now.0.saturating_sub(memory) / 2000;
    let each = (now.1 - sockets) as f64 / 2000.0;
    drop(clients);
    let harmed = rig.healthy.stop().harmed;
    (format!("{bytes} B / {each:.2}"), harmed == 0 && bytes <= 4096 && each <= 2.0)
}
