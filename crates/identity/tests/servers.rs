//! Servers verified by the name that was dialled, service leaves, agents that come back late, and
//! signatures by a peer's key.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use iap_identity::verify::EXPIRED_AGENT_GRACE;
use iap_identity::{
    AgentId, AgentProfile, AuthId, CaClass, CertificateDer, Class, ExtensionError, PeerError, Profile,
    ProxyId, ServerIdentity, ServerName, ServiceName, SignedKind, signed_message, verify_expired_agent,
    verify_server, verify_service_leaf, verify_signed_by_peer,
};
use iap_testkit::{Forgery, TestCluster, new_uuid};
use rcgen::{ExtendedKeyUsagePurpose, SigningKey};
use time::Duration;

fn cluster() -> TestCluster {
    TestCluster::new("iap.example.com").unwrap()
}

fn agent_id() -> AgentId {
    AgentId::from_uuid(new_uuid())
}

#[test]
fn servers_are_verified_for_the_name_that_was_dialled() {
    let cluster = cluster();
    let (agent, proxy, auth) = (
        agent_id(),
        ProxyId::from_uuid(new_uuid()),
        AuthId::from_uuid(new_uuid()),
    );
    let service = |name| ServerName::Service(ServiceName::parse(name).unwrap());
    let servers = [
        (
            service("db-prod"),
            cluster.service_leaf(agent, "db-prod").unwrap(),
            ServerIdentity::Agent(agent),
        ),
        (
            ServerName::Agent(agent),
            cluster.agent(agent).unwrap(),
            ServerIdentity::Agent(agent),
        ),
        (
            ServerName::Proxy,
            cluster.proxy(proxy).unwrap(),
            ServerIdentity::Proxy(proxy),
        ),
        (
            ServerName::Auth,
            cluster.auth(auth).unwrap(),
            ServerIdentity::Auth(auth),
        ),
        (
            ServerName::Cluster,
            cluster.auth(auth).unwrap(),
            ServerIdentity::Auth(auth),
        ),
    ];
    for (name, credential, identity) in &servers {
        let verified = verify_server(&credential.chain, name, cluster.bundle(), cluster.now).unwrap();
        assert_eq!((&verified.name, &verified.identity), (name, identity));
        let others = servers
            .iter()
            .map(|(other, _, _)| other.clone())
            .chain([service("echo"), ServerName::Agent(agent_id())]);
        for other in others {
            let same_door = matches!(
                (&other, name),
                (
                    ServerName::Auth | ServerName::Cluster,
                    ServerName::Auth | ServerName::Cluster
                )
            );
            if other != *name && !same_door {
                let result = verify_server(&credential.chain, &other, cluster.bundle(), cluster.now);
                assert!(result.is_err(), "{name:?} passed as {other:?}");
            }
        }
    }
}

#[test]
fn a_user_certificate_serves_nothing() {
    let cluster = cluster();
    let user = cluster.user("alice@example.com", &[]).unwrap();
    for name in [
        ServerName::Auth,
        ServerName::Proxy,
        ServerName::Service(ServiceName::parse("db-prod").unwrap()),
    ] {
        let result = verify_server(&user.chain, &name, cluster.bundle(), cluster.now);
        assert_eq!(result, Err(PeerError::WrongUsage));
    }
    let mut serving = Forgery::user(&cluster).unwrap();
    serving.usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    serving.dns = vec![cluster.name.auth_host()];
    let chain = [serving.signed_by(&cluster, CaClass::User).unwrap()];
    let result = verify_server(&chain, &ServerName::Auth, cluster.bundle(), cluster.now);
    assert_eq!(result, Err(PeerError::UnknownIssuer));
}

#[test]
fn a_service_leaf_carries_no_identity_extension_and_one_name() {
    let cluster = cluster();
    let id = agent_id();
    let leaf = |spoil: fn(&mut Forgery)| {
        let mut forgery = Forgery::agent(&cluster, id).unwrap();
        forgery.extensions.clear();
        forgery.usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        forgery.dns = vec!["db-prod.iap.example.com".to_owned()];
        spoil(&mut forgery);
        let der = forgery.signed_by(&cluster, CaClass::System).unwrap();
        verify_service_leaf(&der, &id, cluster.bundle(), cluster.now)
    };
    assert_eq!(leaf(|_| {}).unwrap().service.as_str(), "db-prod");
    let two = leaf(|forgery| forgery.dns.push("echo.iap.example.com".to_owned()));
    assert_eq!(
        two,
        Err(PeerError::Inconsistent("a service leaf has exactly one DNS name"))
    );
    for host in [
        "auth.iap.example.com",
        "www.iap.example.com",
        "*.iap.example.com",
        "db.example.org",
        "iap.example.com",
    ] {
        let mut forgery = Forgery::agent(&cluster, id).unwrap();
        forgery.extensions.clear();
        forgery.usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        forgery.dns = vec![host.to_owned()];
        let der = forgery.signed_by(&cluster, CaClass::System).unwrap();
        assert!(
            verify_service_leaf(&der, &id, cluster.bundle(), cluster.now).is_err(),
            "{host}"
        );
    }
    let client = leaf(|forgery| forgery.usages.push(ExtendedKeyUsagePurpose::ClientAuth));
    assert_eq!(
        client,
        Err(PeerError::Inconsistent(
            "the extended key usage is not that of its class"
        ))
    );
    let cluster_agent = Forgery::agent(&cluster, id).unwrap();
    let der = cluster_agent.signed_by(&cluster, CaClass::System).unwrap();
    let result = verify_service_leaf(&der, &id, cluster.bundle(), cluster.now);
    assert_eq!(result, Err(ExtensionError::Unexpected.into()));
}

