//! The certificate for whoever administers the host: every verb, for minutes, on record, never renewed.

use std::path::Path;
use std::time::Duration;

use iap_auth::break_glass::{self, BreakGlassError, Wish};
use iap_identity::CertificateDer;
use iap_proto::v1;
use iap_runtime::tls::certificates_from_pem;
use rcgen::KeyPair;

use crate::harness::{ADMIN, CLUSTER, Identity, Plane, refused};
use crate::renewal::renew;

fn wish(plane: &Plane, name: &str) -> Wish {
    Wish {
        life: Duration::from_secs(900),
        reason: "the provider is down".to_owned(),
        home: plane.beside(name),
        address: None,
    }
}

fn identity_in(home: &Path) -> Identity {
    let folder = home.join("clusters").join(CLUSTER);
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let key = KeyPair::from_pem(&String::from_utf8(read("key.pem")).unwrap()).unwrap();
    let chain: Vec<CertificateDer<'static>> = certificates_from_pem(&read("cert.pem")).unwrap();
    Identity { key, chain }
}

#[tokio::test]
async fn it_holds_every_verb_for_minutes_and_its_reason_is_on_record() {
    let plane = Plane::start().await;
    let wish = wish(&plane, "home");
    break_glass::obtain(&plane.config(), &wish).await.unwrap();
    let me = identity_in(&wish.home);
    plane.admin(&me).locks_list(v1::Empty {}).await.unwrap();
    plane.agent_token(&me, &[], 1).await;
    let records = plane.records(&me, "admin.break_glass").await;
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["reason"], "the provider is down");
    assert_eq!(records[0]["user"]["kind"], "host");
    let issued = plane.records(&me, "certificate.issued").await;
    let its = issued
        .iter()
        .find(|record| record["login_id"] == records[0]["login_id"])
        .unwrap();
    assert!(
        records[0]["agent_seq"].as_u64() < its["agent_seq"].as_u64(),
        "recorded first"
    );
    plane.offset.set(time::Duration::minutes(16));
    assert_eq!(
        refused(plane.admin(&me).locks_list(v1::Empty {}).await),
        "login_required"
    );
}

#[tokio::test]
async fn it_is_never_renewed() {
    let plane = Plane::start().await;
    let wish = wish(&plane, "home");
    break_glass::obtain(&plane.config(), &wish).await.unwrap();
    assert_eq!(
        refused(renew(&plane, &identity_in(&wish.home)).await),
        "login_required"
    );
}

#[tokio::test]
async fn without_a_reason_or_for_too_long_there_is_none() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let with = |reason: &str, seconds| Wish {
        life: Duration::from_secs(seconds),
        reason: reason.to_owned(),
        ..wish(&plane, "home")
    };
    for (wish, says) in [
        (with(" ", 900), "--reason"),
        (with("x", 3601), "--ttl"),
        (with("x", 0), "--ttl"),
    ] {
        let error = break_glass::obtain(&plane.config(), &wish).await.unwrap_err();
        assert!(
            matches!(error, BreakGlassError::Local(_)) && error.to_string().contains(says),
            "{error}"
        );
        assert!(!wish.home.exists());
    }
    assert!(plane.records(&admin, "admin.break_glass").await.is_empty());
}

#[tokio::test]
async fn a_login_with_the_same_name_is_no_administrator() {
    let plane = Plane::start().await;
    let pretender = plane
        .log_in(&format!("{}@{CLUSTER}", break_glass::LOGIN_METHOD))
        .await;
    assert_eq!(
        refused(plane.admin(&pretender).locks_list(v1::Empty {}).await),
        "denied"
    );
}
