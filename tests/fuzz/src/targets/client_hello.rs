//! The ClientHello peek: bounded, the same in any pieces, and never another name than the server that ends the
//! TLS, or an independent reading of the bytes, finds.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use iap_identity::{ClusterName, ServerName};
use iap_runtime::tls::{ClientHelloError, ClientHelloFacts, ClientHelloLimits, peek, provider};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConnection};
use rustls::sign::CertifiedKey;

use super::Seeds;
use crate::input::{Wire, block_on, choice};

mod reading;

const BYTES_MAX: usize = 4096;

pub(crate) fn run(bytes: &[u8]) {
    let Some((size, stream)) = choice(bytes, u8::MAX) else {
        return;
    };
    let whole = look(stream, 0);
    let pieced = look(stream, size);
    match (&whole, &pieced) {
        (Ok((facts, read)), Ok((again, same))) => {
            assert_eq!(facts, again, "pieces make no difference");
            assert!(stream.starts_with(read) && stream.starts_with(same));
            understood(facts, stream);
        }
        (Err(one), Err(other)) => assert_eq!(
            std::mem::discriminant(one),
            std::mem::discriminant(other),
            "{one} and {other}"
        ),
        (Ok(_), Err(error)) | (Err(error), Ok(_)) => panic!("only in one way: {error}"),
    }
}

/// Peeks; what was read is never more than the limit, and nothing is lost.
fn look(stream: &[u8], size: u8) -> Result<(ClientHelloFacts, Vec<u8>), ClientHelloError> {
    let limits = ClientHelloLimits {
        bytes_max: BYTES_MAX,
        timeout: Duration::from_secs(60),
    };
    let mut wire = Wire::new(stream, size);
    let result = block_on(peek(&mut wire, Vec::new(), limits));
    let used = stream.len() - wire.rest().len();
    assert!(used <= BYTES_MAX, "{used} bytes were read");
    match &result {
        Ok((_, read)) => assert_eq!(read, &stream[..used], "what was read is handed on"),
        Err(ClientHelloError::TooLarge { bytes_max }) => {
            assert_eq!((used, *bytes_max), (BYTES_MAX, BYTES_MAX))
        }
        Err(ClientHelloError::Closed { bytes }) => assert_eq!((used, *bytes), (stream.len(), used)),
        Err(ClientHelloError::Malformed(_)) => {}
        Err(error @ (ClientHelloError::TimedOut { .. } | ClientHelloError::Io(_))) => panic!("{error}"),
    }
    result
}

fn understood(facts: &ClientHelloFacts, stream: &[u8]) {
    if let Some(asked) = served_name(stream) {
        assert_eq!(asked, facts.sni, "who ends the TLS sees the name that was routed");
    }
    let read = reading::facts(stream).unwrap_or_else(|| panic!("unreadable, and yet {facts:?}"));
    // RFC 6066 §3 writes names without the last dot; rustls takes it away where a client wrote it.
    let lower = |name: &String| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    match &facts.sni {
        Some(name) => assert_eq!(read.names.iter().map(lower).collect::<Vec<_>>(), [lower(name)]),
        // An address in place of a name counts as none.
        None => assert!(
            read.names
                .iter()
                .all(|name| name.parse::<std::net::IpAddr>().is_ok())
        ),
    }
    assert_eq!(read.alpn, facts.alpn);
    let cluster = ClusterName::parse("iap.example.com").unwrap();
    if let Some(name) = facts
        .sni
        .as_ref()
        .and_then(|sni| ServerName::parse(sni, &cluster).ok())
    {
        let host = name.host(&cluster);
        assert_eq!(ServerName::parse(&host, &cluster), Ok(name));
        assert_eq!(Some(host), facts.sni.as_ref().map(lower));
    }
}

/// The name that a TLS server with certificates is asked for, if it comes to that.
fn served_name(stream: &[u8]) -> Option<Option<String>> {
    static CONFIG: OnceLock<Arc<rustls::ServerConfig>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Listener));
        Arc::new(config)
    });
    ASKED.with_borrow_mut(|asked| *asked = None);
    let mut server = ServerConnection::new(Arc::clone(config)).unwrap();
    let mut rest = stream;
    while !rest.is_empty() {
        match server.read_tls(&mut rest) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        if server.process_new_packets().is_err() || ASKED.with_borrow(Option::is_some) {
            break;
        }
    }
    ASKED.with_borrow_mut(Option::take)
}

thread_local! {
    static ASKED: RefCell<Option<Option<String>>> = const { RefCell::new(None) };
}

/// Notes what it is asked for, and has no certificate.
#[derive(Debug)]
struct Listener;

impl ResolvesServerCert for Listener {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_owned);
        ASKED.with_borrow_mut(|asked| *asked = Some(name));
        None
    }
}

pub(crate) fn seeds() -> Seeds {
    let versions: [(&str, &[&rustls::SupportedProtocolVersion]); 3] = [
        ("tls13", &[&rustls::version::TLS13]),
        ("tls12", &[&rustls::version::TLS12]),
        ("both", rustls::ALL_VERSIONS),
    ];
    let mut seeds = Vec::new();
    for (version, versions) in versions {
        for (what, name, alpn) in [
            ("service", "db-prod.iap.example.com", "iap/1"),
            ("auth", "auth.iap.example.com", "h2"),
            ("address", "127.0.0.1", "http/1.1"),
        ] {
            let hello = client_hello(versions, name, alpn);
            seeds.push((format!("{version}-{what}"), [&[0], hello.as_slice()].concat()));
        }
    }
    let hello = client_hello(&[&rustls::version::TLS13], "db.iap.example.com", "postgresql");
    seeds.push((
        "fragments".to_owned(),
        [&[7], fragmented(&hello).as_slice()].concat(),
    ));
    seeds.push(("cut".to_owned(), [&[0], &hello[..hello.len() / 2]].concat()));
    seeds.push(("http".to_owned(), b"\0GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec()));
    seeds
}

fn client_hello(versions: &[&'static rustls::SupportedProtocolVersion], name: &str, alpn: &str) -> Vec<u8> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let name = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same message in records of 200 bytes.
fn fragmented(record: &[u8]) -> Vec<u8> {
    let fragment = |piece: &[u8]| {
        let length = u16::try_from(piece.len()).unwrap().to_be_bytes();
        [&record[..3], &length, piece].concat()
    };
    record[5..].chunks(200).flat_map(fragment).collect()
}
