//! Every committed input, and mutations of each, through its target.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use iap_fuzz::{FILE_BYTES_MAX, FILES_PER_TARGET_MAX, TARGETS, Target, corpus_dir, files, mutations};

/// Conditions recurse; threads that evaluate them have this much in the programs too.
const STACK_BYTES: usize = iap_policy::POLICY_STACK_BYTES;

fn replay(target: &'static Target) {
    let inputs = files(target.name).unwrap();
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    let replayed = thread.spawn(move || {
        for (name, bytes) in inputs {
            run(target, &name, &bytes);
            for mutant in mutations(&bytes) {
                run(target, &name, &mutant);
            }
        }
    });
    replayed.unwrap().join().unwrap();
}

fn run(target: &Target, name: &str, bytes: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))).is_err() {
        panic!(
            "{}: the input {:?}, made from {name}, breaks a property",
            target.name, bytes
        );
    }
}

macro_rules! replays {
    ($($test:ident $target:literal)*) => {
        $(#[test] fn $test() {
            replay(iap_fuzz::target($target).unwrap());
        })*
        const REPLAYED: &[&str] = &[$($target),*];
    };
}

replays! {
    every_client_hello_keeps_its_properties "client_hello"
    every_preface_keeps_its_properties "preface"
    every_control_message_keeps_its_properties "control"
    every_identity_keeps_its_properties "identity"
    every_backend_certificate_keeps_its_properties "backend_certificates"
    every_signed_object_keeps_its_properties "snapshot"
    every_policy_keeps_its_properties "policy"
    every_postgres_preamble_keeps_its_properties "postgres"
    every_postgres_session_keeps_its_properties "postgres_session"
    every_proxy_header_keeps_its_properties "proxy_protocol"
    every_iap_frame_keeps_its_properties "frames"
    every_resume_frame_keeps_its_properties "resume"
    every_tls_record_keeps_its_properties "tls_records"
    every_configuration_keeps_its_properties "configuration"
    every_request_to_the_login_pages_keeps_its_properties "login_pages"
    every_transfer_keeps_its_properties "transfer"
    every_recording_keeps_its_properties "asciicast"
    everything_that_is_watched_keeps_its_properties "watch"
}

#[test]
fn every_target_is_replayed() {
    let targets: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(REPLAYED, targets);
}

#[test]
fn corpora_are_small_and_hold_no_private_key() {
    for target in TARGETS {
        let inputs = files(target.name).unwrap();
        assert!(!inputs.is_empty(), "{} has no corpus", target.name);
        let count = inputs.len();
        assert!(count <= FILES_PER_TARGET_MAX, "{}: {count} files", target.name);
        for (name, bytes) in inputs {
            let path = corpus_dir(target.name).join(name);
            assert!(bytes.len() <= FILE_BYTES_MAX, "{} is too long", path.display());
            let is_key = String::from_utf8_lossy(&bytes).contains("PRIVATE KEY");
            assert!(!is_key, "{} holds a key", path.display());
        }
    }
}

/// Everything else that is signed or encrypted differs from one making to the next.
const MADE_ALIKE: [&str; 5] = ["preface", "control", "frames", "resume", "tls_records"];

#[test]
fn every_seed_is_committed_as_the_encoders_make_it() {
    for target in TARGETS {
        let committed = files(target.name).unwrap();
        for (name, bytes) in (target.seeds)() {
            let file = format!("seed-{name}");
            let found = committed.iter().find(|(name, _)| *name == file);
            let (_, held) =
                found.unwrap_or_else(|| panic!("{}/{file} is missing: run iap-fuzz-seeds", target.name));
            let is_same = !MADE_ALIKE.contains(&target.name) || *held == bytes;
            assert!(
                is_same,
                "{}/{file} is out of date: run iap-fuzz-seeds",
                target.name
            );
        }
    }
}

#[test]
fn every_control_message_of_the_schema_has_a_seed() {
    let schema = include_str!("../../../proto/schema/control.proto");
    let (_, messages) = schema.split_once("message ControlMessage {").unwrap();
    let (messages, _) = messages.split_once("  }").unwrap();
    let fields = messages.lines().filter_map(|line| line.split_once(" = "));
    let names: Vec<&str> = fields
        .filter_map(|(field, _)| field.split_whitespace().last())
        .collect();
    assert!(names.len() > 10, "{names:?}");
    let seeds = (iap_fuzz::target("control").unwrap().seeds)();
    for name in names {
        let is_seed = |(seed, _): &(String, Vec<u8>)| {
            let of_message = seed
                .split_once('-')
                .map(|(_, message)| message.trim_end_matches(['-', '2', '3']));
            of_message == Some(name)
        };
        assert!(seeds.iter().any(is_seed), "no seed of {name}");
    }
}
