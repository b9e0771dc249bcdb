//! The feed: signed objects come in, are checked against what is held, become the next view and the next
//! "last good" on disk. What is older than what is held is refused, whoever signed it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iap_identity::{ClusterName, TrustBundle};
use iap_policy::{Connectors, LoadOptions, Policy, PolicyErrors};
use iap_proto::v1::feed_event::Event;
use iap_proto::v1::{FeedEvent, Signed};
use iap_proto::{Beat, LockList, OpenError, Snapshot, open_beat, open_bundle, open_locks, open_snapshot};
use iap_runtime::big_stack;
use prost::Message as _;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::age::{Age, Older};
use super::{Rules, View};
use crate::clock::TrustedClock;
use crate::state::{Joined, StateDir, StateError, names};

/// How often a beat is written to disk: it bounds how much older the feed seems after a restart.
const BEAT_SAVED_EVERY: Duration = Duration::from_secs(60);

/// Why an object of the feed was refused. What was held before stays in force.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// Not signed for this cluster by a certified key, or malformed.
    #[error("the {what} is not believed: {source}")]
    Refused {
        /// Which object.
        what: &'static str,
        /// Why.
        source: OpenError,
    },
    /// Older than what is held.
    #[error(transparent)]
    Older(#[from] Older),
    /// Expired before it arrived.
    #[error("the snapshot expired at {expires}")]
    Expired {
        /// Its end.
        expires: OffsetDateTime,
    },
    /// A policy this build cannot load, though the auth server could.
    #[error("the snapshot's policy cannot be loaded: {0}")]
    Policy(PolicyErrors),
    /// The message names no object this build knows.
    #[error("the feed sent an object of an unknown kind")]
    Unknown,
    /// The stored bundle is missing or damaged.
    #[error(
        "{path} cannot be used ({problem}): set this host's clock if it is wrong; if not, move the state directory away \
         and join again"
    )]
    Bundle {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What became of an object of the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It took effect.
    NewView,
    /// It said what was known already.
    Known,
    /// A beat, and the newest versions there are.
    Beat {
        /// Epoch of the versions.
        epoch: u64,
        /// The newest snapshot.
        snapshot_version: u64,
        /// The newest list of locks.
        lock_version: u64,
    },
}

/// The single writer of views.
#[derive(Debug)]
pub struct Feed {
    cluster: ClusterName,
    joined: Joined,
    state: StateDir,
    clock: Arc<TrustedClock>,
    bundle: Arc<TrustBundle>,
    rules: Option<Arc<Rules>>,
    locks: Option<Arc<LockList>>,
    serial: u64,
    views: watch::Sender<Option<Arc<View>>>,
    bundles: watch::Sender<Arc<TrustBundle>>,
    beat_saved: Option<Instant>,
}

impl Feed {
    /// Loads the last good objects from disk and publishes them before anything else happens.
    ///
    /// # Errors
    /// When there is no bundle the pin vouches for. A damaged snapshot or lock list is only reported: the
    /// feed brings the next one.
    pub async fn load(
        cluster: ClusterName,
        joined: Joined,
        state: StateDir,
        clock: Arc<TrustedClock>,
    ) -> Result<Self, FeedError> {
        let now = clock.now().max(newest_stored_time(&state));
        let bundle = Arc::new(load_bundle(&state, &joined, &cluster, now)?);
        let (views, _) = watch::channel(None);
        let (bundles, _) = watch::channel(Arc::clone(&bundle));
        let (rules, locks, serial, beat_saved) = (None, None, 0, None);
        let mut feed = Self {
            cluster,
            joined,
            state,
            clock,
            bundle,
            rules,
            locks,
            serial,
            views,
            bundles,
            beat_saved,
        };
        feed.load_last_good().await;
        Ok(feed)
    }

