//! Issuing: what is taken from a request, what a certificate then says, and what is never released.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use iap_identity::issue::CLOCK_SKEW;
use iap_identity::request::REQUEST_BYTES_MAX;
use iap_identity::{
    AgentId, AuthId, CaClass, Class, ClassSet, IssueError, PrepareError, Profile, ProxyId, Request,
    RequestError, ServiceName, VerifiedPeer, certificate_request, verify_client,
};
use iap_testkit::certificates::random_serial;
use iap_testkit::{Credential, TestCluster, new_uuid};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, SigningKey,
};
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::parse_x509_certificate;

fn cluster() -> TestCluster {
    TestCluster::new("iap.example.com").unwrap()
}

fn agent_id() -> AgentId {
    AgentId::from_uuid(new_uuid())
}

fn parsed(credential: &Credential) -> X509Certificate<'_> {
    let (rest, certificate) = parse_x509_certificate(credential.leaf()).unwrap();
    assert!(rest.is_empty());
    certificate
}

fn seconds(time: OffsetDateTime) -> i64 {
    time.unix_timestamp()
}

/// The alternative names as text, in order.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "the subject is empty");
    names
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::URI(uri) => format!("URI {uri}"),
            GeneralName::DNSName(host) => format!("DNS {host}"),
            GeneralName::RFC822Name(email) => format!("email {email}"),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_user_certificate_has_the_documented_form() {
    let cluster = cluster();
    let credential = cluster.user("alice@example.com", &["engineering"]).unwrap();
    let certificate = parsed(&credential);
    let id = cluster.user_profile("alice@example.com", &[]).unwrap().id;
    assert_eq!(
        names(&certificate),
        [
            format!("URI iap://iap.example.com/user/{id}"),
            "email alice@example.com".into()
        ]
    );
    assert_eq!(certificate.raw_serial().len(), 20);
    assert_eq!(certificate.raw_serial()[0] & 0x80, 0);
    assert!(certificate.subject().iter().next().is_none());
    assert_eq!(
        certificate.validity().not_before.timestamp(),
        seconds(cluster.now - CLOCK_SKEW)
    );
    assert_eq!(
        certificate.validity().not_after.timestamp(),
        seconds(cluster.now + Duration::hours(1))
    );
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(
        usage.critical && usage.value.flags == 1,
        "digitalSignature and nothing else"
    );
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && !extended.server_auth && !extended.any);
    let identity = certificate
        .extensions()
        .iter()
        .find(|found| found.oid.to_id_string() == "1.3.6.1.4.1.32473.1.1");
    assert!(!identity.unwrap().critical);
}

#[test]
fn key_identifiers_follow_rfc_7093_and_chain_up() {
    let cluster = cluster();
    let credential = cluster.user("alice@example.com", &[]).unwrap();
    let certificate = parsed(&credential);
    let key = &certificate.public_key().subject_public_key.data;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key);
    let mut found = (None, None);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => found.0 = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                found.1 = id.key_identifier.as_ref().map(|id| id.0.to_vec())
            }
            _ => {}
        }
    }
    assert_eq!(found.0.unwrap(), digest.as_ref()[..20]);
    assert_eq!(found.1.unwrap(), cluster.issuer(CaClass::User).key_identifier());
}

#[test]
fn each_class_gets_its_names_and_usages() {
    let cluster = cluster();
    let (agent, proxy, auth) = (
        agent_id(),
        ProxyId::from_uuid(new_uuid()),
        AuthId::from_uuid(new_uuid()),
    );
    let rows = [
        (
            cluster.bot("deployer").unwrap(),
            vec!["URI iap://iap.example.com/bot/deployer".to_owned()],
            (true, false),
        ),
        (
            cluster.agent(agent).unwrap(),
            vec![
                format!("URI spiffe://iap.example.com/agent/{agent}"),
                format!("DNS {agent}.agent.iap.example.com"),
            ],
            (true, true),
        ),
        (
            cluster.service_leaf(agent, "db-prod").unwrap(),
            vec![
                format!("URI spiffe://iap.example.com/agent/{agent}"),
                "DNS db-prod.iap.example.com".to_owned(),
            ],
            (false, true),
        ),
        (
            cluster.proxy(proxy).unwrap(),
            vec![
                format!("URI spiffe://iap.example.com/proxy/{proxy}"),
                "DNS proxy.iap.example.com".to_owned(),
            ],
            (true, true),
        ),
        (
            cluster.auth(auth).unwrap(),
            vec![
                format!("URI spiffe://iap.example.com/auth/{auth}"),
                "DNS auth.iap.example.com".to_owned(),
                "DNS iap.example.com".to_owned(),
            ],
            (true, true),
        ),
    ];
    for (credential, expected, usages) in rows {
        let certificate = parsed(&credential);
        assert_eq!(names(&certificate), expected);
        let extended = certificate.extended_key_usage().unwrap().unwrap().value;
        assert_eq!(
            (extended.client_auth, extended.server_auth),
            usages,
            "{expected:?}"
        );
    }
}

