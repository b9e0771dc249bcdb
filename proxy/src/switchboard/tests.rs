//! What the table allows once a lock was seen.
#![allow(clippy::unwrap_used)]
use std::net::Ipv4Addr;

use iap_identity::{Lock, LockKind};
use uuid::Uuid;

use super::*;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn board() -> Switchboard {
    Switchboard::new(InForce::new(Limits::default()), Metrics::default())
}

fn agent(number: u128) -> AgentId {
    AgentId::from_uuid(Uuid::from_u128(
        0x0198_0000_0000_7000_9000_0000_0000_0000 | number,
    ))
}

fn locks(agent: &AgentId) -> Locks {
    Locks::new(vec![Lock {
        id: Uuid::nil(),
        kind: LockKind::Agent,
        target: agent.to_string(),
        reason: "stolen".to_owned(),
        created_by: "admin@example.com".to_owned(),
        created_at: NOW,
        expires_at: None,
    }])
}

fn request(number: u128) -> Request {
    let client = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    Request {
        connection_id: ConnectionId::from_uuid(Uuid::from_u128(
            0x0198_0000_0000_7000_8000_0000_0000_0000 | number,
        )),
        token: Token::from_random([1; 16]),
        service: None,
        client_address: client,
        source: Source::of(client.ip()),
        deadline: NOW + time::Duration::seconds(5),
    }
}

/// The line's own task may be busy for a long time; nothing here waits for it.
#[test]
fn nothing_begins_through_an_agent_once_its_lock_was_seen() {
    let (board, locked) = (board(), agent(1));
    let name = ServiceName::parse("db").unwrap();
    let (sender, mut messages) = mpsc::channel(8);
    let cut = Cancellation::new();
    let number = board.connect(locked, "01", None, sender, cut.clone()).unwrap();
    board.announce(locked, number, vec![name.clone()]);
    let mut asked = board.open(NOW, locked, request(1)).ok().unwrap();
    let token = (request(2).connection_id, Token::from_random([2; 16]));
    assert_eq!(board.invite(locked, number, vec![token], NOW).len(), 1);
    assert_eq!(board.cut_locked(&locks(&locked), NOW), (1, 1));
    assert!(cut.reason().is_some() && asked.slot.cut.reason().is_some());
    assert!(asked.answer.try_recv().is_err(), "nobody comes any more");
    assert!(board.candidates(&ServerName::Service(name.clone())).is_empty());
    assert_eq!(
        board.open(NOW, locked, request(3)).err(),
        Some(OpenError::AgentLost)
    );
    // What the line's task still does changes nothing.
    board.announce(locked, number, vec![name.clone()]);
    assert!(board.candidates(&ServerName::Service(name)).is_empty());
    board.disconnect(&locked, number);
    drop(asked.slot);
    assert_eq!((board.agents(), board.sessions()), (0, 0));
    assert!(messages.try_recv().is_ok() && messages.try_recv().is_err());
    let (sender, _messages) = mpsc::channel(8);
    let again = board.connect(locked, "01", None, sender, Cancellation::new());
    assert_eq!(again.err(), Some(ConnectError::Locked("stolen".to_owned())));
}
