//! Rules about the text of the repository.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

/// A file longer than this wants splitting by sub-state or by topic.
const RUST_LINES_MAX: usize = 600;

#[test]
fn no_rust_file_is_longer_than_a_reader_bears() {
    for (path, text) in iap_tidy::files(".", ".rs").unwrap() {
        let lines = text.lines().count();
        assert!(
            lines <= RUST_LINES_MAX,
            "{path} has {lines} lines: split it (at most {RUST_LINES_MAX})"
        );
    }
}

#[test]
fn every_rust_file_begins_with_its_purpose() {
    for (path, text) in iap_tidy::files(".", ".rs").unwrap() {
        assert!(
            text.starts_with("//!"),
            "{path} does not begin with a `//!` line that says what it is for"
        );
    }
}

#[test]
fn no_private_key_is_committed() {
    // In two parts, so that this file does not match itself.
    let marker = concat!("PRIVATE", " KEY-----");
    for extension in [".pem", ".key", ".rs", ".toml", ".json", ".js", ".mjs", ".md"] {
        for (path, text) in iap_tidy::files(".", extension).unwrap() {
            let holds_key = text
                .lines()
                .any(|line| line.starts_with("-----BEGIN") && line.contains(marker));
            assert!(!holds_key, "{path} holds a private key");
        }
    }
}

#[test]
fn the_readme_shows_both_commands_and_the_documents_exist() {
    let root = iap_tidy::root();
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    assert!(readme.contains("make demo") && readme.contains("make test"));
    for name in [
        "ARCHITECTURE.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "LICENSE",
        "docs/performance.md",
    ] {
        assert!(root.join(name).is_file(), "{name} is missing");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = iap_tidy::root();
    for (path, text) in iap_tidy::files(".", ".md").unwrap() {
        let folder = root.join(&path).parent().unwrap().to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            assert!(
                folder.join(file).exists(),
                "{path} links to {target}, which does not exist"
            );
        }
    }
}
