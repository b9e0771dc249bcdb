//! Refusals as callers see them: a stable code in the metadata, one sentence, and a second text for the log.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::audit::RecordError;
use crate::authority::IssueError;
use crate::context::NoRandomness;
use crate::store::StoreError;

/// The metadata key that carries [`ErrorCode`].
pub const ERROR_METADATA_KEY: &str = "iap-error";

/// What a program can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The caller may not do this.
    Denied,
    /// The login is over: log in.
    LoginRequired,
    /// The login is too old for this: log in again.
    Reauthenticate,
    /// The request makes no sense as it is.
    Invalid,
    /// What it names does not exist.
    NotFound,
    /// Somebody else was faster, or the state does not allow it.
    Conflict,
    /// Often enough for now.
    TooMany,
    /// Possible, but only with `force`.
    NeedsForce,
    /// Ours, and meant: this server stops. Another one, or this one once it is back, can do it.
    Stopping,
    /// Ours; asking again may help.
    Internal,
}

impl ErrorCode {
    /// The code on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::Denied => "denied",
            ErrorCode::LoginRequired => "login_required",
            ErrorCode::Reauthenticate => "reauthenticate",
            ErrorCode::Invalid => "invalid",
            ErrorCode::NotFound => "not_found",
            ErrorCode::Conflict => "conflict",
            ErrorCode::TooMany => "too_many",
            ErrorCode::NeedsForce => "needs_force",
            ErrorCode::Stopping => "stopping",
            ErrorCode::Internal => "internal",
        }
    }

    fn grpc(self) -> Code {
        match self {
            ErrorCode::Denied => Code::PermissionDenied,
            ErrorCode::LoginRequired | ErrorCode::Reauthenticate => Code::Unauthenticated,
            ErrorCode::Invalid => Code::InvalidArgument,
            ErrorCode::NotFound => Code::NotFound,
            ErrorCode::Conflict => Code::Aborted,
            ErrorCode::TooMany => Code::ResourceExhausted,
            ErrorCode::NeedsForce => Code::FailedPrecondition,
            ErrorCode::Stopping | ErrorCode::Internal => Code::Unavailable,
        }
    }
}

/// A refused or failed call.
#[derive(Debug, thiserror::Error)]
#[error("{}: {text}{}", .code.as_str(), .log.as_deref().map(|log| format!(" ({log})")).unwrap_or_default())]
pub struct RpcError {
    /// What a program can act on.
    pub code: ErrorCode,
    /// For the caller.
    pub text: String,
    /// For the log, where it says more.
    pub log: Option<String>,
}

impl RpcError {
    /// A refusal that says the same to the caller and to the log.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            log: None,
        }
    }

    /// The caller may not do this.
    pub fn denied(text: impl Into<String>) -> Self {
        Self::new(ErrorCode::Denied, text)
    }

    /// The request makes no sense.
    pub fn invalid(text: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::Invalid, text.to_string())
    }

    /// What it names does not exist.
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, text)
    }

    /// The state does not allow it.
    pub fn conflict(text: impl Into<String>) -> Self {
        Self::new(ErrorCode::Conflict, text)
    }

    /// The server stops in good order: what it had under way ends.
    pub fn stopping() -> Self {
        Self::new(ErrorCode::Stopping, "the auth server is stopping; try again")
    }

    /// Ours: the caller learns that it was not theirs, the log learns what.
    pub fn internal(log: impl std::fmt::Display) -> Self {
        Self {
            code: ErrorCode::Internal,
            text: "the auth server could not do this at the moment; try again".to_owned(),
            log: Some(log.to_string()),
        }
    }
}

impl From<RpcError> for Status {
    fn from(error: RpcError) -> Self {
        match error.code {
            ErrorCode::Internal => tracing::error!(%error, "a call failed"),
            ErrorCode::Denied
            | ErrorCode::LoginRequired
            | ErrorCode::Reauthenticate
            | ErrorCode::Invalid
            | ErrorCode::NotFound
            | ErrorCode::Conflict
            | ErrorCode::TooMany
            | ErrorCode::NeedsForce
            | ErrorCode::Stopping => tracing::debug!(%error, "a call was refused"),
        }
        let mut status = Status::new(error.code.grpc(), error.text);
        status.metadata_mut().insert(
            ERROR_METADATA_KEY,
            MetadataValue::from_static(error.code.as_str()),
        );
        status
    }
}

impl From<StoreError> for RpcError {
    fn from(error: StoreError) -> Self {
        RpcError::internal(error)
    }
}

impl From<RecordError> for RpcError {
    fn from(error: RecordError) -> Self {
        RpcError::internal(error)
    }
}

impl From<NoRandomness> for RpcError {
    fn from(error: NoRandomness) -> Self {
        RpcError::internal(error)
    }
}

impl From<IssueError> for RpcError {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Quota(exceeded) => RpcError::new(ErrorCode::TooMany, exceeded.to_string()),
            IssueError::LoginOver => RpcError::new(ErrorCode::LoginRequired, "your login is over"),
            IssueError::Prepare(_)
            | IssueError::Unsound(_)
            | IssueError::Record(_)
            | IssueError::Store(_)
            | IssueError::NoRandomness(_) => RpcError::internal(error),
        }
    }
}
