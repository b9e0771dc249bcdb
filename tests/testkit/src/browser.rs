//! A browser without a screen: keeps cookies, follows redirects one by one, fills forms, over real HTTP.
//!
//! It obeys what real browsers obey where a login depends on it: cookies by host, path and `Secure`, the
//! `__Host-` prefix, `Origin` on every POST (`null` from pages that asked for no referrer), and a page's
//! `form-action`, redirects included.

mod cookies;
mod forms;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reqwest::header::{CONTENT_SECURITY_POLICY, COOKIE, HeaderMap, LOCATION, ORIGIN, REFERRER_POLICY};
use reqwest::{Certificate, Client, Method, StatusCode, Url, redirect};

use cookies::Jar;
pub use forms::Form;

const REDIRECTS_MAX: usize = 12;
const ANSWER_SECONDS_MAX: u64 = 40;
/// Login and consent pages until the provider lets go.
const PROVIDER_PAGES_MAX: usize = 6;

/// A browser with its cookies.
pub struct Browser {
    client: Client,
    jar: Jar,
    /// Where redirects are no longer followed.
    stop_before: Option<String>,
}

/// What came back last.
#[derive(Debug)]
pub struct Page {
    /// Where it is.
    pub url: Url,
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its source; empty for a redirect that was not followed.
    pub body: String,
    /// A redirect that was not followed.
    pub next: Option<Url>,
}

impl Browser {
    /// A browser that trusts one root (PEM) and finds these hosts at these addresses.
    pub fn new(root_pem: Option<&[u8]>, hosts: &[(&str, SocketAddr)]) -> anyhow::Result<Self> {
        let roots = root_pem
            .map(Certificate::from_pem)
            .transpose()
            .context("the root is not a certificate")?;
        let mut client = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .timeout(Duration::from_secs(ANSWER_SECONDS_MAX))
            .tls_certs_only(roots);
        for (host, address) in hosts {
            client = client.resolve(host, *address);
        }
        Ok(Self {
            client: client.build()?,
            jar: Jar::default(),
            stop_before: None,
        })
    }

    /// Redirects to URLs that begin like this are shown in [`Page::next`] instead of followed.
    pub fn stop_before(mut self, prefix: &str) -> Self {
        self.stop_before = Some(prefix.to_owned());
        self
    }

    /// The same browser without a single cookie.
    pub fn without_cookies(&self) -> Self {
        Self {
            client: self.client.clone(),
            jar: Jar::default(),
            stop_before: self.stop_before.clone(),
        }
    }

    /// Types a URL.
    pub async fn open(&mut self, url: &str) -> anyhow::Result<Page> {
        let url = Url::parse(url).with_context(|| format!("`{url}` is not a URL"))?;
        self.walk(Method::GET, url, None, None).await
    }

    /// Sends the page's form with these fields in addition to its own.
    pub async fn submit(&mut self, page: &Page, fields: &[(&str, &str)]) -> anyhow::Result<Page> {
        let form = page.form()?;
        let url = page.url.join(&form.action)?;
        let mut all = form.fields;
        for (name, value) in fields {
            all.retain(|(existing, _)| existing != name);
            all.push(((*name).to_owned(), (*value).to_owned()));
        }
        self.walk(Method::POST, url, Some(all), Some(page)).await
    }

    /// Follows the first link whose address contains `part`.
    pub async fn follow(&mut self, page: &Page, part: &str) -> anyhow::Result<Page> {
        let link = forms::links(&page.body)
            .into_iter()
            .find(|link| link.contains(part));
        let link = link.with_context(|| format!("no link with `{part}` on the page: {}", page.text()))?;
        self.walk(Method::GET, page.url.join(&link)?, None, None).await
    }

