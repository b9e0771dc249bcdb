//! Where sessions come from: opens them with the login as it is now, renewing it when the agent asks.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use iap_identity::{ConnectId, LoginName, ServiceName};
use iap_runtime::traces::{Mark, Recorder};
use iap_tunnel::StepUp;
use time::OffsetDateTime;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::dial::{self, Answer, Session};
use super::early::Early;
use crate::context::Context;
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::identity::{self, Identity, Standing};
use crate::login;

/// A command that ends sooner leaves the renewal to the next.
const RENEW_AFTER_SECONDS: u64 = 5;

/// What a session is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The service.
    pub service: ServiceName,
    /// As which login.
    pub login: Option<LoginName>,
    /// Which database.
    pub database: Option<String>,
}

/// Opens the sessions of one `connect`, which share its id in the record.
pub struct Sessions {
    context: Context,
    wanted: Wanted,
    connect_id: ConnectId,
    identity: Mutex<Arc<Identity>>,
    /// Which stored generation was looked at last.
    mark: Mutex<Option<(PathBuf, SystemTime)>>,
    /// One renewal is about to be looked at, for all sessions.
    renewal_waits: AtomicBool,
    /// Held while renewing.
    renewals_ended: Mutex<bool>,
    /// From when to when the login was looked for; it is part of what the first session took.
    login: Mutex<Option<(Instant, Instant)>>,
}

impl Sessions {
    /// For one `connect`.
    pub fn new(context: &Context, identity: Identity, wanted: Wanted) -> Self {
        Self {
            context: context.clone(),
            wanted,
            connect_id: ConnectId::from_uuid(Uuid::now_v7()),
            mark: Mutex::new(identity.home.generation_mark()),
            identity: Mutex::new(Arc::new(identity)),
            renewal_waits: AtomicBool::new(false),
            renewals_ended: Mutex::new(false),
            login: Mutex::new(None),
        }
    }

    /// The login was looked for, or made, since `began`.
    #[must_use]
    pub fn logged_in_since(self, began: Instant) -> Self {
        Self {
            login: Mutex::new(Some((began, Instant::now()))),
            ..self
        }
    }

    /// What is asked for.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Their id in the record.
    pub(super) fn connect_id(&self) -> ConnectId {
        self.connect_id
    }

    /// Says something to those who want to know more.
    pub(super) fn say(&self, text: &str) {
        self.context.printer.verbose(text);
    }

    /// The login for somebody who comes back, renewed if it has to be: another login would be somebody else.
    pub(super) async fn for_coming_back(&self) -> Result<Arc<Identity>, String> {
        let held = Arc::clone(&*self.identity.lock().await);
        // Others may have renewed it, or learnt of more proxies.
        if let Ok(Standing::Valid(fresh)) = identity::load(&held.home, OffsetDateTime::now_utc())
            && fresh.peer.key_thumbprint == held.peer.key_thumbprint
        {
            let fresh = Arc::new(*fresh);
            *self.identity.lock().await = Arc::clone(&fresh);
            return Ok(fresh);
        }
        if OffsetDateTime::now_utc() < held.peer.not_after {
            return Ok(held);
        }
        self.renew().await?;
        Ok(Arc::clone(&*self.identity.lock().await))
    }

    /// Renews the login in hand.
    pub(super) async fn renew(&self) -> Result<(), String> {
        let held = Arc::clone(&*self.identity.lock().await);
        let renewed = identity::renew_within_limit(&held).await;
        let renewed = renewed.map_err(|error| format!("the certificate could not be renewed: {error:#}"))?;
        *self.identity.lock().await = Arc::new(renewed);
        Ok(())
    }

    /// Opens a session, which begins with what is said early. Talks to the auth server only if the login has expired or the
    /// agent wants it renewed.
    ///
    /// # Errors
    /// A failure with its exit status.
    pub async fn open(self: &Arc<Self>, early: &mut Early<'_>) -> Result<Session, Failure> {
        let recorder = self.recorder().await;
        let identity = self.current().await?;
        match dial::dial(&identity, self, early, &recorder).await? {
            Answer::Granted(session) => Ok(*session),
            Answer::Renew => self.open_renewed(&identity, early, &recorder).await,
            Answer::StepUp(needed, text) => self.open_stepped_up(&identity, needed, text, early).await,
        }
    }

    /// Notes what a session takes, its login included if it is the first.
    async fn recorder(&self) -> Recorder {
        let login = self.login.lock().await.take();
        let now = Instant::now();
        let recorder = self.context.traces.begin(login.map_or(now, |(began, _)| began));
        if let Some((began, ended)) = login {
            recorder.phase_until("login", Mark::at(began), Mark::at(ended));
        }
        recorder
    }

