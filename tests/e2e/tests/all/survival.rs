//! What people leave running goes on, whatever happens on the way: `psql` in an open transaction, `scp` of a gibibyte,
//! `pgbench`. The three are at work together, and are disturbed together.

pub(crate) mod jobs;

use std::process::Command;

use iap_e2e::{Sshd, wait_until};
use jobs::{Desk, Jobs};
use serde_json::Value;

use crate::oidc::{Provider, log_in};
use crate::resume::kill_proxy;

/// Certificates that end while the file is under way.
const SHORT: &str = "[login]\nttl = \"10s\"\n";

#[test]
fn psql_scp_and_pgbench_outlive_killed_proxies_and_the_end_of_their_certificate() {
    let files = tempfile::tempdir().unwrap();
    let sshd = Sshd::start(files.path(), |program| Command::new(program)).unwrap();
    let provider = Provider::start();
    let plane = provider.plane_serving(SHORT, &[("files", sshd.port)]);
    log_in(&plane, "carol", &["--no-renew"]);
    let mut jobs = Jobs::start(&Desk {
        plane: &plane,
        user: "carol",
        database: "db-prod",
        files: "files",
        sshd: &sshd,
        place: &|command| command,
    });
    jobs.through("a proxy is killed", || kill_proxy(&plane));
    jobs.through("the certificate ends, and a proxy is killed", || {
        wait_until("the certificate has ended", || {
            Ok(plane.iapctl("carol", &["status"])?.code == 4)
        })
        .unwrap();
        kill_proxy(&plane);
    });
    jobs.finish();
    plane.log_in("auditor").unwrap();
    let sessions = plane
        .sessions_when(|all| !all.is_empty() && all.iter().all(|one| !one["end"].is_null()))
        .unwrap();
    tell_the_story(&sessions, |session| plane.records(session).unwrap(), 2);
}

/// Each session has one record of its beginning and one of its end, and those that were under way tell how often their
/// client came back.
pub(crate) fn tell_the_story(sessions: &[Value], records: impl Fn(&str) -> Vec<Value>, resumes_min: usize) {
    let mut came_back = 0;
    for session in sessions {
        let records = records(session["session_id"].as_str().unwrap());
        let events: Vec<&str> = records
            .iter()
            .map(|record| record["event"].as_str().unwrap())
            .collect();
        let [first, middle @ .., last] = events.as_slice() else {
            panic!("{events:?}");
        };
        assert_eq!((*first, *last), ("session.start", "session.end"), "{events:?}");
        assert!(
            middle.iter().all(|event| *event == "session.resume"),
            "{events:?}"
        );
        let end = records.last().unwrap();
        assert_eq!(
            end["resumes"].as_u64().unwrap_or_default(),
            middle.len() as u64,
            "{end}"
        );
        // Either end may be the first to say goodbye.
        let closed = end["close_reason"].as_str().unwrap();
        assert!(["client_closed", "backend_closed"].contains(&closed), "{end}");
        came_back += usize::from(middle.len() >= resumes_min);
    }
    // psql, scp, and each of pgbench's connections.
    assert!(
        came_back >= 2 + jobs::BENCH_CLIENTS,
        "{came_back} of {}",
        sessions.len()
    );
}
