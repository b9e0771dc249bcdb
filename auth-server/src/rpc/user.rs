//! `iap.v1.User`: what everybody who is logged in may do for themselves.

use std::sync::Arc;

use iap_audit::EventKind;
use iap_identity::{Issued, LockKind, Request as CertificateRequest, SessionId};
use iap_policy::Verb;
use iap_proto::v1;
use iap_runtime::traces::Recorder;
use serde_json::json;
use tonic::{Request, Response, Status};

use super::{Caller, ErrorCode, RpcError, UserCaller};
use crate::audit::sessions;
use crate::authority::{IssueError, Renewed, format_time, issued_to_wire};
use crate::context::AppContext;
use crate::locks::{self, NewLock};
use crate::login::{Logins, Vouching};
use crate::recordings;
use crate::spans;
use crate::ssh_access::{self, Person};
use crate::store::{Hash, hash_of};

/// The RPCs of users.
#[derive(Debug)]
pub(super) struct UserRpc {
    context: Arc<AppContext>,
    logins: Arc<Logins>,
}

/// How much longer than the login's last certificate the lock of a logout lasts: for clocks that differ, and agents
/// that were out of reach.
const LOGOUT_LOCK_SLACK: time::Duration = time::Duration::HOUR;
/// How often a renewal that another one overtook is judged again.
const OVERTAKEN_MAX: usize = 3;

impl UserRpc {
    pub(super) fn new(context: Arc<AppContext>, logins: Arc<Logins>) -> Self {
        Self { context, logins }
    }

    async fn renew_certificate(
        &self,
        caller: &Caller,
        asked: &v1::RenewRequest,
    ) -> Result<v1::LoginFinished, RpcError> {
        let user = caller.user()?;
        let recorder = spans::of_login(&self.context.traces, &user.peer.login_id);
        let renewed = self.next_certificate(caller, user, asked, &recorder).await;
        recorder.finish(spans::RENEW, |details| {
            details.text("iap.login_id", user.peer.login_id);
            details.number("iap.generation", user.peer.generation);
            if renewed.is_err() {
                details.failed("not renewed");
            }
        });
        renewed
    }

    async fn next_certificate(
        &self,
        caller: &Caller,
        user: &UserCaller,
        asked: &v1::RenewRequest,
        recorder: &Recorder,
    ) -> Result<v1::LoginFinished, RpcError> {
        let request_hash = hash_of(&asked.csr);
        let csr = CertificateRequest::parse(&asked.csr).map_err(RpcError::invalid)?;
        let ssh = ssh_access::request(&asked.ssh_csr).map_err(RpcError::invalid)?;
        if csr.spki_sha256() != user.peer.key_thumbprint {
            return Err(RpcError::invalid(
                "a renewal is for the key of the certificate that asks for it",
            ));
        }
        let (authority, now) = (&self.context.authority, self.context.clock.now());
        authority
            .quotas
            .check_user(&user.peer.id, &user.peer.name, now)
            .map_err(IssueError::from)?;
        let mark = recorder.mark();
        let vouching = self.logins.vouch_for_renewal(user.peer.login_id).await?;
        recorder.phase("identity provider", mark, |_| {});
        match vouching {
            Vouching::NotAsked | Vouching::Vouched | Vouching::Kept => {}
            Vouching::Refused(text) => return Err(RpcError::new(ErrorCode::LoginRequired, text)),
            Vouching::Locked(reason) => return Err(RpcError::denied(format!("locked: {reason}"))),
        }
        // Before, so that nothing delays a certificate that was issued.
        let current = self.context.policies.caller(&self.context, &user.peer).await?;
        let client_ip = caller.connection.address.ip();
        let local = current.facts.local().to_owned();
        let services = self
            .context
            .policies
            .visible(&self.context, current.facts, client_ip)
            .await;
        let mark = recorder.mark();
        let issued = self.issue_next(user, &csr, &request_hash).await?;
        recorder.phase("issue", mark, |_| {});
        let person = Person {
            user: user.record(),
            login_id: user.peer.login_id,
            local,
            not_after: issued.not_after(),
        };
        Ok(v1::LoginFinished {
            ssh: ssh_access::of(&self.context, &person, &services, ssh.as_ref()).await,
            issued: Some(issued_to_wire(&issued)),
            login_deadline_unix_ms: iap_proto::convert::time_to_wire(user.peer.login_deadline),
            bundle: Some(self.context.feed.bundle()),
            services: services
                .into_iter()
                .filter_map(|visible| visible.service)
                .collect(),
        })
    }

