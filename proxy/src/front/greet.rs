//! Finding out what a connection is, within one deadline and a few kilobytes. The first byte decides: 0x16
//! TLS, 0x00 PostgreSQL, 0x0D a balancer's PROXY header (from listed peers only), `I` an agent dialling back.

use std::io;
use std::net::SocketAddr;

use iap_identity::{ClusterName, ServerName, ServerNameError};
use iap_runtime::config::InForce;
use iap_runtime::net::Cidr;
use iap_runtime::proxy_protocol::{self, ProxyHeaderError};
use iap_runtime::tls::{
    self, AlertDescription, ClientHelloError, ClientHelloFacts, ClientHelloLimits, Replay,
};
use iap_tunnel::preface::{POOL_PREFACE_VERSION, PREFACE_MAGIC};
use iap_tunnel::{CancelRequest, PREFACE_BYTES, PoolPreface, PreambleMachine, PreambleStep, Preface};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::Limits;
use crate::metrics::Refusal;

const TLS_HANDSHAKE: u8 = 0x16;
const POSTGRES: u8 = 0x00;
const PROXY_HEADER: u8 = 0x0d;
const DIAL_BACK: u8 = b'I';
const FIRST_READ_BYTES: usize = 2048;
/// No PostgreSQL request before TLS is longer.
const PREAMBLE_READ_BYTES: usize = 512;

/// What a connection turned out to be.
pub(crate) enum Greeting {
    /// A client that asks for one of our names.
    Client(Client),
    /// An agent that fetches a connection.
    DialBack(TcpStream, Preface),
    /// An agent's connection that will wait for a client.
    Pooled(TcpStream, PoolPreface),
    /// A PostgreSQL client that wants a statement of another connection of its to end.
    Cancel(TcpStream, CancelRequest),
}

/// Where a PostgreSQL client's first bytes have led.
enum Preamble {
    /// To TLS; what was read of the ClientHello.
    Tls(Vec<u8>),
    /// Nowhere: it wants a statement to end.
    Cancel(CancelRequest),
}

/// A client whose ClientHello was read and not answered.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    /// Everything read so far; must reach whoever ends the TLS.
    pub(crate) hello: Vec<u8>,
    pub(crate) name: ServerName,
    /// The balancer's word where there is one.
    pub(crate) address: SocketAddr,
}

/// A connection that goes nowhere.
pub(crate) struct Refused {
    pub(crate) reason: Refusal,
    pub(crate) detail: String,
    /// The alert that tells a TLS client why, where the connection is still good for one.
    pub(crate) alert: Option<AlertDescription>,
    /// Absent once it failed.
    pub(crate) stream: Option<TcpStream>,
}

impl Refused {
    fn silently(reason: Refusal, detail: impl std::fmt::Display) -> Self {
        Self {
            reason,
            detail: detail.to_string(),
            alert: None,
            stream: None,
        }
    }
}

/// What the greeting needs to know.
pub(crate) struct Rules {
    pub(crate) cluster: ClusterName,
    pub(crate) proxy_protocol_from: Vec<Cidr>,
    pub(crate) limits: InForce<Limits>,
}

impl Rules {
    /// Whether `peer` may speak for others.
    pub(crate) fn is_balancer(&self, peer: SocketAddr) -> bool {
        proxy_protocol::may_send(peer.ip(), &self.proxy_protocol_from)
    }

    /// Reads up to the point where it is known what the connection is. `known_client` hears the client's
    /// address as soon as a balancer told it, and may refuse.
    pub(crate) async fn greet(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        known_client: impl FnOnce(SocketAddr) -> Result<(), Refusal>,
    ) -> Result<Greeting, Refused> {
        let deadline = self.limits.now().client_hello_seconds_max;
        match tokio::time::timeout(deadline, self.greet_slowly(stream, peer, known_client)).await {
            Ok(greeting) => greeting,
            Err(_) => Err(Refused::silently(
                Refusal::TimedOut,
                format_args!("nothing to route by within {} ms", deadline.as_millis()),
            )),
        }
    }

