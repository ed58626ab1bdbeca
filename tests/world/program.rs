//! The program itself, and others, as processes of their own.

use super::proxy::{Recipe, scratch};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The program under test.
pub const RINGWAY: &str = env!("CARGO_BIN_EXE_ringway");

/// A process that is killed when dropped, and whose stderr goes to a file.
pub struct Process {
    child: Child,
    said: PathBuf,
}

impl Process {
    pub fn start(command: Command) -> Self {
        Self::start_fed(command, Stdio::null())
    }

    /// The same, with this as its standard input.
    pub fn start_fed(command: Command, input: impl Into<Stdio>) -> Self {
        Self::start_between(command, input.into(), None)
    }

    /// The same, whose stderr goes here instead.
    pub fn start_logging_to(command: Command, log: impl Into<Stdio>) -> Self {
        Self::start_between(command, Stdio::null(), Some(log.into()))
    }

    fn start_between(command: Command, input: Stdio, log: Option<Stdio>) -> Self {
        let said = scratch("log");
        let to = std::fs::File::create(&said).unwrap();
        let (out, err) = (to.try_clone().unwrap().into(), log.unwrap_or_else(|| to.into()));
        Self::start_on(command, [input, out, err], said)
    }

    /// The same, with all three; what it is to print goes to a file by its own doing.
    pub fn start_on(mut command: Command, stdio: [Stdio; 3], said: PathBuf) -> Self {
        let [input, out, err] = stdio;
        command.stdin(input).stdout(out).stderr(err);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Self { child, said }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.said).unwrap()).into_owned()
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.id())]).status();
        assert!(sent.unwrap().success(), "SIG{name}");
    }

    /// Ids of the processes it started, with spaces between; none where it has ended.
    pub fn children(&self) -> String {
        let id = self.id();
        std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default()
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub fn wait(&mut self, ms: u64) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                began.elapsed() < Duration::from_millis(ms),
                "still there after {ms} ms; it said:\n{}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until it has printed `text`.
    pub fn until_said(&self, text: &str) {
        super::until(5000, &format!("it says {text:?}"), || self.said().contains(text));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the process said:\n{}", self.said());
        }
        // What it runs itself (a tracer's program, another user's server) would outlive it.
        for id in self.children().split_whitespace() {
            let _ = Command::new("sh").args(["-c", &format!("kill -INT {id}")]).status();
        }
        // A tracer that is killed before it passed the signal on would leave its program running.
        let patience = Instant::now() + Duration::from_secs(2);
        while !self.children().trim().is_empty() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(2));
        }
        for id in self.children().split_whitespace() {
            let _ = Command::new("sh").args(["-c", &format!("kill -KILL {id}")]).status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.said);
    }
}

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs a command to its end, within `ms`.
pub fn run(mut command: Command, ms: u64) -> Ran {
    let (out, err) = (scratch("out"), scratch("err"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(std::fs::File::create(&err).unwrap())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let began = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if began.elapsed() > Duration::from_millis(ms) => break None,
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let text = |file: &PathBuf| {
        let bytes = std::fs::read(file).unwrap();
        std::fs::remove_file(file).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let ran = Ran { code: status.and_then(|s| s.code()), out: text(&out), err: text(&err) };
    assert!(status.is_some(), "{command:?} did not end in {ms} ms: {ran:?}");
    ran
}

/// `ringway` with arguments.
pub fn ringway(arguments: &[&str]) -> Command {
    let mut command = Command::new(RINGWAY);
    command.args(arguments);
    command
}

/// `ringway run` as a process of its own, with an admin endpoint.
pub struct Program {
    pub process: Process,
    /// Where `orders` listens.
    pub at: SocketAddr,
    pub admin: SocketAddr,
    pub file: PathBuf,
}

impl Program {
    /// Starts it, and waits until it is ready. Ports are chosen here.
    pub fn start(recipe: Recipe) -> Self {
        let (program, _) = Self::start_with(recipe, ringway(&[]));
        program
    }

    /// The same behind another command, such as a tracer.
    pub fn start_with(recipe: Recipe, mut command: Command) -> (Self, Recipe) {
        let (at, admin) = (super::net::free_address(), super::net::free_address());
        let mut recipe = recipe.more(&format!("[admin]\nbind = \"{admin}\""));
        recipe.bind = at;
        let file = scratch("toml");
        std::fs::write(&file, recipe.text()).unwrap();
        command.args(["run", "--config"]).arg(&file);
        let program = Self { process: Process::start(command), at, admin, file };
        super::until(10_000, "it is ready", || program.get("/readyz").0 == 200);
        (program, recipe)
    }

    /// Status (0: no answer) and body of a GET.
    pub fn get(&self, path: &str) -> (u16, String) {
        get(self.admin, path).unwrap_or_default()
    }

    /// The sum of a metric over the rows whose labels contain `label`.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200);
        sum_of(&numbers(&text), name, label)
    }

    /// A file of /proc/PID.
    pub fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.process.id()))
    }

    /// Id and name of each thread.
    pub fn threads(&self) -> Vec<(u32, String)> {
        let tasks = std::fs::read_dir(self.proc("task")).unwrap().map(|task| task.unwrap().path());
        let named = |task: PathBuf| {
            let id = task.file_name()?.to_str()?.parse().ok()?;
            Some((id, std::fs::read_to_string(task.join("comm")).ok()?.trim().to_owned()))
        };
        tasks.filter_map(named).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Status and body of a GET, where there is an answer.
pub fn get(admin: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(admin).ok()?;
    stream.set_read_timeout(Some(super::net::PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: ringway\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Every number of the metrics, by series.
pub fn numbers(text: &str) -> Vec<(String, f64)> {
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    let rows = rows.filter_map(|line| line.rsplit_once(' '));
    rows.map(|(series, n)| (series.to_owned(), n.parse().unwrap())).collect()
}

/// The sum of a metric over the series whose labels contain `label`.
pub fn sum_of(numbers: &[(String, f64)], name: &str, label: &str) -> f64 {
    let own = numbers.iter().filter(|(series, _)| series.split('{').next() == Some(name));
    own.filter(|(series, _)| series.contains(label)).map(|(_, n)| n).sum()
}

/// Resident memory of a process, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Descriptors a process has open.
pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}
