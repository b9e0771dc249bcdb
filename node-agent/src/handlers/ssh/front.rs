//! The client's side: an SSH server that asks who wants in, and passes on what the client asks for.
//!
//! The person has proven who they are by the TLS around this. What SSH's own authentication brings is the login,
//! so any attempt settles it: `none` first of all, which stock clients begin with.

use std::collections::HashMap;
use std::sync::Arc;

use russh::server::{self, Auth, ChannelOpenHandle, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Disconnect, Pty, Sig};
use tokio::sync::oneshot;

use super::channel::{Leg, Program};
use super::mailbox::Parcel;
use super::stay::Stay;
use super::{ANSWER_PATIENCE, CHANNELS_MAX, window};

/// Who wants in, and what is to become of them.
pub(super) struct Knock {
    /// The login they ask for.
    pub(super) login: String,
    /// The answer.
    pub(super) answer: oneshot::Sender<Answer>,
}

/// What becomes of whoever knocked.
pub(super) enum Answer {
    /// They are in.
    Welcome(Arc<Stay>),
    /// They are not, and why.
    Refused(String),
}

/// Hears the client. Nothing here waits for sshd but for the answers to its requests.
pub(super) struct Front {
    banner: String,
    handle: Option<oneshot::Sender<Knock>>,
    settled: Settled,
    legs: HashMap<ChannelId, Leg>,
}

enum Settled {
    Not,
    Welcome(Arc<Stay>),
    Refused(String),
}

impl Front {
    /// With a line for whoever comes, and where they are announced.
    pub(super) fn new(banner: String, knock: oneshot::Sender<Knock>) -> Self {
        Self {
            banner,
            handle: Some(knock),
            settled: Settled::Not,
            legs: HashMap::new(),
        }
    }

    /// The first login asked for is the one that is decided on. A refusal is told behind the success, because stock
    /// clients read nothing behind a failure that leaves them no other method.
    async fn ask(&mut self, login: &str) -> Auth {
        let Some(knock) = self.handle.take() else {
            return Auth::reject();
        };
        let (answer, answered) = oneshot::channel();
        let login = login.to_owned();
        self.settled = match knock.send(Knock { login, answer }) {
            Ok(()) => match answered.await {
                Ok(Answer::Welcome(stay)) => Settled::Welcome(stay),
                Ok(Answer::Refused(why)) => Settled::Refused(why),
                Err(_gone) => Settled::Refused("The agent gave up.".to_owned()),
            },
            Err(_gone) => Settled::Refused("The agent gave up.".to_owned()),
        };
        Auth::Accept
    }

    fn stay(&self) -> Result<Arc<Stay>, russh::Error> {
        match &self.settled {
            Settled::Welcome(stay) => Ok(Arc::clone(stay)),
            Settled::Not | Settled::Refused(_) => Err(russh::Error::Inconsistent),
        }
    }

    /// Room for one more channel. Those that are over still stand here when sshd ended them.
    fn has_room(&mut self) -> bool {
        self.legs.retain(|_, leg| !leg.is_over());
        self.legs.len() < CHANNELS_MAX
    }

    async fn start(
        &mut self,
        id: ChannelId,
        program: Program,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some(leg) = self.legs.get_mut(&id) else {
            return session.channel_failure(id);
        };
        let answer = leg.start(program).await;
        settle(id, answer, session).await.map(drop)
    }
}

/// Passes sshd's answer on, and says whether it was a yes. It is waited for here, because russh remembers of one request at a time that an answer is
/// wanted.
async fn settle(
    id: ChannelId,
    answer: Option<oneshot::Receiver<bool>>,
    session: &mut Session,
) -> Result<bool, russh::Error> {
    let answered = match answer {
        Some(answer) => tokio::time::timeout(ANSWER_PATIENCE, answer).await,
        None => Ok(Ok(false)),
    };
    let is_done = matches!(answered, Ok(Ok(true)));
    match is_done {
        true => session.channel_success(id)?,
        false => session.channel_failure(id)?,
    }
    Ok(is_done)
}

impl Handler for Front {
    type Error = russh::Error;

    async fn authentication_banner(&mut self) -> Result<Option<String>, russh::Error> {
        Ok(Some(self.banner.clone()))
    }

    async fn auth_none(&mut self, user: &str) -> Result<Auth, russh::Error> {
        Ok(self.ask(user).await)
    }

