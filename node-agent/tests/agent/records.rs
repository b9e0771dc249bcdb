//! What is written down when things go wrong.

use iap_proto::AuditMode;
use iap_tunnel::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{echoes, framed};
use crate::plane::Plane;
use crate::proxy::WAIT;

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_killed_agent_get_their_end_before_it_announces_again() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (
        mut first,
        Status::Granted {
            session_id: acknowledged,
            ..
        },
    ) = framed(&plane, "echo", &alice).await
    else {
        panic!()
    };
    echoes(&mut first, "one").await;
    // This start is acknowledged before the agent dies, the next one is not.
    plane.event("session.start").await;
    plane.auth.take_records(false);
    let (
        mut second,
        Status::Granted {
            session_id: spooled, ..
        },
    ) = framed(&plane, "echo", &alice).await
    else {
        panic!()
    };
    echoes(&mut second, "two").await;
    running.kill().await;
    plane.auth.take_records(true);
    drop((first, second));

    let again = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    for session in [acknowledged, spooled] {
        let id = session.to_string();
        let end = plane
            .record(|record| record.event == "session.end" && record.fields["session_id"] == id)
            .await;
        assert_eq!(end["close_reason"], "agent_lost");
        assert_eq!(end["user"]["name"], "alice@example.com");
        assert!(
            end["start"].is_string() && end.get("bytes_in").is_none(),
            "{end:?}"
        );
    }
    again.stop().await;
    let third = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    third.stop().await;
    let ends = plane
        .auth
        .records()
        .iter()
        .filter(|record| record.event == "session.end")
        .count();
    assert_eq!(ends, 2, "one end each, however often it starts");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_wait_for_the_auth_server_and_arrive_once_in_order() {
    let (plane, running) = Plane::started().await;
    plane.auth.take_records(false);
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    for _ in 0..5 {
        let (mut stream, _) = framed(&plane, "echo", &alice).await;
        echoes(&mut stream, "x").await;
    }
    assert!(
        !plane
            .auth
            .records()
            .iter()
            .any(|record| record.event == "session.start")
    );
    plane.auth.take_records(true);
    iap_testkit::wait_until(
        || {
            plane
                .auth
                .records()
                .iter()
                .filter(|record| record.event == "session.end")
                .count()
                == 5
        },
        WAIT,
    )
    .unwrap();
    running.stop().await;
    let records = plane.auth.records();
    assert_eq!(
        records
            .iter()
            .filter(|record| record.event == "session.start")
            .count(),
        5
    );
    for pair in records.windows(2) {
        iap_audit::verify_link(Some(&pair[0]), &pair[1]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_refuses_and_ends_what_requires_records_and_lets_the_rest_go_on() {
    let mut plane = Plane::new().await;
    plane.limits = "spool_bytes_max = 65536\nspool_full_pause_seconds_max = 1".to_owned();
    plane
        .auth
        .replace(|snapshot, _| snapshot.services[1].audit = AuditMode::BestEffort);
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    plane.event("agent.start").await;
    plane.auth.take_records(false);
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut required, _) = framed(&plane, "echo", &alice).await;
    let (mut best_effort, _) = framed(&plane, "db-prod", &alice).await;
    echoes(&mut required, "before").await;
    let mut refusal = None;
    for _ in 0..200 {
        match framed(&plane, "echo", &alice).await.1 {
            Status::Granted { .. } => {}
            other => {
                refusal = Some(other);
                break;
            }
        }
    }
    assert!(
        matches!(refusal, Some(Status::Unavailable { retry: true, .. })),
        "{refusal:?}"
    );
    required.write_all(b"held").await.unwrap();
    required.flush().await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(WAIT, required.read_to_end(&mut rest))
        .await
        .expect("it is closed");
    assert_eq!(rest, b"", "nothing moves while records cannot be written");
    echoes(&mut best_effort, "after").await;
    let (mut another, granted) = framed(&plane, "db-prod", &alice).await;
    assert!(matches!(granted, Status::Granted { .. }), "{granted:?}");
    echoes(&mut another, "unrecorded").await;

    plane.auth.take_records(true);
    let gap = plane.event("agent.gap").await;
    assert_eq!(gap["records_lost"], 1);
    plane
        .record(|record| {
            record
                .fields
                .get("close_reason")
                .is_some_and(|why| why == "audit_unavailable")
        })
        .await;
    let (mut stream, _) = framed(&plane, "echo", &alice).await;
    echoes(&mut stream, "works again").await;
    running.stop().await;
    let records = plane.auth.records();
    let starts = records.iter().filter(|record| record.event == "session.start");
    for start in starts {
        let id = &start.fields["session_id"];
        let ends = records
            .iter()
            .filter(|end| end.event == "session.end" && end.fields["session_id"] == *id);
        assert_eq!(ends.count(), 1, "a start has its one end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_spool_has_no_room_for_lost_ends_starts_and_serves_once_they_are_written() {
    let mut plane = Plane::new().await;
    plane.limits = "spool_bytes_max = 65536".to_owned();
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    plane.event("agent.start").await;
    plane.auth.take_records(false);
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let mut live = Vec::new();
    loop {
        let (stream, answer) = framed(&plane, "echo", &alice).await;
        let Status::Granted { session_id, .. } = answer else {
            break;
        };
        live.push((stream, session_id));
        assert!(live.len() < 200, "the spool never fills");
    }
    running.kill().await;
    let sessions: Vec<_> = live.into_iter().map(|(_, session)| session.to_string()).collect();

    // More ends than the reserve has room for, and nobody takes a record yet.
    let again = plane.start().await;
    let before = plane.auth.refused_batches();
    iap_testkit::wait_until(|| plane.auth.refused_batches() > before, WAIT).unwrap();
    assert!(
        plane.proxy.last_announcement().is_empty() || plane.proxy.control_connections() == 1,
        "nothing is announced before the ends are written"
    );
    plane.auth.take_records(true);
    plane.proxy.announced(&["echo", "db-prod"]).await;
    for id in &sessions {
        let end = plane
            .record(|record| record.event == "session.end" && record.fields["session_id"] == **id)
            .await;
        assert_eq!(end["close_reason"], "agent_lost");
    }
    let (mut stream, _) = framed(&plane, "echo", &alice).await;
    echoes(&mut stream, "works again").await;
    again.stop().await;
    let records = plane.auth.records();
    let lost = |record: &&iap_audit::RecordView| {
        let reason = record.fields.get("close_reason");
        record.event == "session.end" && reason.is_some_and(|reason| reason == "agent_lost")
    };
    assert_eq!(
        records.iter().filter(lost).count(),
        sessions.len(),
        "one end each"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_too_large_for_the_line_become_smaller() {
    let (plane, running) = Plane::started().await;
    plane.event("agent.start").await;
    plane.auth.take_records(false);
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    for _ in 0..20 {
        let (mut stream, _) = framed(&plane, "echo", &alice).await;
        echoes(&mut stream, "x").await;
    }
    plane.auth.answer_batches_up_to(25);
    plane.auth.take_records(true);
    let ends = || {
        let records = plane.auth.records();
        let ends = records.iter().filter(|record| record.event == "session.end");
        ends.count()
    };
    // One batch of 40 is given up after the 15 s that any call may take.
    iap_testkit::wait_until(|| ends() == 20, 3 * WAIT).unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_denials_become_one_record_and_a_count() {
    let (plane, running) = Plane::started().await;
    let bob = plane.cluster.user("bob@example.com", &["support"]).unwrap();
    for _ in 0..4 {
        framed(&plane, "echo", &bob).await;
    }
    framed(&plane, "db-prod", &bob).await;
    running.stop().await;
    let denials: Vec<_> = plane
        .auth
        .records()
        .into_iter()
        .filter(|record| record.event == "session.denied")
        .collect();
    assert_eq!(denials.len(), 3);
    assert_eq!(
        denials
            .iter()
            .filter(|record| record.fields.contains_key("count"))
            .count(),
        1
    );
    assert!(
        denials
            .iter()
            .any(|record| record.fields.get("count").is_some_and(|count| *count == 3))
    );
}

/// A file system of its own, gone with the value.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// Mounts a tmpfs; nothing, where this process may not.
    fn mount(path: &std::path::Path, kibibytes: u32) -> Option<Self> {
        let mounted = std::process::Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={kibibytes}k,mode=0700"),
                "tmpfs",
            ])
            .arg(path)
            .stderr(std::process::Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(path.to_owned()))
    }

    /// Takes what is left of the space, until the returned file is removed.
    fn fill(&self) -> std::path::PathBuf {
        use std::io::Write as _;
        let path = self.0.join("somebody-elses");
        let mut file = std::fs::File::create(&path).unwrap();
        for size in [4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stderr)]
async fn on_a_full_disk_live_sessions_pause_and_end_on_record_and_all_is_well_once_there_is_room() {
    let mut plane = Plane::new().await;
    plane.limits = "spool_bytes_max = 4194304\nspool_full_pause_seconds_max = 1".to_owned();
    plane
        .auth
        .replace(|snapshot, _| snapshot.services[1].audit = AuditMode::BestEffort);
    plane.write_state(time::OffsetDateTime::now_utc());
    let spool = plane.state_dir().join("spool");
    std::fs::create_dir(&spool).unwrap();
    let Some(disk) = SmallDisk::mount(&spool, 2048) else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut required, _) = framed(&plane, "echo", &alice).await;
    let (mut best_effort, _) = framed(&plane, "db-prod", &alice).await;
    echoes(&mut required, "before").await;
    let reserved = || std::fs::metadata(spool.join("reserve")).map_or(0, |it| it.len());
    assert_eq!(reserved(), 1 << 20);

    let filling = disk.fill();
    // What is left of the last block takes a few records more.
    iap_testkit::wait_until_async(
        async || {
            matches!(
                framed(&plane, "echo", &alice).await.1,
                Status::Unavailable { retry: true, .. }
            )
        },
        WAIT,
    )
    .await
    .unwrap();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(WAIT, required.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "it is closed after its pause");
    let end = plane
        .record(|record| {
            record
                .fields
                .get("close_reason")
                .is_some_and(|why| why == "audit_unavailable")
        })
        .await;
    assert_eq!(end["service"], "echo", "the reserve took its end, and it arrived");
    echoes(&mut best_effort, "unimpressed").await;

    std::fs::remove_file(filling).unwrap();
    iap_testkit::wait_until_async(
        async || matches!(framed(&plane, "echo", &alice).await.1, Status::Granted { .. }),
        WAIT,
    )
    .await
    .unwrap();
    plane.event("agent.gap").await;
    assert_eq!(
        reserved(),
        1 << 20,
        "the reserve is there again for the next time"
    );
    drop((required, best_effort));
    running.stop().await;
}
