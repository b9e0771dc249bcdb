//! What agents and proxies live from: signed snapshots, locks, beats and the trust bundle.
//!
//! One writer publishes; any number of streams follow through `watch` channels, so that a slow stream
//! sees the newest state and never holds up the others.

pub mod frame;
pub mod stream;
mod watchers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use iap_identity::{Lock, LockKind, Locks, LoginName, ProxyId, SignedKind};
use iap_proto::convert::bundle::encode_bundle;
use iap_proto::v1::feed_event::Event;
use iap_proto::{Beat, LockList, ProxyAddress, ServiceRecord, Snapshot, v1};
use iap_runtime::admin::Condition;
use iap_runtime::shutdown::Shutdown;
use tokio::sync::{Mutex, watch};

use crate::authority::{Authority, SignError};
use crate::config::Config;
use crate::policies::Policies;
use crate::services;
use crate::store::{Counter, SharedStore, StoreError};

use frame::{Frame, FrameTooLong};
pub use watchers::{Watchers, Watching};

/// How long a beat may take to be made before the server counts as not ready.
const TICK_SECONDS_MAX: Duration = Duration::from_secs(5);

/// The feed's newest state, and the way to change it.
#[derive(Clone, Debug)]
pub struct Feed {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Arc<Config>,
    authority: Arc<Authority>,
    store: SharedStore,
    policies: Policies,
    bundle: v1::Signed,
    bundle_frame: Frame,
    /// Held while something new is numbered, signed and published: versions go out in order.
    publishing: Mutex<()>,
    snapshot_owed: Owed,
    locks_owed: Owed,
    snapshot: watch::Sender<Arc<PublishedSnapshot>>,
    locks: watch::Sender<Arc<PublishedLocks>>,
    beat: watch::Sender<Frame>,
    watchers: Watchers,
}

/// What was stored and has to go out: counted, so that what is stored while something goes out is not taken for
/// published.
#[derive(Debug, Default)]
struct Owed {
    stored: AtomicU64,
    published: AtomicU64,
}

impl Owed {
    fn add(&self) {
        self.stored.fetch_add(1, Ordering::SeqCst);
    }

    /// Before the store is read; given to [`Owed::settle`] once that is published.
    fn so_far(&self) -> u64 {
        self.stored.load(Ordering::SeqCst)
    }

    fn settle(&self, so_far: u64) {
        self.published.fetch_max(so_far, Ordering::SeqCst);
    }

    fn is_anything(&self) -> bool {
        self.published.load(Ordering::SeqCst) != self.so_far()
    }
}

/// What a change of the store has to be published in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affects {
    /// The snapshot.
    Snapshot,
    /// The lock list.
    Locks,
    /// Both.
    LocksAndSnapshot,
    /// Neither, as far as is known: what another change left to be published is published all the same.
    Nothing,
}

/// A snapshot as it went out.
#[derive(Debug)]
pub struct PublishedSnapshot {
    /// What is in it.
    pub content: Snapshot,
    /// The same, signed.
    pub signed: v1::Signed,
    frame: Frame,
}

/// A lock list as it went out.
#[derive(Debug)]
pub struct PublishedLocks {
    /// What is in it.
    pub content: LockList,
    /// The same, signed.
    pub signed: v1::Signed,
    frame: Frame,
}

/// Nothing new was published; the state before stays.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The signing key failed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// A change did not come to its end: the server is stopping.
    #[error("a change was cut off: {0}")]
    CutOff(String),
    /// What was signed does not fit the feed.
    #[error(transparent)]
    TooLong(#[from] FrameTooLong),
    /// A stored service is not one.
    #[error("a stored service cannot be used: {0}")]
    Service(String),
}

impl From<FeedError> for crate::rpc::RpcError {
    fn from(error: FeedError) -> Self {
        crate::rpc::RpcError::internal(error)
    }
}

