//! Whether an address can be listened on here, or is.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use tokio::net::TcpStream;

use super::Finding;
use super::path::check_udp;

/// Which transport an address is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP, for QUIC.
    Udp,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    fn bind(self, address: SocketAddr) -> io::Result<()> {
        match self {
            Self::Tcp => TcpListener::bind(address).map(drop),
            Self::Udp => UdpSocket::bind(address).map(drop),
        }
    }

    /// As `ss` spells it.
    fn flags(self) -> &'static str {
        match self {
            Self::Tcp => "-ltnp",
            Self::Udp => "-lunp",
        }
    }
}

/// Where a server that runs should listen: whether it does.
pub async fn check_listening(address: SocketAddr, transport: Transport, unit: &str) -> Finding {
    let here = reachable(address);
    let answers = match transport {
        Transport::Tcp => TcpStream::connect(here)
            .await
            .map(drop)
            .map_err(|error| error.to_string()),
        Transport::Udp => match check_udp(here).await.fix {
            None => Ok(()),
            Some(_) => Err("no answer by QUIC".to_owned()),
        },
    };
    let name = transport.name();
    match answers {
        Ok(()) => Finding::ok("listen", format!("{name} {address} answers")),
        Err(why) => Finding::failed(
            "listen",
            format!("the server runs, and {name} {address} does not answer: {why}"),
            format!("`listen` may have changed since it started: `systemctl restart {unit}`"),
        ),
    }
}

/// Where a server that does not run would listen: whether it could. The address is taken for a moment.
pub fn check_bindable(address: SocketAddr, transport: Transport) -> Finding {
    let name = transport.name();
    let port = address.port();
    let failed =
        |fix: String| move |why: &str| Finding::failed("listen", format!("{name} {address}: {why}"), fix);
    match transport.bind(address) {
        Ok(()) => Finding::ok("listen", format!("{name} {address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => failed(format!(
            "see who holds it with `ss {} 'sport = :{port}'`, and stop that or change `listen`; if it is a socket unit of this server, start the server",
            transport.flags()
        ))("another program holds it"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Finding::warning(
            "listen",
            format!("{name} {address}: whoever runs this may not bind it"),
            "let systemd start the server: its unit has CAP_NET_BIND_SERVICE; or use its socket unit",
        ),
        Err(error) => failed(
            "correct `listen`: only addresses of this machine can be listened on".to_owned(),
        )(&error.to_string()),
    }
}

/// The machine itself, where all of its addresses are meant.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        ip if ip.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
        _ => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn an_address_is_free_taken_or_not_of_this_machine() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = held.local_addr().unwrap();
        let finding = check_bindable(taken, Transport::Tcp);
        assert_eq!(finding.verdict, Verdict::Failed);
        let fix = finding.fix.unwrap();
        assert!(
            fix.contains(&format!("ss -ltnp 'sport = :{}'", taken.port())),
            "{fix}"
        );
        assert_eq!(check_bindable(taken, Transport::Udp).verdict, Verdict::Ok);
        drop(held);
        assert_eq!(check_bindable(taken, Transport::Tcp).verdict, Verdict::Ok);
        // An address of documentation (RFC 5737) is nobody's.
        let elsewhere = "192.0.2.1:1".parse().unwrap();
        assert_eq!(check_bindable(elsewhere, Transport::Tcp).verdict, Verdict::Failed);
    }

    #[tokio::test]
    async fn a_server_that_runs_and_does_not_listen_where_its_file_says_is_found() {
        let held = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = held.local_addr().unwrap();
        let check = async || {
            check_listening(address, Transport::Tcp, "iap-proxy")
                .await
                .verdict
        };
        assert_eq!(check().await, Verdict::Ok);
        drop(held);
        assert_eq!(check().await, Verdict::Failed);
    }
}
