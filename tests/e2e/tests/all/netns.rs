//! A client, two proxies, an agent beside its backend, and an auth server, each in a network namespace of its own, on
//! bad days: no UDP, a new address, a proxy gone, a slow and lossy link, no auth server.

mod session;
mod world;

use std::time::{Duration, Instant};

use iap_e2e::Sshd;
use iap_e2e::network::Network;
use serde_json::Value;
use world::{Settings, World};

use crate::survival::jobs::{self, Desk, Jobs};
use crate::survival::tell_the_story;

/// How soon the plane serves again after something broke, other tests on the same cores included.
const BACK_SECONDS_MAX: u64 = 60;

/// Says why not and returns nothing where there can be no namespaces.
#[allow(clippy::print_stderr)]
fn world(settings: &Settings) -> Option<World> {
    if let Some(obstacle) = Network::obstacle() {
        eprintln!("SKIPPED: {obstacle}");
        return None;
    }
    Some(World::start(settings))
}

#[test]
fn without_udp_agents_and_sessions_use_tcp() {
    let settings = Settings {
        udp_is_blocked: true,
        ..Settings::default()
    };
    let Some(world) = world(&settings) else { return };
    let mut session = world.session("far").unwrap();
    session.round_trip("over tcp").unwrap();
    world.control_runs_over("tls");
}

#[test]
fn a_client_and_then_an_agent_that_change_their_addresses_are_served_again() {
    let Some(world) = world(&Settings::default()) else {
        return;
    };
    let mut kept = world.session("far").unwrap();
    kept.round_trip("before").unwrap();
    let walked = world.network.move_to("client", 7).unwrap();
    let mut session = world.session_again("far", BACK_SECONDS_MAX);
    session.round_trip("from the new address").unwrap();
    world.recorded_from(walked);
    kept.round_trip("and the session from before goes on").unwrap();

    world.control_runs_over("quic");
    let before = world.control_connections();
    world.network.move_to("agent", 9).unwrap();
    let moved = Instant::now();
    let mut session = world.session_again("far", BACK_SECONDS_MAX);
    session.round_trip("to the agent's new address").unwrap();
    report("served after the agent's address changed", moved);
    kept.round_trip("still").unwrap();
    assert_eq!(
        world.control_connections(),
        before,
        "the control connections moved along"
    );
}

#[test]
fn psql_scp_and_pgbench_outlive_a_new_address_a_killed_proxy_another_agent_and_the_end_of_their_certificate()
{
    let files = tempfile::tempdir().unwrap();
    let file = jobs::file(files.path());
    let settings = Settings {
        // It ends while the file is under way.
        certificate_life: "20s",
        dev: &["--demo"],
        ..Settings::default()
    };
    let Some(mut world) = world(&settings) else {
        return;
    };
    let sshd = Sshd::start(files.path(), |program| world.network.inside("agent", program)).unwrap();
    world.serve("files", "tcp", &format!("127.0.0.1:{}", sshd.port));
    let database = world.plane.dir().join("postgres/.s.PGSQL.5432");
    world.serve("db", "postgres", &format!("unix:{}", database.display()));
    let mut jobs = Jobs::start(&Desk {
        plane: &world.plane,
        user: "alice",
        database: "db",
        files: "files",
        file: &file,
        sshd: &sshd,
        seconds: 75,
        place: &|command| world.network.moved_inside("client", &command),
    });
    let services = ["db", "files"];
    let came_back = |world: &World, times| world.came_back(&services, Jobs::SESSIONS, times);
    jobs.through("the client has another address", || {
        world.network.move_to("client", 7).unwrap();
    });
    came_back(&world, 1);
    jobs.through("a proxy is killed", || world.kill_first_proxy());
    came_back(&world, 2);
    jobs.through("other agents are started in the place of theirs", || {
        world.replace_agent("files");
        world.replace_agent("db");
    });
    came_back(&world, 3);
    jobs.through(
        "the certificate ends, and the client has yet another address",
        || {
            world.renews_its_certificate(|| {
                world.network.move_to("client", 8).unwrap();
            });
        },
    );
    jobs.finish();
    let ours = |one: &Value| services.contains(&one["service"].as_str().unwrap());
    let is_over = |one: &Value| !ours(one) || !one["end"].is_null();
    let mut sessions = world.sessions_when(|all| all.iter().any(ours) && all.iter().all(is_over));
    sessions.retain(ours);
    let records = |session: &str| {
        let shown = world.json("auditor", &["sessions", "show", session]);
        shown["records"].as_array().unwrap().clone()
    };
    let story = [
        "session.resume",
        "session.resume",
        "session.handover",
        "session.resume",
        "session.resume",
    ];
    tell_the_story(&sessions, records, &story);
}

