//! The side of sshd: an SSH client that logs in as the granted login and puts what arrives into mailboxes.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iap_identity::{LoginName, ServiceName};
use russh::client::{self, AuthResult, DisconnectReason};
use russh::keys::{Certificate, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{ChannelId, Sig, cipher};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::line::Line;
use super::mailbox::{ExitSignal, Parcel};
use super::server_key::{Trusted, naming};
use super::settings::SshSettings;
use super::severable::Severable;
use super::{KEEPALIVE_EVERY, KEEPALIVES_MAX, window};
use crate::backend::BackendStream;
use crate::credentials::{Credentials, NotHeld};
use crate::handlers::tcp::Held;

/// What a login to sshd takes.
pub(super) struct Means {
    key: Arc<PrivateKey>,
    certificate: Option<Certificate>,
    trusted: Trusted,
}

/// Why there is nothing to log in with, or to know sshd by.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoMeans {
    /// A file that the agent's own file names.
    #[error(transparent)]
    File(#[from] io::Error),
    /// The auth server has issued nothing.
    #[error(transparent)]
    NotHeld(#[from] NotHeld),
    /// A thread of the runtime is gone.
    #[error("the files were not read: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Why nobody is logged in at sshd.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotLoggedIn {
    /// It is not the server meant, or does not speak SSH.
    #[error("{0}")]
    Transport(String),
    /// It does not let this agent in as that login.
    #[error("sshd does not let this agent in as {0}")]
    Refused(LoginName),
    /// It has let the key pass and asks for something else besides.
    #[error("sshd wants more than a key of this agent as {0}: {1}")]
    WantsMore(LoginName, String),
    /// In time.
    #[error("sshd did not answer in time")]
    TimedOut,
}

/// The key that the agent's own file names, or else the certificate that is held for the login in advance.
pub(super) async fn means(
    settings: &SshSettings,
    credentials: &Credentials,
    service: &ServiceName,
    login: &LoginName,
) -> Result<Means, NoMeans> {
    let own = settings.clone();
    let reading = tokio::task::spawn_blocking(move || -> io::Result<_> {
        let trusted = Trusted::read(&own.server)?;
        let key = own.user_key.as_ref().map(|path| {
            russh::keys::load_secret_key(path, None).map_err(|error| naming(path, &io::Error::other(error)))
        });
        let certificate = own.user_certificate.as_ref().map(|path| {
            russh::keys::load_openssh_certificate(path)
                .map_err(|error| naming(path, &io::Error::other(error)))
        });
        Ok((trusted, key.transpose()?, certificate.transpose()?))
    });
    let (trusted, key, certificate) = reading.await??;
    if let Some(key) = key {
        return Ok(Means {
            key: Arc::new(key),
            certificate,
            trusted,
        });
    }
    credentials.wait_for(service, login).await;
    let held = credentials.ssh(service, login)?;
    Ok(Means {
        key: held.key,
        certificate: Some(held.certificate.certificate().clone()),
        trusted,
    })
}

/// What has become of the connection to sshd.
#[derive(Debug, Default)]
pub(super) struct Departure {
    gone: CancellationToken,
    why: Mutex<Option<String>>,
}

impl Departure {
    /// Returns once the connection is over.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// What broke it; nothing where sshd ended it in order.
    pub(super) fn why(&self) -> Option<String> {
        self.why_held().clone()
    }

    fn is_over(&self, why: Option<String>) {
        let mut held = self.why_held();
        if held.is_none() {
            *held = why;
        }
        drop(held);
        self.gone.cancel();
    }

    fn why_held(&self) -> MutexGuard<'_, Option<String>> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The channels of the connection to sshd, by its numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines(Arc<Mutex<HashMap<ChannelId, Arc<Line>>>>);

impl Lines {
    /// The channel of this number; sshd may speak on a new one before whoever opened it has its number.
    pub(super) fn line(&self, id: ChannelId) -> Arc<Line> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(lines.entry(id).or_default())
    }

    pub(super) fn forget(&self, id: ChannelId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn waiting_bytes(&self) -> usize {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.values().map(|line| line.down.bytes()).sum()
    }
}

/// A connection to sshd on which this agent is logged in.
pub(super) struct Back {
    pub(super) handle: client::Handle<Receiver>,
    pub(super) lines: Lines,
    pub(super) departure: Arc<Departure>,
}

/// Logs in over `stream` within `patience`.
pub(super) async fn log_in(
    stream: Held<Severable<BackendStream>>,
    means: Means,
    login: &LoginName,
    patience: Duration,
) -> Result<Back, NotLoggedIn> {
    match tokio::time::timeout(patience, logging_in(stream, means, login)).await {
        Ok(logged_in) => logged_in,
        Err(_elapsed) => Err(NotLoggedIn::TimedOut),
    }
}

async fn logging_in(
    stream: Held<Severable<BackendStream>>,
    means: Means,
    login: &LoginName,
) -> Result<Back, NotLoggedIn> {
    let Means {
        key,
        certificate,
        trusted,
    } = means;
    let mut config = client::Config {
        client_id: russh::SshId::Standard("SSH-2.0-iap-agent".into()),
        window_size: window::WINDOW_BYTES,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE_EVERY),
        keepalive_max: KEEPALIVES_MAX,
        nodelay: true,
        ..client::Config::default()
    };
    // Processors have instructions for AES-GCM, and none for what russh would propose first.
    config
        .preferred
        .cipher
        .to_mut()
        .sort_by_key(|name| *name != cipher::AES_256_GCM);
    // A server of several keys shows one that is known here, as with OpenSSH's client.
    config
        .preferred
        .key
        .to_mut()
        .sort_by_key(|algorithm| !trusted.prefers(algorithm));
    if trusted.wants_certificates() {
        config.preferred.host_key_certificates = config.preferred.key.clone();
    }
    let (lines, departure) = (Lines::default(), Arc::new(Departure::default()));
    let receiver = Receiver {
        trusted,
        lines: lines.clone(),
        departure: Arc::clone(&departure),
    };
    let connecting = client::connect_stream(Arc::new(config), stream, receiver).await;
    let told = |error: russh::Error| match departure.why() {
        Some(why) => NotLoggedIn::Transport(why),
        None => NotLoggedIn::Transport(error.to_string()),
    };
    let mut handle = connecting.map_err(told)?;
    let authenticated = match certificate {
        Some(certificate) => {
            handle
                .authenticate_openssh_cert(login.as_str(), key, certificate)
                .await
        }
        None => {
            let key = PrivateKeyWithHashAlg::new(key, None);
            handle.authenticate_publickey(login.as_str(), key).await
        }
    };
    match authenticated.map_err(told)? {
        AuthResult::Success => Ok(Back {
            handle,
            lines,
            departure,
        }),
        AuthResult::Failure {
            remaining_methods,
            partial_success: true,
        } => {
            let methods: Vec<&str> = remaining_methods.iter().map(Into::into).collect();
            Err(NotLoggedIn::WantsMore(login.clone(), methods.join(", ")))
        }
        AuthResult::Failure { .. } => Err(NotLoggedIn::Refused(login.clone())),
    }
}

/// Hears sshd. Nothing here waits for the client's side.
pub(super) struct Receiver {
    trusted: Trusted,
    lines: Lines,
    departure: Arc<Departure>,
}

impl client::Handler for Receiver {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let now = u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap_or_default();
        match self.trusted.check(shown, now) {
            Ok(()) => Ok(true),
            Err(why) => {
                self.departure.is_over(Some(why.to_string()));
                Ok(false)
            }
        }
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        let line = self.lines.line(channel);
        line.down.data(data);
        self.slow_down(&line).await
    }

    async fn extended_data(
        &mut self,
        channel: ChannelId,
        code: u32,
        data: &[u8],
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        let line = self.lines.line(channel);
        line.down.extended(code, data);
        self.slow_down(&line).await
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        window::next(self.lines.waiting_bytes())
    }

    async fn channel_eof(&mut self, channel: ChannelId, _: &mut client::Session) -> Result<(), russh::Error> {
        self.lines.line(channel).down.push(Parcel::Eof);
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        let line = self.lines.line(channel);
        line.down.push(Parcel::Close);
        line.no_more_answers();
        self.lines.forget(channel);
        Ok(())
    }

    async fn channel_success(
        &mut self,
        channel: ChannelId,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.lines.line(channel).answered(true);
        Ok(())
    }

    async fn channel_failure(
        &mut self,
        channel: ChannelId,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.lines.line(channel).answered(false);
        Ok(())
    }

    async fn exit_status(
        &mut self,
        channel: ChannelId,
        status: u32,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.lines.line(channel).down.push(Parcel::ExitStatus(status));
        Ok(())
    }

    async fn exit_signal(
        &mut self,
        channel: ChannelId,
        name: Sig,
        core_dumped: bool,
        message: &str,
        language: &str,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        let signal = ExitSignal {
            name: name_of(name),
            core_dumped,
            message: message.to_owned(),
            language: language.to_owned(),
        };
        self.lines.line(channel).down.push(Parcel::ExitSignal(signal));
        Ok(())
    }

    // sshd opens channels only for what was asked of it, and none of these is.
    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: russh::Channel<client::Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: russh::Channel<client::Msg>,
        _: &str,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: russh::Channel<client::Msg>,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_session(
        &mut self,
        _: russh::Channel<client::Msg>,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: russh::Channel<client::Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: russh::Channel<client::Msg>,
        _: &str,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_x11(
        &mut self,
        _: russh::Channel<client::Msg>,
        _: &str,
        _: u32,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        refuse(reply).await
    }

    async fn disconnected(&mut self, reason: DisconnectReason<russh::Error>) -> Result<(), russh::Error> {
        self.departure.is_over(match reason {
            DisconnectReason::ReceivedDisconnect(_) => None,
            DisconnectReason::Error(error) => Some(error.to_string()),
        });
        Ok(())
    }
}

impl Drop for Receiver {
    /// Whichever way russh ends.
    fn drop(&mut self) {
        self.departure.is_over(None);
    }
}

impl Receiver {
    /// Keeps a sender that is granted a trickle from sending it without pause.
    async fn slow_down(&self, line: &Line) -> Result<(), russh::Error> {
        let waiting = line.down.bytes();
        if window::is_ignored(waiting) {
            return Err(window::ignored());
        }
        if window::is_full(waiting) {
            let _ = tokio::time::timeout(window::TRICKLE_EVERY, line.down.drained()).await;
        }
        Ok(())
    }
}

/// russh keeps its own to itself.
fn name_of(signal: Sig) -> String {
    match signal {
        Sig::Custom(name) => name,
        known => format!("{known:?}"),
    }
}

async fn refuse(reply: client::ChannelOpenHandle) -> Result<(), russh::Error> {
    reply
        .reject(russh::ChannelOpenFailure::AdministrativelyProhibited)
        .await;
    Ok(())
}
