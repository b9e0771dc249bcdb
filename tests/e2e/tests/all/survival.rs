//! What people leave running goes on, whatever happens on the way: `psql` in an open transaction, `scp` of a gibibyte,
//! `pgbench`. The three are at work together, and are disturbed together.

pub(crate) mod jobs;
pub(crate) mod psql;

use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use iap_e2e::{Plane, Sshd, wait_until};
use jobs::{Desk, Jobs};
use rustix::process::Signal;
use serde_json::Value;

use crate::handover::{plane_surviving_kills, restart_agent};
use crate::oidc::{Provider, log_in};
use crate::resume::kill_proxy;

/// Certificates that end while the file is under way.
const SHORT: &str = "[login]\nttl = \"20s\"\n";

/// The service of that name, whose place the agent knows. What is inspected is not left to another agent.
const DATABASE: &str = "[[service]]\nname = \"db\"\nprotocol = \"postgres\"\ninspect = false\ndefault_login = \"app\"\nlabels = { env = \"dev\" }\n";

#[test]
fn psql_scp_and_pgbench_outlive_killed_proxies_a_new_agent_and_the_end_of_their_certificate() {
    let files = tempfile::tempdir().unwrap();
    let file = jobs::file(files.path());
    let sshd = Sshd::start(files.path(), |program| Command::new(program)).unwrap();
    let provider = Provider::start();
    let database = Relay::start();
    let plane = provider.plane_serving(SHORT, &[("files", sshd.port), ("db", database.port)]);
    database.serves_unread(&plane);
    log_in(&plane, "carol", &["--no-renew"]);
    let mut jobs = Jobs::start(&Desk {
        plane: &plane,
        user: "carol",
        database: "db",
        files: "files",
        file: &file,
        sshd: &sshd,
        seconds: 60,
        place: &|command| command,
    });
    jobs.through("a proxy is killed", || kill_proxy(&plane));
    jobs.through("the agent is replaced", || restart_agent(&plane, Signal::TERM));
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
    let records = |session: &str| plane.records(session).unwrap();
    // Some wait for the first proxy still when the agent is replaced.
    let story = ["session.handover", "session.resume", "session.resume"];
    tell_the_story(&sessions, records, &story);
}

#[test]
fn psql_scp_and_pgbench_outlive_an_agent_that_is_killed_again_and_again() {
    let files = tempfile::tempdir().unwrap();
    let file = jobs::file(files.path());
    let sshd = Sshd::start(files.path(), |program| Command::new(program)).unwrap();
    let database = Relay::start();
    let services = [("files", sshd.port), ("db", database.port)];
    let services = services.map(|(name, port)| format!("{name}=127.0.0.1:{port}"));
    let plane = plane_surviving_kills(&["--demo", "--service", &services[0], "--service", &services[1]]);
    for person in ["alice", "auditor"] {
        plane.log_in(person).unwrap();
    }
    database.serves_unread(&plane);
    let mut jobs = Jobs::start(&Desk {
        plane: &plane,
        user: "alice",
        database: "db",
        files: "files",
        file: &file,
        sshd: &sshd,
        seconds: 40,
        place: &|command| command,
    });
    let happens = [Signal::KILL, Signal::KILL, Signal::TERM, Signal::KILL];
    for signal in happens {
        jobs.through("the agent is killed, or told to stop", || {
            restart_agent(&plane, signal);
        });
    }
    jobs.finish();
    let sessions = plane
        .sessions_when(|all| !all.is_empty() && all.iter().all(|one| !one["end"].is_null()))
        .unwrap();
    let records = |session: &str| plane.records(session).unwrap();
    tell_the_story(&sessions, records, &["session.handover"; 4]);
    let causes = |session: &Value| {
        let records = records(session["session_id"].as_str().unwrap());
        let causes = records.iter().filter_map(|record| record["cause"].as_str());
        causes.map(str::to_owned).collect::<Vec<_>>()
    };
    let told = ["killed", "killed", "stopped", "killed"];
    let whole = sessions.iter().filter(|session| causes(session) == told);
    assert!(whole.count() >= Jobs::SESSIONS);
}

/// The demo's database by TCP: of what comes by a Unix socket nobody counts the bytes.
pub(crate) struct Relay {
    pub(crate) port: u16,
    target: Arc<OnceLock<PathBuf>>,
}

impl Relay {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = Arc::<OnceLock<PathBuf>>::default();
        let leads_to = Arc::clone(&target);
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                let Some(Ok(far)) = leads_to.get().map(UnixStream::connect) else {
                    continue;
                };
                let (mut from_near, mut to_near) = (near.try_clone().unwrap(), near);
                let (mut from_far, mut to_far) = (far.try_clone().unwrap(), far);
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from_near, &mut to_far);
                    let _ = to_far.shutdown(Shutdown::Write);
                });
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from_far, &mut to_near);
                    let _ = to_near.shutdown(Shutdown::Write);
                });
            }
        });
        Self { port, target }
    }

    /// The demo's database is the service `db` from now on, its bytes unread.
    pub(crate) fn serves_unread(&self, plane: &Plane) {
        let socket = plane.dir().join("postgres/.s.PGSQL.5432");
        self.target.set(socket).unwrap();
        plane.log_in("admin").unwrap();
        let record = plane.scratch().join("services.toml");
        std::fs::write(&record, DATABASE).unwrap();
        let applied = plane.iapctl("admin", &["services", "apply", record.to_str().unwrap()]);
        applied.unwrap().succeeded().unwrap();
    }
}

/// Each session has one record of its beginning and one of its end. Between them, those that were under way say what they
/// have been through.
pub(crate) fn tell_the_story(sessions: &[Value], records: impl Fn(&str) -> Vec<Value>, story: &[&str]) {
    let (mut whole, mut stories) = (0, Vec::new());
    for session in sessions {
        let records = records(session["session_id"].as_str().unwrap());
        let events = records
            .iter()
            .map(|record| record["event"].as_str().unwrap().to_owned());
        let events: Vec<String> = events.collect();
        let [first, middle @ .., last] = events.as_slice() else {
            panic!("{events:?}");
        };
        assert!(first == "session.start" && last == "session.end", "{events:?}");
        let end = records.last().unwrap();
        let resumes = middle.iter().filter(|event| *event == "session.resume").count();
        // An agent that is killed may have counted one that it had not recorded yet.
        let killed = records
            .iter()
            .filter(|record| record["cause"] == "killed")
            .count();
        let counted = usize::try_from(end["resumes"].as_u64().unwrap_or_default()).unwrap();
        assert!(
            (resumes..=resumes + killed).contains(&counted),
            "{resumes}: {end}"
        );
        // Either end may be the first to say goodbye.
        let closed = end["close_reason"].as_str().unwrap();
        assert!(["client_closed", "backend_closed"].contains(&closed), "{end}");
        // A connection may break once more while the plane finds itself again.
        let mut told = middle.iter();
        whole += usize::from(story.iter().all(|event| told.any(|one| one == event)));
        stories.push(events);
    }
    assert!(whole >= Jobs::SESSIONS, "{whole} of {stories:#?}");
}
