//! Both ends in memory, and one that seals what it should not.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

use iap_testkit::TestCluster;
use proptest::prelude::*;
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::cipher::Iv;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, ConnectionTrafficSecrets, ServerConfig};
use time::OffsetDateTime;
use uuid::Uuid;

use super::*;
use crate::tls::stream::schedule::TrafficSecrets;
use crate::tls::{FixedIdentity, Material, ServerVerifier, certified_key, client_config, web_server_config};

static CONFIGS: LazyLock<(Arc<ClientConfig>, Arc<ServerConfig>)> = LazyLock::new(|| {
    let cluster = TestCluster::at("iap.example.com", OffsetDateTime::now_utc()).unwrap();
    let leaf = cluster
        .service_leaf(iap_identity::AgentId::from_uuid(Uuid::now_v7()), "db")
        .unwrap();
    let key = certified_key(leaf.chain.clone(), leaf.private_key().unwrap()).unwrap();
    let servers = Arc::new(ServerVerifier::new(Material::new(cluster.bundle().clone())));
    (
        client_config(servers, None, &[]).unwrap(),
        web_server_config(Arc::new(FixedIdentity(key)), &[]).unwrap(),
    )
});

/// One step of a handshake in memory: what is to be sent goes to `wire`. Whether it needs to be shown more.
fn step<Data>(status: UnbufferedStatus<'_, '_, Data>, wire: &mut Vec<u8>) -> (usize, bool) {
    let blocked = match status.state.unwrap() {
        ConnectionState::EncodeTlsData(mut message) => {
            let mut space = vec![0; 1 << 15];
            let length = message.encode(&mut space).unwrap();
            wire.extend_from_slice(&space[..length]);
            false
        }
        ConnectionState::TransmitTlsData(message) => {
            message.done();
            false
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => true,
        other => panic!("{other:?}"),
    };
    (status.discard, blocked)
}

/// Two ends of one connection.
fn pair() -> (Session, Session) {
    let (client, server) = &*CONFIGS;
    let (mut client, mut server) = (ClientConfig::clone(client), ServerConfig::clone(server));
    let (at_client, at_server) = <(Arc<TrafficSecrets>, Arc<TrafficSecrets>)>::default();
    client.key_log = Arc::clone(&at_client) as _;
    server.key_log = Arc::clone(&at_server) as _;
    let name = "db.iap.example.com".try_into().unwrap();
    let mut client = UnbufferedClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = UnbufferedServerConnection::new(Arc::new(server)).unwrap();
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    while client.is_handshaking() || server.is_handshaking() {
        loop {
            let (discard, blocked) = step(client.process_tls_records(&mut to_client), &mut to_server);
            to_client.drain(..discard);
            if blocked {
                break;
            }
        }
        loop {
            let (discard, blocked) = step(server.process_tls_records(&mut to_server), &mut to_client);
            to_server.drain(..discard);
            if blocked {
                break;
            }
        }
    }
    let suite = client.negotiated_cipher_suite().unwrap();
    let schedule = |end, secrets: &TrafficSecrets| Schedule::new(end, suite, secrets).unwrap();
    let (of_client, of_server) = (
        schedule(End::Client, &at_client),
        schedule(End::Server, &at_server),
    );
    let keys = client.dangerous_into_kernel_connection().unwrap().0;
    let client = Session::new(End::Client, keys, of_client).unwrap();
    let keys = server.dangerous_into_kernel_connection().unwrap().0;
    (client, Session::new(End::Server, keys, of_server).unwrap())
}

impl Session {
    /// From here on it changes its keys after so many records.
    pub(in crate::tls) fn change_keys_after(&mut self, records: u64) {
        self.sealed_max = self.sealing.sequence() + records;
    }

    fn seal_one(&mut self, content_type: u8, content: &[u8]) -> Vec<u8> {
        let mut space = vec![0; content.len() + PROTECTION_BYTES];
        let length = self.sealing.seal(content_type, content, &mut space).unwrap();
        assert_eq!(length, space.len());
        space
    }

    fn seal_all(&mut self, pieces: &[&[u8]]) -> Vec<u8> {
        let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let wanted: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut space = vec![0; wanted + (wanted / FRAGMENT_BYTES_MAX + 2) * 200];
        let (taken, filled) = self.seal(&pieces, &mut space).unwrap();
        assert_eq!(taken, wanted);
        space.truncate(filled);
        space
    }

    /// What comes of all records in `wire`: data, and what is answered.
    fn open_all(&mut self, mut wire: &[u8], target: usize) -> Result<(Vec<u8>, Vec<u8>), Fault> {
        let (mut data, mut answer, mut target) = (Vec::new(), Vec::new(), vec![0; target]);
        while let Some(length) = record_bytes(wire)? {
            let mut record = wire[..length].to_vec();
            wire = &wire[length..];
            match self.open(&mut record, &mut target, &mut answer)? {
                Opened::Into(bytes) => data.extend_from_slice(&target[..bytes]),
                Opened::InPlace(place) => data.extend_from_slice(&record[place]),
                Opened::Nothing => {}
                Opened::Closed => break,
            }
        }
        Ok((data, answer))
    }

    fn hears(&mut self, wire: &[u8], expected: &[u8]) {
        let (data, answer) = self.open_all(wire, 1 << 15).unwrap();
        assert!(data == expected && answer.is_empty());
    }
}

const UPDATE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];
const UPDATE_BOTH: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 1];