    async fn auth_publickey(&mut self, user: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        Ok(self.ask(user).await)
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), russh::Error> {
        match &self.settled {
            Settled::Welcome(_) => Ok(()),
            Settled::Refused(why) => session.disconnect(Disconnect::ByApplication, why, "en"),
            Settled::Not => Err(russh::Error::Inconsistent),
        }
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let stay = self.stay()?;
        if !self.has_room() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let id = channel.id();
        match stay.open_session(channel, session.handle()).await {
            Some(leg) => {
                self.legs.insert(id, leg);
                reply.accept().await;
            }
            None => reply.reject(ChannelOpenFailure::ConnectFailed).await,
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        originator: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let stay = self.stay()?;
        if !stay.forwards(&format!("{host}:{port}")).await {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        }
        if !self.has_room() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let id = channel.id();
        let target = (host, port, originator, originator_port);
        match stay.open_forward(channel, session.handle(), target).await {
            Some(leg) => {
                self.legs.insert(id, leg);
                reply.accept().await;
            }
            None => reply.reject(ChannelOpenFailure::ConnectFailed).await,
        }
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Result<(), russh::Error> {
        if let Some(leg) = self.legs.get(&id) {
            leg.line.up.data(data);
            let waiting = leg.line.up.bytes();
            if window::is_ignored(waiting) {
                return Err(window::ignored());
            }
            if window::is_full(waiting) {
                let _ = tokio::time::timeout(window::TRICKLE_EVERY, leg.line.up.drained()).await;
            }
        }
        Ok(())
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        window::next(self.legs.values().map(|leg| leg.line.up.bytes()).sum())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        if let Some(leg) = self.legs.get(&id) {
            leg.line.up.push(Parcel::Eof);
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        if let Some(leg) = self.legs.remove(&id) {
            leg.line.client_closed.cancel();
            leg.line.up.push(Parcel::Close);
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some(leg) = self.legs.get(&id) else {
            return session.channel_failure(id);
        };
        let asked = leg.ask_for_terminal(term, (columns, rows), (width, height), modes);
        if settle(id, asked.await, session).await? {
            leg.has_terminal(term, (columns, rows));
        }
        Ok(())
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        if let Some(leg) = self.legs.get(&id) {
            leg.resize((columns, rows), (width, height)).await;
        }
        session.channel_success(id)
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let allowed = self.stay()?.environment().allows(name);
        match self.legs.get(&id) {
            Some(leg) if allowed => {
                let answer = leg.set_variable(name, value).await;
                settle(id, answer, session).await.map(drop)
            }
            Some(_) | None => session.channel_failure(id),
        }
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        self.start(id, Program::Shell, session).await
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.start(id, Program::Command(command.to_vec()), session).await
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.start(id, Program::Subsystem(name.to_owned()), session).await
    }

    async fn signal(
        &mut self,
        id: ChannelId,
        signal: Sig,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        if let Some(leg) = self.legs.get(&id) {
            leg.signal(signal).await;
        }
        session.channel_success(id)
    }

    // Whatever else a client may want is refused, and is on record.

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.stay()?.refuses("x11", None).await;
        session.channel_failure(id)
    }

    async fn agent_request(&mut self, _: ChannelId, _: &mut Session) -> Result<bool, russh::Error> {
        self.stay()?.refuses("agent", None).await;
        Ok(false)
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.stay()?.refuses("local", Some(path)).await;
        reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        _: &mut Session,
    ) -> Result<bool, russh::Error> {
        let stay = self.stay()?;
        stay.refuses("remote", Some(&format!("{address}:{port}"))).await;
        Ok(false)
    }

    async fn streamlocal_forward(&mut self, path: &str, _: &mut Session) -> Result<bool, russh::Error> {
        self.stay()?.refuses("remote", Some(path)).await;
        Ok(false)
    }
}

/// How the server behaves, with its host key.
pub(super) fn config(
    host_key: russh::keys::PrivateKey,
    host_certificate: Option<russh::keys::Certificate>,
) -> Arc<server::Config> {
    use russh::{MethodKind, MethodSet};
    Arc::new(server::Config {
        server_id: russh::SshId::Standard("SSH-2.0-iap-agent".into()),
        methods: MethodSet::from(&[MethodKind::None, MethodKind::PublicKey][..]),
        keys: vec![host_key],
        certificates: host_certificate.into_iter().collect(),
        window_size: window::WINDOW_BYTES,
        // An idle shell is no reason to end it; policy has limits for that.
        inactivity_timeout: None,
        keepalive_interval: Some(super::KEEPALIVE_EVERY),
        keepalive_max: super::KEEPALIVES_MAX,
        nodelay: true,
        ..server::Config::default()
    })
}
