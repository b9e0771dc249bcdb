//! Applying a policy: what is refused, what is warned of, what is kept.

use iap_proto::v1;

use crate::harness::{ADMIN, Identity, Plane, code, refused};

async fn apply(plane: &Plane, who: &Identity, toml: &str) -> Result<v1::PolicyApplyReply, tonic::Status> {
    apply_with(
        plane,
        who,
        v1::PolicyApplyRequest {
            policy_toml: toml.to_owned(),
            ..Default::default()
        },
    )
    .await
}

async fn apply_with(
    plane: &Plane,
    who: &Identity,
    request: v1::PolicyApplyRequest,
) -> Result<v1::PolicyApplyReply, tonic::Status> {
    plane
        .admin(who)
        .policy_apply(request)
        .await
        .map(tonic::Response::into_inner)
}

fn rule(group: &str) -> String {
    format!(
        "[[rule]]\nname = \"{group} reach all\"\neffect = \"allow\"\n\
         users = {{ groups = [\"{group}\"] }}\nservices = {{ names = [\"*\"] }}\n"
    )
}

const WRITERS: &str = "[[admin]]\nusers = { groups = [\"platform\"] }\nverbs = [\"policy.write\"]\n";

#[tokio::test]
async fn a_policy_is_stored_byte_for_byte_recorded_and_published() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let before = plane.context.feed.snapshot().content.version;
    let toml = format!("# exactly so\n{}", rule("engineering"));
    let reply = apply(&plane, &admin, &toml).await.unwrap();
    assert_eq!((reply.version, reply.changed), (1, true));
    let got = plane
        .admin(&admin)
        .policy_get(v1::PolicyGetRequest { version: 0 })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (got.version, got.policy_toml.as_str(), got.applied_by.as_str()),
        (1, toml.as_str(), ADMIN)
    );
    let snapshot = plane.context.feed.snapshot();
    assert!(snapshot.content.version > before);
    assert_eq!(
        (snapshot.content.policy_version, &snapshot.content.policy_toml),
        (1, &toml)
    );
    let records = plane.records(&admin, "policy.applied").await;
    assert_eq!(
        (&records[0]["old_version"], &records[0]["new_version"]),
        (&0.into(), &1.into())
    );
    assert_eq!(records[0]["sha256"], iap_audit::hash_hex(toml.as_bytes()));
}

#[tokio::test]
async fn an_identical_document_changes_nothing() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    apply(&plane, &admin, &rule("engineering")).await.unwrap();
    let version = plane.context.feed.snapshot().content.version;
    let reply = apply(&plane, &admin, &rule("engineering")).await.unwrap();
    assert_eq!((reply.version, reply.changed), (1, false));
    assert_eq!(plane.context.feed.snapshot().content.version, version);
}

#[tokio::test]
async fn a_dry_run_keeps_nothing() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let request = v1::PolicyApplyRequest {
        policy_toml: rule("engineering"),
        dry_run: true,
        ..Default::default()
    };
    assert!(apply_with(&plane, &admin, request).await.unwrap().changed);
    assert_eq!(
        refused(
            plane
                .admin(&admin)
                .policy_get(v1::PolicyGetRequest { version: 0 })
                .await
        ),
        "not_found"
    );
}

#[tokio::test]
async fn a_document_that_does_not_load_is_refused_with_every_mistake() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let toml = "[[rule]]\nname = \"a\"\neffect = \"maybe\"\nusers = { names = [\"x\"] }\n\
                services = { names = [\"*\"] }\nwhen = '1 + 1'\n";
    let status = apply(&plane, &admin, toml).await.unwrap_err();
    assert_eq!(code(&status), "invalid");
    assert!(status.message().contains("effect"), "{status:?}");
}

#[tokio::test]
async fn a_document_whose_tests_fail_is_refused_with_the_failing_case() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    plane.create_services(&admin, &["echo"]).await;
    let toml = format!(
        "{}[[test]]\nuser = {{ name = \"eve@example.com\", groups = [\"support\"] }}\n\
         service = \"echo\"\nexpect = \"allow\"\n",
        rule("engineering")
    );
    let status = apply(&plane, &admin, &toml).await.unwrap_err();
    assert_eq!(code(&status), "invalid");
    assert!(status.message().contains("eve@example.com"), "{status:?}");
    assert!(status.message().contains("expected allow"), "{status:?}");
}

#[tokio::test]
async fn a_hostile_condition_does_not_bring_the_server_down() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let toml = format!("{}when = '{}1 == 1'\n", rule("engineering"), "1+".repeat(400));
    assert_eq!(refused(apply(&plane, &admin, &toml).await), "invalid");
    apply(&plane, &admin, &rule("engineering")).await.unwrap();
}

