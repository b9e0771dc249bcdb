//! A way to an agent that came for a client, whatever it runs over.

use iap_runtime::quic::{self, Window};
use iap_runtime::tls::{Replay, ServerStream};
use iap_tunnel::DataWay;
use tokio::net::TcpStream;

/// What the agent fetched a client with; its preface is read.
#[derive(Debug)]
pub enum DataStream {
    /// It dialled back.
    Tcp(TcpStream),
    /// It dialled back, inside TLS.
    Tls(Box<ServerStream<Replay<TcpStream>>>),
    /// It opened a stream of its QUIC connection, whose window grows once a client is on it.
    Quic(Box<quic::Stream>, Window),
}

impl DataStream {
    /// What it runs over.
    pub fn way(&self) -> DataWay {
        match self {
            Self::Tcp(_) => DataWay::Tcp,
            Self::Tls(_) => DataWay::Tls,
            Self::Quic(..) => DataWay::Quic,
        }
    }
}