/// As if the peer had sent a KeyUpdate in these records, and taken its new keys.
fn update(session: &mut Session, records: &[&[u8]]) -> Vec<u8> {
    let wire = records
        .iter()
        .flat_map(|content| session.seal_one(HANDSHAKE, content))
        .collect();
    session.sealing = session.schedule.next_sealing().unwrap();
    wire
}

#[test]
fn a_key_update_is_followed_in_one_record_or_in_several() {
    let (client, server) = pair();
    for (mut one, mut other) in [(client, server), {
        let (client, server) = pair();
        (server, client)
    }] {
        for records in [
            &[&UPDATE[..]][..],
            &[&UPDATE[..1], &UPDATE[1..]],
            &[&UPDATE[..4], &UPDATE[4..]],
        ] {
            other.hears(&update(&mut one, records), b"");
            other.hears(&one.seal_all(&[b"under other keys"]), b"under other keys");
        }
    }
}

#[test]
fn a_key_update_that_asks_for_another_is_answered_once_until_the_answer_has_left() {
    let (mut one, mut other) = pair();
    let mut wire = update(&mut one, &[&UPDATE_BOTH]);
    wire.extend(update(&mut one, &[&UPDATE_BOTH]));
    wire.extend(one.seal_all(&[b"data"]));
    let (data, answer) = other.open_all(&wire, 100).unwrap();
    assert_eq!(data, b"data");
    assert_eq!(answer.len(), KEY_UPDATE_BYTES + PROTECTION_BYTES);
    // What is sealed after the answer is sealed with other keys.
    let behind = other.seal_all(&[b"behind"]);
    assert!(one.open_all(&behind, 100).is_err(), "the answer is missing");
    let (mut one, mut other) = pair();
    let (_, answer) = other.open_all(&update(&mut one, &[&UPDATE_BOTH]), 100).unwrap();
    let before = one.open_all(&answer, 100).unwrap();
    assert!(before.0.is_empty() && before.1.is_empty());
    one.hears(&other.seal_all(&[b"behind"]), b"behind");
    let (_, again) = other.open_all(&update(&mut one, &[&UPDATE_BOTH]), 100).unwrap();
    assert!(!again.is_empty());
}

#[test]
fn what_was_sealed_with_the_keys_before_is_refused_after_a_key_update() {
    let (mut one, mut other) = pair();
    let late = one.seal_one(APPLICATION_DATA, b"late");
    one.sealing = one.schedule.next_sealing().unwrap();
    other.opening = other.schedule.next_opening().unwrap();
    let fault = other.open_all(&late, 100).unwrap_err();
    assert_eq!(
        (fault.error, fault.alert),
        (Error::DecryptError, Some(AlertDescription::BadRecordMac))
    );
}

#[test]
fn a_record_is_good_once_and_in_its_order() {
    let (mut one, mut other) = pair();
    let (first, second) = (one.seal_all(&[b"first"]), one.seal_all(&[b"second"]));
    other.hears(&first, b"first");
    assert!(other.open_all(&first, 100).is_err(), "again");
    let (mut one, mut other) = pair();
    let (first, second_too) = (one.seal_all(&[b"first"]), one.seal_all(&[b"second"]));
    assert_eq!(second.len(), second_too.len());
    assert!(other.open_all(&second_too, 100).is_err(), "too early");
    assert!(!first.is_empty());
}

