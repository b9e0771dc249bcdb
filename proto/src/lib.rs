//! The control API: the types generated from `schema/control.proto`, the domain types that have no other
//! home, and the conversions between wire and domain. Nothing from the wire is used before it has become a
//! domain value.

pub mod convert;
pub mod domain;
pub mod signed;

pub use convert::WireError;
pub use convert::control::{ControlDecodeError, decode_control, encode_control};
pub use domain::{
    AuditMode, Beat, LockList, ProxyAddress, RecordingMode, ServiceRecord, Snapshot, Strictness,
};
pub use signed::{OpenError, open_beat, open_bundle, open_locks, open_snapshot};

/// The generated messages, clients and servers.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic
)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_futures
)]
pub mod v1 {
    tonic::include_proto!("iap.v1");
}

/// The encoded `FileDescriptorSet` of the schema: what a test of the table of RPCs enumerates.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/control.descriptors.bin"));
