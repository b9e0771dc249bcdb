//! Logging in to a backend in a client's place ("Message Flow: Start-up", "SASL Authentication").

use thiserror::Error;

use crate::scram::{ChannelBinding, Scram, ScramError};

/// What a backend says before it is ready, altogether.
const LOGIN_BYTES_MAX: usize = 64 * 1024;
const HEAD_BYTES: usize = 5;
const SASL_MECHANISM: &str = "SCRAM-SHA-256";
const SASL_MECHANISM_BOUND: &str = "SCRAM-SHA-256-PLUS";

/// Messages as they are written.
pub mod encode {
    /// A startup message.
    #[must_use]
    pub fn startup<'a>(minor: u16, parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
        let mut message = vec![0; 4];
        message.extend_from_slice(&[0, 3]);
        message.extend_from_slice(&minor.to_be_bytes());
        for (name, value) in parameters {
            for text in [name, value] {
                message.extend(text.bytes().filter(|byte| *byte != 0));
                message.push(0);
            }
        }
        message.push(0);
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        if let Some(slot) = message.first_chunk_mut::<4>() {
            *slot = length.to_be_bytes();
        }
        message
    }

    /// A message of that type.
    #[must_use]
    pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    /// `BackendKeyData`.
    #[must_use]
    pub fn cancel_key(process_id: u32, key: &[u8]) -> Vec<u8> {
        message(b'K', &[&process_id.to_be_bytes()[..], key].concat())
    }

    /// `CancelRequest`.
    #[must_use]
    pub fn cancel_request(process_id: u32, key: &[u8]) -> Vec<u8> {
        let length = u32::try_from(12 + key.len()).unwrap_or(u32::MAX);
        let code = 80_877_102u32;
        [
            &length.to_be_bytes()[..],
            &code.to_be_bytes(),
            &process_id.to_be_bytes(),
            key,
        ]
        .concat()
    }

    /// `SSLRequest`.
    #[must_use]
    pub fn ssl_request() -> Vec<u8> {
        [8u32.to_be_bytes(), 80_877_103u32.to_be_bytes()].concat()
    }
}

/// What can be proven to the backend by messages. A client certificate needs none.
pub struct Authentication {
    /// How.
    pub method: Method,
    /// What a SCRAM exchange can be bound to.
    pub channel: ChannelBinding,
    /// For SCRAM: random, printable, without a comma.
    pub nonce: String,
}

/// How to log in.
pub enum Method {
    /// The backend asks for nothing: `trust`, `peer`, `cert`.
    Nothing,
    /// By a secret, which leaves this machine only within SCRAM-SHA-256.
    Password(Vec<u8>),
}

/// One login.
pub struct Login {
    authentication: Authentication,
    scram: Option<Scram>,
    authenticated: bool,
    held: Vec<u8>,
    seen_bytes: usize,
    to_client: Vec<u8>,
    key: Option<(u32, Vec<u8>)>,
}

/// What the shell does next.
#[derive(Debug, PartialEq, Eq)]
pub enum LoginStep {
    /// Read more and push it.
    NeedMore,
    /// Send this to the backend, then push nothing to hear what comes next.
    Send(Vec<u8>),
    /// The backend is ready.
    Ready {
        /// Everything the client is to hear from `AuthenticationOk` on and up to, without it, `ReadyForQuery`; without the
        /// backend's key.
        to_client: Vec<u8>,
        /// The backend's own key for requests to cancel.
        key: Option<(u32, Vec<u8>)>,
        /// `ReadyForQuery` and what came behind it.
        behind: Vec<u8>,
    },
}

/// Why there is no login.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LoginError {
    /// The backend refuses; its own words.
    #[error("the backend refuses the login: {} ({})", .0.message, .0.sqlstate)]
    Refused(ErrorFields),
    /// It wants something that is not configured here.
    #[error("the backend wants {0}, which this agent's file does not provide for it")]
    Wants(&'static str),
    /// There is a secret, and it does not prove that it knows it too.
    #[error("the backend asks for no password, though this agent's file has one for the login")]
    AsksForNothing,
    /// The exchange of SCRAM failed.
    #[error(transparent)]
    Scram(#[from] ScramError),
    /// It does not speak the protocol.
    #[error("the backend does not answer as PostgreSQL does")]
    NotPostgres,
    /// It says too much before it is ready.
    #[error("the backend says more than {LOGIN_BYTES_MAX} bytes before it is ready")]
    TooLong,
}

/// What an `ErrorResponse` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorFields {
    /// `ERROR`, `FATAL`, `PANIC`.
    pub severity: String,
    /// The class of error.
    pub sqlstate: String,
    /// One sentence.
    pub message: String,
    /// All of it, as it came.
    pub raw: Vec<u8>,
}

