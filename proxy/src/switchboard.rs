//! The proxy's shared table: which agents are on the line, what they serve, who waits for a dial-back, which
//! sessions run. Every method is one short step under one lock; nothing waits in here.

mod cancels;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use iap_identity::{AgentId, ConnectionId, Locks, ServerName, ServiceName};
use iap_runtime::config::InForce;
use iap_runtime::pump::Cancellation;
use iap_tunnel::{
    ControlMessage, IssueError, PendingOpens, Pool, PoolLimits, PoolPreface, PoolRefusal, Preface,
    RedeemError, Routes, RunId, Token,
};
use thiserror::Error;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::admission::Source;
use crate::config::Limits;
use crate::front::data::DataStream;
use crate::metrics::Metrics;
use crate::verdict::{Awaited, Verdict};
use cancels::CancelBudget;

/// Control connections of one agent at once: those that have not said hello yet and those that were replaced and are
/// not closed yet count too.
pub const LINES_PER_AGENT_MAX: usize = 8;
pub(crate) const REPLACED: &str = "the agent opened a newer control connection";

/// The table. Clones share it.
#[derive(Clone)]
pub struct Switchboard {
    table: Arc<Mutex<Table>>,
    limits: InForce<Limits>,
    metrics: Metrics,
}

struct Table {
    pool: Pool<TcpStream>,
    routes: Routes,
    pending: PendingOpens<oneshot::Sender<Answer>>,
    lines: BTreeMap<AgentId, Line>,
    /// How many control connections each has, as [`Approach`] counts.
    approaches: BTreeMap<AgentId, usize>,
    /// Those of the last cut: whoever comes on the line later meets them here, under the same lock.
    locks: Locks,
    sessions: BTreeMap<ConnectionId, Session>,
    /// Sessions that ended unjudged.
    awaited: Awaited,
    lines_opened: u64,
}

/// An agent's control connection.
struct Line {
    number: LineNumber,
    serial: String,
    run: Option<RunId>,
    messages: Outbox,
    cut: Cancellation,
    /// Requests to cancel that may be handed on to it in this second; nothing where it understands none.
    cancels: Option<CancelBudget>,
}

/// A connection given to an agent, from the `Open` until both sides are closed.
struct Session {
    agent: AgentId,
    serial: String,
    source: Source,
    judged: bool,
    /// Its client goes on by another connection when this one ends, as its agent has said.
    resumable: bool,
    verdict: Verdict,
    cut: Cancellation,
}

/// Messages for one agent. Boxed, because the channel keeps room for thirty-two also while it is empty.
pub type Outbox = mpsc::Sender<Box<ControlMessage>>;

/// Tells an agent's successive control connections apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineNumber(u64);

/// What the agent did with an `Open`. A sender dropped without an answer means the agent is lost.
#[derive(Debug)]
pub enum Answer {
    /// It came; the preface is read.
    Arrived(DataStream),
    /// It will not, for this reason.
    Refused(String),
}

/// A request for a connection.
pub struct Request {
    /// The id the agent brings back.
    pub connection_id: ConnectionId,
    /// The token the agent brings back.
    pub token: Token,
    /// The service asked for; `None` when the agent itself was.
    pub service: Option<ServiceName>,
    /// As the proxy saw it.
    pub client_address: SocketAddr,
    /// For the verdict.
    pub source: Source,
    /// When the token dies.
    pub deadline: OffsetDateTime,
}

/// An agent was asked.
pub struct Opened {
    /// The place the connection takes.
    pub slot: Slot,
    /// What the agent does.
    pub answer: oneshot::Receiver<Answer>,
    /// The connection it was told the client is on.
    pub pooled: Option<TcpStream>,
}

fn pool_limits(limits: &Limits) -> PoolLimits {
    PoolLimits {
        connections_max: limits.pool_connections_max,
        connections_per_agent_max: limits.pool_connections_per_agent_max,
    }
}

/// The newest connection that is still open: nothing has been sent on one, so it has nothing to read.
fn take_live(
    pool: &mut Pool<TcpStream>,
    now: OffsetDateTime,
    agent: &AgentId,
) -> Option<(ConnectionId, TcpStream)> {
    loop {
        let (id, stream) = pool.take(now, agent)?;
        match stream.try_read(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Some((id, stream)),
            Ok(_) | Err(_) => {}
        }
    }
}

/// One control connection of an agent, from its handshake to its close. Dropping it ends its count.
pub struct Approach {
    board: Switchboard,
    agent: AgentId,
}

