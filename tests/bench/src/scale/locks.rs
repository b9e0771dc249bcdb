//! From a lock until the client of the locked session sees its end.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use iap_proto::v1::LockAddRequest;
use iap_proto::v1::admin_client::AdminClient;
use tokio::io::AsyncReadExt as _;
use tonic::transport::Channel;

use super::{Add, World, add_spread};
use crate::light_agent::What;
use crate::person::{Client, Session};
use crate::process::cpu_seconds;
use crate::stats::count_of;

/// Sessions cut by a lock each, through the API.
const BY_API: usize = 300;
/// The same through `iapctl lock add`.
const BY_COMMAND: usize = 50;
/// Sessions of one person, cut by one lock.
const OF_ONE_PERSON: usize = 200;
const PATIENCE: Duration = Duration::from_secs(30);
const LOCK_SECONDS: u64 = 3600;
/// Between two locks, so that they fall on every moment of what else goes on: beats, reports.
const PAUSE_MILLISECONDS: [u64; 7] = [20, 110, 50, 170, 80, 10, 140];

/// `lock_*`.
pub(super) fn measure(world: &mut World<'_>, add: &mut Add<'_>) -> anyhow::Result<()> {
    let (_, user) = world.log_in("alice")?;
    let (home, admin) = world.log_in("admin")?;
    let admin = {
        let _within = world.person.enter();
        AdminClient::new(admin.api()?)
    };
    by_api(world, &user, &admin, add)?;
    by_command(world, &user, &home, add)?;
    of_one_person(world, &user, &admin, add)
}

fn by_api(
    world: &mut World<'_>,
    user: &Client,
    admin: &AdminClient<Channel>,
    add: &mut Add<'_>,
) -> anyhow::Result<()> {
    let open = world.person.block_on(open(world, user, BY_API))?;
    let [auth, proxy] = [world.plane.pid("auth")?, world.plane.pid("proxy")?];
    let cpu = [cpu_seconds(auth)?, cpu_seconds(proxy)?];
    let (mut cuts, mut after, mut acknowledged, mut everywhere) = (vec![], vec![], vec![], vec![]);
    for (session, pause) in open.into_iter().zip(PAUSE_MILLISECONDS.into_iter().cycle()) {
        std::thread::sleep(Duration::from_millis(pause));
        world.fleet.forget();
        let seen = world.person.block_on(lock(session, admin.clone()))?;
        cuts.push(milliseconds(seen.issued, seen.cut));
        after.push(milliseconds(seen.acknowledged, seen.cut));
        acknowledged.push(milliseconds(seen.issued, seen.acknowledged));
        let spread = world.crowd.block_on(world.fleet.everywhere(What::Locks))?;
        everywhere.push(spread.seconds(seen.issued, 1.0) * 1e3);
    }
    let [auth_before, proxy_before] = cpu;
    let locks = count_of(BY_API);
    add(
        "lock_auth_cpu_ms",
        (cpu_seconds(auth)? - auth_before) * 1e3 / locks,
        "ms",
    );
    add(
        "lock_proxy_cpu_ms",
        (cpu_seconds(proxy)? - proxy_before) * 1e3 / locks,
        "ms",
    );
    add_spread(add, "lock_acknowledged_ms", acknowledged, "ms");
    add_spread(add, "lock_cut_ms", cuts, "ms");
    add_spread(add, "lock_cut_after_acknowledged_ms", after, "ms");
    add_spread(add, "lock_all_agents_ms", everywhere, "ms");
    Ok(())
}

/// `iapctl lock add`, from its start and from its end.
fn by_command(world: &World<'_>, user: &Client, home: &Path, add: &mut Add<'_>) -> anyhow::Result<()> {
    let (mut cuts, mut after) = (vec![], vec![]);
    for session in world.person.block_on(open(world, user, BY_COMMAND))? {
        let id = session.id.to_string();
        let cut = world.person.spawn(end_of(session));
        let issued = Instant::now();
        let done = Command::new(world.plane.bin().join("iapctl"))
            .args([
                "lock",
                "add",
                "--session",
                &id,
                "--reason",
                "scale",
                "--ttl",
                "1h",
            ])
            .env("IAPCTL_HOME", home)
            .env("IAPCTL_NONINTERACTIVE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        let acknowledged = Instant::now();
        ensure!(done.success(), "iapctl lock add: {done}");
        let cut = world.person.block_on(cut)??;
        cuts.push(milliseconds(issued, cut));
        after.push(milliseconds(acknowledged, cut));
    }
    add_spread(add, "lock_command_cut_ms", cuts, "ms");
    add_spread(add, "lock_command_cut_after_exit_ms", after, "ms");
    Ok(())
}

/// One lock on a person with many sessions, until the last of them is cut.
fn of_one_person(
    world: &World<'_>,
    user: &Client,
    admin: &AdminClient<Channel>,
    add: &mut Add<'_>,
) -> anyhow::Result<()> {
    let sessions = world.person.block_on(open(world, user, OF_ONE_PERSON))?;
    let waiting: Vec<_> = sessions
        .into_iter()
        .map(|session| world.person.spawn(end_of(session)))
        .collect();
    let issued = Instant::now();
    let request = request("user", "alice@example.com");
    world.person.block_on(admin.clone().lock_add(request))?;
    let mut cuts = Vec::new();
    for cut in waiting {
        cuts.push(milliseconds(issued, world.person.block_on(cut)??));
    }
    add_spread(add, "lock_person_cut_ms", cuts, "ms");
    Ok(())
}

/// At the real agents in turn.
async fn open(world: &World<'_>, user: &Client, count: usize) -> anyhow::Result<Vec<Session>> {
    let mut open = Vec::with_capacity(count);
    for service in world.services.iter().cycle().take(count) {
        open.push(user.open(service).await?);
    }
    Ok(open)
}

struct Seen {
    issued: Instant,
    acknowledged: Instant,
    cut: Instant,
}

async fn lock(session: Session, mut admin: AdminClient<Channel>) -> anyhow::Result<Seen> {
    let request = request("session", &session.id.to_string());
    let cut = tokio::spawn(end_of(session));
    let issued = Instant::now();
    admin.lock_add(request).await?;
    let acknowledged = Instant::now();
    Ok(Seen {
        issued,
        acknowledged,
        cut: cut.await??,
    })
}

fn request(kind: &str, target: &str) -> LockAddRequest {
    LockAddRequest {
        kind: kind.to_owned(),
        target: target.to_owned(),
        reason: "scale".to_owned(),
        ttl_seconds: LOCK_SECONDS,
    }
}

/// When it was over, by an alert or a plain close.
pub(super) async fn end_of(mut session: Session) -> anyhow::Result<Instant> {
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, session.stream.read_to_end(&mut rest)).await;
    let _how = ended.context("the session goes on")?;
    Ok(Instant::now())
}

/// Less than nothing when `now` came first.
fn milliseconds(then: Instant, now: Instant) -> f64 {
    let after = now.saturating_duration_since(then).as_secs_f64();
    let before = then.saturating_duration_since(now).as_secs_f64();
    (after - before) * 1e3
}
