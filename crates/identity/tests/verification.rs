//! Verification by class: one good certificate of each kind, and every way to be refused. Each
//! forgery differs from a certificate that verifies in exactly one point.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use iap_identity::{
    AgentId, AuthId, CaClass, CertificateDer, Class, ClassSet, ClusterName, ExtensionError, LoginId,
    PeerAlert, PeerError, Profile, ProxyId, UserId, VerifiedPeer, verify_client,
};
use iap_testkit::{Forgery, TestCluster, new_uuid};
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa};
use time::{Duration, OffsetDateTime};

const EVERYBODY: ClassSet = ClassSet::of(&Class::ALL);
const USERS: ClassSet = ClassSet::of(&[Class::User]);

fn cluster() -> TestCluster {
    TestCluster::new("iap.example.com").unwrap()
}

fn agent_id() -> AgentId {
    AgentId::from_uuid(new_uuid())
}

fn seconds(time: OffsetDateTime) -> i64 {
    time.unix_timestamp()
}

fn as_user(cluster: &TestCluster, leaf: CertificateDer<'static>) -> Result<VerifiedPeer, PeerError> {
    verify_client(&[leaf], USERS, cluster.bundle(), cluster.now)
}

/// Spoils a good user certificate and has it verified.
fn spoiled(spoil: impl FnOnce(&mut Forgery)) -> Result<VerifiedPeer, PeerError> {
    let cluster = cluster();
    let mut forgery = Forgery::user(&cluster).unwrap();
    spoil(&mut forgery);
    as_user(&cluster, forgery.signed_by(&cluster, CaClass::User).unwrap())
}

fn spoiled_extension(
    spoil: impl FnOnce(&mut iap_identity::IdentityExtension),
) -> Result<VerifiedPeer, PeerError> {
    spoiled(|forgery| {
        let mut extension = forgery.extension().unwrap();
        spoil(&mut extension);
        forgery.set_extension(&extension).unwrap();
    })
}

#[test]
fn an_unspoiled_forgery_verifies() {
    assert_eq!(spoiled(|_| {}).unwrap().class(), Class::User);
}

#[test]
fn a_user_is_read_back_as_approved() {
    let cluster = cluster();
    let profile = cluster
        .user_profile("alice@example.com", &["engineering", "on-call"])
        .unwrap();
    let credential = cluster.issue(Profile::User(profile.clone())).unwrap();
    let VerifiedPeer::User(user) =
        verify_client(&credential.chain, USERS, cluster.bundle(), cluster.now).unwrap()
    else {
        panic!("not a user")
    };
    assert_eq!(
        (&user.id, &user.name, user.login_id),
        (&profile.id, &profile.name, profile.login_id)
    );
    assert_eq!(
        (&user.idp, &user.login_method),
        (&profile.idp, &profile.login_method)
    );
    assert_eq!(
        (&user.groups, user.groups_vocabulary),
        (&profile.groups, profile.groups_vocabulary)
    );
    assert_eq!(seconds(user.login_deadline), seconds(profile.login_deadline));
    assert_eq!(user.serial, credential.issued.serial_hex());
    assert_eq!(user.not_after, credential.issued.not_after());
}

#[test]
fn a_client_need_send_only_its_leaf() {
    let cluster = cluster();
    let credential = cluster.user("alice@example.com", &[]).unwrap();
    assert!(as_user(&cluster, credential.leaf().clone()).is_ok());
}

#[test]
fn each_class_is_told_apart() {
    let cluster = cluster();
    let credentials = [
        (cluster.user("alice@example.com", &[]).unwrap(), Class::User),
        (cluster.bot("deployer").unwrap(), Class::Bot),
        (cluster.agent(agent_id()).unwrap(), Class::Agent),
        (
            cluster.proxy(ProxyId::from_uuid(new_uuid())).unwrap(),
            Class::Proxy,
        ),
        (cluster.auth(AuthId::from_uuid(new_uuid())).unwrap(), Class::Auth),
    ];
    for (credential, class) in &credentials {
        let verify = |accepted| verify_client(&credential.chain, accepted, cluster.bundle(), cluster.now);
        assert_eq!(verify(ClassSet::of(&[*class])).unwrap().class(), *class);
        for other in Class::ALL.into_iter().filter(|other| other != class) {
            assert_eq!(
                verify(ClassSet::of(&[other])),
                Err(PeerError::WrongClass { found: *class })
            );
        }
        assert_eq!(
            verify(ClassSet::NONE),
            Err(PeerError::WrongClass { found: *class })
        );
    }
}

#[test]
fn an_agent_is_not_a_user_and_is_told_so_with_access_denied() {
    let cluster = cluster();
    let error = as_user(&cluster, cluster.agent(agent_id()).unwrap().leaf().clone()).unwrap_err();
    assert_eq!(error, PeerError::WrongClass { found: Class::Agent });
    assert_eq!(error.alert(), PeerAlert::AccessDenied);
}

