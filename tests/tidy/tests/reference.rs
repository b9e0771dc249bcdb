//! The reference pages say what the code says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeSet;

use iap_audit::EventKind;
use iap_identity::names::RESERVED_LABELS;
use iap_identity::server_name::SERVER_NAME_BYTES_MAX;
use iap_identity::{IDENTITY_EXTENSION_BYTES_MAX, IDENTITY_EXTENSION_OID, SignedKind};
use iap_tunnel::control::{CONTROL_FRAME_BYTES_MAX, CONTROL_VERSION};
use iap_tunnel::preface::{POOL_PREFACE_VERSION, PREFACE_BYTES, PREFACE_MAGIC, PREFACE_VERSION, TOKEN_BYTES};
use iap_tunnel::watch::WATCH_AHEAD_BYTES_MAX;
use iap_tunnel::{
    ALPN_CONTROL, ALPN_DATA, ALPN_IAP, ALPN_WATCH, DataOffer, FRAME_BYTES_MAX, WATCH_FRAME_BYTES_MAX,
};

fn page(name: &str) -> String {
    std::fs::read_to_string(iap_tidy::root().join("docs").join(name)).unwrap()
}

#[test]
fn every_event_stands_in_the_event_reference_with_its_code() {
    let page = page("events.md");
    for kind in EventKind::ALL {
        let row = format!("| `{}` | `{}` |", kind.as_str(), kind.code());
        assert!(page.contains(&row), "docs/events.md lacks the row {row}");
    }
    let rows = page.lines().filter(|line| {
        let mut cells = line.split('`').skip(1).step_by(2);
        line.starts_with("| `") && cells.next().is_some_and(|name| name.contains('.'))
    });
    for row in rows {
        let name = row.split('`').nth(1).unwrap();
        assert!(
            EventKind::parse(name).is_some(),
            "docs/events.md knows an event {name} that the code does not"
        );
    }
}

/// The words behind `=>` in one `impl` of a file: enums with a fixed vocabulary have no list of their own.
fn words_of(file: &str, opening: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(iap_tidy::root().join(file)).unwrap();
    let (_, rest) = text
        .split_once(opening)
        .unwrap_or_else(|| panic!("{file} has no {opening}"));
    let body = rest.split("\n}\n").next().unwrap();
    let arms = body.lines().filter_map(|line| line.split_once("=> \""));
    arms.filter_map(|(_, word)| word.strip_suffix("\","))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_reason_for_an_end_or_a_denial_stands_in_the_event_reference() {
    let page = page("events.md");
    let reasons = words_of("crates/audit/src/event.rs", "impl CloseReason {");
    let denials = words_of("crates/policy/src/decision.rs", "impl DenialCode {");
    assert!(reasons.len() > 10 && denials.len() > 4, "{reasons:?} {denials:?}");
    for word in reasons.union(&denials) {
        assert!(
            page.contains(&format!("`{word}`")),
            "docs/events.md lacks `{word}`"
        );
    }
}

#[test]
fn the_protocol_page_has_the_names_and_numbers_of_the_code() {
    let page = page("protocol.md");
    let magic = std::str::from_utf8(&PREFACE_MAGIC).unwrap();
    let mut sentences = vec![
        format!("## `{ALPN_IAP}`"),
        format!("On ALPN `{ALPN_CONTROL}`"),
        format!("sends {PREFACE_BYTES} bytes"),
        format!("| {} | `{magic}` |", PREFACE_MAGIC.len()),
        format!(
            "| 1 | version, {PREFACE_VERSION}; of a connection that waits for a client, {POOL_PREFACE_VERSION} |"
        ),
        format!(
            "| {TOKEN_BYTES} | token, from `Open`: {} random bits",
            TOKEN_BYTES * 8
        ),
        format!("big-endian, at most {CONTROL_FRAME_BYTES_MAX})"),
        format!("the newest version it speaks, {CONTROL_VERSION} today"),
        format!("sessions can run over: `{}`", DataOffer::OWN),
        format!("ALPN `{ALPN_DATA}`"),
        format!("## `{ALPN_WATCH}`"),
        format!("big-endian, at most {WATCH_FRAME_BYTES_MAX})"),
        format!("while {WATCH_AHEAD_BYTES_MAX} bytes or more"),
        format!("big-endian, at most {FRAME_BYTES_MAX})"),
        format!("OID `{IDENTITY_EXTENSION_OID}`"),
        format!("at most {IDENTITY_EXTENSION_BYTES_MAX} bytes, one encoding"),
        format!("at most {SERVER_NAME_BYTES_MAX} bytes"),
    ];
    let kinds = [
        SignedKind::Snapshot,
        SignedKind::Beat,
        SignedKind::Locks,
        SignedKind::Bundle,
        SignedKind::AuditHead,
    ];
    sentences.extend(kinds.iter().map(|kind| format!("`{}`", kind.as_str())));
    let extensions = "crates/runtime/src/proxy_protocol/extensions.rs";
    let extensions = std::fs::read_to_string(iap_tidy::root().join(extensions)).unwrap();
    let kinds = extensions
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split_once(": u8 = "));
    let kinds: Vec<_> = kinds
        .map(|(_, kind)| format!("| `{}` |", kind.trim_end_matches(';')))
        .collect();
    assert!(kinds.len() > 5, "{kinds:?}");
    sentences.extend(kinds);
    sentences.extend(RESERVED_LABELS.iter().map(|label| format!("`{label}`")));
    // A line's end is as good as a space.
    let flowing = page.replace('\n', " ");
    for sentence in sentences {
        assert!(
            flowing.contains(&sentence),
            "docs/protocol.md no longer says: {sentence}"
        );
    }
}

