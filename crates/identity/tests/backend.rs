//! Certificates for backends: what is issued, and what is refused, whoever signed it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use iap_identity::backend::{
    BACKEND_CERTIFICATE_LIFE_MAX, ClientCa, ClientLeaf, ClientLeafError, ClientLeafIssueError,
    SSH_HOST_CERTIFICATE_LIFE_MAX, SshAuthority, SshCertificate, SshCertificateError, SshCertificateKind,
    SshExtension, SshIssueError, SshProfile, issue_client_leaf, issue_ssh_certificate, self_signed_client_ca,
    ssh_public_key,
};
use iap_identity::{
    Class, ClassSet, ClusterName, LoginName, Request, ServiceName, certificate_request, verify_client,
};
use iap_testkit::{TestCluster, random_serial};
use proptest::prelude::*;
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType,
};
use ssh_key::certificate::{Builder, CertType};
use ssh_key::private::Ed25519Keypair;
use ssh_key::public::KeyData;
use time::{Duration, OffsetDateTime};

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn p256() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn ed25519() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).unwrap()
}

fn request(key: &KeyPair) -> Request {
    Request::parse(&certificate_request(key).unwrap()).unwrap()
}

fn login(name: &str) -> LoginName {
    LoginName::parse(name).unwrap()
}

fn authority(service: &str) -> (ClientCa, KeyPair) {
    let (key, cluster) = (p256(), ClusterName::parse("iap.example.com").unwrap());
    let service = ServiceName::parse(service).unwrap();
    let made = self_signed_client_ca(
        &cluster,
        &service,
        &key,
        now() - Duration::DAY,
        random_serial().unwrap(),
    );
    (made.unwrap(), key)
}

fn leaf(name: &str, ca: &ClientCa, key: &KeyPair) -> ClientLeaf {
    let serial = random_serial().unwrap();
    issue_client_leaf(&request(&p256()), &login(name), ca, key, now(), serial).unwrap()
}

#[test]
fn a_login_has_a_certificate_of_its_name_for_a_day() {
    let (ca, key) = authority("db-prod");
    let own = p256();
    let request = request(&own);
    let issued = issue_client_leaf(
        &request,
        &login("Read Only"),
        &ca,
        &key,
        now(),
        random_serial().unwrap(),
    )
    .unwrap();
    assert_eq!(issued.login(), &login("Read Only"));
    assert_eq!(*issued.key_thumbprint(), request.spki_sha256());
    assert_eq!(issued.not_after() - now(), BACKEND_CERTIFICATE_LIFE_MAX);
    assert_eq!(ClientLeaf::verify(issued.der(), &ca, now()).unwrap(), issued);
}

#[test]
fn one_services_authority_does_not_speak_for_another_nor_for_the_cluster() {
    let ((ca, key), (other, _)) = (authority("db-prod"), authority("db-test"));
    let issued = leaf("admin", &ca, &key);
    assert!(matches!(
        ClientLeaf::verify(issued.der(), &other, now()),
        Err(ClientLeafError::Path(_))
    ));
    // Its backend's authority is under no root: the plane's own verifiers take it for nobody.
    let cluster = TestCluster::at("iap.example.com", now() - Duration::DAY).unwrap();
    let everybody = ClassSet::of(&[
        Class::User,
        Class::Bot,
        Class::Agent,
        Class::Proxy,
        Class::Auth,
        Class::Workload,
    ]);
    assert!(verify_client(&[issued.der().clone()], everybody, cluster.bundle(), now()).is_err());
    // And no certificate of the plane is one for a backend.
    let agent = cluster.user("alice@example.com", &[]).unwrap();
    assert!(ClientLeaf::verify(agent.leaf(), &ca, now()).is_err());
}

#[test]
fn a_signer_that_is_not_the_authoritys_issues_nothing() {
    let (ca, _) = authority("db-prod");
    let made = issue_client_leaf(
        &request(&p256()),
        &login("a"),
        &ca,
        &p256(),
        now(),
        random_serial().unwrap(),
    );
    assert_eq!(made.unwrap_err(), ClientLeafIssueError::WrongSigner);
    let (ca, key) = authority("db-prod");
    let late = now() + Duration::days(6 * 365);
    let made = issue_client_leaf(
        &request(&p256()),
        &login("a"),
        &ca,
        &key,
        late,
        random_serial().unwrap(),
    );
    assert_eq!(made.unwrap_err(), ClientLeafIssueError::AuthorityNotValid);
}

