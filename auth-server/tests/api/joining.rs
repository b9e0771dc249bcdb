//! Hosts join with tokens, and what they may do afterwards.

use iap_identity::{CertificateDer, Class, ClassSet, VerifiedPeer, verify_client, verify_service_leaf};
use iap_proto::v1;
use time::{Duration, OffsetDateTime};

use crate::harness::{ADMIN, Identity, Plane, code, join_request, key_and_csr, key_and_request, refused};

#[tokio::test]
async fn a_token_lets_one_agent_join_and_grants_it_the_services() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    plane.create_services(&admin, &["db-prod", "echo"]).await;
    let (id, identity) = plane.join_agent(&admin, &["db-prod"]).await;
    let bundle = &plane.context.authority.bundle;
    let classes = ClassSet::of(&[Class::Agent]);
    match verify_client(&identity.chain, classes, bundle, OffsetDateTime::now_utc()).unwrap() {
        VerifiedPeer::Agent(agent) => assert_eq!(agent.id, id),
        other => panic!("{other:?}"),
    }
    let snapshot = plane.context.feed.snapshot();
    let granted: Vec<_> = snapshot
        .content
        .services
        .iter()
        .filter(|service| service.agents.contains(&id))
        .map(|service| service.facts.name.to_string())
        .collect();
    assert_eq!(granted, ["db-prod"]);
}

#[tokio::test]
async fn a_token_used_twice_is_refused_and_recorded() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let secret = plane.agent_token(&admin, &[], 1).await;
    plane
        .join()
        .join_agent(join_request(secret.clone()).1)
        .await
        .unwrap();
    let status = plane.join().join_agent(join_request(secret).1).await.unwrap_err();
    assert_eq!(code(&status), "denied");
    assert!(status.message().contains("has been used already"), "{status:?}");
    assert_eq!(plane.records(&admin, "join.failure").await.len(), 1);
    assert_eq!(plane.records(&admin, "join.success").await.len(), 1);
}

#[tokio::test]
async fn an_expired_token_is_refused_even_if_unused() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let secret = plane.agent_token(&admin, &[], 1).await;
    plane.offset.set(Duration::minutes(30));
    let status = plane.join().join_agent(join_request(secret).1).await.unwrap_err();
    assert!(status.message().contains("has expired"), "{status:?}");
}

#[tokio::test]
async fn of_two_who_use_a_token_at_once_one_joins() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let secret = plane.agent_token(&admin, &[], 1).await;
    let (mut one, mut other) = (plane.join(), plane.join());
    let (first, second) = tokio::join!(
        one.join_agent(join_request(secret.clone()).1),
        other.join_agent(join_request(secret).1)
    );
    assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1);
}

#[tokio::test]
async fn a_token_with_two_uses_lets_two_agents_join() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let secret = plane.agent_token(&admin, &[], 2).await;
    let first = plane
        .join()
        .join_agent(join_request(secret.clone()).1)
        .await
        .unwrap()
        .into_inner();
    let second = plane
        .join()
        .join_agent(join_request(secret.clone()).1)
        .await
        .unwrap()
        .into_inner();
    assert_ne!(first.agent_id, second.agent_id);
    assert_eq!(
        refused(plane.join().join_agent(join_request(secret).1).await),
        "denied"
    );
}

#[tokio::test]
async fn a_token_is_for_its_kind_only_and_survives_the_attempt() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let secret = plane.agent_token(&admin, &[], 1).await;
    let status = plane
        .join()
        .join_proxy(join_request(secret.clone()).1)
        .await
        .unwrap_err();
    assert!(status.message().contains("is not known"), "{status:?}");
    plane.join().join_agent(join_request(secret).1).await.unwrap();
}

#[tokio::test]
async fn an_unusable_request_does_not_use_the_token_up() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let secret = plane.agent_token(&admin, &[], 1).await;
    let broken = v1::JoinRequest {
        csr: vec![1, 2, 3],
        ..join_request(secret.clone()).1
    };
    assert_eq!(refused(plane.join().join_agent(broken).await), "invalid");
    plane.join().join_agent(join_request(secret).1).await.unwrap();
}

#[tokio::test]
async fn a_removed_token_lets_nobody_in() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let secret = plane.agent_token(&admin, &[], 1).await;
    let listed = plane
        .admin(&admin)
        .tokens_list(v1::Empty {})
        .await
        .unwrap()
        .into_inner()
        .json;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let name = listed[0]["token_id"].as_str().unwrap().to_owned();
    plane
        .admin(&admin)
        .token_remove(v1::NameRequest { name })
        .await
        .unwrap();
    assert_eq!(
        refused(plane.join().join_agent(join_request(secret).1).await),
        "denied"
    );
}

#[tokio::test]
async fn a_token_for_a_service_that_does_not_exist_is_not_made() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let request = v1::TokenCreateRequest {
        kind: "agent".to_owned(),
        services: vec!["nowhere".to_owned()],
        uses: 1,
        ttl_seconds: 0,
    };
    assert_eq!(
        refused(plane.admin(&admin).token_create(request).await),
        "not_found"
    );
}

