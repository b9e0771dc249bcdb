//! Renewing a user's certificate: generations, deadline, groups.

use iap_auth::authority::Renewed;
use iap_auth::store::hash_of;
use iap_identity::{Class, ClassSet, Request, UserPeer, VerifiedPeer, certificate_request, verify_client};
use iap_proto::v1;
use rcgen::KeyPair;
use time::{Duration, OffsetDateTime};

use crate::harness::{ADMIN, Identity, Plane, key_and_csr, refused};

pub(crate) async fn renew(plane: &Plane, identity: &Identity) -> Result<Identity, tonic::Status> {
    let csr = certificate_request(&identity.key).unwrap();
    let reply = plane
        .user(identity)
        .renew(v1::RenewRequest {
            csr,
            ..Default::default()
        })
        .await?
        .into_inner();
    let key = KeyPair::try_from(identity.key.serialized_der()).unwrap();
    Ok(Identity::from_wire(key, &reply.issued.unwrap()))
}

fn peer(plane: &Plane, identity: &Identity) -> UserPeer {
    let bundle = &plane.context.authority.bundle;
    let now = OffsetDateTime::now_utc();
    match verify_client(&identity.chain, ClassSet::of(&[Class::User]), bundle, now).unwrap() {
        VerifiedPeer::User(user) => user,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_renewal_is_one_generation_of_the_same_login() {
    let plane = Plane::start().await;
    let first = plane.log_in("alice@example.com").await;
    let second = renew(&plane, &first).await.unwrap();
    let third = renew(&plane, &second).await.unwrap();
    let peers = [&first, &second, &third].map(|identity| peer(&plane, identity));
    assert_eq!(peers.clone().map(|peer| peer.generation), [1, 2, 3]);
    assert_eq!(peers[0].login_id, peers[2].login_id);
    assert_eq!(peers[0].auth_time, peers[2].auth_time);
    assert_eq!(peers[0].login_deadline, peers[2].login_deadline);
}

#[tokio::test]
async fn a_renewal_is_for_the_current_key_and_a_refused_one_costs_no_generation() {
    let plane = Plane::start().await;
    let alice = plane.log_in("alice@example.com").await;
    let (_, csr) = key_and_csr();
    let other_key = plane
        .user(&alice)
        .renew(v1::RenewRequest {
            csr,
            ..Default::default()
        })
        .await;
    assert_eq!(refused(other_key), "invalid");
    let renewed = renew(&plane, &alice).await.unwrap();
    assert_eq!(peer(&plane, &renewed).generation, 2);
}

#[tokio::test]
async fn a_user_gets_so_many_certificates_an_hour_and_is_told_when_there_are_more() {
    let plane = Plane::start_with(|config| config.limits.certificates_per_user_per_hour_max = 3).await;
    let admin = plane.log_in(ADMIN).await;
    let mut alice = plane.log_in("alice@example.com").await;
    for _ in 0..2 {
        alice = renew(&plane, &alice).await.unwrap();
    }
    for _ in 0..2 {
        let refusal = renew(&plane, &alice).await.err().unwrap();
        assert_eq!(refusal.code(), tonic::Code::ResourceExhausted);
        let said = refusal.message();
        assert!(
            said.contains("alice@example.com") && said.contains("try again in 60 min"),
            "{said}"
        );
        assert!(
            said.contains("limits.certificates_per_user_per_hour_max"),
            "{said}"
        );
    }
    assert!(renew(&plane, &admin).await.is_ok(), "others are not held up");
    let recorded = plane.records(&admin, "certificate.refused").await;
    assert_eq!(recorded.len(), 1, "once in the hour: {recorded:?}");
    assert_eq!(recorded[0]["user"]["name"], "alice@example.com");
    plane.offset.set(Duration::minutes(61));
    plane.log_in("alice@example.com").await;
}

#[tokio::test]
async fn limits_that_change_while_the_server_runs_count_at_once_for_connections_and_certificates() {
    let plane = Plane::start_with(|config| config.limits.certificates_per_user_per_hour_max = 2).await;
    let mut alice = plane.log_in("alice@example.com").await;
    alice = renew(&plane, &alice).await.unwrap();
    assert_eq!(refused(renew(&plane, &alice).await), "too_many");
    let mut limits = plane.config().limits;
    limits.certificates_per_user_per_hour_max = 3;
    plane.limits.take_over(limits.clone());
    alice = renew(&plane, &alice).await.unwrap();
    assert_eq!(
        refused(renew(&plane, &alice).await),
        "too_many",
        "what was issued before counts"
    );

    let mut held = plane.user(&alice);
    held.services(v1::Empty {}).await.unwrap();
    limits.connections_max = 1;
    plane.limits.take_over(limits.clone());
    assert!(
        renew(&plane, &alice).await.is_err(),
        "another connection is one too many"
    );
    assert!(held.services(v1::Empty {}).await.is_ok(), "the old one goes on");
    limits.connections_max = 8;
    plane.limits.take_over(limits);
    assert_eq!(
        refused(renew(&plane, &alice).await),
        "too_many",
        "there is a place for it again"
    );
}

#[tokio::test]
async fn a_certificate_renewed_before_a_lock_falls_under_it() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let first = plane.log_in("alice@example.com").await;
    let second = renew(&plane, &first).await.unwrap();
    let lock = v1::LockAddRequest {
        kind: "user".to_owned(),
        target: "alice@example.com".to_owned(),
        reason: "laptop stolen".to_owned(),
        ttl_seconds: 0,
    };
    plane.admin(&admin).lock_add(lock).await.unwrap();
    for holder in [&first, &second] {
        assert_eq!(refused(renew(&plane, holder).await), "denied");
    }
}

/// A login whose certificate expired `ago` and that goes on for `left`.
async fn expired_user(plane: &Plane, ago: Duration, left: Duration) -> Identity {
    plane.offset.set(-ago - Duration::HOUR);
    let deadline = ago + Duration::HOUR + left;
    let alice = plane
        .log_in_with("alice@example.com", &[], Duration::ZERO, deadline)
        .await;
    plane.offset.set(Duration::ZERO);
    alice
}

#[tokio::test]
async fn a_users_expired_certificate_is_good_for_its_renewal_only_while_the_login_goes_on() {
    let plane = Plane::start_aged().await;
    let asleep = expired_user(&plane, Duration::hours(7), Duration::hours(2)).await;
    assert_eq!(
        refused(plane.user(&asleep).services(v1::Empty {}).await),
        "login_required"
    );
    assert_eq!(
        refused(
            plane
                .admin(&asleep)
                .policy_get(v1::PolicyGetRequest::default())
                .await
        ),
        "login_required"
    );
    let awake = renew(&plane, &asleep).await.unwrap();
    assert_eq!(peer(&plane, &awake).generation, 2);
    plane.user(&awake).services(v1::Empty {}).await.unwrap();

    for (ago, left) in [
        (Duration::hours(13), Duration::hours(2)),
        (Duration::hours(7), -Duration::hours(1)),
    ] {
        let over = expired_user(&plane, ago, left).await;
        let status = renew(&plane, &over).await.err().unwrap();
        assert!(
            status.metadata().get("iap-error").is_none(),
            "refused by TLS: {status:?}"
        );
    }
}

#[tokio::test]
async fn a_locked_users_expired_certificate_renews_no_more() {
    let plane = Plane::start_aged().await;
    let admin = plane.log_in(ADMIN).await;
    let asleep = expired_user(&plane, Duration::hours(1), Duration::hours(2)).await;
    let lock = v1::LockAddRequest {
        kind: "user".to_owned(),
        target: "alice@example.com".to_owned(),
        reason: "laptop stolen".to_owned(),
        ttl_seconds: 0,
    };
    plane.admin(&admin).lock_add(lock).await.unwrap();
    assert_eq!(refused(renew(&plane, &asleep).await), "denied");
}

#[tokio::test]
async fn a_renewal_never_outlives_the_login() {
    let plane = Plane::start().await;
    let short = Duration::minutes(20);
    let alice = plane
        .log_in_with("alice@example.com", &[], Duration::ZERO, short)
        .await;
    let renewed = peer(&plane, &renew(&plane, &alice).await.unwrap());
    assert_eq!(renewed.not_after, renewed.login_deadline);
    plane.offset.set(Duration::minutes(21));
    assert_eq!(refused(renew(&plane, &alice).await), "login_required");
}

#[tokio::test]
async fn a_lost_answer_can_be_asked_for_once_more() {
    let plane = Plane::start().await;
    let first = plane.log_in("alice@example.com").await;
    renew(&plane, &first).await.unwrap();
    let again = renew(&plane, &first).await.unwrap();
    assert_eq!(peer(&plane, &again).generation, 3);
    renew(&plane, &again).await.unwrap();
}

#[tokio::test]
async fn a_renewal_given_up_before_its_certificate_was_made_costs_no_generation() {
    let plane = Plane::start().await;
    let alice = plane.log_in("alice@example.com").await;
    let (me, store) = (peer(&plane, &alice), &plane.context.store);
    let mut given_up = 0;
    for patience in 0.. {
        let csr = certificate_request(&alice.key).unwrap();
        let (request, hash) = (Request::parse(&csr).unwrap(), hash_of(&csr));
        let renewing = plane.context.authority.renew_user(&me, request, &hash);
        let patience = std::time::Duration::from_micros(100 * patience);
        match tokio::time::timeout(patience, renewing).await {
            Ok(renewed) => {
                assert!(matches!(renewed.unwrap(), Renewed::Issued(_)));
                break;
            }
            Err(_) => given_up += 1,
        }
        // Giving back is queued by now; a later write in the same queue is done after it.
        tokio::task::yield_now().await;
        store.forget_logins(OffsetDateTime::UNIX_EPOCH).await.unwrap();
        let row = store.generations(me.login_id).await.unwrap().unwrap();
        assert_eq!(row.generation, 1, "{patience:?}");
    }
    assert!(given_up > 1, "it was given up at several moments");
    let row = store.generations(me.login_id).await.unwrap().unwrap();
    assert_eq!(row.generation, 2);
}

#[tokio::test]
async fn a_generation_used_a_third_time_locks_both_holders() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let first = plane.log_in("alice@example.com").await;
    let second = renew(&plane, &first).await.unwrap();
    let third = renew(&plane, &first).await.unwrap();
    assert_eq!(refused(renew(&plane, &first).await), "denied");
    for holder in [&first, &second, &third] {
        assert_eq!(refused(plane.user(holder).whoami(v1::Empty {}).await), "denied");
    }
    assert_eq!(plane.records(&admin, "login.reused").await.len(), 1);
    assert_eq!(plane.context.feed.published_locks().content.locks.len(), 1);
}