    /// The views as they are published.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<Option<Arc<View>>> {
        self.views.subscribe()
    }

    /// The bundles as they are accepted.
    #[must_use]
    pub fn bundles(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundles.subscribe()
    }

    /// Whether the versions of a beat are ahead of what is held.
    #[must_use]
    pub fn is_behind(&self, epoch: u64, snapshot_version: u64, lock_version: u64) -> bool {
        let rules = self
            .rules
            .as_ref()
            .map(|rules| (rules.snapshot.epoch, rules.snapshot.version));
        let locks = self.locks.as_ref().map(|locks| (locks.epoch, locks.version));
        rules < Some((epoch, snapshot_version)) || locks < Some((epoch, lock_version))
    }

    /// Takes the next object of the feed.
    ///
    /// # Errors
    /// Why it was refused; what was held stays in force.
    pub async fn accept(&mut self, event: FeedEvent) -> Result<Accepted, FeedError> {
        match event.event.ok_or(FeedError::Unknown)? {
            Event::Snapshot(signed) => self.accept_snapshot(&signed, Origin::Feed).await,
            Event::Beat(signed) => self.accept_beat(&signed, Origin::Feed).await,
            Event::Locks(signed) => self.accept_locks(&signed, Origin::Feed).await,
            Event::Bundle(signed) => self.accept_bundle(&signed).await,
        }
    }

    async fn accept_snapshot(&mut self, signed: &Signed, origin: Origin) -> Result<Accepted, FeedError> {
        let snapshot = open_snapshot(signed, &self.bundle).map_err(refused("snapshot"))?;
        if let Some(held) = self.rules.as_ref().map(|rules| &rules.snapshot) {
            let arrives = Age::of(snapshot.epoch, snapshot.version, snapshot.issued);
            if !arrives.replaces("snapshot", Age::of(held.epoch, held.version, held.issued))? {
                return Ok(Accepted::Known);
            }
        }
        self.clock.witness(snapshot.issued);
        if origin == Origin::Feed && snapshot.expires <= self.clock.now() {
            return Err(FeedError::Expired {
                expires: snapshot.expires,
            });
        }
        let policy = compile(&snapshot).await?;
        self.rules = Some(Arc::new(Rules::new(snapshot, policy)));
        self.publish();
        self.save(names::SNAPSHOT, signed, origin).await;
        Ok(Accepted::NewView)
    }

    async fn accept_locks(&mut self, signed: &Signed, origin: Origin) -> Result<Accepted, FeedError> {
        let locks = open_locks(signed, &self.bundle).map_err(refused("lock list"))?;
        if let Some(held) = &self.locks {
            let arrives = Age::of(locks.epoch, locks.version, locks.issued);
            if !arrives.replaces("lock list", Age::of(held.epoch, held.version, held.issued))? {
                return Ok(Accepted::Known);
            }
        }
        self.clock.witness(locks.issued);
        self.locks = Some(Arc::new(locks));
        self.publish();
        self.save(names::LOCKS, signed, origin).await;
        Ok(Accepted::NewView)
    }

    async fn accept_bundle(&mut self, signed: &Signed) -> Result<Accepted, FeedError> {
        let now = self.clock.now();
        let bundle = open_bundle(signed, &self.joined.pin, &self.cluster, now).map_err(refused("bundle"))?;
        let never = OffsetDateTime::UNIX_EPOCH;
        let arrives = Age::of(bundle.epoch(), bundle.version(), never);
        if !arrives.replaces(
            "bundle",
            Age::of(self.bundle.epoch(), self.bundle.version(), never),
        )? {
            return Ok(Accepted::Known);
        }
        self.bundle = Arc::new(bundle);
        self.bundles.send_replace(Arc::clone(&self.bundle));
        self.publish();
        self.save(names::BUNDLE, signed, Origin::Feed).await;
        Ok(Accepted::NewView)
    }

    async fn accept_beat(&mut self, signed: &Signed, origin: Origin) -> Result<Accepted, FeedError> {
        let beat = open_beat(signed, &self.bundle).map_err(refused("beat"))?;
        match origin {
            Origin::Feed => self.hear(beat.time),
            Origin::Disk => self.clock.witness(beat.time),
        }
        if let Some(rules) = &self.rules
            && (rules.snapshot.epoch, rules.snapshot.version) == (beat.epoch, beat.snapshot_version)
        {
            rules.confirm(beat.time);
        }
        if self
            .beat_saved
            .is_none_or(|saved| saved.elapsed() >= BEAT_SAVED_EVERY)
        {
            self.beat_saved = Some(Instant::now());
            self.save(names::BEAT, signed, origin).await;
        }
        let (epoch, snapshot_version, lock_version) = (beat.epoch, beat.snapshot_version, beat.lock_version);
        Ok(Accepted::Beat {
            epoch,
            snapshot_version,
            lock_version,
        })
    }

    fn hear(&self, beat: OffsetDateTime) {
        let Some(standing) = self.clock.hear(beat) else {
            return;
        };
        let seconds = self.clock.offset().whole_seconds();
        match standing.text() {
            Some(text) => tracing::error!(offset_seconds = seconds, auth_server_says = %beat, "{text}"),
            None => tracing::info!("this host's clock and the auth server's agree again"),
        }
    }

    /// The beat last: it may confirm the snapshot.
    async fn load_last_good(&mut self) {
        for name in [names::LOCKS, names::SNAPSHOT, names::BEAT] {
            let loaded = match read_signed(&self.state, name) {
                Ok(None) => continue,
                Ok(Some(signed)) => match name {
                    names::SNAPSHOT => self.accept_snapshot(&signed, Origin::Disk).await,
                    names::LOCKS => self.accept_locks(&signed, Origin::Disk).await,
                    _ => self.accept_beat(&signed, Origin::Disk).await,
                },
                Err(error) => Err(error),
            };
            if let Err(error) = loaded {
                tracing::warn!(file = name, %error, "the last good copy is not usable; waiting for the feed");
            }
        }
    }

    fn publish(&mut self) {
        let (Some(rules), Some(locks)) = (&self.rules, &self.locks) else {
            return;
        };
        self.serial += 1;
        let view = View {
            serial: self.serial,
            bundle: Arc::clone(&self.bundle),
            rules: Arc::clone(rules),
            locks: Arc::clone(locks),
        };
        self.views.send_replace(Some(Arc::new(view)));
    }

    /// After publishing: a full disk must not keep a lock from taking effect.
    async fn save(&self, name: &'static str, signed: &Signed, origin: Origin) {
        if origin == Origin::Disk {
            return;
        }
        let (state, bytes) = (self.state.clone(), signed.encode_to_vec());
        match tokio::task::spawn_blocking(move || state.write(name, &bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(file = name, %error, "the last good copy cannot be stored"),
            Err(error) => tracing::error!(file = name, %error, "the last good copy was not stored"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Feed,
    Disk,
}

fn refused(what: &'static str) -> impl Fn(OpenError) -> FeedError {
    move |source| FeedError::Refused { what, source }
}

async fn compile(snapshot: &Snapshot) -> Result<Policy, FeedError> {
    let (document, version) = (snapshot.policy_toml.clone(), snapshot.policy_version);
    let options = LoadOptions {
        connectors: Connectors::of_vocabulary(&snapshot.vocabulary),
        reserved_logins: snapshot.reserved_logins.iter().map(ToString::to_string).collect(),
    };
    let compiled = big_stack::run_aside_async(move || Policy::load_with(&document, &options)).await;
    Ok(compiled.map_err(FeedError::Policy)?.with_version(version))
}

fn read_signed(state: &StateDir, name: &'static str) -> Result<Option<Signed>, FeedError> {
    let Some(bytes) = state.read(name)? else {
        return Ok(None);
    };
    let damaged = |error: prost::DecodeError| FeedError::Bundle {
        path: state.path(name).display().to_string(),
        problem: error.to_string(),
    };
    Signed::decode(bytes.as_slice()).map(Some).map_err(damaged)
}

/// The newest time among the stored objects, which this agent believed when it stored them: a host that starts
/// without a clock has nothing better to judge the stored bundle by, and that in turn is what verifies them.
fn newest_stored_time(state: &StateDir) -> OffsetDateTime {
    let payload = |name| {
        read_signed(state, name)
            .ok()
            .flatten()
            .map(|signed| signed.payload)
    };
    let beat = payload(names::BEAT).and_then(|bytes| Beat::decode(&bytes).ok());
    let snapshot = payload(names::SNAPSHOT).and_then(|bytes| Snapshot::decode(&bytes).ok());
    let times = [
        beat.map(|beat| beat.time),
        snapshot.map(|snapshot| snapshot.issued),
    ];
    times
        .into_iter()
        .flatten()
        .max()
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn load_bundle(
    state: &StateDir,
    joined: &Joined,
    cluster: &ClusterName,
    now: OffsetDateTime,
) -> Result<TrustBundle, FeedError> {
    let damaged = |problem: String| FeedError::Bundle {
        path: state.path(names::BUNDLE).display().to_string(),
        problem,
    };
    let signed = read_signed(state, names::BUNDLE)?.ok_or_else(|| damaged("missing".to_owned()))?;
    open_bundle(&signed, &joined.pin, cluster, now).map_err(|error| damaged(error.to_string()))
}
