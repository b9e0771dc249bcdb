//! A server that comes back from a backup: nothing is good twice, nobody honest is locked, records go on.

use iap_auth::backup;
use iap_proto::v1;
use time::OffsetDateTime;

use crate::harness::{ADMIN, Plane, join_request, refused};
use crate::ingest::{Source, stored_notes};
use crate::renewal::renew;

async fn back_up(plane: &Plane) -> std::path::PathBuf {
    let output = plane.beside("backup.tar");
    let made = backup::make(&plane.config(), &output, OffsetDateTime::now_utc())
        .await
        .unwrap();
    assert!(made.recorded);
    output
}

#[tokio::test]
async fn a_backup_of_a_running_server_is_on_record_also_in_the_backup() {
    let plane = Plane::start().await;
    let backup = back_up(&plane).await;
    let plane = plane.restore(&backup).await;
    let admin = plane.log_in(ADMIN).await;
    let made = plane.records(&admin, "auth.backup").await;
    assert_eq!(made.len(), 1);
    assert_eq!(made[0]["output"], backup.display().to_string());
    let restored = plane.records(&admin, "auth.restored").await;
    assert_eq!(restored.len(), 1);
    assert_eq!(restored[0]["previous_auth_id"], made[0]["agent_id"]);
    assert_eq!(restored[0]["agent_seq"], 1, "a chain of its own");
}

#[tokio::test]
async fn a_token_that_was_used_after_the_backup_is_not_good_again() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let secret = plane.agent_token(&admin, &[], 1).await;
    let backup = back_up(&plane).await;
    let (_, request) = join_request(secret.clone());
    plane.join().join_agent(request).await.unwrap();
    let plane = plane.restore(&backup).await;
    let (_, request) = join_request(secret);
    assert_eq!(refused(plane.join().join_agent(request).await), "denied");
}

#[tokio::test]
async fn a_certificate_renewed_after_the_backup_is_asked_to_log_in_and_locks_nobody() {
    let plane = Plane::start().await;
    let first = plane.log_in("alice@example.com").await;
    let backup = back_up(&plane).await;
    let second = renew(&plane, &first).await.unwrap();
    let third = renew(&plane, &second).await.unwrap();
    let plane = plane.restore(&backup).await;
    assert_eq!(refused(renew(&plane, &third).await), "login_required");
    assert!(
        plane.user(&third).whoami(v1::Empty {}).await.is_ok(),
        "good until it expires"
    );
    assert_eq!(
        plane.context.feed.published_locks().content.locks.iter().count(),
        0
    );
    let again = plane.log_in("alice@example.com").await;
    renew(&plane, &again).await.unwrap();
}

#[tokio::test]
async fn an_agent_is_asked_for_what_the_backup_lacks_and_what_it_still_has_is_taken_without_alarm() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let records = ["one", "two", "three", "four"].map(|note| source.note(note));
    source.send(&plane, source.batch(&records[..1])).await.unwrap();
    let backup = back_up(&plane).await;
    source.send(&plane, source.batch(&records[1..3])).await.unwrap();
    let plane = plane.restore(&backup).await;
    let admin = plane.log_in(ADMIN).await;
    let asked = source.send(&plane, source.batch(&records[3..])).await.unwrap();
    assert_eq!(asked, 1, "everything from the second on, please");
    assert_eq!(source.send(&plane, source.batch(&records[1..])).await.unwrap(), 4);
    assert_eq!(
        stored_notes(&plane, &admin).await,
        ["one", "two", "three", "four"]
    );
    assert!(plane.records(&admin, "audit.alarm").await.is_empty());
    assert!(plane.records(&admin, "audit.lost").await.is_empty());
}

#[tokio::test]
async fn records_that_nobody_has_any_more_are_noted_once_and_the_next_gap_is_an_alarm() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let records: Vec<_> = (0..6).map(|number| source.note(&number.to_string())).collect();
    source.send(&plane, source.batch(&records[..1])).await.unwrap();
    let backup = back_up(&plane).await;
    source.send(&plane, source.batch(&records[1..3])).await.unwrap();
    let plane = plane.restore(&backup).await;
    let admin = plane.log_in(ADMIN).await;
    // An agent that has deleted what was acknowledged sends the same once more.
    assert_eq!(
        source.send(&plane, source.batch(&records[3..4])).await.unwrap(),
        1
    );
    assert_eq!(
        source.send(&plane, source.batch(&records[3..4])).await.unwrap(),
        4
    );
    let lost = plane.records(&admin, "audit.lost").await;
    assert_eq!(lost.len(), 1);
    assert_eq!((&lost[0]["first"], &lost[0]["last"]), (&2.into(), &3.into()));
    assert!(plane.records(&admin, "audit.alarm").await.is_empty());
    assert_eq!(source.send(&plane, source.batch(&records[5..])).await.unwrap(), 6);
    assert_eq!(plane.records(&admin, "audit.alarm").await.len(), 1);
}

#[tokio::test]
async fn an_agent_that_joined_after_the_backup_is_told_to_join_again_and_its_records_are_kept() {
    let plane = Plane::start().await;
    let backup = back_up(&plane).await;
    let admin = plane.log_in(ADMIN).await;
    let mut source = Source::join(&plane, &admin).await;
    let records = ["one", "two"].map(|note| source.note(note));
    source.send(&plane, source.batch(&records[..1])).await.unwrap();
    let plane = plane.restore(&backup).await;
    let admin = plane.log_in(ADMIN).await;
    assert_eq!(refused(source.watch(&plane).await), "denied");
    assert_eq!(source.send(&plane, source.batch(&records[1..])).await.unwrap(), 0);
    assert_eq!(source.send(&plane, source.batch(&records)).await.unwrap(), 2);
    assert_eq!(stored_notes(&plane, &admin).await, ["one", "two"]);
    assert!(plane.records(&admin, "audit.alarm").await.is_empty());
}