impl ErrorFields {
    /// Reads the body of an `ErrorResponse`, also one that is cut.
    #[must_use]
    pub fn read(body: &[u8]) -> Self {
        let mut fields = Self {
            raw: body.to_vec(),
            ..Self::default()
        };
        for field in body.split(|byte| *byte == 0) {
            let Some((kind, text)) = field.split_first() else {
                break;
            };
            let text = || String::from_utf8_lossy(text).into_owned();
            match kind {
                b'S' if fields.severity.is_empty() => fields.severity = text(),
                // Not localised.
                b'V' => fields.severity = text(),
                b'C' => fields.sqlstate = text(),
                b'M' => fields.message = text(),
                _ => {}
            }
        }
        fields
    }
}

impl Login {
    /// A login whose startup message is sent.
    #[must_use]
    pub fn new(authentication: Authentication) -> Self {
        Self {
            authentication,
            scram: None,
            authenticated: false,
            held: Vec::new(),
            seen_bytes: 0,
            to_client: Vec::new(),
            key: None,
        }
    }

    /// Takes what the backend said.
    ///
    /// # Errors
    /// Why there will be no session.
    pub fn push(&mut self, bytes: &[u8]) -> Result<LoginStep, LoginError> {
        self.held.extend_from_slice(bytes);
        while let Some(whole) = self.next_message()? {
            let kind = whole.first().copied().unwrap_or_default();
            if kind == b'Z' && self.authenticated {
                let mut behind = whole;
                behind.append(&mut self.held);
                return Ok(LoginStep::Ready {
                    to_client: std::mem::take(&mut self.to_client),
                    key: self.key.take(),
                    behind,
                });
            }
            let body = whole.get(HEAD_BYTES..).unwrap_or_default();
            if let Some(answer) = self.take(kind, body, &whole)? {
                return Ok(LoginStep::Send(answer));
            }
        }
        Ok(LoginStep::NeedMore)
    }

    /// All of the next message, if it is there.
    fn next_message(&mut self) -> Result<Option<Vec<u8>>, LoginError> {
        let Some([kind, a, b, c, d]) = self.held.first_chunk::<HEAD_BYTES>().copied() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let body = length.checked_sub(4).ok_or(LoginError::NotPostgres)?;
        // Whatever listens there may be no database: its first byte tells.
        if !self.authenticated && !matches!(kind, b'R' | b'E' | b'v' | b'N') {
            return Err(LoginError::NotPostgres);
        }
        if self.seen_bytes.saturating_add(body) > LOGIN_BYTES_MAX {
            return Err(LoginError::TooLong);
        }
        if self.held.len() < HEAD_BYTES + body {
            return Ok(None);
        }
        let rest = self.held.split_off(HEAD_BYTES + body);
        let whole = std::mem::replace(&mut self.held, rest);
        self.seen_bytes += whole.len();
        Ok(Some(whole))
    }

    fn take(&mut self, kind: u8, body: &[u8], whole: &[u8]) -> Result<Option<Vec<u8>>, LoginError> {
        match kind {
            b'E' => return Err(LoginError::Refused(ErrorFields::read(body))),
            b'R' => return self.authentication(body, whole),
            b'K' => {
                let (process_id, key) = body.split_first_chunk::<4>().ok_or(LoginError::NotPostgres)?;
                self.key = Some((u32::from_be_bytes(*process_id), key.to_vec()));
            }
            // Parameters, notices, the negotiated version: the client's.
            _ => self.to_client.extend_from_slice(whole),
        }
        Ok(None)
    }

    fn authentication(&mut self, body: &[u8], whole: &[u8]) -> Result<Option<Vec<u8>>, LoginError> {
        let (code, data) = body.split_first_chunk::<4>().ok_or(LoginError::NotPostgres)?;
        match u32::from_be_bytes(*code) {
            // One that has begun must have proven that the backend knows the secret, too.
            0 if self.scram.as_ref().is_some_and(|scram| !scram.is_verified()) => {
                Err(LoginError::Scram(ScramError::NotVerified))
            }
            // Whoever listens in its place would hear all that is asked of it.
            0 if self.scram.is_none() && matches!(self.authentication.method, Method::Password(_)) => {
                Err(LoginError::AsksForNothing)
            }
            0 => {
                self.authenticated = true;
                self.to_client.extend_from_slice(whole);
                Ok(None)
            }
            3 => Err(LoginError::Wants("a password in the clear")),
            5 => Err(LoginError::Wants("a password hashed with MD5")),
            7 | 9 => Err(LoginError::Wants("GSSAPI")),
            10 => self.begin_scram(data).map(Some),
            11 => {
                let scram = self.scram.as_mut().ok_or(LoginError::NotPostgres)?;
                Ok(Some(encode::message(b'p', scram.answer(data)?.as_bytes())))
            }
            12 => {
                let scram = self.scram.as_mut().ok_or(LoginError::NotPostgres)?;
                scram.verify(data)?;
                Ok(None)
            }
            _ => Err(LoginError::Wants("a way to log in that is unknown here")),
        }
    }

