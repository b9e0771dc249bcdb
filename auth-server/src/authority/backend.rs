//! Certificates for accounts at private backends, of the service's own authorities. As everywhere here, each is in
//! the audit log before it is released.

use std::net::IpAddr;

use iap_audit::{Event, EventKind, UserRecord};
use iap_identity::backend::{
    BACKEND_CERTIFICATE_LIFE_MAX, ClientLeaf, ClientLeafIssueError, SshCertificate, SshCertificateKind,
    SshExtension, SshHostKey, SshIssueError, SshProfile, issue_client_leaf, issue_ssh_certificate,
    ssh_public_key,
};
use iap_identity::{AgentId, LoginId, LoginName, Request, Serial, ServiceName, hex};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::services::ServiceKeys;
use super::{Authority, KeysError, QuotaExceeded, format_time};
use crate::audit::RecordError;
use crate::context::NoRandomness;
use crate::store::hash_of;

/// What a user's certificate permits. Agents stay at home: whoever holds a forwarded one uses the user's keys.
const USER_EXTENSIONS: [SshExtension; 2] = [SshExtension::Pty, SshExtension::PortForwarding];

/// No certificate for a backend was released.
#[derive(Debug, thiserror::Error)]
pub enum BackendIssueError {
    /// The service's authorities cannot be used.
    #[error("the service's authorities cannot be used: {0}")]
    Keys(#[from] KeysError),
    /// The X.509 certificate could not be made.
    #[error(transparent)]
    Client(#[from] ClientLeafIssueError),
    /// The SSH certificate could not be made.
    #[error(transparent)]
    Ssh(#[from] SshIssueError),
    /// It could not be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The agent has had enough for now.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// No serial could be drawn.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// Who asks, for which accounts of what.
#[derive(Debug)]
pub struct BackendAsked<'a> {
    /// Who.
    pub agent: AgentId,
    /// Of which service.
    pub service: &'a ServiceName,
    /// Which accounts.
    pub logins: &'a [LoginName],
    /// The key they are for.
    pub request: &'a Request,
    /// Where an SSH backend sees the agent; empty: from anywhere.
    pub source_addresses: Vec<IpAddr>,
}

/// The accounts of one service that a person may use now.
#[derive(Debug)]
pub struct UserSshAsked<'a> {
    /// Of which service.
    pub service: &'a ServiceName,
    /// Which accounts; never empty.
    pub logins: &'a [LoginName],
    /// The key it is for.
    pub request: &'a Request,
    /// Where the server sees them come from: the service's agents. Empty: from anywhere.
    pub source_addresses: Vec<IpAddr>,
}

/// A server's own key, which somebody vouches for.
#[derive(Debug)]
pub struct SshHostAsked<'a> {
    /// Who.
    pub author: &'a UserRecord,
    /// Of which service.
    pub service: &'a ServiceName,
    /// What clients call it.
    pub names: Vec<String>,
    /// The key.
    pub key: &'a SshHostKey,
    /// How long.
    pub life: time::Duration,
}

/// Issues a person's certificates for the SSH services whose bytes agents pass on. Nothing of it may be released
/// before [`record`](Self::record).
#[derive(Debug)]
pub struct UserSshIssuer<'a> {
    authority: &'a Authority,
    user: &'a UserRecord,
    login_id: LoginId,
    not_after: OffsetDateTime,
    issued: Vec<Value>,
    key: Option<String>,
}

impl Authority {
    /// A certificate for each of the accounts, for clients of an X.509 backend.
    pub async fn issue_client_logins(
        &self,
        asked: &BackendAsked<'_>,
        keys: &ServiceKeys,
    ) -> Result<Vec<ClientLeaf>, BackendIssueError> {
        let now = self.take_for_agent(asked, asked.logins.len()).await?;
        let (mut issued, mut events) = (Vec::new(), Vec::new());
        for login in asked.logins {
            let serial = Serial::from_random(self.random.bytes()?);
            let (ca, signer) = (&keys.client, &keys.client_key);
            let leaf = issue_client_leaf(asked.request, login, ca, signer, now, serial)?;
            let event = self.backend_event("backend_login", asked, leaf.serial_hex(), leaf.not_after())?;
            events.push(event.login(Some(login)));
            issued.push(leaf);
        }
        self.audit.record_all(events).await?;
        Ok(issued)
    }