impl Feed {
    /// Signs the first state from what is stored.
    pub async fn start(
        config: Arc<Config>,
        authority: Arc<Authority>,
        store: SharedStore,
        policies: Policies,
    ) -> Result<Self, FeedError> {
        let builder = Builder {
            config: &config,
            authority: &authority,
            store: &store,
            policies: &policies,
        };
        let bundle = authority
            .keys
            .signer
            .sign(SignedKind::Bundle, encode_bundle(&authority.bundle.to_raw()))?;
        let locks = builder.locks().await?;
        let snapshot = builder.snapshot().await?;
        let beat = builder.beat(&snapshot, &locks)?;
        let shared = Shared {
            bundle_frame: Frame::of(Event::Bundle(bundle.clone()))?,
            bundle,
            publishing: Mutex::new(()),
            snapshot_owed: Owed::default(),
            locks_owed: Owed::default(),
            snapshot: watch::Sender::new(Arc::new(snapshot)),
            locks: watch::Sender::new(Arc::new(locks)),
            beat: watch::Sender::new(beat),
            watchers: Watchers::default(),
            config,
            authority,
            store,
            policies,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The trust bundle, signed, as `Login.Finish` and `Join` return it.
    pub fn bundle(&self) -> v1::Signed {
        self.shared.bundle.clone()
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<PublishedSnapshot> {
        self.shared.snapshot.borrow().clone()
    }

    /// The newest lock list: the locks in force.
    pub fn published_locks(&self) -> Arc<PublishedLocks> {
        self.shared.locks.borrow().clone()
    }

    /// Who follows the feed at the moment.
    pub fn watchers(&self) -> &Watchers {
        &self.shared.watchers
    }

    /// Writes to the store and publishes. Both are carried to their end even if the caller goes away in between,
    /// and what cannot be published is published by a later beat: what is stored is in force.
    ///
    /// # Errors
    /// When either fails. A failed write may have reached the store all the same, so it is published too.
    pub async fn change<T: Send + 'static>(
        &self,
        affects: Affects,
        write: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, FeedError> {
        let feed = self.clone();
        let changing = tokio::spawn(async move {
            let written = write.await;
            feed.owe(affects);
            let written = written?;
            feed.publish_owed().await?;
            Ok(written)
        });
        changing
            .await
            .unwrap_or_else(|error| Err(FeedError::CutOff(error.to_string())))
    }

    /// Something was stored that the next beat has to publish, if nobody does before.
    pub fn owe(&self, affects: Affects) {
        let Shared {
            snapshot_owed,
            locks_owed,
            ..
        } = &*self.shared;
        match affects {
            Affects::Snapshot => snapshot_owed.add(),
            Affects::Locks => locks_owed.add(),
            Affects::LocksAndSnapshot => {
                locks_owed.add();
                snapshot_owed.add();
            }
            Affects::Nothing => {}
        }
    }

    /// Publishes what was stored and has not gone out; does nothing when there is no such thing.
    pub async fn publish_owed(&self) -> Result<(), FeedError> {
        if self.shared.locks_owed.is_anything() {
            self.publish_locks().await?;
        }
        let is_overtaken = self.snapshot().content.policy_version != self.shared.policies.current().version;
        if is_overtaken || self.shared.snapshot_owed.is_anything() {
            self.publish_snapshot().await?;
        }
        Ok(())
    }

    /// Signs and pushes a new snapshot: after any change of policy, services, grants or proxies.
    pub async fn publish_snapshot(&self) -> Result<(), FeedError> {
        let _one_at_a_time = self.shared.publishing.lock().await;
        let so_far = self.shared.snapshot_owed.so_far();
        let snapshot = self.builder().snapshot().await?;
        tracing::debug!(version = snapshot.content.version, "snapshot published");
        self.shared.snapshot.send_replace(Arc::new(snapshot));
        self.shared.snapshot_owed.settle(so_far);
        Ok(())
    }

    /// Signs and pushes a new lock list: after a lock was added, removed, or has expired.
    pub async fn publish_locks(&self) -> Result<(), FeedError> {
        let _one_at_a_time = self.shared.publishing.lock().await;
        let so_far = self.shared.locks_owed.so_far();
        let locks = self.builder().locks().await?;
        tracing::debug!(version = locks.content.version, "locks published");
        self.shared.locks.send_replace(Arc::new(locks));
        self.shared.locks_owed.settle(so_far);
        Ok(())
    }

    /// Beats until shutdown; renews the snapshot before it is half as old as it may get, and the lock
    /// list when a lock in it has expired.
    pub async fn run(self, condition: Condition, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(self.shared.config.snapshot.beat);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match self.tick().await {
                Ok(()) => condition.met_for(3 * self.shared.config.snapshot.beat + TICK_SECONDS_MAX),
                Err(error) => {
                    tracing::error!(%error, "the feed could not be kept up");
                    condition.unmet(&error.to_string());
                }
            }
        }
    }

    async fn tick(&self) -> Result<(), FeedError> {
        // Beats go on: agents must not take a store that cannot be written for a server that is gone.
        let owed = self.publish_owed().await;
        let now = self.shared.authority.clock.now();
        let expired = |lock: &Lock| !lock.is_in_force(now);
        if self.shared.locks.borrow().content.locks.iter().any(expired) {
            self.publish_locks().await?;
            self.publish_snapshot().await?;
        }
        let age = now - self.snapshot().content.issued;
        if age >= self.shared.config.snapshot.max_age / 2 - self.shared.config.snapshot.beat {
            self.publish_snapshot().await?;
        }
        let beat = self.builder().beat(&self.snapshot(), &self.published_locks())?;
        self.shared.beat.send_replace(beat);
        owed
    }

    fn builder(&self) -> Builder<'_> {
        let Shared {
            config,
            authority,
            store,
            policies,
            ..
        } = &*self.shared;
        Builder {
            config,
            authority,
            store,
            policies,
        }
    }
}

/// Makes signed state from what is stored.
struct Builder<'a> {
    config: &'a Config,
    authority: &'a Authority,
    store: &'a SharedStore,
    policies: &'a Policies,
}

