//! The floor: three hops that only move bytes within the kernel, without TLS. Each is this program, started again.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;

use rustix::pipe::{SpliceFlags, pipe, splice};

use super::{Hop, Role, Site, Started};
use crate::process::{Running, free_ports, wait_for_port};

/// What a pipe holds by default (pipe(7)).
const PIPE_BYTES: usize = 64 * 1024;

pub(super) fn start(site: &Site<'_>) -> anyhow::Result<Started> {
    let [connector, proxy, agent] = free_ports()?;
    let hops = vec![
        hop(Role::Agent, agent, site.backend)?,
        hop(Role::Proxy, proxy, site.reach(agent, 1)?)?,
        hop(Role::Connector, connector, site.reach(proxy, 1)?)?,
    ];
    Ok(Started {
        port: connector,
        hops,
        plane: None,
        version: ("splice", "splice(2), a thread each way".to_owned()),
    })
}

fn hop(role: Role, listen: u16, to: u16) -> anyhow::Result<Hop> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["hop", &listen.to_string(), &to.to_string()]);
    let mut running = Running::start("a hop", &mut command)?;
    wait_for_port(listen, &mut running, 10)?;
    Ok(Hop::running(role, running))
}

/// Carries whatever comes to port `listen` to port `to`, until the process ends.
///
/// # Errors
/// When the port is taken.
pub(crate) fn carry(listen: u16, to: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", listen))?;
    for client in listener.incoming().flatten() {
        std::thread::spawn(move || connection(client, to));
    }
    Ok(())
}

fn connection(client: TcpStream, to: u16) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", to))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from, into) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || one_way(&from, &into));
    one_way(&server, &client)
}

fn one_way(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (outlet, inlet) = pipe()?;
    let moved = SpliceFlags::MOVE;
    loop {
        let mut held = splice(from, None, &inlet, None, PIPE_BYTES, moved)?;
        if held == 0 {
            return to.shutdown(Shutdown::Write);
        }
        while held > 0 {
            held -= splice(&outlet, None, to, None, held, moved)?;
        }
    }
}