#[tokio::test]
async fn a_generation_used_ten_minutes_later_locks_both_holders() {
    let plane = Plane::start().await;
    let first = plane.log_in("alice@example.com").await;
    let second = renew(&plane, &first).await.unwrap();
    plane.offset.set(Duration::minutes(10));
    assert_eq!(refused(renew(&plane, &first).await), "denied");
    assert_eq!(refused(renew(&plane, &second).await), "denied");
}

#[tokio::test]
async fn a_login_that_was_ended_renews_no_more() {
    let plane = Plane::start().await;
    let alice = plane.log_in("alice@example.com").await;
    plane.user(&alice).logout(v1::Empty {}).await.unwrap();
    assert_eq!(refused(renew(&plane, &alice).await), "denied");
    let published = plane.context.feed.published_locks();
    let lock = published.content.locks.iter().next().unwrap();
    assert_eq!(lock.target, peer(&plane, &alice).login_id.to_string());
    assert!(lock.reason.contains("iapctl logout"), "{}", lock.reason);
}

#[tokio::test]
async fn the_same_request_gets_the_same_generation_as_often_as_its_answer_is_lost() {
    let plane = Plane::start().await;
    let first = plane.log_in("alice@example.com").await;
    let csr = certificate_request(&first.key).unwrap();
    let ask = async || {
        let reply = plane
            .user(&first)
            .renew(v1::RenewRequest {
                csr: csr.clone(),
                ..Default::default()
            })
            .await;
        let key = KeyPair::try_from(first.key.serialized_der()).unwrap();
        reply.map(|reply| Identity::from_wire(key, &reply.into_inner().issued.unwrap()))
    };
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(peer(&plane, &ask().await.unwrap()));
    }
    assert!(answers.iter().all(|peer| peer.generation == 2), "{answers:?}");
    assert_ne!(answers[0].serial, answers[1].serial);
    plane.offset.set(Duration::minutes(10));
    assert_eq!(refused(ask().await), "denied");
    assert_eq!(plane.context.feed.published_locks().content.locks.len(), 1);
}

