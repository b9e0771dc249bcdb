//! Issues certificates: every one is in the audit log before it leaves this module.

pub mod backend;
pub mod generation;
mod keys;
pub mod quota;
pub mod services;

use std::sync::Arc;

use iap_audit::{Event, EventKind, UserRecord};
use iap_identity::{
    AgentId, AgentProfile, AuthProfile, ClusterName, GroupName, IdentityProvider, Issued, LoginId, Pin,
    PrepareError, Profile, ProxyId, ProxyProfile, Request, Serial, ServiceName, TrustBundle, UserId,
    UserPeer, UserProfile,
};
use iap_proto::v1;
use iap_runtime::tls::certificates_to_pem;
use time::OffsetDateTime;

use crate::audit::{AuditLog, RecordError};
use crate::context::{Clock, NoRandomness, Random};
use crate::policies::Policies;
use crate::store::{GenerationRow, Hash, SharedStore, StoreError};

pub use generation::Renewal;
pub(crate) use keys::AUTH_ID_FILE;
pub use keys::{AuthorityKeys, DATABASE_FILE, FeedSigner, Issuer, KeysError, SignError};
pub use quota::{QuotaExceeded, Quotas};
pub use services::{ServiceAuthorities, ServiceKeys};

/// The facts of a login that a user's certificate carries.
#[derive(Clone, Debug)]
pub struct UserLogin {
    /// Who.
    pub user_id: UserId,
    /// `user.name`.
    pub name: String,
    /// The login.
    pub login_id: LoginId,
    /// When the person authenticated at the provider.
    pub auth_time: OffsetDateTime,
    /// After this a new login is needed.
    pub login_deadline: OffsetDateTime,
    /// Which provider vouches.
    pub idp: IdentityProvider,
    /// The method's wire name.
    pub login_method: String,
    /// When a second factor was used.
    pub mfa_time: Option<OffsetDateTime>,
    /// Every group the provider named; issuing narrows them to those the policy names.
    pub groups: Vec<GroupName>,
    /// When the groups were read.
    pub groups_as_of: OffsetDateTime,
}

/// The issuing side of the cluster: keys, profiles, and the record of each certificate.
#[derive(Debug)]
pub struct Authority {
    /// Whose certificates these are.
    pub cluster: ClusterName,
    /// Keys and certificates of the authorities.
    pub keys: AuthorityKeys,
    /// The trust bundle that verifies what is issued here.
    pub bundle: Arc<TrustBundle>,
    /// What each service's backend trusts.
    pub services: ServiceAuthorities,
    /// How long a user's certificate lives.
    pub user_life: time::Duration,
    /// Where certificates are recorded.
    pub audit: AuditLog,
    /// Which groups certificates carry.
    pub policies: Policies,
    /// How much anybody is issued.
    pub quotas: Quotas,
    /// Generations of logins.
    pub store: SharedStore,
    /// The time.
    pub clock: Clock,
    /// Serials.
    pub random: Random,
}

/// No certificate was released.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The login's deadline has passed.
    #[error("the login is over")]
    LoginOver,
    /// The certificate could not be laid out or signed.
    #[error("a certificate could not be made: {0}")]
    Prepare(PrepareError),
    /// The finished certificate is not what it should be.
    #[error(transparent)]
    Unsound(#[from] iap_identity::IssueError),
    /// It could not be recorded, so it was not released.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The principal has had enough for now.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// No serial could be drawn.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl From<PrepareError> for IssueError {
    fn from(error: PrepareError) -> Self {
        match error {
            PrepareError::LoginOver => IssueError::LoginOver,
            PrepareError::WrongAuthority { .. }
            | PrepareError::WrongCluster
            | PrepareError::AuthorityNotValid
            | PrepareError::Name
            | PrepareError::Extension(_)
            | PrepareError::WrongSigner
            | PrepareError::Sign(_) => IssueError::Prepare(error),
        }
    }
}

impl Authority {
    /// Issues the first certificate (generation 1) of a login. The caller has checked that the
    /// request's key is the one the login was started with.
    pub async fn issue_user(&self, login: &UserLogin, request: Request) -> Result<Issued, IssueError> {
        let generations = GenerationRow {
            login_id: login.login_id,
            user_id: login.user_id.clone(),
            generation: 1,
            previous_until: None,
            ended_at: None,
            answered: None,
        };
        self.store.start_generations(&generations).await?;
        self.issue_user_generation(login, 1, request).await
    }

    /// Issues the only certificate of a login that cannot be renewed: it has no generations.
    pub(crate) async fn issue_once(&self, login: &UserLogin, request: Request) -> Result<Issued, IssueError> {
        self.issue_user_generation(login, 1, request).await
    }

