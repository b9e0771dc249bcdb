//! One binary that runs the real programs against real parts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod abuse;
mod blindness;
mod configuration;
mod contract;
mod crashes;
mod denials;
mod deploy;
mod doctor;
mod enforcement;
mod features;
mod handover;
mod hostile;
mod http_proxy;
mod local_ends;
mod main_job;
mod monitoring;
mod moves;
mod netns;
mod oidc;
mod operator;
mod outage;
mod postgres;
mod proxies;
mod proxy_protocol;
mod renewal;
mod restore;
mod resume;
mod ssh;
mod ssh_recorded;
mod ssh_relay;
mod ssh_strange;
mod ssh_tools;
mod ssh_watch;
mod ssh_world;
mod step_up;
mod stock_clients;
mod survival;
mod torture;
mod traces;
mod ways;