#[test]
fn a_missing_certificate_is_refused() {
    let cluster = cluster();
    assert!(matches!(
        verify_client(&[], EVERYBODY, cluster.bundle(), cluster.now),
        Err(PeerError::Malformed(_))
    ));
}

#[test]
fn expired_and_future_certificates_are_refused_to_the_second() {
    let cluster = cluster();
    let credential = cluster.user("alice@example.com", &[]).unwrap();
    let at = |time| verify_client(&credential.chain, USERS, cluster.bundle(), time);
    let (start, end) = (credential.issued.not_before(), credential.issued.not_after());
    assert!(at(end).is_ok());
    let error = at(end + Duration::seconds(1)).unwrap_err();
    assert_eq!(error, PeerError::Expired { not_after: end });
    assert_eq!(error.alert(), PeerAlert::CertificateExpired);

    let later = cluster.now + Duration::hours(3);
    let profile = Profile::Bot(iap_identity::BotProfile {
        name: iap_identity::BotName::parse("deployer").unwrap(),
        cluster: cluster.name.clone(),
        login_id: LoginId::from_uuid(new_uuid()),
        generation: 0,
        life: Duration::hours(1),
    });
    let future = cluster.issue_at(profile, later).unwrap();
    let error = verify_client(&future.chain, EVERYBODY, cluster.bundle(), cluster.now).unwrap_err();
    assert_eq!(
        error,
        PeerError::NotYetValid {
            not_before: future.issued.not_before()
        }
    );
    assert!(start < cluster.now);
}

#[test]
fn a_certificate_of_another_cluster_is_refused() {
    let (cluster, other) = (cluster(), TestCluster::new("other.example.com").unwrap());
    let error = as_user(
        &cluster,
        other.user("alice@example.com", &[]).unwrap().leaf().clone(),
    )
    .unwrap_err();
    assert_eq!(
        error,
        PeerError::WrongCluster {
            found: "other.example.com".to_owned()
        }
    );
    assert_eq!(error.alert(), PeerAlert::UnknownCa);
}

#[test]
fn a_cluster_of_the_same_name_with_other_keys_is_refused() {
    let (cluster, twin) = (cluster(), cluster());
    let error = as_user(
        &cluster,
        twin.user("alice@example.com", &[]).unwrap().leaf().clone(),
    )
    .unwrap_err();
    assert_eq!(error, PeerError::UnknownIssuer);
    assert_eq!(error.alert(), PeerAlert::UnknownCa);
}

#[test]
fn a_stolen_issuer_name_without_the_key_is_refused() {
    let (cluster, thief) = (cluster(), cluster());
    let leaf = Forgery::user(&cluster)
        .unwrap()
        .signed(
            cluster.issuer(CaClass::User).der(),
            thief.issuer_key(CaClass::User),
        )
        .unwrap();
    assert_eq!(as_user(&cluster, leaf), Err(PeerError::UnknownIssuer));
}

#[test]
fn a_self_signed_certificate_is_refused_even_with_the_right_content() {
    let cluster = cluster();
    let leaf = Forgery::user(&cluster).unwrap().self_signed().unwrap();
    assert_eq!(as_user(&cluster, leaf), Err(PeerError::UnknownIssuer));
}

#[test]
fn only_the_authority_of_the_claimed_class_counts() {
    let cluster = cluster();
    let user = Forgery::user(&cluster).unwrap();
    for wrong in [CaClass::System, CaClass::Workload] {
        assert_eq!(
            as_user(&cluster, user.signed_by(&cluster, wrong).unwrap()),
            Err(PeerError::UnknownIssuer)
        );
    }
    let agent = Forgery::agent(&cluster, agent_id()).unwrap();
    let verify = |leaf| verify_client(&[leaf], EVERYBODY, cluster.bundle(), cluster.now);
    assert!(verify(agent.signed_by(&cluster, CaClass::System).unwrap()).is_ok());
    for wrong in [CaClass::User, CaClass::Workload] {
        assert_eq!(
            verify(agent.signed_by(&cluster, wrong).unwrap()),
            Err(PeerError::UnknownIssuer)
        );
    }
}

#[test]
fn the_root_itself_anchors_nothing() {
    let cluster = cluster();
    let leaf = Forgery::user(&cluster)
        .unwrap()
        .signed(cluster.root().der(), cluster.root_key())
        .unwrap();
    let chain = [leaf, cluster.root().der().clone()];
    assert_eq!(
        verify_client(&chain, USERS, cluster.bundle(), cluster.now),
        Err(PeerError::UnknownIssuer)
    );
}

