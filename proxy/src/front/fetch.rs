//! Getting a connection from an agent: ask the least loaded one to dial back or to speak on a connection it dialled
//! in advance; when it does not, or takes its time, ask the next.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use iap_identity::{AgentId, ConnectionId, ServerName, ServiceName};
use iap_runtime::config::InForce;
use iap_runtime::say_seldom;
use iap_runtime::seldom::Seldom;
use iap_runtime::traces::Recorder;
use iap_tunnel::Token;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::data::DataStream;
use super::greet::Client;
use crate::admission::Source;
use crate::config::Limits;
use crate::metrics::{DialBackOutcome, Metrics, Refusal};
use crate::switchboard::{Answer, OpenError, Opened, Request, Slot, Switchboard};

/// Asks agents on behalf of clients.
#[derive(Clone)]
pub(crate) struct Fetcher {
    pub(crate) board: Switchboard,
    pub(crate) metrics: Metrics,
    pub(crate) limits: InForce<Limits>,
    /// Whether it is time to say which agent did not come.
    pub(crate) missed: Arc<Seldom>,
}

/// A way to an agent that came for this client, and the place it takes while it lives.
pub(crate) struct Fetched {
    pub(crate) stream: DataStream,
    pub(crate) slot: Slot,
    /// The client's first bytes are there already.
    pub(crate) has_hello: bool,
}

/// What came of asking an agent.
enum Asked {
    Came(Box<Fetched>),
    /// Its control connection ended, or it is another run of the agent now.
    Lost,
    /// It will not come for this client; another may.
    StaysAway,
}

/// What an agent that was asked does.
enum Coming {
    Pooled(TcpStream),
    Answer(Result<Answer, oneshot::error::RecvError>),
}

/// Why no agent came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum FetchError {
    #[error("no connected agent serves the name")]
    NoAgent,
    #[error("none of {asked} agents dialled back")]
    NoDialBack { asked: usize },
    #[error("too many connections wait for agents")]
    TooManyPending,
    #[error("no randomness for a token")]
    NoRandomness,
}

impl FetchError {
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            Self::NoAgent => Refusal::NoAgent,
            Self::NoDialBack { .. } => Refusal::NoDialBack,
            Self::TooManyPending | Self::NoRandomness => Refusal::TooManyPending,
        }
    }
}

/// A client on whose behalf an agent is asked.
struct Asking<'a> {
    service: Option<ServiceName>,
    client: &'a Client,
    source: Source,
    recorder: &'a Recorder,
}

impl Fetcher {
    /// A way to some agent that serves the name the client asks for. An agent that lets it wait is not waited for
    /// alone: after a while the next one is asked as well, and the first to come has the client.
    pub(crate) async fn fetch(
        &self,
        client: &Client,
        source: Source,
        recorder: &Recorder,
    ) -> Result<Fetched, FetchError> {
        let service = match &client.name {
            ServerName::Service(service) => Some(service.clone()),
            ServerName::Cluster | ServerName::Auth | ServerName::Proxy | ServerName::Agent(_) => None,
        };
        let asking = Asking {
            service,
            client,
            source,
            recorder,
        };
        let limits = self.limits.now();
        let candidates = self.board.candidates(&client.name);
        let mut candidates = candidates.into_iter().take(limits.dial_back_attempts_max);
        let mut asked = FuturesUnordered::new();
        let mut count = 0;
        loop {
            match candidates.next() {
                Some(agent) => {
                    count += 1;
                    asked.push(self.ask_persistently(agent, &asking));
                }
                None if asked.is_empty() => break,
                None => {}
            }
            let patience = tokio::time::sleep(limits.dial_back_next_milliseconds);
            let outcome = tokio::select! {
                outcome = asked.next() => outcome,
                () = patience, if candidates.len() > 0 => None,
            };
            if let Some(Some(fetched)) = outcome.transpose()? {
                for _ in 0..asked.len() {
                    self.metrics.dial_back(DialBackOutcome::Overtaken);
                }
                return Ok(fetched);
            }
        }
        Err(match count {
            0 => FetchError::NoAgent,
            asked => FetchError::NoDialBack { asked },
        })
    }

    /// An agent that was lost and is back on the line, as one that was restarted, is asked once more.
    async fn ask_persistently(
        &self,
        agent: AgentId,
        asking: &Asking<'_>,
    ) -> Result<Option<Fetched>, FetchError> {
        match self.ask(agent, asking).await? {
            Asked::Came(fetched) => Ok(Some(*fetched)),
            Asked::Lost if self.board.is_on_line(&agent) => match self.ask(agent, asking).await? {
                Asked::Came(fetched) => Ok(Some(*fetched)),
                Asked::Lost | Asked::StaysAway => Ok(None),
            },
            Asked::Lost | Asked::StaysAway => Ok(None),
        }
    }

