//! `kill -9` of each program at random moments under load: no record lost, none twice, every session with its start
//! and its end, and everything back within seconds. `make torture KILLS=200` runs it long.

mod dialler;
mod evidence;
mod load;
mod random;
mod world;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dialler::Dialler;
use evidence::{Log, Seen, Witness, acknowledged, examine, written};
use load::{Load, Reached, Tally, Targets, serve_backend};
use random::Random;
use world::{SERVICES, VICTIMS, Victim, World};

const WORKERS: u64 = 8;
/// Long enough for sessions to be at every stage when the next program is killed.
const MOMENT_MILLISECONDS_MAX: u64 = 1500;
/// After this the plane is called broken, whatever was asked for.
const GIVE_UP: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(25);
/// Certificates live an hour.
const NEW_LOGIN_EVERY: Duration = Duration::from_secs(25 * 60);

/// What a run is asked for, by environment variables.
struct Plan {
    kills: u64,
    seed: u64,
    /// How long a plane may take to be whole again after a kill.
    back_seconds_max: u64,
}

impl Plan {
    fn asked() -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok().filter(|text| !text.is_empty());
            text.map(|text| {
                text.parse::<u64>()
                    .unwrap_or_else(|_| panic!("{name} is no number: {text}"))
            })
        };
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        Self {
            kills: number("IAP_TORTURE_KILLS").unwrap_or(8),
            seed: number("IAP_TORTURE_SEED").unwrap_or(now.as_secs()),
            // Tests run beside each other on few cores; the long run holds the product's own bound.
            back_seconds_max: number("IAP_TORTURE_BACK_SECONDS_MAX").unwrap_or(30),
        }
    }
}

/// How long each kill took to heal.
#[derive(Default)]
struct Healing(BTreeMap<Victim, Vec<Duration>>);

impl Healing {
    fn all(&self) -> Vec<Duration> {
        let mut all: Vec<_> = self.0.values().flatten().copied().collect();
        all.sort_unstable();
        all
    }

    fn at(sorted: &[Duration], share: f64) -> f64 {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let index = ((sorted.len() - 1) as f64 * share).ceil() as usize;
        sorted[index].as_secs_f64()
    }

    fn line(name: &str, sorted: &[Duration]) -> String {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| Self::at(sorted, share));
        format!(
            "{name:<12} {:>5} kills   back after p50 {p50:.2} s, p99 {p99:.2} s, max {max:.2} s",
            sorted.len()
        )
    }
}

