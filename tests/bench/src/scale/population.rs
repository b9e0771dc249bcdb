//! A hundred services and ten thousand users, each with a rule of their own.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Context as _;
use iap_policy::{Connectors, LoadOptions, POLICY_STACK_BYTES, Policy};
use tokio::runtime::Runtime;

use crate::ours::Plane;
use crate::process::resident_kib;
use crate::snapshot::Watcher;

const SERVICES: usize = 100;
const USERS: usize = 10_000;

/// `population_*`.
pub(super) fn measure(
    plane: &Plane,
    runtime: &Runtime,
    add: &mut impl FnMut(&str, f64, &str),
) -> anyhow::Result<()> {
    let admin = plane.log_in("admin")?;
    let before = resident_kib(plane.pid("auth")?)?;
    let agent_before = resident_kib(plane.pid("agent")?)?;
    let services = plane.dir.join("config/hundred.toml");
    std::fs::write(&services, hundred_services()?)?;
    plane.iapctl(&admin, &["services", "apply", &services.display().to_string()])?;
    let policy = plane.dir.join("config/population.toml");
    let small = std::fs::read_to_string(plane.dir.join("config/policy.toml"))?;
    std::fs::write(&policy, small + &ten_thousand_rules()?)?;

    let token = plane.agent_token(&admin, 1, &[])?;
    let watcher = runtime.block_on(Watcher::join(plane, &token))?;
    let known = watcher.version();
    let waiting = runtime.spawn(watcher.newer_than(known));
    let begun = Instant::now();
    plane.iapctl(&admin, &["policy", "apply", &policy.display().to_string()])?;
    add("population_apply_s", begun.elapsed().as_secs_f64(), "s");
    let arrived = runtime.block_on(waiting)??;
    add("population_to_agent_s", (arrived.at - begun).as_secs_f64(), "s");
    #[allow(clippy::cast_precision_loss, reason = "a few megabytes")]
    add(
        "population_snapshot_mib",
        arrived.payload_bytes as f64 / f64::from(1 << 20),
        "MiB",
    );
    add(
        "population_compile_s",
        seconds_to_compile(arrived.policy_toml)?,
        "s",
    );
    for (figure, name, before) in [
        ("population_auth_mib", "auth", before),
        ("population_agent_mib", "agent", agent_before),
    ] {
        let now = resident_kib(plane.pid(name)?)?;
        add(figure, now / 1024.0, "MiB");
        add(&format!("{figure}_more"), (now - before) / 1024.0, "MiB");
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

/// As an agent compiles it when a snapshot arrives.
fn seconds_to_compile(document: String) -> anyhow::Result<f64> {
    let options = LoadOptions {
        connectors: Connectors::One("dev".to_owned()),
        ..LoadOptions::default()
    };
    let compiling = std::thread::Builder::new()
        .stack_size(POLICY_STACK_BYTES)
        .spawn(move || {
            let begun = Instant::now();
            let loaded =
                Policy::load_with(&document, &options).map_err(|errors| anyhow::anyhow!("{errors}"))?;
            anyhow::ensure!(loaded.rule_count() >= USERS, "{} rules", loaded.rule_count());
            Ok(begun.elapsed().as_secs_f64())
        })?;
    compiling.join().ok().context("the compiling thread failed")?
}
