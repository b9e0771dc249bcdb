//! Our path: a development plane of its own, and `iapctl connect --listen` in front of it, with `iap/1` and with
//! `iap-resume/1`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Hop, Network, Role, Site, Started};
use crate::plane::Plane;
use crate::process::line_with;

/// An agent begins with the way to the proxy that it remembers, and takes the one that it is told of soon after.
const REMEMBERING: Duration = Duration::from_secs(3);

/// An agent that lets nobody come back speaks `iap/1`.
const WITHOUT_RESUME: (&str, &str) = ("IAP_AGENT__LIMITS__RESUME_SECONDS_MAX", "0");

pub(super) fn start(site: &Site<'_>) -> anyhow::Result<Started> {
    start_with(site, &[WITHOUT_RESUME])
}

/// Sessions are streams of the agent's QUIC connection.
const OVER_QUIC: (&str, &str) = ("IAP_AGENT__DATA", "quic");

pub(super) fn start_quic(site: &Site<'_>) -> anyhow::Result<Started> {
    start_with(site, &[WITHOUT_RESUME, OVER_QUIC])
}

pub(super) fn start_resumable(site: &Site<'_>) -> anyhow::Result<Started> {
    start_with(site, &[])
}

fn start_with(site: &Site<'_>, settings: &[(&str, &str)]) -> anyhow::Result<Started> {
    let bin = &site.programs.bin;
    let dir = site.file("plane");
    let (plane, home) = match site.network {
        Network::Loopback => {
            let plane = Plane::start_with(bin, &dir, site.backend, settings)?;
            let home = plane.log_in("alice")?;
            (plane, home)
        }
        Network::Wan(_) => far_plane(site, &dir, settings)?,
    };
    let (port, connector) = plane.connect(&home)?;
    let hops = vec![
        Hop::of_pid(Role::Auth, plane.pid("auth")?),
        Hop::of_pid(Role::Agent, plane.pid("agent")?),
        Hop::of_pid(Role::Proxy, plane.pid("proxy")?),
        Hop::running(Role::Connector, connector),
    ];
    let version = line_with(
        std::process::Command::new(bin.join("iapctl")).arg("--version"),
        "",
    );
    Ok(Started {
        port,
        hops,
        plane: Some(plane),
        version: ("iap", version),
    })
}

/// A plane whose agent and clients reach the proxy over a link each. A plane keeps its ports, so the links are laid to
/// those of a first run.
fn far_plane(site: &Site<'_>, dir: &Path, settings: &[(&str, &str)]) -> anyhow::Result<(Plane, PathBuf)> {
    let bin = &site.programs.bin;
    let first = Plane::start(bin, dir, site.backend)?;
    let proxy = first.proxy_port()?;
    drop(first);
    let agents = format!("127.0.0.1:{}", site.reach(proxy, 1)?);
    let list = format!("[\"{agents}\"]");
    let ways = [
        ("IAP_PROXY__PUBLIC_ADDRESS", agents.as_str()),
        ("IAP_AGENT__PROXIES", list.as_str()),
    ];
    let settings = [settings, &ways].concat();
    let plane = Plane::start_with(bin, dir, site.backend, &settings)?;
    std::thread::sleep(REMEMBERING);
    let home = plane.log_in("alice")?;
    plane.lead_home_to(&home, site.reach(proxy, 1)?)?;
    Ok((plane, home))
}
