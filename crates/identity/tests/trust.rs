//! The trust bundle, the pin, first contact and signed objects.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use iap_identity::authority::{CA_LIFE, SIGNING_KEY_LIFE};
use iap_identity::verify::FirstContactError;
use iap_identity::{
    AuthId, BundleError, CaClass, CaError, CertificateDer, Class, ClassSet, PeerError, Pin, PinError,
    ProxyId, RawBundle, ServerName, SignedError, SignedKind, TrustBundle, certify_ca, certify_signing_key,
    key_id, signed_message, verify_client, verify_first_contact, verify_signed,
};
use iap_testkit::certificates::random_serial;
use iap_testkit::{TestCluster, new_uuid};
use rcgen::{KeyPair, PublicKeyData};
use time::Duration;

fn cluster() -> TestCluster {
    TestCluster::new("iap.example.com").unwrap()
}

fn verify(cluster: &TestCluster, raw: RawBundle) -> Result<TrustBundle, BundleError> {
    TrustBundle::verify(raw, &cluster.pin(), &cluster.name, cluster.now)
}

#[test]
fn a_bundle_survives_its_journey() {
    let cluster = cluster();
    let bundle = verify(&cluster, cluster.bundle().to_raw()).unwrap();
    assert_eq!(&bundle, cluster.bundle());
    for class in CaClass::ALL {
        assert_eq!(bundle.authorities(class), [cluster.issuer(class).der().clone()]);
    }
}

#[test]
fn another_root_than_the_pinned_one_is_refused() {
    let (cluster, twin) = (cluster(), cluster());
    let error = verify(&cluster, twin.bundle().to_raw()).unwrap_err();
    assert_eq!(
        error,
        BundleError::WrongPin {
            found: twin.pin(),
            expected: cluster.pin()
        }
    );
}

#[test]
fn a_root_that_reuses_the_pinned_key_but_was_not_signed_by_it_is_refused() {
    let cluster = cluster();
    let mut raw = cluster.bundle().to_raw();
    let last = raw.root.len() - 1;
    raw.root[last] ^= 1;
    assert!(matches!(verify(&cluster, raw), Err(BundleError::Root(_))));
}

#[test]
fn a_bundle_of_another_cluster_is_refused() {
    let (cluster, other) = (cluster(), TestCluster::new("other.example.com").unwrap());
    let result = TrustBundle::verify(other.bundle().to_raw(), &other.pin(), &cluster.name, cluster.now);
    assert_eq!(result, Err(BundleError::WrongCluster(other.name.clone())));
    let mut renamed = other.bundle().to_raw();
    renamed.cluster = cluster.name.clone();
    let result = TrustBundle::verify(renamed, &other.pin(), &cluster.name, cluster.now);
    assert_eq!(result, Err(BundleError::WrongCluster(other.name.clone())));
    let mut mislabelled = cluster.bundle().to_raw();
    mislabelled.cluster = other.name.clone();
    assert_eq!(
        verify(&cluster, mislabelled),
        Err(BundleError::WrongCluster(other.name))
    );
}

#[test]
fn authorities_the_root_did_not_certify_are_refused() {
    let (cluster, twin) = (cluster(), cluster());
    let mut raw = cluster.bundle().to_raw();
    raw.authorities[1].1 = twin.issuer(CaClass::User).der().to_vec();
    let refused = BundleError::Authority {
        class: CaClass::User,
        reason: CaError::NotCertified,
    };
    assert_eq!(verify(&cluster, raw), Err(refused));
}

#[test]
fn an_authority_counts_only_for_its_own_class() {
    let cluster = cluster();
    let mut raw = cluster.bundle().to_raw();
    raw.authorities[0].1 = cluster.issuer(CaClass::User).der().to_vec();
    let swapped = BundleError::WrongClass {
        said: CaClass::System,
        found: CaClass::User,
    };
    assert_eq!(verify(&cluster, raw), Err(swapped));
}

#[test]
fn the_root_and_a_leaf_are_no_authorities() {
    let cluster = cluster();
    let leaf = cluster
        .agent(iap_identity::AgentId::from_uuid(new_uuid()))
        .unwrap();
    for der in [cluster.root().der().to_vec(), leaf.leaf().to_vec()] {
        let mut raw = cluster.bundle().to_raw();
        raw.authorities[0].1 = der;
        assert!(matches!(
            verify(&cluster, raw),
            Err(BundleError::Authority { .. })
        ));
    }
}

#[test]
fn a_bundle_needs_a_system_authority_and_has_limits() {
    let cluster = cluster();
    let mut raw = cluster.bundle().to_raw();
    raw.authorities.remove(0);
    assert_eq!(verify(&cluster, raw), Err(BundleError::NoSystemAuthority));
    let mut raw = cluster.bundle().to_raw();
    raw.authorities = vec![raw.authorities[0].clone(); 33];
    assert_eq!(verify(&cluster, raw), Err(BundleError::TooMany));
}

