//! Records of what happens within a session.

use futures_util::future::join_all;
use iap_audit::Event;
use iap_proto::AuditMode;
use iap_runtime::spool::{Room, SpoolError};

use super::{Journal, JournalError, RETRY_EVERY, START_TIMEOUT};

impl Journal {
    /// Records something that must be durable before it has an effect, in a session that must not be without its records.
    ///
    /// # Errors
    /// When it must not have one.
    pub(crate) async fn before_effect(&self, event: Event, mode: AuditMode) -> Result<(), JournalError> {
        let appended = tokio::time::timeout(START_TIMEOUT, self.append(event, Room::Free)).await;
        match (appended, mode) {
            (Ok(Ok(_)), _) => Ok(()),
            (_, AuditMode::BestEffort) => {
                self.gap();
                Ok(())
            }
            (Ok(Err(error)), AuditMode::Required | AuditMode::Remote) => Err(error.into()),
            (Err(_elapsed), AuditMode::Required | AuditMode::Remote) => Err(JournalError::Hangs),
        }
    }

    /// Records something that must be durable before it has an effect, and for a service with `audit = "remote"` also at
    /// the auth server.
    ///
    /// # Errors
    /// When it must not have one.
    pub(crate) async fn before_showing(&self, event: Event, mode: AuditMode) -> Result<(), JournalError> {
        match mode {
            AuditMode::Required | AuditMode::BestEffort => self.before_effect(event, mode).await,
            AuditMode::Remote => {
                let appending = tokio::time::timeout(START_TIMEOUT, self.append(event, Room::Free));
                let receipt = appending.await.map_err(|_elapsed| JournalError::Hangs)??;
                self.acknowledges_in_time(receipt.seq).await
            }
        }
    }

    /// Records these in their order, in one go; returns once they are durable. Where they are required, tries again what finds
    /// no room, until that is found or `over` says that nobody waits any more; what remains becomes part of a gap.
    pub(crate) async fn write_all(&self, events: Vec<Event>, required: bool, over: impl Fn() -> bool) {
        let mut waiting = events;
        loop {
            let written = join_all(waiting.iter().map(|event| self.append(event.clone(), Room::Free))).await;
            let (mut refused, mut last) = (Vec::new(), None);
            for (event, written) in waiting.into_iter().zip(written) {
                match written {
                    Ok(_) => {}
                    Err(error @ SpoolError::Unrecordable(_)) => self.lost(&error),
                    Err(error) => {
                        refused.push(event);
                        last = Some(error);
                    }
                }
            }
            let Some(error) = last else { return };
            if !required || over() || matches!(error, SpoolError::Stopped) {
                refused.iter().for_each(|_| self.lost(&error));
                return;
            }
            waiting = refused;
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }
}
