//! A person at a browser, for the development plane: presses the buttons of the provider's login page and of
//! our approval page over real HTTP. It only ever talks to this machine.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use reqwest::header::{COOKIE, LOCATION, ORIGIN, SET_COOKIE};
use reqwest::{Certificate, Client, Method, Response, Url, redirect};

/// Steps of one login: redirects, two forms, the loopback callback.
const STEPS_MAX: usize = 12;
const STEP_SECONDS_MAX: u64 = 30;
/// The button of the approval page.
const APPROVE: (&str, &str) = ("decision", "approve");

/// Opens a login's URL as a browser would, signs in as `user`, approves, and follows the way back to the
/// waiting program. `cluster` is reached at `address` and trusted by the root in `ca_pem`.
///
/// # Errors
/// When a page is not what it should be; the error quotes what the page says.
pub(crate) async fn log_in(
    url: &str,
    user: &str,
    cluster: &str,
    address: SocketAddr,
    ca_pem: &[u8],
) -> anyhow::Result<()> {
    let mut robot = Robot {
        client: client(cluster, address, ca_pem)?,
        cluster: cluster.to_owned(),
        cookies: BTreeMap::new(),
    };
    let mut step = Step {
        method: Method::GET,
        url: Url::parse(url).context("the login's URL is not one")?,
        form: None,
    };
    for _ in 0..STEPS_MAX {
        match robot.take(step, user).await? {
            Some(next) => step = next,
            None => return Ok(()),
        }
    }
    bail!("the login went in circles: more than {STEPS_MAX} steps")
}

struct Robot {
    client: Client,
    cluster: String,
    /// By host and name.
    cookies: BTreeMap<(String, String), String>,
}

struct Step {
    method: Method,
    url: Url,
    form: Option<Vec<(String, String)>>,
}

impl Robot {
    /// One request; what to do next, or nothing when the waiting program has been told.
    async fn take(&mut self, step: Step, user: &str) -> anyhow::Result<Option<Step>> {
        ensure!(
            self.is_local(&step.url),
            "the login leads away from this machine, to {}",
            step.url
        );
        let delivers = is_callback(&step.url);
        let url = step.url.clone();
        let response = self
            .send(step)
            .await
            .with_context(|| format!("cannot open {}", url.origin().ascii_serialization()))?;
        self.keep_cookies(&url, &response);
        let status = response.status();
        if delivers {
            ensure!(
                status.is_success() || status.is_redirection(),
                "iapctl refused the login: {status}"
            );
            return Ok(None);
        }
        if status.is_redirection() {
            let target = response
                .headers()
                .get(LOCATION)
                .and_then(|target| target.to_str().ok());
            let target = url.join(target.context("a redirect to nowhere")?)?;
            return Ok(Some(Step {
                method: Method::GET,
                url: target,
                form: None,
            }));
        }
        let page = response.text().await?;
        ensure!(status.is_success(), "{}: {}", status, plain_text(&page));
        fill(&url, &page, user).map(Some)
    }

    async fn send(&self, step: Step) -> anyhow::Result<Response> {
        let host = step.url.host_str().unwrap_or_default();
        let cookies: Vec<String> = self
            .cookies
            .iter()
            .filter(|((owner, _), _)| owner == host)
            .map(|((_, name), value)| format!("{name}={value}"))
            .collect();
        let mut request = self.client.request(step.method, step.url.clone());
        if !cookies.is_empty() {
            request = request.header(COOKIE, cookies.join("; "));
        }
        if let Some(form) = &step.form {
            request = request
                .header(ORIGIN, step.url.origin().ascii_serialization())
                .form(form);
        }
        Ok(request.send().await?)
    }

    fn keep_cookies(&mut self, url: &Url, response: &Response) {
        let host = url.host_str().unwrap_or_default();
        for cookie in response.headers().get_all(SET_COOKIE) {
            let pair = cookie
                .to_str()
                .ok()
                .and_then(|text| text.split(';').next()?.split_once('='));
            if let Some((name, value)) = pair {
                self.cookies
                    .insert((host.to_owned(), name.trim().to_owned()), value.trim().to_owned());
            }
        }
    }

