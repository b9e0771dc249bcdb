//! How long a policy change takes to reach a hundred agents.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use iap_proto::open_snapshot;
use iap_proto::v1::agent_client::AgentClient;
use iap_proto::v1::feed_event::Event;
use iap_proto::v1::{FeedEvent, WatchRequest};
use iap_runtime::tls::Material;
use tonic::Streaming;

use crate::joined::Joined;
use crate::plane::Plane;

const PATIENCE: Duration = Duration::from_secs(60);

/// Joins `count` agents, lets each watch on a connection of its own, applies a changed policy, and returns the seconds
/// from the start of `iapctl policy apply` until the last of them holds the verified new snapshot.
///
/// # Errors
/// When an agent cannot join or does not hear of the change.
pub(crate) fn seconds_to_agents(plane: &Plane, count: usize) -> anyhow::Result<f64> {
    let admin = plane.log_in("admin")?;
    let token = plane.agent_token(&admin, count, &[])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut watchers = Vec::new();
    for _ in 0..count {
        watchers.push(runtime.block_on(Watcher::join(plane, &token))?);
    }
    let known = watchers.iter().map(Watcher::version).max().context("no agents")?;
    let waiting: Vec<_> = watchers
        .into_iter()
        .map(|watcher| runtime.spawn(watcher.newer_than(known)))
        .collect();
    let file = changed_policy(plane)?;
    let begun = Instant::now();
    plane.iapctl(&admin, &["policy", "apply", &file])?;
    let mut last = begun;
    for watcher in waiting {
        last = last.max(runtime.block_on(watcher)??.at);
    }
    Ok((last - begun).as_secs_f64())
}

fn changed_policy(plane: &Plane) -> anyhow::Result<String> {
    let policy = std::fs::read_to_string(plane.dir.join("config/policy.toml"))?;
    let path = plane.dir.join("config/changed.toml");
    let rule = "\n[[rule]]\nname = \"bench\"\neffect = \"allow\"\nusers = { groups = [\"nobody\"] }\nservices = { names = [\"bulk\"] }\n";
    std::fs::write(&path, policy + rule)?;
    Ok(path.display().to_string())
}

/// One agent's stream.
struct Watcher {
    stream: Streaming<FeedEvent>,
    material: Arc<Material>,
    held: Arrived,
}

/// A snapshot that came and was verified.
struct Arrived {
    /// When.
    at: Instant,
    version: u64,
}

impl Watcher {
    async fn join(plane: &Plane, token: &str) -> anyhow::Result<Self> {
        let joined = Joined::with(plane, token).await?;
        let watching = WatchRequest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            services: Vec::new(),
        };
        let mut stream = AgentClient::new(joined.channel)
            .watch(watching)
            .await?
            .into_inner();
        let material = joined.material;
        let held = next_snapshot(&mut stream, &material).await?;
        Ok(Self {
            stream,
            material,
            held,
        })
    }

    /// Of the snapshot it holds.
    fn version(&self) -> u64 {
        self.held.version
    }

    /// The first verified snapshot newer than `version`.
    async fn newer_than(mut self, version: u64) -> anyhow::Result<Arrived> {
        while self.held.version <= version {
            let next = next_snapshot(&mut self.stream, &self.material);
            let next = tokio::time::timeout(PATIENCE, next)
                .await
                .context("no new snapshot came")??;
            ensure!(next.version >= self.held.version, "an older snapshot came");
            self.held = next;
        }
        Ok(self.held)
    }
}

async fn next_snapshot(stream: &mut Streaming<FeedEvent>, material: &Material) -> anyhow::Result<Arrived> {
    loop {
        let message = stream.message().await?.context("the stream ended")?;
        if let Some(Event::Snapshot(signed)) = message.event {
            let snapshot = open_snapshot(&signed, &material.bundle())?;
            return Ok(Arrived {
                at: Instant::now(),
                version: snapshot.version,
            });
        }
    }
}
