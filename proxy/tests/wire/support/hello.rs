//! ClientHellos: from rustls where an honest one will do, by hand where it must be odd.

use std::sync::Arc;

use iap_runtime::tls::{self, Material, ServerVerifier};
use iap_testkit::TestCluster;
use rustls::ClientConnection;

/// What an honest client of today sends, post-quantum key share included.
pub fn hello(cluster: &TestCluster, name: &str) -> Vec<u8> {
    let material = Material::new(cluster.bundle().clone());
    let config = tls::client_config(Arc::new(ServerVerifier::new(material)), None, &[]).unwrap();
    let name = name.to_owned().try_into().unwrap();
    let mut connection = ClientConnection::new(config, name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// A ClientHello whose server name is these bytes, whatever they are.
pub fn raw_name_hello(name: &[u8]) -> Vec<u8> {
    let entry = [&[0][..], &length16(name)].concat();
    records(&handshake(&[extension(0, &length16(&entry))]))
}

pub fn hello_without_name() -> Vec<u8> {
    records(&handshake(&[]))
}

/// A well-formed ClientHello of at least `bytes`.
pub fn padded_hello(name: &str, bytes: usize) -> Vec<u8> {
    let entry = [&[0][..], &length16(name.as_bytes())].concat();
    let padding = extension(21, &vec![0; bytes]);
    records(&handshake(&[extension(0, &length16(&entry)), padding]))
}

fn handshake(extra: &[Vec<u8>]) -> Vec<u8> {
    let key_share = [&[0, 29, 0, 32][..], &[9; 32]].concat();
    let mut extensions = vec![
        extension(43, &[2, 3, 4]),               // supported_versions: TLS 1.3
        extension(13, &length16(&[4, 3, 8, 4])), // signature_algorithms
        extension(10, &length16(&[0, 29])),      // supported_groups: X25519
        extension(51, &length16(&key_share)),    // key_share
    ];
    extensions.extend_from_slice(extra);
    let mut body = vec![3, 3];
    body.extend([7; 32]); // random
    body.push(0); // no session id
    body.extend(length16(&[0x13, 0x01]));
    body.extend([1, 0]); // no compression
    body.extend(length16(&extensions.concat()));
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1][..], &length[1..], &body].concat()
}

/// Cut into records of at most 16 KiB (RFC 8446 §5.1).
fn records(handshake: &[u8]) -> Vec<u8> {
    let record = |fragment: &[u8]| [&[22, 3, 1][..], &length16(fragment)].concat();
    handshake.chunks(16 * 1024).flat_map(record).collect()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &length16(body)].concat()
}

fn length16(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    [&length[..], bytes].concat()
}
