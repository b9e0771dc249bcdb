//! Build, then run: no listener before the keys are checked and the first snapshot is signed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use iap_audit::EventKind;
use iap_identity::Pin;
use iap_runtime::admin::{self, AdminError, Condition, Readiness};
use iap_runtime::config::InForce;
use iap_runtime::net;
use iap_runtime::shutdown::{Drained, Shutdown};
use iap_runtime::traces::FINISH_TIMEOUT;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};

use crate::audit::RecordError;
use crate::config::{Config, Limits};
use crate::context::{AppContext, Clock, OpenError, OpenedContext, Random};
use crate::listener::{Front, IdentityError, OwnIdentity, Places, WebCertificateError, WebTls};
use crate::login::{Logins, OutboundError};
use crate::metrics::Metrics;
use crate::{audit, local, recordings, rpc, web};

const DATABASE_TRIED_EVERY: Duration = Duration::from_secs(5);
const DATABASE_SECONDS_MAX: Duration = Duration::from_secs(3);
const WATCHERS_COUNTED_EVERY: Duration = Duration::from_secs(5);

/// A server that is ready to run.
#[derive(Debug)]
pub struct App {
    context: Arc<AppContext>,
    logins: Arc<Logins>,
    identity: OwnIdentity,
    web_tls: WebTls,
    listener: TcpListener,
    local: UnixListener,
    places: Places,
    is_first_start: bool,
    readiness: Readiness,
}

/// The limits of a running server.
#[derive(Clone, Debug)]
pub struct LimitsInForce {
    limits: InForce<Limits>,
    places: Places,
}