    fn is_local(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        host == self.cluster || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

fn client(cluster: &str, address: SocketAddr, ca_pem: &[u8]) -> anyhow::Result<Client> {
    let client = Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        .timeout(Duration::from_secs(STEP_SECONDS_MAX))
        .tls_certs_only([Certificate::from_pem(ca_pem).context("the cluster's root is not a certificate")?])
        // `*.localhost` is not resolved by the system everywhere.
        .resolve(cluster, address);
    Ok(client.build()?)
}

/// The listener of the program that waits: `http://127.0.0.1:PORT/callback`.
fn is_callback(url: &Url) -> bool {
    url.scheme() == "http"
        && url.path() == "/callback"
        && url.query_pairs().any(|(name, _)| name == "login_id")
}

/// Fills the one form of a page: our approval page has an "approve" button, the provider's one for each user.
fn fill(url: &Url, page: &str, user: &str) -> anyhow::Result<Step> {
    let form = page
        .split_once("<form")
        .map(|(_, rest)| rest)
        .and_then(|rest| rest.split_once("</form>"));
    let (form, _) = form.with_context(|| format!("no form on the page: {}", plain_text(page)))?;
    let opening = form
        .split_once('>')
        .map(|(opening, _)| opening)
        .unwrap_or_default();
    let action = attribute(opening, "action").unwrap_or_default();
    let mut fields: Vec<(String, String)> = form
        .split("<input")
        .skip(1)
        .filter_map(|input| {
            Some((
                attribute(input, "name")?,
                attribute(input, "value").unwrap_or_default(),
            ))
        })
        .collect();
    let (name, value) = if form.contains("name=\"user\"") {
        ("user", user)
    } else {
        APPROVE
    };
    fields.push((name.to_owned(), value.to_owned()));
    Ok(Step {
        method: Method::POST,
        url: url.join(&action)?,
        form: Some(fields),
    })
}

/// The value of an attribute written with double quotes, inside the first tag of `text`.
fn attribute(text: &str, name: &str) -> Option<String> {
    let tag = text.split('>').next()?;
    let (_, rest) = tag.split_once(&format!("{name}=\""))?;
    let (value, _) = rest.split_once('"')?;
    Some(unescape(value))
}

fn unescape(text: &str) -> String {
    text.replace("&quot;", "\"")
        .replace("&#39;", "'")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}

/// A page's words, for errors.
fn plain_text(page: &str) -> String {
    let body = page.split_once("<body").map_or(page, |(_, body)| body);
    let words = body
        .split('<')
        .filter_map(|piece| piece.split_once('>').map(|(_, text)| text));
    unescape(
        &words
            .flat_map(str::split_whitespace)
            .collect::<Vec<_>>()
            .join(" "),
    )
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;

    #[test]
    fn it_presses_approve_and_sends_the_hidden_fields() {
        let page = "<body><form method=\"post\" action=\"/login/1/approve\">\
            <input type=\"hidden\" name=\"token\" value=\"a&amp;b\"><button name=\"decision\" value=\"approve\">";
        let page = format!("{page}Approve</button></form></body>");
        let step = fill(
            &Url::parse("https://iap.localhost/login/1").unwrap(),
            &page,
            "alice",
        )
        .unwrap();
        assert_eq!(step.url.path(), "/login/1/approve");
        let expected = [("token", "a&b"), ("decision", "approve")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(step.form.unwrap(), expected);
    }

    #[test]
    fn a_page_without_a_form_is_quoted() {
        let url = Url::parse("https://iap.localhost/").unwrap();
        let error = fill(&url, "<body><h1>Expired</h1> <p>Start again</p></body>", "alice")
            .err()
            .unwrap();
        assert!(error.to_string().contains("Expired Start again"), "{error}");
    }

    #[tokio::test]
    async fn it_does_not_leave_this_machine() {
        let key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::new(Vec::new())
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        let error = log_in(
            "https://example.com/",
            "alice",
            "iap.localhost",
            address,
            root.pem().as_bytes(),
        )
        .await;
        assert!(error.unwrap_err().to_string().contains("leads away"));
    }
}
