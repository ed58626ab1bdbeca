//! Nobody reads the log, or it cannot be written: that costs lines, and nothing else.

use crate::world::net::{
    Backend, End, Live, connect, connect_to_its_end, echo, free_address, read_all,
};
use crate::world::program::{Process, numbers, ringway, sum_of};
use crate::world::proxy::{Recipe, scratch};
use crate::world::{assert_took, pause, until};
use ringway::config::{DataPath, limits};
use std::io::{PipeWriter, Read, Write, pipe};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const TOKEN: &str = "a-token-of-this-test";
const DRAIN_MS: u64 = 400;

/// A Ringway whose log goes to a pipe, with a listener `gone` whose one backend refuses.
struct Scene {
    process: Process,
    at: SocketAddr,
    gone: SocketAddr,
    admin: SocketAddr,
    file: PathBuf,
    text: String,
    _backend: Backend,
}

impl Scene {
    fn start(log: PipeWriter) -> Self {
        let backend = Backend::echo();
        let [at, gone, admin, nobody] = [(); 4].map(|()| free_address());
        let mut recipe = Recipe::new(DataPath::Epoll, &[backend.at]).more(&format!(
            "[listeners.gone]\nbind = \"{gone}\"\nstable = \"gone\"\n[pools.gone]\nbackends = [\"{nobody}\"]\n\
             [admin]\nbind = \"{admin}\"\ntoken = \"{TOKEN}\"\n[stop]\ndrain_ms = {DRAIN_MS}"
        ));
        recipe.bind = at;
        let (file, text) = (scratch("toml"), recipe.text());
        std::fs::write(&file, &text).unwrap();
        let mut command = ringway(&["run", "--config"]);
        command.arg(&file);
        let process = Process::start_logging_to(command, log);
        let scene = Self { process, at, gone, admin, file, text, _backend: backend };
        until(10_000, "it is ready", || scene.ask("GET", "/readyz", TOKEN).0 == 200);
        scene
    }

    /// Status (0: no answer in time) and body.
    fn ask(&self, method: &str, path: &str, token: &str) -> (u16, String) {
        self.try_ask(method, path, token).unwrap_or_default()
    }

    fn try_ask(&self, method: &str, path: &str, token: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close", self.admin);
        let request = format!("{head}\r\nAuthorization: Bearer {token}\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    fn metric(&self, name: &str, label: &str) -> f64 {
        let (status, text) = self.ask("GET", "/metrics", TOKEN);
        assert_eq!(status, 200);
        sum_of(&numbers(&text), name, label)
    }

    /// Whatever has a line.
    fn do_all(&self) {
        let began = Instant::now();
        let reloads = || self.metric("ringway_reloads_total", "applied");
        let before = reloads();
        assert_eq!(self.ask("GET", "/metrics", "another token").0, 401);
        assert_eq!(self.ask("POST", "/api/v1/reload", TOKEN).0, 200);
        assert!(connect_to_its_end(self.gone).0.is_empty());
        self.process.signal("USR1");
        self.process.signal("HUP");
        until(3000, "it reloads again", || reloads() == before + 2.0);
        assert_eq!(self.ask("GET", "/readyz", TOKEN).0, 200);
        assert_took(began, 0, 4000);
    }

    /// More lines than may wait.
    fn flood(&self) {
        let faults = limits::LOG_LINES_MAX / 2;
        let keys = (0..faults).fold(String::new(), |all, at| all + &format!("unknown_{at} = 1\n"));
        std::fs::write(&self.file, keys + &self.text).unwrap();
        for _ in 0..3 {
            assert_eq!(self.ask("POST", "/api/v1/reload", TOKEN).0, 400);
        }
        std::fs::write(&self.file, &self.text).unwrap();
    }

    /// Stops it with a session open, which is drained. `more_ms`: what the end may take beyond that.
    fn stop(mut self, more_ms: u64) {
        let client = connect(self.at);
        echo(&client, b"to the end");
        let began = Instant::now();
        self.process.signal("TERM");
        until(300, "it is not ready", || self.ask("GET", "/readyz", TOKEN).0 == 503);
        echo(&client, b"it drains");
        assert_eq!(read_all(&client), (vec![], End::Eof));
        assert_took(began, DRAIN_MS - 10, DRAIN_MS + 500);
        assert_eq!(self.process.wait(3000).code(), Some(0));
        assert_took(began, DRAIN_MS - 10, DRAIN_MS + more_ms);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

#[test]
fn a_log_that_cannot_be_written_harms_nobody() {
    let (reader, log) = pipe().unwrap();
    let scene = Scene::start(log);
    drop(reader);
    let live = Live::start(scene.at, 5, 5);
    scene.do_all();
    let lost = |why| scene.metric("ringway_log_dropped_total", why);
    until(1000, "lines are counted", || lost("failed") >= 5.0);
    assert_eq!(lost("full"), 0.0);
    scene.do_all();
    assert!(live.stop() > 10);
    scene.stop(700);
}

#[test]
fn a_log_that_nobody_reads_harms_nobody() {
    let (mut reader, log) = pipe().unwrap();
    let mut filling = log.try_clone().unwrap();
    let scene = Scene::start(log);
    // Blocks when the pipe is full, until it is read or nobody can read it any more.
    let filler = std::thread::spawn(move || filling.write_all(&[b'.'; 1 << 20]).is_ok());
    pause(200);
    let live = Live::start(scene.at, 5, 5);
    scene.do_all();
    let lost = |why| scene.metric("ringway_log_dropped_total", why);
    assert_eq!((lost("full"), lost("failed")), (0.0, 0.0), "they wait");
    scene.flood();
    scene.do_all();
    let full = lost("full");
    assert!((full > 0.0, lost("failed")) == (true, 0.0), "{full}");
    assert!(live.stop() > 10);
    scene.stop(limits::LOG_LAST_MS_MAX + 700);
    assert!(!filler.is_finished(), "nobody has read");
    std::thread::spawn(move || reader.read_to_end(&mut Vec::new()));
    assert!(filler.join().unwrap());
}

#[test]
fn who_reads_again_is_told_how_many_lines_were_lost() {
    let (mut reader, log) = pipe().unwrap();
    let scene = Scene::start(log);
    (0..2).for_each(|_| scene.flood());
    let lost = || scene.metric("ringway_log_dropped_total", "full");
    assert!(lost() > 0.0);
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    pause(300);
    let (lost, asked) = (lost(), Instant::now());
    scene.do_all();
    assert_took(asked, 0, 4000);
    scene.stop(700);
    let text = reading.join().unwrap().unwrap();
    let told: Vec<&str> = text.lines().filter(|line| line.contains("were lost here")).collect();
    let said = |line: &&str| line.split("lines=").nth(1).unwrap().parse::<f64>().unwrap();
    assert_eq!(told.iter().map(said).sum::<f64>(), lost, "{told:?}");
    let last = text.lines().last().unwrap();
    assert!(text.contains("Ringway starts") && last.contains("session ended"), "{last}");
}
