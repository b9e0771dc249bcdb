//! What every request handler needs: configuration, time, randomness, and the parts of the server.

use std::sync::Arc;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::audit::AuditLog;
use crate::authority::Authority;
use crate::config::Config;
use crate::feed::Feed;
use crate::policies::Policies;
use crate::store::SharedStore;

/// The server's parts, shared by all handlers. Each is a handle: immutable snapshots with one writer inside.
#[derive(Debug)]
pub struct AppContext {
    /// The checked configuration.
    pub config: Arc<Config>,
    /// The time.
    pub clock: Clock,
    /// Randomness fit for secrets.
    pub random: Random,
    /// What is remembered.
    pub store: SharedStore,
    /// Issues certificates, each recorded before it is released.
    pub authority: Arc<Authority>,
    /// Our own audit records.
    pub audit: AuditLog,
    /// The applied policy.
    pub policies: Policies,
    /// What agents and proxies live from.
    pub feed: Feed,
}

/// Where the time comes from: the system, or a test.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> OffsetDateTime + Send + Sync>);

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(Arc::new(OffsetDateTime::now_utc))
    }

    /// A clock that says what the function says.
    pub fn from_fn(read: impl Fn() -> OffsetDateTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// The time now, UTC.
    pub fn now(&self) -> OffsetDateTime {
        (self.0)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Clock")
    }
}

/// Randomness fit for secrets.
#[derive(Clone, Debug, Default)]
pub struct Random(());

/// The operating system gave no randomness; nothing can be issued.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gave no randomness")]
pub struct NoRandomness;

impl Random {
    /// The operating system's.
    pub fn system() -> Self {
        Self(())
    }

    /// Fresh random bytes.
    pub fn bytes<const LENGTH: usize>(&self) -> Result<[u8; LENGTH], NoRandomness> {
        let mut bytes = [0; LENGTH];
        SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(bytes)
    }

    /// A UUIDv7 made now.
    pub fn uuid_v7(&self, now: OffsetDateTime) -> Result<Uuid, NoRandomness> {
        let milliseconds = u64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        Ok(uuid::Builder::from_unix_timestamp_millis(milliseconds, &self.bytes()?).into_uuid())
    }
}
