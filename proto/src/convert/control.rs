//! `ControlMessage`s between proxy and agent.

use std::net::SocketAddr;

use iap_identity::{ConnectionId, ServiceName};
use iap_tunnel::{
    CONTROL_FRAME_BYTES_MAX, CancelRequest, ControlMessage, FrameError, RefusedService, RunId, Token, frame,
};
use prost::Message as _;
use thiserror::Error;

use super::WireError;
use crate::v1;
use v1::control_message::Message;

/// The frame of a message, its length included.
pub fn encode_control(message: ControlMessage) -> Result<Vec<u8>, FrameError> {
    let wire = v1::ControlMessage {
        message: Some(to_wire(message)),
    };
    frame::encode(&wire.encode_to_vec(), CONTROL_FRAME_BYTES_MAX)
}

/// Reads a frame's payload. A message of a kind this build does not know is `None`: a newer peer sent it,
/// and versions are one apart.
pub fn decode_control(payload: &[u8]) -> Result<Option<ControlMessage>, ControlDecodeError> {
    let wire = v1::ControlMessage::decode(payload)?;
    Ok(wire.message.map(from_wire).transpose()?)
}

/// Why a frame is no control message.
#[derive(Debug, Error)]
pub enum ControlDecodeError {
    /// Not protobuf.
    #[error("the control message is malformed: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// Protobuf with unacceptable content.
    #[error("control message: {0}")]
    Refused(#[from] WireError),
}

fn to_wire(message: ControlMessage) -> Message {
    match message {
        ControlMessage::Hello {
            version,
            software,
            data,
            run,
        } => Message::Hello(v1::ControlHello {
            version,
            software,
            data,
            run: run.map(|run| run.as_bytes().to_vec()).unwrap_or_default(),
        }),
        ControlMessage::Announce { services } => Message::Announce(v1::Announce {
            services: services
                .into_iter()
                .map(|(name, leaf)| v1::AnnouncedService {
                    name: name.to_string(),
                    leaf,
                })
                .collect(),
        }),
        ControlMessage::Announced { accepted, refused } => Message::Announced(v1::Announced {
            accepted: accepted.iter().map(ServiceName::to_string).collect(),
            refused: refused
                .into_iter()
                .map(|service| v1::RefusedService {
                    name: service.name.to_string(),
                    reason: service.reason,
                })
                .collect(),
        }),
        ControlMessage::Open {
            connection_id,
            token,
            service,
            client_address,
            pooled,
        } => Message::Open(v1::Open {
            connection_id: connection_id.as_bytes().to_vec(),
            token: token.expose().to_vec(),
            service: service.map(|service| service.to_string()).unwrap_or_default(),
            client_address: client_address.to_string(),
            pooled: pooled.map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
        }),
        ControlMessage::PoolAsk { connections } => Message::PoolAsk(v1::PoolAsk { connections }),
        ControlMessage::PoolTokens { tokens, idle_seconds } => Message::PoolTokens(v1::PoolTokens {
            tokens: tokens
                .into_iter()
                .map(|(id, token)| v1::PoolToken {
                    id: id.as_bytes().to_vec(),
                    token: token.expose().to_vec(),
                })
                .collect(),
            idle_seconds,
        }),
        ControlMessage::OpenRefused {
            connection_id,
            reason,
        } => Message::OpenRefused(v1::OpenRefused {
            connection_id: connection_id.as_bytes().to_vec(),
            reason,
        }),
        ControlMessage::Verdict {
            connection_id,
            authenticated,
        } => Message::Verdict(v1::Verdict {
            connection_id: connection_id.as_bytes().to_vec(),
            authenticated,
        }),
        ControlMessage::Resumable { connection_id } => Message::Resumable(v1::Resumable {
            connection_id: connection_id.as_bytes().to_vec(),
        }),
        ControlMessage::Cancel(request) => Message::Cancel(v1::Cancel {
            process_id: request.process_id,
            key: request.key,
        }),
        ControlMessage::Ping(nonce) => Message::Ping(v1::Ping { nonce }),
        ControlMessage::Pong(nonce) => Message::Pong(v1::Pong { nonce }),
        ControlMessage::Drain { deadline_seconds } => Message::Drain(v1::Drain { deadline_seconds }),
    }
}

fn from_wire(message: Message) -> Result<ControlMessage, WireError> {
    Ok(match message {
        Message::Hello(hello) => ControlMessage::Hello {
            run: run_id(&hello.run)?,
            version: hello.version,
            software: hello.software,
            data: hello.data,
        },
        Message::Announce(announce) => ControlMessage::Announce {
            services: announced_services(announce)?,
        },
        Message::Announced(announced) => announced_outcome(announced)?,
        Message::Open(open) => opening(&open)?,
        Message::PoolAsk(ask) => ControlMessage::PoolAsk {
            connections: ask.connections,
        },
        Message::PoolTokens(pool) => ControlMessage::PoolTokens {
            tokens: pool.tokens.iter().map(invitation).collect::<Result<_, _>>()?,
            idle_seconds: pool.idle_seconds,
        },
        Message::OpenRefused(refused) => ControlMessage::OpenRefused {
            connection_id: connection("OpenRefused.connection_id", &refused.connection_id)?,
            reason: refused.reason,
        },
        Message::Verdict(verdict) => ControlMessage::Verdict {
            connection_id: connection("Verdict.connection_id", &verdict.connection_id)?,
            authenticated: verdict.authenticated,
        },
        Message::Resumable(resumable) => ControlMessage::Resumable {
            connection_id: connection("Resumable.connection_id", &resumable.connection_id)?,
        },
        Message::Cancel(cancel) => ControlMessage::Cancel(cancel_request(cancel)?),
        Message::Ping(ping) => ControlMessage::Ping(ping.nonce),
        Message::Pong(pong) => ControlMessage::Pong(pong.nonce),
        Message::Drain(drain) => ControlMessage::Drain {
            deadline_seconds: drain.deadline_seconds,
        },
    })
}

fn cancel_request(cancel: v1::Cancel) -> Result<CancelRequest, WireError> {
    let key_bytes = cancel.key.len();
    CancelRequest::new(cancel.process_id, cancel.key)
        .ok_or_else(|| WireError::new("Cancel.key", format!("a key of {key_bytes} bytes")))
}

fn announced_services(announce: v1::Announce) -> Result<Vec<(ServiceName, Vec<u8>)>, WireError> {
    let parse =
        |service: v1::AnnouncedService| Ok((name("AnnouncedService.name", &service.name)?, service.leaf));
    announce.services.into_iter().map(parse).collect()
}

fn run_id(bytes: &[u8]) -> Result<Option<RunId>, WireError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let bytes = bytes
        .try_into()
        .map_err(|error| WireError::new("ControlHello.run", error))?;
    Ok(Some(RunId::from_bytes(bytes)))
}

