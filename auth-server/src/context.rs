//! What every request handler needs: configuration, time, randomness, and the parts of the server.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use iap_runtime::config::InForce;
use iap_runtime::files::{DataDir, FileError, PRIVATE_FILE_MODE};
use iap_runtime::traces::{self, Program, SpanCounts, Traces};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::audit::AuditLog;
use crate::authority::{
    Authority, AuthorityKeys, DATABASE_FILE, KeysError, Quotas, ServiceAuthorities, SshSources,
};
use crate::config::{Config, Limits};
use crate::feed::{Feed, FeedError};
use crate::login::SealKeys;
use crate::policies::{Policies, PoliciesError};
use crate::recordings::{Library, LibraryError};
use crate::store::sqlite::SqliteStore;
use crate::store::{Belonging, Counter, RuleStore as _, SharedStore, StoreError};

/// Locked by whoever works in `data_dir`.
pub(crate) const LOCK_FILE: &str = "in-use";
/// Recordings of terminals, in `data_dir`.
pub(crate) const RECORDINGS_FOLDER: &str = "recordings";

/// The server's parts, shared by all handlers. Each is a handle: immutable snapshots with one writer inside.
#[derive(Debug)]
pub struct AppContext {
    /// The checked configuration.
    pub config: Arc<Config>,
    /// Of these, what is in force now.
    pub limits: InForce<Limits>,
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
    /// Recordings of terminals.
    pub recordings: Arc<Library>,
    /// Seals refresh tokens.
    pub seal_keys: SealKeys,
    /// Where spans go.
    pub traces: Traces,
    /// What becomes of them.
    pub trace_spans: SpanCounts,
    /// Held as long as the context lives: nobody else works in `data_dir`.
    data_dir_lock: File,
}

/// Why the server cannot work with its `data_dir`.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or directory is open to others, or cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process is at work there.
    #[error("{path} is in use by another iap-auth")]
    InUse {
        /// The directory.
        path: String,
    },
    /// The lock file cannot be locked.
    #[error("cannot lock {path}: {source}")]
    Lock {
        /// The directory.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database belongs to other keys.
    #[error("{path}/{DATABASE_FILE} belongs to another cluster or to other keys: it was made for {found}")]
    OtherDatabase {
        /// The directory.
        path: String,
        /// What the database is bound to.
        found: String,
    },
    /// The recordings' folder cannot be used.
    #[error(transparent)]
    Recordings(#[from] LibraryError),
    /// The stored policy cannot be used.
    #[error(transparent)]
    Policies(#[from] PoliciesError),
    /// The first snapshot could not be signed.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// Spans cannot be sent.
    #[error(transparent)]
    Traces(#[from] traces::StartError),
}

/// A context, and whether its `data_dir` was empty.
#[derive(Debug)]
pub struct OpenedContext {
    /// The parts.
    pub context: AppContext,
    /// Whether keys and database were made just now.
    pub is_first_start: bool,
}

impl AppContext {
    /// Opens `data_dir`: makes keys and database at the first start, checks them at every later one.
    pub async fn open(config: Config, clock: Clock, random: Random) -> Result<OpenedContext, OpenError> {
        let config = Arc::new(config);
        let dir = DataDir::open_or_create(&config.data_dir)?;
        let data_dir_lock = lock(&dir)?;
        let now = clock.now();
        let is_first_start = AuthorityKeys::is_first_start(&dir)?;
        if is_first_start {
            AuthorityKeys::create(&dir, &config.cluster, now, &random)?;
        }
        let keys = AuthorityKeys::load(&dir, &config.cluster, now)?;
        let seal_keys = SealKeys::load_or_create(&config.login.refresh_key_file, &random)?;
        let store = SqliteStore::open(&dir.join(DATABASE_FILE)).await?;
        if let Err(error) = check_belonging(&store, &config, &keys).await {
            store.close().await;
            return Err(error);
        }
        let bundle = keys.bundle(
            &config.cluster,
            store.counter(Counter::Epoch).await?,
            store.counter(Counter::BundleVersion).await?,
            now,
        )?;
        let store: SharedStore = Arc::new(store);
        let limits = InForce::new(config.limits.clone());
        let trace_spans = SpanCounts::default();
        let program = Program {
            name: "iap-auth",
            version: env!("CARGO_PKG_VERSION"),
            instance: Some(keys.auth_id.to_string()),
            cluster: Some(config.cluster.to_string()),
        };
        let traces = Traces::start(config.traces.as_ref(), &program, &trace_spans)?;
        let audit = AuditLog::new(keys.auth_id, Arc::clone(&store), clock.clone(), random.clone());
        let policies = Policies::load(&config, &store).await?;
        let authority = Arc::new(Authority {
            cluster: config.cluster.clone(),
            keys,
            services: ServiceAuthorities::open(&dir, &config.cluster, clock.clone(), random.clone())?,
            ssh_sources: SshSources::default(),
            bundle: Arc::new(bundle),
            user_life: config.login.ttl.try_into().unwrap_or(time::Duration::HOUR),
            quotas: Quotas::new(limits.clone()),
            audit: audit.clone(),
            policies: policies.clone(),
            store: Arc::clone(&store),
            clock: clock.clone(),
            random: random.clone(),
        });
        let feed = Feed::start(
            Arc::clone(&config),
            Arc::clone(&authority),
            Arc::clone(&store),
            policies.clone(),
        )
        .await?;
        let recordings = Library::open(dir.join(RECORDINGS_FOLDER), config.recordings.clone())?;
        let context = AppContext {
            config,
            limits,
            clock,
            random,
            store,
            authority,
            audit,
            policies,
            feed,
            recordings,
            seal_keys,
            traces,
            trace_spans,
            data_dir_lock,
        };
        Ok(OpenedContext {
            context,
            is_first_start,
        })
    }
}

impl Drop for AppContext {
    fn drop(&mut self) {
        // The system would do it too, but not before every copy of the descriptor is gone.
        let _ = self.data_dir_lock.unlock();
    }
}

pub(crate) fn lock(dir: &DataDir) -> Result<File, OpenError> {
    let path = dir.path().display().to_string();
    let failed = |source| OpenError::Lock {
        path: path.clone(),
        source,
    };
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE_FILE_MODE);
    let file = options.open(dir.join(LOCK_FILE)).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

async fn check_belonging(
    store: &SqliteStore,
    config: &Config,
    keys: &AuthorityKeys,
) -> Result<(), OpenError> {
    let ours = Belonging {
        cluster: config.cluster.clone(),
        auth_id: keys.auth_id,
        pin: keys.pin(),
    };
    let found = store.belong(&ours).await?;
    match found == ours {
        true => Ok(()),
        false => Err(OpenError::OtherDatabase {
            path: config.data_dir.display().to_string(),
            found: format!(
                "cluster {}, auth server {}, root {}",
                found.cluster, found.auth_id, found.pin
            ),
        }),
    }
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