/// A connection under way. Dropping it ends its count and withdraws its token.
pub struct Slot {
    board: Switchboard,
    agent: AgentId,
    connection_id: ConnectionId,
    /// Cancelled when the agent gets locked.
    pub cut: Cancellation,
    /// What the agent thinks of the client.
    pub verdict: Verdict,
    /// Whether the agent has the client.
    pub is_joined: bool,
}

impl Switchboard {
    /// An empty table.
    pub fn new(limits: InForce<Limits>, metrics: Metrics) -> Self {
        let now = limits.now();
        let table = Table {
            pool: Pool::new(pool_limits(&now)),
            routes: Routes::new(),
            pending: PendingOpens::new(now.pending_opens_max),
            lines: BTreeMap::new(),
            approaches: BTreeMap::new(),
            locks: Locks::default(),
            sessions: BTreeMap::new(),
            awaited: Awaited::default(),
            lines_opened: 0,
        };
        Self {
            table: Arc::new(Mutex::new(table)),
            limits,
            metrics,
        }
    }

    /// The limits have changed. Whoever is on the line stays, and what waits goes on waiting.
    pub(crate) fn resize(&self) {
        let limits = self.limits.now();
        let mut table = self.table();
        table.pending.resize(limits.pending_opens_max);
        table.pool.resize(pool_limits(&limits));
    }

    /// A control connection of an agent begins. `None` when it has as many as it may.
    pub fn approach(&self, agent: AgentId) -> Option<Approach> {
        let mut table = self.table();
        let count = table.approaches.entry(agent).or_default();
        if *count >= LINES_PER_AGENT_MAX {
            return None;
        }
        *count += 1;
        Some(Approach {
            board: self.clone(),
            agent,
        })
    }

    /// An agent is on the line. A line it had before ends: the agent moved to another way, or came back before
    /// its loss was noticed. Its services keep their routes, now by the new line, until that announces. What the
    /// old line was asked for may still be fetched, unless this is another `run` of the agent's program: then
    /// whoever waits learns at once that the agent was lost, and may ask it again.
    pub fn connect(
        &self,
        agent: AgentId,
        serial: &str,
        run: Option<RunId>,
        messages: Outbox,
        cut: Cancellation,
    ) -> Result<LineNumber, ConnectError> {
        let agents_max = self.limits.now().agents_max;
        let mut table = self.table();
        let now = OffsetDateTime::now_utc();
        if let Some(lock) = table.locks.matching_agent(&agent, serial, now) {
            return Err(ConnectError::Locked(lock.reason.clone()));
        }
        if !table.lines.contains_key(&agent) && table.lines.len() >= agents_max {
            return Err(ConnectError::TooManyAgents { agents_max });
        }
        table.lines_opened += 1;
        let number = LineNumber(table.lines_opened);
        let line = Line {
            number,
            serial: serial.to_owned(),
            run,
            messages,
            cut,
            cancels: None,
        };
        match table.lines.insert(agent, line) {
            Some(before) => {
                before.cut.cancel(REPLACED);
                if before.run.zip(run).is_some_and(|(before, now)| before != now) {
                    table.pending.abandon(&agent);
                }
                // What was dialled in advance belongs to the line that asked for it.
                table.pool.leave(&agent);
                self.count_pool(&table);
            }
            None => table.routes.announce(agent, Vec::new()),
        }
        Ok(number)
    }

    /// The line ended. A later line of the same agent is left alone.
    pub fn disconnect(&self, agent: &AgentId, number: LineNumber) {
        let mut table = self.table();
        if table.holds(agent, number) {
            table.leave(agent);
            self.count_pool(&table);
        }
    }

    /// The agent serves these names and no others.
    pub fn announce(&self, agent: AgentId, number: LineNumber, services: Vec<ServiceName>) {
        let mut table = self.table();
        if table.holds(&agent, number) {
            table.routes.announce(agent, services);
        }
    }

    /// Whom to ask for a name, the best first.
    pub fn candidates(&self, name: &ServerName) -> Vec<AgentId> {
        let table = self.table();
        match name {
            ServerName::Service(service) => table.routes.candidates(service),
            ServerName::Agent(agent) if table.routes.is_connected(agent) => vec![*agent],
            ServerName::Agent(_) | ServerName::Cluster | ServerName::Auth | ServerName::Proxy => Vec::new(),
        }
    }

    /// Whether the agent is on the line.
    pub fn is_on_line(&self, agent: &AgentId) -> bool {
        self.table().lines.contains_key(agent)
    }

