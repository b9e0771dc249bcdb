//! Local listeners: each accepted connection becomes a session.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use iap_runtime::pump::Cancellation;
use iap_runtime::tls::Replay;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::cancelling::Cancelling;
use super::peer::Whose;
#[cfg(unix)]
use super::socket::LocalSocket;
use super::{Early, Session, Sessions, peer, refusal};
use crate::failure::Failure;
use crate::home::ClusterHome;
use crate::printer::Printer;
use crate::services::POSTGRES;

/// A session opened in advance is given up after this long, so that no idle one is held at the backend.
const FIRST_SESSION_SECONDS_MAX: u64 = 20;
/// After the end was ordered, how long sessions may take to end properly.
const FAREWELL_MILLISECONDS: u64 = 500;
/// A client told why it is refused has this long to read it.
const REFUSAL_SECONDS_MAX: u64 = 5;
/// How long the agent of one that is given up may take to hear so.
const CLOSE_SECONDS_MAX: u64 = 5;
/// How long to rest when the system is out of sockets.
const ACCEPT_RETRY_MILLISECONDS: u64 = 100;
const REFUSALS_SAID_EVERY: Duration = Duration::from_secs(10);

/// A bound port, and for PostgreSQL a Unix socket beside it.
pub struct LocalListener {
    /// Dropped first: whoever binds the port next makes a file of the same name.
    #[cfg(unix)]
    socket: Option<LocalSocket>,
    listener: TcpListener,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Turns a listener's connections into sessions.
pub struct Serving {
    sessions: Arc<Sessions>,
    printer: Printer,
    first: Mutex<Option<(Session, Instant)>>,
    cancellation: Cancellation,
    protocol: String,
    refusals: Mutex<Refusals>,
    cancelling: Cancelling,
}

/// Local connections that were turned away.
#[derive(Default)]
struct Refusals {
    said_at: Option<Instant>,
    unsaid: u64,
}

impl LocalListener {
    /// Binds a port.
    ///
    /// # Errors
    /// When it is taken.
    pub async fn bind(address: SocketAddr) -> Result<Self, Failure> {
        let refuse = |error: std::io::Error| {
            let failure = Failure::failed(format!("cannot listen on {address}")).because(error.to_string());
            if error.kind() == std::io::ErrorKind::AddrInUse {
                failure.next("end the program that has it, or choose another with --listen PORT")
            } else {
                failure
            }
        };
        let listener = TcpListener::bind(address).await.map_err(refuse)?;
        let address = listener.local_addr().map_err(refuse)?;
        Ok(Self {
            listener,
            #[cfg(unix)]
            socket: None,
            address,
        })
    }

    /// Adds the Unix socket that libpq looks for. Where there can be none the port has to do.
    #[must_use]
    pub fn with_postgres_socket(self, home: &ClusterHome, printer: &Printer) -> Self {
        #[cfg(unix)]
        match LocalSocket::bind(home, self.address.port()) {
            Ok(socket) => {
                return Self {
                    socket: Some(socket),
                    ..self
                };
            }
            Err(error) => printer.verbose(&format!("no Unix socket: {error:#}")),
        }
        #[cfg(not(unix))]
        let _ = (home, printer);
        self
    }

    /// The folder of the Unix socket, which libpq takes for a host.
    pub fn socket_folder(&self) -> Option<&Path> {
        #[cfg(unix)]
        return self.socket.as_ref().map(|socket| socket.folder.as_path());
        #[cfg(not(unix))]
        None
    }

    async fn accept(&self) -> std::io::Result<Accepted> {
        let port = async {
            let (stream, from) = self.listener.accept().await?;
            Ok(Accepted::Port(stream, from))
        };
        #[cfg(unix)]
        if let Some(socket) = &self.socket {
            return tokio::select! {
                accepted = port => accepted,
                accepted = socket.accept() => accepted.map(Accepted::Socket),
            };
        }
        port.await
    }
}

/// A local connection.
enum Accepted {
    Port(TcpStream, SocketAddr),
    /// Whose it is has been looked at.
    #[cfg(unix)]
    Socket(tokio::net::UnixStream),
}

impl Serving {
    /// `first` is used by the first connection, if that comes soon.
    pub fn new(sessions: Arc<Sessions>, printer: Printer, protocol: &str, first: Option<Session>) -> Self {
        let first = first.map(|session| (session, Instant::now()));
        Self {
            sessions,
            printer,
            first: Mutex::new(first),
            cancellation: Cancellation::new(),
            protocol: protocol.to_owned(),
            refusals: Mutex::default(),
            cancelling: Cancelling::default(),
        }
    }