#[test]
fn a_certificate_never_outlives_the_login_or_its_authority() {
    let cluster = cluster();
    let mut profile = cluster.user_profile("alice@example.com", &[]).unwrap();
    profile.login_deadline = cluster.now + Duration::minutes(7);
    let credential = cluster.issue(Profile::User(profile.clone())).unwrap();
    assert_eq!(
        seconds(credential.issued.not_after()),
        seconds(profile.login_deadline)
    );

    let authority_end = cluster.issuer(CaClass::System).not_after();
    let late = authority_end - Duration::minutes(5);
    let profile = Profile::Proxy(iap_identity::ProxyProfile {
        id: ProxyId::from_uuid(new_uuid()),
        cluster: cluster.name.clone(),
    });
    let credential = cluster.issue_at(profile, late).unwrap();
    assert_eq!(credential.issued.not_after(), authority_end);
}

#[test]
fn a_login_that_is_over_gets_no_certificate() {
    let cluster = cluster();
    let mut profile = cluster.user_profile("alice@example.com", &[]).unwrap();
    profile.login_deadline = cluster.now;
    let key = KeyPair::generate().unwrap();
    let request = Request::parse(&certificate_request(&key).unwrap()).unwrap();
    let prepared = request.approve(Profile::User(profile)).prepare(
        cluster.now,
        random_serial().unwrap(),
        cluster.issuer(CaClass::User),
    );
    assert_eq!(prepared.unwrap_err(), PrepareError::LoginOver);
}

#[test]
fn a_name_that_is_no_email_travels_in_the_extension() {
    let cluster = cluster();
    for name in ["Älice Example", "alice", "älice@example.com", "a@b@c"] {
        let credential = cluster.user(name, &[]).unwrap();
        assert_eq!(names(&parsed(&credential)).len(), 1, "no rfc822Name for {name}");
        let accepted = ClassSet::of(&[Class::User]);
        let VerifiedPeer::User(user) =
            verify_client(&credential.chain, accepted, cluster.bundle(), cluster.now).unwrap()
        else {
            panic!("not a user")
        };
        assert_eq!(user.name, name);
    }
}

#[test]
fn only_the_key_is_taken_from_a_request_that_asks_for_everything() {
    let cluster = cluster();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["auth.iap.example.com".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
    let request = Request::parse(params.serialize_request(&key).unwrap().der()).unwrap();
    assert_eq!(request.public_key_spki(), key.subject_public_key_info());

    let profile = Profile::User(cluster.user_profile("alice@example.com", &[]).unwrap());
    let issued = request
        .approve(profile)
        .prepare(
            cluster.now,
            random_serial().unwrap(),
            cluster.issuer(CaClass::User),
        )
        .unwrap()
        .sign(cluster.issuer_key(CaClass::User))
        .unwrap()
        .finish(cluster.now)
        .unwrap();
    let (_, certificate) = parse_x509_certificate(issued.leaf_der()).unwrap();
    assert!(!certificate.is_ca());
    assert_eq!(certificate.key_usage().unwrap().unwrap().value.flags, 1);
    assert!(!names(&certificate).iter().any(|name| name.starts_with("DNS")));
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && !extended.server_auth && !extended.any);
    assert!(certificate.subject().iter().next().is_none());
}

#[test]
fn every_kind_of_key_in_the_policy_is_issued_to_and_no_other() {
    let cluster = cluster();
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let profile = Profile::User(cluster.user_profile("alice@example.com", &[]).unwrap());
        let credential = cluster.issue_for(profile, key, cluster.now).unwrap();
        assert_eq!(
            parsed(&credential).public_key().raw,
            credential.key.subject_public_key_info()
        );
    }
    for algorithm in [&rcgen::PKCS_ECDSA_P521_SHA512, &rcgen::PKCS_RSA_SHA256] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        assert_eq!(
            Request::parse(&certificate_request(&key).unwrap()).unwrap_err(),
            RequestError::Key
        );
    }
}

#[test]
fn a_request_must_be_signed_by_its_own_key() {
    /// Shows one key and signs with another.
    struct Borrowed {
        shown: KeyPair,
        used: KeyPair,
    }
    impl PublicKeyData for Borrowed {
        fn der_bytes(&self) -> &[u8] {
            self.shown.der_bytes()
        }
        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            PublicKeyData::algorithm(&self.shown)
        }
    }
    impl SigningKey for Borrowed {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
            self.used.sign(message)
        }
    }
    let borrowed = Borrowed {
        shown: KeyPair::generate().unwrap(),
        used: KeyPair::generate().unwrap(),
    };
    let request = certificate_request(&borrowed).unwrap();
    assert_eq!(Request::parse(&request).unwrap_err(), RequestError::Possession);
}

