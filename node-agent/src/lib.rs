//! The node agent: it dials out to the proxies, ends mutual TLS for the services beside it, decides from the
//! signed snapshot it holds, records, and only then dials the private backend.
//!
//! Reading order: [`app`] (what runs), [`view`] (what it decides from), [`decide`] (the decision),
//! [`control`] and [`dialback`] (how a connection comes in), [`session`] and [`journal`] (what is recorded),
//! [`handlers`] (how bytes reach the backend), [`watch`] (who looks on), [`auth`] (what lives on the channel to the auth server).

pub mod app;
pub mod auth;
pub mod backend;
pub mod clock;
pub mod config;
pub mod control;
pub mod credentials;
pub mod decide;
pub mod dialback;
pub mod doctor;
pub mod handlers;
pub mod identity;
pub mod join;
pub mod journal;
pub mod leaves;
pub mod limits;
pub mod metrics;
pub mod printer;
pub mod recording;
pub mod session;
pub mod state;
pub mod view;
pub mod watch;

pub use app::App;
pub use config::Config;
