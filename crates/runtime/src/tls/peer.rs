//! Verifies the client of one connection, and remembers who it was.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use iap_identity::verify::{EXPIRED_AGENT_GRACE, EXPIRED_USER_GRACE};
use iap_identity::{
    AgentPeer, CaClass, Class, ClassSet, PeerAlert, PeerError, TrustBundle, UserPeer, VerifiedPeer,
    verify_client, verify_expired_agent, verify_expired_user,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;

use super::known::{Known, Term};
use super::provider;

/// Whether a client must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// It must.
    Required,
    /// It may come without one.
    Optional,
    /// It may come without one, or with an agent's that expired up to 30 days ago, or a user's that expired up to 12
    /// hours ago and whose login goes on: the auth server's API, where such a certificate is good for its own renewal
    /// and nothing else.
    OptionalOrExpired,
}

/// The alert that refuses a client which has proven who it is (RFC 8446 §6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `access_denied(49)`: policy says no.
    AccessDenied,
    /// `certificate_expired(45)`
    CertificateExpired,
    /// `certificate_revoked(44)`: a lock.
    CertificateRevoked,
}

/// Decides about a client once it has proven possession of its key, before the handshake ends: the only moment
/// at which TLS has words for a denial.
pub type PostPossession = Box<dyn Fn(&VerifiedPeer) -> Result<(), Refusal> + Send + Sync>;

/// Verifies the client certificate of one connection against the bundle that is current when it begins.
///
/// Make a new one for each connection: it keeps who the client turned out to be. With resumption off, rustls
/// calls it in every handshake.
pub struct PeerVerifier {
    bundle: Arc<TrustBundle>,
    accepted: ClassSet,
    demand: Demand,
    earliest_now: Option<OffsetDateTime>,
    hook: Option<PostPossession>,
    authorities: Arc<[DistinguishedName]>,
    known: Option<Arc<KnownClients>>,
    presented: OnceLock<Presented>,
    proven: OnceLock<Presented>,
    refused: OnceLock<PeerError>,
}

#[derive(Debug, Clone)]
enum Presented {
    Current(Arc<VerifiedPeer>),
    ExpiredAgent(Arc<AgentPeer>),
    ExpiredUser(Arc<UserPeer>),
}

/// What the connections of one listener share: whose certificates were verified a moment ago, and by which bundle.
#[derive(Debug, Default)]
pub struct KnownClients {
    peers: Known<Arc<VerifiedPeer>>,
    authorities: Mutex<Option<Authorities>>,
}

/// The names of the authorities in one bundle that issue to some classes.
#[derive(Debug)]
struct Authorities {
    bundle: Arc<TrustBundle>,
    accepted: ClassSet,
    names: Arc<[DistinguishedName]>,
}

impl KnownClients {
    /// A verifier for one connection, as [`PeerVerifier::new`] makes it, which verifies nothing anew that others have.
    pub fn verifier(
        self: &Arc<Self>,
        bundle: Arc<TrustBundle>,
        accepted: ClassSet,
        demand: Demand,
    ) -> PeerVerifier {
        let authorities = self.authorities(&bundle, accepted);
        PeerVerifier {
            known: Some(Arc::clone(self)),
            ..PeerVerifier::with_authorities(bundle, accepted, demand, authorities)
        }
    }

    fn authorities(&self, bundle: &Arc<TrustBundle>, accepted: ClassSet) -> Arc<[DistinguishedName]> {
        let mut held = self.authorities.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some(held) if Arc::ptr_eq(&held.bundle, bundle) && held.accepted == accepted => {
                Arc::clone(&held.names)
            }
            Some(_) | None => {
                let names = authority_names(bundle, accepted);
                *held = Some(Authorities {
                    bundle: Arc::clone(bundle),
                    accepted,
                    names: Arc::clone(&names),
                });
                names
            }
        }
    }
}

impl PeerVerifier {
    /// Accepts clients of the classes `accepted`.
    pub fn new(bundle: Arc<TrustBundle>, accepted: ClassSet, demand: Demand) -> Self {
        let authorities = authority_names(&bundle, accepted);
        Self::with_authorities(bundle, accepted, demand, authorities)
    }

