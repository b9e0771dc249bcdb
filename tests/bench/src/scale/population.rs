//! A hundred services and ten thousand users, each with a rule of their own.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use iap_identity::{Class, ServiceName};
use iap_policy::{
    Asked, Connectors, Decision, LoadOptions, POLICY_STACK_BYTES, Policy, Question, ServiceFacts, UserFacts,
    Vocabulary,
};
use time::OffsetDateTime;

use super::locks::end_of;
use super::{Add, World, add_spread};
use crate::light_agent::What;
use crate::process::{cpu_seconds, forget_peak, peak_kib, resident_kib};
use crate::stats::{count_of, median};

const SERVICES: usize = 100;
const USERS: usize = 10_000;
/// Changes of which the median is taken.
const ROUNDS: usize = 5;
const DECISIONS: u32 = 20_000;
const NEW_SESSIONS: usize = 200;
const SETTLING: Duration = Duration::from_secs(5);

/// `population_*`.
pub(super) fn measure(world: &mut World<'_>, add: &mut Add<'_>) -> anyhow::Result<()> {
    let plane = world.plane;
    let (home, _) = world.log_in("admin")?;
    plane.apply_services(&home, &hundred_services()?)?;
    let small = std::fs::read_to_string(plane.dir.join("config/policy.toml"))?;
    add_spread(add, "demo_policy_new_session_ms", new_sessions(world)?, "ms");
    let agent = *world.real_agents.first().context("no real agent")?;
    let [auth, proxy] = [plane.pid("auth")?, plane.pid("proxy")?];
    let all = [("auth", auth), ("proxy", proxy), ("agent", agent)];
    let mut before = Vec::new();
    for (_, pid) in all {
        before.push(resident_kib(pid)?);
        forget_peak(pid)?;
    }
    let users = ten_thousand_rules()?;
    let mut rounds = Rounds::default();
    for round in 0..ROUNDS {
        let document = format!("# Change {round}\n{small}{users}");
        rounds.one(world, &home, &document)?;
    }
    rounds.report(add);
    std::thread::sleep(SETTLING);
    for ((name, pid), before) in all.into_iter().zip(before) {
        let now = resident_kib(pid)?;
        add(&format!("population_{name}_mib"), now / 1024.0, "MiB");
        add(
            &format!("population_{name}_mib_more"),
            (now - before) / 1024.0,
            "MiB",
        );
        add(
            &format!("population_{name}_mib_peak"),
            peak_kib(pid)? / 1024.0,
            "MiB",
        );
    }
    for (figure, value, unit) in decide(small.clone() + &users)? {
        add(figure, value, unit);
    }
    add_spread(add, "population_new_session_ms", new_sessions(world)?, "ms");
    removal(world, &home, &(small + &users), add)
}

/// What was seen of each change.
#[derive(Default)]
struct Rounds {
    applied: Vec<f64>,
    half: Vec<f64>,
    all: Vec<f64>,
    auth_cpu: Vec<f64>,
    proxy_cpu: Vec<f64>,
    snapshot_bytes: usize,
}

impl Rounds {
    fn one(&mut self, world: &mut World<'_>, home: &std::path::Path, document: &str) -> anyhow::Result<()> {
        let plane = world.plane;
        let file = plane.dir.join("config/population.toml");
        std::fs::write(&file, document)?;
        let [auth, proxy] = [plane.pid("auth")?, plane.pid("proxy")?];
        let cpu = [cpu_seconds(auth)?, cpu_seconds(proxy)?];
        world.fleet.forget();
        let begun = Instant::now();
        plane.iapctl(home, &["policy", "apply", &file.display().to_string()])?;
        self.applied.push(begun.elapsed().as_secs_f64());
        let spread = world.crowd.block_on(world.fleet.everywhere(What::Snapshot))?;
        self.snapshot_bytes = spread.bytes;
        self.half.push(spread.seconds(begun, 0.5));
        self.all.push(spread.seconds(begun, 1.0));
        let [auth_before, proxy_before] = cpu;
        self.auth_cpu.push(cpu_seconds(auth)? - auth_before);
        self.proxy_cpu.push(cpu_seconds(proxy)? - proxy_before);
        Ok(())
    }

    fn report(self, add: &mut Add<'_>) {
        let mib = count_of(self.snapshot_bytes) / f64::from(1 << 20);
        add("population_snapshot_mib", mib, "MiB");
        for (figure, values) in [
            ("population_apply_s", &self.applied),
            ("population_half_of_agents_s", &self.half),
            ("population_all_agents_s", &self.all),
            ("population_auth_cpu_s", &self.auth_cpu),
            ("population_proxy_cpu_s", &self.proxy_cpu),
        ] {
            eprintln!("{figure}: {values:.2?}");
            add(figure, median(values), "s");
        }
    }
}