#[test]
fn a_certificate_is_good_from_a_minute_before_to_a_day_after() {
    let (ca, key) = authority("db-prod");
    let issued = leaf("readonly", &ca, &key);
    for (offset, good) in [
        (Duration::seconds(-61), false),
        (Duration::seconds(-59), true),
        (BACKEND_CERTIFICATE_LIFE_MAX - Duration::SECOND, true),
        (BACKEND_CERTIFICATE_LIFE_MAX + Duration::SECOND, false),
    ] {
        assert_eq!(
            ClientLeaf::verify(issued.der(), &ca, now() + offset).is_ok(),
            good,
            "{offset}"
        );
    }
}

/// A leaf that the authority has signed although it should not have.
fn spoiled(spoil: impl FnOnce(&mut CertificateParams)) -> Result<ClientLeaf, ClientLeafError> {
    let (ca, key) = authority("db-prod");
    let own = p256();
    let good = leaf("readonly", &ca, &key);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "readonly");
    params.not_before = good.not_before();
    params.not_after = good.not_after();
    params.serial_number = Some(vec![0x40; 20].into());
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, own.public_key_raw());
    params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(digest.as_ref()[..20].to_vec());
    spoil(&mut params);
    let issuer = Issuer::from_ca_cert_der(ca.der(), &key).unwrap();
    let made = params.signed_by(&own, &issuer).unwrap();
    ClientLeaf::verify(made.der(), &ca, now())
}

#[test]
fn what_a_backend_might_read_more_into_is_refused() {
    type Spoil = fn(&mut CertificateParams);
    let spoils: [(Spoil, &str); 8] = [
        (
            |params| params.subject_alt_names = vec![SanType::DnsName("postgres".try_into().unwrap())],
            "an extension that does not belong",
        ),
        (
            |params| params.distinguished_name.push(DnType::OrganizationName, "x"),
            "more than one name",
        ),
        (
            |params| {
                params
                    .extended_key_usages
                    .push(ExtendedKeyUsagePurpose::ServerAuth)
            },
            "not clientAuth alone",
        ),
        (
            |params| params.key_usages.push(KeyUsagePurpose::KeyAgreement),
            "not critical digitalSignature",
        ),
        (
            |params| params.not_after = now() + Duration::days(2),
            "lives for more than 24 h",
        ),
        (
            |params| params.serial_number = Some(vec![0x40; 8].into()),
            "20 bytes",
        ),
        (
            |params| params.key_identifier_method = rcgen::KeyIdMethod::Sha512,
            "subject key identifier",
        ),
        (
            |params| {
                params.distinguished_name = rcgen::DistinguishedName::new();
                params
                    .distinguished_name
                    .push(DnType::OrganizationName, "readonly");
            },
            "no common name",
        ),
    ];
    for (spoil, rule) in spoils {
        let refused = spoiled(spoil).unwrap_err().to_string();
        assert!(refused.contains(rule), "{rule}: {refused}");
    }
    assert!(spoiled(|_| {}).is_ok());
}

fn profile(principals: &[&str]) -> SshProfile {
    SshProfile {
        kind: SshCertificateKind::User,
        key_id: "alice@example.com login 1".to_owned(),
        principals: principals.iter().map(ToString::to_string).collect(),
        source_addresses: vec!["10.1.2.3".parse().unwrap(), "::ffff:10.1.2.4".parse().unwrap()],
        extensions: vec![SshExtension::Pty, SshExtension::PortForwarding],
        life: Duration::HOUR,
    }
}

fn ssh(profile: &SshProfile, signer: &KeyPair) -> Result<SshCertificate, SshIssueError> {
    let key = ssh_public_key(&request(&ed25519())).unwrap();
    issue_ssh_certificate(&key, profile, signer, now(), random_serial().unwrap(), [1; 32])
}