async fn leaf(plane: &Plane, agent: &Identity, service: &str) -> Result<v1::Issued, tonic::Status> {
    let request = v1::ServiceLeafRequest {
        service: service.to_owned(),
        csr: key_and_csr().1,
    };
    plane
        .agent(agent)
        .service_leaf(request)
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test]
async fn an_agent_gets_leaves_for_its_own_services_only() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    plane.create_services(&admin, &["db-prod", "echo"]).await;
    let (id, agent) = plane.join_agent(&admin, &["db-prod"]).await;
    let issued = leaf(&plane, &agent, "db-prod").await.unwrap();
    let bundle = &plane.context.authority.bundle;
    let named = verify_service_leaf(&issued.chain[0], &id, bundle, OffsetDateTime::now_utc()).unwrap();
    assert_eq!(named.service.as_str(), "db-prod");
    assert_eq!(refused(leaf(&plane, &agent, "echo").await), "denied");

    let services_toml = format!("[[service]]\nname = \"echo\"\nagents = [\"{id}\"]\n");
    plane
        .admin(&admin)
        .services_apply(v1::ServicesApplyRequest { services_toml })
        .await
        .unwrap();
    leaf(&plane, &agent, "echo").await.unwrap();
    leaf(&plane, &agent, "db-prod").await.unwrap();
}

#[tokio::test]
async fn an_agent_renews_and_its_certificate_counts_on() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let (_, agent) = plane.join_agent(&admin, &[]).await;
    let (key, csr) = key_and_csr();
    let issued = plane
        .agent(&agent)
        .renew(v1::RenewRequest {
            csr,
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    let renewed = Identity::from_wire(key, &issued);
    let bundle = &plane.context.authority.bundle;
    let peer = verify_client(
        &renewed.chain,
        ClassSet::of(&[Class::Agent]),
        bundle,
        OffsetDateTime::now_utc(),
    );
    assert!(matches!(peer.unwrap(), VerifiedPeer::Agent(agent) if agent.generation == 2));
}

/// An enrolled agent whose certificate expired `ago`.
async fn expired_agent(plane: &Plane, admin: &Identity, ago: Duration) -> Identity {
    let (id, _) = plane.join_agent(admin, &[]).await;
    plane.offset.set(-ago - Duration::hours(24));
    let (key, request) = key_and_request();
    let issued = plane.context.authority.issue_agent(id, 1, request).await.unwrap();
    plane.offset.set(Duration::ZERO);
    Identity::new(key, &issued)
}

#[tokio::test]
async fn an_agents_expired_certificate_is_good_for_its_renewal_only() {
    let plane = Plane::start_aged().await;
    let admin = plane.log_in(ADMIN).await;
    let expired = expired_agent(&plane, &admin, Duration::days(29)).await;
    let mut client = plane.agent(&expired);
    assert_eq!(
        refused(client.status(v1::AgentStatus::default()).await),
        "login_required"
    );
    let (_, csr) = key_and_csr();
    client
        .renew(v1::RenewRequest {
            csr,
            ..Default::default()
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn after_thirty_days_an_agent_has_to_join_anew() {
    let plane = Plane::start_aged().await;
    let admin = plane.log_in(ADMIN).await;
    let expired = expired_agent(&plane, &admin, Duration::days(31)).await;
    let (_, csr) = key_and_csr();
    let status = plane
        .agent(&expired)
        .renew(v1::RenewRequest {
            csr,
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert_eq!(
        code(&status),
        "none",
        "refused by TLS, not by the gate: {status:?}"
    );
}

#[tokio::test]
async fn a_locked_agents_expired_certificate_renews_no_more() {
    let plane = Plane::start_aged().await;
    let admin = plane.log_in(ADMIN).await;
    let expired = expired_agent(&plane, &admin, Duration::days(1)).await;
    let agents = plane
        .admin(&admin)
        .agents_list(v1::Empty {})
        .await
        .unwrap()
        .into_inner()
        .json;
    let agents: serde_json::Value = serde_json::from_str(&agents).unwrap();
    let lock = v1::LockAddRequest {
        kind: "agent".to_owned(),
        target: agents[0]["agent_id"].as_str().unwrap().to_owned(),
        reason: "stolen".to_owned(),
        ttl_seconds: 0,
    };
    plane.admin(&admin).lock_add(lock).await.unwrap();
    let (_, csr) = key_and_csr();
    assert_eq!(
        refused(
            plane
                .agent(&expired)
                .renew(v1::RenewRequest {
                    csr,
                    ..Default::default()
                })
                .await
        ),
        "denied"
    );
}

#[tokio::test]
async fn a_request_for_more_than_a_key_gets_a_key_certified_and_no_more() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let secret = plane.agent_token(&admin, &[], 1).await;
    let key = iap_runtime::keys::generate(iap_runtime::keys::KeyKind::P256).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["db-prod.iap.example.com".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let csr = params.serialize_request(&key).map(|csr| csr.der().to_vec());
    let request = match csr {
        Ok(csr) => v1::JoinRequest {
            csr,
            ..join_request(secret).1
        },
        // rcgen itself may refuse to write such a request; then nobody can send ours either.
        Err(_) => return,
    };
    let joined = plane.join().join_agent(request).await.unwrap().into_inner();
    let chain: Vec<CertificateDer<'static>> = joined
        .issued
        .unwrap()
        .chain
        .into_iter()
        .map(CertificateDer::from)
        .collect();
    let bundle = &plane.context.authority.bundle;
    verify_client(
        &chain,
        ClassSet::of(&[Class::Agent]),
        bundle,
        OffsetDateTime::now_utc(),
    )
    .unwrap();
    let leaf = x509_names(&chain[0]);
    assert!(!leaf.contains("db-prod"), "{leaf}");
}

fn x509_names(der: &[u8]) -> String {
    String::from_utf8_lossy(der).into_owned()
}
