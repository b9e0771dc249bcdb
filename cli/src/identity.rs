//! The login stored on this machine: who it says one is, whether it is still good, and its renewal on use.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use iap_identity::verify::EXPIRED_USER_GRACE;
use iap_identity::{
    CLOCK_SKEW, CertificateDer, Class, ClassSet, PeerError, TrustBundle, UserPeer, VerifiedPeer,
};
use iap_proto::v1;
use iap_runtime::net::HostPort;
use iap_runtime::tls::{self, ClientConfig, FixedIdentity, Material, ServerVerifier};
use prost::Message as _;
use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::api::Auth;
use crate::context::Context;
use crate::duration::rough;
use crate::failure::Failure;
use crate::home::{ClusterHome, ClusterRecord, Generation};
use crate::login;

/// A certificate with less than this share of its life left is renewed when the auth server is talked to.
const RENEW_BELOW_LIFE_DIVIDED_BY: i32 = 3;
/// A renewal never holds a command up for longer.
const RENEW_SECONDS_MAX: u64 = 3;

/// A login that is good now.
#[derive(Clone)]
pub struct Identity {
    /// Where it is kept.
    pub home: ClusterHome,
    /// How the cluster is reached.
    pub record: ClusterRecord,
    /// Who one is.
    pub peer: UserPeer,
    /// The authorities of the cluster.
    pub bundle: Arc<TrustBundle>,
    /// The certificate, then the user CA.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key, PKCS#8 as PEM.
    key_pem: Zeroizing<String>,
    configs: SharedConfigs,
}

/// What TLS connections of one login are made with, one for each list of protocols. Clones share them: a session holds
/// its own for as long as it lasts, and each would be a key and the cluster's bundle.
#[derive(Clone, Default)]
struct SharedConfigs(Arc<Mutex<Vec<Arc<ClientConfig>>>>);

/// What is stored.
pub enum Standing {
    /// A login that is good now.
    Valid(Box<Identity>),
    /// None, or one that is over: why, and what to do.
    NoLogin(Failure),
}

impl Identity {
    /// The private key.
    ///
    /// # Errors
    /// When the stored key is damaged.
    pub fn key(&self) -> anyhow::Result<KeyPair> {
        KeyPair::from_pem(&self.key_pem).context("the stored private key cannot be read")
    }

    /// TLS towards a service: this login's certificate, and the stored authorities.
    ///
    /// # Errors
    /// When the stored login is damaged.
    pub fn service_config(&self, alpn: &[&str]) -> anyhow::Result<Arc<ClientConfig>> {
        let mut configs = self.configs.0.lock().unwrap_or_else(PoisonError::into_inner);
        let speaks_alpn = |config: &&Arc<ClientConfig>| {
            let own = config.alpn_protocols.iter().map(Vec::as_slice);
            own.eq(alpn.iter().map(|protocol| protocol.as_bytes()))
        };
        if let Some(config) = configs.iter().find(speaks_alpn) {
            return Ok(Arc::clone(config));
        }
        let material = Material::new(self.bundle.as_ref().clone());
        let key = iap_runtime::keys::private_key_der(&self.key()?);
        let certificate = FixedIdentity(tls::certified_key(self.chain.clone(), key)?);
        let verifier = Arc::new(ServerVerifier::new(material));
        let config = tls::client_config(verifier, Some(Arc::new(certificate)), alpn)?;
        configs.push(Arc::clone(&config));
        Ok(config)
    }

    /// The proxy to dial first.
    ///
    /// # Errors
    /// When `cluster.json` names none.
    pub fn proxy(&self) -> anyhow::Result<HostPort> {
        let first = self
            .record
            .addresses
            .first()
            .context("cluster.json names no proxy: log in again")?;
        Ok(HostPort::parse(first)?)
    }

    /// Every proxy, the first choice first.
    ///
    /// # Errors
    /// When `cluster.json` names none.
    pub fn proxies(&self) -> anyhow::Result<Vec<HostPort>> {
        self.proxy()?;
        Ok(self
            .record
            .addresses
            .iter()
            .map(|address| HostPort::parse(address))
            .collect::<Result<_, _>>()?)
    }
}