    /// Issues a later certificate of the login `peer` descends from; `Reused` is for the caller to lock.
    /// `request_hash` is that of the request's exact bytes: the same again is a lost answer, not a second
    /// holder.
    pub async fn renew_user(
        &self,
        peer: &UserPeer,
        request: Request,
        request_hash: &Hash,
    ) -> Result<Renewed, IssueError> {
        let now = self.clock.now();
        if peer.login_deadline <= now {
            return Err(IssueError::LoginOver);
        }
        let Some(row) = self.store.generations(peer.login_id).await? else {
            return Ok(Renewed::Ended);
        };
        let next = match generation::judge(&row, peer.generation, request_hash, now) {
            Renewal::Allowed(next) => next,
            Renewal::Repeated(told) => {
                if !self.store.replace_generations(&row, &told).await?
                    && !self.is_repetition(peer, request_hash).await?
                {
                    return Ok(Renewed::Overtaken);
                }
                let login = self.login_of(peer).await?;
                let issued = self
                    .issue_user_generation(&login, row.generation, request)
                    .await?;
                return Ok(Renewed::Issued(Box::new(issued)));
            }
            Renewal::Ended => return Ok(Renewed::Ended),
            Renewal::Reused => return Ok(Renewed::Reused),
        };
        let generation = next.generation;
        // Made first: a write that nobody waits for any more may still happen.
        let mut advance = Advance {
            store: Arc::clone(&self.store),
            undo: Some((next.clone(), row.clone())),
        };
        if !self.store.replace_generations(&row, &next).await? {
            advance.undo = None;
            return Ok(Renewed::Overtaken);
        }
        let login = self.login_of(peer).await?;
        let issued = self.issue_user_generation(&login, generation, request).await?;
        advance.undo = None;
        Ok(Renewed::Issued(Box::new(issued)))
    }

    /// Whether the request is a repetition still: then another one has said so in the row.
    async fn is_repetition(&self, peer: &UserPeer, request_hash: &Hash) -> Result<bool, StoreError> {
        let row = self.store.generations(peer.login_id).await?;
        let judged = row.map(|row| generation::judge(&row, peer.generation, request_hash, self.clock.now()));
        Ok(matches!(judged, Some(Renewal::Repeated(_))))
    }

    /// Issues an agent's own certificate.
    pub async fn issue_agent(
        &self,
        id: AgentId,
        generation: u64,
        request: Request,
    ) -> Result<Issued, IssueError> {
        let profile = Profile::Agent(AgentProfile {
            id,
            cluster: self.cluster.clone(),
            generation,
        });
        let issued = self.issue(profile, request, |event| event.agent(&id)).await?;
        self.store
            .agent_certified(id, issued.serial_hex(), issued.not_after())
            .await?;
        Ok(issued)
    }

    /// Issues what an agent shows to a service's clients. The caller has checked the grant.
    pub async fn issue_service_leaf(
        &self,
        agent: AgentId,
        service: &ServiceName,
        request: Request,
    ) -> Result<Issued, IssueError> {
        let profile = Profile::ServiceLeaf {
            agent,
            service: service.clone(),
            cluster: self.cluster.clone(),
        };
        self.issue(profile, request, |event| event.agent(&agent).service(service))
            .await
    }

    /// Issues a proxy's certificate.
    pub async fn issue_proxy(&self, id: ProxyId, request: Request) -> Result<Issued, IssueError> {
        let profile = Profile::Proxy(ProxyProfile {
            id,
            cluster: self.cluster.clone(),
        });
        self.issue(profile, request, |event| event.field("proxy", id.to_string()))
            .await
    }

    /// Issues this auth server's own certificate.
    pub async fn issue_auth(&self, request: Request) -> Result<Issued, IssueError> {
        let profile = Profile::Auth(AuthProfile {
            id: self.keys.auth_id,
            cluster: self.cluster.clone(),
        });
        self.issue(profile, request, |event| event).await
    }

    /// The root's pin.
    pub fn pin(&self) -> Pin {
        self.keys.pin()
    }

    /// The root as PEM: what `ca.pem` holds and the pin names.
    pub fn root_pem(&self) -> String {
        certificates_to_pem([self.keys.root.der().as_ref()])
    }

    async fn issue_user_generation(
        &self,
        login: &UserLogin,
        generation: u64,
        request: Request,
    ) -> Result<Issued, IssueError> {
        let policy = self.policies.current();
        let user = UserRecord {
            id: login.user_id.to_string(),
            name: login.name.clone(),
            kind: "user".to_owned(),
        };
        let profile = Profile::User(UserProfile {
            id: login.user_id.clone(),
            cluster: self.cluster.clone(),
            name: login.name.clone(),
            login_id: login.login_id,
            auth_time: login.auth_time,
            login_deadline: login.login_deadline,
            generation,
            idp: login.idp.clone(),
            login_method: login.login_method.clone(),
            mfa_time: login.mfa_time,
            groups: policy.named(&login.groups),
            groups_vocabulary: policy.version,
            groups_as_of: login.groups_as_of,
            life: self.user_life,
        });
        let describe = |event: Event| {
            event
                .user(&user)
                .login_id(&login.login_id)
                .field("generation", generation)
        };
        self.issue(profile, request, describe).await
    }

