//! What a PostgreSQL client says first, and whether it may say that here.

use std::io;
use std::time::Duration;

use iap_audit::CloseReason;
use iap_identity::LoginName;
use iap_policy::Feature;
use iap_postgres::{Startup, StartupError, StartupReader, StartupSaid};
use iap_tunnel::fatal::SQLSTATE_DENIED;
use iap_tunnel::{CancelRequest, Fatal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::decide::Permit;
use crate::session::Target;

/// A first message is read in pieces of this size.
const PIECE_BYTES: usize = 1024;

/// A client's first word.
#[derive(Debug)]
pub(crate) enum FirstWord {
    /// It wants a session.
    Startup(Box<Startup>),
    /// It wants another session's statement to end.
    Cancel(CancelRequest),
}

/// Why a client has no first word.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirstWordError {
    /// Not within the time allowed.
    #[error("the client did not send its startup message in time")]
    TimedOut,
    /// Not PostgreSQL's protocol.
    #[error(transparent)]
    Startup(#[from] StartupError),
    /// Bytes behind the message; a client waits for its answer.
    #[error("bytes were sent behind the startup message before it was answered")]
    StuffedBytes,
    /// The connection broke.
    #[error("the connection broke before the startup message: {0}")]
    Broken(#[from] io::Error),
}

/// PostgreSQL's `protocol_violation`.
const SQLSTATE_MALFORMED: &str = "08P01";
/// PostgreSQL's `feature_not_supported`.
const SQLSTATE_VERSION: &str = "0A000";

impl FirstWordError {
    /// What a client reads that speaks PostgreSQL's protocol, if not well; another understands none of it.
    pub(crate) fn fatal(&self) -> Option<Fatal> {
        let sqlstate = match self {
            Self::Startup(StartupError::Version) => SQLSTATE_VERSION,
            Self::Startup(StartupError::Parameters | StartupError::StuffedBytes) | Self::StuffedBytes => {
                SQLSTATE_MALFORMED
            }
            Self::Startup(StartupError::NotPostgres) | Self::TimedOut | Self::Broken(_) => return None,
        };
        Some(Fatal {
            sqlstate,
            message: self.to_string(),
            detail: None,
            hint: None,
        })
    }

    /// Why the session ends that a client was let in to.
    pub(super) fn close_reason(&self) -> CloseReason {
        match self {
            Self::Startup(_) | Self::StuffedBytes => CloseReason::Protocol,
            Self::TimedOut | Self::Broken(_) => CloseReason::ClientLost,
        }
    }
}

/// Reads it within `patience`.
pub(crate) async fn first_word<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    patience: Duration,
) -> Result<FirstWord, FirstWordError> {
    match tokio::time::timeout(patience, read(stream)).await {
        Ok(read) => read,
        Err(_elapsed) => Err(FirstWordError::TimedOut),
    }
}

async fn read<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<FirstWord, FirstWordError> {
    let mut reader = StartupReader::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = stream.read(&mut piece).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match reader.push(piece.get(..count).unwrap_or_default())? {
            StartupSaid::NeedMore => {}
            StartupSaid::RefuseEncryption => {
                stream.write_all(b"N").await?;
                stream.flush().await?;
            }
            StartupSaid::Started(startup, behind) if behind.is_empty() => {
                return Ok(FirstWord::Startup(Box::new(startup)));
            }
            StartupSaid::Started(..) => return Err(FirstWordError::StuffedBytes),
            StartupSaid::Cancel { process_id, key } => {
                return Ok(FirstWord::Cancel(CancelRequest { process_id, key }));
            }
        }
    }
}

/// The login and database that a startup message names.
///
/// # Errors
/// What the client is told of names that cannot be any.
pub(crate) fn target(startup: &Startup) -> Result<Target, String> {
    let login = LoginName::parse(&startup.user).map_err(|error| error.to_string())?;
    let database = LoginName::parse(&startup.database)
        .map_err(|error| format!("the database's name is like a {error}"))?;
    Ok(Target {
        login,
        database: database.as_str().to_owned(),
    })
}

/// Whether the client may ask for that much.
///
/// # Errors
/// What the client is told instead.
pub(super) fn check(startup: &Startup, permit: &Permit) -> Result<(), Fatal> {
    if startup.wants_replication() && !permit.has(Feature::PostgresReplication) {
        let hint = "A rule's features = [\"postgres.replication\"] allows it, unless the agent's own file says otherwise.";
        return Err(refused("replication is not allowed for this service", hint));
    }
    let options = startup.parameter("options").unwrap_or_default();
    if !options.trim().is_empty() && !permit.has(Feature::PostgresOptions) {
        let hint = "Unset PGOPTIONS, or use SET. A rule's features = [\"postgres.options\"] allows it, unless the agent's own file says otherwise.";
        return Err(refused("startup options are not allowed for this service", hint));
    }
    Ok(())
}

/// Somebody who may have a session, and not this one.
pub(super) fn refused(message: &str, hint: &str) -> Fatal {
    Fatal {
        sqlstate: SQLSTATE_DENIED,
        message: message.to_owned(),
        detail: None,
        hint: Some(hint.to_owned()),
    }
}

/// A client's last words, in its own protocol.
pub(crate) async fn say_fatal<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    fatal: &Fatal,
    patience: Duration,
) {
    let telling = async {
        stream.write_all(&fatal.encode()).await?;
        stream.flush().await?;
        stream.shutdown().await
    };
    // Whoever has gone does not hear it.
    let _ = tokio::time::timeout(patience, telling).await;
}
