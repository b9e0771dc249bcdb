//! The only way out to an identity provider: bounded in size, time and reach, never redirected.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use openidconnect::url::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Method, StatusCode, redirect};
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::addresses::{Reach, is_localhost, literal};

/// The largest answer read from a provider. The excess is never received.
pub(crate) const RESPONSE_BYTES_MAX: usize = 1024 * 1024;
/// The longest a provider may take for one answer, its body included.
pub(crate) const REQUEST_SECONDS_MAX: u64 = 10;
/// The longest the TCP and TLS handshakes may take.
const CONNECT_SECONDS_MAX: u64 = 5;
/// The longest piece of a provider's answer that is quoted in a log.
const QUOTED_CHARS_MAX: usize = 200;

/// Why a provider could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The address of the endpoint is not one.
    #[error("`{0}` is not a URL")]
    NotUrl(String),
    /// Plain HTTP, or another scheme.
    #[error("`{0}` is not an https address")]
    NotHttps(Url),
    /// The host is, or resolves to, an address that is out of bounds.
    #[error("`{host}` is at a private or reserved address, which is refused")]
    Forbidden {
        /// The host asked for.
        host: String,
    },
    /// The provider answered with a redirect. None is followed: it could lead anywhere.
    #[error("{url} answered {status}, a redirect, which is not followed")]
    Redirected {
        /// What was asked.
        url: Url,
        /// The status.
        status: u16,
    },
    /// The answer is larger than [`RESPONSE_BYTES_MAX`].
    #[error("the answer of {url} is larger than {RESPONSE_BYTES_MAX} bytes")]
    TooLarge {
        /// What was asked.
        url: Url,
    },
    /// No complete answer in time.
    #[error("{url} did not answer within {REQUEST_SECONDS_MAX} seconds")]
    TimedOut {
        /// What was asked.
        url: Url,
    },
    /// No connection, or a broken one.
    #[error("{url} cannot be reached: {why}")]
    Unreachable {
        /// What was asked.
        url: Url,
        /// The innermost cause.
        why: String,
    },
    /// An answer other than 200.
    #[error("{url} answered {status}: {body}")]
    Status {
        /// What was asked.
        url: Url,
        /// The status.
        status: u16,
        /// The beginning of the body.
        body: String,
    },
    /// Not the JSON expected.
    #[error("the answer of {url} is not what it should be: {why}")]
    Unreadable {
        /// What was asked.
        url: Url,
        /// The parser's words.
        why: String,
    },
    /// The HTTP client could not be set up.
    #[error("no HTTP client: {0}")]
    Client(#[source] reqwest::Error),
}

/// An answer of any status but a redirect.
pub(crate) struct Answer {
    pub(crate) url: Url,
    pub(crate) status: StatusCode,
    /// The server's clock, by its `Date` header.
    pub(crate) date: Option<OffsetDateTime>,
    pub(crate) body: Vec<u8>,
}

/// An HTTP client for one connector.
#[derive(Clone, Debug)]
pub(crate) struct Outbound {
    client: reqwest::Client,
    reach: Reach,
}

/// A body of a request: none, or a form.
pub(crate) enum Ask<'a> {
    Get,
    GetWithToken(&'a str),
    PostForm {
        form: &'a [(&'a str, &'a str)],
        basic: Option<(&'a str, &'a str)>,
    },
}

impl Outbound {
    /// A client with the given reach, trusting the operating system's roots.
    ///
    /// # Errors
    /// When those roots cannot be read.
    pub(crate) fn new(reach: Reach) -> Result<Self, OutboundError> {
        Self::with_time(reach, Duration::from_secs(REQUEST_SECONDS_MAX))
    }

