//! A whole Ringway in this process: control, the admin endpoint and the session log, started and ended together.

#![forbid(unsafe_code)]

use crate::admin;
use crate::admin::log::SessionLog;
use crate::config::Config;
use crate::control::board::Board;
use crate::control::handover::take::Legacy;
use crate::control::order::Orders;
use crate::control::{Control, Outcome, StartError, Windows, open_admin, prepare};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

/// A Ringway in this process.
pub struct Running {
    control: Control,
    admin: Option<SocketAddr>,
    sessions: SessionLog,
}

/// The admin endpoint, which control closes before another process opens its own on the same socket.
struct Window {
    socket: TcpListener,
    token: Option<Arc<str>>,
    board: Arc<Board>,
    orders: Orders,
    running: Option<admin::Running>,
}

impl Window {
    fn try_open(&mut self) -> std::io::Result<()> {
        let (token, board) = (self.token.clone(), Arc::clone(&self.board));
        self.running =
            Some(admin::start(self.socket.try_clone()?, token, board, self.orders.clone())?);
        Ok(())
    }
}

impl Windows for Window {
    fn open(&mut self) {
        if let Err(error) = self.try_open() {
            tracing::error!(%error, "the admin endpoint could not be opened again");
        }
    }

    fn close(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }

    fn socket(&self) -> Option<&TcpListener> {
        Some(&self.socket)
    }
}

impl Running {
    /// Starts it. `file`: what a reload reads again.
    ///
    /// # Errors
    /// Something that is needed could not be had, such as a port; nothing is left behind.
    pub fn start(config: Config, file: Option<PathBuf>) -> Result<Self, StartError> {
        Self::start_with(config, file, Legacy::default())
    }

    /// The same with what this process got from before it began. A process before it is told where this fails.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(
        config: Config,
        file: Option<PathBuf>,
        mut legacy: Legacy,
    ) -> Result<Self, StartError> {
        match Self::begin(config, file, &mut legacy) {
            Ok((mut running, window)) => {
                // The windows are opened when what was counted before is known.
                running.control.follow(legacy)?;
                if let Some(mut window) = window {
                    window.try_open().map_err(system("the admin endpoint could not start"))?;
                    let address = window.socket.local_addr().map_err(system("admin.bind"))?;
                    tracing::info!(%address, "admin endpoint");
                    running.admin = Some(address);
                    running.control.show(Box::new(window));
                }
                Ok(running)
            }
            Err(e) => {
                legacy.refuse(&e.to_string());
                Err(e)
            }
        }
    }

    fn begin(
        config: Config,
        file: Option<PathBuf>,
        legacy: &mut Legacy,
    ) -> Result<(Self, Option<Window>), StartError> {
        let wanted = config.admin.clone();
        let prepared = prepare(config, legacy)?;
        legacy.take_sockets(&prepared).map_err(|why| StartError::HandOver(why.to_string()))?;
        // The admin endpoint is bound first: a port in use is found before any client is let in.
        let bound = match wanted {
            None => None,
            Some(wanted) => {
                let inherited = legacy.admin().map(Ok);
                let socket = inherited.unwrap_or_else(|| open_admin(wanted.bind));
                Some((socket.map_err(StartError::Port)?, wanted.token))
            }
        };
        let (control, ended) = Control::start(prepared, file, legacy)?;
        let sessions = SessionLog::start(ended, Arc::clone(control.board()))
            .map_err(system("the session log could not start"))?;
        let window = bound.map(|(socket, token)| {
            let (board, orders) = (Arc::clone(control.board()), control.orders());
            Window { socket, token, board, orders, running: None }
        });
        Ok((Self { control, admin: None, sessions }, window))
    }

    /// What everybody may look at.
    #[must_use]
    pub const fn board(&self) -> &Arc<Board> {
        self.control.board()
    }

    /// Gives orders.
    #[must_use]
    pub fn orders(&self) -> Orders {
        self.control.orders()
    }

    /// Where a listener was bound at the start, for one whose config says port 0.
    #[must_use]
    pub fn listener_address(&self, name: &str) -> Option<SocketAddr> {
        self.control.listener_address(name)
    }

    /// Where the admin endpoint listens.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Begins the graceful stop; the second time it ends everything at once.
    pub fn stop(&self) {
        (self.control.stopper())(None);
    }

    /// What [`stop`](Self::stop) does, for another thread; it takes the id of the process that asks, where one does.
    pub fn stopper(&self) -> impl Fn(Option<u32>) + Send + use<> {
        self.control.stopper()
    }

    /// Waits until it has stopped.
    #[must_use]
    pub fn wait(self) -> Outcome {
        // Control has the windows, and closes them last, so that the drain can be watched.
        let outcome = self.control.wait();
        // Where that failed, shards may still run, and would be waited for in vain.
        if outcome != Outcome::Failed {
            self.sessions.join();
        }
        outcome
    }
}

fn system(what: &str) -> impl FnOnce(std::io::Error) -> StartError {
    let what = what.to_owned();
    move |e| StartError::System(what, e)
}
