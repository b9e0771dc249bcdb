//! Being asked to end: Ctrl-C, SIGTERM, and SIGHUP when the terminal goes.

/// The wish of others that this program ends, heard from the moment it is made: before anybody is told that there is
/// something to end.
pub(super) struct Interruption {
    #[cfg(unix)]
    signals: [tokio::signal::unix::Signal; 3],
}

#[cfg(unix)]
impl Interruption {
    pub(super) fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            signals: [
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            ],
        })
    }

    pub(super) async fn wait(mut self) {
        let [interrupt, terminate, hang_up] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Interruption {
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {})
    }

    pub(super) async fn wait(self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