    /// A rule asks for more proof than the login brought: on a terminal, log in with it and ask once more.
    async fn open_stepped_up(
        self: &Arc<Self>,
        identity: &Identity,
        needed: StepUp,
        text: String,
        early: &mut Early<'_>,
    ) -> Result<Session, Failure> {
        if !self.context.interactive {
            return Err(Failure::login_needed(text).next(needed.command()));
        }
        self.context.printer.talk(&text);
        let stronger = Box::pin(login::step_up(&self.context, &identity.home, &needed));
        // The denial has its trace; what comes now is an attempt of its own.
        let began = Instant::now();
        let stronger = Arc::new(stronger.await.map_err(classified)?);
        *self.login.lock().await = Some((began, Instant::now()));
        *self.identity.lock().await = Arc::clone(&stronger);
        let recorder = self.recorder().await;
        match dial::dial(&stronger, self, early, &recorder).await? {
            Answer::Granted(session) => Ok(*session),
            Answer::Renew => {
                Err(Failure::login_needed("the policy has changed since you logged in").next("iapctl login"))
            }
            Answer::StepUp(_, text) => Err(Failure::denied(text)
                .because("the identity provider did not vouch for what the rule asks for")
                .next("ask your operator: docs/policy.md, \"Step-up\"")),
        }
    }

    /// The policy names groups that the certificate does not know of: renew it and ask once more.
    async fn open_renewed(
        self: &Arc<Self>,
        identity: &Identity,
        early: &mut Early<'_>,
        recorder: &Recorder,
    ) -> Result<Session, Failure> {
        self.context
            .printer
            .verbose("the agent asks for a renewed certificate");
        let mark = recorder.mark();
        let renewed = identity::renew_within_limit(identity).await.map_err(|error| {
            Failure::failed("the policy has changed, and your certificate could not be renewed to match")
                .because(format!("{error:#}"))
                .next("try again, or iapctl login")
        })?;
        recorder.phase("renew", mark, |_| {});
        let renewed = Arc::new(renewed);
        *self.identity.lock().await = Arc::clone(&renewed);
        match dial::dial(&renewed, self, early, recorder).await? {
            Answer::Granted(session) => Ok(*session),
            Answer::Renew => {
                Err(Failure::login_needed("the policy has changed since you logged in").next("iapctl login"))
            }
            Answer::StepUp(needed, text) => self.open_stepped_up(&renewed, needed, text, early).await,
        }
    }

    /// The login as it is on disk once the one in hand has expired, or others have renewed it or logged in
    /// anew.
    async fn current(&self) -> Result<Arc<Identity>, Failure> {
        let mut identity = self.identity.lock().await;
        let mut mark = self.mark.lock().await;
        let now = OffsetDateTime::now_utc();
        let stored_mark = identity.home.generation_mark();
        if now < identity.peer.not_after && (stored_mark.is_none() || *mark == stored_mark) {
            return Ok(Arc::clone(&identity));
        }
        *mark = stored_mark;
        let stored =
            identity::load(&identity.home, now).map_err(|error| Failure::failed(format!("{error:#}")))?;
        let fresh = match stored {
            Standing::Valid(fresh) => *fresh,
            Standing::NoLogin(_) => Box::pin(identity::require(&self.context))
                .await
                .map_err(classified)?,
        };
        *identity = Arc::new(fresh);
        Ok(Arc::clone(&identity))
    }

    /// Renews a certificate near its end, beside whatever goes on: nothing waits for it, and the next session that is
    /// opened finds the new one where it is stored. Short commands do not begin one, and of many sessions opened at
    /// once one does.
    pub fn renew_beside(self: &Arc<Self>) {
        if self.renewal_waits.swap(true, Ordering::Relaxed) {
            return;
        }
        let sessions = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(RENEW_AFTER_SECONDS)).await;
            sessions.renewal_waits.store(false, Ordering::Relaxed);
            let ended = sessions.renewals_ended.lock().await;
            if *ended {
                return;
            }
            let identity = Arc::clone(&*sessions.identity.lock().await);
            identity::renew_if_due(&identity, &sessions.context).await;
        });
    }

    /// Lets a renewal under way come to its end, and no other begin. One that the auth server has answered
    /// and we have not stored would look like a stolen certificate at the next.
    pub async fn end_renewals(&self) {
        *self.renewals_ended.lock().await = true;
    }
}

/// Any error as a failure with its status.
fn classified(error: anyhow::Error) -> Failure {
    match error.downcast::<Failure>() {
        Ok(failure) => failure,
        Err(error) => Failure::failed(format!("{error:#}")).with_status(ExitStatus::Failed),
    }
}