#[test]
fn a_sequence_does_not_wrap() {
    let secrets = ConnectionTrafficSecrets::Aes256Gcm {
        key: [7; 32].into(),
        iv: Iv::new([7; 12]),
    };
    let mut last = Keys::new((u64::MAX, secrets)).unwrap();
    let mut space = [0; 100];
    assert_eq!(
        last.seal(APPLICATION_DATA, b"one more", &mut space),
        Err(Error::EncryptError)
    );
    let sealed = last.seal_written(APPLICATION_DATA, 3, &mut space, |_| {});
    assert_eq!(sealed, Err(Error::EncryptError));
    assert!(last.open_in_place(&mut space[..50]).is_err());
}

#[test]
fn keys_are_changed_before_they_have_protected_too_much() {
    let (mut one, mut other) = pair();
    assert_eq!(
        one.sealed_max,
        1 << 24,
        "AES-GCM with records of the largest size"
    );
    one.change_keys_after(3);
    let limit = one.sealed_max;
    let bytes: Vec<u8> = (0..400_000_u32).map(|index| (index / 5) as u8).collect();
    let wire = one.seal_all(&[&bytes]);
    assert!(one.sealing.sequence() < limit);
    let (data, answer) = other.open_all(&wire, 1 << 15).unwrap();
    assert!(data == bytes && answer.is_empty());
    // A buffer that has no room for both says so, and nothing is lost.
    for room in 0..60 {
        let mut space = vec![0; room];
        let (taken, filled) = one.seal(&[IoSlice::new(b"0123456789")], &mut space).unwrap();
        other.hears(&space[..filled], &b"0123456789"[..taken]);
    }
}

#[test]
fn a_handshake_message_without_an_end_takes_no_more_than_it_may() {
    let (mut server, mut client) = {
        let (client, server) = pair();
        (server, client)
    };
    // A ticket of the largest size, in pieces of one byte and of a whole record.
    let mut ticket = vec![NEW_SESSION_TICKET, 0, 0xff, 0xff];
    for piece in [
        &ticket.clone()[..],
        &[1; FRAGMENT_BYTES_MAX],
        &[1; FRAGMENT_BYTES_MAX],
        &[1; FRAGMENT_BYTES_MAX],
    ] {
        let wire = server.seal_one(HANDSHAKE, piece);
        client.hears(&wire, b"");
        assert!(client.handshake.len() <= HANDSHAKE_HEADER_BYTES + HANDSHAKE_BYTES_MAX);
    }
    ticket[1] = 1;
    let fault = pair_fault(&[(HANDSHAKE, &ticket)]);
    assert_eq!(fault.alert, Some(AlertDescription::DecodeError));
}

/// What a client objects to in what its server sends.
fn pair_fault(records: &[(u8, &[u8])]) -> Fault {
    let (mut client, mut server) = pair();
    let wire: Vec<u8> = records
        .iter()
        .flat_map(|(content_type, content)| server.seal_one(*content_type, content))
        .collect();
    client.open_all(&wire, 1 << 15).unwrap_err()
}

#[test]
fn pieces_are_gathered_into_full_records() {
    let (mut one, mut other) = pair();
    let long = vec![9; FRAGMENT_BYTES_MAX];
    for pieces in [
        &[&b""[..], b"", b"one"][..],
        &[b"head", &long, b"tail"],
        &[&long, &long],
        &[b"", &long, b"", &long, b"x"],
        &[],
    ] {
        let whole = pieces.concat();
        let wire = one.seal_all(pieces);
        let records = whole.len().div_ceil(FRAGMENT_BYTES_MAX);
        assert_eq!(wire.len(), whole.len() + records * PROTECTION_BYTES);
        other.hears(&wire, &whole);
    }
}

/// What happens between two ends.
#[derive(Debug, Clone)]
enum Event {
    Data {
        from_client: bool,
        pieces: Vec<usize>,
    },
    Update {
        from_client: bool,
        asks: bool,
    },
    Deliver {
        to_client: bool,
        records: usize,
        target: usize,
    },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let piece = prop_oneof![0..30_usize, 0..40_000_usize];
    let event = prop_oneof![
        4 => (any::<bool>(), prop::collection::vec(piece, 0..4))
            .prop_map(|(from_client, pieces)| Event::Data { from_client, pieces }),
        1 => any::<(bool, bool)>().prop_map(|(from_client, asks)| Event::Update { from_client, asks }),
        4 => (any::<bool>(), 0..6_usize, prop_oneof![1..40_usize, 1..40_000_usize])
            .prop_map(|(to_client, records, target)| Event::Deliver { to_client, records, target }),
    ];
    prop::collection::vec(event, 0..60)
}