#[test]
fn an_authority_the_peer_brings_along_counts_for_nothing() {
    let (cluster, twin) = (cluster(), cluster());
    let mut chain = vec![
        Forgery::user(&cluster)
            .unwrap()
            .signed_by(&twin, CaClass::User)
            .unwrap(),
    ];
    chain.push(twin.issuer(CaClass::User).der().clone());
    chain.push(twin.root().der().clone());
    assert_eq!(
        verify_client(&chain, USERS, cluster.bundle(), cluster.now),
        Err(PeerError::UnknownIssuer)
    );
}

#[test]
fn identity_is_taken_from_the_leaf_and_from_nothing_behind_it() {
    let cluster = cluster();
    let chain = [
        cluster.user("mallory@example.com", &[]).unwrap().leaf().clone(),
        cluster
            .user("alice@example.com", &["admin"])
            .unwrap()
            .leaf()
            .clone(),
    ];
    let VerifiedPeer::User(user) = verify_client(&chain, USERS, cluster.bundle(), cluster.now).unwrap()
    else {
        panic!("not a user")
    };
    assert_eq!(user.name, "mallory@example.com");
}

#[test]
fn the_identity_extension_is_required_once_and_exact() {
    assert_eq!(
        spoiled(|forgery| forgery.extensions.clear()),
        Err(ExtensionError::Missing.into())
    );
    let doubled = spoiled(|forgery| forgery.extensions.push(forgery.extensions[0].clone()));
    assert_eq!(doubled, Err(ExtensionError::Duplicate.into()));
    let trailing = spoiled(|forgery| forgery.extensions[0].extend([5, 0]));
    assert!(
        matches!(trailing, Err(PeerError::Extension(ExtensionError::Der(_)))),
        "{trailing:?}"
    );
    let huge = spoiled(|forgery| forgery.extensions[0] = vec![0x30; 5000]);
    assert_eq!(huge, Err(ExtensionError::TooLarge.into()));
    assert!(
        spoiled(|forgery| forgery.critical = true).is_err(),
        "no other verifier would take it"
    );
}

#[test]
fn an_agent_without_the_extension_is_refused() {
    let cluster = cluster();
    let mut agent = Forgery::agent(&cluster, agent_id()).unwrap();
    agent.extensions.clear();
    let chain = [agent.signed_by(&cluster, CaClass::System).unwrap()];
    let result = verify_client(&chain, EVERYBODY, cluster.bundle(), cluster.now);
    assert_eq!(result, Err(ExtensionError::Missing.into()));
}

#[test]
fn the_extension_must_say_what_the_uri_says() {
    let kind = spoiled_extension(|extension| extension.kind = Class::Agent);
    assert_eq!(
        kind,
        Err(PeerError::Inconsistent("the extension's kind is not the URI's"))
    );
    let cluster =
        spoiled_extension(|extension| extension.cluster = ClusterName::parse("other.example.com").unwrap());
    assert_eq!(
        cluster,
        Err(PeerError::Inconsistent(
            "the extension's cluster is not the URI's"
        ))
    );
    let principal =
        spoiled_extension(|extension| extension.principal = UserId::derive("dev", "x", "bob").to_string());
    assert_eq!(
        principal,
        Err(PeerError::Inconsistent(
            "the extension's principal is not the URI's"
        ))
    );
}

#[test]
fn a_user_certificate_lacks_none_of_the_login_fields() {
    type Spoil = fn(&mut iap_identity::IdentityExtension);
    let spoils: [Spoil; 8] = [
        |extension| extension.login_id = None,
        |extension| extension.auth_time = None,
        |extension| extension.login_deadline = None,
        |extension| extension.generation = None,
        |extension| extension.idp = None,
        |extension| extension.login_method = None,
        |extension| extension.groups_vocabulary = None,
        |extension| extension.groups_as_of = None,
    ];
    for spoil in spoils {
        let result = spoiled_extension(spoil);
        assert_eq!(
            result,
            Err(PeerError::Inconsistent(
                "a user's identity extension lacks a login field"
            ))
        );
    }
}

#[test]
fn a_user_certificate_does_not_outlive_its_login() {
    let result = spoiled_extension(|extension| {
        extension.login_deadline = extension
            .login_deadline
            .map(|deadline| deadline - Duration::hours(11) - Duration::minutes(1));
    });
    assert_eq!(
        result,
        Err(PeerError::Inconsistent("it outlives its login deadline"))
    );
}

#[test]
fn a_user_has_exactly_one_display_name() {
    let one_name = PeerError::Inconsistent("a user has exactly one display name");
    assert_eq!(spoiled(|forgery| forgery.emails.clear()), Err(one_name.clone()));
    assert_eq!(
        spoiled_extension(|extension| extension.name = Some("Bob".to_owned())),
        Err(one_name)
    );
    let two = spoiled(|forgery| forgery.emails.push("bob@example.com".to_owned()));
    assert!(matches!(two, Err(PeerError::Inconsistent(_))));
    let blank = spoiled(|forgery| forgery.emails = vec!["alice @example.com".to_owned()]);
    assert!(matches!(blank, Err(PeerError::Inconsistent(_))));
}