/// Reads what is stored for a cluster.
///
/// # Errors
/// When files are there and cannot be read.
pub fn load(home: &ClusterHome, now: OffsetDateTime) -> anyhow::Result<Standing> {
    let cluster = home.cluster();
    let no_login = |what: String| {
        Standing::NoLogin(Failure::login_needed(what).next(format!("iapctl login {}", address_text(home))))
    };
    let (Some(record), Some(generation), Some(bundle)) = (home.record()?, home.generation()?, home.bundle()?)
    else {
        return Ok(no_login(format!("you are not logged in to {}", cluster.as_str())));
    };
    let bundle = read_bundle(&bundle, &record, now)?;
    let chain = read_chain(&generation)?;
    match verify(&chain, &bundle, now) {
        Ok(peer) => Ok(Standing::Valid(Box::new(Identity {
            home: home.clone(),
            record,
            peer,
            bundle: Arc::new(bundle),
            chain,
            key_pem: key_text(&generation)?,
            configs: SharedConfigs::default(),
        }))),
        Err(PeerError::Expired { not_after }) => {
            let who = verify(&chain, &bundle, not_after)
                .map(|peer| peer.name)
                .unwrap_or_default();
            let ago = rough(now - not_after);
            Ok(no_login(format!(
                "your login to {} as {who} expired {ago} ago",
                cluster.as_str()
            )))
        }
        Err(error) => Ok(no_login(format!(
            "the stored login to {} is not usable: {error}",
            cluster.as_str()
        ))),
    }
}

/// A login that goes on, although its certificate has expired: the machine slept. The certificate is good for its own
/// renewal, and nothing else, for as long as the auth server takes it.
///
/// # Errors
/// When files are there and cannot be read.
pub fn lapsed(home: &ClusterHome, now: OffsetDateTime) -> anyhow::Result<Option<Identity>> {
    let (Some(record), Some(generation), Some(bundle)) = (home.record()?, home.generation()?, home.bundle()?)
    else {
        return Ok(None);
    };
    let bundle = read_bundle(&bundle, &record, now)?;
    let chain = read_chain(&generation)?;
    let expired = iap_identity::verify_expired_user(&chain, &bundle, now, EXPIRED_USER_GRACE);
    Ok(match expired {
        Ok(peer) if peer.not_after < now => Some(Identity {
            home: home.clone(),
            record,
            peer,
            bundle: Arc::new(bundle),
            chain,
            key_pem: key_text(&generation)?,
            configs: SharedConfigs::default(),
        }),
        Ok(_) | Err(_) => None,
    })
}

/// Renews the certificate of a login that goes on; nothing where that is not possible, for whatever reason.
async fn revive(context: &Context, home: &ClusterHome) -> Option<Identity> {
    let identity = lapsed(home, OffsetDateTime::now_utc()).ok()??;
    match renew_within_limit(&identity).await {
        Ok(renewed) => {
            context
                .printer
                .verbose("the certificate had expired, and is renewed");
            Some(renewed)
        }
        Err(error) => {
            let why = format!("the expired certificate could not be renewed: {error:#}");
            context.printer.verbose(&why);
            None
        }
    }
}

/// Whose login is stored, although it may have expired.
pub fn last_peer(home: &ClusterHome) -> Option<UserPeer> {
    let (record, generation, bundle) = (
        home.record().ok()??,
        home.generation().ok()??,
        home.bundle().ok()??,
    );
    let now = OffsetDateTime::now_utc();
    let bundle = read_bundle(&bundle, &record, now).ok()?;
    let chain = read_chain(&generation).ok()?;
    match verify(&chain, &bundle, now) {
        Ok(peer) => Some(peer),
        Err(PeerError::Expired { not_after }) => verify(&chain, &bundle, not_after).ok(),
        Err(_) => None,
    }
}

/// The login to work with. A certificate that expired while the login goes on is renewed; on a terminal a missing or
/// expired login is made good first.
///
/// # Errors
/// Login needed when nobody can be asked.
pub async fn require(context: &Context) -> anyhow::Result<Identity> {
    let home = context.cluster_home()?;
    let standing = load(&home, OffsetDateTime::now_utc())?;
    if matches!(standing, Standing::NoLogin(_))
        && let Some(renewed) = revive(context, &home).await
    {
        return Ok(renewed);
    }
    match standing {
        Standing::Valid(identity) => Ok(*identity),
        Standing::NoLogin(failure) if context.interactive && home.record()?.is_some() => {
            context.printer.talk(&format!("{failure}; logging in again."));
            Box::pin(login::again(context, &home)).await
        }
        Standing::NoLogin(failure) => Err(failure.into()),
    }
}

/// Renews a certificate near its end. What goes wrong is only worth a word: the certificate is still good.
pub async fn renew_if_due(identity: &Identity, context: &Context) {
    if !is_due(&identity.peer, OffsetDateTime::now_utc()) {
        return;
    }
    match renew_within_limit(identity).await {
        Ok(_) => context.printer.verbose("renewed the certificate"),
        Err(error) => context
            .printer
            .verbose(&format!("the certificate could not be renewed yet: {error:#}")),
    }
}

/// Renews now, with the same key, and stores the result. Takes no longer than a command may be held up.
///
/// # Errors
/// When the auth server refuses, cannot be reached, or takes too long.
pub async fn renew_within_limit(identity: &Identity) -> anyhow::Result<Identity> {
    Box::pin(renew_within(identity, Duration::from_secs(RENEW_SECONDS_MAX))).await
}

