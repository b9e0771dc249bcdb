//! The container file can be built from a clone: its instructions exist, and so does all that it copies.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeSet;

const FILE: &str = "deploy/containers/Containerfile";

/// The instructions with their arguments; comments and continuations undone.
fn instructions() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(iap_tidy::root().join(FILE)).unwrap();
    let text = text.replace("\\\n", " ");
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, rest) = line.split_once(' ').unwrap_or_else(|| panic!("{FILE}: {line}"));
            (name.to_owned(), rest.trim().to_owned())
        })
        .collect()
}

#[test]
fn every_instruction_is_one_that_builders_know_and_the_first_is_a_stage() {
    let known = [
        "FROM",
        "ARG",
        "WORKDIR",
        "COPY",
        "RUN",
        "USER",
        "ENTRYPOINT",
        "CMD",
    ];
    let all = instructions();
    for (name, _) in &all {
        assert!(known.contains(&name.as_str()), "{FILE} says {name}");
    }
    let first = all.iter().find(|(name, _)| name != "ARG").unwrap();
    assert_eq!(first.0, "FROM");
    for (name, value) in all
        .iter()
        .filter(|(name, _)| name == "ENTRYPOINT" || name == "CMD")
    {
        let words: Vec<String> =
            serde_json::from_str(value).unwrap_or_else(|error| panic!("{name} {value}: {error}"));
        assert!(!words.is_empty(), "without a shell only the JSON form runs");
    }
}

#[test]
fn everything_that_is_copied_exists_here_or_in_an_earlier_stage() {
    let mut stages = BTreeSet::new();
    let mut copied = BTreeSet::new();
    for (name, value) in instructions() {
        if let ("FROM", Some((_, stage))) = (name.as_str(), value.split_once(" AS ")) {
            stages.insert(stage.to_owned());
        }
        if name != "COPY" {
            continue;
        }
        let words: Vec<&str> = value.split(' ').collect();
        if let Some(stage) = words[0].strip_prefix("--from=") {
            assert!(stages.contains(stage), "there is no earlier stage {stage}");
            continue;
        }
        for source in &words[..words.len() - 1] {
            assert!(iap_tidy::root().join(source).exists(), "{source} does not exist");
            copied.insert((*source).to_owned());
        }
    }
    // Cargo wants every member of the workspace, whichever it builds.
    let manifest: toml::Value =
        toml::from_str(&std::fs::read_to_string(iap_tidy::root().join("Cargo.toml")).unwrap()).unwrap();
    for member in manifest["workspace"]["members"].as_array().unwrap() {
        let top = member.as_str().unwrap().split('/').next().unwrap();
        assert!(copied.contains(top), "the build lacks {top}");
    }
}

#[test]
fn what_runs_is_no_root_user_on_nothing_but_the_program() {
    let all = instructions();
    let last = all.iter().rposition(|(name, _)| name == "FROM").unwrap();
    assert_eq!(all[last].1, "scratch");
    let rest = &all[last + 1..];
    assert!(
        rest.contains(&("USER".to_owned(), "65532:65532".to_owned())),
        "{rest:?}"
    );
    assert!(
        rest.iter().all(|(name, _)| name != "RUN"),
        "there is no shell: {rest:?}"
    );
}