#[test]
fn with_one_of_two_proxies_killed_the_other_one_serves() {
    let Some(mut world) = world(&Settings::default()) else {
        return;
    };
    let mut kept = world.session("far").unwrap();
    kept.round_trip("both").unwrap();
    world.kill_first_proxy();
    let killed = Instant::now();
    kept.round_trip("goes on by the second").unwrap();
    report("a session went on after its proxy was killed", killed);
    world
        .session_again("far", BACK_SECONDS_MAX)
        .round_trip("the second")
        .unwrap();
    report("served after a proxy was killed", killed);
}

#[test]
fn a_session_outlives_a_minute_without_a_network() {
    let Some(world) = world(&Settings::default()) else {
        return;
    };
    let mut session = world.session("far").unwrap();
    session.round_trip("before").unwrap();
    world.network.cut("client").unwrap();
    std::thread::sleep(Duration::from_secs(60));
    world.network.mend("client").unwrap();
    let mended = Instant::now();
    session.round_trip("after").unwrap();
    report("a session went on after a minute without a network", mended);
}

#[test]
fn over_links_of_200_ms_that_lose_2_percent_bytes_arrive_whole() {
    let settings = Settings {
        slow_hosts: &["client", "agent"],
        ..Settings::default()
    };
    let Some(world) = world(&settings) else { return };
    let mut session = world.session_again("far", BACK_SECONDS_MAX);
    let started = Instant::now();
    for number in 0..5 {
        session.round_trip(&format!("line {number}")).unwrap();
    }
    // Each goes there and back over both slow links; faster would mean that the links are not slow.
    let took = started.elapsed();
    assert!(
        took >= Duration::from_millis(5 * 2 * 200),
        "{took:?} for five round trips"
    );
    session.round_trip(&"0123456789abcdef".repeat(8 * 1024)).unwrap();
    report("five round trips and 128 KiB", started);
}

#[test]
fn without_the_auth_server_each_row_of_the_outage_table_holds() {
    let settings = Settings {
        // The shortest feed age that may be set; the snapshot is renewed before half its time is over.
        lock_feed_seconds_max: 30,
        snapshot_max_age: "80s",
        ..Settings::default()
    };
    let Some(world) = world(&settings) else {
        return;
    };
    let mut live = world.session("far").unwrap();
    let mut patient = world.session("late").unwrap();
    world.network.cut("auth").unwrap();
    let cut = Instant::now();

    // Any time up to lock_feed_seconds_max: live sessions go on, new ones open; nobody can log in.
    live.round_trip("during").unwrap();
    world.session("far").unwrap().round_trip("new during").unwrap();
    assert!(world.log_in_from_afar().is_err(), "there is nobody to log in at");

    // Beyond it: no new sessions, and live ones end after the grace. An agent that may do without the feed for
    // longer goes on.
    world.refused_when("far", "out of reach for longer than", 30 + BACK_SECONDS_MAX);
    assert!(cut.elapsed() >= Duration::from_secs(28), "{:?}", cut.elapsed());
    live.ended(BACK_SECONDS_MAX).unwrap();
    patient.round_trip("the other agent").unwrap();

    // Beyond snapshot.max_age the rules are dead for everybody.
    world.refused_when("late", "rules have expired", 80 + BACK_SECONDS_MAX);
    patient.ended(BACK_SECONDS_MAX).unwrap();

    // It comes back, and with it everything; the records of the outage arrive, with the reasons.
    world.network.mend("auth").unwrap();
    for service in ["far", "late"] {
        let mut session = world.session_again(service, BACK_SECONDS_MAX);
        session.round_trip("after").unwrap();
    }
    for reason in ["feed_too_old", "snapshot_too_old"] {
        world.sessions_when(|all| all.iter().any(|one| one["close_reason"] == reason));
    }
}

/// For whoever reads the output; no test depends on it.
#[allow(clippy::print_stdout)]
fn report(what: &str, since: Instant) {
    println!("{what}: {:.2} s", since.elapsed().as_secs_f64());
}
