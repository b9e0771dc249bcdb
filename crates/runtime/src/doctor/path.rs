//! The way to a proxy: name, route, UDP, and who ends the TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin as Pinned;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use iap_identity::verify::FirstContactError;
use iap_identity::{ClusterName, PeerError, Pin, ServerName, verify_first_contact};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UdpSocket};

use super::{Finding, clock};
use crate::net::{self, HostPort};
use crate::rpc::ALPN_H2;
use crate::tls;
use crate::tls::Presented;

const CONNECT_SECONDS_MAX: Duration = Duration::from_secs(5);
const HANDSHAKE_SECONDS_MAX: Duration = Duration::from_secs(10);
const UDP_ANSWER_SECONDS_MAX: Duration = Duration::from_secs(2);
/// The second, so that a web server shows its certificate instead of refusing for want of a protocol.
const OFFERED: &[&str] = &[ALPN_H2, "http/1.1"];
/// How much of a server's first words is kept to recognise them.
const FIRST_WORDS_BYTES_MAX: usize = 16;
const QUIC_DATAGRAM_BYTES: usize = 1200;

/// What is to be reached, and how its right end is recognised.
#[derive(Debug, Clone)]
pub struct Target {
    /// A proxy of the cluster, or a balancer before them.
    pub address: HostPort,
    /// The cluster.
    pub cluster: ClusterName,
    /// Its root.
    pub pin: Pin,
    /// The setting or file that names the address: where a wrong one is put right.
    pub named_in: String,
}

/// Checks the way to a proxy step by step; a step that fails makes the later ones pointless.
pub async fn check_path(target: &Target) -> Vec<Finding> {
    check_way(target, true).await
}

/// The same to where nobody listens on UDP: the auth server itself, or a proxy without QUIC.
pub async fn check_server(target: &Target) -> Vec<Finding> {
    check_way(target, false).await
}

/// The certificates that whoever answers at `address` for `host` and one of the ALPN `protocols` presents; none proves
/// anything yet.
///
/// # Errors
/// When nobody answers, or nobody presents any.
pub async fn presented(
    address: &HostPort,
    host: &str,
    protocols: &[&str],
) -> io::Result<Vec<CertificateDer<'static>>> {
    let stream = net::connect(address, CONNECT_SECONDS_MAX).await?;
    let presented = Presented::new();
    let config =
        tls::client_config(Arc::clone(&presented) as _, None, protocols).map_err(io::Error::other)?;
    // What becomes of the handshake does not matter: the certificates come before the server wants any.
    let outcome = tls::connect(stream, host, config, HANDSHAKE_SECONDS_MAX).await;
    match (presented.chain(), outcome) {
        (chain, _) if !chain.is_empty() => Ok(chain),
        (_, Err(error)) => Err(io::Error::other(error)),
        (_, Ok(_)) => Err(io::Error::other("no certificate was presented")),
    }
}

async fn check_way(target: &Target, over_udp: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let addresses = match net::resolve(target.address.host(), target.address.port()).await {
        Ok(addresses) if !addresses.is_empty() => addresses,
        resolved => {
            findings.push(unresolved(target, resolved.err()));
            return findings;
        }
    };
    findings.push(resolved(target, &addresses));
    let (reached, finding) = check_tcp(target, &addresses).await;
    findings.push(finding);
    let Some(stream) = reached else {
        return findings;
    };
    let peer = stream.peer_addr().ok();
    let (is_right, finding) = check_tls(target, stream).await;
    findings.push(finding);
    if let Some(peer) = peer.filter(|_| over_udp) {
        findings.push(check_udp(peer).await);
    }
    if is_right {
        findings.push(clock::check(target).await);
    }
    findings
}

fn unresolved(target: &Target, error: Option<io::Error>) -> Finding {
    let host = target.address.host();
    let why = error.map_or_else(|| "it has no address".to_owned(), |error| error.to_string());
    Finding::failed(
        "dns",
        format!("{host} does not resolve: {why}"),
        format!(
            "add an A or AAAA record for {host} (try `getent ahosts {host}`), or correct {}",
            target.named_in
        ),
    )
}

fn resolved(target: &Target, addresses: &[SocketAddr]) -> Finding {
    let (four, six): (Vec<_>, Vec<_>) = addresses.iter().partition(|address| address.is_ipv4());
    let list = |addresses: Vec<&SocketAddr>, kind: &str| match addresses.is_empty() {
        true => format!("no {kind}"),
        false => {
            let texts: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
            format!("{kind} {}", texts.join(" "))
        }
    };
    Finding::ok(
        "dns",
        format!(
            "{}: {}, {}",
            target.address.host(),
            list(four, "A"),
            list(six, "AAAA")
        ),
    )
}

