//! Authorities: what the root and the certificates under it must look like, and who may make them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use iap_identity::authority::AuthorityError;
use iap_identity::{
    BundleError, CaClass, CaError, IssuerCertificate, Pin, PinError, RootCertificate, TrustBundle,
    certify_ca, self_signed_root,
};
use iap_testkit::TestCluster;
use iap_testkit::certificates::random_serial;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, SigningKey,
};
use time::Duration;

fn cluster() -> TestCluster {
    TestCluster::new("iap.example.com").unwrap()
}

fn verify(cluster: &TestCluster, raw: iap_identity::RawBundle) -> Result<TrustBundle, BundleError> {
    TrustBundle::verify(raw, &cluster.pin(), &cluster.name, cluster.now)
}

#[test]
fn the_root_certifies_with_its_own_key_only_and_only_ecdsa_authorities() {
    let (cluster, twin) = (cluster(), cluster());
    let certify = |spki: &[u8], key: &KeyPair| {
        let serial = random_serial().unwrap();
        certify_ca(
            CaClass::User,
            &cluster.name,
            spki,
            cluster.root(),
            key,
            cluster.now,
            serial,
        )
        .map(drop)
    };
    let good = KeyPair::generate().unwrap().subject_public_key_info();
    assert_eq!(certify(&good, cluster.root_key()), Ok(()));
    assert_eq!(certify(&good, twin.root_key()), Err(AuthorityError::WrongSigner));
    let edwards = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let spki = edwards.subject_public_key_info();
    assert_eq!(certify(&spki, cluster.root_key()), Err(AuthorityError::Key));
    let root = self_signed_root(&cluster.name, &edwards, cluster.now, random_serial().unwrap());
    assert_eq!(root.map(drop), Err(AuthorityError::Key));
}

#[test]
fn authorities_have_subjects_of_their_own() {
    let cluster = cluster();
    let subjects: std::collections::BTreeSet<String> = CaClass::ALL
        .into_iter()
        .map(|class| {
            let der = cluster.issuer(class).der();
            let (_, certificate) = x509_parser::parse_x509_certificate(der).unwrap();
            certificate.subject().to_string()
        })
        .collect();
    assert_eq!(subjects.len(), 3);
    let user = subjects.iter().find(|subject| subject.contains("user")).unwrap();
    assert!(user.starts_with("O=iap.example.com, CN=user CA "), "{user}");
}

#[test]
fn a_renamed_root_is_no_root() {
    let cluster = cluster();
    assert!(RootCertificate::parse(cluster.issuer(CaClass::User).der()).is_err());
    assert!(IssuerCertificate::parse(cluster.root().der()).is_err());
    let mut der = cluster.root().der().to_vec();
    let at = der
        .windows(15)
        .position(|window| window == b"iap.example.com")
        .unwrap();
    der[at] = b'x';
    assert!(RootCertificate::parse(&der).is_err());
    assert!(cluster.root_key().sign(b"x").is_ok());
}

/// Has the real root certify an authority as `spoil` left it, and asks the bundle.
fn forged_authority(spoil: impl FnOnce(&mut CertificateParams)) -> Result<TrustBundle, BundleError> {
    let cluster = cluster();
    authority_signed_by(&cluster, cluster.root_key(), spoil)
}

/// The same under the real root's name and key identifier, but with any key.
fn authority_signed_by(
    cluster: &TestCluster,
    signer: &KeyPair,
    spoil: impl FnOnce(&mut CertificateParams),
) -> Result<TrustBundle, BundleError> {
    let key = KeyPair::generate().unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.public_key_raw());
    let identifier = &digest.as_ref()[..20];
    let short: String = identifier[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "iap.example.com");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("user CA {short}"));
    params.not_before = cluster.now - Duration::minutes(1);
    params.not_after = cluster.now + Duration::days(1);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.key_identifier_method = KeyIdMethod::PreSpecified(identifier.to_vec());
    spoil(&mut params);
    let issuer = Issuer::from_ca_cert_der(cluster.root().der(), signer).unwrap();
    let der = params.signed_by(&key, &issuer).unwrap().der().to_vec();
    let mut raw = cluster.bundle().to_raw();
    raw.authorities.push((CaClass::User, der));
    verify(cluster, raw)
}