fn announced_outcome(announced: v1::Announced) -> Result<ControlMessage, WireError> {
    let accepted = announced
        .accepted
        .iter()
        .map(|service| name("Announced.accepted", service));
    let refused = announced.refused.into_iter().map(|service| {
        Ok(RefusedService {
            name: name("RefusedService.name", &service.name)?,
            reason: service.reason,
        })
    });
    Ok(ControlMessage::Announced {
        accepted: accepted.collect::<Result<_, WireError>>()?,
        refused: refused.collect::<Result<_, WireError>>()?,
    })
}

fn opening(open: &v1::Open) -> Result<ControlMessage, WireError> {
    let service = Some(open.service.as_str()).filter(|service| !service.is_empty());
    Ok(ControlMessage::Open {
        connection_id: connection("Open.connection_id", &open.connection_id)?,
        token: Token::parse(&open.token).map_err(|error| WireError::new("Open.token", error))?,
        service: service.map(|service| name("Open.service", service)).transpose()?,
        client_address: open
            .client_address
            .parse::<SocketAddr>()
            .map_err(|error| WireError::new("Open.client_address", error))?,
        pooled: Some(open.pooled.as_slice())
            .filter(|id| !id.is_empty())
            .map(|id| connection("Open.pooled", id))
            .transpose()?,
    })
}

fn invitation(wire: &v1::PoolToken) -> Result<(ConnectionId, Token), WireError> {
    let token = Token::parse(&wire.token).map_err(|error| WireError::new("PoolToken.token", error))?;
    Ok((connection("PoolToken.id", &wire.id)?, token))
}

fn name(field: &'static str, text: &str) -> Result<ServiceName, WireError> {
    ServiceName::parse(text).map_err(WireError::name(field))
}

