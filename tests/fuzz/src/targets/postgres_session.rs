//! A PostgreSQL session that is inspected: both directions as they go by, the client's first message, what a backend says at
//! the login, and statements with passwords in them.

use std::time::Duration;

use iap_postgres::{
    Authentication, CaptureLimits, ChannelBinding, Login, LoginStep, Method, StartupReader, StartupSaid,
    Statement, TooMuch, Tracker, encode, mask_passwords,
};

use super::Seeds;
use crate::input::{choice, pieces};

const STARTUP_BYTES_MAX: usize = 10_000;
const TEXT_BYTES_MAX: usize = 64;
const LIMITS: CaptureLimits = CaptureLimits {
    bytes_max: TEXT_BYTES_MAX,
    parameters: true,
};
/// What cannot be part of a mask.
const SECRET: &str = "s3cret";

pub(crate) fn run(bytes: &[u8]) {
    let Some((what, rest)) = choice(bytes, 4) else {
        return;
    };
    let Some((size, rest)) = choice(rest, u8::MAX) else {
        return;
    };
    match what {
        0 => session(rest, size),
        1 => startup(rest, size),
        2 => login(rest, size),
        _ => masking(rest),
    }
}

/// Turns: one byte for who speaks, one for how much, and that.
fn turns(mut bytes: &[u8]) -> Vec<(bool, &[u8])> {
    let mut turns = Vec::new();
    while let [who, length, rest @ ..] = bytes {
        let (said, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        turns.push((who % 2 == 0, said));
        bytes = rest;
    }
    turns
}

fn session(bytes: &[u8], size: u8) {
    let whole = follow(bytes, 0);
    let pieced = follow(bytes, size);
    assert_eq!(whole, pieced, "pieces make no difference");
    let (statements, _) = whole;
    let sent: usize = turns(bytes).iter().map(|(_, said)| said.len()).sum();
    // The shortest message that is told of: a query of nothing.
    assert!(
        statements.len() <= sent / 5,
        "{} of {sent} bytes",
        statements.len()
    );
    for statement in &statements {
        if let Some(text) = &statement.text {
            // One byte that is no UTF-8 shows as three; a mask is as long as the shortest password and two.
            assert!(text.text.len() <= 4 * TEXT_BYTES_MAX, "{}", text.text.len());
            // The texts of function calls and of a Sync are ours.
            assert!(text.bytes <= sent.max("function call 4294967295".len()));
        }
    }
}

fn follow(bytes: &[u8], size: u8) -> (Vec<Statement>, Option<TooMuch>) {
    let mut tracker = Tracker::new(LIMITS);
    let mut told = Vec::new();
    for (is_client, said) in turns(bytes) {
        for piece in pieces(said, size) {
            let followed = match is_client {
                true => tracker.client_sent(piece, Duration::ZERO),
                false => tracker.backend_sent(piece, Duration::ZERO),
            };
            told.extend(tracker.ended());
            if let Err(error) = followed {
                told.extend(tracker.finish());
                return (told, Some(error));
            }
        }
    }
    told.extend(tracker.finish());
    assert!(tracker.finish().is_empty(), "told twice");
    (told, None)
}

fn startup(bytes: &[u8], size: u8) {
    let mut reader = StartupReader::new();
    for piece in pieces(bytes, size) {
        match reader.push(piece) {
            Ok(StartupSaid::NeedMore) => {}
            Ok(StartupSaid::RefuseEncryption) => {}
            Ok(StartupSaid::Started(startup, _)) => {
                assert!(!startup.user.is_empty() && !startup.database.is_empty());
                let parameters = startup.parameters.iter();
                let parameters = parameters.map(|(name, value)| (name.as_str(), value.as_str()));
                let names = [
                    ("user", startup.user.as_str()),
                    ("database", startup.database.as_str()),
                ];
                let written = encode::startup(startup.minor, names.into_iter().chain(parameters));
                assert!(written.len() <= STARTUP_BYTES_MAX + "database\0".len() + startup.database.len() + 1);
                if written.len() <= STARTUP_BYTES_MAX {
                    let again = StartupReader::new().push(&written);
                    assert_eq!(again, Ok(StartupSaid::Started(startup, Vec::new())));
                }
                return;
            }
            Ok(StartupSaid::Cancel { key, .. }) => {
                assert!((1..=256).contains(&key.len()));
                return;
            }
            Err(_) => return,
        }
    }
}

fn login(bytes: &[u8], size: u8) {
    let mut login = Login::new(Authentication {
        method: match size % 2 {
            0 => Method::Password(b"pencil".to_vec()),
            _ => Method::Nothing,
        },
        channel: ChannelBinding::Absent,
        nonce: "nonce".to_owned(),
    });
    for piece in pieces(bytes, size) {
        let mut step = login.push(piece);
        while let Ok(LoginStep::Send(sent)) = &step {
            assert!(
                !sent.windows(6).any(|window| window == b"pencil"),
                "the password itself"
            );
            step = login.push(b"");
        }
        match step {
            Ok(LoginStep::Ready {
                to_client, behind, ..
            }) => {
                assert_eq!(behind.first(), Some(&b'Z'));
                assert!(to_client.len() <= 64 * 1024);
                return;
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

fn masking(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let masked = mask_passwords(&text);
    assert_eq!(mask_passwords(&masked), masked, "masked once and for all");
    // A statement of its own, whatever came before, unless that has opened a literal or a comment.
    let opens = text.contains(['\'', '"', '$', '/', '-', '\\']);
    // As a bare word it is no password.
    if !opens && !text.contains(SECRET) {
        let statement = format!("{text};ALTER ROLE bob PASSWORD '{SECRET}'");
        assert!(!mask_passwords(&statement).contains(SECRET), "{statement:?}");
    }
}

pub(crate) fn seeds() -> Seeds {
    let message = encode::message;
    let turn = |who: u8, said: &[u8]| [&[who, u8::try_from(said.len()).unwrap()], said].concat();
    let named = |name: &str, what: u8, size: u8, rest: &[u8]| {
        let bytes = [&[what, size], rest].concat();
        (name.to_owned(), bytes)
    };
    let (ready, complete) = (message(b'Z', b"I"), message(b'C', b"SELECT 1\0"));
    let simple = [
        turn(0, &message(b'Q', b"SELECT 1\0")),
        turn(1, &[complete.as_slice(), &ready].concat()),
    ]
    .concat();
    let asked = [
        message(b'P', b"s\0DELETE FROM t WHERE id = $1\0\0\x01\0\0\0\x17"),
        message(b'B', b"\0s\0\0\x01\0\x01\0\x01\0\0\0\x04\0\0\0\x07\0\0"),
        message(b'D', b"P\0"),
        message(b'E', b"\0\0\0\0\0"),
        message(b'S', b""),
    ];
    let answered = [
        message(b'1', b""),
        message(b'2', b""),
        message(b'n', b""),
        message(b'C', b"DELETE 1\0"),
        ready.clone(),
    ];
    let extended = [turn(0, &asked.concat()), turn(1, &answered.concat())].concat();
    let failing = [
        turn(0, &asked.concat()),
        turn(
            1,
            &[message(b'E', b"SERROR\0C42601\0Mno\0\0"), ready.clone()].concat(),
        ),
    ]
    .concat();
    let copy = [
        turn(0, &message(b'Q', b"COPY t FROM STDIN\0")),
        turn(1, &message(b'G', b"\0\0\0")),
        turn(0, &[message(b'd', b"1\n"), message(b'c', b"")].concat()),
        turn(1, &[message(b'C', b"COPY 1\0"), ready.clone()].concat()),
    ]
    .concat();
    let first = encode::startup(0, [("user", "bob"), ("database", "shop")]);
    let trusting = [message(b'R', &[0; 4]), encode::cancel_key(7, &[8; 4]), ready].concat();
    let scram = [
        message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"),
        message(b'R', b"\0\0\0\x0br=nonceX,s=AAAA,i=2"),
        message(b'R', b"\0\0\0\x0cv=AAAA"),
    ]
    .concat();
    vec![
        named("simple", 0, 3, &simple),
        named("extended", 0, 7, &extended),
        named("failing", 0, 1, &failing),
        named("copy", 0, 2, &copy),
        named("startup", 1, 5, &first),
        named("cancel", 1, 0, &encode::cancel_request(7, &[8; 4])),
        named("login-trusted", 2, 3, &trusting),
        named("login-scram", 2, 0, &scram),
        named("mask-role", 3, 0, b"ALTER ROLE bob PASSWORD 's3cret' -- x"),
        named(
            "mask-uri",
            3,
            0,
            b"SELECT dblink('postgresql://bob:s3cret@db/x', $$a$$)",
        ),
    ]
}