#[test]
fn an_authority_has_exactly_the_documented_form() {
    assert!(forged_authority(|_| {}).is_ok());
    let reason = |spoil: fn(&mut CertificateParams)| match forged_authority(spoil) {
        Err(BundleError::Authority { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let constraints = CaError::Profile("its basic constraints are not an authority's");
    assert_eq!(
        reason(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        constraints
    );
    assert_eq!(
        reason(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1))),
        constraints
    );
    assert_eq!(reason(|params| params.is_ca = IsCa::ExplicitNoCa), constraints);
    let usage = CaError::Profile("its key usage is not an authority's");
    assert_eq!(
        reason(|params| params.key_usages.push(KeyUsagePurpose::DigitalSignature)),
        usage
    );
    assert_eq!(reason(|params| params.key_usages.clear()), usage);
    let foreign = CaError::Profile("it has an extension that belongs to no authority");
    assert_eq!(
        reason(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]),
        foreign
    );
    let identifier = CaError::Profile("its key identifier is not that of its key");
    assert_eq!(
        reason(|params| params.key_identifier_method = KeyIdMethod::PreSpecified(vec![1; 20])),
        identifier
    );
    assert_eq!(
        reason(|params| params.use_authority_key_identifier_extension = false),
        CaError::NotCertified
    );
    assert_eq!(
        reason(|params| params.not_after += Duration::days(30 * 365)),
        CaError::Validity
    );
    assert_eq!(
        reason(|params| params.distinguished_name = DistinguishedName::new()),
        CaError::Subject
    );
    assert_eq!(
        reason(|params| params
            .distinguished_name
            .push(DnType::CommonName, "user CA 00000000")),
        CaError::Subject
    );
    assert_eq!(
        reason(|params| params
            .distinguished_name
            .push(DnType::OrganizationName, "other.example.com")),
        CaError::NotCertified
    );
}

#[test]
fn the_roots_name_without_its_key_certifies_nothing() {
    let cluster = cluster();
    let thief = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let stolen = BundleError::Authority {
        class: CaClass::User,
        reason: CaError::NotCertified,
    };
    assert_eq!(authority_signed_by(&cluster, &thief, |_| {}), Err(stolen));
    assert!(authority_signed_by(&cluster, cluster.root_key(), |_| {}).is_ok());

    let mut raw = cluster.bundle().to_raw();
    let last = raw.signing_keys[0].len() - 1;
    raw.signing_keys[0][last] ^= 1;
    assert_eq!(
        verify(&cluster, raw),
        Err(BundleError::SigningKey(CaError::NotCertified))
    );
}

#[test]
fn an_expired_root_is_refused() {
    let cluster = cluster();
    let at =
        |time| TrustBundle::verify(cluster.bundle().to_raw(), &cluster.pin(), &cluster.name, time).map(drop);
    let (start, end) = (cluster.root().not_before(), cluster.root().not_after());
    assert_eq!(at(end), Ok(()));
    assert_eq!(
        at(end + Duration::SECOND),
        Err(BundleError::Root(CaError::Validity))
    );
    assert_eq!(
        at(start - Duration::SECOND),
        Err(BundleError::Root(CaError::Validity))
    );
}

#[test]
fn a_root_calls_itself_root_is_its_own_issuer_and_ends_where_it_ends() {
    let cluster = cluster();
    let key = KeyPair::generate().unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.public_key_raw());
    let identifier = &digest.as_ref()[..20];
    let short: String = identifier[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let root = |word: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "iap.example.com");
        params
            .distinguished_name
            .push(DnType::CommonName, format!("{word} CA {short}"));
        params.not_before = cluster.now;
        params.not_after = cluster.now + Duration::days(1);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.key_identifier_method = KeyIdMethod::PreSpecified(identifier.to_vec());
        params
    };
    let parse = |der: &[u8]| RootCertificate::parse(der).map(drop);
    let good = root("root").self_signed(&key).unwrap();
    assert_eq!(parse(good.der()), Ok(()));
    assert_eq!(
        parse(root("system").self_signed(&key).unwrap().der()),
        Err(CaError::Subject)
    );
    let issuer = Issuer::from_ca_cert_der(cluster.root().der(), cluster.root_key()).unwrap();
    let under = root("root").signed_by(&key, &issuer).unwrap();
    assert_eq!(
        parse(under.der()),
        Err(CaError::Profile("a root is its own issuer"))
    );
    let mut trailing = good.der().to_vec();
    trailing.push(0);
    assert_eq!(parse(&trailing), Err(CaError::Malformed("bytes follow it")));
    assert_eq!(Pin::of_certificate(&trailing), Err(PinError::Certificate));
    let mut flipped = good.der().to_vec();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    assert_eq!(parse(&flipped), Err(CaError::NotCertified));
}