impl LimitsInForce {
    /// From now on these limits, as far as a running server takes them over. Whoever came in under others stays, and
    /// what was issued within the hour counts.
    pub fn take_over(&self, limits: Limits) {
        self.limits.replace(limits.taken_over(&self.limits.now()));
        self.places.resize(&self.limits.now());
    }
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// `data_dir` cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Providers cannot be asked.
    #[error(transparent)]
    Logins(#[from] OutboundError),
    /// There is no certificate to show.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The public certificate cannot be used.
    #[error(transparent)]
    Web(#[from] WebCertificateError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// What was configured.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The local socket cannot be made.
    #[error("cannot listen on {SOCKET_FILE} in data_dir: {0}", SOCKET_FILE = local::SOCKET_FILE)]
    Local(std::io::Error),
    /// The start could not be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Why the server stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The admin address cannot be served.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

impl App {
    /// Opens `data_dir`, gets a certificate, binds the listener, and records the start.
    pub async fn build(config: Config, clock: Clock, random: Random) -> Result<Self, BuildError> {
        let OpenedContext {
            context,
            is_first_start,
        } = AppContext::open(config, clock, random).await?;
        let context = Arc::new(context);
        let identity = OwnIdentity::issue(Arc::clone(&context)).await?;
        let web_tls = WebTls::load(context.config.web.clone(), &identity.material())?;
        let logins = Arc::new(Logins::new(Arc::clone(&context))?);
        let address = context.config.listen;
        let listener = net::listen(address).map_err(|source| BuildError::Listen { address, source })?;
        let local = local::listen(&context.config.data_dir).map_err(BuildError::Local)?;
        let places = Places::new(&context.limits.now());
        let event = context
            .audit
            .event(EventKind::AuthStart)
            .map_err(RecordError::from)?;
        let event = event
            .field("version", env!("CARGO_PKG_VERSION"))
            .field("first_start", is_first_start);
        context.audit.record(event).await?;
        Ok(Self {
            context,
            logins,
            identity,
            web_tls,
            listener,
            local,
            places,
            is_first_start,
            readiness: Readiness::new(),
        })
    }

    /// The parts, for those who look on.
    pub fn context(&self) -> &Arc<AppContext> {
        &self.context
    }

    /// What `/readyz` says.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Changes the limits while the server runs.
    pub fn limits(&self) -> LimitsInForce {
        LimitsInForce {
            limits: self.context.limits.clone(),
            places: self.places.clone(),
        }
    }

    /// Where the server listens.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Whether keys and database were made just now.
    pub fn is_first_start(&self) -> bool {
        self.is_first_start
    }

    /// What clients trust.
    pub fn pin(&self) -> Pin {
        self.context.authority.pin()
    }

    /// The certificate that browsers see, to read it again while the server runs.
    pub fn web_tls(&self) -> WebTls {
        self.web_tls.clone()
    }

    /// Serves until shutdown, then drains. `serving` is called once everything listens.
    pub async fn run(self, shutdown: Shutdown, serving: impl FnOnce() + Send) -> Result<(), RunError> {
        let readiness = self.readiness.clone();
        let mut registry = Registry::default();
        let metrics = Metrics::register(
            &mut registry,
            self.context.trace_spans.clone(),
            self.context.recordings.counts(),
            self.context.audit.alarms(),
        );
        let config = Arc::clone(&self.context.config);
        let limits = self.context.limits.clone();
        admin::serve(
            config.admin_listen,
            readiness.clone(),
            Arc::new(registry),
            shutdown.clone(),
        )
        .await?;
        let feed = self.context.feed.clone();
        shutdown.spawn(feed.run(readiness.condition("feed"), shutdown.clone()));
        shutdown.spawn(watch_database(
            Arc::clone(&self.context),
            readiness.condition("database"),
            shutdown.clone(),
        ));
        shutdown.spawn(count_watchers(
            Arc::clone(&self.context),
            metrics.clone(),
            shutdown.clone(),
        ));
        shutdown.spawn(local::serve(
            Arc::clone(&self.context),
            self.local,
            shutdown.clone(),
        ));
        shutdown.spawn(audit::lost::run(Arc::clone(&self.context), shutdown.clone()));
        let kept = recordings::retention::run(Arc::clone(&self.context), shutdown.clone());
        shutdown.spawn(kept);
        let material = self.identity.material();
        let certificate = readiness.condition("certificate");
        shutdown.spawn(self.identity.run(certificate, shutdown.clone()));

        shutdown.spawn(Arc::clone(&self.logins).recheck(shutdown.clone()));
        let pages = web::router(Arc::clone(&self.logins));
        let (front, incoming) = Front::new(
            Arc::clone(&self.context),
            material,
            self.web_tls,
            pages,
            self.places,
            metrics.clone(),
            shutdown.clone(),
        );
        let server = rpc::server(&self.context, self.logins, metrics, &shutdown);
        let stop = shutdown.clone();
        shutdown.spawn(async move {
            let served = server.serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await });
            if let Err(error) = served.await {
                tracing::error!(%error, "the API stopped");
            }
        });
        tracing::info!(listen = %config.listen, cluster = %config.cluster, "serving");
        let traces = self.context.traces.clone();
        let store = Arc::clone(&self.context.store);
        serving();
        front.run(self.listener).await;
        match shutdown.drain(limits.now().drain_timeout).await {
            Drained::Complete => tracing::info!("stopped"),
            Drained::Abandoned { tasks } => tracing::warn!(tasks, "stopped with work under way"),
        }
        traces.finish(FINISH_TIMEOUT).await;
        if tokio::time::timeout(DATABASE_SECONDS_MAX, store.close())
            .await
            .is_err()
        {
            tracing::warn!(
                "stopped with the database in use; the next start finds in its log what was written"
            );
        }
        Ok(())
    }
}

/// Whoever cannot write can neither issue nor record: the server is not ready.
async fn watch_database(context: Arc<AppContext>, condition: Condition, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(DATABASE_TRIED_EVERY);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match tokio::time::timeout(DATABASE_SECONDS_MAX, context.store.probe()).await {
            Ok(Ok(())) => condition.met_for(DATABASE_TRIED_EVERY + 2 * DATABASE_SECONDS_MAX),
            Ok(Err(error)) => {
                tracing::error!(%error, "the database cannot be written");
                condition.unmet(&error.to_string());
            }
            Err(_) => {
                let seconds = DATABASE_SECONDS_MAX.as_secs();
                tracing::error!(seconds, "the database does not answer");
                condition.unmet(&format!("nothing could be written within {seconds} s"));
            }
        }
    }
}

async fn count_watchers(context: Arc<AppContext>, metrics: Metrics, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(WATCHERS_COUNTED_EVERY);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => metrics.watchers(context.feed.watchers().len()),
        }
    }
}