    fn with_authorities(
        bundle: Arc<TrustBundle>,
        accepted: ClassSet,
        demand: Demand,
        authorities: Arc<[DistinguishedName]>,
    ) -> Self {
        Self {
            bundle,
            accepted,
            demand,
            earliest_now: None,
            hook: None,
            authorities,
            known: None,
            presented: OnceLock::new(),
            proven: OnceLock::new(),
            refused: OnceLock::new(),
        }
    }

    /// Runs `hook` after possession is proven; its refusal ends the handshake with an alert.
    #[must_use]
    pub fn with_hook(mut self, hook: PostPossession) -> Self {
        self.hook = Some(hook);
        self
    }

    /// Never acts on a time before `earliest`, whatever the machine's clock says.
    #[must_use]
    pub fn not_before(mut self, earliest: OffsetDateTime) -> Self {
        self.earliest_now = Some(earliest);
        self
    }

    /// The client, once the handshake is over and if it showed a valid certificate.
    pub fn peer(&self) -> Option<Arc<VerifiedPeer>> {
        match self.proven.get()? {
            Presented::Current(peer) => Some(Arc::clone(peer)),
            Presented::ExpiredAgent(_) | Presented::ExpiredUser(_) => None,
        }
    }

    /// The agent, if the client showed an agent's expired certificate: good for renewal and nothing else.
    pub fn expired_agent(&self) -> Option<Arc<AgentPeer>> {
        match self.proven.get()? {
            Presented::ExpiredAgent(agent) => Some(Arc::clone(agent)),
            Presented::Current(_) | Presented::ExpiredUser(_) => None,
        }
    }

    /// The user, likewise.
    pub fn expired_user(&self) -> Option<Arc<UserPeer>> {
        match self.proven.get()? {
            Presented::ExpiredUser(user) => Some(Arc::clone(user)),
            Presented::Current(_) | Presented::ExpiredAgent(_) => None,
        }
    }

    /// Why the certificate was refused, for the log. The client sees an alert only.
    pub fn refusal(&self) -> Option<&PeerError> {
        self.refused.get()
    }