/// The same within another limit. One that was given up is asked for again by the same request, which costs
/// nothing.
///
/// # Errors
/// As for [`renew_within_limit`].
pub async fn renew_within(identity: &Identity, limit: Duration) -> anyhow::Result<Identity> {
    Box::pin(tokio::time::timeout(limit, renew(identity)))
        .await
        .context("the auth server took too long")?
}

async fn renew(identity: &Identity) -> anyhow::Result<Identity> {
    let home = &identity.home;
    let _lock = home.lock().await?;
    // Somebody else may have renewed, logged in anew or logged out while this waited. What they renewed may have expired since
    // then: it is the newest that is renewed.
    let current = match load(home, OffsetDateTime::now_utc())? {
        Standing::Valid(current) if !is_same(&current.peer, &identity.peer) => return Ok(*current),
        Standing::Valid(current) => *current,
        Standing::NoLogin(failure) => match lapsed(home, OffsetDateTime::now_utc())? {
            Some(current) if current.peer.login_id == identity.peer.login_id => current,
            Some(_) | None => return Err(failure.into()),
        },
    };
    let key = current.key()?;
    let csr = renewal_request(home, &key)?;
    let ssh = crate::ssh::key(home)?;
    let ssh_csr = iap_identity::certificate_request(&ssh)?;
    let auth = Auth::connect(&current)?;
    let finished = crate::api::answer(auth.user().renew(v1::RenewRequest { csr, ssh_csr }).await)?;
    if !home.has_generation() {
        return Err(Failure::login_needed("the login was ended meanwhile")
            .next("iapctl login")
            .into());
    }
    let record = home.record()?.unwrap_or(current.record);
    login::store(home, &record, (&key, &ssh), finished)
}

fn is_same(left: &UserPeer, right: &UserPeer) -> bool {
    (left.login_id, left.generation) == (right.login_id, right.generation)
}

/// The request that was sent before, if its answer was lost: the auth server then knows that it is not
/// somebody else with our key. Kept before it is sent.
fn renewal_request(home: &ClusterHome, key: &KeyPair) -> anyhow::Result<Vec<u8>> {
    if let Some(kept) = home.renewal_request()? {
        let request = iap_identity::Request::parse(&kept);
        if request.is_ok_and(|request| request.public_key_spki() == key.subject_public_key_info()) {
            return Ok(kept);
        }
    }
    let request = iap_identity::certificate_request(key)?;
    home.keep_renewal_request(&request)?;
    Ok(request)
}

fn is_due(peer: &UserPeer, now: OffsetDateTime) -> bool {
    // The start is set back by the clocks' allowed difference.
    let life = peer.not_after - (peer.not_before + CLOCK_SKEW);
    peer.not_after - now < life / RENEW_BELOW_LIFE_DIVIDED_BY && peer.not_after < peer.login_deadline
}

/// The bundle as it was stored: its root against the pin, everything else against the root, and the
/// signature against its own keys.
///
/// # Errors
/// When any of that fails.
pub fn read_bundle(
    signed: &[u8],
    record: &ClusterRecord,
    now: OffsetDateTime,
) -> anyhow::Result<TrustBundle> {
    let signed = v1::Signed::decode(signed).context("the stored trust bundle is malformed")?;
    Ok(iap_proto::open_bundle(
        &signed,
        &record.pin()?,
        &record.cluster,
        now,
    )?)
}

/// Verifies a user's chain.
///
/// # Errors
/// Why it is not good.
pub fn verify(
    chain: &[CertificateDer<'static>],
    bundle: &TrustBundle,
    now: OffsetDateTime,
) -> Result<UserPeer, PeerError> {
    match iap_identity::verify_client(chain, ClassSet::of(&[Class::User]), bundle, now)? {
        VerifiedPeer::User(peer) => Ok(peer),
        other @ (VerifiedPeer::Bot(_)
        | VerifiedPeer::Agent(_)
        | VerifiedPeer::Proxy(_)
        | VerifiedPeer::Auth(_)) => Err(PeerError::WrongClass { found: other.class() }),
    }
}

fn read_chain(generation: &Generation) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(&generation.certificates_pem)
        .collect::<Result<_, _>>()
        .context("the stored certificate cannot be read: log in again")
}

fn key_text(generation: &Generation) -> anyhow::Result<Zeroizing<String>> {
    let text =
        String::from_utf8(generation.key_pem.to_vec()).context("the stored private key cannot be read")?;
    Ok(Zeroizing::new(text))
}

fn address_text(home: &ClusterHome) -> String {
    let record = home.record().ok().flatten();
    let first = record.and_then(|record| record.addresses.into_iter().next());
    let address = first.and_then(|address| crate::address::ClusterAddress::parse(&address).ok());
    address.map_or_else(
        || home.cluster().as_str().to_owned(),
        |address| address.to_string(),
    )
}
