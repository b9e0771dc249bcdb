//! A session that is given up as it stands, for somebody else to go on with.

use std::time::Duration;

use super::{Closed, Side};

/// How a session left the pump.
#[derive(Debug)]
pub enum Relayed<C, B> {
    /// It is over.
    Closed(Closed),
    /// It was asked for, and goes on elsewhere.
    Yielded(Box<Yielded<C, B>>),
}

/// A session as it stands. Whatever was delivered is counted, and nothing moves.
#[derive(Debug)]
pub struct Yielded<C, B> {
    /// The client's stream.
    pub client: C,
    /// The backend's.
    pub backend: B,
    /// What lies between the two.
    pub under_way: UnderWay,
}

/// What was read from one end and not delivered to the other, and how far the ends have closed. The default is a session
/// that begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnderWay {
    /// From client to backend.
    pub inward: Stretch,
    /// From backend to client.
    pub outward: Stretch,
    /// Who closed first.
    pub first_closed: Option<Side>,
    /// For how long nothing has moved.
    pub rested: Duration,
}

/// One direction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stretch {
    /// Read and not delivered.
    pub bytes: Vec<u8>,
    /// Nothing comes behind those.
    pub is_ended: bool,
}
