//! Control messages between proxy and agent: framed in any pieces, bounded, the same after being written back,
//! and held to the order of the conversation.

use iap_identity::{ConnectionId, ServiceName};
use iap_proto::{decode_control, encode_control};
use iap_tunnel::frame::LENGTH_BYTES;
use iap_tunnel::{
    CONTROL_FRAME_BYTES_MAX, ControlMessage, Conversation, LengthPrefixed, RefusedService, Side, Token,
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
        let name = message.name();
        let Ok(_) = conversation.accept(message) else {
            return;
        };
        assert_eq!(greeted, name != "hello", "{name} at the wrong moment");
        greeted = true;
        let from_agent = ["announce", "open_refused", "verdict"].contains(&name);
        let from_proxy = ["announced", "open", "drain"].contains(&name);
        match side {
            Side::Agent => assert!(!from_proxy, "{name} from an agent"),
            Side::Proxy => assert!(!from_agent, "{name} from a proxy"),
        }
        assert!(conversation.version().is_some());
    }
}

pub(crate) fn seeds() -> Seeds {
    let connection_id = ConnectionId::from_uuid(super::snapshot::ID);
    let db = || ServiceName::parse("db-prod").unwrap();
    let hello = || ControlMessage::Hello {
        version: 1,
        software: "iap-agent 0.1".to_owned(),
        data: "tcp".to_owned(),
        run: None,
    };
    let open = |service| ControlMessage::Open {
        connection_id,
        token: Token::from_random([5; 16]),
        service,
        client_address: "[2001:db8::1]:4711".parse().unwrap(),
        pooled: None,
    };
    let from_agent = vec![
        hello(),
        ControlMessage::Announce {
            services: vec![(db(), vec![0x30, 0x82, 1, 2])],
        },
        ControlMessage::OpenRefused {
            connection_id,
            reason: "full".to_owned(),
        },
        ControlMessage::Verdict {
            connection_id,
            authenticated: true,
        },
        ControlMessage::Ping(7),
    ];
    let from_proxy = vec![
        hello(),
        ControlMessage::Announced {
            accepted: vec![db()],
            refused: vec![RefusedService {
                name: db(),
                reason: "expired".to_owned(),
            }],
        },
        open(Some(db())),
        open(None),
        ControlMessage::Pong(u64::MAX),
        ControlMessage::Drain { deadline_seconds: 30 },
    ];
    let mut seeds = Vec::new();
    for (who, messages) in [("agent", from_agent), ("proxy", from_proxy)] {
        let mut all = vec![9];
        for message in messages {
            let name = message.name();
            let frame = encode_control(message).unwrap();
            all.extend(&frame);
            seeds.push((format!("{who}-{name}"), [&[0], &frame[LENGTH_BYTES..]].concat()));
        }
        seeds.push((format!("{who}-conversation"), all));
    }
    seeds.push(("unknown".to_owned(), vec![0, 0xfa, 1, 0]));
    seeds
}