    /// The facts of a live login, with name and groups as they were last read.
    async fn login_of(&self, peer: &UserPeer) -> Result<UserLogin, IssueError> {
        let known = self.store.user(&peer.id).await?;
        let (name, groups, groups_as_of) = match known {
            Some(user) => (user.name, user.groups, user.groups_as_of),
            None => (peer.name.clone(), peer.groups.clone(), peer.groups_as_of),
        };
        Ok(UserLogin {
            user_id: peer.id.clone(),
            name,
            login_id: peer.login_id,
            auth_time: peer.auth_time,
            login_deadline: peer.login_deadline,
            idp: peer.idp.clone(),
            login_method: peer.login_method.clone(),
            mfa_time: peer.mfa_time,
            groups,
            groups_as_of,
        })
    }

    async fn issue(
        &self,
        profile: Profile,
        request: Request,
        describe: impl FnOnce(Event) -> Event,
    ) -> Result<Issued, IssueError> {
        let now = self.clock.now();
        let class = profile.class().as_str();
        if let Err(exceeded) = self.quotas.take(&profile, now) {
            return self.refuse(exceeded, class, describe).await;
        }
        let issuer = match profile.ca_class() {
            iap_identity::CaClass::System => &self.keys.system,
            iap_identity::CaClass::User => &self.keys.user,
            iap_identity::CaClass::Workload => &self.keys.workload,
        };
        let key = request.spki_sha256();
        let serial = Serial::from_random(self.random.bytes()?);
        let prepared = request
            .approve(profile)
            .prepare(now, serial, &issuer.certificate)?;
        let issued = prepared.sign(&issuer.key)?.finish(now)?;
        let event = self
            .audit
            .event(EventKind::CertificateIssued)?
            .serial(issued.serial_hex())
            .field("class", class)
            .field("not_after", format_time(issued.not_after()))
            .field("key_sha256", iap_identity::hex(&key));
        self.audit.record(describe(event)).await?;
        Ok(issued)
    }
}

impl Authority {
    /// Recorded once in an hour for each principal: the log is what the quota protects.
    async fn refuse(
        &self,
        exceeded: QuotaExceeded,
        class: &str,
        describe: impl FnOnce(Event) -> Event,
    ) -> Result<Issued, IssueError> {
        if exceeded.is_news {
            let event = self
                .audit
                .event(EventKind::CertificateRefused)?
                .field("class", class)
                .field("limit", exceeded.key)
                .reason(&exceeded.to_string());
            self.audit.record(describe(event)).await?;
            tracing::warn!(%exceeded, "no certificate");
        }
        Err(exceeded.into())
    }
}

/// A generation that was taken. Dropped while no certificate of it was released, because that failed or
/// the caller went away, it is given back: a busy server must not make an honest client look like a thief.
struct Advance {
    store: SharedStore,
    /// From what, back to what.
    undo: Option<(GenerationRow, GenerationRow)>,
}

impl Drop for Advance {
    fn drop(&mut self) {
        let (Some((taken, before)), Ok(runtime)) = (self.undo.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let store = Arc::clone(&self.store);
        runtime.spawn(async move {
            // If it is not as we left it, another renewal has gone on from there.
            if let Err(error) = store.replace_generations(&taken, &before).await {
                tracing::warn!(%error, "a generation that was not used could not be given back");
            }
        });
    }
}

/// What became of a renewal.
#[derive(Debug)]
pub enum Renewed {
    /// The next certificate.
    Issued(Box<Issued>),
    /// The login was ended, or is not known.
    Ended,
    /// The certificate is of an earlier generation than may renew.
    Reused,
    /// Another renewal of the same certificate came first; asking again may help.
    Overtaken,
}

/// A certificate as RPCs return it.
pub fn issued_to_wire(issued: &Issued) -> v1::Issued {
    v1::Issued {
        chain: issued.chain_der(),
        not_after_unix_ms: iap_proto::convert::time_to_wire(issued.not_after()),
        serial: bytes_of_hex(issued.serial_hex()),
    }
}

/// RFC 3339 in UTC with milliseconds, as in records.
pub(crate) fn format_time(time: OffsetDateTime) -> String {
    use time::macros::format_description;
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    time.to_offset(time::UtcOffset::UTC)
        .format(&format)
        .unwrap_or_default()
}

fn bytes_of_hex(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2)
        .filter_map(|index| u8::from_str_radix(hex.get(2 * index..2 * index + 2)?, 16).ok())
        .collect()
}
