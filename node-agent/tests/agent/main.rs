//! The agent against a stand-in for the rest of the plane: one loopback port that is a proxy and leads to an
//! auth server, real TLS, real sockets, real files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![allow(missing_docs, unreachable_pub)]

mod auth;
mod backend_authority;
mod client;
mod plane;
mod proxy;

mod credentials;
mod farewells;
mod handover;
mod joining;
mod outage_table;
mod outages;
mod postgres;
mod records;
mod refusals;
mod resume;
mod reviews;
mod sessions;
mod watching;
