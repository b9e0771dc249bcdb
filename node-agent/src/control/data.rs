//! What sessions of one proxy run over: what the file allows, what the proxy offers, and what has worked.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use iap_identity::ProxyId;
use iap_runtime::config::InForce;
use iap_runtime::quic::Connection;
use iap_tunnel::{DataOffer, DataWay};
use tokio::time::Instant;

use super::Connected;
use super::pool::Pool;
use crate::config::DataChoice;
use crate::identity::OwnIdentity;
use crate::limits::Limits;
use crate::metrics::Metrics;

/// What has been found out about one address. Outlives its control connections.
#[derive(Debug, Default)]
pub struct DataMemory(Mutex<Option<Fallback>>);

/// A way that works where cheaper ones do not.
#[derive(Debug, Clone, Copy)]
struct Fallback {
    way: DataWay,
    until: Instant,
}

impl DataMemory {
    fn first(&self) -> DataWay {
        let fallback = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *fallback {
            Some(fallback) if Instant::now() < fallback.until => fallback.way,
            Some(_) | None => DataWay::Tcp,
        }
    }

    fn set(&self, fallback: Option<Fallback>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = fallback;
    }
}

/// The ways between this agent and one proxy, as one control connection has them. Clones are one.
#[derive(Debug)]
pub struct Ways {
    pub(super) proxy: ProxyId,
    pub(super) choice: DataChoice,
    pub(super) offered: OnceLock<DataOffer>,
    pub(super) quic: Option<Connection>,
    pub(super) pool: Arc<Pool>,
    pub(super) memory: Arc<DataMemory>,
    pub(super) connected: Arc<Connected>,
    pub(super) identity: Arc<OwnIdentity>,
    pub(super) metrics: Metrics,
    /// Among them how long a fallback is kept to.
    pub(super) limits: InForce<Limits>,
}

impl Ways {
    /// The ways to try, in order.
    #[must_use]
    pub fn order(&self) -> Vec<DataWay> {
        let possible = |way: &DataWay| self.is_possible(*way);
        if let Some(only) = self.choice.only() {
            return Some(only).filter(possible).into_iter().collect();
        }
        let first = self.memory.first();
        let rest = DataWay::ALL.into_iter().filter(|way| *way != first);
        std::iter::once(first).chain(rest).filter(possible).collect()
    }

    /// The QUIC connection of the control messages, where they have one.
    #[must_use]
    pub fn quic(&self) -> Option<&Connection> {
        self.quic.as_ref()
    }

    /// Connections dialled in advance.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// How many connections are to be dialled in advance, of `size` that the file allows.
    #[must_use]
    pub fn pool_size(&self, size: usize) -> usize {
        let offered = self.offered.get().is_some_and(|offer| offer.has_pool());
        let used = self.order().first() == Some(&DataWay::Tcp);
        if offered && used { size } else { 0 }
    }

    /// For TLS to the proxy.
    #[must_use]
    pub fn identity(&self) -> &OwnIdentity {
        &self.identity
    }

    /// A client came over `way`: where that was not the first choice, it is from now on, for a while.
    pub fn worked(&self, way: DataWay) {
        self.metrics.fetched(way);
        if self.choice == DataChoice::Auto && self.memory.first() != way {
            tracing::warn!(proxy = %self.proxy, %way, "sessions of this proxy run over another way now");
            self.prefer(way);
        }
        self.connected.data(self.proxy, way);
    }

    /// No client came over `way`. `went_silent`: the network took the connection and swallowed what was sent,
    /// so that the same attempt would fail again and cost its client again.
    pub fn failed(&self, way: DataWay, went_silent: bool) {
        self.metrics.not_fetched(way);
        let next = self.order().into_iter().find(|other| *other != way);
        if let (DataChoice::Auto, true, Some(next)) = (self.choice, went_silent, next)
            && self.memory.first() == way
        {
            self.prefer(next);
        }
    }

    fn prefer(&self, way: DataWay) {
        let until = Instant::now() + self.limits.now().data_retry();
        let fallback = (way != DataWay::Tcp).then_some(Fallback { way, until });
        self.memory.set(fallback);
    }

    fn is_possible(&self, way: DataWay) -> bool {
        let offered = self.offered.get().is_none_or(|offer| offer.has(way));
        offered && (way != DataWay::Quic || self.quic.is_some())
    }
}
