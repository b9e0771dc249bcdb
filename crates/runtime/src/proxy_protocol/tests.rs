//! Headers as the specification draws them, and what is none.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use proptest::prelude::*;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

fn trusted() -> Vec<Cidr> {
    vec![Cidr::parse("127.0.0.0/8").unwrap()]
}

fn peer() -> SocketAddr {
    "127.0.0.1:5000".parse().unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}

fn read_bytes(bytes: &[u8]) -> (Result<SocketAddr, ProxyHeaderError>, usize) {
    let mut rest = bytes;
    let result = block_on(read(&mut rest, peer(), &trusted(), TIMEOUT));
    (result, rest.len())
}

#[test]
fn a_header_is_as_the_specification_draws_it() {
    let header = encode(
        "192.0.2.7:1025".parse().unwrap(),
        "192.0.2.1:443".parse().unwrap(),
    );
    let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    expected.extend([192, 0, 2, 7, 192, 0, 2, 1, 4, 1, 1, 187]);
    assert_eq!(header, expected);
}

#[test]
fn a_sender_that_is_not_listed_is_refused_before_anything_is_read() {
    let header = encode(
        "192.0.2.7:1025".parse().unwrap(),
        "192.0.2.1:443".parse().unwrap(),
    );
    let mut rest = header.as_slice();
    let stranger = "192.0.2.99:1".parse().unwrap();
    let result = block_on(read(&mut rest, stranger, &trusted(), TIMEOUT));
    assert!(matches!(result, Err(ProxyHeaderError::NotAllowed { .. })));
    assert_eq!(rest.len(), header.len());
}

#[test]
fn a_local_header_speaks_for_its_sender() {
    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_2 | LOCAL, 0, 0, 0]);
    assert_eq!(read_bytes(&header).0.unwrap(), peer());
}

#[test]
fn a_local_header_speaks_for_its_sender_whatever_else_it_carries() {
    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_2 | LOCAL, TCP_OVER_IPV4, 0, 5, 1, 2, 3, 4, 5]);
    header.extend(b"next");
    let (client, left) = read_bytes(&header);
    assert_eq!(client.unwrap(), peer());
    assert_eq!(left, 4);
}

#[test]
fn addresses_of_different_families_and_mapped_ones_are_read_back_canonical() {
    for (from, to) in [
        ("[2001:db8::7]:1025", "[2001:db8::1]:443"),
        ("192.0.2.7:1025", "[2001:db8::1]:443"),
        ("[::ffff:192.0.2.7]:1025", "192.0.2.1:443"),
    ] {
        let client: SocketAddr = from.parse().unwrap();
        let read = read_bytes(&encode(client, to.parse().unwrap())).0.unwrap();
        assert_eq!(read, SocketAddr::new(client.ip().to_canonical(), client.port()));
    }
}

#[test]
fn a_sender_that_forwards_from_a_unix_socket_is_all_there_is_to_know() {
    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_2 | PROXY, UNIX_STREAM, 0, 216]);
    header.extend([b'/'; UNIX_BODY_BYTES]);
    assert_eq!(read_bytes(&header).0.unwrap(), peer());
    header[15] = 215;
    header.pop();
    assert!(read_bytes(&header).0.is_err(), "shorter than its addresses");
}

fn extended(pairs: &[(u8, &str)]) -> Vec<u8> {
    let mut all = Extensions::default();
    for (kind, value) in pairs {
        all.push(*kind, value).unwrap();
    }
    encode_with(
        "192.0.2.7:1025".parse().unwrap(),
        "192.0.2.1:443".parse().unwrap(),
        &all,
    )
}

#[test]
fn extensions_are_read_over_and_their_checksum_is_checked() {
    let good = extended(&[
        (extensions::AUTHORITY, "db.iap.example.com"),
        (extensions::USER_NAME, "alice"),
    ]);
    assert_eq!(read_bytes(&good).0.unwrap(), "192.0.2.7:1025".parse().unwrap());
    let place = good.windows(5).position(|window| window == b"alice").unwrap();
    for (index, why) in [
        (place, "a value"),
        (16, "an address"),
        (good.len() - 1, "the checksum"),
    ] {
        let mut changed = good.clone();
        changed[index] ^= 1;
        let error = read_bytes(&changed).0.unwrap_err();
        assert!(error.to_string().contains("checksum"), "{why}: {error}");
    }
}

#[test]
fn extensions_that_are_cut_short_are_refused() {
    let good = extended(&[(extensions::AUTHORITY, "db.iap.example.com")]);
    let extensions = good.len() - HEAD_BYTES - IPV4_BODY_BYTES;
    // The length in the head says less than the extensions take: the last one no longer fits.
    for missing in [1, 3, 5, 6] {
        let mut cut = good.clone();
        cut.truncate(good.len() - missing);
        cut[15] -= u8::try_from(missing).unwrap();
        assert!(
            read_bytes(&cut).0.is_err(),
            "{missing} of {extensions} bytes are missing"
        );
    }
    let mut three_byte_sum = good[..HEAD_BYTES + IPV4_BODY_BYTES].to_vec();
    three_byte_sum[15] = 12 + 6;
    three_byte_sum.extend([extensions::CRC32C, 0, 3, 0, 0, 0]);
    assert!(read_bytes(&three_byte_sum).0.is_err());
}

#[test]
fn faulty_headers_are_refused() {
    let good = encode(
        "192.0.2.7:1025".parse().unwrap(),
        "192.0.2.1:443".parse().unwrap(),
    );
    let changed = |place: usize, value: u8| {
        let mut header = good.clone();
        header[place] = value;
        read_bytes(&header).0
    };
    assert!(changed(12, 0x21).is_ok(), "unchanged");
    assert!(changed(0, b'\n').is_err(), "signature");
    assert!(changed(12, 0x11).is_err(), "version");
    assert!(changed(12, 0x22).is_err(), "command");
    assert!(changed(13, 0x12).is_err(), "UDP");
    assert!(changed(15, 11).is_err(), "too short for its addresses");
    assert!(changed(14, 0xff).is_err(), "too long");
    assert!(read_bytes(&good[..good.len() - 1]).0.is_err(), "truncated");
}

proptest! {
    #[test]
    fn a_header_is_read_back_and_nothing_behind_it(from: (u128, u16), to: (u128, u16), four: bool, tail: Vec<u8>) {
        let address = |bits: u128, port| match four {
            true => SocketAddr::new(IpAddr::from(Ipv4Addr::from_bits(bits as u32)), port),
            false => SocketAddr::new(IpAddr::from(Ipv6Addr::from_bits(bits)).to_canonical(), port),
        };
        let client = address(from.0, from.1);
        let mut bytes = encode(client, address(to.0, to.1));
        bytes.extend(&tail);
        let (read, left) = read_bytes(&bytes);
        prop_assert_eq!(read.unwrap(), client);
        prop_assert_eq!(left, tail.len());
    }

    #[test]
    fn no_bytes_make_the_parser_panic(mut bytes: Vec<u8>, with_signature: bool) {
        if with_signature {
            bytes.splice(0..0, SIGNATURE);
        }
        let _ = read_bytes(&bytes);
    }
}