#[test]
fn an_agent_announces_only_its_own_valid_leaves() {
    let cluster = cluster();
    let (own, other) = (agent_id(), agent_id());
    let leaf = cluster.service_leaf(own, "db-prod").unwrap();
    let verify = |agent: &AgentId, now| verify_service_leaf(leaf.leaf(), agent, cluster.bundle(), now);
    let verified = verify(&own, cluster.now).unwrap();
    assert_eq!(verified.service.as_str(), "db-prod");
    assert_eq!(verify(&own, verified.not_after).as_ref(), Ok(&verified));
    let until = cluster.bundle().valid_until(CaClass::System, cluster.now);
    assert!(until > verified.not_after);
    assert_eq!(cluster.bundle().valid_until(CaClass::System, until), until);
    let behind = until + Duration::seconds(1);
    assert_eq!(
        cluster.bundle().valid_until(CaClass::System, behind),
        behind,
        "none is valid"
    );
    assert_eq!(
        verify(&other, cluster.now),
        Err(PeerError::Inconsistent("it belongs to another agent"))
    );
    assert!(matches!(
        verify(&own, cluster.now + Duration::hours(5)),
        Err(PeerError::Expired { .. })
    ));
    let twin = TestCluster::new("iap.example.com")
        .unwrap()
        .service_leaf(own, "db-prod")
        .unwrap();
    let result = verify_service_leaf(twin.leaf(), &own, cluster.bundle(), cluster.now);
    assert_eq!(result, Err(PeerError::UnknownIssuer));
}

#[test]
fn an_expired_agent_may_renew_for_thirty_days_and_nobody_else_may() {
    let cluster = cluster();
    let id = agent_id();
    let agent = cluster.agent(id).unwrap();
    let end = agent.issued.not_after();
    let at = |time| verify_expired_agent(&agent.chain, cluster.bundle(), time, EXPIRED_AGENT_GRACE);
    for time in [
        cluster.now,
        end,
        end + Duration::days(1),
        end + Duration::days(30),
    ] {
        assert_eq!(at(time).unwrap().id, id);
    }
    let late = at(end + Duration::days(30) + Duration::seconds(1));
    assert_eq!(late, Err(PeerError::Expired { not_after: end }));
    let long_ago = at(agent.issued.not_before() - Duration::seconds(2));
    assert!(long_ago.is_err());

    let proxy = cluster.proxy(ProxyId::from_uuid(new_uuid())).unwrap();
    let expired = proxy.issued.not_after() + Duration::days(1);
    let result = verify_expired_agent(&proxy.chain, cluster.bundle(), expired, EXPIRED_AGENT_GRACE);
    assert_eq!(result, Err(PeerError::WrongClass { found: Class::Proxy }));

    let twin = TestCluster::new("iap.example.com").unwrap();
    let profile = Profile::Agent(AgentProfile {
        id,
        cluster: twin.name.clone(),
        generation: 0,
    });
    let foreign = twin.issue(profile).unwrap();
    let result = verify_expired_agent(&foreign.chain, cluster.bundle(), expired, EXPIRED_AGENT_GRACE);
    assert_eq!(result, Err(PeerError::UnknownIssuer));
}

#[test]
fn a_record_chains_head_is_signed_by_the_agents_key_and_kind() {
    let cluster = cluster();
    let (agent, other) = (
        cluster.agent(agent_id()).unwrap(),
        cluster.agent(agent_id()).unwrap(),
    );
    let signature = agent
        .key
        .sign(&signed_message(SignedKind::AuditHead, b"head"))
        .unwrap();
    let verify = |leaf: &CertificateDer<'_>, kind, payload: &[u8]| {
        verify_signed_by_peer(leaf, kind, payload, &signature)
    };
    assert!(verify(agent.leaf(), SignedKind::AuditHead, b"head").is_ok());
    assert!(verify(agent.leaf(), SignedKind::AuditHead, b"heaD").is_err());
    assert!(verify(agent.leaf(), SignedKind::Beat, b"head").is_err());
    assert!(verify(other.leaf(), SignedKind::AuditHead, b"head").is_err());
}
