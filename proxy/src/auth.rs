//! The proxy as a client of the auth server: the feed it lives by, and the renewal of its own certificate.
//! Without the auth server both wait and try again; everything else goes on from what is held.

use std::sync::Arc;
use std::time::Duration;

use iap_proto::v1::proxy_client::ProxyClient;
use iap_proto::v1::{FeedEvent, ProxyWatchRequest, RenewRequest};
use iap_runtime::admin::Condition;
use iap_runtime::backoff::{Backoff, jittered};
use iap_runtime::files::DataDir;
use iap_runtime::keys::{self, KeyError, KeyKind};
use iap_runtime::outage::Outage;
use iap_runtime::tls::Material;
use thiserror::Error;
use time::OffsetDateTime;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::metrics::Metrics;
use crate::state::{self, KEY_FILE, StateError};
use crate::trust::{Taken, TrustKeeper};

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// The auth server says something at least every 10 s.
const FEED_SILENCE_MAX: Duration = Duration::from_secs(35);
const RENEW_TIMEOUT: Duration = Duration::from_secs(30);
/// A certificate that should have been renewed long ago is not renewed in a tight loop either.
const RENEW_PAUSE_MIN: Duration = Duration::from_secs(10);
const RENEW_JITTER_PERCENT: u32 = 10;

/// Follows the feed.
pub(crate) struct Feed {
    pub(crate) channel: Channel,
    pub(crate) keeper: TrustKeeper,
    pub(crate) metrics: Metrics,
    pub(crate) public_address: String,
    /// Met once locks are held, from the disk or from the feed.
    pub(crate) ready: Condition,
}

/// Why the feed has to be asked for again.
#[derive(Debug, Error)]
enum FeedError {
    #[error("{0}")]
    Status(Box<tonic::Status>),
    #[error("nothing came for {} s", FEED_SILENCE_MAX.as_secs())]
    Silent,
    #[error("the auth server ended it")]
    Ended,
}

impl Feed {
    /// Goes on while the proxy drains: locks count to the end. Its task is aborted.
    pub(crate) async fn follow(self) {
        self.note_readiness();
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
        let mut outage = Outage::default();
        loop {
            let error = self.follow_once(&mut backoff, &mut outage).await;
            match outage.is_news(&error) {
                true => tracing::warn!(%error, "the feed from the auth server is interrupted"),
                false => tracing::debug!(%error, "the feed from the auth server is still interrupted"),
            }
            backoff.wait().await;
        }
    }

    async fn follow_once(&self, backoff: &mut Backoff, outage: &mut Outage) -> FeedError {
        let mut events = match self.ask().await {
            Ok(events) => events,
            Err(error) => return error,
        };
        tracing::info!("the feed from the auth server is open");
        loop {
            let event = match tokio::time::timeout(FEED_SILENCE_MAX, events.message()).await {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => return FeedError::Ended,
                Ok(Err(status)) => return FeedError::Status(Box::new(status)),
                Err(_) => return FeedError::Silent,
            };
            self.take(event);
            backoff.reset();
            outage.over();
        }
    }

    async fn ask(&self) -> Result<Streaming<FeedEvent>, FeedError> {
        let request = ProxyWatchRequest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            public_address: self.public_address.clone(),
        };
        let mut client =
            ProxyClient::new(self.channel.clone()).max_decoding_message_size(FEED_MESSAGE_BYTES_MAX);
        match tokio::time::timeout(FEED_SILENCE_MAX, client.watch(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(FeedError::Status(Box::new(status))),
            Err(_) => Err(FeedError::Silent),
        }
    }

    /// One object that is not believed does not spoil the others.
    fn take(&self, event: FeedEvent) {
        let taken = self.keeper.take(event, OffsetDateTime::now_utc());
        self.metrics.feed(taken.is_ok());
        match taken {
            Ok(Taken::Published) => self.note_readiness(),
            Ok(Taken::NotNewer | Taken::Beat) => {}
            Err(error) => tracing::error!(%error, "an object from the auth server is refused"),
        }
    }

    fn note_readiness(&self) {
        if self.keeper.reader().borrow().locks.is_some() {
            self.ready.met();
        } else {
            self.ready.unmet("no list of locks yet");
        }
    }
}

/// Keeps the proxy's own certificate young: renews at half its life, ± 10 %.
pub(crate) struct Renewal {
    pub(crate) channel: Channel,
    pub(crate) directory: DataDir,
    pub(crate) material: Arc<Material>,
    /// Met while the certificate counts.
    pub(crate) ready: Condition,
}

/// Why the certificate stays as old as it is.
#[derive(Debug, Error)]
enum RenewError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the request cannot be made: {0}")]
    Request(#[from] rcgen::Error),
    #[error("{0}")]
    Status(Box<tonic::Status>),
    #[error("no answer within {} s", RENEW_TIMEOUT.as_secs())]
    TimedOut,
    #[error(transparent)]
    Refused(#[from] StateError),
}

impl Renewal {
    /// Its task is aborted.
    pub(crate) async fn keep(self) {
        let mut backoff = Backoff::new(RENEW_PAUSE_MIN, Duration::from_secs(300));
        // At once when it is due: the proxy may have been off for half a day.
        let mut wait = self.until_renewal();
        loop {
            tokio::time::sleep(wait).await;
            wait = match self.renew().await {
                Ok(()) => {
                    tracing::info!("the proxy's certificate is renewed");
                    backoff.reset();
                    self.until_renewal().max(RENEW_PAUSE_MIN)
                }
                Err(error) => {
                    tracing::warn!(%error, "the proxy's certificate is not renewed");
                    self.note_readiness();
                    backoff.next_delay()
                }
            };
        }
    }

    fn until_renewal(&self) -> Duration {
        let now = OffsetDateTime::now_utc();
        self.note_readiness();
        let Some(own) = state::own_certificate(&self.material, now) else {
            return RENEW_PAUSE_MIN;
        };
        let half = Duration::try_from((own.not_after - own.not_before) / 2).unwrap_or_default();
        let age = Duration::try_from(now - own.not_before).unwrap_or_default();
        jittered(half, RENEW_JITTER_PERCENT).saturating_sub(age)
    }

    async fn renew(&self) -> Result<(), RenewError> {
        // From the disk, where a join may have left another one since the start.
        let key = keys::load(&self.directory.join(KEY_FILE), KeyKind::P256)?;
        let csr = iap_identity::certificate_request(&key)?;
        let mut client = ProxyClient::new(self.channel.clone());
        let issued = match tokio::time::timeout(
            RENEW_TIMEOUT,
            client.renew(RenewRequest {
                csr,
                ..Default::default()
            }),
        )
        .await
        {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(RenewError::Status(Box::new(status))),
            Err(_) => return Err(RenewError::TimedOut),
        };
        let now = OffsetDateTime::now_utc();
        Ok(state::take_over(
            issued,
            &self.directory,
            &key,
            &self.material,
            now,
        )?)
    }

    fn note_readiness(&self) {
        match state::own_certificate(&self.material, OffsetDateTime::now_utc()) {
            Some(own) => {
                let left = own.not_after - OffsetDateTime::now_utc();
                self.ready.met_for(Duration::try_from(left).unwrap_or_default());
            }
            None => self
                .ready
                .unmet("the proxy's certificate does not count: join again"),
        }
    }
}

/// A snapshot of a large cluster is a few megabytes.
const FEED_MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
