//! The two frames of `iap/1`: read in any pieces, bounded, and the same after being written back.

use iap_identity::{ConnectId, LoginName, SessionId, TraceId};
use iap_tunnel::frame::LENGTH_BYTES;
use iap_tunnel::resume::{ResumeOffer, ResumeRequest, Ticket};
use iap_tunnel::{FRAME_BYTES_MAX, Hello, LengthPrefixed, Status, StepUp};

use super::Seeds;
use crate::input::{choice, pieces};

pub(crate) fn run(bytes: &[u8]) {
    let Some((size, stream)) = choice(bytes, u8::MAX) else {
        return;
    };
    payload(stream);
    let whole = frames(stream, 0);
    assert_eq!(frames(stream, size), whole, "pieces make no difference");
    whole.iter().for_each(|frame| payload(frame));
}

/// The frames in `stream`, until one is refused.
fn frames(stream: &[u8], size: u8) -> Vec<Vec<u8>> {
    let mut decoder = LengthPrefixed::new(FRAME_BYTES_MAX);
    let (mut found, mut length) = (Vec::new(), 0);
    for piece in pieces(stream, size) {
        decoder.push(piece);
        while let Ok(Some(frame)) = decoder.next_frame() {
            assert!(frame.len() <= FRAME_BYTES_MAX);
            length += LENGTH_BYTES + frame.len();
            found.push(frame);
        }
        assert!(decoder.buffered() <= LENGTH_BYTES + FRAME_BYTES_MAX + piece.len());
    }
    assert!(length <= stream.len(), "more came out than went in");
    found
}

fn payload(bytes: &[u8]) {
    if let Ok(hello) = Hello::decode(bytes) {
        let written = hello.encode().unwrap_or_else(|error| panic!("{error}"));
        let again = Hello::decode(&written[LENGTH_BYTES..]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(again, hello);
    }
    if let Ok(status) = Status::decode(bytes) {
        // JSON escapes may grow beyond the frame; then it is refused, never cut.
        let Ok(written) = status.encode() else {
            return;
        };
        let again = Status::decode(&written[LENGTH_BYTES..]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(again, status);
    }
}

pub(crate) fn seeds() -> Seeds {
    let id = super::snapshot::ID;
    let hello = |login: Option<&str>, database: Option<&str>| Hello {
        version: 1,
        connect_id: ConnectId::from_uuid(id),
        login: login.map(|login| LoginName::parse(login).unwrap()),
        database: database.map(str::to_owned),
        resume: None,
    };
    let granted = Status::Granted {
        session_id: SessionId::from_uuid(id),
        login: Some(LoginName::parse("readonly").unwrap()),
        protocol: "postgres".to_owned(),
        resume_name: Some("0198a1b2c3d47000800000000000000a.agent.example.com".to_owned()),
        resume: Some(ResumeOffer {
            ticket: Ticket::from_random([7; 32]),
            window_bytes: 4 << 20,
            repeats: true,
            seconds: 300,
        }),
        trace_id: Some(TraceId::parse(&id.simple().to_string()).unwrap()),
    };
    let denied = Status::Denied {
        code: "no_rule_matches".to_owned(),
        text: "No rule lets you reach db-prod.".to_owned(),
        contact: Some("#db".to_owned()),
        session_id: None,
        step_up: None,
        trace_id: None,
    };
    let step_up = Status::Denied {
        code: "step_up".to_owned(),
        text: "This needs a login with several factors.".to_owned(),
        contact: None,
        session_id: Some(SessionId::from_uuid(id)),
        step_up: Some(StepUp {
            mfa: true,
            acr: Some("urn:example:loa:2".to_owned()),
        }),
        trace_id: Some(TraceId::parse(&id.simple().to_string()).unwrap()),
    };
    let unavailable = Status::Unavailable {
        text: "The backend is down.".to_owned(),
        retry: true,
        trace_id: None,
    };
    let again = Hello {
        resume: Some(ResumeRequest {
            session_id: SessionId::from_uuid(id),
            ticket: Ticket::from_random([7; 32]),
            position: 1 << 40,
        }),
        ..hello(None, None)
    };
    let resumed = Status::Resumed {
        position: 1 << 40,
        ticket: Ticket::from_random([8; 32]),
        trace_id: None,
    };
    let framed = |size: u8, frame: Vec<u8>| [vec![size], frame].concat();
    vec![
        ("hello".into(), framed(0, hello(None, None).encode().unwrap())),
        (
            "hello-full".into(),
            framed(7, hello(Some("readonly"), Some("orders")).encode().unwrap()),
        ),
        ("hello-again".into(), framed(0, again.encode().unwrap())),
        ("resumed".into(), framed(0, resumed.encode().unwrap())),
        ("granted".into(), framed(1, granted.encode().unwrap())),
        ("denied".into(), framed(0, denied.encode().unwrap())),
        ("step-up".into(), framed(2, step_up.encode().unwrap())),
        ("renew".into(), framed(3, Status::Renew.encode().unwrap())),
        ("unavailable".into(), framed(0, unavailable.encode().unwrap())),
        (
            "two".into(),
            framed(
                5,
                [
                    hello(None, None).encode().unwrap(),
                    Status::Renew.encode().unwrap(),
                ]
                .concat(),
            ),
        ),
        ("too-long".into(), framed(0, 16385u32.to_be_bytes().to_vec())),
    ]
}