#[test]
fn damaged_requests_are_refused() {
    let request = certificate_request(&KeyPair::generate().unwrap()).unwrap();
    assert!(Request::parse(&request).is_ok());
    let mut trailing = request.clone();
    trailing.push(0);
    assert_eq!(Request::parse(&trailing).unwrap_err(), RequestError::Malformed);
    assert_eq!(
        Request::parse(&request[..request.len() - 1]).unwrap_err(),
        RequestError::Malformed
    );
    assert_eq!(Request::parse(&[]).unwrap_err(), RequestError::Malformed);
    assert_eq!(
        Request::parse(&vec![0x30; REQUEST_BYTES_MAX + 1]).unwrap_err(),
        RequestError::TooLarge
    );
    // What is signed, and the signature. The algorithm's name (ecdsa-with-SHA256) and the head of the
    // bit string between them are not, and their reader is lenient.
    let between = [
        0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02, 0x03,
    ];
    let start = request
        .windows(between.len())
        .position(|window| window == between)
        .unwrap();
    for at in (0..start).chain(start + between.len() + 2..request.len()) {
        let mut flipped = request.clone();
        flipped[at] ^= 1;
        assert!(Request::parse(&flipped).is_err(), "byte {at} may be changed");
    }
}

#[test]
fn an_authority_issues_for_its_own_class_and_cluster_only() {
    let (cluster, other) = (cluster(), TestCluster::new("other.example.com").unwrap());
    let prepare = |issuer, now| {
        let request = Request::parse(&certificate_request(&KeyPair::generate().unwrap()).unwrap()).unwrap();
        let profile = Profile::User(cluster.user_profile("alice@example.com", &[]).unwrap());
        request
            .approve(profile)
            .prepare(now, random_serial().unwrap(), issuer)
            .map(drop)
    };
    assert_eq!(
        prepare(cluster.issuer(CaClass::System), cluster.now),
        Err(PrepareError::WrongAuthority {
            needed: CaClass::User,
            found: CaClass::System
        })
    );
    assert_eq!(
        prepare(other.issuer(CaClass::User), cluster.now),
        Err(PrepareError::WrongCluster)
    );
    let before = cluster.now - Duration::hours(1);
    assert_eq!(
        prepare(cluster.issuer(CaClass::User), before),
        Err(PrepareError::AuthorityNotValid)
    );
    assert_eq!(prepare(cluster.issuer(CaClass::User), cluster.now), Ok(()));
}

#[test]
fn a_wrong_signing_key_is_noticed_before_it_signs() {
    let cluster = cluster();
    let request = Request::parse(&certificate_request(&KeyPair::generate().unwrap()).unwrap()).unwrap();
    let profile = Profile::ServiceLeaf {
        agent: agent_id(),
        service: ServiceName::parse("db-prod").unwrap(),
        cluster: cluster.name.clone(),
    };
    let prepared = request
        .approve(profile)
        .prepare(
            cluster.now,
            random_serial().unwrap(),
            cluster.issuer(CaClass::System),
        )
        .unwrap();
    let signed = prepared.sign(cluster.issuer_key(CaClass::User));
    assert_eq!(signed.unwrap_err(), PrepareError::WrongSigner);
}

#[test]
fn a_certificate_with_a_broken_signature_is_not_released() {
    /// Signs something else than it is given: a broken token or a tampered remote signer.
    struct Deranged<'a>(&'a KeyPair);
    impl PublicKeyData for Deranged<'_> {
        fn der_bytes(&self) -> &[u8] {
            self.0.der_bytes()
        }
        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            PublicKeyData::algorithm(self.0)
        }
    }
    impl SigningKey for Deranged<'_> {
        fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
            self.0.sign(b"something else")
        }
    }
    let cluster = cluster();
    let request = Request::parse(&certificate_request(&KeyPair::generate().unwrap()).unwrap()).unwrap();
    let unverified = request
        .approve(Profile::User(
            cluster.user_profile("alice@example.com", &[]).unwrap(),
        ))
        .prepare(
            cluster.now,
            random_serial().unwrap(),
            cluster.issuer(CaClass::User),
        )
        .unwrap()
        .sign(&Deranged(cluster.issuer_key(CaClass::User)))
        .unwrap();
    assert!(matches!(
        unverified.finish(cluster.now),
        Err(IssueError::Verify(_))
    ));
}

#[test]
fn a_certificate_that_is_not_valid_when_finished_is_not_released() {
    let cluster = cluster();
    let request = Request::parse(&certificate_request(&KeyPair::generate().unwrap()).unwrap()).unwrap();
    let unverified = request
        .approve(Profile::User(
            cluster.user_profile("alice@example.com", &[]).unwrap(),
        ))
        .prepare(
            cluster.now,
            random_serial().unwrap(),
            cluster.issuer(CaClass::User),
        )
        .unwrap()
        .sign(cluster.issuer_key(CaClass::User))
        .unwrap();
    assert!(matches!(
        unverified.finish(cluster.now + Duration::hours(2)),
        Err(IssueError::Verify(_))
    ));
}

#[test]
fn a_field_that_cannot_be_carried_stops_the_issuing() {
    let cluster = cluster();
    let mut profile = cluster.user_profile("alice@example.com", &[]).unwrap();
    profile.login_method = "browser\n".to_owned();
    let request = Request::parse(&certificate_request(&KeyPair::generate().unwrap()).unwrap()).unwrap();
    let prepared = request.approve(Profile::User(profile)).prepare(
        cluster.now,
        random_serial().unwrap(),
        cluster.issuer(CaClass::User),
    );
    assert!(matches!(prepared, Err(PrepareError::Extension(_))));
}