    async fn ask(&self, agent: AgentId, asking: &Asking<'_>) -> Result<Asked, FetchError> {
        let mark = asking.recorder.mark();
        let asked = self.ask_unnoted(agent, asking).await?;
        asking.recorder.phase("ask agent", mark, |details| {
            details.text("iap.agent", agent);
            match &asked {
                Asked::Came(fetched) => {
                    details.text("iap.way", fetched.stream.way());
                    details.truth("iap.pooled", fetched.has_hello);
                }
                Asked::Lost => details.failed("lost"),
                Asked::StaysAway => details.failed("stays away"),
            }
        });
        Ok(asked)
    }

    async fn ask_unnoted(&self, agent: AgentId, asking: &Asking<'_>) -> Result<Asked, FetchError> {
        let now = OffsetDateTime::now_utc();
        let patience = self.limits.now().dial_back_seconds_max;
        let request = Request {
            connection_id: ConnectionId::from_uuid(Uuid::now_v7()),
            token: fresh_token()?,
            service: asking.service.clone(),
            client_address: asking.client.address,
            source: asking.source,
            deadline: now + patience,
        };
        let opened = match self.board.open(now, agent, request) {
            Ok(opened) => opened,
            Err(OpenError::AgentLost) => return Ok(self.lost(agent)),
            Err(OpenError::Pending(_)) => return Err(FetchError::TooManyPending),
        };
        let Opened { slot, answer, pooled } = opened;
        let coming = async {
            match pooled {
                Some(pooled) => self.pooled_or_answer(pooled, answer, &asking.client.hello).await,
                None => Coming::Answer(answer.await),
            }
        };
        match tokio::time::timeout(patience, coming).await {
            Ok(Coming::Pooled(stream)) => {
                self.board.withdraw(slot.connection_id());
                Ok(self.arrived(DataStream::Tcp(stream), slot, true))
            }
            Ok(Coming::Answer(Ok(Answer::Arrived(stream)))) => Ok(self.arrived(stream, slot, false)),
            Ok(Coming::Answer(Ok(Answer::Refused(reason)))) => {
                self.missed(agent, DialBackOutcome::Refused, &reason);
                Ok(Asked::StaysAway)
            }
            Ok(Coming::Answer(Err(_))) => Ok(self.lost(agent)),
            Err(_) => {
                self.missed(agent, DialBackOutcome::TimedOut, "");
                Ok(Asked::StaysAway)
            }
        }
    }

    /// Sends the client's first bytes on the connection dialled in advance. If its agent has given it up, it dials
    /// back as if there had been none: then those bytes are sent once more, where it is.
    async fn pooled_or_answer(
        &self,
        mut pooled: TcpStream,
        mut answer: oneshot::Receiver<Answer>,
        hello: &[u8],
    ) -> Coming {
        let speaks = async {
            pooled.write_all(hello).await?;
            match pooled.peek(&mut [0]).await? {
                0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(()),
            }
        };
        let spoke: std::io::Result<()> = tokio::select! {
            biased;
            spoke = speaks => spoke,
            answered = &mut answer => {
                self.metrics.pooled(false);
                return Coming::Answer(answered);
            }
        };
        self.metrics.pooled(spoke.is_ok());
        match spoke {
            Ok(()) => Coming::Pooled(pooled),
            Err(_) => Coming::Answer(answer.await),
        }
    }

    fn arrived(&self, stream: DataStream, slot: Slot, has_hello: bool) -> Asked {
        self.metrics.dial_back(DialBackOutcome::Arrived);
        self.metrics.fetched(stream.way());
        Asked::Came(Box::new(Fetched {
            stream,
            slot,
            has_hello,
        }))
    }

    fn lost(&self, agent: AgentId) -> Asked {
        self.missed(agent, DialBackOutcome::AgentLost, "");
        Asked::Lost
    }

    fn missed(&self, agent: AgentId, outcome: DialBackOutcome, reason: &str) {
        self.metrics.dial_back(outcome);
        say_seldom!(self.missed, info, %agent, ?outcome, reason, "the agent did not dial back");
    }
}

pub(crate) fn fresh_token() -> Result<Token, FetchError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| FetchError::NoRandomness)?;
    Ok(Token::from_random(bytes))
}
