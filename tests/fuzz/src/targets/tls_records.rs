//! What a peer that holds the keys puts into TLS records: the same bytes, the same end and the same alert as with rustls in its
//! usual form.

use std::io;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use iap_identity::AgentId;
use iap_runtime::tls::{
    self, AlertDescription, ClientConfig, FixedIdentity, Material, ServerConfig, ServerVerifier,
};
use iap_testkit::TestCluster;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream as Usual};

use super::Seeds;
use crate::input::{block_on, choice, pieces};

const PIPE_BYTES: usize = 1 << 22;
const PATIENCE: Duration = Duration::from_secs(60);
const SERVICE: &str = "db.iap.example.com";
const DATA: u8 = 23;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const READS_MAX: usize = 1 << 20;
/// By so much the content of some records is longer than what stands for it.
const TIMES: usize = 64;
const KINDS: u8 = 8;

static CONFIGS: LazyLock<(Arc<ClientConfig>, Arc<ServerConfig>)> = LazyLock::new(|| {
    let cluster = TestCluster::at("iap.example.com", OffsetDateTime::now_utc()).unwrap();
    let agent = AgentId::from_uuid(super::snapshot::ID);
    let leaf = cluster.service_leaf(agent, "db").unwrap();
    let key = tls::certified_key(leaf.chain.clone(), leaf.private_key().unwrap()).unwrap();
    let servers = Arc::new(ServerVerifier::new(Material::new(cluster.bundle().clone())));
    (
        tls::client_config(servers, None, &[]).unwrap(),
        tls::web_server_config(Arc::new(FixedIdentity(key)), &[]).unwrap(),
    )
});

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// The keys of one direction.
struct Keys {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Keys {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Self {
        let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
            panic!("another cipher");
        };
        Self {
            key: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key.as_ref()).unwrap()),
            iv: iv.as_ref().try_into().unwrap(),
            sequence,
        }
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, of_sequence) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= of_sequence;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&mut self, content: &[u8], content_type: u8, padding: usize) -> Vec<u8> {
        let mut inner = [content, &[content_type], &vec![0; padding]].concat();
        let [high, low] = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let header = [DATA, 3, 3, high, low];
        let nonce = self.nonce();
        self.key
            .seal_in_place_append_tag(nonce, Aad::from(header), &mut inner)
            .unwrap();
        [&header[..], &inner].concat()
    }

    /// Content and type of the first record; nothing where there is none that these keys open.
    fn open(&mut self, wire: &[u8]) -> Option<(Vec<u8>, u8)> {
        let header: [u8; 5] = wire.get(..5)?.try_into().unwrap();
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let mut record = wire.get(5..5 + length)?.to_vec();
        let nonce = self.nonce();
        let inner = self.key.open_in_place(nonce, Aad::from(header), &mut record);
        let (content_type, content) = inner.ok()?.split_last()?;
        Some((content.to_vec(), *content_type))
    }
}

/// What the input says is sent.
fn wire(script: &[u8], keys: &mut Keys) -> (Vec<u8>, Vec<u8>) {
    let (mut wire, mut data) = (Vec::new(), Vec::new());
    let mut rest = script;
    while let Some((kind, behind)) = choice(rest, KINDS) {
        let (length, behind) = behind.split_first().unwrap_or((&0, behind));
        let (content, behind) = behind.split_at(usize::from(*length).min(behind.len()));
        rest = behind;
        let long = content.repeat(TIMES);
        let (sealed, content): (Vec<u8>, &[u8]) = match kind {
            0 => (keys.seal(content, DATA, 0), content),
            1 => (keys.seal(content, ALERT, 0), &[]),
            2 => (keys.seal(content, HANDSHAKE, 0), &[]),
            3 => (
                keys.seal(content, *length, 0),
                if *length == DATA { content } else { &[] },
            ),
            4 => (content.to_vec(), &[]),
            5 => (keys.seal(&long, DATA, 0), &long),
            6 => (keys.seal(content, DATA, usize::from(*length) * TIMES), content),
            _ => {
                let mut record = keys.seal(content, DATA, 0);
                let last = record.len() - 1;
                record[last - usize::from(*length) % 16] ^= 1;
                (record, &[])
            }
        };
        wire.extend(sealed);
        data.extend_from_slice(content);
    }
    (wire, data)
}

