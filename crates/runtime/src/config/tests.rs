//! What users see when they get their configuration wrong.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::net::{Cidr, HostPort};

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
struct Example {
    cluster: String,
    listen: SocketAddr,
    auth: HostPort,
    #[serde(default)]
    format: Format,
    #[serde(default)]
    proxy_protocol_from: Vec<Cidr>,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    connector: Vec<Connector>,
    web: Option<Web>,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
#[allow(dead_code)]
struct Limits {
    connections_max: u32,
    client_hello_timeout: ConfigDuration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10,
            client_hello_timeout: ConfigDuration::from_secs(5),
        }
    }
}

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
struct Connector {
    name: String,
    issuer: String,
}

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
struct Web {
    certificate: String,
    key: String,
}

const GOOD: &str = r#"
cluster = "iap.example.com"
listen = "0.0.0.0:443"
auth = "localhost:7443"
"#;

fn read(text: &str, environment: &[(&str, &str)]) -> Result<Example, ConfigErrors> {
    let environment = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    parse(text, "proxy.toml", "IAP_PROXY", environment, |value, _| Ok(value))
}

fn keys(errors: &ConfigErrors) -> Vec<&str> {
    let mut keys: Vec<&str> = errors.errors().iter().map(|error| error.key.as_str()).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn a_good_file_is_read_with_its_defaults() {
    let example = read(GOOD, &[]).unwrap();
    assert_eq!(example.limits.client_hello_timeout.get(), Duration::from_secs(5));
    assert_eq!(example.format, Format::Text);
    assert!(example.web.is_none());
}

#[test]
fn every_mistake_is_reported_at_once() {
    let text = r#"
        clustre = "iap.example.com"
        listen = 443
        format = "yaml"
        proxy_protocol_from = ["127.0.0.1/32", "10.0.0.0/99"]
        [limits]
        connections_max = "many"
        client_hello_timeout = "5 parsecs"
        burst = 3
        [[connector]]
        name = "okta"
        issuer = 5
        [[connector]]
        nmae = "entra"
        [web]
        key = "k"
    "#;
    let errors = read(text, &[]).unwrap_err();
    assert_eq!(
        keys(&errors),
        [
            "auth",
            "cluster",
            "clustre",
            "connector.0.issuer",
            "connector.1.issuer",
            "connector.1.name",
            "connector.1.nmae",
            "format",
            "limits.burst",
            "limits.client_hello_timeout",
            "limits.connections_max",
            "listen",
            "proxy_protocol_from.1",
            "web.certificate",
        ],
        "{errors}"
    );
}

#[test]
fn an_unknown_key_names_the_file_the_nearest_key_and_the_allowed_ones() {
    let errors = read(&format!("{GOOD}[limits]\nconnection_max = 3\n"), &[]).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "proxy.toml: limits.connection_max: unknown key; did you mean \"connections_max\"? \
         Allowed here: connections_max, client_hello_timeout"
    );
    let errors = read(&format!("{GOOD}[limits]\nburst = 3\n"), &[]).unwrap_err();
    assert!(
        errors
            .to_string()
            .ends_with("unknown key; allowed here: connections_max, client_hello_timeout")
    );
}

#[test]
fn a_choice_lists_what_may_be_chosen() {
    let errors = read(&format!("format = \"yaml\"\n{GOOD}"), &[]).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "proxy.toml: format: \"yaml\" is not one of text, json"
    );
}

#[test]
fn a_value_in_place_of_a_table_says_which_table_is_meant() {
    let errors = read(&format!("limits = 3\n{GOOD}"), &[]).unwrap_err();
    assert!(
        errors
            .to_string()
            .contains("limits: expected a table with the keys connections_max"),
        "{errors}"
    );
}

#[test]
fn the_environment_overrides_the_file_and_adds_to_it() {
    let environment = [
        ("IAP_PROXY__CLUSTER", "other.example.com"),
        ("IAP_PROXY__LIMITS__CONNECTIONS_MAX", "77"),
        ("IAP_PROXY__PROXY_PROTOCOL_FROM", r#"["10.0.0.0/8"]"#),
        ("IAP_PROXY__CONNECTOR__0__ISSUER", "https://b.example"),
        ("IAP_AUTH__CLUSTER", "not-ours"),
        ("IAP_PROXYX", "not-ours"),
    ];
    let text = format!("{GOOD}[[connector]]\nname = \"okta\"\nissuer = \"https://a.example\"\n");
    let example = read(&text, &environment).unwrap();
    assert_eq!(example.cluster, "other.example.com");
    assert_eq!(example.limits.connections_max, 77);
    assert_eq!(example.proxy_protocol_from.len(), 1);
    assert_eq!(example.connector[0].issuer, "https://b.example");
}

#[test]
fn a_bad_override_names_its_variable() {
    let environment = [
        ("IAP_PROXY__LISTEN", "nowhere"),
        ("IAP_PROXY__CONNECTOR__0__NAME", "x"),
        ("IAP_PROXY__LIMIT__X", "1"),
    ];
    let errors = read(&format!("connector = []\n{GOOD}"), &environment).unwrap_err();
    assert_eq!(keys(&errors), ["connector.0.name", "limit", "listen"]);
    let listen = errors
        .errors()
        .iter()
        .find(|error| error.key == "listen")
        .unwrap();
    assert_eq!(listen.variable.as_deref(), Some("IAP_PROXY__LISTEN"));
}

#[test]
fn a_file_that_is_not_toml_is_reported_with_its_place() {
    let errors = read("cluster = \n", &[]).unwrap_err();
    assert!(
        errors.to_string().starts_with("proxy.toml: ") && errors.to_string().contains("line 1"),
        "{errors}"
    );
}

#[test]
fn a_missing_file_is_named() {
    let errors = load(
        Path::new("/nonexistent/iap.toml"),
        "IAP_PROXY",
        |value: Example, _| Ok(value),
    )
    .unwrap_err();
    assert!(
        errors
            .to_string()
            .starts_with("/nonexistent/iap.toml: cannot open"),
        "{errors}"
    );
}

#[test]
fn durations_need_a_unit() {
    for (text, seconds) in [
        ("0s", 0),
        ("30s", 30),
        ("10m", 600),
        ("4h", 14_400),
        ("7d", 604_800),
    ] {
        assert_eq!(ConfigDuration::parse(text).unwrap().get().as_secs(), seconds);
        assert_eq!(
            ConfigDuration::parse(text).unwrap(),
            ConfigDuration::from_secs(seconds)
        );
    }
    for text in [
        "",
        "30",
        "s",
        "-1s",
        "1.5h",
        "1w",
        "99999999999999999999s",
        "18446744073709551615d",
    ] {
        assert!(ConfigDuration::parse(text).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn durations_and_sizes_are_read_back_as_written(value in 0..u64::from(u32::MAX)) {
        let duration = ConfigDuration::from_millis(value);
        prop_assert_eq!(ConfigDuration::parse(&duration.to_string()).unwrap(), duration);
        let size = ByteSize::from_bytes(value);
        prop_assert_eq!(ByteSize::parse(&size.to_string()).unwrap(), size);
    }

    #[test]
    fn no_text_makes_the_reader_fail_to_end(text in "[a-z_.=\\[\\]\"0-9\n ]{0,200}") {
        let _ = read(&text, &[]);
    }
}
