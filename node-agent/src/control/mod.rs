//! Control connections: one to every proxy the agent knows of, for as long as it knows of it.

pub mod connection;
pub mod data;
mod dial;
mod drain;
pub mod link;
pub mod pool;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use iap_identity::ProxyId;
use iap_runtime::backoff::Backoff;
use iap_runtime::net::HostPort;
use iap_tunnel::{ControlWay, DataWay};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub use connection::{ConnectionError, Connector};
use dial::Memory;
pub use link::Link;

use crate::view::View;

const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Half of the time within which everything is to be back once what had failed is back.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A connection that lasted this long has earned a prompt new attempt.
const LASTED: Duration = Duration::from_secs(2);
/// How long an address waits at most that leads to a proxy already connected under another address.
const DUPLICATE_RETRY: Duration = Duration::from_secs(30);

/// A proxy this agent is connected to.
#[derive(Debug, Clone)]
pub struct ConnectedProxy {
    /// As it was dialled.
    pub address: HostPort,
    /// What the control connection runs over.
    pub way: ControlWay,
    /// What sessions run over.
    pub data: DataWay,
    /// It takes no new clients any more.
    pub drains: bool,
}

/// The proxies this agent is connected to now. One lock, the channel's own: whoever looks at them while they
/// change waits for nothing else.
#[derive(Debug)]
pub struct Connected(watch::Sender<BTreeMap<ProxyId, ConnectedProxy>>);

/// A proxy's place among the connected; dropping it gives the place up.
#[derive(Debug)]
pub struct Place {
    connected: Arc<Connected>,
    proxy: ProxyId,
}

impl Default for Connected {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }
}

impl Connected {
    /// All of them, as they change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<BTreeMap<ProxyId, ConnectedProxy>> {
        self.0.subscribe()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// All of them, for `agents ls`.
    #[must_use]
    pub fn list(&self) -> Vec<ConnectedProxy> {
        self.0.borrow().values().cloned().collect()
    }

    /// Sessions of `proxy` run over `way`.
    pub fn data(&self, proxy: ProxyId, way: DataWay) {
        self.0.send_if_modified(|proxies| match proxies.get_mut(&proxy) {
            Some(proxy) if proxy.data != way => {
                proxy.data = way;
                true
            }
            Some(_) | None => false,
        });
    }

    /// How many are connected over `way`.
    #[must_use]
    pub fn by(&self, way: ControlWay) -> usize {
        let proxies = self.0.borrow();
        proxies.values().filter(|proxy| proxy.way == way).count()
    }

    /// `proxy` takes no new clients any more.
    fn drains(&self, proxy: ProxyId) {
        self.0.send_if_modified(|proxies| match proxies.get_mut(&proxy) {
            Some(proxy) => !std::mem::replace(&mut proxy.drains, true),
            None => false,
        });
    }

    /// Whether clients of `proxy` could come by another.
    fn has_other_than(&self, proxy: ProxyId) -> bool {
        another(&self.0.borrow(), proxy)
    }

    /// Returns once clients of `proxy` could come by another.
    async fn other_than(&self, proxy: ProxyId) {
        let mut proxies = self.0.subscribe();
        // The sender is here.
        let _ = proxies.wait_for(|proxies| another(proxies, proxy)).await;
    }

    /// Returns once `proxy` is no longer connected.
    async fn left(&self, proxy: ProxyId) {
        let mut proxies = self.0.subscribe();
        let _ = proxies.wait_for(|proxies| !proxies.contains_key(&proxy)).await;
    }

    /// Takes the place of `proxy`; `None` when another address leads to the same proxy already.
    #[must_use]
    pub fn enter(
        self: &Arc<Self>,
        proxy: ProxyId,
        address: &HostPort,
        way: ControlWay,
        data: DataWay,
    ) -> Option<Place> {
        let address = address.clone();
        let entered = self.0.send_if_modified(|proxies| match proxies.entry(proxy) {
            Entry::Vacant(place) => {
                place.insert(ConnectedProxy {
                    address,
                    way,
                    data,
                    drains: false,
                });
                true
            }
            Entry::Occupied(_) => false,
        });
        entered.then(|| Place {
            connected: Arc::clone(self),
            proxy,
        })
    }
}