    async fn greet_slowly(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
        known_client: impl FnOnce(SocketAddr) -> Result<(), Refusal>,
    ) -> Result<Greeting, Refused> {
        let mut bytes = Vec::with_capacity(FIRST_READ_BYTES);
        read_some(&mut stream, &mut bytes).await?;
        let mut address = peer;
        if bytes.first() == Some(&PROXY_HEADER) {
            (address, bytes) = self.proxy_header(&mut stream, peer, bytes).await?;
            known_client(address)
                .map_err(|reason| Refused::silently(reason, "said the balancer's header"))?;
            if bytes.is_empty() {
                read_some(&mut stream, &mut bytes).await?;
            }
        }
        match bytes.first() {
            Some(&TLS_HANDSHAKE) => self.client(stream, bytes, address).await,
            Some(&POSTGRES) => match preamble(&mut stream, bytes).await? {
                Preamble::Tls(hello) => self.client(stream, hello, address).await,
                Preamble::Cancel(request) => Ok(Greeting::Cancel(stream, request)),
            },
            Some(&DIAL_BACK) => dial_back(stream, bytes).await,
            Some(first) => Err(Refused::silently(
                Refusal::UnknownProtocol,
                format_args!("no protocol here starts with byte {first:#04x}"),
            )),
            None => Err(closed_early(0)),
        }
    }

    async fn proxy_header(
        &self,
        stream: &mut TcpStream,
        peer: SocketAddr,
        bytes: Vec<u8>,
    ) -> Result<(SocketAddr, Vec<u8>), Refused> {
        let mut replay = Replay::new(bytes, stream);
        let allowed = &self.proxy_protocol_from;
        let patience = self.limits.now().client_hello_seconds_max;
        let address = proxy_protocol::read(&mut replay, peer, allowed, patience).await;
        let address =
            address.map_err(|error: ProxyHeaderError| Refused::silently(Refusal::ProxyHeader, error))?;
        let (rest, _) = replay.into_parts();
        Ok((address, rest))
    }

    async fn client(
        &self,
        mut stream: TcpStream,
        bytes: Vec<u8>,
        address: SocketAddr,
    ) -> Result<Greeting, Refused> {
        let limits = self.limits.now();
        let limits = ClientHelloLimits {
            bytes_max: limits.client_hello_bytes_max,
            // The deadline around the whole greeting is the one that counts.
            timeout: limits.client_hello_seconds_max * 2,
        };
        let (facts, hello) = match tls::peek(&mut stream, bytes, limits).await {
            Ok(read) => read,
            Err(error) => return Err(hello_refused(stream, &error)),
        };
        match self.name(&facts) {
            Ok(name) => Ok(Greeting::Client(Client {
                stream,
                hello,
                name,
                address,
            })),
            Err((reason, detail)) => Err(Refused {
                reason,
                detail,
                alert: Some(AlertDescription::UnrecognisedName),
                stream: Some(stream),
            }),
        }
    }

    fn name(&self, facts: &ClientHelloFacts) -> Result<ServerName, (Refusal, String)> {
        let Some(sni) = facts.sni.as_deref() else {
            return Err((
                Refusal::NoServerName,
                "the ClientHello carries no server name".to_owned(),
            ));
        };
        ServerName::parse(sni, &self.cluster).map_err(|error| {
            let reason = match error {
                ServerNameError::Malformed => Refusal::MalformedName,
                ServerNameError::Unknown => Refusal::UnknownName,
                ServerNameError::Reserved => Refusal::ReservedName,
            };
            (reason, format!("{error}: {sni:?}"))
        })
    }
}

