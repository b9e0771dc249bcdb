//! Re-checks: every login with a refresh token is asked about now and then, so that somebody who was
//! disabled at the provider is cut off although nothing of theirs renews.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use iap_runtime::shutdown::Shutdown;

use super::{Logins, Vouching};
use crate::store::GrantRow;

/// How often the store is asked which logins are due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Questions to one provider at once. A slow provider holds up its own logins and no other's.
const QUESTIONS_PER_PROVIDER_MAX: usize = 4;
/// Logins taken up at a time.
const DUE_MAX: u32 = 64;
/// The pause after a provider could not be asked, doubled each time it cannot.
const PROVIDER_PAUSE_FIRST: Duration = Duration::from_secs(5);
const PROVIDER_PAUSE_MAX: Duration = Duration::from_secs(300);
/// How often grants of logins that are over are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(30);

/// What a round of checks came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    pub(super) asked: usize,
    /// Of those, how many times the provider could not be asked.
    pub(super) unanswered: usize,
}

impl Logins {
    /// Checks logins until the shutdown; each provider's on its own.
    pub async fn recheck(self: Arc<Self>, shutdown: Shutdown) {
        for provider in &self.providers {
            let logins = Arc::clone(&self);
            let name = provider.name().to_owned();
            shutdown.spawn(logins.recheck_provider(name, shutdown.clone()));
        }
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(FORGET_EVERY) => self.forget_ended().await,
            }
        }
    }

    async fn recheck_provider(self: Arc<Self>, name: String, shutdown: Shutdown) {
        let mut pause = PROVIDER_PAUSE_FIRST;
        loop {
            let round = self.check_due(&name).await;
            let wait = if round.unanswered > 0 {
                let wait = pause;
                pause = (pause * 2)
                    .min(PROVIDER_PAUSE_MAX)
                    .min(self.context.config.login.recheck);
                wait
            } else if round.asked > 0 {
                pause = PROVIDER_PAUSE_FIRST;
                Duration::ZERO
            } else {
                LOOK_EVERY
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Asks about the logins of one provider that are due. Stops taking up new ones when one could not be
    /// asked about: the others could not either.
    pub(super) async fn check_due(&self, connector: &str) -> Round {
        let now = self.context.clock.now();
        let due = match self.context.store.due_grants(connector, now, DUE_MAX).await {
            Ok(due) => due,
            Err(error) => {
                tracing::error!(%error, "the logins to be checked cannot be read");
                return Round {
                    asked: 0,
                    unanswered: 1,
                };
            }
        };
        let stopped = AtomicBool::new(false);
        // Those under way are carried to their end: an answer may hold a new refresh token.
        futures_util::stream::iter(due)
            .map(|row| self.check_unless(&stopped, row))
            .buffer_unordered(QUESTIONS_PER_PROVIDER_MAX)
            .fold(Round::default(), async |round, one| Round {
                asked: round.asked + one.asked,
                unanswered: round.unanswered + one.unanswered,
            })
            .await
    }

    async fn check_unless(&self, stopped: &AtomicBool, row: GrantRow) -> Round {
        if stopped.load(Ordering::Relaxed) {
            return Round::default();
        }
        let answered = self.check(row).await;
        stopped.fetch_or(!answered, Ordering::Relaxed);
        Round {
            asked: 1,
            unanswered: usize::from(!answered),
        }
    }

    /// Says whether the provider could be asked.
    async fn check(&self, row: GrantRow) -> bool {
        match self.vouch(row.login_id).await {
            Ok(Vouching::Kept) => false,
            Ok(Vouching::NotAsked | Vouching::Vouched | Vouching::Refused(_) | Vouching::Locked(_)) => true,
            Err(error) => {
                tracing::error!(%error, login_id = %row.login_id, "a login could not be checked");
                false
            }
        }
    }

    /// Grants of logins that are over, or were never finished.
    pub(super) async fn forget_ended(self: &Arc<Self>) {
        let now = self.context.clock.now();
        let ended = match self.context.store.expired_grants(now, DUE_MAX).await {
            Ok(ended) => ended,
            Err(error) => return tracing::error!(%error, "the logins that are over cannot be read"),
        };
        for row in ended {
            if let Err(error) = self.forget_expired_grant(row).await {
                tracing::error!(%error, "a refresh token could not be forgotten");
            }
        }
    }
}
