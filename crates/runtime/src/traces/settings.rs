//! Where spans go and which: the `[traces]` section of the servers, and the OpenTelemetry environment of `iapctl`.

use std::fmt;
use std::path::PathBuf;

use http::{HeaderMap, HeaderName, HeaderValue};
use iap_identity::SampleRatio;
use reqwest::Url;
use serde::Deserialize;

use crate::config::ConfigErrors;
use crate::files::{self, FileError};

/// Where OTLP over HTTP takes traces, below a collector's address (OTLP 1.x, "OTLP/HTTP Request").
const PATH: &str = "v1/traces";
/// The only form of OTLP spoken here.
const PROTOCOL: &str = "http/protobuf";

/// The `[traces]` section. Without an endpoint there are no traces.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracesSection {
    /// A collector's address, `http://` or `https://`; `/v1/traces` is added.
    pub endpoint: Option<String>,
    /// The share of connections, and of logins, that is recorded: 0 to 1.
    pub sample: f64,
    /// A file with `name: value` lines that go with each request; nobody else may read it.
    pub headers_file: Option<PathBuf>,
    /// The authorities of an `https` collector, PEM; without it the operating system's.
    pub ca_file: Option<PathBuf>,
}

/// Where spans go and which, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    url: Url,
    ratio: SampleRatio,
    headers: Headers,
    ca_file: Option<PathBuf>,
}

/// What goes with each request.
#[derive(Clone)]
enum Headers {
    None,
    File(PathBuf),
    Given(HeaderMap),
}

/// Why the headers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HeadersError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line is no header. What it says may be a secret and is not repeated.
    #[error("line {line} is no header: write `name: value`")]
    Line {
        /// Counted from 1.
        line: usize,
    },
}

/// What a variable of the environment says cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {why}")]
pub struct EnvironmentError {
    variable: &'static str,
    why: String,
}

impl Default for TracesSection {
    fn default() -> Self {
        Self {
            endpoint: None,
            sample: 1.0,
            headers_file: None,
            ca_file: None,
        }
    }
}

impl TracesSection {
    /// What is wrong with it goes to `errors`; nothing where no traces are wanted.
    pub fn check(self, errors: &mut ConfigErrors) -> Option<Settings> {
        let ratio = SampleRatio::new(self.sample).unwrap_or_else(|error| {
            errors.push("traces.sample", error.to_string());
            SampleRatio::ALL
        });
        let url = match collector(self.endpoint.as_deref()?) {
            Ok(url) => url,
            Err(why) => {
                errors.push("traces.endpoint", why);
                return None;
            }
        };
        if self.headers_file.is_some() && url.scheme() == "http" && !is_loopback(&url) {
            errors.push(
                "traces.headers_file",
                "would go to another machine in the clear: use an https endpoint, or a collector on this machine",
            );
        }
        Some(Settings {
            url,
            ratio,
            headers: self.headers_file.map_or(Headers::None, Headers::File),
            ca_file: self.ca_file,
        })
    }
}

impl Settings {
    /// As the OpenTelemetry specification has it for programs that people start: `OTEL_EXPORTER_OTLP_ENDPOINT` and its
    /// companions. Nothing where they name no collector, or say that there shall be no traces.
    ///
    /// # Errors
    /// When they ask for what cannot be done; then there are no traces.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, EnvironmentError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let environment = Environment(&set);
        if environment.is_off()? {
            return Ok(None);
        }
        let Some(url) = environment.url()? else {
            return Ok(None);
        };
        environment.check_protocol()?;
        Ok(Some(Self {
            url,
            ratio: environment.ratio()?,
            headers: environment.headers()?,
            ca_file: environment
                .one_of([
                    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
                    "OTEL_EXPORTER_OTLP_CERTIFICATE",
                ])
                .map(|(_, path)| path.into()),
        }))
    }

    /// Where requests go.
    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// The share that is recorded.
    pub(super) fn ratio(&self) -> SampleRatio {
        self.ratio
    }

    pub(super) fn ca_file(&self) -> Option<&PathBuf> {
        self.ca_file.as_ref()
    }

    /// What goes with each request.
    pub(super) fn headers(&self) -> Result<HeaderMap, HeadersError> {
        match &self.headers {
            Headers::None => Ok(HeaderMap::new()),
            Headers::Given(headers) => Ok(headers.clone()),
            Headers::File(path) => {
                let text = files::read_private(path)?;
                read_headers(&String::from_utf8_lossy(&text))
            }
        }
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => formatter.write_str("None"),
            Self::File(path) => formatter.debug_tuple("File").field(path).finish(),
            Self::Given(_) => formatter.write_str("Given"),
        }
    }
}

