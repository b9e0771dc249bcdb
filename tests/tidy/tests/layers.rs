//! Who may depend on whom (ARCHITECTURE.md, "Layers"), held over `cargo metadata`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Crate → those of ours it may use outside its tests.
const LAYERS: &[(&str, &[&str])] = &[
    ("iap-identity", &[]),
    ("iap-policy", &["iap-identity"]),
    ("iap-tunnel", &["iap-identity"]),
    ("iap-audit", &["iap-identity"]),
    (
        "iap-proto",
        &["iap-identity", "iap-policy", "iap-audit", "iap-tunnel"],
    ),
    ("iap-runtime", &["iap-identity", "iap-audit", "iap-tunnel"]),
    ("iap-auth", ALL),
    ("iap-proxy", ALL),
    ("iap-agent", ALL),
    ("iapctl", ALL),
];
const ALL: &[&str] = &[
    "iap-identity",
    "iap-policy",
    "iap-tunnel",
    "iap-audit",
    "iap-proto",
    "iap-runtime",
];
const TESTS: &[&str] = &[
    "iap-testkit",
    "iap-e2e",
    "iap-interop",
    "iap-tidy",
    "iap-bench",
    "iap-fuzz",
];

/// What a pure crate may use from outside: no runtime, no sockets, no files, no clock of its own.
const PURE: &[(&str, &[&str])] = &[
    (
        "iap-identity",
        &[
            "rcgen",
            "x509-parser",
            "rustls-webpki",
            "rustls-pki-types",
            "aws-lc-rs",
            "base64",
            "thiserror",
            "time",
            "uuid",
            "serde",
            "zeroize",
            "ssh-key",
            "signature",
        ],
    ),
    (
        "iap-policy",
        &[
            "cel",
            "regex",
            "chrono",
            "serde",
            "serde_json",
            "toml",
            "thiserror",
            "time",
        ],
    ),
    (
        "iap-tunnel",
        &["serde", "serde_json", "thiserror", "time", "uuid"],
    ),
    (
        "iap-audit",
        &["serde", "serde_json", "thiserror", "time", "uuid", "aws-lc-rs"],
    ),
];

/// The crates the owner asked for by name.
const NAMED_BY_THE_OWNER: &[&str] = &[
    "rcgen",
    "rustls",
    "tokio-rustls",
    "x509-parser",
    "quinn",
    "tokio",
    "sqlx",
    "openidconnect",
    "clap",
];

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = MetadataCommand::new()
        .manifest_path(iap_tidy::root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .unwrap();
    metadata
        .packages
        .iter()
        .map(|package| {
            let used = package
                .dependencies
                .iter()
                .filter(|used| used.kind == DependencyKind::Normal);
            (
                package.name.to_string(),
                used.map(|used| used.name.clone()).collect(),
            )
        })
        .collect()
}

fn is_ours(name: &str) -> bool {
    name == "iapctl" || name.starts_with("iap-")
}

#[test]
fn every_crate_depends_only_on_the_layers_below_it() {
    let dependencies = dependencies();
    for (name, used) in &dependencies {
        if TESTS.contains(&name.as_str()) {
            continue;
        }
        let (_, allowed) = LAYERS.iter().find(|(layer, _)| layer == name).unwrap_or_else(|| {
            panic!("{name} has no row in the table of layers: decide what it may depend on, and add it")
        });
        for own in used.iter().filter(|used| is_ours(used)) {
            assert!(allowed.contains(&own.as_str()), "{name} must not depend on {own}");
        }
    }
    for (name, _) in LAYERS {
        assert!(
            dependencies.contains_key(*name),
            "{name} is in the table and not in the workspace"
        );
    }
}

#[test]
fn programs_never_depend_on_each_other_and_nothing_depends_on_tests() {
    let programs = ["iap-auth", "iap-proxy", "iap-agent", "iapctl"];
    for (name, used) in dependencies() {
        // Fuzz targets reach into the programs' libraries; every other test runs them from outside.
        for program in programs.iter().filter(|_| name != "iap-fuzz") {
            assert!(
                !used.contains(*program),
                "{name} depends on the program {program}"
            );
        }
        if !TESTS.contains(&name.as_str()) {
            for test in TESTS {
                assert!(
                    !used.contains(*test),
                    "{name} depends on {test} outside its tests"
                );
            }
        }
    }
}

#[test]
fn pure_crates_use_only_what_cannot_do_io() {
    let dependencies = dependencies();
    for (name, allowed) in PURE {
        for used in dependencies[*name].iter().filter(|used| !is_ours(used)) {
            assert!(
                allowed.contains(&used.as_str()),
                "the pure crate {name} must not depend on {used}"
            );
        }
        let fence = iap_tidy::root()
            .join("crates")
            .join(name.trim_start_matches("iap-"))
            .join("clippy.toml");
        let fence = std::fs::read_to_string(fence).unwrap();
        for door in [
            "std::time::SystemTime::now",
            "std::env::var",
            "std::sync::Mutex",
            "std::fs::File",
        ] {
            assert!(
                fence.contains(door),
                "{name}'s clippy.toml no longer forbids {door}"
            );
        }
    }
}

#[test]
fn the_root_names_each_crate_the_owner_asked_for() {
    let text = std::fs::read_to_string(iap_tidy::root().join("Cargo.toml")).unwrap();
    let root: toml::Table = text.parse().unwrap();
    let named = root["workspace"]["dependencies"].as_table().unwrap();
    for name in NAMED_BY_THE_OWNER {
        assert!(
            named.contains_key(*name),
            "[workspace.dependencies] has no line for {name}"
        );
    }
}

#[test]
fn every_member_takes_its_lints_from_the_workspace() {
    for (path, text) in iap_tidy::files(".", "Cargo.toml").unwrap() {
        if path == "Cargo.toml" {
            continue;
        }
        let manifest: toml::Table = text.parse().unwrap();
        let inherits = manifest
            .get("lints")
            .and_then(|lints| lints.get("workspace"))
            .and_then(toml::Value::as_bool);
        assert_eq!(
            inherits,
            Some(true),
            "{path} does not say `lints.workspace = true`"
        );
    }
}
