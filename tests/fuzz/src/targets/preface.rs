//! The first bytes of a dial-back: one encoding per value, and nothing shorter or longer is one.

use iap_tunnel::preface::{POOL_PREFACE_VERSION, PREFACE_MAGIC, PREFACE_VERSION};
use iap_tunnel::{PREFACE_BYTES, PoolPreface, Preface, Token};

use super::Seeds;

pub(crate) fn run(bytes: &[u8]) {
    let token = Token::parse(bytes);
    assert_eq!(token.is_ok(), bytes.len() == 16, "a token has sixteen bytes");
    let Ok(exact) = <&[u8; PREFACE_BYTES]>::try_from(bytes) else {
        return;
    };
    match Preface::parse(exact) {
        Ok(preface) => {
            assert_eq!(preface.encode(), *exact, "one encoding");
            let again = Preface::parse(&preface.encode()).unwrap_or_else(|error| panic!("{error}"));
            assert!(again.token.matches(&preface.token));
            assert_eq!(again.connection_id, preface.connection_id);
        }
        Err(_) => assert!(
            !exact.starts_with(&PREFACE_MAGIC) || exact[4] != PREFACE_VERSION,
            "a well-formed preface was refused: {exact:?}"
        ),
    }
    match PoolPreface::parse(exact) {
        Ok(preface) => assert_eq!(preface.encode(), *exact, "one encoding"),
        Err(_) => assert!(
            !exact.starts_with(&PREFACE_MAGIC) || exact[4] != POOL_PREFACE_VERSION,
            "a well-formed preface was refused: {exact:?}"
        ),
    }
}

pub(crate) fn seeds() -> Seeds {
    let preface = Preface {
        connection_id: iap_identity::ConnectionId::from_uuid(super::snapshot::ID),
        token: Token::from_random([0x5a; 16]),
    };
    let pool = PoolPreface {
        id: preface.connection_id,
        token: Token::from_random([0xa5; 16]),
    };
    vec![
        ("pool".to_owned(), pool.encode().to_vec()),
        ("whole".to_owned(), preface.encode().to_vec()),
        ("token".to_owned(), vec![7; 16]),
    ]
}