#[test]
fn the_identity_extension_is_documented_as_the_code_has_it() {
    let code = std::fs::read_to_string(iap_tidy::root().join("crates/identity/src/extension.rs")).unwrap();
    let (_, rest) = code.split_once("//! ```asn1\n").unwrap();
    let (lines, _) = rest.split_once("//! ```\n").unwrap();
    let asn1: String = lines
        .lines()
        .map(|line| line.trim_start_matches("//!").trim_start_matches(' '))
        .collect::<Vec<_>>()
        .join("\n");
    let page = page("protocol.md");
    let (_, shown) = page.split_once("```asn1\n").unwrap();
    let (shown, _) = shown.split_once("\n```").unwrap();
    let shown: Vec<_> = shown.lines().map(str::trim_start).collect();
    assert_eq!(shown.join("\n"), asn1);
}

/// The rows of SECURITY.md's table of what strangers reach name keys that exist, at the server they stand for, and
/// constants that exist.
#[test]
fn every_bound_before_authentication_that_the_documents_name_exists() {
    let security = std::fs::read_to_string(iap_tidy::root().join("SECURITY.md")).unwrap();
    let (_, inventory) = security.split_once("## Reachable before authentication").unwrap();
    let inventory = inventory.split("\n## ").next().unwrap();
    let configuration = page("configuration.md");
    let keys_of = |server: &str| {
        let (_, section) = configuration.split_once(&format!("\n## {server}\n")).unwrap();
        section.split("\n## ").next().unwrap().to_owned()
    };
    let sources = iap_tidy::files(".", ".rs").unwrap();
    let mut named = 0;
    for row in inventory.lines().filter(|line| line.starts_with("| `iap-")) {
        let mut words = quoted(row);
        let section = keys_of(words.next().unwrap());
        for word in words {
            let is_constant = word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            if is_constant {
                let definition = format!("const {word}: ");
                assert!(
                    sources.iter().any(|(_, source)| source.contains(&definition)),
                    "SECURITY.md names {word}, which does not exist"
                );
            } else if word.starts_with("limits.") || word == "proxy_protocol_from" {
                assert!(
                    section.contains(&format!("| `{word}` |")),
                    "SECURITY.md names {word}, which is no key there"
                );
            } else {
                continue;
            }
            named += 1;
        }
    }
    assert!(named > 30, "only {named} bounds are named");
}

/// Everything between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn paths_and_tests_that_the_documents_name_exist() {
    let root = iap_tidy::root();
    let sources = iap_tidy::files(".", ".rs").unwrap();
    let tops = [
        "crates/",
        "tests/",
        "proxy/",
        "node-agent/",
        "auth-server/",
        "cli/",
        "docs/",
        "deploy/",
        "proto/",
    ];
    for document in [
        "ARCHITECTURE.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "docs/denials.md",
    ] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        for word in quoted(&text) {
            let is_path = tops.iter().any(|top| word.starts_with(top)) && !word.contains(['<', ' ']);
            let exists = || root.join(word).exists() || root.join(format!("{word}.rs")).exists();
            assert!(
                !is_path || exists(),
                "{document} names {word}, which does not exist"
            );
            let is_test = word.matches('_').count() > 3
                && word
                    .chars()
                    .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_');
            let function = format!("fn {word}(");
            assert!(
                !is_test || sources.iter().any(|(_, source)| source.contains(&function)),
                "{document} names the test {word}, which does not exist"
            );
        }
    }
}

/// The first cells of the tables in a part of a page, without their heads, and the rest of each row.
fn rows(part: &str) -> Vec<(String, String)> {
    let rows = part.lines().filter_map(|line| line.strip_prefix("| "));
    let rows = rows.filter_map(|row| row.split_once(" | "));
    let is_head = |first: &str| first == "what happened" || first.starts_with("---");
    rows.filter(|(first, _)| !is_head(first))
        .map(|(first, rest)| (first.to_owned(), rest.to_owned()))
        .collect()
}

/// That the tests exist is held by `paths_and_tests_that_the_documents_name_exist`.
#[test]
fn every_denial_that_the_page_lists_has_tests_and_no_other_has() {
    let page = page("denials.md");
    let (listed, held) = page.split_once("\n## Held to by\n").unwrap();
    let (listed, held) = (rows(listed), rows(held));
    assert!(listed.len() > 10, "the tables were read");
    let names = |rows: &[(String, String)]| rows.iter().map(|(first, _)| first.clone()).collect::<Vec<_>>();
    assert_eq!(
        names(&listed),
        names(&held),
        "docs/denials.md: rows, and rows that have tests"
    );
    for (row, tests) in held {
        assert!(
            quoted(&tests).any(|word| word.matches('_').count() > 3),
            "docs/denials.md names no test of: {row}"
        );
    }
}
