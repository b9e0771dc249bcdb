//! Cookies as browsers keep them (RFC 6265 §5), as far as logins need it.

use anyhow::{Context, ensure};
use reqwest::Url;
use reqwest::header::{HeaderMap, SET_COOKIE};

#[derive(Clone, Default)]
pub(super) struct Jar(Vec<Cookie>);

#[derive(Clone)]
struct Cookie {
    name: String,
    value: String,
    host: String,
    path: String,
    secure: bool,
}

impl Jar {
    /// The `Cookie` header for a request.
    pub(super) fn header(&self, url: &Url) -> Option<String> {
        let pairs: Vec<String> = self
            .0
            .iter()
            .filter(|cookie| cookie.goes_to(url))
            .map(|cookie| format!("{}={}", cookie.name, cookie.value))
            .collect();
        (!pairs.is_empty()).then(|| pairs.join("; "))
    }

    /// Keeps what an answer sets. A cookie that a browser would drop is an error: a test would miss it.
    pub(super) fn keep(&mut self, url: &Url, headers: &HeaderMap) -> anyhow::Result<()> {
        for header in headers.get_all(SET_COOKIE) {
            let (cookie, expired) = Cookie::parse(url, header.to_str()?)?;
            self.0.retain(|kept| !kept.is_same(&cookie));
            if !expired {
                self.0.push(cookie);
            }
        }
        Ok(())
    }
}

impl Cookie {
    /// The cookie, and whether it is set only to be deleted.
    fn parse(url: &Url, header: &str) -> anyhow::Result<(Self, bool)> {
        let mut parts = header.split(';').map(str::trim);
        let pair = parts.next().and_then(|pair| pair.split_once('='));
        let (name, value) = pair.with_context(|| format!("`{header}` is no cookie"))?;
        let attributes: Vec<(String, &str)> = parts
            .map(|part| part.split_once('=').unwrap_or((part, "")))
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .collect();
        let attribute = |wanted: &str| {
            attributes
                .iter()
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| *value)
        };
        let path = attribute("path").unwrap_or("/").to_owned();
        let secure = attribute("secure").is_some();
        if name.starts_with("__Host-") {
            let whole_host = path == "/" && attribute("domain").is_none();
            ensure!(
                secure && whole_host && url.scheme() == "https",
                "a browser drops the cookie `{header}`"
            );
        }
        ensure!(
            !secure || url.scheme() == "https",
            "a browser drops the secure cookie `{header}`"
        );
        let expired = attribute("max-age").is_some_and(|age| age.parse::<i64>().is_ok_and(|age| age <= 0))
            || attribute("expires").is_some_and(|date| date.contains("1970"));
        let host = url.host_str().unwrap_or_default().to_owned();
        Ok((
            Self {
                name: name.to_owned(),
                value: value.to_owned(),
                host,
                path,
                secure,
            },
            expired,
        ))
    }

    fn is_same(&self, other: &Self) -> bool {
        self.name == other.name && self.host == other.host && self.path == other.path
    }

    fn goes_to(&self, url: &Url) -> bool {
        let path = url.path();
        let below = path == self.path
            || path.starts_with(&self.path)
                && (self.path.ends_with('/')
                    || path
                        .strip_prefix(&self.path)
                        .is_some_and(|rest| rest.starts_with('/')));
        url.host_str() == Some(&self.host) && below && (!self.secure || url.scheme() == "https")
    }
}
