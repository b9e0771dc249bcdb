//! The auth server as its clients see it: real gRPC over real TLS on loopback.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod authorization;
mod backend;
mod break_glass;
mod erasing;
mod first_start;
mod forging;
mod harness;
mod ingest;
mod interrupted;
mod joining;
mod listening;
mod locking;
mod payloads;
mod policy;
mod recordings;
mod renewal;
mod restoring;
mod searching;
mod services;
