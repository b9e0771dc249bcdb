//! The systems under measurement: how each is started, where its clients connect, and which processes are its path.

mod certificates;
mod ghostunnel;
mod haproxy;
mod iap;
mod nginx;
mod plain;
mod rathole;
mod site;
mod splice;
mod ssh;
mod stunnel;

use crate::link::Link;
use crate::plane::Plane;
use crate::process::{Running, cpu_seconds, family, resident_kib};

pub(crate) use certificates::Certificates;
pub(crate) use site::{Network, Programs, Site};
pub(crate) use splice::carry as carry_by_splice;

/// Our path's name in the results: `iap/1`.
pub(crate) const OURS: &str = "iap";
/// The same as `iapctl` uses it by default: `iap-resume/1`.
pub(crate) const OURS_RESUMABLE: &str = "iap resume";

/// Every system there is, in the order of the report: ours, the floor, then what one would use instead.
pub(crate) const ALL: &[Kind] = &[
    Kind::of_three(OURS, iap::start),
    Kind::of_three(OURS_RESUMABLE, iap::start_resumable),
    // Too few sessions at once for those that do nothing to be counted by the thousand.
    Kind::other("iap quic", iap::start_quic),
    Kind::other("plain", plain::start),
    Kind::other("splice x3", splice::start),
    Kind::of_three("nginx x3", nginx::start),
    Kind::of_three("haproxy x3", haproxy::start),
    Kind::of_three("haproxy bridge x3", haproxy::start_bridge),
    Kind::other("stunnel", stunnel::start),
    Kind::other("ghostunnel", ghostunnel::start),
    Kind::other("rathole", rathole::start),
    Kind::other("ssh -L", ssh::start),
    Kind::other("ssh -J", ssh::start_jump),
];

type Start = fn(&Site<'_>) -> anyhow::Result<Started>;

/// A system that can be started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// Its name in the results.
    pub(crate) name: &'static str,
    /// Whether a program plays each of connector, proxy and agent, whose memory is compared.
    pub(crate) of_three: bool,
    start: Start,
}

impl Kind {
    const fn of_three(name: &'static str, start: Start) -> Self {
        Self {
            name,
            of_three: true,
            start,
        }
    }

    const fn other(name: &'static str, start: Start) -> Self {
        Self {
            name,
            of_three: false,
            start,
        }
    }

    /// Whether `word` means it: its name, or the beginning of it.
    pub(crate) fn is_called(&self, word: &str) -> bool {
        !word.is_empty() && self.name.starts_with(word)
    }

    /// Starts it; returns when clients can connect.
    ///
    /// # Errors
    /// When a program of it is missing or does not start.
    pub(crate) fn start(&self, site: Site<'_>) -> anyhow::Result<System> {
        let Started {
            port,
            hops,
            plane,
            version,
        } = (self.start)(&site)?;
        Ok(System {
            name: self.name,
            port,
            version,
            hops,
            plane,
            links: site.into_links(),
        })
    }
}

/// A part in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Where the client connects.
    Connector,
    /// In the middle.
    Proxy,
    /// Where the backend is.
    Agent,
    /// On no session's path, and reported by itself.
    Auth,
}

/// The parts of a path, client side first.
pub(crate) const PATH: [Role; 3] = [Role::Connector, Role::Proxy, Role::Agent];

impl Role {
    /// As in the figures' names.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Connector => "connector",
            Self::Proxy => "proxy",
            Self::Agent => "agent",
            Self::Auth => "auth",
        }
    }
}

/// One process of a path, with its children.
#[derive(Debug)]
pub(crate) struct Hop {
    role: Role,
    pid: u32,
    /// Held when the harness started it itself.
    running: Option<Running>,
}

impl Hop {
    /// A program of the harness's own.
    pub(crate) fn running(role: Role, running: Running) -> Self {
        Self {
            role,
            pid: running.id(),
            running: Some(running),
        }
    }

    /// A program that something else started and will end.
    pub(crate) const fn of_pid(role: Role, pid: u32) -> Self {
        Self {
            role,
            pid,
            running: None,
        }
    }
}

