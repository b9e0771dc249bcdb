//! Configuration, TLS material, listeners, byte pump and spool files: the shell the four programs share.
//!
//! Everything here touches the clock, the disk, the network or threads, so that the pure crates need not.

pub mod admin;
pub mod backoff;
pub mod big_stack;
mod buffers;
pub mod config;
pub mod descriptors;
pub mod doctor;
pub mod files;
#[cfg(unix)]
pub mod handover;
pub mod inherited;
pub mod keys;
pub mod manual;
pub mod net;
pub mod outage;
pub mod proxy_protocol;
pub mod pump;
pub mod quic;
#[cfg(unix)]
pub mod reloading;
pub mod resume;
pub mod rpc;
pub mod seldom;
#[cfg(unix)]
pub mod service_manager;
pub mod shutdown;
pub mod slots;
pub mod spool;
pub mod telemetry;
pub mod tls;
pub mod traces;
pub mod waiting_room;
