//! Renews the agent's own certificate at half-life, or at once when it has expired while the agent was off.

use std::sync::Arc;
use std::time::Duration;

use iap_identity::verify::EXPIRED_AGENT_GRACE;
use iap_runtime::backoff::Backoff;

use super::AuthClient;
use crate::clock::TrustedClock;
use crate::identity::{IdentityError, OwnIdentity};
use crate::leaves::renewal_time;

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// However short certificates are, they are not renewed more often than this.
const RENEWED_EVERY_MIN: Duration = Duration::from_secs(60);
/// The longest sleep in one piece, so that a clock that jumps is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Runs for ever.
pub async fn run(client: Arc<AuthClient>, identity: Arc<OwnIdentity>, clock: Arc<TrustedClock>) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    let mut due = first_due(&identity, &clock);
    loop {
        while let Ok(left) = Duration::try_from(due - clock.now()) {
            if left.is_zero() {
                break;
            }
            tokio::time::sleep(left.min(SLEEP_MAX)).await;
        }
        match renew(&client, &identity, &clock).await {
            Ok(()) => {
                backoff.reset();
                let now = clock.now();
                due = renewal_time(now, identity.current().not_after).max(now + RENEWED_EVERY_MIN);
            }
            Err(error) => {
                let (not_after, now) = (identity.current().not_after, clock.now());
                if now - not_after > EXPIRED_AGENT_GRACE {
                    let error = IdentityError::TooLongOff { not_after, now };
                    tracing::error!("{error}");
                } else {
                    tracing::warn!(%error, "the agent's certificate is not renewed yet");
                }
                backoff.wait().await;
            }
        }
    }
}

/// Half-life counts from the certificate's own start, also when the agent was off in between.
fn first_due(identity: &OwnIdentity, clock: &TrustedClock) -> time::OffsetDateTime {
    let current = identity.current();
    if current.not_after <= clock.now() {
        return clock.now();
    }
    renewal_time(current.not_before, current.not_after)
}

async fn renew(client: &AuthClient, identity: &OwnIdentity, clock: &TrustedClock) -> anyhow::Result<()> {
    let chain = client.renew(identity.request()?).await?;
    identity.replace(chain, clock.now())?;
    // The channel first: whoever hears of the certificate asks for something over it at once.
    let reconnected = client.reconnect();
    identity.announce();
    reconnected?;
    tracing::info!(until = %identity.current().not_after, "the agent's certificate is renewed");
    Ok(())
}
