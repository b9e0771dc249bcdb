//! One shutdown signal for a whole program, the drain that follows it, and reload requests.

use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The reason of a shutdown by SIGINT.
pub const INTERRUPTED: &str = "SIGINT";

/// Tells every part of a program to stop, and waits for those that have work to finish.
///
/// Clones share the signal. Stopping is final: it happens at most once, and the first reason is kept.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
    reason: Arc<OnceLock<String>>,
}

/// What a drain left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every tracked task has ended.
    Complete,
    /// The deadline passed with this many tasks still running.
    Abandoned {
        /// Tasks that had not ended.
        tasks: usize,
    },
}

impl Shutdown {
    /// A shutdown nobody has asked for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A shutdown that SIGTERM or SIGINT triggers.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let signals = signals::Termination::listen()?;
        let triggered = shutdown.clone();
        tokio::spawn(async move {
            let name = signals.received().await;
            triggered.trigger(name);
        });
        Ok(shutdown)
    }

    /// Asks everything to stop.
    pub fn trigger(&self, reason: &str) {
        if self.reason.set(reason.to_owned()).is_ok() {
            tracing::info!(reason, "shutting down");
        }
        self.token.cancel();
    }

    /// Why everything was asked to stop, once it was.
    pub fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Whether stopping has been asked for.
    pub fn is_triggered(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Returns as soon as stopping has been asked for.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// The signal as a token, for code that takes one.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts a task that [`Shutdown::drain`] waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Waits until every tracked task has ended or `deadline` has passed. Triggers the shutdown if nobody has.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.trigger("drain");
        self.tasks.close();
        match tokio::time::timeout(deadline, self.tasks.wait()).await {
            Ok(()) => Drained::Complete,
            Err(_) => Drained::Abandoned {
                tasks: self.tasks.len(),
            },
        }
    }
}

pub use signals::Hangups;

#[cfg(unix)]
mod signals {
    use std::io;

    use tokio::signal::unix::{Signal, SignalKind, signal};

    pub(super) struct Termination {
        terminate: Signal,
        interrupt: Signal,
    }

    impl Termination {
        pub(super) fn listen() -> io::Result<Self> {
            Ok(Self {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            })
        }

        pub(super) async fn received(mut self) -> &'static str {
            tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => super::INTERRUPTED,
            }
        }
    }

    /// Requests to read configuration and certificates again (SIGHUP).
    #[derive(Debug)]
    pub struct Hangups(Signal);

    impl Hangups {
        /// Starts listening; from now on SIGHUP no longer ends the process.
        pub fn listen() -> io::Result<Self> {
            Ok(Self(signal(SignalKind::hangup())?))
        }

        /// The next request.
        pub async fn received(&mut self) {
            if self.0.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(not(unix))]
mod signals {
    use std::io;

    pub(super) struct Termination;

    impl Termination {
        pub(super) fn listen() -> io::Result<Self> {
            Ok(Self)
        }

        pub(super) async fn received(self) -> &'static str {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
            "Ctrl-C"
        }
    }

    /// Requests to read configuration again; this system has no such signal.
    #[derive(Debug)]
    pub struct Hangups;

    impl Hangups {
        /// Never reports anything here.
        pub fn listen() -> io::Result<Self> {
            Ok(Self)
        }

        /// Never returns here.
        pub async fn received(&mut self) {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn the_first_reason_is_kept_and_every_clone_sees_the_signal() {
        let shutdown = Shutdown::new();
        let clone = shutdown.clone();
        shutdown.trigger("first");
        shutdown.trigger("second");
        clone.cancelled().await;
        assert_eq!(clone.reason(), Some("first"));
    }

    #[tokio::test]
    async fn drain_waits_for_tasks_that_end() {
        let shutdown = Shutdown::new();
        let signal = shutdown.clone();
        shutdown.spawn(async move { signal.cancelled().await });
        assert_eq!(shutdown.drain(Duration::from_secs(30)).await, Drained::Complete);
    }

    #[tokio::test]
    async fn drain_reports_tasks_that_do_not_end() {
        let shutdown = Shutdown::new();
        shutdown.spawn(std::future::pending::<()>());
        assert_eq!(
            shutdown.drain(Duration::from_millis(1)).await,
            Drained::Abandoned { tasks: 1 }
        );
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn sighup_is_a_reload_request() {
        let mut hangups = Hangups::listen().unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
        hangups.received().await;
    }
}
