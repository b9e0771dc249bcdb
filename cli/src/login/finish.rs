//! `Login.Finish`: the code and the proof of possession become a certificate, which is checked and stored.

use anyhow::Context as _;
use iap_identity::{CertificateDer, PeerError, TrustBundle, UserPeer};
use iap_proto::v1;
use iap_runtime::keys::{self, KeyKind};
use iap_runtime::tls::certificates_to_pem;
use prost::Message as _;
use rcgen::KeyPair;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::Started;
use crate::address::ClusterAddress;
use crate::api;
use crate::failure::Failure;
use crate::home::{ClusterHome, ClusterRecord, Credentials, Home};
use crate::identity::{self, Identity, Standing};
use crate::pkcs12;
use crate::services::KnownService;
use crate::trust::{self, Trust};

pub(super) async fn finish(
    home: &Home,
    address: &ClusterAddress,
    trust: &Trust,
    mut started: Started,
    code: String,
) -> anyhow::Result<Identity> {
    let csr = iap_identity::certificate_request(&started.key)?;
    // A new login has a new key for SSH too.
    let ssh = keys::generate(KeyKind::Ed25519)?;
    let ssh_csr = iap_identity::certificate_request(&ssh)?;
    let login_id = started.login_id.as_bytes().to_vec();
    let finished = api::answer(
        started
            .client
            .finish(v1::LoginFinish {
                login_id,
                code,
                csr,
                ssh_csr,
            })
            .await,
    )?;
    let cluster = home.cluster(&address.cluster);
    let record = trust::record(&cluster, address, trust)?;
    let visible = finished.services.clone();
    let identity = store(&cluster, &record, (&started.key, &ssh), finished)?;
    // The list with logins needs the new certificate; without it, the names are remembered.
    if api::refresh_services(&identity).await.is_err() {
        let services: Vec<_> = visible.into_iter().map(KnownService::from_record).collect();
        cluster.write_services(&services)?;
    }
    Ok(identity)
}

/// Checks what a login or a renewal brought, and stores it as one generation.
///
/// # Errors
/// When it is not a certificate for this key from this cluster's authority.
pub fn store(
    home: &ClusterHome,
    record: &ClusterRecord,
    (key, ssh): (&KeyPair, &KeyPair),
    finished: v1::LoginFinished,
) -> anyhow::Result<Identity> {
    let now = OffsetDateTime::now_utc();
    let signed = finished.bundle.context("the auth server sent no trust bundle")?;
    let bundle = iap_proto::open_bundle(&signed, &record.pin()?, &record.cluster, now)?;
    let issued = finished.issued.context("the auth server sent no certificate")?;
    let chain: Vec<CertificateDer<'static>> = issued.chain.into_iter().map(CertificateDer::from).collect();
    let judged = identity::verify(&chain, &bundle, now);
    let peer = match &judged {
        Ok(peer) => peer.clone(),
        Err(error) => match next_generation(home, &chain, &bundle, error) {
            // Kept although this machine's clock says otherwise: a generation that is lost looks like a thief's.
            Some(peer) => peer,
            None => return Err(out_of_time(error.clone(), now)),
        },
    };
    if peer.key_thumbprint != api::sha256(&rcgen::PublicKeyData::subject_public_key_info(key)) {
        return Err(Failure::failed("the auth server certified another key than ours").into());
    }
    home.remember(record)?;
    home.write_trust(
        &certificates_to_pem([bundle.root_der().as_ref()]),
        &signed.encode_to_vec(),
    )?;
    let key_der = Zeroizing::new(key.serialize_der());
    home.write_generation(&Credentials {
        certificates_pem: certificates_to_pem(chain.iter().map(AsRef::as_ref)),
        key_pem: Zeroizing::new(key.serialize_pem()),
        pkcs12: Zeroizing::new(pkcs12::encode(&chain, &key_der)?),
        key_der,
        ssh: crate::ssh::files(home, ssh, finished.ssh)?,
    })?;
    if let Err(error) = judged {
        return Err(out_of_time(error, now));
    }
    match identity::load(home, now)? {
        Standing::Valid(identity) => Ok(*identity),
        Standing::NoLogin(failure) => Err(failure.into()),
    }
}

/// Whose certificate it is, if it is a renewed one of the login that is stored and nothing but the time is wrong with it.
fn next_generation(
    home: &ClusterHome,
    chain: &[CertificateDer<'static>],
    bundle: &TrustBundle,
    error: &PeerError,
) -> Option<UserPeer> {
    let at = match error {
        PeerError::Expired { not_after } => *not_after,
        PeerError::NotYetValid { not_before } => *not_before,
        _ => return None,
    };
    let peer = identity::verify(chain, bundle, at).ok()?;
    let held = identity::last_peer(home)?;
    (held.login_id == peer.login_id).then_some(peer)
}

fn out_of_time(error: PeerError, now: OffsetDateTime) -> anyhow::Error {
    match crate::clock::new_certificate_out_of_time(&error, now) {
        Some(failure) => failure.into(),
        None => error.into(),
    }
}