/// What became of it.
#[derive(Debug)]
struct Outcome {
    bytes: Vec<u8>,
    end: Result<(), (io::ErrorKind, Option<AlertDescription>)>,
    /// The first alert that the peer was sent.
    heard: Option<Vec<u8>>,
    /// All data that was sealed.
    sealed: Vec<u8>,
}

async fn meet(is_ours: bool, is_client: bool) -> (Box<dyn Stream>, DuplexStream, Keys, Keys) {
    let (client, server) = &*CONFIGS;
    let (near, far) = duplex(PIPE_BYTES);
    let name = || SERVICE.try_into().unwrap();
    let (stream, peer): (Box<dyn Stream>, Usual<DuplexStream>) = if is_client {
        let accepting = TlsAcceptor::from(Arc::clone(server)).accept(far);
        let connecting = async {
            let client = Arc::clone(client);
            match is_ours {
                true => Box::new(tls::connect(near, SERVICE, client, PATIENCE).await.unwrap()) as _,
                false => Box::new(TlsConnector::from(client).connect(name(), near).await.unwrap()) as _,
            }
        };
        let (stream, peer) = tokio::join!(connecting, accepting);
        (stream, peer.unwrap().into())
    } else {
        let connecting = TlsConnector::from(Arc::clone(client)).connect(name(), far);
        let accepting = async {
            let server = Arc::clone(server);
            match is_ours {
                true => Box::new(tls::handshake(near, server, PATIENCE).await.unwrap()) as _,
                false => Box::new(TlsAcceptor::from(server).accept(near).await.unwrap()) as _,
            }
        };
        let (stream, peer) = tokio::join!(accepting, connecting);
        (stream, peer.unwrap().into())
    };
    let (io, ExtractedSecrets { tx, rx }) = match peer {
        Usual::Client(stream) => {
            let (io, connection) = stream.into_inner();
            (io, connection.dangerous_extract_secrets().unwrap())
        }
        Usual::Server(stream) => {
            let (io, connection) = stream.into_inner();
            (io, connection.dangerous_extract_secrets().unwrap())
        }
    };
    (stream, io, Keys::new(tx), Keys::new(rx))
}

