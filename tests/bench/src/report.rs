//! What was measured, for programs (`results.json`) and for people (`performance.md`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// One measured value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) figure: String,
    pub(crate) system: String,
    pub(crate) value: f64,
    pub(crate) unit: String,
}

/// A run's results.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: BTreeMap<String, String>,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) figures: Vec<Figure>,
}

impl Results {
    pub(crate) fn add(&mut self, figure: &str, system: &str, value: f64, unit: &str) {
        self.figures
            .retain(|one| one.figure != figure || one.system != system);
        let (figure, system, unit) = (figure.to_owned(), system.to_owned(), unit.to_owned());
        self.figures.push(Figure {
            figure,
            system,
            value,
            unit,
        });
    }

    fn value(&self, figure: &str, system: &str) -> Option<f64> {
        self.figures
            .iter()
            .find(|one| one.figure == figure && one.system == system)
            .map(|one| one.value)
    }

    /// What an earlier run wrote.
    ///
    /// # Errors
    /// When there is none or it cannot be read.
    pub(crate) fn read(json: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(json).with_context(|| format!("cannot read {}", json.display()))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Keeps what an earlier run measured and this one did not.
    pub(crate) fn keep_others_of(&mut self, earlier: Self) {
        for figure in earlier.figures {
            if self.value(&figure.figure, &figure.system).is_none() {
                self.figures.push(figure);
            }
        }
        for (name, version) in earlier.versions {
            self.versions.entry(name).or_insert(version);
        }
    }

    /// Writes both files.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn write(&self, json: &Path, markdown: &Path) -> anyhow::Result<()> {
        std::fs::write(json, serde_json::to_string_pretty(self)? + "\n")?;
        std::fs::write(markdown, self.markdown())?;
        Ok(())
    }

    fn markdown(&self) -> String {
        let mut text = String::from(HEAD);
        text.push_str("\n## Beside nginx\n\n| figure | unit | iap | nginx x3 | iap / nginx |\n| --- | --- | --- | --- | --- |\n");
        for (figure, unit) in self.names() {
            let (Some(own), Some(peer)) = (self.value(&figure, "iap"), self.value(&figure, "nginx x3"))
            else {
                continue;
            };
            let ratio = own / peer;
            let _ = writeln!(
                text,
                "| `{figure}` | {unit} | {own:.2} | {peer:.2} | {ratio:.2} |"
            );
        }
        text.push_str("\n## By itself\n\n| figure | value | unit |\n| --- | --- | --- |\n");
        for one in &self.figures {
            if self.value(&one.figure, "nginx x3").is_none() {
                let _ = writeln!(text, "| `{}` | {:.2} | {} |", one.figure, one.value, one.unit);
            }
        }
        text.push_str("\n## Where and with what\n\n");
        for (name, value) in self.machine.iter().chain(&self.versions) {
            let _ = writeln!(text, "- {name}: {value}");
        }
        text
    }

    fn names(&self) -> Vec<(String, String)> {
        let mut names: Vec<(String, String)> = Vec::new();
        for one in &self.figures {
            if !names.iter().any(|(name, _)| *name == one.figure) {
                names.push((one.figure.clone(), one.unit.clone()));
            }
        }
        names
    }
}

const HEAD: &str = "# Performance

`make bench` writes this page and `tests/bench/results.json`. Figures are ratios against a peer **in one run** on one machine: absolute values say
more about the machine than about the programs.

## Method

- Real processes on loopback, release build. Our path is `iapctl connect --listen` → `iap-proxy` → `iap-agent` → backend, over `iap/1`, with a one-rule
  match in the demo policy and a durable audit record for each session. The peer does the same job with three nginx `stream` hops: the first adds mutual TLS, the second
  routes by SNI with `ssl_preread`, the third ends mutual TLS. TLS 1.3, AES-128-GCM, P-256 certificates, no resumption on both.
- Rounds of the two systems alternate; each figure is the median of the rounds.
- CPU is user + system time of every process of the path from `/proc`, without the load generator, the backend and the auth server.
- `policy_us_1000` is one decision at 1,000 rules, five of them matching the service, one with a CEL condition. `snapshot_s_100` is the time from the start of
  `iapctl policy apply` (the program's own start included) until the last of 100 agents, each on a TLS stream of its own, holds the new signed snapshot.
- `make scale` adds the following, the plane with its auth server, proxy and agent being real processes, the clients and agents of the load one more.
  `agent_proxy_kib` is what one more connected agent costs the proxy (the slope between 100 and 1,000, resident), `agents_back_s` the time from `kill -9`
  of the proxy until all 1,000 are routed again, certificates and leaves from the real API. `population_*` is a policy of 10,000 rules, one for each of
  10,000 users, over 100 services: the snapshot's size, the time to apply it, until a verified copy is at an agent, and to compile it there, the resident
  memory of auth server and agent, and how much of it is more than with the demo policy. `lock_cut_ms_*` is the time from the call of `LockAdd` until the
  client of the locked session sees its end, over 250 locks, with that policy in force.
- `new_session_ms_*_half_open` is the time from connecting to the connector until the first byte of the backend, of sessions opened one after another: `before`
  alone, `among` while 10,000 connections are held half open, a quarter of them with a whole ClientHello for the same service, from 500 addresses other than
  the honest one; whatever the proxy or the agent sends away comes back within a second (`half_open_came_back`).

## Limits

- Loopback has no loss and no delay; round-trip figures belong to a later page.
- Our handshakes use X25519MLKEM768, nginx's X25519: new sessions carry that cost on our side only.
- Two cores carry load generator, path and backend at once, so throughput is bounded by all of them together; CPU per GiB is the sturdier figure.
";

/// The middle of the values.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What the machine is, as far as it matters.
pub(crate) fn machine() -> BTreeMap<String, String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split(": ").nth(1));
    let cores = std::thread::available_parallelism()
        .map(usize::from)
        .unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let control = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    BTreeMap::from([
        ("cpu".to_owned(), model.unwrap_or("unknown").to_owned()),
        ("cores".to_owned(), cores.to_string()),
        ("kernel".to_owned(), kernel.trim().to_owned()),
        ("congestion control".to_owned(), control.trim().to_owned()),
    ])
}