/// One direction of the wire, and what should come out of it.
#[derive(Default)]
struct Way {
    records: VecDeque<Vec<u8>>,
    expected: VecDeque<u8>,
    /// Updates since the last data.
    updates: usize,
}

impl Way {
    fn put(&mut self, wire: &[u8]) {
        let mut rest = wire;
        while let Some(length) = record_bytes(rest).unwrap() {
            self.records.push_back(rest[..length].to_vec());
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Data and KeyUpdates in any order, each direction delivered as late as it likes.
    #[test]
    fn any_history_of_data_and_key_updates_comes_out_as_it_went_in(events in events(), records_max in 3_u64..20) {
        let (mut client, mut server) = pair();
        client.change_keys_after(records_max);
        server.change_keys_after(records_max + 1);
        let (mut to_client, mut to_server) = (Way::default(), Way::default());
        let mut counter = 0_u8;
        for event in events {
            match event {
                Event::Data { from_client, pieces } => {
                    let (end, way) = if from_client { (&mut client, &mut to_server) } else { (&mut server, &mut to_client) };
                    let pieces: Vec<Vec<u8>> = pieces.iter().map(|length| {
                        counter = counter.wrapping_add(1);
                        vec![counter; *length]
                    }).collect();
                    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
                    way.put(&end.seal_all(&pieces));
                    way.expected.extend(pieces.concat());
                    way.updates = 0;
                }
                Event::Update { from_client, asks } => {
                    let (end, way) = if from_client { (&mut client, &mut to_server) } else { (&mut server, &mut to_client) };
                    if way.updates < 8 {
                        way.updates += 1;
                        way.put(&update(end, &[if asks { &UPDATE_BOTH } else { &UPDATE }]));
                    }
                }
                Event::Deliver { to_client: is_to_client, records, target } => {
                    let (end, way, back) = if is_to_client {
                        (&mut client, &mut to_client, &mut to_server)
                    } else {
                        (&mut server, &mut to_server, &mut to_client)
                    };
                    for _ in 0..records {
                        let Some(record) = way.records.pop_front() else { break };
                        let (data, answer) = end.open_all(&record, target).unwrap();
                        let expected: Vec<u8> = way.expected.drain(..data.len()).collect();
                        prop_assert!(data == expected);
                        back.put(&answer);
                    }
                }
            }
        }
        // The answers go on until there are none.
        while !to_client.records.is_empty() || !to_server.records.is_empty() {
            for (end, way, back) in [(&mut client, &mut to_client, &mut to_server)] {
                while let Some(record) = way.records.pop_front() {
                    let (data, answer) = end.open_all(&record, 100).unwrap();
                    let expected: Vec<u8> = way.expected.drain(..data.len()).collect();
                    prop_assert!(data == expected);
                    back.put(&answer);
                }
            }
            for (end, way, back) in [(&mut server, &mut to_server, &mut to_client)] {
                while let Some(record) = way.records.pop_front() {
                    let (data, answer) = end.open_all(&record, 100).unwrap();
                    let expected: Vec<u8> = way.expected.drain(..data.len()).collect();
                    prop_assert!(data == expected);
                    back.put(&answer);
                }
            }
        }
        prop_assert!(to_client.expected.is_empty() && to_server.expected.is_empty());
    }

    /// One byte of a record, changed in any way, and it is refused, and nothing of it is given.
    #[test]
    fn a_record_that_was_changed_is_refused(length in 0..200_usize, at: prop::sample::Index, flip in 1_u8.., target in 0..300_usize) {
        let (mut one, mut other) = pair();
        let mut record = one.seal_one(APPLICATION_DATA, &vec![0x55; length]);
        let at = at.index(record.len());
        record[at] ^= flip;
        let mut target = vec![0; target];
        let opened = match record_bytes(&record) {
            Ok(Some(bytes)) if bytes == record.len() => other.open(&mut record, &mut target, &mut Vec::new()).map(|_| ()),
            // Another length: there is more to come, or less than was sealed.
            Ok(Some(bytes)) if bytes < record.len() => other.open(&mut record[..bytes], &mut target, &mut Vec::new()).map(|_| ()),
            Ok(_) => return Ok(()),
            Err(fault) => Err(fault),
        };
        prop_assert!(opened.is_err(), "byte {at}");
    }
}