#[test]
fn an_expired_authority_anchors_nothing() {
    let cluster = cluster();
    let user = cluster.user("alice@example.com", &[]).unwrap();
    let accepted = ClassSet::of(&[Class::User]);
    assert!(verify_client(&user.chain, accepted, cluster.bundle(), cluster.now).is_ok());
    let later = cluster.now + CA_LIFE + Duration::seconds(1);
    let late = TrustBundle::verify(cluster.bundle().to_raw(), &cluster.pin(), &cluster.name, later).unwrap();
    assert_eq!(late.signing_keys(), [], "expired keys are left out");
    let anchored = verify_client(&user.chain, accepted, &late, later);
    assert!(anchored.is_err());
    let agent = cluster
        .agent(iap_identity::AgentId::from_uuid(new_uuid()))
        .unwrap();
    let forever = Duration::days(100_000);
    let result = iap_identity::verify_expired_agent(&agent.chain, &late, later, forever);
    assert_eq!(
        result,
        Err(PeerError::UnknownIssuer),
        "even where an expired leaf is forgiven"
    );
}

#[test]
fn two_authorities_of_a_class_overlap() {
    let cluster = cluster();
    let user = cluster.user("alice@example.com", &[]).unwrap();
    let next_key = KeyPair::generate().unwrap();
    let next = certify_ca(
        CaClass::User,
        &cluster.name,
        &next_key.subject_public_key_info(),
        cluster.root(),
        cluster.root_key(),
        cluster.now,
        random_serial().unwrap(),
    )
    .unwrap();
    let mut raw = cluster.bundle().to_raw();
    raw.authorities.push((CaClass::User, next.clone()));
    let bundle = verify(&cluster, raw).unwrap();
    assert_eq!(bundle.authorities(CaClass::User).len(), 2);
    assert!(verify_client(&user.chain, ClassSet::of(&[Class::User]), &bundle, cluster.now).is_ok());
}

#[test]
fn pins_have_one_spelling() {
    let pin = cluster().pin();
    let text = pin.to_string();
    assert_eq!(text.len(), 71);
    assert_eq!(Pin::parse(&text), Ok(pin));
    for bad in [
        &text[7..],
        &text[..70],
        &text.to_uppercase(),
        &format!("{text}0"),
        "",
        "sha256:",
    ] {
        assert_eq!(Pin::parse(bad), Err(PinError::Malformed), "{bad}");
    }
    assert_eq!(Pin::of_certificate(b"nothing"), Err(PinError::Certificate));
}

#[test]
fn the_pin_is_the_hash_of_the_roots_public_key() {
    let cluster = cluster();
    let spki = cluster.root_key().subject_public_key_info();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &spki);
    assert_eq!(cluster.pin().as_bytes(), digest.as_ref());
    assert_eq!(Pin::of_certificate(cluster.root().der()), Ok(cluster.pin()));
}

/// What the auth server sends: leaf, system authority, root.
fn first_contact_chain(cluster: &TestCluster) -> Vec<CertificateDer<'static>> {
    let mut chain = cluster.auth(AuthId::from_uuid(new_uuid())).unwrap().chain;
    chain.push(cluster.root().der().clone());
    chain
}

#[test]
fn the_pin_alone_suffices_to_recognise_the_auth_server() {
    let cluster = cluster();
    let chain = first_contact_chain(&cluster);
    let verified = verify_first_contact(
        &chain,
        &ServerName::Auth,
        &cluster.pin(),
        &cluster.name,
        cluster.now,
    )
    .unwrap();
    assert_eq!(verified.name, ServerName::Auth);
}

#[test]
fn a_relay_with_its_own_root_is_not_the_auth_server() {
    let (cluster, relay) = (cluster(), cluster());
    let verify = |chain: &[CertificateDer<'_>]| {
        verify_first_contact(
            chain,
            &ServerName::Auth,
            &cluster.pin(),
            &cluster.name,
            cluster.now,
        )
    };
    let wrong_pin = BundleError::WrongPin {
        found: relay.pin(),
        expected: cluster.pin(),
    };
    assert_eq!(
        verify(&first_contact_chain(&relay)),
        Err(FirstContactError::Trust(wrong_pin))
    );

    // Its own leaf and authority, with the real root appended.
    let mut grafted = first_contact_chain(&relay);
    *grafted.last_mut().unwrap() = cluster.root().der().clone();
    let not_certified = BundleError::Authority {
        class: CaClass::System,
        reason: CaError::NotCertified,
    };
    assert_eq!(verify(&grafted), Err(FirstContactError::Trust(not_certified)));

    // Its own leaf under the real authority and root.
    let mut stolen = first_contact_chain(&cluster);
    stolen[0] = relay.auth(AuthId::from_uuid(new_uuid())).unwrap().leaf().clone();
    assert_eq!(
        verify(&stolen),
        Err(FirstContactError::Peer(PeerError::UnknownIssuer))
    );

    // A real proxy of the cluster in the auth server's place.
    let mut proxy = cluster.proxy(ProxyId::from_uuid(new_uuid())).unwrap().chain;
    proxy.push(cluster.root().der().clone());
    assert_eq!(
        verify(&proxy),
        Err(FirstContactError::Peer(PeerError::WrongClass {
            found: Class::Proxy
        }))
    );

    assert!(
        verify(&first_contact_chain(&cluster)[..2]).is_err(),
        "no root in the chain"
    );
    assert!(verify(&[]).is_err());
}