#[test]
fn an_ssh_certificate_says_who_may_be_what_from_where_for_how_long() {
    let signer = ed25519();
    let authority = SshAuthority::of_signer(&signer).unwrap();
    let issued = ssh(&profile(&["alice", "deploy"]), &signer).unwrap();
    let again =
        SshCertificate::verify(&issued.to_bytes(), SshCertificateKind::User, &authority, now()).unwrap();
    assert_eq!(again.principals(), ["alice", "deploy"]);
    assert_eq!(again.key_id(), "alice@example.com login 1");
    let sources: Vec<String> = again.source_addresses().iter().map(ToString::to_string).collect();
    assert_eq!(sources, ["10.1.2.3", "10.1.2.4"]);
    assert_eq!(again.not_after(), now() + Duration::HOUR);
    let line = SshCertificate::verify_line(&issued.line(), SshCertificateKind::User, &authority, now());
    assert_eq!(line.unwrap(), again);
    assert_eq!(
        SshAuthority::parse(&authority.line("a comment")).unwrap(),
        authority
    );
    assert!(authority.fingerprint().starts_with("SHA256:"));
}

#[test]
fn a_servers_certificate_may_live_for_a_year_and_a_users_for_a_day() {
    let signer = ed25519();
    let host = SshProfile {
        kind: SshCertificateKind::Host,
        source_addresses: Vec::new(),
        extensions: Vec::new(),
        life: Duration::days(1000),
        ..profile(&["web-1.iap.example.com"])
    };
    let issued = ssh(&host, &signer).unwrap();
    assert_eq!(issued.not_after(), now() + SSH_HOST_CERTIFICATE_LIFE_MAX);
    let user = SshProfile {
        life: Duration::days(1000),
        ..profile(&["alice"])
    };
    let issued = ssh(&user, &signer).unwrap();
    assert_eq!(issued.not_after(), now() + BACKEND_CERTIFICATE_LIFE_MAX);
}

#[test]
fn p256_keys_get_ssh_certificates_too_and_other_signers_make_none() {
    let key = ssh_public_key(&request(&p256())).unwrap();
    let serial = random_serial().unwrap();
    assert!(issue_ssh_certificate(&key, &profile(&["a"]), &ed25519(), now(), serial, [1; 32]).is_ok());
    let made = issue_ssh_certificate(&key, &profile(&["a"]), &p256(), now(), serial, [1; 32]);
    assert_eq!(made.unwrap_err(), SshIssueError::WrongSigner);
}

#[test]
fn an_ssh_certificate_without_principals_or_with_patterns_is_not_issued() {
    for principals in [
        &[][..],
        &[""],
        &["*"],
        &["a?"],
        &["a,b"],
        &["a b"],
        &["!a"],
        &["ok", "x*"],
    ] {
        assert_eq!(
            ssh(&profile(principals), &ed25519()),
            Err(SshIssueError::Principals),
            "{principals:?}"
        );
    }
    let doubled = ssh(&profile(&["a", "a"]), &ed25519());
    assert!(matches!(doubled, Err(SshIssueError::Unsound(_))));
    let over = SshProfile {
        life: Duration::ZERO,
        ..profile(&["a"])
    };
    assert_eq!(ssh(&over, &ed25519()), Err(SshIssueError::Over));
}

#[test]
fn a_hosts_certificate_is_no_users_and_carries_no_options() {
    let signer = ed25519();
    let authority = SshAuthority::of_signer(&signer).unwrap();
    let host = SshProfile {
        kind: SshCertificateKind::Host,
        source_addresses: Vec::new(),
        extensions: Vec::new(),
        ..profile(&["db-prod.iap.example.com"])
    };
    let issued = ssh(&host, &signer).unwrap().to_bytes();
    assert!(SshCertificate::verify(&issued, SshCertificateKind::Host, &authority, now()).is_ok());
    let as_user = SshCertificate::verify(&issued, SshCertificateKind::User, &authority, now());
    assert_eq!(as_user.unwrap_err(), SshCertificateError::WrongKind);
    let with_options = SshProfile {
        kind: SshCertificateKind::Host,
        ..profile(&["a"])
    };
    assert!(ssh(&with_options, &signer).is_err());
}

