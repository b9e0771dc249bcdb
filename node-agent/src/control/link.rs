//! The agent's end of one control connection, as session tasks hold it.

use std::sync::Arc;

use iap_identity::ConnectionId;
use iap_runtime::net::Route;
use iap_tunnel::ControlMessage;
use tokio::sync::mpsc;

use super::data::Ways;
use crate::session::Through;

/// Messages that wait to be written; a peer that reads slower than this is as good as gone.
pub(super) const OUTBOX_MESSAGES_MAX: usize = 1024;

/// Where a dial-back goes, and where its verdict does.
#[derive(Debug, Clone)]
pub struct Link {
    /// Whose word the client's address is.
    pub through: Through,
    /// The way the control connection itself took: to the same proxy, also behind a balancer's name.
    pub route: Route,
    ways: Arc<Ways>,
    outbox: mpsc::Sender<ControlMessage>,
}

impl Link {
    /// A link whose messages come out of the receiver.
    #[must_use]
    pub fn new(through: Through, route: Route, ways: Arc<Ways>) -> (Self, mpsc::Receiver<ControlMessage>) {
        let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES_MAX);
        (
            Self {
                through,
                route,
                ways,
                outbox,
            },
            messages,
        )
    }

    /// What sessions can run over.
    #[must_use]
    pub fn ways(&self) -> &Ways {
        &self.ways
    }

    /// Tells the proxy whether the client of a connection proved who it is.
    pub fn verdict(&self, connection_id: ConnectionId, authenticated: bool) {
        let _ = self.send(ControlMessage::Verdict {
            connection_id,
            authenticated,
        });
    }

    /// Tells the proxy that the client of a connection loses nothing when that ends.
    pub fn resumable(&self, connection_id: ConnectionId) {
        let _ = self.send(ControlMessage::Resumable { connection_id });
    }

    /// Tells the proxy that nobody will dial back.
    pub fn refuse(&self, connection_id: ConnectionId, reason: &str) {
        let _ = self.send(ControlMessage::OpenRefused {
            connection_id,
            reason: reason.to_owned(),
        });
    }

    /// Queues a message; `false` when the connection has gone or does not keep up.
    pub(super) fn send(&self, message: ControlMessage) -> bool {
        self.outbox.try_send(message).is_ok()
    }
}