    /// Asks an agent to come for a client: on a connection it dialled in advance, if one is there.
    pub fn open(&self, now: OffsetDateTime, agent: AgentId, request: Request) -> Result<Opened, OpenError> {
        let mut table = self.table();
        let table = &mut *table;
        let line = table.lines.get(&agent).ok_or(OpenError::AgentLost)?;
        if line.cut.reason().is_some() {
            return Err(OpenError::AgentLost);
        }
        let place = line.messages.try_reserve().map_err(|_| OpenError::AgentLost)?;
        let (waiter, answer) = oneshot::channel();
        let id = request.connection_id;
        table
            .pending
            .issue(now, agent, id, request.token.clone(), waiter, request.deadline)?;
        let pooled = take_live(&mut table.pool, now, &agent);
        place.send(Box::new(ControlMessage::Open {
            connection_id: id,
            token: request.token,
            service: request.service,
            client_address: request.client_address,
            pooled: pooled.as_ref().map(|(id, _)| *id),
        }));
        let (cut, verdict) = (Cancellation::new(), Verdict::default());
        let session = Session {
            agent,
            serial: line.serial.clone(),
            source: request.source,
            judged: false,
            resumable: false,
            verdict: verdict.clone(),
            cut: cut.clone(),
        };
        table.sessions.insert(id, session);
        table.routes.session_started(&agent);
        self.count_pool(table);
        let slot = Slot {
            board: self.clone(),
            agent,
            connection_id: id,
            cut,
            verdict,
            is_joined: false,
        };
        Ok(Opened {
            slot,
            answer,
            pooled: pooled.map(|(_, stream)| stream),
        })
    }

    /// Gives what an agent fetches a client with to whoever waits for it. `agent` is who it is, where that is
    /// proven by more than the token.
    pub fn redeem(
        &self,
        now: OffsetDateTime,
        preface: &Preface,
        agent: Option<&AgentId>,
        stream: DataStream,
    ) -> Result<(), RedeemError> {
        let mut table = self.table();
        let waiter = match agent {
            Some(agent) => table.pending.redeem_by(now, agent, preface),
            None => table.pending.redeem(now, preface),
        }?;
        drop(table);
        waiter
            .send(Answer::Arrived(stream))
            .map_err(|_| RedeemError::Unknown)
    }

    /// The client is on its way: nobody needs to dial back for it any more.
    pub fn withdraw(&self, connection_id: &ConnectionId) {
        self.table().pending.withdraw(connection_id);
    }

    /// Invites connections of an agent, as many as fit; the tokens to tell it.
    pub fn invite(
        &self,
        agent: AgentId,
        number: LineNumber,
        tokens: Vec<(ConnectionId, Token)>,
        deadline: OffsetDateTime,
    ) -> Vec<(ConnectionId, Token)> {
        let mut table = self.table();
        if !table.holds(&agent, number) {
            return Vec::new();
        }
        let fits =
            |(id, token): &(ConnectionId, Token)| table.pool.invite(agent, *id, token.clone(), deadline);
        tokens.into_iter().filter(fits).collect()
    }

    /// Closes what has waited too long; says how many more connections of this agent could be invited.
    pub fn pool_room(&self, now: OffsetDateTime, agent: &AgentId) -> usize {
        let mut table = self.table();
        table.pool.expire(now, agent);
        self.count_pool(&table);
        table.pool.room(agent)
    }

    /// Takes in a connection that an agent dialled in advance.
    pub fn enter_pool(
        &self,
        preface: &PoolPreface,
        stream: TcpStream,
        until: OffsetDateTime,
    ) -> Result<(), PoolRefusal> {
        let mut table = self.table();
        let entered = table
            .pool
            .enter(OffsetDateTime::now_utc(), preface, stream, until);
        self.count_pool(&table);
        entered.map(|_| ())
    }

    fn count_pool(&self, table: &Table) {
        let idle = i64::try_from(table.pool.idle()).unwrap_or(i64::MAX);
        self.metrics.pool_idle.set(idle);
    }

    /// The agent will not dial back. Says whether anybody waited for it to.
    pub fn refuse(&self, agent: &AgentId, connection_id: &ConnectionId, reason: String) -> bool {
        let waiter = self.table().pending.refuse(connection_id, agent);
        waiter.is_some_and(|waiter| waiter.send(Answer::Refused(reason)).is_ok())
    }

    /// The agent's verdict on a client. Returns the source of a session of this agent that had none yet, and runs or
    /// ended just now: a client that closes first is judged all the same. A session whose client failed ends as soon
    /// as the client was told.
    pub fn judge(
        &self,
        agent: &AgentId,
        connection_id: &ConnectionId,
        authenticated: bool,
    ) -> Option<Source> {
        let mut table = self.table();
        let Some(session) = table.sessions.get_mut(connection_id) else {
            return table.awaited.take(connection_id, agent, Instant::now());
        };
        if session.agent != *agent || std::mem::replace(&mut session.judged, true) {
            return None;
        }
        session.verdict.give(authenticated);
        Some(session.source)
    }

