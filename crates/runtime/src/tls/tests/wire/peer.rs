//! A peer that holds the keys of a connection, and what it may send.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305};
use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};
use tokio::io::{AsyncRead, AsyncWrite, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream as Usual};

use super::super::*;

pub(super) const PIPE_BYTES: usize = 1 << 22;
pub(super) const DATA: u8 = 23;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const FRAGMENT_BYTES_MAX: usize = 16 * 1024;
pub(super) const TAG_BYTES: usize = 16;

/// Who is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject {
    Ours,
    Usual,
}

/// Which end that is.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Client,
    Server,
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// A peer that has shaken hands properly and from then on writes what it likes.
pub(super) struct Peer {
    pub(super) io: DuplexStream,
    pub(super) sealing: Keys,
    pub(super) opening: Keys,
}

pub(super) struct Keys {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Keys {
    pub(super) fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Self {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => panic!("another cipher"),
        };
        Self {
            key: LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).unwrap()),
            iv: iv.as_ref().try_into().unwrap(),
            sequence,
        }
    }

    pub(super) fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, of_sequence) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= of_sequence;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    pub(super) fn seal(&mut self, content: &[u8], content_type: u8, padding: usize) -> Vec<u8> {
        let mut inner = [content, &[content_type], &vec![0; padding]].concat();
        let header = header(DATA, inner.len() + TAG_BYTES);
        let nonce = self.nonce();
        self.key
            .seal_in_place_append_tag(nonce, Aad::from(header), &mut inner)
            .unwrap();
        [&header[..], &inner].concat()
    }

    /// Content and type of the first record in `wire`, which it is taken from; nothing where other keys are needed.
    pub(super) fn open(&mut self, wire: &mut Vec<u8>) -> Option<(Vec<u8>, u8)> {
        let length = usize::from(u16::from_be_bytes([wire[3], wire[4]]));
        let mut record: Vec<u8> = wire.drain(..5 + length).collect();
        let header: [u8; 5] = record[..5].try_into().unwrap();
        let nonce = self.nonce();
        let opened = self.key.open_in_place(nonce, Aad::from(header), &mut record[5..]);
        let inner = opened.ok()?;
        let (content_type, content) = inner.split_last()?;
        Some((content.to_vec(), *content_type))
    }
}

pub(super) fn header(outer: u8, length: usize) -> [u8; 5] {
    let [high, low] = u16::try_from(length).unwrap().to_be_bytes();
    [outer, 3, 3, high, low]
}

/// The subject at `end` of a connection, and its peer.
pub(super) async fn meet(subject: Subject, end: End) -> (Box<dyn Stream>, Peer) {
    let world = World::new();
    let alice = world.cluster.user("alice@example.com", &[]).unwrap();
    let verifier = Arc::new(world.verifier(USERS, Demand::Required));
    let server = server_config(Arc::new(fixed(&world.leaf)), verifier, &[]).unwrap();
    let client = world.client(Some(&alice));
    let (near, far) = duplex(PIPE_BYTES);
    let name = || SERVICE.try_into().unwrap();
    let (stream, peer): (Box<dyn Stream>, Usual<DuplexStream>) = match end {
        End::Client => {
            let mut server = (*server).clone();
            server.enable_secret_extraction = true;
            let accepting = TlsAcceptor::from(Arc::new(server)).accept(far);
            let connecting = async {
                match subject {
                    Subject::Ours => Box::new(connect(near, SERVICE, client, TIMEOUT).await.unwrap()) as _,
                    Subject::Usual => {
                        Box::new(TlsConnector::from(client).connect(name(), near).await.unwrap()) as _
                    }
                }
            };
            let (stream, peer) = tokio::join!(connecting, accepting);
            (stream, peer.unwrap().into())
        }
        End::Server => {
            let mut client = (*client).clone();
            client.enable_secret_extraction = true;
            let connecting = TlsConnector::from(Arc::new(client)).connect(name(), far);
            let accepting = async {
                match subject {
                    Subject::Ours => Box::new(handshake(near, server, TIMEOUT).await.unwrap()) as _,
                    Subject::Usual => Box::new(TlsAcceptor::from(server).accept(near).await.unwrap()) as _,
                }
            };
            let (stream, peer) = tokio::join!(accepting, connecting);
            (stream, peer.unwrap().into())
        }
    };
    (stream, Peer::of(peer))
}