fn read_headers(text: &str) -> Result<HeaderMap, HeadersError> {
    let mut headers = HeaderMap::new();
    let lines = text.lines().enumerate();
    for (index, line) in lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#')) {
        let header = line.split_once(':').and_then(|(name, value)| header(name, value));
        let (name, value) = header.ok_or(HeadersError::Line { line: index + 1 })?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Its value is kept out of every log.
fn header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::try_from(name.trim()).ok()?;
    let mut value = HeaderValue::try_from(value.trim()).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

/// The address of a collector with the path for traces.
fn collector(endpoint: &str) -> Result<Url, String> {
    let mut url = address(endpoint)?;
    let path = format!("{}/{PATH}", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Ok(url)
}

fn address(endpoint: &str) -> Result<Url, String> {
    const WANTED: &str = "write a collector's address, such as \"http://127.0.0.1:4318\"";
    let url = Url::parse(endpoint).map_err(|_| WANTED.to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(WANTED.to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a password: put it into a file of headers".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(WANTED.to_owned());
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let by_address = host.parse::<std::net::IpAddr>().map(|ip| ip.is_loopback());
    by_address.unwrap_or_else(|_| host == "localhost" || host.ends_with(".localhost"))
}

/// Variables that are set to something.
struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    /// The first that is set; the one for traces alone goes before the one for everything.
    fn one_of(&self, names: [&'static str; 2]) -> Option<(&'static str, String)> {
        names
            .into_iter()
            .find_map(|name| (self.0)(name).map(|value| (name, value)))
    }

    fn is_off(&self) -> Result<bool, EnvironmentError> {
        let is_disabled =
            (self.0)("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let variable = "OTEL_TRACES_EXPORTER";
        match (self.0)(variable).as_deref() {
            None | Some("otlp") => Ok(is_disabled),
            Some("none") => Ok(true),
            Some(other) => Err(EnvironmentError {
                variable,
                why: format!("{other:?} is neither otlp nor none"),
            }),
        }
    }

    fn url(&self) -> Result<Option<Url>, EnvironmentError> {
        let named = self.one_of([
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ]);
        let Some((variable, endpoint)) = named else {
            return Ok(None);
        };
        let url = match variable {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => address(&endpoint),
            _ => collector(&endpoint),
        };
        url.map(Some).map_err(|why| EnvironmentError { variable, why })
    }

    fn check_protocol(&self) -> Result<(), EnvironmentError> {
        let named = self.one_of([
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ]);
        match named {
            Some((variable, protocol)) if protocol != PROTOCOL => Err(EnvironmentError {
                variable,
                why: format!("{protocol:?} is not spoken here, only {PROTOCOL}"),
            }),
            Some(_) | None => Ok(()),
        }
    }

    fn ratio(&self) -> Result<SampleRatio, EnvironmentError> {
        let variable = "OTEL_TRACES_SAMPLER";
        let sampler = (self.0)(variable).unwrap_or_default();
        let share = |ratio| {
            SampleRatio::new(ratio).map_err(|error| EnvironmentError {
                variable: "OTEL_TRACES_SAMPLER_ARG",
                why: error.to_string(),
            })
        };
        match sampler.strip_prefix("parentbased_").unwrap_or(&sampler) {
            "" | "always_on" => Ok(SampleRatio::ALL),
            "always_off" => share(0.0),
            "traceidratio" => {
                let argument = (self.0)("OTEL_TRACES_SAMPLER_ARG").unwrap_or_else(|| "1".to_owned());
                share(argument.parse().unwrap_or(f64::NAN))
            }
            _ => Err(EnvironmentError {
                variable,
                why: format!("{sampler:?} is none of always_on, always_off and traceidratio"),
            }),
        }
    }

    fn headers(&self) -> Result<Headers, EnvironmentError> {
        let named = self.one_of(["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"]);
        let Some((variable, text)) = named else {
            return Ok(Headers::None);
        };
        let mut headers = HeaderMap::new();
        for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
            let read = pair
                .split_once('=')
                .and_then(|(name, value)| header(name, &percent_decoded(value)?));
            let (name, value) = read.ok_or_else(|| EnvironmentError {
                variable,
                why: "is not a list of name=value".to_owned(),
            })?;
            headers.append(name, value);
        }
        Ok(Headers::Given(headers))
    }
}

/// RFC 3986 §2.1, as W3C Baggage has values.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = behind;
            continue;
        }
        let digits = std::str::from_utf8(behind.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = behind.get(2..)?;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeMap;

    fn checked(section: TracesSection) -> Result<Option<Settings>, String> {
        let mut errors = ConfigErrors::none("x.toml");
        let settings = section.check(&mut errors);
        errors.into_result(settings).map_err(|errors| errors.to_string())
    }

    fn with(endpoint: &str) -> TracesSection {
        TracesSection {
            endpoint: Some(endpoint.to_owned()),
            ..TracesSection::default()
        }
    }

    fn environment(pairs: &[(&str, &str)]) -> Result<Option<Settings>, EnvironmentError> {
        let variables: BTreeMap<_, _> = pairs.iter().copied().collect();
        Settings::from_environment(|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    #[test]
    fn without_an_endpoint_there_are_no_traces() {
        assert!(checked(TracesSection::default()).unwrap().is_none());
        assert!(environment(&[]).unwrap().is_none());
        assert!(
            environment(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")])
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn the_path_for_traces_is_added_to_a_collectors_address() {
        for (given, url) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("https://otel.example.com/", "https://otel.example.com/v1/traces"),
            (
                "https://o.example.com/otlp",
                "https://o.example.com/otlp/v1/traces",
            ),
        ] {
            assert_eq!(checked(with(given)).unwrap().unwrap().url().as_str(), url);
            let settings = environment(&[("OTEL_EXPORTER_OTLP_ENDPOINT", given)]);
            assert_eq!(settings.unwrap().unwrap().url().as_str(), url);
        }
        let exact = environment(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:1"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:2/x"),
        ]);
        assert_eq!(exact.unwrap().unwrap().url().as_str(), "http://b:2/x");
    }

    #[test]
    fn what_is_no_collectors_address_or_share_is_named_with_its_key() {
        for endpoint in [
            "",
            "127.0.0.1:4318",
            "ftp://x",
            "https://user:pw@x",
            "http://x/?a=b",
        ] {
            let errors = checked(with(endpoint)).unwrap_err();
            assert!(errors.contains("traces.endpoint"), "{endpoint}: {errors}");
        }
        let section = TracesSection {
            sample: 1.5,
            ..TracesSection::default()
        };
        assert!(checked(section).unwrap_err().contains("traces.sample"));
    }

    #[test]
    fn headers_never_go_to_another_machine_in_the_clear() {
        let section = |endpoint| TracesSection {
            headers_file: Some("/etc/iap/otlp-headers".into()),
            ..with(endpoint)
        };
        for fine in [
            "https://otel.example.com",
            "http://127.0.0.1:4318",
            "http://[::1]:4318",
        ] {
            assert!(checked(section(fine)).is_ok(), "{fine}");
        }
        let errors = checked(section("http://otel.example.com:4318")).unwrap_err();
        assert!(errors.contains("traces.headers_file"), "{errors}");
    }

    #[test]
    fn a_file_of_headers_is_read_and_a_mistake_named_by_its_line_alone() {
        let headers = read_headers("# ours\nauthorization: Bearer abc\n\nx-scope: plane\n").unwrap();
        assert_eq!(headers.get("authorization").unwrap(), "Bearer abc");
        assert!(headers.get("authorization").unwrap().is_sensitive());
        assert_eq!(headers.len(), 2);
        let error = read_headers("x-scope: plane\nBearer secret")
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 2") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn the_environment_says_how_much_and_with_what() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        let settings = environment(&[
            endpoint,
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "authorization=Bearer%20abc,x-scope=plane",
            ),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ]);
        let settings = settings.unwrap().unwrap();
        assert_eq!(settings.ratio(), SampleRatio::new(0.25).unwrap());
        assert_eq!(
            settings.headers().unwrap().get("authorization").unwrap(),
            "Bearer abc"
        );
        assert!(!format!("{settings:?}").contains("abc"), "{settings:?}");
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert!(environment(&[endpoint, off]).unwrap().is_none(), "{off:?}");
        }
        let never = environment(&[endpoint, ("OTEL_TRACES_SAMPLER", "always_off")]);
        assert_eq!(never.unwrap().unwrap().ratio(), SampleRatio::new(0.0).unwrap());
    }

    #[test]
    fn what_the_environment_asks_for_and_cannot_be_done_is_named() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        for (variable, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "nonsense"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=%zz"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "nowhere"),
        ] {
            let error = match variable {
                "OTEL_EXPORTER_OTLP_ENDPOINT" => environment(&[(variable, value)]),
                _ => environment(&[endpoint, (variable, value)]),
            };
            let error = error.unwrap_err().to_string();
            assert!(error.starts_with(variable), "{error}");
        }
        let argument = [
            endpoint,
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "all"),
        ];
        assert!(environment(&argument).is_err());
    }
}
