//! Connections to one proxy that are dialled before anybody asks for a session: a client that comes is put on one,
//! and saves the round trips of a dial-back. Nothing is read from one before the proxy's `Open` names it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iap_identity::ConnectionId;
use iap_runtime::backoff::Backoff;
use iap_runtime::net::Route;
use iap_tunnel::{PoolPreface, Token};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// Used ones are replaced together rather than one by one.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// After a proxy without room, or connections that could not be dialled or were lost.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The connections that wait, by the id of their invitation.
#[derive(Debug, Default)]
pub struct Pool(Mutex<BTreeMap<ConnectionId, Claim>>);

/// Hands a connection over to whoever sends where to.
type Claim = oneshot::Sender<oneshot::Sender<TcpStream>>;

impl Pool {
    /// The connection of this id, if it is still there. It waits no more.
    pub async fn take(&self, id: ConnectionId) -> Option<TcpStream> {
        let claim = self.map().remove(&id)?;
        let (to, stream) = oneshot::channel();
        claim.send(to).ok()?;
        stream.await.ok()
    }

    fn map(&self) -> MutexGuard<'_, BTreeMap<ConnectionId, Claim>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a connection's waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With a client.
    Used,
    /// After the time that the proxy named.
    Idle,
    /// The proxy, or something on the way to it, closed it.
    Lost,
    /// It never came about.
    NotDialled,
}

/// What is to be done for the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PoolEvent {
    /// Ask for so many tokens.
    Ask(u32),
    /// Connections broke: find out whether the proxy is still there.
    Lost,
}

/// Keeps a pool full, for one control connection. Dropping it closes what waits.
pub(super) struct PoolKeeper {
    pool: Arc<Pool>,
    route: Route,
    size: usize,
    patience: Duration,
    members: JoinSet<End>,
    /// Tokens asked for that have not come.
    outstanding: usize,
    next_ask: Instant,
    pause: Backoff,
    metrics: Metrics,
}

impl PoolKeeper {
    /// `size` connections by `route`; 0 keeps none.
    pub(super) fn new(
        pool: Arc<Pool>,
        route: Route,
        size: usize,
        patience: Duration,
        metrics: Metrics,
    ) -> Self {
        Self {
            pool,
            route,
            size,
            patience,
            members: JoinSet::new(),
            outstanding: 0,
            next_ask: Instant::now(),
            pause: Backoff::new(PAUSE_FIRST, PAUSE_MAX),
            metrics,
        }
    }

    /// The next thing to do. Safe to drop and call again.
    pub(super) async fn next(&mut self) -> PoolEvent {
        loop {
            let missing = self.size.saturating_sub(self.members.len() + self.outstanding);
            if self.outstanding == 0 && missing > 0 {
                tokio::select! {
                    () = tokio::time::sleep_until(self.next_ask) => {
                        self.outstanding = missing;
                        return PoolEvent::Ask(u32::try_from(missing).unwrap_or(u32::MAX));
                    }
                    Some(ended) = self.members.join_next() => if self.ended(ended.ok()) { return PoolEvent::Lost },
                }
            } else {
                match self.members.join_next().await {
                    Some(ended) => {
                        if self.ended(ended.ok()) {
                            return PoolEvent::Lost;
                        }
                    }
                    None => std::future::pending().await,
                }
            }
        }
    }

    /// The proxy's answer: dials as many connections as it has tokens for.
    pub(super) fn invited(&mut self, tokens: Vec<(ConnectionId, Token)>, idle: Duration) {
        if tokens.len() < self.outstanding {
            self.pause();
        } else {
            self.next_ask = Instant::now() + ASK_EVERY;
        }
        let wanted = std::mem::take(&mut self.outstanding);
        for (id, token) in tokens.into_iter().take(wanted) {
            let member = Member {
                pool: Arc::clone(&self.pool),
                route: self.route.clone(),
                preface: PoolPreface { id, token },
                patience: self.patience,
                idle,
            };
            self.members.spawn(member.wait());
        }
    }

    /// Whether the connection broke.
    fn ended(&mut self, end: Option<End>) -> bool {
        match end {
            Some(End::Used) => {
                self.pause.reset();
                self.metrics.pool_used();
            }
            Some(End::Idle) | None => {}
            Some(End::Lost | End::NotDialled) => self.pause(),
        }
        end == Some(End::Lost)
    }

    fn pause(&mut self) {
        self.next_ask = Instant::now() + self.pause.next_delay();
    }
}

/// One connection, from its dialling to its end in the pool.
struct Member {
    pool: Arc<Pool>,
    route: Route,
    preface: PoolPreface,
    patience: Duration,
    idle: Duration,
}

impl Member {
    async fn wait(self) -> End {
        let stream = match tokio::time::timeout(self.patience, self.dial()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(way = %self.route, %error, "no connection in advance");
                return End::NotDialled;
            }
            Err(_elapsed) => return End::NotDialled,
        };
        let (claim, claimed) = oneshot::channel();
        self.pool.map().insert(self.preface.id, claim);
        tokio::select! {
            claimed = claimed => match claimed {
                Ok(to) => {
                    // Whoever asked may have gone; so has the client then.
                    let _ = to.send(stream);
                    End::Used
                }
                Err(_) => End::Lost,
            },
            () = closed(&stream) => self.forget(End::Lost),
            () = tokio::time::sleep(self.idle) => self.forget(End::Idle),
        }
    }

    async fn dial(&self) -> io::Result<TcpStream> {
        let mut stream = self.route.connect(self.patience).await?;
        stream.write_all(&self.preface.encode()).await?;
        Ok(stream)
    }

    fn forget(&self, end: End) -> End {
        self.pool.map().remove(&self.preface.id);
        end
    }
}

/// Returns once the proxy has closed the connection. If it has sent something instead, a client is on it, and its
/// `Open` is on the way.
async fn closed(stream: &TcpStream) {
    match stream.ready(Interest::READABLE).await {
        Ok(ready) if !ready.is_read_closed() && !ready.is_error() => std::future::pending().await,
        Ok(_) | Err(_) => {}
    }
}