/// Milliseconds from dialling to the grant.
fn new_sessions(world: &World<'_>) -> anyhow::Result<Vec<f64>> {
    let (_, alice) = world.log_in("alice")?;
    world.person.block_on(async {
        let mut milliseconds = Vec::with_capacity(NEW_SESSIONS);
        for service in world.services.iter().cycle().take(NEW_SESSIONS) {
            let begun = Instant::now();
            let _session = alice.open(service).await?;
            milliseconds.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        Ok(milliseconds)
    })
}

/// `population_cut_s`: from the start of `iapctl policy apply` of a policy that no longer grants the sessions, one at each
/// real agent, until the last of them is cut.
fn removal(
    world: &World<'_>,
    home: &std::path::Path,
    document: &str,
    add: &mut Add<'_>,
) -> anyhow::Result<()> {
    let plane = world.plane;
    let (_, alice) = world.log_in("alice")?;
    let mut open = Vec::new();
    for service in &world.services {
        open.push(world.person.block_on(alice.open(service))?);
    }
    let with = plane.dir.join("config/population.toml");
    let without = plane.dir.join("config/population-without.toml");
    let names: Vec<_> = world.services.iter().map(|name| format!("{name:?}")).collect();
    let denial = format!(
        "\n[[rule]]\nname = \"not now\"\neffect = \"deny\"\nusers = {{ names = [\"*\"] }}\nservices = {{ names = [{}] }}\n",
        names.join(", ")
    );
    std::fs::write(&without, document.to_owned() + &denial)?;
    let waiting: Vec<_> = open
        .into_iter()
        .map(|session| world.person.spawn(end_of(session)))
        .collect();
    let begun = Instant::now();
    plane.iapctl(home, &["policy", "apply", &without.display().to_string()])?;
    let mut last = begun;
    for ended in waiting {
        last = last.max(world.person.block_on(ended)??);
    }
    add("population_cut_s", (last - begun).as_secs_f64(), "s");
    plane.iapctl(home, &["policy", "apply", &with.display().to_string()])?;
    for service in &world.services {
        world.person.block_on(super::ready(&alice, service))?;
    }
    Ok(())
}

fn hundred_services() -> anyhow::Result<String> {
    let mut text = String::new();
    for number in 0..SERVICES {
        writeln!(
            text,
            "[[service]]\nname = \"service-{number:03}\"\nprotocol = \"tcp\"\nlabels = {{ env = \"prod\", team = \"t{}\" }}\n",
            number % 10
        )?;
    }
    Ok(text)
}

fn ten_thousand_rules() -> anyhow::Result<String> {
    let mut text = String::new();
    for number in 0..USERS {
        let (one, other) = (number % SERVICES, (number * 7 + 13) % SERVICES);
        writeln!(
            text,
            "\n[[rule]]\nname = \"user {number}\"\neffect = \"allow\"\nusers = {{ names = [\"user-{number:05}@example.com\"] }}\n\
             services = {{ names = [\"service-{one:03}\", \"service-{other:03}\"] }}"
        )?;
    }
    Ok(text)
}

/// Compiles as an agent does when a snapshot arrives, and decides.
fn decide(document: String) -> anyhow::Result<Vec<(&'static str, f64, &'static str)>> {
    let deciding = std::thread::Builder::new()
        .stack_size(POLICY_STACK_BYTES)
        .spawn(move || {
            let options = LoadOptions {
                connectors: Connectors::One("dev".to_owned()),
                ..LoadOptions::default()
            };
            let begun = Instant::now();
            let policy =
                Policy::load_with(&document, &options).map_err(|errors| anyhow::anyhow!("{errors}"))?;
            let compiled = begun.elapsed().as_secs_f64();
            ensure!(policy.rule_count() >= USERS, "{} rules", policy.rule_count());
            Ok(vec![
                ("population_compile_s", compiled, "s"),
                (
                    "population_decision_us",
                    microseconds_per_decision(&policy)?,
                    "µs",
                ),
            ])
        })?;
    deciding.join().ok().context("the deciding thread failed")?
}

/// For somebody whom one of the service's 200 rules names.
fn microseconds_per_decision(policy: &Policy) -> anyhow::Result<f64> {
    let number = USERS / 2 + 17;
    let user = UserFacts {
        id: "u-bench".to_owned(),
        name: format!("user-{number:05}@example.com"),
        kind: Class::User,
        groups: Vec::new(),
        groups_vocabulary: None,
        auth_time: Some(OffsetDateTime::now_utc()),
        mfa_time: None,
        acr: None,
        idp: "dev".to_owned(),
        login_method: "browser".to_owned(),
    };
    let service = ServiceFacts::tcp(ServiceName::parse(&format!("service-{:03}", number % SERVICES))?);
    let question = Question {
        user: &user,
        service: &service,
        login: Asked::Opaque,
        database: Asked::Opaque,
        client_ip: "192.0.2.7".parse()?,
        now: OffsetDateTime::now_utc(),
    };
    let vocabulary = Vocabulary::default();
    let decided = policy.evaluate(&question, &vocabulary);
    ensure!(
        matches!(decided, Decision::Grant(_)),
        "the measured decision is not a grant: {decided:?}"
    );
    let begun = Instant::now();
    for _ in 0..DECISIONS {
        let _ = black_box(policy.evaluate(black_box(&question), &vocabulary));
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6 / f64::from(DECISIONS))
}
