//! The login at the backend, in the client's place: no secret of it ever reaches the client.

use std::io;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use iap_postgres::{Authentication, ErrorFields, Login, LoginError, LoginStep, Method, Startup, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::secure::{self, SecureError};
use super::settings::{Announce, PostgresSettings};
use crate::backend::BackendStream;
use crate::session::Target;

const PIECE_BYTES: usize = 4096;
const NONCE_BYTES: usize = 18;
/// PostgreSQL's `NAMEDATALEN - 1`, beyond which it cuts names.
const APPLICATION_NAME_BYTES_MAX: usize = 63;
const PASSWORD_BYTES_MAX: usize = 1024;

/// A backend that is ready.
#[derive(Debug)]
pub(super) struct LoggedIn {
    /// What the client is to hear before its own key and `ReadyForQuery`.
    pub(super) to_client: Vec<u8>,
    /// The backend's key for requests to cancel.
    pub(super) key: Option<(u32, Vec<u8>)>,
    /// `ReadyForQuery` and what followed it.
    pub(super) behind: Vec<u8>,
}

/// Why there is no login.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoginFailure {
    /// By the protocol.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// Before it.
    #[error(transparent)]
    Secure(#[from] SecureError),
    /// The file with the password.
    #[error("the password file of login {login:?}: {source}")]
    PasswordFile {
        /// Whose.
        login: String,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the backend closed the connection during the login: {0}")]
    Broken(#[from] io::Error),
    /// It did not answer.
    #[error("the backend did not complete the login in time")]
    TimedOut,
    /// No randomness.
    #[error("no randomness for the login")]
    NoRandomness,
}

impl LoginFailure {
    /// The backend's own words, where it had any.
    pub(super) fn backend_said(&self) -> Option<&ErrorFields> {
        match self {
            Self::Login(LoginError::Refused(fields)) => Some(fields),
            Self::Login(_)
            | Self::Secure(_)
            | Self::PasswordFile { .. }
            | Self::Broken(_)
            | Self::TimedOut
            | Self::NoRandomness => None,
        }
    }
}

/// Logs in within `patience`; `user` is who the backend may be told of.
pub(super) async fn log_in(
    backend: &mut BackendStream,
    startup: &Startup,
    target: &Target,
    user: &str,
    settings: &PostgresSettings,
    patience: Duration,
) -> Result<LoggedIn, LoginFailure> {
    let method = match settings.password_files.get(target.login.as_str()) {
        Some(path) => Method::Password(read_password(path, target.login.as_str()).await?),
        None => Method::Nothing,
    };
    let authentication = Authentication {
        method,
        channel: secure::channel(backend),
        nonce: nonce()?,
    };
    let first = startup_message(startup, target, user, &settings.announce);
    let logging_in = exchange(backend, &first, Login::new(authentication));
    match tokio::time::timeout(patience, logging_in).await {
        Ok(logged_in) => logged_in,
        Err(_elapsed) => Err(LoginFailure::TimedOut),
    }
}

async fn exchange(
    backend: &mut BackendStream,
    first: &[u8],
    mut login: Login,
) -> Result<LoggedIn, LoginFailure> {
    backend.write_all(first).await?;
    backend.flush().await?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = backend.read(&mut piece).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let mut step = login.push(piece.get(..count).unwrap_or_default())?;
        while let LoginStep::Send(answer) = step {
            backend.write_all(&answer).await?;
            backend.flush().await?;
            step = login.push(b"")?;
        }
        if let LoginStep::Ready {
            to_client,
            key,
            behind,
        } = step
        {
            return Ok(LoggedIn {
                to_client,
                key,
                behind,
            });
        }
    }
}

/// The client's parameters, and who it is for whoever looks at the backend.
fn startup_message(startup: &Startup, target: &Target, user: &str, announce: &Announce) -> Vec<u8> {
    let said_name = startup.parameter("application_name").unwrap_or_default();
    let name = match announce {
        Announce::ApplicationName => announced_name(said_name, user),
        Announce::Setting(_) | Announce::Nothing => said_name.to_owned(),
    };
    let setting = match announce {
        Announce::Setting(setting) => Some(setting.as_str()),
        Announce::ApplicationName | Announce::Nothing => None,
    };
    // What the agent says nobody else may say.
    let said = startup.parameters.iter().filter(|(name, _)| {
        name != "application_name" && Some(name.to_ascii_lowercase().as_str()) != setting
    });
    let names = [
        ("user", target.login.as_str()),
        ("database", target.database.as_str()),
    ];
    let own = (!name.is_empty()).then_some(("application_name", name.as_str()));
    let said = said.map(|(name, value)| (name.as_str(), value.as_str()));
    let setting = setting.map(|setting| (setting, user));
    let parameters = names.into_iter().chain(said).chain(own).chain(setting);
    encode::startup(startup.minor, parameters)
}

/// `psql (alice@example.com)`: the identity is kept whole where there is not room for both.
fn announced_name(said: &str, user: &str) -> String {
    let suffix = format!("({user})");
    let room = APPLICATION_NAME_BYTES_MAX.saturating_sub(suffix.len() + 1);
    let said = said.get(..said.floor_char_boundary(room)).unwrap_or_default();
    match said.is_empty() {
        true => suffix,
        false => format!("{said} {suffix}"),
    }
}

/// Read anew at each login, so that a new password needs no restart.
async fn read_password(path: &Path, login: &str) -> Result<Vec<u8>, LoginFailure> {
    let failed = |source| LoginFailure::PasswordFile {
        login: login.to_owned(),
        source,
    };
    let bytes = tokio::fs::read(path).await.map_err(failed)?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match line.len() {
        1..=PASSWORD_BYTES_MAX => Ok(line.to_vec()),
        _ => Err(failed(io::Error::other("its first line is no password"))),
    }
}

fn nonce() -> Result<String, LoginFailure> {
    let mut nonce = [0; NONCE_BYTES];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| LoginFailure::NoRandomness)?;
    Ok(STANDARD_NO_PAD.encode(nonce))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use iap_identity::LoginName;

    use super::*;
    use crate::handlers::postgres::settings::SettingName;

    fn sent(parameters: &[(&str, &str)], announce: &Announce) -> String {
        let startup = Startup {
            minor: 0,
            user: "bob".to_owned(),
            database: "shop".to_owned(),
            parameters: parameters
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let target = Target {
            login: LoginName::parse("readonly").unwrap(),
            database: "shop".to_owned(),
        };
        let message = startup_message(&startup, &target, "bob@example.com", announce);
        String::from_utf8_lossy(message.get(8..).unwrap()).replace('\0', "|")
    }

    #[test]
    fn the_backend_is_told_of_the_login_that_was_granted_and_of_the_user() {
        let said = [("application_name", "psql"), ("client_encoding", "UTF8")];
        assert_eq!(
            sent(&said, &Announce::ApplicationName),
            "user|readonly|database|shop|client_encoding|UTF8|application_name|psql (bob@example.com)||"
        );
        assert_eq!(sent(&[], &Announce::Nothing), "user|readonly|database|shop||");
    }

    #[test]
    fn a_client_cannot_say_itself_who_it_is() {
        let setting = Announce::Setting(SettingName::try_from("iap.user".to_owned()).unwrap());
        assert_eq!(
            sent(&[("IAP.user", "alice@example.com")], &setting),
            "user|readonly|database|shop|iap.user|bob@example.com||"
        );
    }

    #[test]
    fn the_identity_is_whole_in_a_name_that_is_cut() {
        let name = announced_name(&"é".repeat(60), "bob@example.com");
        assert!(
            name.len() <= APPLICATION_NAME_BYTES_MAX && name.ends_with(" (bob@example.com)"),
            "{name}"
        );
    }
}
