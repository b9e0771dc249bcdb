//! Logins against hostile providers, browsers and programs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod browser_flow;
mod headless_flow;
mod hostile;
mod misuse;
mod pages;
mod plane;
mod relying_party;
mod renewal;
