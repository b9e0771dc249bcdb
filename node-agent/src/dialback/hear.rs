//! A client whose login comes in its own words: it is heard, with nothing behind it, and then decided on.

use std::sync::Arc;
use std::time::Duration;

use super::ask::{Admitted, Asked};
use super::serve::Passage;
use crate::handlers::{Visitor, farewell, ssh};
use crate::session::Live;

/// How long a client may take to say in SSH as whom it wants in: somebody may have to answer for its host key.
const SSH_PATIENCE: Duration = Duration::from_secs(120);

impl Passage {
    /// Hears as whom a client wants in, and decides on that.
    pub(super) async fn hear(&self, admitted: Box<Admitted>) -> Option<Box<Admitted>> {
        let Admitted {
            client,
            caller,
            seed,
            permit,
            asked,
            ..
        } = *admitted;
        let parts = &self.entrance.parts;
        let (Visitor::Stream(client), Some(settings)) = (client, &permit.local().ssh) else {
            return None;
        };
        let named = asked.login.clone();
        let facts = Arc::new(self.facts(caller.clone(), seed.clone(), &permit, asked));
        let live = Arc::new(Live::new(Arc::clone(&facts), permit.clone()));
        let mark = self.recorder.mark();
        let stream = client.heard(&facts, &live, &parts.cluster).await.ok()?;
        let service = (&seed.service, settings);
        let hearing = ssh::hear(
            stream,
            (&parts.host_keys, &parts.credentials),
            service,
            (seed.session_id, parts.limits.now().watchers_max > 0),
            SSH_PATIENCE,
        );
        let guest = match hearing.await {
            Ok(guest) => guest,
            Err(error) => {
                parts.metrics.handshake_failed("ssh");
                tracing::info!(service = %seed.service, client = %seed.client, %error, "no session");
                return None;
            }
        };
        self.recorder.phase("hear", mark, |_| {});
        if let Some(named) = named.filter(|named| named != guest.login()) {
            let text = format!(
                "You asked for the login {named}, and your SSH client for {}: let both name the same. Session {}.",
                guest.login(),
                seed.session_id
            );
            guest.refuse(text).await;
            return None;
        }
        let mut attempt = seed.attempt(caller.clone());
        attempt.login = Some(guest.login().clone());
        match self.decide(attempt).await {
            Ok(permit) => {
                live.renew(permit.clone());
                Some(Box::new(Admitted {
                    client: Visitor::Ssh(Box::new(guest)),
                    caller,
                    seed,
                    permit,
                    asked: Asked::default(),
                    early: Some((facts, live)),
                }))
            }
            Err(refusal) => {
                self.record_denial(&caller, &seed, &refusal);
                let fatal = self.fatal_of(&caller, &seed, &refusal);
                guest.refuse(farewell::in_one(fatal)).await;
                self.trace_refusal(&caller, &seed, &refusal);
                None
            }
        }
    }
}