    fn identify(&self, chain: &[CertificateDer<'_>], now: OffsetDateTime) -> Result<Presented, PeerError> {
        match (self.verify(chain, now), self.demand) {
            (Ok(peer), _) => Ok(Presented::Current(peer)),
            (Err(PeerError::Expired { not_after }), Demand::OptionalOrExpired) => self
                .identify_expired(chain, now)
                .map_err(|error| expired_unless_better(error, not_after)),
            (Err(error), Demand::Required | Demand::Optional | Demand::OptionalOrExpired) => Err(error),
        }
    }

    fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Arc<VerifiedPeer>, PeerError> {
        let (Some(known), Some(leaf)) = (&self.known, chain.first()) else {
            return verify_client(chain, self.accepted, &self.bundle, now).map(Arc::new);
        };
        let accepted = |peer: &Arc<VerifiedPeer>| self.accepted.contains(peer.class());
        if let Some(peer) = known.peers.recall(leaf, &self.bundle, now, accepted) {
            return Ok(peer);
        }
        let peer = Arc::new(verify_client(chain, self.accepted, &self.bundle, now)?);
        let term = Term::of(&self.bundle, peer.class().ca_class(), peer.not_after(), now);
        known.peers.keep(leaf, &self.bundle, term, Arc::clone(&peer));
        Ok(peer)
    }

    fn identify_expired(
        &self,
        chain: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Presented, PeerError> {
        let agent = verify_expired_agent(chain, &self.bundle, now, EXPIRED_AGENT_GRACE);
        match agent {
            Ok(agent) if self.accepted.contains(Class::Agent) => Ok(Presented::ExpiredAgent(Arc::new(agent))),
            Err(PeerError::WrongClass { .. }) if self.accepted.contains(Class::User) => {
                let user = verify_expired_user(chain, &self.bundle, now, EXPIRED_USER_GRACE)?;
                Ok(Presented::ExpiredUser(Arc::new(user)))
            }
            Ok(_) => Err(PeerError::WrongClass { found: Class::Agent }),
            Err(error) => Err(error),
        }
    }

    fn time(&self, now: UnixTime) -> Result<OffsetDateTime, Error> {
        let now = offset_date_time(now)?;
        Ok(self.earliest_now.map_or(now, |earliest| earliest.max(now)))
    }

    /// The client holds the key: now it is who it says, and may be told no.
    fn admit(&self) -> Result<(), Error> {
        let Some(presented) = self.presented.get() else {
            return Err(Error::General("signature without certificate".to_owned()));
        };
        if let (Presented::Current(peer), Some(hook)) = (presented, &self.hook) {
            hook(peer).map_err(refusal_error)?;
        }
        let _ = self.proven.set(presented.clone());
        Ok(())
    }
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("PeerVerifier");
        shown
            .field("accepted", &self.accepted)
            .field("demand", &self.demand)
            .finish_non_exhaustive()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.demand == Demand::Required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.authorities
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = chain_of(end_entity, intermediates);
        match self.identify(&chain, self.time(now)?) {
            Ok(presented) => {
                let _ = self.presented.set(presented);
                Ok(ClientCertVerified::assertion())
            }
            Err(error) => {
                let alert = peer_error(&error);
                let _ = self.refused.set(error);
                Err(alert)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12_refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        let valid = verify_tls13_signature(message, certificate, signature, &algorithms)?;
        self.admit()?;
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

pub(super) fn chain_of<'a>(
    end_entity: &CertificateDer<'a>,
    intermediates: &[CertificateDer<'a>],
) -> Vec<CertificateDer<'a>> {
    std::iter::once(end_entity)
        .chain(intermediates)
        .cloned()
        .collect()
}

pub(super) fn offset_date_time(now: UnixTime) -> Result<OffsetDateTime, Error> {
    let seconds = i64::try_from(now.as_secs()).ok();
    seconds
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(Error::FailedToGetCurrentTime)
}

pub(super) fn tls12_refused() -> Error {
    Error::General("TLS 1.2 is never negotiated here".to_owned())
}

/// The error that makes rustls send the alert.
pub(super) fn peer_error(error: &PeerError) -> Error {
    Error::InvalidCertificate(match error.alert() {
        PeerAlert::CertificateExpired => CertificateError::Expired,
        PeerAlert::UnknownCa => CertificateError::UnknownIssuer,
        PeerAlert::BadCertificate => CertificateError::BadEncoding,
        PeerAlert::AccessDenied => CertificateError::ApplicationVerificationFailure,
    })
}

fn refusal_error(refusal: Refusal) -> Error {
    Error::InvalidCertificate(match refusal {
        Refusal::AccessDenied => CertificateError::ApplicationVerificationFailure,
        Refusal::CertificateExpired => CertificateError::Expired,
        Refusal::CertificateRevoked => CertificateError::Revoked,
    })
}

/// To somebody with an expired certificate, that it has expired says more than that it is of another class.
fn expired_unless_better(error: PeerError, not_after: OffsetDateTime) -> PeerError {
    match error {
        PeerError::WrongClass { .. } => PeerError::Expired { not_after },
        other => other,
    }
}

/// Subjects of the authorities that issue to `accepted`, so that clients with several certificates choose well, and of the
/// root above them (RFC 8446 §4.2.4 has both): Java's clients look for the issuer of the last certificate they hold, which
/// is the root where they hold their authority's too. It is a name: no certificate is verified up to there.
fn authority_names(bundle: &TrustBundle, accepted: ClassSet) -> Arc<[DistinguishedName]> {
    let mut store = RootCertStore::empty();
    for authority in CaClass::ALL {
        let issues = |class: &Class| class.ca_class() == authority && accepted.contains(*class);
        if Class::ALL.iter().any(issues) {
            store.add_parsable_certificates(bundle.authorities(authority).iter().cloned());
        }
    }
    store.add_parsable_certificates([bundle.root_der().clone()]);
    store.subjects().into()
}