    /// Serves until `end` completes; then every session ends too. Returns what `end` returned.
    pub async fn run<T>(self: Arc<Self>, listener: LocalListener, end: impl Future<Output = T>) -> T {
        let mut connections = JoinSet::new();
        tokio::pin!(end);
        let mut tidy = tokio::time::interval(Duration::from_secs(FIRST_SESSION_SECONDS_MAX));
        let outcome = loop {
            tokio::select! {
                outcome = &mut end => break outcome,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => {
                        self.enter(accepted, listener.address, &mut connections);
                    }
                    Err(error) => {
                        self.printer.warn(&format!("cannot accept a local connection: {error}"));
                        tokio::time::sleep(Duration::from_millis(ACCEPT_RETRY_MILLISECONDS)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                _ = tidy.tick() => self.drop_stale_first().await,
            }
        };
        drop(listener);
        self.finish(connections).await;
        self.sessions.end_renewals().await;
        outcome
    }

    /// Sessions whose client has just gone end by themselves; the rest are cut.
    async fn finish(&self, mut connections: JoinSet<()>) {
        let farewell = Duration::from_millis(FAREWELL_MILLISECONDS);
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(farewell, all).await.is_err() {
            self.cancellation.cancel("iapctl ended");
            let _ = tokio::time::timeout(farewell, async {
                while connections.join_next().await.is_some() {}
            })
            .await;
        }
        if let Some((session, _)) = self.first.lock().await.take() {
            let _ = tokio::time::timeout(farewell, close(session)).await;
        }
    }

    fn enter(self: &Arc<Self>, accepted: Accepted, local: SocketAddr, connections: &mut JoinSet<()>) {
        let serving = Arc::clone(self);
        match accepted {
            Accepted::Port(stream, from) => {
                let local = stream.local_addr().unwrap_or(local);
                match whose(local, from) {
                    Ok(Whose::Ours) => {
                        let opening = async move {
                            let _ = iap_runtime::net::tune(&stream);
                            serving.open(stream, &from.to_string()).await
                        };
                        connections.spawn(Arc::clone(self).serve(opening));
                    }
                    Ok(Whose::Nobodys) if self.protocol == POSTGRES => {
                        let opening = async move { serving.open_to_cancel(stream, from).await };
                        connections.spawn(Arc::clone(self).serve(opening));
                    }
                    refused => {
                        let why = match refused {
                            Ok(Whose::Ours | Whose::Others) => "it is another user's".to_owned(),
                            Ok(Whose::Nobodys) => "it was closed before its owner could be told".to_owned(),
                            Err(error) => format!("whose it is cannot be told: {error}"),
                        };
                        connections.spawn(async move { serving.refused(from, &why).await });
                    }
                }
            }
            #[cfg(unix)]
            Accepted::Socket(stream) => {
                let opening = async move { serving.open(stream, "the Unix socket").await };
                connections.spawn(Arc::clone(self).serve(opening));
            }
        }
    }

    /// Carries what was opened. How that was done is large, and gone before a session rests.
    fn serve<L: AsyncRead + AsyncWrite + Unpin + Send>(
        self: Arc<Self>,
        opening: impl Future<Output = Option<(L, Session)>> + Send,
    ) -> impl Future<Output = ()> + Send {
        let opening = Box::pin(opening);
        async move {
            let Some((stream, session)) = opening.await else {
                return;
            };
            let closed = super::carry(stream, session, &self.cancellation).await;
            if let Some(why) = super::fault(&closed) {
                self.printer
                    .warn(&format!("a session of {} was cut: {why}", self.name()));
            }
        }
    }

    /// Said now and then: another user could fill the log otherwise.
    async fn refused(&self, from: SocketAddr, why: &str) {
        let mut refusals = self.refusals.lock().await;
        if refusals
            .said_at
            .is_some_and(|said| said.elapsed() < REFUSALS_SAID_EVERY)
        {
            refusals.unsaid += 1;
            return;
        }
        let more = match std::mem::take(&mut refusals.unsaid) {
            0 => String::new(),
            unsaid => format!(", after {unsaid} others"),
        };
        refusals.said_at = Some(Instant::now());
        self.printer
            .warn(&format!("refused a local connection from {from}{more}: {why}"));
    }

    /// A session that cancels a statement, for a connection that is closed already.
    async fn open_to_cancel(
        &self,
        stream: TcpStream,
        from: SocketAddr,
    ) -> Option<(Replay<TcpStream>, Session)> {
        match self.cancelling.admit(stream).await {
            Ok(stream) => self.open(stream, &from.to_string()).await,
            Err(why) => {
                self.refused(from, why).await;
                None
            }
        }
    }

    /// A session for a local stream, or nothing, and whoever is there knows why.
    async fn open<L: AsyncRead + AsyncWrite + Unpin + Send>(
        &self,
        mut stream: L,
        from: &str,
    ) -> Option<(L, Session)> {
        let mut early = Early::of(&mut stream);
        let opened = self.session(&mut early).await;
        let said = early.into_bytes();
        match opened {
            Ok(session) => {
                self.printer
                    .verbose(&format!("session {} for {from}", session.session_id.as_uuid()));
                Some((stream, session))
            }
            Err(failure) => {
                self.printer.warn(&format!("{}: {failure}", self.name()));
                // Of a service that is not on the user's list the protocol is unknown.
                if self.protocol == POSTGRES || self.protocol.is_empty() {
                    let mut stream = Replay::new(said, stream);
                    let told = Box::pin(refusal::tell_postgres(&mut stream, &failure));
                    let _ = tokio::time::timeout(Duration::from_secs(REFUSAL_SECONDS_MAX), told).await;
                }
                None
            }
        }
    }

    async fn session(&self, early: &mut Early<'_>) -> Result<Session, Failure> {
        self.drop_stale_first().await;
        let first = self.first.lock().await.take();
        match first {
            Some((session, _)) => Ok(session),
            None => {
                self.sessions.renew_beside();
                Box::pin(self.sessions.open(early)).await
            }
        }
    }

    async fn drop_stale_first(&self) {
        let mut first = self.first.lock().await;
        let limit = Duration::from_secs(FIRST_SESSION_SECONDS_MAX);
        if let Some((session, _)) = first.take_if(|(_, opened)| opened.elapsed() >= limit) {
            tokio::spawn(close(session));
        }
    }

    fn name(&self) -> &str {
        self.sessions.wanted().service.as_str()
    }
}

async fn close(mut session: Session) {
    let closing = tokio::io::AsyncWriteExt::shutdown(&mut session.stream);
    let _ = tokio::time::timeout(Duration::from_secs(CLOSE_SECONDS_MAX), closing).await;
}

/// On loopback only our own user's processes are let in; beyond it `--insecure-listen` has said everybody. What
/// counts is where the connection arrived: a process of this machine may call from any of its addresses.
fn whose(local: SocketAddr, from: SocketAddr) -> std::io::Result<Whose> {
    if !local.ip().to_canonical().is_loopback() {
        return Ok(Whose::Ours);
    }
    peer::whose(local, from)
}

/// `--listen ADDR`: `PORT`, `HOST:PORT` or `:PORT`; loopback only unless `insecure`.
///
/// # Errors
/// Bad input.
pub fn listen_address(text: &str, insecure: bool) -> Result<SocketAddr, Failure> {
    let refuse = |why: &str| {
        Failure::usage(format!("'{text}' is no address to listen on"))
            .because(why)
            .next("--listen 127.0.0.1:PORT")
    };
    let port_alone = text.strip_prefix(':').unwrap_or(text).parse::<u16>().ok();
    let address = match port_alone {
        Some(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        None => match text.strip_prefix("localhost:").map(str::parse) {
            Some(port) => SocketAddr::from((
                Ipv4Addr::LOCALHOST,
                port.map_err(|_| refuse("the port is not a number"))?,
            )),
            None => text.parse().map_err(|_| refuse("write PORT or IP:PORT"))?,
        },
    };
    let loopback = match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if !loopback && !insecure {
        let why = "others on the network could use it in your name";
        return Err(Failure::usage(format!("{address} is not on loopback"))
            .because(why)
            .next("--listen 127.0.0.1:PORT, or --insecure-listen if that is meant"));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn what_arrives_on_loopback_must_be_ours_wherever_it_calls_from() {
        let [loopback, elsewhere, caller] =
            ["127.0.0.1:5432", "192.0.2.1:5432", "192.0.2.2:4711"].map(|text| text.parse().unwrap());
        assert_eq!(whose(loopback, caller).unwrap(), Whose::Nobodys);
        let mapped = "[::ffff:127.0.0.1]:5432".parse().unwrap();
        assert_eq!(whose(mapped, caller).unwrap(), Whose::Nobodys);
        assert_eq!(
            whose(elsewhere, caller).unwrap(),
            Whose::Ours,
            "--insecure-listen"
        );
    }

    #[test]
    fn listening_stays_on_loopback_unless_told_otherwise() {
        assert_eq!(
            listen_address("5432", false).unwrap().to_string(),
            "127.0.0.1:5432"
        );
        assert_eq!(
            listen_address(":5432", false).unwrap().to_string(),
            "127.0.0.1:5432"
        );
        assert_eq!(
            listen_address("localhost:0", false).unwrap().to_string(),
            "127.0.0.1:0"
        );
        assert_eq!(listen_address("[::1]:80", false).unwrap().to_string(), "[::1]:80");
        for bad in [
            "0.0.0.0:80",
            "192.0.2.1:80",
            "nonsense",
            "localhost:x",
            "127.0.0.1",
            "[::]:80",
        ] {
            assert_eq!(
                listen_address(bad, false).unwrap_err().status().code(),
                2,
                "{bad}"
            );
        }
        assert!(listen_address("0.0.0.0:80", true).is_ok());
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let held = LocalListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .await
            .unwrap();
        let failure = LocalListener::bind(held.address).await.map(|_| ()).unwrap_err();
        assert_eq!(failure.status().code(), 1);
        assert!(failure.to_string().contains(&held.address.to_string()));
    }
}