#[test]
fn signed_objects_are_bound_to_key_kind_and_bytes() {
    let cluster = cluster();
    let (key, signature) = cluster.sign(SignedKind::Snapshot, b"payload").unwrap();
    let bundle = cluster.bundle();
    let verified = verify_signed(bundle, &key, SignedKind::Snapshot, b"payload", &signature).unwrap();
    assert_eq!(verified.bytes(), b"payload");
    let refused = |kind, payload: &[u8]| verify_signed(bundle, &key, kind, payload, &signature).map(drop);
    assert_eq!(
        refused(SignedKind::Snapshot, b"payloae"),
        Err(SignedError::Signature)
    );
    for kind in [
        SignedKind::Beat,
        SignedKind::Locks,
        SignedKind::Bundle,
        SignedKind::AuditHead,
    ] {
        assert_eq!(refused(kind, b"payload"), Err(SignedError::Signature), "{kind:?}");
    }
    let unknown = verify_signed(
        bundle,
        "0011223344556677",
        SignedKind::Snapshot,
        b"payload",
        &signature,
    );
    assert_eq!(
        unknown.map(drop),
        Err(SignedError::UnknownKey("0011223344556677".to_owned()))
    );
    let cut = verify_signed(bundle, &key, SignedKind::Snapshot, b"payload", &signature[..63]);
    assert_eq!(cut.map(drop), Err(SignedError::Signature));
}

#[test]
fn the_signed_bytes_and_key_ids_are_as_documented() {
    assert_eq!(signed_message(SignedKind::Snapshot, b"x"), b"iap-snapshot-v1\0x");
    assert_eq!(signed_message(SignedKind::AuditHead, b""), b"iap-audit-head-v1\0");
    let public: [u8; 32] = std::array::from_fn(|index| u8::try_from(index).unwrap());
    assert_eq!(key_id(&public), "630dcd2966c43366");
}

#[test]
fn signing_keys_the_root_did_not_certify_are_refused() {
    let (cluster, twin) = (cluster(), cluster());
    let mut raw = cluster.bundle().to_raw();
    raw.signing_keys = twin.bundle().to_raw().signing_keys;
    assert_eq!(
        verify(&cluster, raw),
        Err(BundleError::SigningKey(CaError::NotCertified))
    );
    let mut raw = cluster.bundle().to_raw();
    raw.signing_keys[0] = cluster.issuer(CaClass::User).der().to_vec();
    assert!(matches!(
        verify(&cluster, raw),
        Err(BundleError::SigningKey(CaError::Profile(_)))
    ));
    // A user with an Ed25519 key is no signing key either: wrong URI.
    let profile = cluster.user_profile("alice@example.com", &[]).unwrap();
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let user = cluster
        .issue_for(iap_identity::Profile::User(profile), key, cluster.now)
        .unwrap();
    let mut raw = cluster.bundle().to_raw();
    raw.signing_keys[0] = user.leaf().to_vec();
    assert!(matches!(
        verify(&cluster, raw),
        Err(BundleError::SigningKey(CaError::Profile(_)))
    ));
}

#[test]
fn a_signing_key_lives_within_its_root() {
    let cluster = cluster();
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let public: [u8; 32] = key.public_key_raw().try_into().unwrap();
    let late = cluster.root().not_after() - Duration::days(1);
    let der = certify_signing_key(
        &cluster.name,
        &public,
        cluster.root(),
        cluster.root_key(),
        late,
        random_serial().unwrap(),
    )
    .unwrap();
    let mut raw = cluster.bundle().to_raw();
    raw.signing_keys.push(der);
    let bundle = verify(&cluster, raw).unwrap();
    assert_eq!(bundle.signing_keys().len(), 1, "the second is not valid yet");
    assert!(SIGNING_KEY_LIFE > Duration::days(1));
}
