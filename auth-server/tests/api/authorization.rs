//! The table of RPCs, held row by row against a running server.

use std::collections::BTreeMap;

use http::uri::PathAndQuery;
use iap_auth::rpc::{Callers, Row, TABLE};
use iap_identity::{Class, ClassSet};
use iap_policy::Verb;
use iap_proto::v1;
use time::Duration;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::harness::{ADMIN, Identity, Plane, code};

const WRONG_CLASS: &str = "a certificate of this kind may not call this";

/// Calls an RPC with an empty message and returns the gate's or the handler's first word.
async fn call(channel: &Channel, path: &'static str) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<v1::Empty, v1::Empty>::default();
    let reply = grpc.server_streaming(Request::new(v1::Empty {}), PathAndQuery::from_static(path), codec);
    reply.await?.into_inner().message().await.map(drop)
}

fn is_wrong_class(result: &Result<(), Status>) -> bool {
    matches!(result, Err(status) if code(status) == "denied" && status.message() == WRONG_CLASS)
}

fn needs_certificate(result: &Result<(), Status>) -> bool {
    matches!(result, Err(status) if code(status) == "login_required")
}

/// One identity of every class that can knock.
async fn everybody(plane: &Plane) -> BTreeMap<Class, Identity> {
    let admin = plane.log_in(ADMIN).await;
    let (_, agent) = plane.join_agent(&admin, &[]).await;
    let (_, proxy) = plane.join_proxy(&admin).await;
    BTreeMap::from([(Class::User, admin), (Class::Agent, agent), (Class::Proxy, proxy)])
}

fn accepts(row: &Row, class: Class) -> bool {
    match row.callers {
        Callers::NoCertificate => false,
        Callers::Classes(classes) => classes.contains(class),
        Callers::AgentOrExpired => ClassSet::of(&[Class::Agent]).contains(class),
        Callers::UserOrExpired => ClassSet::of(&[Class::User]).contains(class),
    }
}

#[tokio::test]
async fn each_rpc_accepts_its_classes_and_no_other() {
    let plane = Plane::start().await;
    for (class, identity) in everybody(&plane).await {
        let channel = plane.with(&identity);
        // Logging out first would end the identity the other rows are tried with.
        for row in TABLE.iter().filter(|row| row.path != "/iap.v1.User/Logout") {
            let result = call(&channel, row.path).await;
            assert_eq!(
                !is_wrong_class(&result),
                accepts(row, class),
                "{class} {}: {result:?}",
                row.path
            );
        }
    }
}

#[tokio::test]
async fn without_a_certificate_only_login_and_join_answer() {
    let plane = Plane::start().await;
    let channel = plane.nobody();
    for row in TABLE {
        let result = call(&channel, row.path).await;
        let open = matches!(row.callers, Callers::NoCertificate);
        assert_eq!(!needs_certificate(&result), open, "{}: {result:?}", row.path);
    }
}

#[tokio::test]
async fn an_rpc_without_a_row_is_denied() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let status = call(&plane.with(&admin), "/iap.v1.Admin/Everything")
        .await
        .unwrap_err();
    assert_eq!(code(&status), "denied");
}

#[tokio::test]
async fn each_admin_rpc_needs_one_of_its_verbs() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let policy_toml: String = Verb::ALL
        .iter()
        .map(|verb| {
            let verb = verb.as_str();
            format!("[[admin]]\nusers = {{ names = [\"{verb}@example.com\"] }}\nverbs = [\"{verb}\"]\n")
        })
        .collect();
    let apply = v1::PolicyApplyRequest {
        policy_toml,
        force: false,
        dry_run: false,
        expected_version: 0,
    };
    plane.admin(&admin).policy_apply(apply).await.unwrap();
    for verb in Verb::ALL {
        let identity = plane.log_in(&format!("{}@example.com", verb.as_str())).await;
        let channel = plane.with(&identity);
        let held = [Some(verb), verb.implies()];
        for row in TABLE.iter().filter(|row| !row.verbs.is_empty()) {
            let result = call(&channel, row.path).await;
            let refused =
                matches!(&result, Err(status) if status.message().starts_with("this needs the admin verb"));
            let allowed = row.verbs.iter().any(|needed| held.contains(&Some(*needed)));
            assert_eq!(!refused, allowed, "{verb} {}: {result:?}", row.path);
        }
    }
}

#[tokio::test]
async fn a_login_older_than_fifteen_minutes_must_be_repeated_for_what_changes_rules() {
    let plane = Plane::start().await;
    let old = plane
        .log_in_with(ADMIN, &[], Duration::minutes(16), Duration::hours(1))
        .await;
    let channel = plane.with(&old);
    for row in TABLE.iter().filter(|row| !row.verbs.is_empty()) {
        let result = call(&channel, row.path).await;
        let must = matches!(&result, Err(status) if code(status) == "reauthenticate");
        assert_eq!(must, row.needs_recent_login(), "{}: {result:?}", row.path);
    }
}

#[tokio::test]
async fn a_certificate_that_expires_during_a_connection_is_refused_from_then_on() {
    let plane = Plane::start().await;
    let alice = plane.log_in("alice@example.com").await;
    let channel = plane.with(&alice);
    call(&channel, "/iap.v1.User/Whoami").await.unwrap();
    plane.offset.set(Duration::minutes(61));
    let status = call(&channel, "/iap.v1.User/Whoami").await.unwrap_err();
    assert_eq!(code(&status), "login_required");
}

#[tokio::test]
async fn a_refused_admin_call_is_recorded_once_a_minute() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let bob = plane.log_in("bob@example.com").await;
    let channel = plane.with(&bob);
    for _ in 0..3 {
        call(&channel, "/iap.v1.Admin/PolicyGet").await.unwrap_err();
    }
    let records = plane.records(&admin, "admin.denied").await;
    // Three calls may fall into two minutes, never into three.
    assert!((1..=2).contains(&records.len()), "{records:?}");
    assert_eq!(records[0]["user"]["name"], "bob@example.com");
}
