//! Services: applied as a whole, never removed by applying.

use iap_proto::v1;

use crate::harness::{ADMIN, Identity, Plane, code, refused};

async fn apply(plane: &Plane, who: &Identity, toml: &str) -> Result<v1::ServicesApplyReply, tonic::Status> {
    let request = v1::ServicesApplyRequest {
        services_toml: toml.to_owned(),
    };
    plane
        .admin(who)
        .services_apply(request)
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test]
async fn applying_creates_updates_and_never_removes() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let first = apply(
        &plane,
        &admin,
        "[[service]]\nname = \"a\"\n[[service]]\nname = \"b\"\n",
    )
    .await
    .unwrap();
    assert_eq!(first.created, ["a", "b"]);
    let second = apply(
        &plane,
        &admin,
        "[[service]]\nname = \"a\"\n[[service]]\nname = \"c\"\nprotocol = \"postgres\"\n",
    );
    let second = second.await.unwrap();
    assert_eq!(
        (second.created, second.updated, second.unchanged),
        (vec!["c".into()], vec![], vec!["a".into()])
    );
    let third = apply(&plane, &admin, "[[service]]\nname = \"a\"\ncontact = \"#db\"\n")
        .await
        .unwrap();
    assert_eq!(third.updated, ["a"]);
    let listed = plane
        .admin(&admin)
        .services_list(v1::Empty {})
        .await
        .unwrap()
        .into_inner()
        .services;
    assert_eq!(
        listed
            .iter()
            .map(|service| service.name.as_str())
            .collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    assert_eq!(plane.records(&admin, "service.applied").await.len(), 4);
}

#[tokio::test]
async fn applying_without_agents_keeps_the_grants() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    plane.create_services(&admin, &["echo"]).await;
    let (id, _) = plane.join_agent(&admin, &["echo"]).await;
    apply(
        &plane,
        &admin,
        "[[service]]\nname = \"echo\"\ncontact = \"#ops\"\n",
    )
    .await
    .unwrap();
    let listed = plane
        .admin(&admin)
        .services_list(v1::Empty {})
        .await
        .unwrap()
        .into_inner()
        .services;
    assert_eq!(listed[0].agents, [id.as_bytes().to_vec()]);
    apply(&plane, &admin, "[[service]]\nname = \"echo\"\nagents = []\n")
        .await
        .unwrap();
    let listed = plane
        .admin(&admin)
        .services_list(v1::Empty {})
        .await
        .unwrap()
        .into_inner()
        .services;
    assert!(listed[0].agents.is_empty());
}

#[tokio::test]
async fn a_document_with_a_mistake_changes_nothing() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let unknown = "01980000-0000-7000-8000-000000000001";
    for wrong in [
        "name = \"auth\"",
        &format!("name = \"b\"\nagents = [\"{unknown}\"]"),
    ] {
        let toml = format!("[[service]]\nname = \"a\"\n[[service]]\n{wrong}\n");
        assert_eq!(refused(apply(&plane, &admin, &toml).await), "invalid", "{wrong}");
    }
    let listed = plane
        .admin(&admin)
        .services_list(v1::Empty {})
        .await
        .unwrap()
        .into_inner()
        .services;
    assert!(listed.is_empty());
}

#[tokio::test]
async fn a_removed_service_leaves_the_snapshot() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    plane.create_services(&admin, &["echo"]).await;
    let remove = || v1::NameRequest {
        name: "echo".to_owned(),
    };
    plane.admin(&admin).services_remove(remove()).await.unwrap();
    assert!(plane.context.feed.snapshot().content.services.is_empty());
    let status = plane.admin(&admin).services_remove(remove()).await.unwrap_err();
    assert_eq!(code(&status), "not_found");
}

#[tokio::test]
async fn services_whose_record_cannot_be_written_are_not_applied() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    plane
        .sql(
            "CREATE TRIGGER full BEFORE INSERT ON records WHEN NEW.event = 'service.applied'
             BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
        )
        .await;
    let toml = "[[service]]\nname = \"a\"\n";
    assert_eq!(refused(apply(&plane, &admin, toml).await), "internal");
    let listed = plane.admin(&admin).services_list(v1::Empty {}).await.unwrap();
    assert!(listed.into_inner().services.is_empty());
    plane.sql("DROP TRIGGER full").await;
    assert_eq!(apply(&plane, &admin, toml).await.unwrap().created, ["a"]);
}