    /// Signs in at a provider (ours for development, or npm `oidc-provider`) and consents, until another
    /// host's page is reached.
    pub async fn sign_in(&mut self, mut page: Page, user: &str) -> anyhow::Result<Page> {
        let provider = page.url.origin();
        for _ in 0..PROVIDER_PAGES_MAX {
            if page.url.origin() != provider || page.next.is_some() {
                return Ok(page);
            }
            ensure!(
                page.status.is_success(),
                "the provider says {}: {}",
                page.status,
                page.text()
            );
            let fields: &[(&str, &str)] = if page.body.contains("name=\"login\"") {
                &[("login", user), ("password", "any")]
            } else if page.body.contains("name=\"user\"") {
                &[("user", user)]
            } else {
                &[]
            };
            page = self.submit(&page, fields).await?;
        }
        bail!("the provider shows page after page, lastly: {}", page.text())
    }

    /// Presses "approve" on our approval page.
    pub async fn approve(&mut self, page: &Page) -> anyhow::Result<Page> {
        ensure!(
            page.body.contains("value=\"approve\""),
            "this is no approval page: {}",
            page.text()
        );
        self.submit(page, &[("decision", "approve")]).await
    }

    async fn walk(
        &mut self,
        mut method: Method,
        mut url: Url,
        mut form: Option<Vec<(String, String)>>,
        from: Option<&Page>,
    ) -> anyhow::Result<Page> {
        for _ in 0..REDIRECTS_MAX {
            if let Some(page) = from {
                ensure!(
                    page.lets_forms_go_to(&url),
                    "the page's form-action forbids {url}"
                );
            }
            let page = self.request(&method, &url, form.as_deref(), from).await?;
            let Some(next) = page.next.clone() else {
                return Ok(page);
            };
            if self
                .stop_before
                .as_deref()
                .is_some_and(|prefix| next.as_str().starts_with(prefix))
            {
                return Ok(page);
            }
            (method, url, form) = (Method::GET, next, None);
        }
        bail!("more than {REDIRECTS_MAX} redirects, lastly to {url}")
    }

    async fn request(
        &mut self,
        method: &Method,
        url: &Url,
        form: Option<&[(String, String)]>,
        from: Option<&Page>,
    ) -> anyhow::Result<Page> {
        let mut request = self.client.request(method.clone(), url.clone());
        if let Some(cookies) = self.jar.header(url) {
            request = request.header(COOKIE, cookies);
        }
        if let Some(form) = form {
            request = request.form(form);
            request = request.header(
                ORIGIN,
                from.map_or_else(|| "null".to_owned(), Page::origin_of_posts),
            );
        }
        let response = request
            .send()
            .await
            .with_context(|| format!("cannot open {url}"))?;
        let (status, headers) = (response.status(), response.headers().clone());
        self.jar.keep(url, &headers)?;
        let next = match (status.is_redirection(), headers.get(LOCATION)) {
            (true, Some(location)) => Some(url.join(location.to_str()?)?),
            (true, None) => bail!("{url} redirects to nowhere"),
            (false, _) => None,
        };
        let body = if next.is_some() {
            String::new()
        } else {
            response.text().await?
        };
        Ok(Page {
            url: url.clone(),
            status,
            headers,
            body,
            next,
        })
    }
}

impl Page {
    /// The first form.
    pub fn form(&self) -> anyhow::Result<Form> {
        forms::first(&self.body).with_context(|| format!("no form on {}: {}", self.url, self.text()))
    }

    /// The words a person reads.
    pub fn text(&self) -> String {
        forms::text(&self.body)
    }

    /// What a parameter of the URL, or of the redirect that was not followed, says.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let url = self.next.as_ref().unwrap_or(&self.url);
        url.query_pairs()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.into_owned())
    }

    /// Fetch §3.2: a page without referrer has no origin to name either.
    fn origin_of_posts(&self) -> String {
        match self.header(REFERRER_POLICY.as_str()) {
            Some("no-referrer") => "null".to_owned(),
            Some(_) | None => self.url.origin().ascii_serialization(),
        }
    }

    fn lets_forms_go_to(&self, target: &Url) -> bool {
        let policy = self.header(CONTENT_SECURITY_POLICY.as_str()).unwrap_or_default();
        let sources = policy
            .split(';')
            .find_map(|directive| directive.trim().strip_prefix("form-action "));
        sources.is_none_or(|sources| {
            let origin = target.origin().ascii_serialization();
            sources.split(' ').any(|source| match source {
                "'self'" => self.url.origin() == target.origin(),
                other => other == origin,
            })
        })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}