    pub(crate) fn with_time(reach: Reach, time: Duration) -> Result<Self, OutboundError> {
        let client = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .timeout(time)
            .connect_timeout(Duration::from_secs(CONNECT_SECONDS_MAX))
            // An HTTP proxy would resolve names itself, and the reach could not be held.
            .no_proxy()
            .referer(false)
            .user_agent(concat!("iap-auth/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Resolver { reach: reach.clone() })
            .build()
            .map_err(OutboundError::Client)?;
        Ok(Self { client, reach })
    }

    /// The JSON document at a URL.
    ///
    /// # Errors
    /// Unless the answer is 200 and the document expected.
    pub(crate) async fn document<T: DeserializeOwned>(
        &self,
        url: &Url,
        ask: Ask<'_>,
    ) -> Result<T, OutboundError> {
        self.send(url, ask).await?.document()
    }

    /// Asks, whatever the status of the answer.
    ///
    /// # Errors
    /// When the URL is out of bounds, or no complete answer of acceptable size came in time.
    pub(crate) async fn send(&self, url: &Url, ask: Ask<'_>) -> Result<Answer, OutboundError> {
        self.check(url)?;
        let request = match ask {
            Ask::Get => self.client.request(Method::GET, url.clone()),
            Ask::GetWithToken(token) => self.client.get(url.clone()).bearer_auth(token),
            Ask::PostForm { form, basic } => {
                let request = self.client.post(url.clone()).form(form);
                match basic {
                    Some((user, password)) => request.basic_auth(user, Some(password)),
                    None => request,
                }
            }
        };
        let response = request
            .header(http::header::ACCEPT, "application/json")
            .send()
            .await
            .map_err(|error| failure(url, &error))?;
        let status = response.status();
        if status.is_redirection() {
            return Err(OutboundError::Redirected {
                url: url.clone(),
                status: status.as_u16(),
            });
        }
        let date = response.headers().get(http::header::DATE);
        let date = date
            .and_then(|date| date.to_str().ok())
            .and_then(|date| OffsetDateTime::parse(date, &Rfc2822).ok());
        let body = read_bounded(url, response).await?;
        Ok(Answer {
            url: url.clone(),
            status,
            date,
            body,
        })
    }

    /// Scheme and literal addresses; names are checked as they are resolved, so that what was checked is
    /// what is dialled.
    pub(crate) fn check(&self, url: &Url) -> Result<(), OutboundError> {
        let host = url.host_str().unwrap_or_default();
        let plain_allowed = url.scheme() == "http" && self.reach.allows_http(host);
        if url.scheme() != "https" && !plain_allowed {
            return Err(OutboundError::NotHttps(url.clone()));
        }
        match literal(host) {
            Some(address) if !self.reach.allows(host, address) => Err(OutboundError::Forbidden {
                host: host.to_owned(),
            }),
            Some(_) | None => Ok(()),
        }
    }
}

impl Answer {
    /// The document in a 200.
    ///
    /// # Errors
    /// For any other status, or other content.
    pub(crate) fn document<T: DeserializeOwned>(self) -> Result<T, OutboundError> {
        if self.status != StatusCode::OK {
            return Err(self.refused());
        }
        serde_json::from_slice(&self.body).map_err(|error| OutboundError::Unreadable {
            url: self.url,
            why: error.to_string(),
        })
    }

    /// The answer as an error that quotes it.
    pub(crate) fn refused(self) -> OutboundError {
        let body = String::from_utf8_lossy(&self.body)
            .chars()
            .take(QUOTED_CHARS_MAX)
            .collect();
        OutboundError::Status {
            url: self.url,
            status: self.status.as_u16(),
            body,
        }
    }
}

async fn read_bounded(url: &Url, mut response: reqwest::Response) -> Result<Vec<u8>, OutboundError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failure(url, &error))? {
        if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
            return Err(OutboundError::TooLarge { url: url.clone() });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn failure(url: &Url, error: &reqwest::Error) -> OutboundError {
    if error.is_timeout() {
        return OutboundError::TimedOut { url: url.clone() };
    }
    let mut cause: &dyn std::error::Error = error;
    loop {
        if let Some(forbidden) = cause.downcast_ref::<ForbiddenName>() {
            return OutboundError::Forbidden {
                host: forbidden.0.clone(),
            };
        }
        match cause.source() {
            Some(source) => cause = source,
            None => {
                return OutboundError::Unreachable {
                    url: url.clone(),
                    why: cause.to_string(),
                };
            }
        }
    }
}

/// Resolves names and keeps the addresses within reach.
struct Resolver {
    reach: Reach,
}

/// A name had addresses, none of them within reach.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` has only private or reserved addresses, which are refused")]
struct ForbiddenName(String);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.reach.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let all = lookup(&host).await?;
            let found = !all.is_empty();
            let within: Vec<SocketAddr> = all
                .into_iter()
                .filter(|address| reach.allows(&host, address.ip()))
                .collect();
            if within.is_empty() && found {
                return Err(ForbiddenName(host).into());
            }
            Ok(Box::new(within.into_iter()) as Addrs)
        })
    }
}

async fn lookup(host: &str) -> Result<Vec<SocketAddr>, std::io::Error> {
    if is_localhost(host) {
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        return Ok(loopback
            .into_iter()
            .map(|address| SocketAddr::new(address, 0))
            .collect());
    }
    Ok(tokio::net::lookup_host((host, 0)).await?.collect())
}
