//! Getting a connection from an agent: ask the least loaded one, wait for it to dial back, else ask the next.

use std::net::SocketAddr;
use std::time::Duration;

use iap_identity::{AgentId, ConnectionId, ServerName, ServiceName};
use iap_tunnel::Token;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::admission::Source;
use crate::metrics::{DialBackOutcome, Metrics, Refusal};
use crate::switchboard::{Answer, OpenError, Request, Slot, Switchboard};

/// Asks agents on behalf of clients.
#[derive(Clone)]
pub(crate) struct Fetcher {
    pub(crate) board: Switchboard,
    pub(crate) metrics: Metrics,
    pub(crate) dial_back_seconds_max: Duration,
    pub(crate) attempts_max: usize,
}

/// A socket to an agent that came for this client, and the place it takes while it lives.
pub(crate) struct Fetched {
    pub(crate) stream: TcpStream,
    pub(crate) slot: Slot,
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

impl Fetcher {
    /// A connection from some agent that serves `name`.
    pub(crate) async fn fetch(
        &self,
        name: &ServerName,
        client_address: SocketAddr,
        source: Source,
    ) -> Result<Fetched, FetchError> {
        let candidates = self.board.candidates(name);
        let service = match name {
            ServerName::Service(service) => Some(service.clone()),
            ServerName::Cluster | ServerName::Auth | ServerName::Proxy | ServerName::Agent(_) => None,
        };
        let mut asked = 0;
        for agent in candidates.into_iter().take(self.attempts_max) {
            asked += 1;
            if let Some(fetched) = self.ask(agent, service.clone(), client_address, source).await? {
                return Ok(fetched);
            }
        }
        Err(if asked == 0 {
            FetchError::NoAgent
        } else {
            FetchError::NoDialBack { asked }
        })
    }

    /// `None`: this agent will not come, another may.
    async fn ask(
        &self,
        agent: AgentId,
        service: Option<ServiceName>,
        client_address: SocketAddr,
        source: Source,
    ) -> Result<Option<Fetched>, FetchError> {
        let now = OffsetDateTime::now_utc();
        let connection_id = ConnectionId::from_uuid(Uuid::now_v7());
        let deadline = now + self.dial_back_seconds_max;
        let request = Request {
            connection_id,
            token: fresh_token()?,
            service,
            client_address,
            source,
            deadline,
        };
        let (slot, answer) = match self.board.open(now, agent, request) {
            Ok(opened) => opened,
            Err(OpenError::AgentLost) => return Ok(self.missed(agent, DialBackOutcome::AgentLost, "")),
            Err(OpenError::Pending(_)) => return Err(FetchError::TooManyPending),
        };
        match tokio::time::timeout(self.dial_back_seconds_max, answer).await {
            Ok(Ok(Answer::Arrived(stream))) => {
                self.metrics.dial_back(DialBackOutcome::Arrived);
                Ok(Some(Fetched { stream, slot }))
            }
            Ok(Ok(Answer::Refused(reason))) => Ok(self.missed(agent, DialBackOutcome::Refused, &reason)),
            Ok(Err(_)) => Ok(self.missed(agent, DialBackOutcome::AgentLost, "")),
            Err(_) => Ok(self.missed(agent, DialBackOutcome::TimedOut, "")),
        }
    }

    fn missed(&self, agent: AgentId, outcome: DialBackOutcome, reason: &str) -> Option<Fetched> {
        self.metrics.dial_back(outcome);
        tracing::info!(%agent, ?outcome, reason, "the agent did not dial back");
        None
    }
}

fn fresh_token() -> Result<Token, FetchError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| FetchError::NoRandomness)?;
    Ok(Token::from_random(bytes))
}
