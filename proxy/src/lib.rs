//! The proxy: routes by server name and moves bytes it cannot read.
//!
//! Reading order: [`config`], [`app`], `front` (the public port: what is this connection, and whose), `control`
//! (agents' lines), [`switchboard`] (who serves what, who waits), [`admission`] (who may take a place),
//! [`verdict`] (what agents say of clients),
//! [`trust`] and `auth` (what the auth server says), [`state`] and [`join`].
//!
//! It holds no key but its own, and no session's TLS ends here.

pub mod admission;
pub mod app;
mod auth;
mod bind;
pub mod config;
mod control;
pub mod doctor;
mod front;
pub mod join;
pub mod metrics;
pub mod state;
pub mod switchboard;
pub mod trust;
pub mod verdict;

pub use app::{App, AppError, LimitsInForce, Running};
pub use config::{Config, Limits};