async fn outcome(is_ours: bool, is_client: bool, size: u8, script: &[u8]) -> Outcome {
    let (mut stream, mut io, mut sealing, mut opening) = meet(is_ours, is_client).await;
    let (wire, sealed) = wire(script, &mut sealing);
    let sending = async {
        for piece in pieces(&wire, size) {
            if io.write_all(piece).await.is_err() {
                break;
            }
            // Long inputs in small pieces would take all the time there is.
            if wire.len() < 1000 {
                tokio::task::yield_now().await;
            }
        }
        let _ = io.shutdown().await;
        let mut answer = Vec::new();
        io.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let reading = async {
        let (mut bytes, mut end) = (Vec::new(), None);
        let mut buffer = vec![0; 1 + usize::from(size) * 300];
        // rustls may give what came before an error after it.
        for _ in 0..READS_MAX {
            match stream.read(&mut buffer).await {
                Ok(0) => {
                    end = end.or(Some(Ok(())));
                    break;
                }
                Ok(length) => bytes.extend_from_slice(&buffer[..length]),
                Err(error) if end.is_none() => {
                    end = Some(Err((error.kind(), tls::alert_received(&error))));
                }
                Err(_) => break,
            }
        }
        let _ = stream.shutdown().await;
        drop(stream);
        (bytes, end.unwrap())
    };
    let (answer, (bytes, end)) = tokio::join!(sending, reading);
    let heard = opening
        .open(&answer)
        .filter(|(_, content_type)| *content_type == ALERT);
    Outcome {
        bytes,
        end,
        heard: heard.map(|(alert, _)| alert),
        sealed,
    }
}

impl Outcome {
    /// The alert that says what was wrong.
    fn verdict(&self) -> Option<u8> {
        match self.heard.as_deref() {
            Some([2, description]) => Some(*description),
            _ => None,
        }
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let Some((is_client, bytes)) = choice(bytes, 2) else {
        return;
    };
    let Some((size, script)) = choice(bytes, u8::MAX) else {
        return;
    };
    let (ours, usual) = block_on(async {
        (
            outcome(true, is_client == 1, size, script).await,
            outcome(false, is_client == 1, size, script).await,
        )
    });
    assert!(ours.sealed.starts_with(&ours.bytes), "bytes that nobody sealed");
    assert_eq!(ours.bytes, usual.bytes);
    assert_eq!(ours.end, usual.end);
    match (ours.verdict(), usual.verdict()) {
        (ours, usual) if ours == usual => {}
        // Where rustls is silent or says only that a record cannot be opened or read, RFC 8446 has a word for it.
        (Some(10 | 50), None | Some(20 | 50)) if ours.end.is_err() => {}
        (ours, usual) => panic!("the peer is told {ours:?}, and by rustls {usual:?}"),
    }
}

pub(crate) fn seeds() -> Seeds {
    let item = |kind: u8, content: &[u8]| [&[kind, u8::try_from(content.len()).unwrap()], content].concat();
    let script = |end: u8, size: u8, items: &[Vec<u8>]| [vec![end, size], items.concat()].concat();
    let data = item(0, b"some bytes of a session");
    let ticket = [4, 0, 0, 16, 0, 0, 1, 0, 1, 2, 3, 4, 1, 9, 0, 2, 7, 7, 0, 0];
    vec![
        ("data".into(), script(0, 0, &[data.clone(), data.clone()])),
        (
            "data-in-pieces".into(),
            script(1, 3, &[data.clone(), data.clone()]),
        ),
        (
            "long".into(),
            script(1, 200, &[item(5, &[7; 255]), item(5, &[8; 255]), data.clone()]),
        ),
        (
            "padded".into(),
            script(0, 90, &[item(6, &[7; 100]), data.clone()]),
        ),
        ("empty".into(), script(0, 0, &vec![item(0, b""); 33])),
        (
            "closed".into(),
            script(1, 0, &[data.clone(), item(1, &[1, 0]), data.clone()]),
        ),
        (
            "alert".into(),
            script(0, 0, &[data.clone(), item(1, &[2, 42]), data.clone()]),
        ),
        ("warnings".into(), script(0, 0, &vec![item(1, &[1, 90]); 5])),
        ("ticket".into(), script(1, 9, &[item(2, &ticket), data.clone()])),
        (
            "ticket-in-two".into(),
            script(
                1,
                0,
                &[item(2, &ticket[..7]), item(2, &ticket[7..]), data.clone()],
            ),
        ),
        (
            "interleaved".into(),
            script(1, 0, &[item(2, &ticket[..7]), data.clone()]),
        ),
        (
            "key-update".into(),
            script(0, 0, &[data.clone(), item(2, &[24, 0, 0, 1, 1])]),
        ),
        (
            "key-update-and-more".into(),
            script(1, 0, &[item(2, &[24, 0, 0, 1, 0, 24])]),
        ),
        (
            "other-type".into(),
            script(0, 0, &[item(3, &[1; 24]), data.clone()]),
        ),
        ("no-type".into(), script(0, 0, &[item(3, b""), data.clone()])),
        (
            "clear".into(),
            script(0, 0, &[data.clone(), item(4, &[21, 3, 3, 0, 2, 1, 0])]),
        ),
        (
            "header".into(),
            script(0, 0, &[item(4, &[23, 3, 3, 255, 255]), data.clone()]),
        ),
        (
            "changed".into(),
            script(1, 0, &[data.clone(), item(7, b"changed"), data]),
        ),
    ]
}
