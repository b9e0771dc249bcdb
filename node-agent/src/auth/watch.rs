//! Listens to the feed for as long as the program runs.

use std::sync::Arc;
use std::time::Duration;

use iap_identity::{ServiceName, TrustBundle};
use iap_proto::v1::FeedEvent;
use iap_runtime::backoff::Backoff;
use iap_runtime::outage::Outage;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Streaming;

use super::{AuthClient, CallError};
use crate::config::LocalServices;
use crate::identity::OwnIdentity;
use crate::view::{Accepted, Feed, FeedError};

/// Beats come every 10 s. A stream silent for longer than three of them is dead, whatever TCP says.
const SILENCE_MAX: Duration = Duration::from_secs(35);
/// How long the feed may announce versions it does not deliver.
const BEHIND_MAX: Duration = Duration::from_secs(15);
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the stream ended")]
    Ended,
    #[error("the stream broke: {0}")]
    Broken(Box<tonic::Status>),
    #[error("nothing was heard for {} s", SILENCE_MAX.as_secs())]
    Silent,
    #[error("newer versions are announced than delivered")]
    Behind,
    #[error("the certificate was renewed")]
    CertificateRenewed,
}

/// The one reader of the feed.
#[derive(Debug)]
pub struct Watcher {
    /// Where objects go.
    pub feed: Feed,
    /// Where they come from.
    pub client: Arc<AuthClient>,
    /// Who trusts the bundles among them.
    pub identity: Arc<OwnIdentity>,
    /// The services of the agent's own file, for the inventory.
    pub services: watch::Receiver<Arc<LocalServices>>,
}

impl Watcher {
    /// Runs for ever.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let mut outage = Outage::default();
        loop {
            let mut heard = false;
            let end = self.listen(&mut heard).await;
            if heard {
                backoff.reset();
                outage.over();
            }
            match end {
                StreamEnd::CertificateRenewed => continue,
                end if outage.is_news(&end) => {
                    tracing::warn!(error = %end, "the feed of the auth server is interrupted");
                }
                end => tracing::debug!(error = %end, "the feed of the auth server is still interrupted"),
            }
            backoff.wait().await;
        }
    }

    async fn listen(&mut self, heard: &mut bool) -> StreamEnd {
        let mut renewed = self.identity.changes();
        renewed.mark_unchanged();
        let mut stream = match self.client.watch(self.service_names()).await {
            Ok(stream) => stream,
            Err(error) => return error.into(),
        };
        tracing::info!("listening to the feed of the auth server");
        let mut behind_since = None;
        loop {
            let event = tokio::select! {
                event = next(&mut stream) => event,
                _ = renewed.changed() => return StreamEnd::CertificateRenewed,
            };
            match event {
                Ok(event) => {
                    *heard = true;
                    self.take(event, &mut behind_since).await;
                }
                Err(end) => return end,
            }
            if behind_since.is_some_and(|since: Instant| since.elapsed() > BEHIND_MAX) {
                return StreamEnd::Behind;
            }
        }
    }

    fn service_names(&self) -> Vec<String> {
        self.services
            .borrow()
            .keys()
            .map(ServiceName::to_string)
            .collect()
    }

    async fn take(&mut self, event: FeedEvent, behind_since: &mut Option<Instant>) {
        match self.feed.accept(event).await {
            Ok(Accepted::NewView) => {
                let bundle = TrustBundle::clone(&self.feed.bundles().borrow());
                if let Err(error) = self.identity.trust(bundle) {
                    tracing::error!(%error, "the trust bundle is not taken over");
                }
            }
            Ok(Accepted::Known) => {}
            Ok(Accepted::Beat {
                epoch,
                snapshot_version,
                lock_version,
            }) => {
                let behind = self.feed.is_behind(epoch, snapshot_version, lock_version);
                *behind_since = if behind {
                    behind_since.or_else(|| Some(Instant::now()))
                } else {
                    None
                };
            }
            Err(error @ (FeedError::Refused { .. } | FeedError::Older(_))) => {
                tracing::error!(%error, "the feed sent what must not be believed");
            }
            Err(error) => tracing::error!(%error, "the feed sent what cannot be used"),
        }
    }
}

async fn next(stream: &mut Streaming<FeedEvent>) -> Result<FeedEvent, StreamEnd> {
    match tokio::time::timeout(SILENCE_MAX, stream.message()).await {
        Ok(Ok(Some(event))) => Ok(event),
        Ok(Ok(None)) => Err(StreamEnd::Ended),
        Ok(Err(status)) => Err(StreamEnd::Broken(Box::new(status))),
        Err(_elapsed) => Err(StreamEnd::Silent),
    }
}