    fn begin_scram(&mut self, mechanisms: &[u8]) -> Result<Vec<u8>, LoginError> {
        let Method::Password(password) = &self.authentication.method else {
            return Err(LoginError::Wants("a password"));
        };
        if self.scram.is_some() {
            return Err(LoginError::NotPostgres);
        }
        let offers = |name: &str| {
            mechanisms
                .split(|byte| *byte == 0)
                .any(|offer| offer == name.as_bytes())
        };
        let bound = matches!(self.authentication.channel, ChannelBinding::EndPoint(_));
        let (name, channel) = match (offers(SASL_MECHANISM_BOUND), offers(SASL_MECHANISM), bound) {
            (true, _, true) => (SASL_MECHANISM_BOUND, self.authentication.channel.clone()),
            // A server that could bind and does not say so would be one in between.
            (false, true, true) => (SASL_MECHANISM, ChannelBinding::NotOffered),
            (_, true, false) => (SASL_MECHANISM, ChannelBinding::Absent),
            (_, false, _) => return Err(LoginError::Wants("a SASL mechanism other than SCRAM-SHA-256")),
        };
        let scram = Scram::new(password.clone(), channel, self.authentication.nonce.clone());
        let first = scram.first();
        self.scram = Some(scram);
        let length = u32::try_from(first.len()).unwrap_or(u32::MAX);
        let body = [name.as_bytes(), &[0], &length.to_be_bytes(), first.as_bytes()].concat();
        Ok(encode::message(b'p', &body))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn login(method: Method) -> Login {
        Login::new(Authentication {
            method,
            channel: ChannelBinding::Absent,
            nonce: "rOprNGfwEbeRWgbNEkqO".to_owned(),
        })
    }

    fn ask(code: u32, data: &[u8]) -> Vec<u8> {
        encode::message(b'R', &[&code.to_be_bytes()[..], data].concat())
    }

    #[test]
    fn a_backend_that_trusts_is_ready_and_its_key_stays_here() {
        let status = encode::message(b'S', b"server_version\x0016\0");
        let ready = encode::message(b'Z', b"I");
        let said = [
            ask(0, b""),
            status.clone(),
            encode::cancel_key(7, &[1, 2, 3, 4]),
            ready.clone(),
        ]
        .concat();
        let expected = LoginStep::Ready {
            to_client: [ask(0, b""), status].concat(),
            key: Some((7, vec![1, 2, 3, 4])),
            behind: ready,
        };
        assert_eq!(login(Method::Nothing).push(&said), Ok(expected));
    }

    #[test]
    fn a_password_leaves_only_within_scram() {
        for (code, data) in [(3, &b""[..]), (5, b"salt")] {
            let refused = login(Method::Password(b"x".to_vec())).push(&ask(code, data));
            assert!(matches!(refused, Err(LoginError::Wants(_))), "{refused:?}");
        }
        let refused = login(Method::Nothing).push(&ask(10, b"SCRAM-SHA-256\0\0"));
        assert_eq!(refused, Err(LoginError::Wants("a password")));
    }

    #[test]
    fn a_backend_that_skips_its_own_proof_is_refused() {
        let mut login = login(Method::Password(b"pencil".to_vec()));
        let asked = login.push(&ask(10, b"SCRAM-SHA-256\0\0")).unwrap();
        assert!(matches!(asked, LoginStep::Send(_)));
        assert_eq!(
            login.push(&ask(0, b"")),
            Err(LoginError::Scram(ScramError::NotVerified))
        );
    }

    #[test]
    fn a_backend_that_asks_for_nothing_where_there_is_a_secret_is_refused() {
        let mut login = login(Method::Password(b"pencil".to_vec()));
        let said = [ask(0, b""), encode::message(b'Z', b"I")].concat();
        assert_eq!(login.push(&said), Err(LoginError::AsksForNothing));
    }

    #[test]
    fn a_refusal_is_read_with_its_class() {
        let body = b"SFATAL\0VFATAL\0C3D000\0Mdatabase \"x\" does not exist\0\0";
        let Err(LoginError::Refused(fields)) = login(Method::Nothing).push(&encode::message(b'E', body))
        else {
            panic!("it was not refused");
        };
        assert_eq!(
            (fields.sqlstate.as_str(), fields.severity.as_str()),
            ("3D000", "FATAL")
        );
    }

    #[test]
    fn other_servers_and_endless_ones_are_refused() {
        assert_eq!(
            login(Method::Nothing).push(b"SSH-2.0-x"),
            Err(LoginError::NotPostgres)
        );
        assert_eq!(
            login(Method::Nothing).push(b"R\0\0\0\x01"),
            Err(LoginError::NotPostgres)
        );
        let mut login = login(Method::Nothing);
        login.push(&ask(0, b"")).unwrap();
        let notice = encode::message(b'N', &[b'x'; 10_000]);
        let refused = (0..10).find_map(|_| login.push(&notice).err());
        assert_eq!(refused, Some(LoginError::TooLong));
    }

    #[test]
    fn a_startup_message_reads_as_it_was_written() {
        let written = encode::startup(0, [("user", "bob"), ("database", "shop")]);
        assert_eq!(written, b"\0\0\0\x20\0\x03\0\0user\0bob\0database\0shop\0\0");
    }
}