#[tokio::test]
async fn the_same_request_sent_several_times_at_once_is_one_generation() {
    let plane = Plane::start().await;
    let first = plane.log_in("alice@example.com").await;
    let csr = certificate_request(&first.key).unwrap();
    let asking = (0..6).map(|_| {
        let (mut user, csr) = (plane.user(&first), csr.clone());
        async move {
            user.renew(v1::RenewRequest {
                csr,
                ..Default::default()
            })
            .await
        }
    });
    for answer in futures_util::future::join_all(asking).await {
        let key = KeyPair::try_from(first.key.serialized_der()).unwrap();
        let issued = answer.unwrap().into_inner().issued.unwrap();
        assert_eq!(peer(&plane, &Identity::from_wire(key, &issued)).generation, 2);
    }
    assert!(plane.context.feed.published_locks().content.locks.is_empty());
}

#[tokio::test]
async fn certificates_carry_the_groups_the_policy_names_and_renewals_pick_up_new_ones() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let groups = ["engineering", "football"];
    let alice = plane
        .log_in_with("alice@example.com", &groups, Duration::ZERO, Duration::hours(1))
        .await;
    assert!(peer(&plane, &alice).groups.is_empty());
    assert_eq!(peer(&plane, &alice).groups_vocabulary, 0);
    let policy_toml = "[[rule]]\nname = \"r\"\neffect = \"allow\"\nusers = { groups = [\"engineering\"] }\n\
                       services = { names = [\"*\"] }\n";
    let request = v1::PolicyApplyRequest {
        policy_toml: policy_toml.to_owned(),
        ..Default::default()
    };
    plane.admin(&admin).policy_apply(request).await.unwrap();
    let renewed = peer(&plane, &renew(&plane, &alice).await.unwrap());
    let carried: Vec<String> = renewed.groups.iter().map(ToString::to_string).collect();
    assert_eq!(carried, ["okta:engineering"]);
    assert_eq!(renewed.groups_vocabulary, 1);
}

#[tokio::test]
async fn every_certificate_is_on_record() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let alice = plane.log_in("alice@example.com").await;
    let renewed = renew(&plane, &alice).await.unwrap();
    let records = plane.records(&admin, "certificate.issued").await;
    for identity in [&alice, &renewed] {
        let serial = peer(&plane, identity).serial;
        assert!(
            records.iter().any(|record| record["serial"] == serial.as_str()),
            "{serial}"
        );
    }
}