    async fn issue_next(
        &self,
        user: &UserCaller,
        csr: &CertificateRequest,
        request_hash: &Hash,
    ) -> Result<Box<Issued>, RpcError> {
        for _ in 0..OVERTAKEN_MAX {
            let authority = &self.context.authority;
            match authority
                .renew_user(&user.peer, csr.clone(), request_hash)
                .await?
            {
                Renewed::Issued(issued) => return Ok(issued),
                Renewed::Ended => {
                    let text = "this login was ended";
                    return Err(RpcError::new(ErrorCode::LoginRequired, text));
                }
                // The same request may have come twice at once.
                Renewed::Overtaken => {}
                Renewed::Reused => return Err(self.lock_both(user).await?),
            }
        }
        Err(RpcError::conflict(
            "another renewal of this certificate came first; try again",
        ))
    }

    /// An old certificate was used again: its key is in two hands, and we cannot tell whose are honest.
    async fn lock_both(&self, user: &UserCaller) -> Result<RpcError, RpcError> {
        let event = self.context.audit.event(EventKind::LoginReused)?;
        let event = event
            .user(&user.record())
            .login_id(&user.peer.login_id)
            .serial(&user.peer.serial);
        self.context
            .audit
            .record(event.field("generation", user.peer.generation))
            .await?;
        self.logins.end_generations(user.peer.login_id).await?;
        let left = user.peer.login_deadline - self.context.clock.now();
        let lock = NewLock {
            kind: LockKind::Login,
            target: user.peer.login_id.to_string(),
            reason: "a certificate of this login was used after it had been renewed; log in again".to_owned(),
            life: Some(left.try_into().unwrap_or_default()),
        };
        let lock = locks::add_by_rule(&self.context, &user.record(), lock).await?;
        Ok(RpcError::denied(format!("locked: {}", lock.reason)))
    }

    async fn end_login(&self, user: &UserCaller) -> Result<(), RpcError> {
        self.logins.end_generations(user.peer.login_id).await?;
        let event = self.context.audit.event(EventKind::LoginLogout)?;
        self.context
            .audit
            .record(event.user(&user.record()).login_id(&user.peer.login_id))
            .await?;
        self.logins.forget(user.peer.login_id).await?;
        // Nothing is renewed any more: the lock is for sessions, and for certificates that are still valid.
        let certificates = self.context.authority.user_life + LOGOUT_LOCK_SLACK;
        let left = (user.peer.login_deadline - self.context.clock.now()).min(certificates);
        let lock = NewLock {
            kind: LockKind::Login,
            target: user.peer.login_id.to_string(),
            reason: "this login was ended by `iapctl logout`; log in again".to_owned(),
            life: Some(left.try_into().unwrap_or_default()),
        };
        locks::add_by_rule(&self.context, &user.record(), lock).await?;
        Ok(())
    }

    async fn visible(&self, caller: &Caller) -> Result<Vec<v1::VisibleService>, RpcError> {
        let facts = caller.user()?.facts.clone();
        let client_ip = caller.connection.address.ip();
        Ok(self
            .context
            .policies
            .visible(&self.context, facts, client_ip)
            .await)
    }
}