    /// A certificate for each of the accounts, on the agent's own key, for an SSH server.
    pub async fn issue_ssh_logins(
        &self,
        asked: &BackendAsked<'_>,
        keys: &ServiceKeys,
    ) -> Result<Vec<(LoginName, SshCertificate)>, BackendIssueError> {
        let now = self.take_for_agent(asked, asked.logins.len()).await?;
        let (mut issued, mut events) = (Vec::new(), Vec::new());
        for login in asked.logins {
            let profile = SshProfile {
                kind: SshCertificateKind::User,
                key_id: format!("agent {} for {}", asked.agent, asked.service),
                principals: vec![login.to_string()],
                source_addresses: asked.source_addresses.clone(),
                extensions: SshExtension::ALL.to_vec(),
                life: BACKEND_CERTIFICATE_LIFE_MAX,
            };
            let certificate = self.sign_ssh(asked.request, &profile, &keys.ssh_user_key, now)?;
            let serial = certificate.serial().to_string();
            let event = self.backend_event("ssh_login", asked, &serial, certificate.not_after())?;
            events.push(event.login(Some(login)));
            issued.push((login.clone(), certificate));
        }
        self.audit.record_all(events).await?;
        Ok(issued)
    }

    /// What an agent that ends SSH shows to its clients: `names` are what they call the service.
    pub async fn issue_ssh_host(
        &self,
        asked: &BackendAsked<'_>,
        names: Vec<String>,
        keys: &ServiceKeys,
    ) -> Result<SshCertificate, BackendIssueError> {
        let now = self.take_for_agent(asked, 1).await?;
        let profile = SshProfile {
            kind: SshCertificateKind::Host,
            key_id: format!("agent {} as {}", asked.agent, asked.service),
            principals: names,
            source_addresses: Vec::new(),
            extensions: Vec::new(),
            life: BACKEND_CERTIFICATE_LIFE_MAX,
        };
        let certificate = self.sign_ssh(asked.request, &profile, &keys.ssh_host_key, now)?;
        let serial = certificate.serial().to_string();
        let event = self.backend_event("ssh_host", asked, &serial, certificate.not_after())?;
        self.audit.record(event).await?;
        Ok(certificate)
    }

    /// A certificate for a server that is not ours.
    pub async fn sign_ssh_host(
        &self,
        asked: SshHostAsked<'_>,
        keys: &ServiceKeys,
    ) -> Result<SshCertificate, BackendIssueError> {
        let profile = SshProfile {
            kind: SshCertificateKind::Host,
            key_id: format!("host of {} by {}", asked.service, asked.author.name),
            principals: asked.names,
            source_addresses: Vec::new(),
            extensions: Vec::new(),
            life: asked.life,
        };
        let (serial, nonce) = (Serial::from_random(self.random.bytes()?), self.random.bytes()?);
        let (key, signer) = (asked.key.data(), &keys.ssh_host_key);
        let certificate = issue_ssh_certificate(key, &profile, signer, self.clock.now(), serial, nonce)?;
        let event = self.audit.event(EventKind::CertificateIssued)?;
        let event = event
            .user(asked.author)
            .service(asked.service)
            .serial(&certificate.serial().to_string())
            .field("class", "ssh_host")
            .field("principals", profile.principals.clone())
            .field("not_after", format_time(certificate.not_after()))
            .field("key_sha256", hex(&hash_of(&asked.key.to_bytes())));
        self.audit.record(event).await?;
        Ok(certificate)
    }