impl Peer {
    pub(super) fn of(stream: Usual<DuplexStream>) -> Self {
        let (io, ExtractedSecrets { tx, rx }) = match stream {
            Usual::Client(stream) => {
                let (io, connection) = stream.into_inner();
                (io, connection.dangerous_extract_secrets().unwrap())
            }
            Usual::Server(stream) => {
                let (io, connection) = stream.into_inner();
                (io, connection.dangerous_extract_secrets().unwrap())
            }
        };
        Self {
            io,
            sealing: Keys::new(tx),
            opening: Keys::new(rx),
        }
    }

    pub(super) async fn write(&mut self, wire: &[u8]) {
        self.io.write_all(wire).await.unwrap();
    }

    pub(super) async fn say(&mut self, content: &[u8]) {
        let record = self.sealing.seal(content, DATA, 0);
        self.write(&record).await;
    }

    /// Content and type of everything that arrives until the end, or under other keys.
    pub(super) async fn read_to_end(mut self) -> Vec<(Vec<u8>, u8)> {
        let mut wire = Vec::new();
        self.io.read_to_end(&mut wire).await.unwrap();
        let mut records = Vec::new();
        while !wire.is_empty() {
            let Some(record) = self.opening.open(&mut wire) else {
                break;
            };
            records.push(record);
        }
        records
    }
}

/// Something that a peer may send.
#[derive(Debug, Clone)]
pub(super) enum Item {
    Data {
        length: usize,
        padding: usize,
    },
    Empty {
        times: usize,
    },
    Alert(Vec<u8>),
    Handshake(Vec<u8>),
    /// In two records.
    SplitHandshake(Vec<u8>, usize),
    OfType(u8),
    NoType(usize),
    BadTag,
    /// In the clear.
    Clear(u8, Vec<u8>),
    Header([u8; 5]),
    HalfARecord,
}

impl Item {
    pub(super) fn write(&self, keys: &mut Keys, wire: &mut Vec<u8>) {
        match self {
            Self::Data { length, padding } => {
                let content: Vec<u8> = (0..*length).map(|index| (index * 7 + length) as u8).collect();
                wire.extend(keys.seal(&content, DATA, *padding));
            }
            Self::Empty { times } => {
                for _ in 0..*times {
                    wire.extend(keys.seal(&[], DATA, 0));
                }
            }
            Self::Alert(bytes) => wire.extend(keys.seal(bytes, ALERT, 0)),
            Self::Handshake(bytes) => wire.extend(keys.seal(bytes, HANDSHAKE, 0)),
            Self::SplitHandshake(bytes, at) => {
                let (first, second) = bytes.split_at((*at).min(bytes.len()));
                wire.extend(keys.seal(first, HANDSHAKE, 0));
                wire.extend(keys.seal(second, HANDSHAKE, 0));
            }
            Self::OfType(content_type) => wire.extend(keys.seal(b"content", *content_type, 0)),
            Self::NoType(length) => wire.extend(keys.seal(&[], 0, *length)),
            Self::BadTag => {
                let mut record = keys.seal(b"changed", DATA, 0);
                *record.last_mut().unwrap() ^= 1;
                wire.extend(record);
            }
            Self::Clear(outer, content) => {
                wire.extend(header(*outer, content.len()));
                wire.extend(content);
            }
            Self::Header(header) => wire.extend(header),
            Self::HalfARecord => wire.extend(&keys.seal(b"half of it", DATA, 0)[..12]),
        }
    }
}