impl std::fmt::Display for Healing {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (victim, times) in &self.0 {
            let mut times = times.clone();
            times.sort_unstable();
            writeln!(out, "{}", Self::line(&format!("{victim:?}"), &times))?;
        }
        write!(out, "{}", Self::line("all", &self.all()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stdout)]
async fn programs_killed_at_random_moments_under_load_lose_no_record_and_come_back() {
    let plan = Plan::asked();
    println!("{} kills, seed {} (IAP_TORTURE_SEED)", plan.kills, plan.seed);
    let mut random = Random::of_seed(plan.seed);
    let reached = Arc::new(Reached::default());
    let backend = serve_backend(Arc::clone(&reached)).await;
    let mut world = tokio::task::block_in_place(|| World::start(backend));
    let dialler = Dialler::of_home(&world.plane.home("alice")).unwrap();
    let targets = Targets {
        dialler: Arc::new(Mutex::new(dialler)),
        proxies: world.proxies.clone(),
        services: SERVICES.to_vec(),
    };
    let log = Log::open(&world.database()).await;
    let probes = Tally::default();
    whole_again(&targets, &log, &probes, Instant::now()).await;
    let witness = Witness::watch(world.spools(), world.plane.scratch().join("kept"));

    let load = Load::start(&targets, WORKERS, &mut random);
    let healing = kill_and_heal(&plan, &mut world, &targets, &log, &probes, &mut random).await;
    let tally = load.finish().await;
    world.disconnect();
    settle(&world, &log).await;

    let mut granted = tally.granted();
    granted.extend(probes.granted());
    let seen = Seen {
        on_disk: witness.records(),
        reached: reached.sessions(),
        accepted: reached.accepted.load(Ordering::Relaxed),
        granted,
    };
    let findings = examine(&log.records().await, &seen).unwrap_or_else(|faults| panic!("{faults}"));
    println!("{healing}");
    println!("{}", summary(&tally, &seen, &findings));
    assert_eq!(
        tally.corrupt.load(Ordering::Relaxed),
        0,
        "bytes that were not sent"
    );
    let slowest = healing.all().last().copied().unwrap_or_default();
    assert!(
        slowest <= Duration::from_secs(plan.back_seconds_max),
        "a plane took {slowest:?} to be whole again; {} s are allowed",
        plan.back_seconds_max
    );
}

fn summary(tally: &Tally, seen: &Seen, findings: &evidence::Findings) -> String {
    let [whole, broken, refused] =
        [&tally.whole, &tally.broken, &tally.refused].map(|count| count.load(Ordering::Relaxed));
    format!(
        "sessions: {} on record, {} reached the backend; of the load {whole} whole, {broken} broken by a kill, {refused} not granted\n\
         records: {} in the log, {} of them also seen on the agents' disks; {} ends written for a killed agent",
        findings.sessions,
        seen.reached.len(),
        findings.records,
        seen.on_disk.len(),
        findings.ended_by_a_killed_agent,
    )
}

#[allow(clippy::print_stdout)]
async fn kill_and_heal(
    plan: &Plan,
    world: &mut World,
    targets: &Targets,
    log: &Log,
    probes: &Tally,
    random: &mut Random,
) -> Healing {
    let mut healing = Healing::default();
    let mut logged_in = Instant::now();
    for number in 1..=plan.kills {
        let moment = Duration::from_millis(random.below(MOMENT_MILLISECONDS_MAX));
        tokio::time::sleep(moment).await;
        let victim = *random.pick(&VICTIMS);
        let since = Instant::now();
        tokio::task::block_in_place(|| world.kill(victim, random));
        acknowledged_is_stored(world, log).await;
        whole_again(targets, log, probes, since).await;
        tokio::task::block_in_place(|| world.connect_again());
        let took = since.elapsed();
        println!(
            "kill {number:>3}: {victim:?}, whole again after {:.2} s",
            took.as_secs_f64()
        );
        healing.0.entry(victim).or_default().push(took);
        if logged_in.elapsed() > NEW_LOGIN_EVERY {
            let dialler = tokio::task::block_in_place(|| world.dialler()).unwrap();
            *targets.dialler.lock().unwrap() = dialler;
            logged_in = Instant::now();
        }
    }
    healing
}

/// An agent forgets what was acknowledged, so the auth server must have it, at every moment.
async fn acknowledged_is_stored(world: &World, log: &Log) {
    for spool in world.spools() {
        let acknowledged = acknowledged(&spool);
        let id = std::fs::read_to_string(spool.with_file_name("agent_id")).unwrap();
        let source = uuid::Uuid::parse_str(id.trim()).unwrap();
        let newest = log.newest(source).await;
        assert!(
            newest >= acknowledged,
            "{acknowledged} records are acknowledged, {newest} stored"
        );
    }
}

/// A new session works through every proxy to every agent, and its record is at the auth server.
async fn whole_again(targets: &Targets, log: &Log, probes: &Tally, since: Instant) {
    let ways = targets.proxies.iter().flat_map(|proxy| {
        let agents = ["left", "right"];
        agents.map(|service| (*proxy, service))
    });
    for (proxy, service) in ways {
        let mut last = String::new();
        loop {
            assert!(
                since.elapsed() < GIVE_UP,
                "{service} through {proxy} is not back after {GIVE_UP:?}: {last}"
            );
            match probe(targets, log, probes, proxy, service, since).await {
                Ok(()) => break,
                Err(error) => last = format!("{error:#}"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn probe(
    targets: &Targets,
    log: &Log,
    probes: &Tally,
    proxy: SocketAddr,
    service: &str,
    since: Instant,
) -> anyhow::Result<()> {
    let dialler = targets.dialler.lock().unwrap().clone();
    let mut session = dialler.open(proxy, service).await?;
    let id = session.id;
    probes.add_granted(id);
    session.exchange(b"are you there").await?;
    session.close().await?;
    while !log.has_start(id).await {
        anyhow::ensure!(since.elapsed() < GIVE_UP, "its record is not at the auth server");
        tokio::time::sleep(RETRY).await;
    }
    Ok(())
}

/// Every session has its end, and every record has arrived.
async fn settle(world: &World, log: &Log) {
    let deadline = Instant::now() + GIVE_UP;
    loop {
        let mut waiting = log.open_sessions().await;
        for spool in world.spools() {
            waiting += i64::from(acknowledged(&spool) < written(&spool));
        }
        if waiting == 0 {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{waiting} sessions or agents are not at rest"
        );
        tokio::time::sleep(RETRY).await;
    }
}