#[tonic::async_trait]
impl v1::user_server::User for UserRpc {
    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::LoginFinished>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(
            self.renew_certificate(&caller, request.get_ref()).await?,
        ))
    }

    async fn logout(&self, request: Request<v1::Empty>) -> Result<Response<v1::Empty>, Status> {
        self.end_login(Caller::of(&request)?.user()?).await?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn services(&self, request: Request<v1::Empty>) -> Result<Response<v1::VisibleServices>, Status> {
        let services = self.visible(&Caller::of(&request)?).await?;
        let snapshot = self.context.feed.snapshot();
        let proxies = snapshot.content.proxies.iter().map(|proxy| proxy.address.clone());
        Ok(Response::new(v1::VisibleServices {
            services,
            proxies: proxies.collect(),
        }))
    }

    async fn whoami(&self, request: Request<v1::Empty>) -> Result<Response<v1::WhoamiReply>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(v1::WhoamiReply {
            json: whoami(caller.user()?),
        }))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainReply>, Status> {
        let caller = Caller::of(&request)?;
        let client_ip = caller.connection.address.ip();
        let asked = request.into_inner();
        let reply = self
            .context
            .policies
            .explain(&self.context, caller.user()?, client_ip, asked)
            .await?;
        Ok(Response::new(reply))
    }

    async fn sessions(
        &self,
        request: Request<v1::SessionsRequest>,
    ) -> Result<Response<v1::JsonReply>, Status> {
        let caller = Caller::of(&request)?;
        let json = sessions::list(&self.context, caller.user()?, request.into_inner()).await?;
        Ok(Response::new(v1::JsonReply { json, more: false }))
    }

    async fn recordings(
        &self,
        request: Request<v1::SessionRequest>,
    ) -> Result<Response<v1::JsonReply>, Status> {
        let caller = Caller::of(&request)?;
        let id = SessionId::from_bytes(&request.get_ref().session_id).map_err(RpcError::invalid)?;
        let json = recordings::list(&self.context, caller.user()?, id).await?;
        Ok(Response::new(v1::JsonReply { json, more: false }))
    }

    async fn session_place(
        &self,
        request: Request<v1::SessionRequest>,
    ) -> Result<Response<v1::SessionPlaceReply>, Status> {
        let caller = Caller::of(&request)?;
        let id = SessionId::from_bytes(&request.get_ref().session_id).map_err(RpcError::invalid)?;
        let place = recordings::place(&self.context, caller.user()?, id).await?;
        Ok(Response::new(place))
    }

    type RecordingStream = recordings::Parts;

    async fn recording(
        &self,
        request: Request<v1::RecordingRequest>,
    ) -> Result<Response<recordings::Parts>, Status> {
        let caller = Caller::of(&request)?;
        let parts = recordings::read(&self.context, caller.user()?, request.into_inner()).await?;
        Ok(Response::new(parts))
    }

    async fn session(&self, request: Request<v1::SessionRequest>) -> Result<Response<v1::JsonReply>, Status> {
        let caller = Caller::of(&request)?;
        let id = SessionId::from_bytes(&request.get_ref().session_id).map_err(RpcError::invalid)?;
        let json = sessions::show(&self.context, caller.user()?, id).await?;
        Ok(Response::new(v1::JsonReply { json, more: false }))
    }
}

fn whoami(user: &UserCaller) -> String {
    let verbs: Vec<&str> = user.verbs.iter().copied().map(Verb::as_str).collect();
    json!({
        "id": user.peer.id,
        "name": user.peer.name,
        "connector": user.peer.idp.connector,
        "issuer": user.peer.idp.issuer,
        "login_id": user.peer.login_id.to_string(),
        "login_method": user.peer.login_method,
        "auth_time": format_time(user.peer.auth_time),
        "login_deadline": format_time(user.peer.login_deadline),
        "not_after": format_time(user.peer.not_after),
        "generation": user.peer.generation,
        "groups": user.facts.groups,
        "certificate_groups": user.peer.groups,
        "verbs": verbs,
    })
    .to_string()
}