    fn sign_ssh(
        &self,
        request: &Request,
        profile: &SshProfile,
        signer: &rcgen::KeyPair,
        now: OffsetDateTime,
    ) -> Result<SshCertificate, BackendIssueError> {
        let serial = Serial::from_random(self.random.bytes()?);
        let (key, nonce) = (ssh_public_key(request)?, self.random.bytes()?);
        Ok(issue_ssh_certificate(&key, profile, signer, now, serial, nonce)?)
    }

    fn backend_event(
        &self,
        class: &'static str,
        asked: &BackendAsked<'_>,
        serial: &str,
        not_after: OffsetDateTime,
    ) -> Result<Event, NoRandomness> {
        let event = self.audit.event(EventKind::CertificateIssued)?;
        Ok(event
            .agent(&asked.agent)
            .service(asked.service)
            .serial(serial)
            .field("class", class)
            .field("not_after", format_time(not_after))
            .field("key_sha256", hex(&asked.request.spki_sha256())))
    }

    /// Counts what is about to be issued; the time it is issued at.
    async fn take_for_agent(
        &self,
        asked: &BackendAsked<'_>,
        certificates: usize,
    ) -> Result<OffsetDateTime, BackendIssueError> {
        let now = self.clock.now();
        let Err(exceeded) = self.quotas.take_for_agent(asked.agent, certificates, now) else {
            return Ok(now);
        };
        if exceeded.is_news {
            let event = self
                .audit
                .event(EventKind::CertificateRefused)?
                .agent(&asked.agent)
                .service(asked.service)
                .field("class", "backend_login")
                .field("limit", exceeded.key)
                .reason(&exceeded.to_string());
            self.audit.record(event).await?;
            tracing::warn!(%exceeded, "no certificates for backends");
        }
        Err(exceeded.into())
    }
}

/// Certificates of one record: with the longest names it stays below a record's limit.
const CERTIFICATES_PER_RECORD_MAX: usize = 32;

impl<'a> UserSshIssuer<'a> {
    /// For this person, whose own certificate ends then.
    pub fn new(
        authority: &'a Authority,
        user: &'a UserRecord,
        login_id: LoginId,
        not_after: OffsetDateTime,
    ) -> Self {
        Self {
            authority,
            user,
            login_id,
            not_after,
            issued: Vec::new(),
            key: None,
        }
    }

    /// One certificate, which is to be recorded before it is released.
    pub fn issue(
        &mut self,
        asked: &UserSshAsked<'_>,
        keys: &ServiceKeys,
    ) -> Result<SshCertificate, BackendIssueError> {
        let now = self.authority.clock.now();
        let profile = SshProfile {
            kind: SshCertificateKind::User,
            key_id: format!("{} login {}", self.user.name, self.login_id),
            principals: asked.logins.iter().map(ToString::to_string).collect(),
            source_addresses: asked.source_addresses.clone(),
            extensions: USER_EXTENSIONS.to_vec(),
            life: self.not_after - now,
        };
        let certificate = self
            .authority
            .sign_ssh(asked.request, &profile, &keys.ssh_user_key, now)?;
        self.key = Some(hex(&asked.request.spki_sha256()));
        self.issued.push(json!({
            "service": asked.service,
            "principals": profile.principals,
            "serial": certificate.serial().to_string(),
        }));
        Ok(certificate)
    }

    /// Writes down what was issued: one record for many, as they come with every renewal.
    pub async fn record(self) -> Result<(), BackendIssueError> {
        let audit = &self.authority.audit;
        let mut events = Vec::new();
        for certificates in self.issued.chunks(CERTIFICATES_PER_RECORD_MAX) {
            let event = audit
                .event(EventKind::CertificateIssued)?
                .user(self.user)
                .login_id(&self.login_id)
                .field("class", "ssh_user")
                .field("certificates", certificates)
                .field("not_after", format_time(self.not_after))
                .field("key_sha256", self.key.clone());
            events.push(event);
        }
        Ok(audit.record_all(events).await?)
    }
}