impl Builder<'_> {
    async fn snapshot(&self) -> Result<PublishedSnapshot, FeedError> {
        let policy = self.policies.current();
        let services = self.services().await?;
        let proxies = self.store.proxies().await?;
        let version = self.store.next(Counter::SnapshotVersion).await?;
        let issued = self.authority.clock.now();
        let locks = self.store.locks(issued).await?;
        let is_locked = |proxy: &ProxyId| {
            let target = proxy.to_string();
            locks
                .iter()
                .any(|lock| lock.kind == LockKind::Proxy && lock.target == target)
        };
        let content = Snapshot {
            epoch: self.authority.bundle.epoch(),
            version,
            cluster: self.config.cluster.clone(),
            issued,
            expires: issued + self.config.snapshot.max_age,
            policy_version: policy.version,
            policy_toml: policy.toml.clone(),
            vocabulary: policy.vocabulary.clone(),
            services,
            proxies: proxies
                .into_iter()
                .filter(|proxy| !is_locked(&proxy.proxy_id))
                .filter_map(|proxy| {
                    Some(ProxyAddress {
                        proxy_id: proxy.proxy_id,
                        address: proxy.public_address?,
                    })
                })
                .collect(),
            reserved_logins: self.reserved_logins(),
        };
        let signed = self.sign(SignedKind::Snapshot, content.encode())?;
        Ok(PublishedSnapshot {
            frame: Frame::of(Event::Snapshot(signed.clone()))?,
            content,
            signed,
        })
    }

    async fn services(&self) -> Result<Vec<ServiceRecord>, FeedError> {
        let stored = self.store.services().await?;
        stored
            .iter()
            .map(|service| {
                services::record_of(service).map_err(|error| FeedError::Service(error.to_string()))
            })
            .collect()
    }

    /// Names that are no login names cannot be produced by a template either.
    fn reserved_logins(&self) -> Vec<LoginName> {
        self.config
            .reserved_logins
            .iter()
            .filter_map(|login| LoginName::parse(login).ok())
            .collect()
    }

    async fn locks(&self) -> Result<PublishedLocks, FeedError> {
        let issued = self.authority.clock.now();
        let locks = self.store.locks(issued).await?;
        let content = LockList {
            cluster: self.config.cluster.clone(),
            epoch: self.authority.bundle.epoch(),
            version: self.store.next(Counter::LockVersion).await?,
            issued,
            locks: Locks::new(locks),
        };
        let signed = self.sign(SignedKind::Locks, content.encode())?;
        Ok(PublishedLocks {
            frame: Frame::of(Event::Locks(signed.clone()))?,
            content,
            signed,
        })
    }

    fn beat(&self, snapshot: &PublishedSnapshot, locks: &PublishedLocks) -> Result<Frame, FeedError> {
        let beat = Beat {
            cluster: self.config.cluster.clone(),
            epoch: self.authority.bundle.epoch(),
            time: self.authority.clock.now(),
            snapshot_version: snapshot.content.version,
            lock_version: locks.content.version,
        };
        let signed = self.sign(SignedKind::Beat, beat.encode())?;
        Ok(Frame::of(Event::Beat(signed))?)
    }

    fn sign(&self, kind: SignedKind, payload: Vec<u8>) -> Result<v1::Signed, FeedError> {
        Ok(self.authority.keys.signer.sign(kind, payload)?)
    }
}