async fn check_tcp(target: &Target, addresses: &[SocketAddr]) -> (Option<TcpStream>, Finding) {
    let mut reached = None;
    let mut failures = Vec::new();
    for address in addresses {
        let connecting = tokio::time::timeout(CONNECT_SECONDS_MAX, TcpStream::connect(address));
        match connecting.await {
            Ok(Ok(stream)) => reached = reached.or(Some(stream)),
            Ok(Err(error)) => failures.push(format!("{address}: {error}")),
            Err(_) => failures.push(format!(
                "{address}: no answer within {} s",
                CONNECT_SECONDS_MAX.as_secs()
            )),
        }
    }
    let port = target.address.port();
    let open = format!(
        "start the proxy, and let TCP {port} through on the way (try `nc -vz {} {port}`)",
        target.address.host()
    );
    let finding = match (&reached, failures.is_empty()) {
        (Some(_), true) => Finding::ok("tcp", format!("{} answers on every address", target.address)),
        (Some(_), false) => Finding::warning(
            "tcp",
            format!("some addresses fail: {}", failures.join("; ")),
            open,
        ),
        (None, _) => Finding::failed("tcp", failures.join("; "), open),
    };
    (reached, finding)
}

/// Whether the other end is the cluster's, and what was found.
async fn check_tls(target: &Target, stream: TcpStream) -> (bool, Finding) {
    let host = ServerName::Auth.host(&target.cluster);
    let presented = Presented::new();
    let config = match tls::client_config(Arc::clone(&presented) as _, None, OFFERED) {
        Ok(config) => config,
        Err(error) => return (false, Finding::failed("tls", error.to_string(), "report this")),
    };
    let mut stream = FirstWords::of(stream);
    let outcome = tls::connect(&mut stream, &host, config, HANDSHAKE_SECONDS_MAX).await;
    let alpn = match &outcome {
        Ok(connected) => Some(connected.get_ref().1.alpn_protocol() == Some(ALPN_H2.as_bytes())),
        Err(_) => None,
    };
    let failure = outcome.err().map(|error| error.to_string());
    let chain = presented.chain();
    if chain.is_empty() {
        let failure = failure.unwrap_or_default();
        return (false, no_certificate(target, stream.first_words(), &failure));
    }
    let now = OffsetDateTime::now_utc();
    match verify_first_contact(&chain, &ServerName::Auth, &target.pin, &target.cluster, now) {
        Ok(_) if alpn == Some(false) => (true, stripped(target)),
        Ok(_) => {
            let detail = format!("{host} is the cluster's own, end to end");
            (true, Finding::ok("tls", detail))
        }
        Err(FirstContactError::Peer(error @ (PeerError::Expired { .. } | PeerError::NotYetValid { .. }))) => {
            (
                true,
                Finding::failed(
                    "clock",
                    format!("{error}, says this machine's clock ({now})"),
                    "set the clock: `timedatectl set-ntp true`; if it is right, restart iap-auth",
                ),
            )
        }
        Err(error) => (false, foreign(target, &chain, &error.to_string())),
    }
}

/// The balancer speaks TLS to us, yet not the protocol we offered.
fn stripped(target: &Target) -> Finding {
    Finding::failed(
        "balancer",
        format!("ALPN {ALPN_H2:?} was offered to {} and not taken", target.address),
        "have whatever stands before the proxies pass TCP through, without looking into TLS",
    )
}

fn no_certificate(target: &Target, first_words: &[u8], failure: &str) -> Finding {
    let address = &target.address;
    if first_words.starts_with(b"HTTP/") {
        return Finding::failed(
            "balancer",
            format!("{address} answers TLS with plain HTTP: an HTTP balancer or web server stands there"),
            format!(
                "have it pass TCP through on port {} (nginx: a `stream` server; HAProxy: `mode tcp`; cloud: a layer 4 balancer), or correct {}",
                address.port(),
                target.named_in
            ),
        );
    }
    if failure.contains("ProtocolVersion") {
        return Finding::failed(
            "balancer",
            format!(
                "{address} speaks no TLS 1.3, as every part of {} does: something else ends TLS there",
                target.cluster
            ),
            "have the balancer pass TCP through (layer 4): sessions are encrypted end to end and cannot be ended on the way",
        );
    }
    let hint = match failure.contains("UnrecognisedName") || failure.contains("InternalError") {
        true => format!(
            "a proxy is there but does not reach an auth server of {}: check `auth` in its file and its /readyz, or correct {}",
            target.cluster, target.named_in
        ),
        false => format!(
            "see that {address} is a proxy of {} and that nothing on the way breaks TLS 1.3 (try `openssl s_client -connect {address} -servername {})",
            target.cluster,
            ServerName::Auth.host(&target.cluster) + "`"
        ),
    };
    Finding::failed("tls", format!("no TLS handshake with {address}: {failure}"), hint)
}