async fn read_some(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<(), Refused> {
    let had = bytes.len();
    match stream.read_buf(bytes).await {
        Ok(0) => Err(closed_early(had)),
        Ok(_) => Ok(()),
        Err(error) => Err(Refused::silently(Refusal::ClosedEarly, error)),
    }
}

fn closed_early(bytes: usize) -> Refused {
    Refused::silently(Refusal::ClosedEarly, format_args!("closed after {bytes} bytes"))
}

/// A name that is no host name fails inside the TLS parser; the client deserves the alert for names all the
/// same.
fn hello_refused(stream: TcpStream, error: &ClientHelloError) -> Refused {
    use rustls::{Error, PeerMisbehaved};
    let malformed_name = matches!(
        error,
        ClientHelloError::Malformed(Error::PeerMisbehaved(
            PeerMisbehaved::ServerNameMustContainOneHostName
        ))
    );
    let reason = match error {
        ClientHelloError::Closed { .. } | ClientHelloError::Io(_) => Refusal::ClosedEarly,
        ClientHelloError::TimedOut { .. } => Refusal::TimedOut,
        ClientHelloError::TooLarge { .. } => Refusal::ClientHello,
        ClientHelloError::Malformed(_) if malformed_name => Refusal::MalformedName,
        ClientHelloError::Malformed(_) => Refusal::ClientHello,
    };
    let alert = if malformed_name {
        Some(AlertDescription::UnrecognisedName)
    } else {
        error.alert()
    };
    Refused {
        reason,
        detail: error.to_string(),
        alert,
        stream: Some(stream),
    }
}

/// Leads a PostgreSQL client to TLS.
async fn preamble(stream: &mut TcpStream, first: Vec<u8>) -> Result<Preamble, Refused> {
    let refused = |error| Refused::silently(Refusal::PostgresPreamble, error);
    let failed = |error: io::Error| Refused::silently(Refusal::ClosedEarly, error);
    let mut machine = PreambleMachine::new();
    let mut bytes = first;
    loop {
        let step = machine.push(&bytes).map_err(refused)?;
        bytes.clear();
        match step {
            PreambleStep::NeedMore => {}
            PreambleStep::RefuseGss => {
                nothing_stuffed(stream)?;
                stream.write_all(b"N").await.map_err(failed)?;
            }
            PreambleStep::StartTls => {
                nothing_stuffed(stream)?;
                stream.write_all(b"S").await.map_err(failed)?;
                return Ok(Preamble::Tls(Vec::new()));
            }
            PreambleStep::DirectTls(hello) => return Ok(Preamble::Tls(hello)),
            PreambleStep::Cancel(request) => return Ok(Preamble::Cancel(request)),
        }
        bytes.reserve(PREAMBLE_READ_BYTES);
        read_some(stream, &mut bytes).await?;
    }
}

/// Bytes that arrived behind a request, in a packet of their own, before it was answered.
fn nothing_stuffed(stream: &TcpStream) -> Result<(), Refused> {
    let mut byte = [0];
    match stream.try_read(&mut byte) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Ok(0) => Err(closed_early(8)),
        Ok(_) => Err(Refused::silently(
            Refusal::PostgresPreamble,
            "bytes behind an unanswered request",
        )),
        Err(error) => Err(Refused::silently(Refusal::ClosedEarly, error)),
    }
}

/// An agent says nothing behind its preface until the client's first bytes reach it.
async fn dial_back(mut stream: TcpStream, mut bytes: Vec<u8>) -> Result<Greeting, Refused> {
    while bytes.len() < PREFACE_BYTES {
        read_some(&mut stream, &mut bytes).await?;
    }
    let refused = |detail: &dyn std::fmt::Display| Refused::silently(Refusal::DialBack, detail);
    let preface: &[u8; PREFACE_BYTES] = bytes
        .as_slice()
        .try_into()
        .map_err(|_| refused(&"bytes behind the dial-back preface"))?;
    if preface.get(PREFACE_MAGIC.len()) == Some(&POOL_PREFACE_VERSION) {
        let preface = PoolPreface::parse(preface).map_err(|error| refused(&error))?;
        return Ok(Greeting::Pooled(stream, preface));
    }
    let preface = Preface::parse(preface).map_err(|error| refused(&error))?;
    Ok(Greeting::DialBack(stream, preface))
}
