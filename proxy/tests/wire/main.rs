//! The proxy over real sockets on loopback, with honest and hostile peers.
#![allow(missing_docs, unreachable_pub)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod abuse;
mod announcements;
mod auth_side;
mod control;
mod data;
mod dial_back;
mod greeting;
mod lifecycle;
mod pool;
mod postgres;
mod quic;
mod relay;
mod support;