/// A certificate, but not the cluster's: somebody else ends the TLS.
fn foreign(target: &Target, chain: &[CertificateDer<'_>], error: &str) -> Finding {
    let (issuer, names) = describe(chain);
    let for_cluster = names.iter().any(|name| {
        let cluster = target.cluster.as_str();
        name == cluster || name.strip_prefix("*.") == Some(cluster) || name.ends_with(&format!(".{cluster}"))
    });
    let detail = format!(
        "{} shows a certificate for {} by {issuer}, not the cluster's ({error})",
        target.address,
        names.join(" ")
    );
    match for_cluster {
        true => Finding::failed(
            "balancer",
            format!("{detail}: TLS for this cluster's name is ended before the proxy"),
            "have the balancer pass TCP through (layer 4): sessions are encrypted end to end and cannot be ended on the way",
        ),
        false => Finding::failed(
            "interception",
            format!("{detail}: TLS is intercepted, or another server stands there"),
            format!(
                "exempt {} and *.{} from TLS inspection, or correct {} or the pin",
                target.cluster, target.cluster, target.named_in
            ),
        ),
    }
}

fn describe(chain: &[CertificateDer<'_>]) -> (String, Vec<String>) {
    use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
    let unreadable = || ("somebody whose certificate cannot be read".to_owned(), Vec::new());
    let Some(Ok((_, leaf))) = chain.first().map(|der| X509Certificate::from_der(der)) else {
        return unreadable();
    };
    let alternatives = leaf.subject_alternative_name().ok().flatten();
    let names = alternatives
        .iter()
        .flat_map(|names| names.value.general_names.iter());
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    let mut names: Vec<String> = names.take(5).collect();
    if names.is_empty() {
        names.push(leaf.subject().to_string());
    }
    (leaf.issuer().to_string(), names)
}

/// Whether a QUIC server answers: it must, to a version that it does not know (RFC 9000 §6.1).
pub(super) async fn check_udp(peer: SocketAddr) -> Finding {
    match tokio::time::timeout(UDP_ANSWER_SECONDS_MAX, quic_answers(peer)).await {
        Ok(Ok(())) => Finding::ok("udp", format!("QUIC answers on UDP {}", peer.port())),
        Ok(Err(error)) => udp_closed(peer, &error.to_string()),
        Err(_) => udp_closed(peer, "no answer"),
    }
}

fn udp_closed(peer: SocketAddr, why: &str) -> Finding {
    let port = peer.port();
    Finding::warning(
        "udp",
        format!("no QUIC on UDP {port} ({why}): agents' control connections use TCP"),
        format!("let UDP {port} through to the proxy for connections that survive a change of address"),
    )
}

async fn quic_answers(peer: SocketAddr) -> io::Result<()> {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(peer).await?;
    socket.send(&unknown_version()).await?;
    let mut answer = [0; QUIC_DATAGRAM_BYTES];
    loop {
        let count = socket.recv(&mut answer).await?;
        // Long header, version 0: version negotiation (RFC 9000 §17.2.1).
        let answer = answer.get(..count).unwrap_or_default();
        let is_long = answer.first().is_some_and(|byte| byte & 0x80 != 0);
        if is_long && answer.get(1..5) == Some(&[0; 4]) {
            return Ok(());
        }
    }
}

/// A long header of a version reserved for this purpose (RFC 9000 §15), padded as first datagrams are.
fn unknown_version() -> Vec<u8> {
    let mut datagram = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8];
    datagram.extend([0x11; 8]);
    datagram.push(8);
    datagram.extend([0x22; 8]);
    datagram.resize(QUIC_DATAGRAM_BYTES, 0);
    datagram
}

/// Keeps the first bytes that the other side says.
struct FirstWords {
    stream: TcpStream,
    said: Vec<u8>,
}

impl FirstWords {
    fn of(stream: TcpStream) -> Self {
        Self {
            stream,
            said: Vec::new(),
        }
    }

    fn first_words(&self) -> &[u8] {
        &self.said
    }
}

impl AsyncRead for FirstWords {
    fn poll_read(
        self: Pinned<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pinned::new(&mut this.stream).poll_read(context, buffer))?;
        let new = buffer.filled().get(before..).unwrap_or_default();
        let room = FIRST_WORDS_BYTES_MAX.saturating_sub(this.said.len());
        this.said.extend(new.iter().take(room));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FirstWords {
    fn poll_write(
        self: Pinned<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pinned::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pinned<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pinned::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pinned<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pinned::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
