//! What can go wrong with a spool.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use iap_audit::{LinkError, RecordError, SourceId};

use crate::files::FileError;

/// Why a record was not written or read. Waiters of one group get the same error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpoolError {
    /// No room for this record, by the limits or on the disk. Comes right when records are acknowledged.
    #[error("the audit spool is full")]
    Full,
    /// The event cannot be a record: a fault of the program that made it.
    #[error("the event cannot be recorded: {0}")]
    Unrecordable(String),
    /// The disk failed.
    #[error("the audit spool's disk failed: {0}")]
    Disk(Arc<io::Error>),
    /// A file could not be used.
    #[error(transparent)]
    File(Arc<FileError>),
    /// The writing thread has ended.
    #[error("the audit spool has stopped")]
    Stopped,
}

impl SpoolError {
    pub(super) fn disk(error: io::Error) -> Self {
        if is_full(&error) {
            Self::Full
        } else {
            Self::Disk(Arc::new(error))
        }
    }

    pub(super) fn file(error: FileError) -> Self {
        match error {
            FileError::Io { source, .. } if is_full(&source) => Self::Full,
            other => Self::File(Arc::new(other)),
        }
    }
}

/// Why a spool could not be opened. All of these need an operator.
#[derive(Debug, thiserror::Error)]
pub enum SpoolOpenError {
    /// A file is missing, unreadable or too loose.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process writes here.
    #[error("{path} is in use by another process", path = .path.display())]
    InUse {
        /// The spool.
        path: PathBuf,
    },
    /// A file that is not the last one is damaged: records are lost, which no crash explains.
    #[error("{path} is damaged: {torn_bytes} bytes behind record {last_seq} are not records", path = .path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// The last record that can be read.
        last_seq: u64,
        /// Bytes behind it.
        torn_bytes: usize,
    },
    /// A record cannot be understood.
    #[error("{path} holds something that is not a record: {source}", path = .path.display())]
    Record {
        /// The segment.
        path: PathBuf,
        /// What is wrong.
        source: RecordError,
    },
    /// The records are not one chain.
    #[error("the records in {path} are not one chain: {source}", path = .path.display())]
    Chain {
        /// The segment.
        path: PathBuf,
        /// What is wrong.
        source: LinkError,
    },
    /// The records belong to another source.
    #[error("{path} holds the records of {found}, not of {expected}", path = .path.display())]
    OtherSource {
        /// The spool.
        path: PathBuf,
        /// Whose records were expected.
        expected: SourceId,
        /// Whose they are.
        found: SourceId,
    },
    /// The acknowledged position cannot be read.
    #[error("{path} is not a position: it should hold a number and a hash", path = .path.display())]
    Position {
        /// The file.
        path: PathBuf,
    },
    /// The system gave no thread.
    #[error("cannot start the spool's thread: {0}")]
    Thread(io::Error),
}

/// A quota is a disk that is full for us.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
