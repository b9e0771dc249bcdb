//! What a PostgreSQL client says before TLS: a bounded buffer, and the same answer as a reading byte by byte.

use iap_tunnel::{PreambleError, PreambleMachine, PreambleStep};

use super::Seeds;
use crate::input::choice;

/// Protocol 3.2: a length, a code, a process id and a key of 256 bytes.
const REQUEST_BYTES_MAX: usize = 268;

pub(crate) fn run(bytes: &[u8]) {
    let Some((size, stream)) = choice(bytes, u8::MAX) else {
        return;
    };
    let (single, used) = outcome(stream, 1);
    let (pieced, _) = outcome(stream, size);
    match (&single, &pieced) {
        // Only a sender that does not wait for its answer can stuff bytes behind a request.
        (_, Err(PreambleError::StuffedBytes)) => assert!(size != 1 && stream.len() > 8),
        // The first bytes of a ClientHello are handed on as far as they were read.
        (Ok(PreambleStep::DirectTls(first)), Ok(PreambleStep::DirectTls(more))) => {
            assert_eq!(first, &more[..1]);
        }
        _ => assert_eq!(single, pieced),
    }
    if let Ok(PreambleStep::Cancel(request)) = &single {
        let end = &stream[used - 8 - request.key.len()..used];
        assert_eq!(&end[..4], &80_877_102u32.to_be_bytes());
        assert_eq!(&end[4..8], &request.process_id.to_be_bytes());
        assert_eq!(&end[8..], request.key);
        assert!((1..=256).contains(&request.key.len()));
    }
}

/// Where the machine ends, and how many bytes it took; `NeedMore` when it never ended.
fn outcome(stream: &[u8], size: u8) -> (Result<PreambleStep, PreambleError>, usize) {
    let mut machine = PreambleMachine::new();
    let (mut used, mut waiting) = (0, 0);
    for piece in crate::input::pieces(stream, size) {
        used += piece.len();
        waiting += piece.len();
        match machine.push(piece) {
            Ok(PreambleStep::NeedMore) => assert!(waiting < REQUEST_BYTES_MAX, "{waiting} bytes wait"),
            Ok(PreambleStep::RefuseGss) => waiting = 0,
            ended => return (ended, used),
        }
    }
    (Ok(PreambleStep::NeedMore), used)
}

pub(crate) fn seeds() -> Seeds {
    let request = |code: u32| [8u32.to_be_bytes(), code.to_be_bytes()].concat();
    let cancel = |key: &[u8]| {
        let length = u32::try_from(12 + key.len()).unwrap();
        let head = [length, 80_877_102, 77].map(u32::to_be_bytes).concat();
        [head.as_slice(), key].concat()
    };
    let start = [
        &27u32.to_be_bytes()[..],
        &196_608u32.to_be_bytes(),
        b"user\0alice\0\0\0\0\0\0\0\0",
    ]
    .concat();
    let (tls, gss) = (request(80_877_103), request(80_877_104));
    let named = |name: &str, size: u8, bytes: &[u8]| (name.to_owned(), [&[size], bytes].concat());
    vec![
        named("tls", 0, &tls),
        named("gss-then-tls", 8, &[gss.as_slice(), &tls].concat()),
        named(
            "gss-then-direct",
            8,
            &[gss.as_slice(), &[0x16, 3, 1, 0, 5]].concat(),
        ),
        named("gss-twice", 8, &[gss.as_slice(), &gss].concat()),
        named("gss-stuffed", 0, &[gss.as_slice(), &tls].concat()),
        named("cancel", 3, &cancel(&[1, 2, 3, 4])),
        named("cancel-long", 0, &cancel(&[9; 256])),
        named("cancel-too-long", 0, &cancel(&[9; 257])),
        named("start", 0, &start),
    ]
}
