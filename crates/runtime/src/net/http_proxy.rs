//! Reaching out through an HTTP proxy with CONNECT (RFC 9110 §9.3.6), as `HTTPS_PROXY` and `NO_PROXY` say.
//!
//! What is sent through it is TLS of ours from end to end, or the preface of a dial-back: the HTTP proxy learns
//! where to, and nothing else.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::no_proxy::NoProxy;
use super::{HostPort, dial};

/// An answer to CONNECT with a longer head is no answer.
pub const ANSWER_HEAD_BYTES_MAX: usize = 8 * 1024;
/// The names of the variable, the first one that is set counts.
pub const PROXY_VARIABLES: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
/// The names of the list of exceptions, the first one that is set counts.
pub const NO_PROXY_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// RFC 9110 §4.2.1.
const HTTP_PORT: u16 = 80;
const REASON_LETTERS_MAX: usize = 120;
const HEAD_END: &[u8] = b"\r\n\r\n";

/// An HTTP proxy, and what it wants to hear. Says its address and never its password.
#[derive(Clone)]
pub struct HttpProxy {
    address: HostPort,
    /// The value of `Proxy-Authorization`.
    authorization: Option<Zeroizing<String>>,
}

/// `HTTPS_PROXY` is set to something that cannot be used. The text holds no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} cannot be used: {reason}; write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")]
pub struct HttpProxyError {
    variable: &'static str,
    reason: &'static str,
}

/// The way to a target, found once and good for further connections to the same place.
#[derive(Debug, Clone)]
pub enum Route {
    /// Straight to the address that answered.
    Direct(SocketAddr),
    /// Through an HTTP proxy, which is told the name.
    Through {
        /// Which.
        proxy: HttpProxy,
        /// Where to.
        target: HostPort,
    },
}

/// The HTTP proxy that this process's environment wants `target` dialled through; `None`: directly.
///
/// # Errors
/// When the variable is set and says nothing usable: dialling directly would go where it was not to go.
pub fn proxied(target: &HostPort) -> Result<Option<HttpProxy>, HttpProxyError> {
    proxied_as(|name| std::env::var(name).ok(), target)
}

/// Connects to `target` within `timeout`, through an HTTP proxy where the environment says so; tells the way, so
/// that the next connection reaches the same machine.
///
/// # Errors
/// When no connection comes about; the text names the HTTP proxy if it was in the way.
pub async fn reach(target: &HostPort, timeout: Duration) -> io::Result<(TcpStream, Route)> {
    match proxied(target).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))? {
        Some(proxy) => {
            let route = Route::Through {
                proxy,
                target: target.clone(),
            };
            let stream = route.connect(timeout).await?;
            Ok((stream, route))
        }
        None => {
            let stream = dial::connect(target, timeout).await?;
            let route = Route::Direct(stream.peer_addr()?);
            Ok((stream, route))
        }
    }
}

impl Route {
    /// Connects by this way within `timeout`.
    ///
    /// # Errors
    /// When no connection comes about.
    pub async fn connect(&self, timeout: Duration) -> io::Result<TcpStream> {
        match self {
            Self::Direct(address) => dial::connect(&HostPort::from(*address), timeout).await,
            Self::Through { proxy, target } => {
                match tokio::time::timeout(timeout, proxy.connect_to(target, timeout)).await {
                    Ok(connected) => connected,
                    Err(_elapsed) => Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!(
                            "{proxy} did not connect to {target} within {} ms",
                            timeout.as_millis()
                        ),
                    )),
                }
            }
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(address) => address.fmt(formatter),
            Self::Through { proxy, target } => write!(formatter, "{target} through {proxy}"),
        }
    }
}

impl HttpProxy {
    /// Where it is.
    pub fn address(&self) -> &HostPort {
        &self.address
    }

    /// The value of `Proxy-Authorization`, for clients that speak to it themselves.
    pub fn authorization(&self) -> Option<&str> {
        self.authorization.as_ref().map(|value| value.as_str())
    }

    fn parse(url: &str) -> Result<Self, &'static str> {
        let rest = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err("only HTTP proxies spoken to in plain HTTP are supported"),
            None => url,
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (credentials, place) = match authority.rsplit_once('@') {
            Some((credentials, place)) => (Some(credentials), place),
            None => (None, authority),
        };
        Ok(Self {
            address: address_of(place).ok_or("it names no host")?,
            authorization: credentials.map(basic).transpose()?,
        })
    }

    async fn connect_to(&self, target: &HostPort, timeout: Duration) -> io::Result<TcpStream> {
        let mut stream = dial::connect(&self.address, timeout)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("{self} cannot be reached: {error}")))?;
        stream.write_all(self.request(target).as_bytes()).await?;
        let head = read_head(&mut stream)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("{self} gave no answer: {error}")))?;
        self.judge(&head, target).map(|()| stream)
    }

    fn request(&self, target: &HostPort) -> Zeroizing<String> {
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(authorization) = &self.authorization {
            request.push_str("Proxy-Authorization: ");
            request.push_str(authorization);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        Zeroizing::new(request)
    }

    fn judge(&self, head: &[u8], target: &HostPort) -> io::Result<()> {
        let Some(Answer { status, reason }) = Answer::parse(head) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{self} does not speak HTTP: is HTTPS_PROXY its address?"),
            ));
        };
        let hint = match status {
            200..=299 => return Ok(()),
            407 if self.authorization.is_some() => {
                ": it does not accept the user and password in HTTPS_PROXY"
            }
            407 => ": put a user and password into HTTPS_PROXY",
            403 => ": ask whoever runs it to allow this target",
            502..=504 => ": it cannot reach the target",
            _ => "",
        };
        let text = format!("{self} refused to connect to {target} with {status} {reason}{hint}");
        Err(io::Error::new(io::ErrorKind::ConnectionRefused, text))
    }
}

