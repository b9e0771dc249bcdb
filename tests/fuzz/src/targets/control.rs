//! Control messages between proxy and agent: framed in any pieces, bounded, the same after being written back,
//! and held to the order of the conversation.

use std::collections::BTreeMap;

use iap_identity::{ConnectionId, ServiceName};
use iap_proto::{decode_control, encode_control};
use iap_tunnel::frame::LENGTH_BYTES;
use iap_tunnel::{
    CONTROL_FRAME_BYTES_MAX, CancelRequest, ControlMessage, Conversation, DataOffer, LengthPrefixed,
    RefusedService, RunId, Side, Token,
};

use super::Seeds;
use crate::input::{choice, pieces};

pub(crate) fn run(bytes: &[u8]) {
    let Some((size, stream)) = choice(bytes, u8::MAX) else {
        return;
    };
    message(stream);
    let whole = frames(stream, 0);
    assert_eq!(frames(stream, size), whole, "pieces make no difference");
    for side in [Side::Agent, Side::Proxy] {
        converse(side, &whole);
    }
}

fn frames(stream: &[u8], size: u8) -> Vec<Vec<u8>> {
    let mut decoder = LengthPrefixed::new(CONTROL_FRAME_BYTES_MAX);
    let mut found = Vec::new();
    for piece in pieces(stream, size) {
        decoder.push(piece);
        while let Ok(Some(frame)) = decoder.next_frame() {
            assert!(frame.len() <= CONTROL_FRAME_BYTES_MAX);
            found.push(frame);
        }
        assert!(decoder.buffered() <= LENGTH_BYTES + CONTROL_FRAME_BYTES_MAX + piece.len());
    }
    found
}

/// Reads one message, writes it, and reads it again: the second writing must be the first.
fn message(payload: &[u8]) -> Option<ControlMessage> {
    let message = decode_control(payload).ok()??;
    let name = message.name();
    let written = match encode_control(message) {
        Ok(written) => written,
        // Some encodings are longer than the wire's; what does not fit is refused.
        Err(_) => {
            assert!(payload.len() * 2 > CONTROL_FRAME_BYTES_MAX);
            return None;
        }
    };
    let read = || {
        decode_control(&written[LENGTH_BYTES..])
            .unwrap_or_else(|error| panic!("{name}: {error}"))
            .unwrap_or_else(|| panic!("{name} became unknown"))
    };
    assert_eq!(encode_control(read()).unwrap(), written, "{name}");
    Some(read())
}

/// Nothing is accepted before a hello, no second hello, and nothing from the wrong side.
fn converse(side: Side, frames: &[Vec<u8>]) {
    let mut conversation = Conversation::with(side);
    let mut greeted = false;
    for message in frames.iter().filter_map(|frame| message(frame)) {
        let (name, only_from) = (message.name(), only_from(&message));
        let Ok(_) = conversation.accept(message) else {
            return;
        };
        assert_eq!(greeted, name != "hello", "{name} at the wrong moment");
        greeted = true;
        assert_ne!(only_from, Some(other(side)), "{name} from the wrong side");
        assert!(conversation.version().is_some());
    }
}

/// The one side that a message comes from; written from docs/protocol.md and not from the code under test.
fn only_from(message: &ControlMessage) -> Option<Side> {
    match message {
        ControlMessage::Announce { .. }
        | ControlMessage::PoolAsk { .. }
        | ControlMessage::OpenRefused { .. }
        | ControlMessage::Verdict { .. }
        | ControlMessage::Resumable { .. } => Some(Side::Agent),
        ControlMessage::Announced { .. }
        | ControlMessage::Open { .. }
        | ControlMessage::PoolTokens { .. }
        | ControlMessage::Cancel(_)
        | ControlMessage::Drain { .. } => Some(Side::Proxy),
        ControlMessage::Hello { .. } | ControlMessage::Ping(_) | ControlMessage::Pong(_) => None,
    }
}

fn other(side: Side) -> Side {
    match side {
        Side::Agent => Side::Proxy,
        Side::Proxy => Side::Agent,
    }
}

/// One of each message, and more of those with optional parts.
pub(crate) fn seeds() -> Seeds {
    let connection_id = ConnectionId::from_uuid(super::snapshot::ID);
    let db = || ServiceName::parse("db-prod").unwrap();
    let hello = |run| ControlMessage::Hello {
        version: 1,
        software: "iap-agent 0.1".to_owned(),
        data: DataOffer::OWN.to_string(),
        run,
    };
    let open = |service, pooled| ControlMessage::Open {
        connection_id,
        token: Token::from_random([5; 16]),
        service,
        client_address: "[2001:db8::1]:4711".parse().unwrap(),
        pooled,
    };
    let pool_tokens = |count: u8| ControlMessage::PoolTokens {
        tokens: (0..count)
            .map(|byte| (connection_id, Token::from_random([byte; 16])))
            .collect(),
        idle_seconds: 300,
    };
    let from_agent = vec![
        hello(Some(RunId::from_bytes([6; RunId::BYTES]))),
        ControlMessage::Announce {
            services: vec![(db(), vec![0x30, 0x82, 1, 2])],
        },
        ControlMessage::PoolAsk { connections: 4 },
        ControlMessage::OpenRefused {
            connection_id,
            reason: "full".to_owned(),
        },
        ControlMessage::Verdict {
            connection_id,
            authenticated: true,
        },
        ControlMessage::Resumable { connection_id },
        ControlMessage::Ping(7),
    ];
    let from_proxy = vec![
        hello(None),
        ControlMessage::Announced {
            accepted: vec![db()],
            refused: vec![RefusedService {
                name: db(),
                reason: "expired".to_owned(),
            }],
        },
        open(Some(db()), None),
        open(None, None),
        open(Some(db()), Some(connection_id)),
        pool_tokens(2),
        pool_tokens(0),
        ControlMessage::Cancel(CancelRequest::new(7, vec![8; 4]).unwrap()),
        ControlMessage::Pong(u64::MAX),
        ControlMessage::Drain { deadline_seconds: 30 },
    ];
    let mut seeds = Vec::new();
    for (who, messages) in [("agent", from_agent), ("proxy", from_proxy)] {
        let (mut all, mut named) = (vec![9], BTreeMap::new());
        for message in messages {
            let name = message.name();
            let frame = encode_control(message).unwrap();
            all.extend(&frame);
            let before = named.entry(name).and_modify(|count| *count += 1).or_insert(1);
            let number = if *before > 1 {
                format!("-{before}")
            } else {
                String::new()
            };
            let payload = [&[0], &frame[LENGTH_BYTES..]].concat();
            seeds.push((format!("{who}-{name}{number}"), payload));
        }
        seeds.push((format!("{who}-conversation"), all));
    }
    seeds.push(("unknown".to_owned(), vec![0, 0xfa, 1, 0]));
    seeds
}
