//! The public port: accepting, finding out what a connection is, and sending it where it belongs.

pub(crate) mod data;
pub(crate) mod door;
pub(crate) mod fetch;
pub(crate) mod forward;
pub(crate) mod greet;
pub(crate) mod session;