/// What starting a system came to.
pub(crate) struct Started {
    /// Where clients connect.
    pub(crate) port: u16,
    /// The backend's side first: ended in the opposite order.
    pub(crate) hops: Vec<Hop>,
    /// Of our own path.
    pub(crate) plane: Option<Plane>,
    /// The program's name and version.
    pub(crate) version: (&'static str, String),
}

/// A running path from a local port to the backend. It ends when dropped.
#[derive(Debug)]
pub(crate) struct System {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    pub(crate) version: (&'static str, String),
    hops: Vec<Hop>,
    /// Of our own path.
    pub(crate) plane: Option<Plane>,
    /// The client's own is the last.
    links: Vec<Link>,
}

impl System {
    /// CPU seconds used so far, by role.
    ///
    /// # Errors
    /// When a process of the path is gone.
    pub(crate) fn cpu(&self) -> anyhow::Result<Reading> {
        self.read(cpu_seconds)
    }

    /// Breaks the connections that the clients' link carries.
    pub(crate) fn cut_clients(&self) {
        if let Some(link) = self.links.last() {
            link.cut();
        }
    }

    /// KiB resident, by role.
    ///
    /// # Errors
    /// When a process of the path is gone.
    pub(crate) fn memory(&self) -> anyhow::Result<Reading> {
        self.read(resident_kib)
    }

    fn read(&self, what: impl Fn(u32) -> anyhow::Result<f64>) -> anyhow::Result<Reading> {
        let mut readings = Vec::with_capacity(self.hops.len());
        for hop in &self.hops {
            let mut all = 0.0;
            for pid in family(hop.pid) {
                all += what(pid)?;
            }
            readings.push((hop.role, all));
        }
        Ok(Reading(readings))
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // Client side first, so that nobody dials into a path that is going.
        while let Some(hop) = self.hops.pop() {
            if let Some(running) = hop.running {
                running.end();
            }
        }
    }
}

/// Something of each process of a path at one moment, or between two.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reading(Vec<(Role, f64)>);

impl Reading {
    /// What was added since an `earlier` reading of the same system.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let both = self.0.iter().zip(&earlier.0);
        Self(both.map(|((role, now), (_, then))| (*role, now - then)).collect())
    }

    /// Of the whole path; nothing where no process is on it.
    pub(crate) fn path(&self) -> Option<f64> {
        let parts = PATH.into_iter().filter_map(|role| self.of(role));
        parts.reduce(|all, part| all + part)
    }

    /// Of one role; nothing where nobody has it.
    pub(crate) fn of(&self, role: Role) -> Option<f64> {
        let parts = self.0.iter().filter(|(of, _)| *of == role).map(|(_, part)| *part);
        parts.reduce(|all, part| all + part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_all_roles_but_the_auth_server() {
        let before = Reading(vec![
            (Role::Agent, 1.0),
            (Role::Proxy, 2.0),
            (Role::Connector, 3.0),
            (Role::Auth, 4.0),
        ]);
        let after = Reading(vec![
            (Role::Agent, 2.0),
            (Role::Proxy, 4.0),
            (Role::Connector, 6.0),
            (Role::Auth, 8.0),
        ]);
        let used = after.since(&before);
        assert_eq!(used.path(), Some(6.0));
        assert_eq!(used.of(Role::Proxy), Some(2.0));
        assert_eq!(used.of(Role::Auth), Some(4.0));
    }

    #[test]
    fn where_nobody_has_a_role_there_is_no_figure() {
        let pair = Reading(vec![(Role::Agent, 1.0), (Role::Connector, 1.0)]);
        assert_eq!((pair.path(), pair.of(Role::Proxy)), (Some(2.0), None));
        assert_eq!(Reading(Vec::new()).path(), None);
    }

    #[test]
    fn names_are_different_and_found_by_their_beginning() {
        for (index, kind) in ALL.iter().enumerate() {
            let twins = ALL.iter().skip(index + 1).filter(|other| other.name == kind.name);
            assert_eq!(twins.count(), 0, "{}", kind.name);
        }
        let called = |word: &str| ALL.iter().filter(|kind| kind.is_called(word)).count();
        assert_eq!((called("nginx"), called("haproxy"), called("ssh -J")), (1, 2, 1));
        assert_eq!((called("nothing"), called("")), (0, 0));
    }
}
