//! This server's own certificate: a new key each time, kept in memory, renewed at half its life.

use std::sync::Arc;
use std::time::Duration;

use iap_identity::{CertificateDer, Request, RequestError, certificate_request};
use iap_runtime::admin::Condition;
use iap_runtime::keys::{self, KeyError, KeyKind};
use iap_runtime::shutdown::Shutdown;
use iap_runtime::tls::{Material, MaterialError};
use time::OffsetDateTime;

use crate::authority::IssueError;
use crate::context::AppContext;

const RETRY_PAUSE: Duration = Duration::from_secs(60);

/// Renews this server's own certificate.
#[derive(Debug)]
pub struct OwnIdentity {
    context: Arc<AppContext>,
    material: Arc<Material>,
    times: Times,
}

/// When the certificate in use is renewed, and when it no longer counts.
#[derive(Clone, Copy, Debug)]
struct Times {
    half_life: OffsetDateTime,
    not_after: OffsetDateTime,
}

/// The server has no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No key could be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No request could be made from it.
    #[error("a certificate request could not be made: {0}")]
    Generate(#[from] rcgen::Error),
    /// Our own request was not understood.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// It was not issued.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// It was issued and cannot be used.
    #[error(transparent)]
    Material(#[from] MaterialError),
}

impl OwnIdentity {
    /// Gets the first certificate, before anything listens.
    pub async fn issue(context: Arc<AppContext>) -> Result<Self, IdentityError> {
        let material = Material::new(context.authority.bundle.as_ref().clone());
        let times = renew(&context, &material).await?;
        Ok(Self {
            context,
            material,
            times,
        })
    }

    /// What the listener shows and trusts.
    pub fn material(&self) -> Arc<Material> {
        Arc::clone(&self.material)
    }

    /// Renews until shutdown.
    pub async fn run(mut self, condition: Condition, shutdown: Shutdown) {
        loop {
            self.note(&condition);
            let wait = (self.times.half_life - self.context.clock.now())
                .try_into()
                .unwrap_or(RETRY_PAUSE);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            match renew(&self.context, &self.material).await {
                Ok(times) => self.times = times,
                Err(error) => {
                    tracing::error!(%error, "this server's own certificate could not be renewed");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Met until it expires, whatever becomes of this task.
    fn note(&self, condition: &Condition) {
        let left = self.times.not_after - self.context.clock.now();
        match Duration::try_from(left) {
            Ok(left) => condition.met_for(left),
            Err(_) => condition.unmet("this server's own certificate has expired"),
        }
    }
}

async fn renew(context: &AppContext, material: &Material) -> Result<Times, IdentityError> {
    let key = keys::generate(KeyKind::P256)?;
    let request = Request::parse(&certificate_request(&key)?)?;
    let issued = context.authority.issue_auth(request).await?;
    let now = context.clock.now();
    // This server alone appends the root: a client that holds only the pin can check the whole chain.
    let mut chain: Vec<CertificateDer<'static>> =
        issued.chain_der().into_iter().map(CertificateDer::from).collect();
    chain.push(context.authority.keys.root.der().clone());
    material.publish_identity(chain, keys::private_key_der(&key), now)?;
    let not_after = issued.not_after();
    Ok(Times {
        half_life: now + (not_after - now) / 2,
        not_after,
    })
}