impl fmt::Display for HttpProxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the HTTP proxy {}", self.address)
    }
}

impl fmt::Debug for HttpProxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "HttpProxy({})", self.address)
    }
}

/// The first line of an answer (RFC 9112 §4).
struct Answer {
    status: u16,
    reason: String,
}

impl Answer {
    fn parse(head: &[u8]) -> Option<Self> {
        let line = head.split(|byte| *byte == b'\r').next()?;
        let line = std::str::from_utf8(line).ok()?;
        let (version, rest) = line.split_once(' ')?;
        let (status, reason) = rest.split_once(' ').unwrap_or((rest, ""));
        let is_http = version.starts_with("HTTP/1.") && status.len() == 3;
        let shown = |letter: &char| *letter == ' ' || letter.is_ascii_graphic();
        Some(Self {
            status: status.parse().ok().filter(|_| is_http)?,
            reason: reason.chars().filter(shown).take(REASON_LETTERS_MAX).collect(),
        })
    }
}

/// Everything up to the empty line. Nothing of ours talks before it is talked to, so bytes behind it are not a
/// tunnel's.
async fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(512);
    loop {
        if head.ends_with(HEAD_END) {
            return Ok(head);
        }
        if head.len() >= ANSWER_HEAD_BYTES_MAX {
            let text = format!("its head is longer than {ANSWER_HEAD_BYTES_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if head.windows(HEAD_END.len()).any(|window| window == HEAD_END) {
            let text = "it sent bytes ahead of the tunnel";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut chunk = [0; 512];
        let room = chunk.len().min(ANSWER_HEAD_BYTES_MAX - head.len());
        let count = stream.read(chunk.get_mut(..room).unwrap_or_default()).await?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it closed the connection",
            ));
        }
        head.extend_from_slice(chunk.get(..count).unwrap_or_default());
    }
}

fn proxied_as(
    variable: impl Fn(&str) -> Option<String>,
    target: &HostPort,
) -> Result<Option<HttpProxy>, HttpProxyError> {
    let first = |names: [&'static str; 2]| {
        let set = |name| variable(name).map(|value| (name, value.trim().to_owned()));
        names
            .into_iter()
            .filter_map(set)
            .find(|(_, value)| !value.is_empty())
    };
    let Some((name, url)) = first(PROXY_VARIABLES) else {
        return Ok(None);
    };
    let list = first(NO_PROXY_VARIABLES)
        .map(|(_, list)| list)
        .unwrap_or_default();
    if NoProxy::parse(&list).excepts(target) {
        return Ok(None);
    }
    HttpProxy::parse(&url).map(Some).map_err(|reason| HttpProxyError {
        variable: name,
        reason,
    })
}

fn address_of(place: &str) -> Option<HostPort> {
    if let Ok(address) = HostPort::parse(place) {
        return Some(address);
    }
    let bare = place.strip_prefix('[').and_then(|place| place.strip_suffix(']'));
    HostPort::new(bare.unwrap_or(place), HTTP_PORT).ok()
}

/// RFC 7617 §2, from the percent-encoded user and password of a URL.
fn basic(credentials: &str) -> Result<Zeroizing<String>, &'static str> {
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let mut pair = Zeroizing::new(percent_decoded(user)?);
    if pair.contains(&b':') {
        return Err("its user holds a colon");
    }
    pair.push(b':');
    pair.extend(percent_decoded(password)?);
    if pair.iter().any(u8::is_ascii_control) {
        return Err("its user or password holds a control character");
    }
    Ok(Zeroizing::new(format!("Basic {}", STANDARD.encode(&*pair))))
}

fn percent_decoded(text: &str) -> Result<Vec<u8>, &'static str> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            decoded.push(*first);
            continue;
        }
        let hex = |digit: u8| {
            char::from(digit)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        let [high, low, tail @ ..] = rest else {
            return Err("its user or password ends in a percent sign");
        };
        let (Some(high), Some(low)) = (hex(*high), hex(*low)) else {
            return Err(
                "its user or password holds a percent sign that is not followed by two hexadecimal digits",
            );
        };
        decoded.push(high << 4 | low);
        rest = tail;
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests;