#[tokio::test]
async fn somebody_elses_change_in_between_is_a_conflict() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    apply(&plane, &admin, &rule("one")).await.unwrap();
    apply(&plane, &admin, &rule("two")).await.unwrap();
    let late = |expected_version| v1::PolicyApplyRequest {
        policy_toml: rule("three"),
        expected_version,
        ..Default::default()
    };
    assert_eq!(refused(apply_with(&plane, &admin, late(1)).await), "conflict");
    assert_eq!(apply_with(&plane, &admin, late(2)).await.unwrap().version, 3);
}

#[tokio::test]
async fn who_takes_policy_write_from_themselves_needs_force() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    apply(&plane, &admin, WRITERS).await.unwrap();
    let hours = time::Duration::hours(1);
    let carol = plane
        .log_in_with("carol@example.com", &["platform"], time::Duration::ZERO, hours)
        .await;
    assert_eq!(
        refused(apply(&plane, &carol, &rule("engineering")).await),
        "needs_force"
    );
    let forced = v1::PolicyApplyRequest {
        policy_toml: rule("engineering"),
        force: true,
        ..Default::default()
    };
    assert_eq!(apply_with(&plane, &carol, forced).await.unwrap().version, 2);
    assert_eq!(refused(apply(&plane, &carol, WRITERS).await), "denied");
    // A bootstrap admin never loses it, so there is nothing to force.
    apply(&plane, &admin, WRITERS).await.unwrap();
}

#[tokio::test]
async fn each_group_keeps_the_version_that_first_named_it() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    apply(&plane, &admin, &rule("one")).await.unwrap();
    apply(&plane, &admin, &format!("{}{}", rule("one"), rule("two")))
        .await
        .unwrap();
    let vocabulary = |plane: &Plane| -> Vec<(String, u64)> {
        let snapshot = plane.context.feed.snapshot();
        snapshot
            .content
            .vocabulary
            .iter()
            .map(|(group, version)| (group.to_string(), version))
            .collect()
    };
    let expected = [("okta:one".to_owned(), 1), ("okta:two".to_owned(), 2)];
    assert_eq!(vocabulary(&plane), expected);
    // Also after a restart, and a group that was forgotten in between counts anew.
    let plane = plane.restart().await;
    assert_eq!(vocabulary(&plane), expected);
    apply(&plane, &admin, &rule("two")).await.unwrap();
    apply(&plane, &admin, &format!("{}{}", rule("one"), rule("two")))
        .await
        .unwrap();
    assert_eq!(
        vocabulary(&plane),
        [("okta:one".to_owned(), 4), ("okta:two".to_owned(), 2)]
    );
}

#[tokio::test]
async fn explanations_name_the_rule_to_those_who_may_read_the_policy() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    plane.create_services(&admin, &["echo"]).await;
    apply(&plane, &admin, &rule("engineering")).await.unwrap();
    let hours = time::Duration::hours(1);
    let alice = plane
        .log_in_with("alice@example.com", &["engineering"], time::Duration::ZERO, hours)
        .await;
    let bob = plane.log_in("bob@example.com").await;
    let about = |user: &str| v1::ExplainRequest {
        user: user.to_owned(),
        service: "echo".to_owned(),
        ..Default::default()
    };
    for (reader, user) in [(&admin, "alice@example.com"), (&alice, "")] {
        let reply = plane
            .user(reader)
            .explain(about(user))
            .await
            .unwrap()
            .into_inner();
        assert!(reply.allowed, "{}", reply.text);
        let json: serde_json::Value = serde_json::from_str(&reply.json).unwrap();
        assert_eq!(
            (&json["effect"], &json["rule"]),
            (&"allow".into(), &"engineering reach all".into())
        );
    }
    let denied = plane.user(&bob).explain(about("")).await.unwrap().into_inner();
    assert!(
        !denied.allowed && !denied.text.contains("engineering"),
        "{}",
        denied.text
    );
    assert_eq!(
        refused(plane.user(&bob).explain(about("alice@example.com")).await),
        "denied"
    );
}

#[tokio::test]
async fn users_see_the_services_they_may_reach() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    plane.create_services(&admin, &["echo", "web"]).await;
    apply(&plane, &admin, &rule("engineering").replace("\"*\"", "\"echo\""))
        .await
        .unwrap();
    let hours = time::Duration::hours(1);
    let alice = plane
        .log_in_with("alice@example.com", &["engineering"], time::Duration::ZERO, hours)
        .await;
    let names = async |who: &Identity| -> Vec<String> {
        let visible = plane
            .user(who)
            .services(v1::Empty {})
            .await
            .unwrap()
            .into_inner()
            .services;
        visible
            .into_iter()
            .map(|visible| visible.service.unwrap().name)
            .collect()
    };
    assert_eq!(names(&alice).await, ["echo"]);
    assert!(
        names(&admin).await.is_empty(),
        "an admin reaches nothing by being one"
    );
}