fn connection(field: &'static str, bytes: &[u8]) -> Result<ConnectionId, WireError> {
    ConnectionId::from_bytes(bytes).map_err(WireError::name(field))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;
    use iap_tunnel::LengthPrefixed;
    use uuid::Uuid;

    const ID: Uuid = Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0001);

    fn every_message() -> Vec<ControlMessage> {
        let connection_id = ConnectionId::from_uuid(ID);
        let db = ServiceName::parse("db-prod").unwrap();
        vec![
            ControlMessage::Hello {
                version: 1,
                software: "iap-agent 0.1".into(),
                data: "tcp".into(),
                run: Some(RunId::from_bytes([7; RunId::BYTES])),
            },
            ControlMessage::Announce {
                services: vec![(db.clone(), vec![1, 2, 3])],
            },
            ControlMessage::Announced {
                accepted: vec![db.clone()],
                refused: vec![RefusedService {
                    name: db.clone(),
                    reason: "expired".into(),
                }],
            },
            open(Some(db)),
            open(None),
            ControlMessage::PoolAsk { connections: 4 },
            ControlMessage::PoolTokens {
                tokens: vec![(connection_id, Token::from_random([6; 16]))],
                idle_seconds: 300,
            },
            ControlMessage::OpenRefused {
                connection_id,
                reason: "full".into(),
            },
            ControlMessage::Verdict {
                connection_id,
                authenticated: true,
            },
            ControlMessage::Resumable { connection_id },
            ControlMessage::Cancel(CancelRequest::new(7, vec![8; 32]).unwrap()),
            ControlMessage::Ping(7),
            ControlMessage::Pong(7),
            ControlMessage::Drain { deadline_seconds: 30 },
        ]
    }

    fn open(service: Option<ServiceName>) -> ControlMessage {
        ControlMessage::Open {
            connection_id: ConnectionId::from_uuid(ID),
            token: Token::from_random([5; 16]),
            service,
            client_address: "[2001:db8::1]:4711".parse().unwrap(),
            pooled: Some(ConnectionId::from_uuid(ID)),
        }
    }

    fn payload(message: ControlMessage) -> Vec<u8> {
        let mut decoder = LengthPrefixed::new(CONTROL_FRAME_BYTES_MAX);
        decoder.push(&encode_control(message).unwrap());
        decoder.next_frame().unwrap().unwrap()
    }

    /// The message as the wire has it, altered, and read again.
    fn decoded(alter: impl FnOnce(&mut Message)) -> Result<Option<ControlMessage>, ControlDecodeError> {
        let mut wire = to_wire(open(None));
        alter(&mut wire);
        decode_control(&v1::ControlMessage { message: Some(wire) }.encode_to_vec())
    }

    #[test]
    fn every_message_survives_the_wire() {
        for message in every_message() {
            let sent = payload(message);
            let read = decode_control(&sent).unwrap().unwrap();
            assert_eq!(payload(read), sent);
        }
    }

    #[test]
    fn a_message_of_an_unknown_kind_is_skipped_and_garbage_is_not() {
        // Field 31, length-delimited, empty.
        assert!(decode_control(&[0xfa, 0x01, 0x00]).unwrap().is_none());
        assert!(matches!(
            decode_control(&[0xff; 8]),
            Err(ControlDecodeError::Malformed(_))
        ));
    }

    #[test]
    fn an_open_with_malformed_parts_is_refused_by_field() {
        fn field(outcome: Result<Option<ControlMessage>, ControlDecodeError>) -> &'static str {
            match outcome {
                Err(ControlDecodeError::Refused(error)) => error.field,
                Err(ControlDecodeError::Malformed(error)) => panic!("{error}"),
                Ok(_) => "accepted",
            }
        }
        let alter = |change: fn(&mut v1::Open)| {
            field(decoded(|wire| match wire {
                Message::Open(open) => change(open),
                _ => panic!("an open was expected"),
            }))
        };
        assert_eq!(alter(|_| ()), "accepted");
        assert_eq!(alter(|open| open.token.truncate(15)), "Open.token");
        assert_eq!(alter(|open| open.connection_id.push(0)), "Open.connection_id");
        assert_eq!(alter(|open| open.service = "auth".into()), "Open.service");
        assert_eq!(alter(|open| open.pooled.truncate(3)), "Open.pooled");
        assert_eq!(alter(|open| open.pooled.clear()), "accepted");
        assert_eq!(
            alter(|open| open.client_address = "nowhere".into()),
            "Open.client_address"
        );
    }
}
