//! A whole Ringway in this process: control, the admin endpoint and the session log, started and ended together.

#![forbid(unsafe_code)]

use crate::admin;
use crate::admin::log::SessionLog;
use crate::config::Config;
use crate::control::board::Board;
use crate::control::order::Orders;
use crate::control::{Control, Outcome, StartError, open_admin};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// A Ringway in this process.
pub struct Running {
    control: Control,
    admin: Option<(admin::Running, SocketAddr)>,
    sessions: SessionLog,
}

impl Running {
    /// Starts it. `file`: what a reload reads again.
    ///
    /// # Errors
    /// Something that is needed could not be had, such as a port; nothing is left behind.
    pub fn start(config: Config, file: Option<PathBuf>) -> Result<Self, StartError> {
        let system = |what: &str| {
            let what = what.to_owned();
            move |e| StartError::System(what, e)
        };
        // The admin endpoint is bound first: a port in use is found before any client is let in.
        let bound = match &config.admin {
            None => None,
            Some(wanted) => {
                let listener = open_admin(wanted.bind).map_err(StartError::Port)?;
                Some((listener, wanted.token.clone()))
            }
        };
        let (control, ended) = Control::start(config, file)?;
        let sessions = SessionLog::start(ended, Arc::clone(control.board()))
            .map_err(system("the session log could not start"))?;
        let admin = match bound {
            None => None,
            Some((listener, token)) => {
                let address = listener.local_addr().map_err(system("admin.bind"))?;
                let board = Arc::clone(control.board());
                let running = admin::start(listener, token, board, control.orders())
                    .map_err(system("the admin endpoint could not start"))?;
                tracing::info!(%address, "admin endpoint");
                Some((running, address))
            }
        };
        Ok(Self { control, admin, sessions })
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
        self.admin.as_ref().map(|(_, address)| *address)
    }

    /// Begins the graceful stop; the second time it ends everything at once.
    pub fn stop(&self) {
        (self.control.stopper())();
    }

    /// What [`stop`](Self::stop) does, for another thread.
    pub fn stopper(&self) -> impl Fn() + Send + use<> {
        self.control.stopper()
    }

    /// Waits until it has stopped.
    #[must_use]
    pub fn wait(self) -> Outcome {
        let outcome = self.control.wait();
        // The windows stay open to the last, so that the drain can be watched.
        if let Some((admin, _)) = self.admin {
            admin.stop();
        }
        self.sessions.join();
        outcome
    }
}