fn another(proxies: &BTreeMap<ProxyId, ConnectedProxy>, proxy: ProxyId) -> bool {
    proxies.iter().any(|(id, other)| *id != proxy && !other.drains)
}

impl Place {
    /// The control connection runs over another way now.
    pub fn moved(&self, way: ControlWay) {
        self.connected.0.send_modify(|proxies| {
            if let Some(proxy) = proxies.get_mut(&self.proxy) {
                proxy.way = way;
            }
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connected
            .0
            .send_modify(|proxies| drop(proxies.remove(&self.proxy)));
    }
}

/// Keeps one connection to each address of the configuration and the newest view.
#[derive(Debug)]
pub struct Proxies {
    connector: Arc<Connector>,
    configured: Vec<HostPort>,
    proxies_max: usize,
    addresses: watch::Sender<Vec<HostPort>>,
    tasks: BTreeMap<HostPort, AbortOnDropHandle<()>>,
}

impl Proxies {
    /// Nothing is dialled before [`run`](Self::run).
    #[must_use]
    pub fn new(connector: Arc<Connector>, configured: Vec<HostPort>, proxies_max: usize) -> Self {
        let addresses = watch::channel(configured.clone()).0;
        Self {
            connector,
            configured,
            proxies_max,
            addresses,
            tasks: BTreeMap::new(),
        }
    }

    /// The addresses known now: through any of them the auth server can be reached.
    #[must_use]
    pub fn addresses(&self) -> watch::Receiver<Vec<HostPort>> {
        self.addresses.subscribe()
    }

    /// Runs until every publisher of views has gone.
    pub async fn run(mut self, mut views: watch::Receiver<Option<Arc<View>>>) {
        loop {
            // Not under the watch's lock, which a slow log would hold against the next view.
            let view = views.borrow_and_update().clone();
            let wanted = self.wanted(view.as_deref());
            self.apply(wanted);
            if views.changed().await.is_err() {
                return;
            }
        }
    }

    /// Those of the configuration come first where there are more than may be.
    fn wanted(&self, view: Option<&View>) -> BTreeSet<HostPort> {
        let named = view.into_iter().flat_map(View::proxies);
        let named = named.filter_map(|address| match HostPort::parse(address) {
            Ok(address) => Some(address),
            Err(error) => {
                tracing::warn!(%error, "the snapshot names a proxy that cannot be dialled");
                None
            }
        });
        let known: BTreeSet<_> = named.filter(|it| !self.configured.contains(it)).collect();
        let max = self.proxies_max;
        if self.configured.len() + known.len() > max {
            let known = self.configured.len() + known.len();
            tracing::warn!(known, max, "more proxies than limits.proxies_max");
        }
        let all = self.configured.iter().cloned().chain(known);
        all.take(max).collect()
    }

    fn apply(&mut self, wanted: BTreeSet<HostPort>) {
        self.tasks.retain(|address, _| wanted.contains(address));
        for address in &wanted {
            if !self.tasks.contains_key(address) {
                let task = keep_connected(Arc::clone(&self.connector), address.clone());
                self.tasks
                    .insert(address.clone(), AbortOnDropHandle::new(tokio::spawn(task)));
            }
        }
        let addresses: Vec<_> = wanted.into_iter().collect();
        self.addresses.send_if_modified(|held| {
            let changed = *held != addresses;
            *held = addresses;
            changed
        });
    }
}

async fn keep_connected(connector: Arc<Connector>, address: HostPort) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    let mut memory = Memory::default();
    loop {
        let began = tokio::time::Instant::now();
        let ended = connector.converse(&address, &mut memory).await;
        if began.elapsed() >= LASTED {
            backoff.reset();
        }
        match ended {
            Err(ConnectionError::Duplicate { proxy }) => {
                tracing::debug!(%address, %proxy, "already connected to this proxy by another address");
                let left = connector.connected.left(proxy);
                let _ = tokio::time::timeout(DUPLICATE_RETRY, left).await;
            }
            Err(error) => {
                tracing::warn!(%address, %error, "no control connection");
                backoff.wait().await;
            }
            Ok(never) => match never {},
        }
    }
}