#[test]
fn there_is_exactly_one_uri_of_a_known_form() {
    let one = PeerError::Inconsistent("it has not exactly one URI");
    assert_eq!(spoiled(|forgery| forgery.uris.clear()), Err(one.clone()));
    assert_eq!(
        spoiled(|forgery| forgery.uris.push(forgery.uris[0].clone())),
        Err(one.clone())
    );
    let second = spoiled(|forgery| forgery.uris.push("https://example.com/".to_owned()));
    assert_eq!(second, Err(one));
    let foreign = spoiled(|forgery| forgery.uris = vec!["https://example.com/".to_owned()]);
    assert_eq!(
        foreign,
        Err(PeerError::Inconsistent("its URI is of no known form"))
    );
}

#[test]
fn a_user_certificate_cannot_serve_and_has_no_host_name() {
    let serving = spoiled(|forgery| forgery.usages.push(ExtendedKeyUsagePurpose::ServerAuth));
    assert_eq!(
        serving,
        Err(PeerError::Inconsistent(
            "the extended key usage is not that of its class"
        ))
    );
    let anything = spoiled(|forgery| forgery.usages.push(ExtendedKeyUsagePurpose::Any));
    assert_eq!(
        anything,
        Err(PeerError::Inconsistent(
            "the extended key usage is not that of its class"
        ))
    );
    let absent = spoiled(|forgery| forgery.usages.clear());
    assert_eq!(
        absent,
        Err(PeerError::Inconsistent(
            "the extended key usage is not that of its class"
        ))
    );
    let host = spoiled(|forgery| forgery.dns.push("db-prod.iap.example.com".to_owned()));
    assert_eq!(
        host,
        Err(PeerError::Inconsistent(
            "the DNS names are not those of its class"
        ))
    );
}

#[test]
fn an_authority_is_not_a_client() {
    let result = spoiled(|forgery| forgery.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(result, Err(PeerError::WrongUsage));
}

#[test]
fn an_agent_has_its_own_host_name_and_no_other() {
    let cluster = cluster();
    let verify = |hosts: &[&str]| {
        let id = agent_id();
        let mut agent = Forgery::agent(&cluster, id).unwrap();
        agent.dns.extend(hosts.iter().map(|host| (*host).to_owned()));
        let chain = [agent.signed_by(&cluster, CaClass::System).unwrap()];
        verify_client(&chain, EVERYBODY, cluster.bundle(), cluster.now)
    };
    assert!(verify(&[]).is_ok());
    let wrong = Err(PeerError::Inconsistent(
        "the DNS names are not those of its class",
    ));
    assert_eq!(verify(&["auth.iap.example.com"]), wrong);
    assert_eq!(verify(&["db-prod.iap.example.com"]), wrong);
}

#[test]
fn bytes_behind_a_certificate_and_flipped_bits_are_refused() {
    let cluster = cluster();
    let good = cluster.user("alice@example.com", &[]).unwrap().leaf().to_vec();
    let mut trailing = good.clone();
    trailing.push(0);
    assert!(matches!(
        as_user(&cluster, trailing.into()),
        Err(PeerError::Malformed(_))
    ));
    for at in (0..good.len()).step_by(3) {
        let mut flipped = good.clone();
        flipped[at] ^= 0x04;
        assert!(
            as_user(&cluster, flipped.into()).is_err(),
            "byte {at} may be changed"
        );
    }
}

#[test]
fn a_service_leaf_is_no_client() {
    let cluster = cluster();
    let leaf = cluster.service_leaf(agent_id(), "db-prod").unwrap();
    let result = verify_client(&leaf.chain, EVERYBODY, cluster.bundle(), cluster.now);
    assert_eq!(result, Err(PeerError::WrongUsage));
}

#[test]
fn workload_certificates_are_not_accepted_yet() {
    let result = spoiled(|forgery| forgery.uris = vec!["spiffe://iap.example.com/ns/prod/sa/web".to_owned()]);
    assert_eq!(
        result,
        Err(PeerError::UnknownIssuer),
        "signed by the users' authority"
    );
    let cluster = cluster();
    let mut workload = Forgery::user(&cluster).unwrap();
    workload.uris = vec!["spiffe://iap.example.com/ns/prod/sa/web".to_owned()];
    let chain = [workload.signed_by(&cluster, CaClass::Workload).unwrap()];
    let result = verify_client(&chain, EVERYBODY, cluster.bundle(), cluster.now);
    assert_eq!(
        result,
        Err(PeerError::WrongClass {
            found: Class::Workload
        })
    );
}
