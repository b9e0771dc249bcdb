//! What strangers can send, and what must hold whatever they send.
//!
//! One function per target in [`TARGETS`]: it takes bytes and panics when a property is broken. The test
//! `replay` runs every file of `corpus/<target>` and mutations of it; `make fuzz` lets libFuzzer look for more.
//! Beyond "does not panic", a target asserts what its parser promises: what is accepted is written back to the
//! same bytes or the same value, pieces make no difference, bounds hold, and another implementation, where
//! there is one, agrees.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a target reports by panicking"
)]

mod corpus;
mod input;
mod targets;

pub use corpus::{FILE_BYTES_MAX, FILES_PER_TARGET_MAX, corpus_dir, files, mutations};
pub use targets::{TARGETS, Target, target};