    /// The agent lets the client of this connection go on by another.
    pub fn resumable(&self, agent: &AgentId, connection_id: &ConnectionId) {
        if let Some(session) = self.table().sessions.get_mut(connection_id)
            && session.agent == *agent
        {
            session.resumable = true;
        }
    }

    /// Cuts the lines and sessions of every agent that a lock names, and forgets what it served, what it was asked for
    /// and what it dialled in advance: when this returns, nothing new can begin through it, however long its line takes
    /// to end. Returns how many of each.
    pub fn cut_locked(&self, locks: &Locks, now: OffsetDateTime) -> (usize, usize) {
        let mut table = self.table();
        let table = &mut *table;
        table.locks = locks.clone();
        let locked = |agent: &AgentId, serial: &str| locks.matching_agent(agent, serial, now).is_some();
        let mut lines = Vec::new();
        for (agent, line) in &table.lines {
            if locked(agent, &line.serial) {
                line.cut.cancel("the agent is locked");
                lines.push(*agent);
            }
        }
        let sessions = table.sessions.values();
        let sessions: Vec<_> = sessions
            .filter(|session| locked(&session.agent, &session.serial))
            .collect();
        sessions
            .iter()
            .for_each(|session| session.cut.cancel("the agent is locked"));
        let cut = (lines.len(), sessions.len());
        lines.iter().for_each(|agent| table.leave(agent));
        self.count_pool(table);
        cut
    }

    /// Ends every session.
    pub fn cut_all(&self, reason: &str) {
        self.table()
            .sessions
            .values()
            .for_each(|session| session.cut.cancel(reason));
    }

    /// Tells every agent that no more sessions will come this way.
    pub fn drain(&self, deadline_seconds: u32) {
        for line in self.table().lines.values() {
            // An agent that takes no messages will notice when its line closes.
            let message = ControlMessage::Drain { deadline_seconds };
            let _ = line.messages.try_send(Box::new(message));
        }
    }

    /// How many sessions run.
    pub fn sessions(&self) -> usize {
        self.table().sessions.len()
    }

    /// How many of them would be lost with their connections.
    pub fn not_resumable(&self) -> usize {
        let table = self.table();
        table
            .sessions
            .values()
            .filter(|session| !session.resumable)
            .count()
    }

    /// How many agents are on the line.
    pub fn agents(&self) -> usize {
        self.table().lines.len()
    }

    fn end(&self, slot: &Slot) {
        let (agent, connection_id) = (&slot.agent, &slot.connection_id);
        let mut table = self.table();
        table.pending.withdraw(connection_id);
        let Some(session) = table.sessions.remove(connection_id) else {
            return;
        };
        table.routes.session_ended(agent);
        // An agent that came for nobody, because another was first, blames a client that it never saw.
        if slot.is_joined && !session.judged {
            table
                .awaited
                .keep(*connection_id, *agent, session.source, Instant::now());
        }
    }

    /// No step leaves the table half changed, so a panic elsewhere does not spoil it.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn holds(&self, agent: &AgentId, number: LineNumber) -> bool {
        self.lines.get(agent).is_some_and(|line| line.number == number)
    }

    fn leave(&mut self, agent: &AgentId) {
        self.lines.remove(agent);
        self.routes.remove(agent);
        self.pending.abandon(agent);
        self.pool.leave(agent);
    }
}

impl Slot {
    /// The agent that serves it.
    pub fn agent(&self) -> &AgentId {
        &self.agent
    }

    /// Its id.
    pub fn connection_id(&self) -> &ConnectionId {
        &self.connection_id
    }
}

impl Drop for Approach {
    fn drop(&mut self) {
        let mut table = self.board.table();
        if let Some(count) = table.approaches.get_mut(&self.agent) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                table.approaches.remove(&self.agent);
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.board.end(self);
    }
}

/// Why an agent does not come on the line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// No further agent fits.
    #[error("{agents_max} agents are connected already (limits.agents_max)")]
    TooManyAgents {
        /// The limit.
        agents_max: usize,
    },
    /// It was locked while it came.
    #[error("the agent is locked: {0}")]
    Locked(String),
}

/// Why an agent was not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OpenError {
    /// Its line ended, or it takes no more messages; another agent may.
    #[error("the agent is not on the line")]
    AgentLost,
    /// The proxy is at a limit; no other agent would change that.
    #[error(transparent)]
    Pending(#[from] IssueError),
}

#[cfg(test)]
mod tests;
