//! The auth server: certificates, login, join, policy, audit.
//!
//! `Config::load` → `App::build` → `App::run`. Reading order: `app` wires the parts; `listener` takes
//! connections; `rpc` decides who may call what (`rpc::table`) and answers; `authority` issues
//! certificates, each recorded by `audit` before it is released; `feed` signs and pushes what agents
//! and proxies live from; `store` keeps it all.

pub mod app;
pub mod audit;
pub mod authority;
pub mod backup;
pub mod break_glass;
pub mod config;
pub mod context;
pub mod doctor;
pub mod feed;
pub mod idp;
pub mod join;
pub mod listener;
pub mod local;
pub mod locks;
pub mod login;
pub mod metrics;
pub mod policies;
pub mod printer;
pub mod recordings;
pub mod rpc;
pub mod services;
mod spans;
pub mod ssh_access;
pub mod store;
pub mod tokens;
pub mod web;
