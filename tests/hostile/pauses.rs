//! Pauses of the proxy and of a backend, and the proxy's own end.

use super::backend::Manner;
use super::healthy::Healthy;
use super::process;
use super::stage::{LOOPBACK, SESSION_BYTES, Scale, Stage, client, echoes, reset};
use super::target::Kind;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

super::stage::cases!(frozen_proxy, frozen_backend, graceful_stop);

/// Nothing is dropped, and no deadline comes due because of the pause.
fn frozen_proxy(kind: Kind, scale: Scale) {
    let name = "frozen_proxy";
    let pause = Duration::from_millis(scale.of(1500, 2000));
    let idle_ms = 400;
    let stage = Stage::with(name, kind, Manner::Echo, [LOOPBACK; 2], |setup| {
        setup.lines = format!("[listeners.other.timeouts]\nidle_ms = {idle_ms}\n");
    });
    let mut quiet = client(stage.target.other, PATIENCE).unwrap();
    let mut byte = [0];
    quiet.write_all(b"?").unwrap();
    quiet.read_exact(&mut byte).unwrap();
    process::signal(stage.target.pid(), "STOP");
    std::thread::sleep(pause);
    process::signal(stage.target.pid(), "CONT");
    // Its idle time is not over: the pause does not count.
    std::thread::sleep(Duration::from_millis(100));
    quiet.write_all(b"!").unwrap();
    quiet.read_exact(&mut byte).expect("a quiet session outlives the pause");
    drop(quiet);
    let freezes = stage.target.metric("ringway_freezes_total", "");
    assert!(freezes > 0, "the pause is counted");
    let over = stage.healthy.gap().saturating_sub(pause);
    stage.finish(1, SESSION_BYTES, &format!("{freezes} freeze counted, back {over:.1?} after"));
}

/// A backend that does nothing for a while: its sessions wait, and go on.
fn frozen_backend(kind: Kind, scale: Scale) {
    let stage = Stage::new("frozen_backend", kind, Manner::Echo);
    let pause = Duration::from_millis(scale.of(500, 2000));
    let concerned = Healthy::start(stage.target.other, 50);
    stage.other.freeze(pause);
    std::thread::sleep(pause + Duration::from_millis(300));
    let gap = concerned.gap();
    let figures = concerned.stop();
    let note =
        format!("its {} sessions: harmed {}, gap {gap:.1?}", figures.sessions, figures.harmed);
    assert_eq!((figures.harmed, figures.lost), (0, 0), "{note}");
    stage.finish(50, 50 * 2 * SESSION_BYTES, &note);
}

/// SIGTERM under load: not ready at once, clients served through the grace, sessions left alone until the deadline.
fn graceful_stop(kind: Kind, scale: Scale) {
    let (grace, drain): (u64, u64) = scale.of((400, 800), (1000, 2000));
    let mut stage = Stage::with("graceful_stop", kind, Manner::Echo, [LOOPBACK; 2], |setup| {
        setup.lines = format!("[stop]\ngrace_ms = {grace}\ndrain_ms = {drain}\n");
    });
    let mut stuck = client(stage.target.other, PATIENCE).unwrap();
    let began = Instant::now();
    process::signal(stage.target.pid(), "TERM");
    std::thread::sleep(Duration::from_millis(50));
    let answer = stage.target.ask("GET", "/readyz", "").unwrap_or_default();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let mut served = 0;
    while began.elapsed() < Duration::from_millis(grace - 100) {
        assert!(echoes(stage.target.orders, PATIENCE), "clients are served through the grace");
        served += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    // Around the end of the grace, a client is either served or turned away by the kernel: never taken and reset.
    let mut refused = 0;
    let mut broken = 0;
    while began.elapsed() < Duration::from_millis(grace + 200) {
        let Ok(mut stream) = client(stage.target.orders, PATIENCE) else {
            refused += 1;
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        let mut byte = [0];
        let exchange = stream.write_all(b"?").and_then(|()| stream.read_exact(&mut byte));
        broken += usize::from(exchange.is_err());
        served += usize::from(exchange.is_ok());
    }
    std::thread::sleep(Duration::from_millis(drain / 4));
    let figures = stage.healthy.stop();
    stuck.write_all(b"?").unwrap();
    stuck.read_exact(&mut [0]).expect("a session is left alone until the deadline");
    let code = stage.target.await_exit(PATIENCE);
    let took = began.elapsed().as_millis() as i64 - (grace + drain) as i64;
    reset(stuck);
    println!(
        "{:<22} {:<5} offered {:>6}  harmed {}  lost {} B  served in the grace {served}, refused {refused}, accepted \
         and then cut {broken}; exit {code:?}, {took:+} ms from the deadline",
        stage.name,
        kind.label(),
        figures.sessions,
        figures.harmed,
        figures.lost
    );
    let log = stage.target.log();
    assert_eq!((figures.harmed, figures.lost, code), (0, 0, Some(0)), "{log}");
    assert!((-50..scale.of(700, 100)).contains(&took), "{took:+} ms from the deadline\n{log}");
    assert_eq!(broken, 0, "clients that were accepted are not cut");
    assert!(refused > 0, "the listener closes at the end of the grace");
}