/// A certificate that the authority has signed although it should not have.
fn forged(
    spoil: impl FnOnce(&mut Builder) -> ssh_key::Result<&mut Builder>,
) -> Result<SshCertificate, SshCertificateError> {
    let authority = Ed25519Keypair::from_seed(&[3; 32]);
    let key = KeyData::from(Ed25519Keypair::from_seed(&[4; 32]).public);
    let from = u64::try_from(now().unix_timestamp()).unwrap() - 60;
    let mut builder = Builder::new([1; 32], key, from, from + 3600).unwrap();
    builder.key_id("x").unwrap();
    spoil(&mut builder).unwrap();
    let signer = ssh_key::PrivateKey::from(authority.clone());
    let bytes = builder.sign(&signer).unwrap().to_bytes().unwrap();
    let line = signer.public_key().to_openssh().unwrap();
    let authority = SshAuthority::parse(&line).unwrap();
    SshCertificate::verify(&bytes, SshCertificateKind::User, &authority, now())
}

#[test]
fn a_signed_ssh_certificate_that_says_too_much_is_refused() {
    type Spoil = fn(&mut Builder) -> ssh_key::Result<&mut Builder>;
    let good: Spoil = |builder| builder.valid_principal("alice");
    assert!(forged(good).is_ok());
    let spoils: [(Spoil, &str); 6] = [
        (|builder| builder.all_principals_valid(), "no principal"),
        (|builder| builder.valid_principal("al*"), "a pattern"),
        (
            |builder| {
                builder
                    .valid_principal("a")?
                    .critical_option("verify-required", "")
            },
            "critical option",
        ),
        (
            |builder| {
                builder
                    .valid_principal("a")?
                    .critical_option("source-address", "10.0.0.0/8,x")
            },
            "source addresses",
        ),
        (
            |builder| {
                builder
                    .valid_principal("a")?
                    .extension("permit-X11-forwarding", "")
            },
            "extension",
        ),
        (
            |builder| builder.valid_principal("a")?.cert_type(CertType::Host),
            "other kind",
        ),
    ];
    for (spoil, rule) in spoils {
        let refused = forged(spoil).unwrap_err().to_string();
        assert!(refused.contains(rule), "{rule}: {refused}");
    }
}

#[test]
fn another_authoritys_ssh_certificate_and_one_whose_time_is_over_are_refused() {
    let (signer, other) = (ed25519(), ed25519());
    let issued = ssh(&profile(&["a"]), &signer).unwrap().to_bytes();
    let verify = |authority: &KeyPair, at| {
        let authority = SshAuthority::of_signer(authority).unwrap();
        SshCertificate::verify(&issued, SshCertificateKind::User, &authority, at)
    };
    assert_eq!(verify(&other, now()), Err(SshCertificateError::UnknownIssuer));
    for offset in [Duration::seconds(-61), Duration::HOUR] {
        assert_eq!(
            verify(&signer, now() + offset),
            Err(SshCertificateError::NotValidNow)
        );
    }
    assert!(verify(&signer, now() + Duration::minutes(59)).is_ok());
}

proptest! {
    #[test]
    fn an_ssh_certificate_altered_anywhere_is_refused(position in 0_usize..400, flip in 1_u8..=255) {
        let signer = ed25519();
        let authority = SshAuthority::of_signer(&signer).unwrap();
        let mut bytes = ssh(&profile(&["alice"]), &signer).unwrap().to_bytes();
        let position = position % bytes.len();
        bytes[position] ^= flip;
        prop_assert!(SshCertificate::verify(&bytes, SshCertificateKind::User, &authority, now()).is_err());
    }

    #[test]
    fn an_altered_client_certificate_is_refused(position in 0_usize..600, flip in 1_u8..=255) {
        let (ca, key) = authority("db-prod");
        let mut der = leaf("readonly", &ca, &key).der().to_vec();
        let position = position % der.len();
        der[position] ^= flip;
        prop_assert!(ClientLeaf::verify(&der, &ca, now()).is_err());
    }
}
