//! A private backend: its address, what it is told of its clients, and the only way to dial it.

mod introduction;

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use iap_audit::CloseReason;
use iap_identity::ClusterName;
use iap_runtime::handover::KeptStream;
use iap_runtime::net::{self, Family, HostPort};
use iap_runtime::tls::ClientStream;
use serde::{Deserialize, Deserializer, de};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::config::LocalService;
use crate::session::handover::keeping::Keeping;
use crate::session::{Live, Started};
pub use introduction::Introduction;

/// Where a service's backend listens: `host:port` or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendAddress {
    /// A host name or address, and a port.
    Tcp(HostPort),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Why text is no backend address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is no backend address: write \"host:port\", \"[ipv6]:port\" or \"unix:/absolute/path\"")]
pub struct BackendAddressError {
    text: String,
}

impl BackendAddress {
    /// Reads `host:port`, `[ipv6]:port` or `unix:/absolute/path`.
    ///
    /// # Errors
    /// When the text is none of these.
    pub fn parse(text: &str) -> Result<Self, BackendAddressError> {
        let refused = || BackendAddressError {
            text: text.to_owned(),
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err(refused())
            };
        }
        match HostPort::parse(text) {
            Ok(address) if address.port() != 0 => Ok(Self::Tcp(address)),
            Ok(_) | Err(_) => Err(refused()),
        }
    }
}

impl<'de> Deserialize<'de> for BackendAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl std::fmt::Display for BackendAddress {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(out),
            Self::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

/// Why a backend could not be reached, in words for the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialFailure {
    /// It answered with a refusal, or its socket is missing.
    Refused,
    /// It did not answer in time.
    TimedOut,
    /// Its name did not resolve, or no route leads to it.
    Unreachable,
}

impl DialFailure {
    /// The close reason in the record.
    #[must_use]
    pub fn close_reason(self) -> CloseReason {
        match self {
            Self::Refused => CloseReason::BackendRefused,
            Self::TimedOut => CloseReason::BackendTimeout,
            Self::Unreachable => CloseReason::BackendUnreachable,
        }
    }

    /// What the caller is told. The address stays with the operators.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Refused => "the service's backend refused the connection",
            Self::TimedOut => "the service's backend did not answer in time",
            Self::Unreachable => "the service's backend cannot be reached from its agent",
        }
    }

    fn of(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::ConnectionRefused
            | std::io::ErrorKind::NotFound
            | std::io::ErrorKind::PermissionDenied
            | std::io::ErrorKind::ConnectionReset => Self::Refused,
            std::io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Unreachable,
        }
    }
}

/// Dials the backend of a session that has a grant and a durable start record, and introduces the caller where
/// the service's file wants it: [`Started`] proves both, and nothing else in the agent connects to a
/// backend, but for `doctor`, which sends nothing to it.
///
/// # Errors
/// When the backend cannot be reached within `patience`.
pub async fn dial(
    service: &LocalService,
    started: &Started,
    cluster: &ClusterName,
    patience: Duration,
) -> Result<BackendStream, DialFailure> {
    let address = &service.backend;
    let dialling = async {
        let mut stream = connect(address, patience).await?;
        let server = stream.peer_address();
        let introduction = service.introduction.bytes(cluster, started.facts(), server);
        let introduction = introduction.map_err(std::io::Error::other)?;
        stream.write_all(&introduction).await?;
        Ok(stream)
    };
    let dialled: std::io::Result<_> = match tokio::time::timeout(patience, dialling).await {
        Ok(dialled) => dialled,
        Err(_elapsed) => Err(std::io::ErrorKind::TimedOut.into()),
    };
    dialled.map_err(|error| {
        let session = started.session_id();
        tracing::info!(%session, backend = %address, %error, "the backend could not be dialled");
        DialFailure::of(&error)
    })
}

/// Another connection to the backend of a live session, for a request to cancel what that does. That it lives proves its
/// grant and its record.
///
/// # Errors
/// When the backend cannot be reached within `patience`.
pub(crate) async fn dial_beside(
    live: &Live,
    cluster: &ClusterName,
    patience: Duration,
) -> std::io::Result<BackendStream> {
    let permit = live.permit();
    let service = permit.local();
    let dialling = async {
        let mut stream = connect(&service.backend, patience).await?;
        let server = stream.peer_address();
        let introduction = service.introduction.bytes(cluster, &live.facts, server);
        let introduction = introduction.map_err(std::io::Error::other)?;
        stream.write_all(&introduction).await?;
        Ok(stream)
    };
    match tokio::time::timeout(patience, dialling).await {
        Ok(dialled) => dialled,
        Err(_elapsed) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

async fn connect(address: &BackendAddress, patience: Duration) -> std::io::Result<BackendStream> {
    match address {
        BackendAddress::Tcp(address) => net::connect(address, patience).await.map(BackendStream::Tcp),
        BackendAddress::Unix(path) => UnixStream::connect(path).await.map(BackendStream::Unix),
    }
}

/// An open connection to a backend.
#[derive(Debug)]
pub enum BackendStream {
    /// Over TCP, with Nagle's algorithm off.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
    /// Over TCP, for a session that outlives this process's being killed.
    Kept(Box<KeptStream>),
    /// Inside TLS, for a protocol that is read here.
    Tls(Box<ClientStream<TcpStream>>),
}

impl BackendStream {
    /// The same connection for a session that is kept.
    ///
    /// # Errors
    /// When it cannot be.
    pub(crate) fn kept(self, keeping: &Keeping) -> std::io::Result<Self> {
        match self {
            Self::Tcp(stream) => keeping.stream(stream).map(Box::new).map(Self::Kept),
            Self::Unix(_) | Self::Kept(_) | Self::Tls(_) => Ok(self),
        }
    }

    /// Goes on with a connection that another process opened.
    ///
    /// # Errors
    /// When it is no connection to a backend.
    pub(crate) fn take_over(descriptor: OwnedFd) -> std::io::Result<Self> {
        match Self::check(&descriptor)? {
            Family::Tcp => {
                let stream = std::net::TcpStream::from(descriptor);
                stream.set_nonblocking(true)?;
                TcpStream::from_std(stream).map(Self::Tcp)
            }
            Family::Unix => {
                let stream = std::os::unix::net::UnixStream::from(descriptor);
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream).map(Self::Unix)
            }
        }
    }

    /// Whether a descriptor is a connection to a backend, and over what.
    ///
    /// # Errors
    /// When it is not.
    pub(crate) fn check(descriptor: &OwnedFd) -> std::io::Result<Family> {
        net::stream_family(descriptor)
    }

    /// Where the backend is; a Unix socket has no such address.
    fn peer_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Unix(_) | Self::Kept(_) | Self::Tls(_) => None,
        }
    }
}

impl AsFd for BackendStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
            Self::Kept(stream) => stream.as_fd(),
            Self::Tls(stream) => stream.get_ref().0.as_fd(),
        }
    }
}

impl AsyncRead for BackendStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Kept(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for BackendStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Kept(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::Kept(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Kept(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_hosts_with_ports_or_absolute_sockets() {
        for good in [
            "db.internal:5432",
            "127.0.0.1:22",
            "[::1]:5432",
            "unix:/run/postgresql/.s.PGSQL.5432",
        ] {
            assert_eq!(BackendAddress::parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "", "db", "db:", ":5432", "db:0", "db:65536", "::1:5432", "[db]:1", "unix:run", "a b:1",
        ] {
            assert!(BackendAddress::parse(bad).is_err(), "{bad}");
        }
    }
}
