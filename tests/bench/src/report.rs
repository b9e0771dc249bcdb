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

    /// Says under what load a run that measures a part of the figures was made: the system's average over a minute when it
    /// began, `load`, and now.
    pub(crate) fn note_run(&mut self, part: &str, command: &str, load: &str) {
        self.versions.insert(
            format!("command ({part})"),
            format!(
                "{command}; load average {load} when it began, {} at its end",
                load_average()
            ),
        );
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
        for (part, title) in PARTS {
            let figures = self.figures.iter().filter(|one| part_of(&one.figure) == part);
            let mut alone = figures
                .filter(|one| self.value(&one.figure, "nginx x3").is_none())
                .peekable();
            if alone.peek().is_some() {
                let _ = write!(
                    text,
                    "\n## {title}\n\n| figure | value | unit |\n| --- | --- | --- |\n"
                );
            }
            for one in alone {
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

/// What a figure without a peer is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Alone,
    Scale,
    HalfOpen,
}

const PARTS: [(Part, &str); 3] = [
    (Part::Alone, "By itself"),
    (Part::Scale, "1,000 agents, 100 services, 10,000 users"),
    (Part::HalfOpen, "Among 10,000 half-open connections"),
];

fn part_of(figure: &str) -> Part {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| figure.starts_with(prefix));
    if figure.contains("half_open") {
        Part::HalfOpen
    } else if begins(&["agent", "population", "demo_policy", "lock"]) {
        Part::Scale
    } else {
        Part::Alone
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

### Scale

`make scale` replaces the figures that begin with `agent`, `population`, `demo_policy` and `lock`. Auth server, proxy and five agents are real processes,
each with a service of its own; 995 lightweight agents in one more process hold what a real one holds, over the real protocols: a certificate and a leaf
from the real API, the feed, the control connection by QUIC, four connections dialled in advance, and a report every 30 s. One in ten of them verifies
what it is sent, the others only read it: 995 agents share the two cores here.

- `agent_proxy_kib` and `agent_auth_kib` are resident memory for each connected agent, `agent_proxy_kib_*` the parts for its feed, its control connection
  and its pool. `agents_idle_cpu_percent_*` is what 1,000 agents cost while nothing happens, over a minute. `agents_routed_again_s` is the time from
  `kill -9` of the proxy until all services are routed again, `agents_back_s` until every agent has feed and pool too.
- `population_*` is a policy of 10,000 rules, one for each of 10,000 users, over 100 services, 200 of them for each. It is applied five times, each time
  changed: the medians of the time that `iapctl policy apply` takes, until half of the agents have the new snapshot and until all have, all from the start of
  the command, and of the CPU seconds that auth server and proxy spend on it. `*_mib` is the resident memory of a program 5 s after the last of them, `*_more`
  how much more that is than with the demo policy, `*_peak` the most it was. `population_compile_s` and `population_decision_us` are what an agent does when a
  snapshot comes and when a session is asked for. `population_cut_s` is the time from the start of `iapctl policy apply` of a policy without the rule until
  the last of five live sessions, one at each real agent, is cut. `*_new_session_ms` is a new session through proxy and agent, handshake included, with either
  policy.
- `lock_*` is measured with that policy in force and all agents connected. 300 live sessions at the real agents are locked one by one by `LockAdd`, each when
  every agent has the list before: `lock_acknowledged_ms` is the call, `lock_cut_ms` the time from its start until the client of that session sees the end,
  `lock_cut_after_acknowledged_ms` the same from its answer (below 0: the session was over first), `lock_all_agents_ms` from its start until the last of
  995 agents has the list. The list grows to 300 locks meanwhile, and whole it goes to every agent. `lock_command_*` is 50 more by `iapctl lock add`, from its
  start and from its exit. `lock_person_cut_ms` is one lock on a person with 200 sessions.

### Half-open connections

`make half-open` replaces the figures that have `half_open` in their name. 10,000 strangers at 500 addresses hold connections to the proxy half open:
half of them say nothing, a quarter one byte of a ClientHello, a quarter a whole one for a service and then nothing, which an agent fetches and answers.
Whoever is sent away by proxy or agent connects again a second later (`half_open_renewed_per_s`). In five rounds, 500 sessions are opened one after another
without them, and 500 among them; the time is from connecting to `iapctl connect --listen` until the first byte of the backend. `half_open_held` is how
many of them were connected, on average and at least, as seen by themselves. All limits have their defaults. They come one after the other in 6 s, which
is as long as one stays, so that those who are sent away come back in a steady stream. Their threads run at nice 19: strangers bring their own processors.

## Limits

- Loopback has no loss and no delay; round-trip figures belong to a later page.
- Our handshakes use X25519MLKEM768, nginx's X25519: new sessions carry that cost on our side only.
- Two cores carry load generator, path and backend at once, so throughput is bounded by all of them together; CPU per GiB is the sturdier figure.
- The same two cores carry 1,000 agents or 10,000 strangers; in the field these bring their own. Times until all agents have something are upper bounds.
- What else the machine did is in the load averages at the end of this page: far above the number of cores, times at p99 are worse than on a machine of its own.
- The 10,000 users are names in the policy; they have not logged in. Memory is what the kernel counts as resident, what the allocator keeps for later included.
";

/// The middle of the values.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Of the last minute: how many wanted a core, this program's own processes among them.
pub(crate) fn load_average() -> String {
    let averages = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    averages.split_whitespace().next().unwrap_or("unknown").to_owned()
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
