//! `<cluster>`: its certificate, public or our own, and HTTP over it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use iap_runtime::files::{self, FileError};
use iap_runtime::rpc::ALPN_H2;
use iap_runtime::shutdown::Shutdown;
use iap_runtime::tls::{
    self, FixedIdentity, Material, MaterialError, PemError, Replay, ServerConfig, ServerStream,
};
use tokio::net::TcpStream;

use crate::config::WebCertificate;

const ALPN_HTTP1: &str = "http/1.1";
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const STREAMS_MAX: u32 = 32;
const HEADER_BYTES_MAX: u32 = 32 * 1024;
const CONNECTION_LIFE_MAX: Duration = Duration::from_secs(300);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

/// What browsers are shown at `<cluster>`.
#[derive(Clone, Debug)]
pub struct WebTls {
    config: Arc<ArcSwap<ServerConfig>>,
    files: Option<WebCertificate>,
}

/// The public certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WebCertificateError {
    /// A file cannot be read, or the key's can be read by others.
    #[error(transparent)]
    File(#[from] FileError),
    /// The certificate's file cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// Certificate and key do not belong together.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// TLS could not be set up.
    #[error("TLS could not be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl WebTls {
    /// The public certificate in those files; without them the server's own.
    pub fn load(files: Option<WebCertificate>, own: &Arc<Material>) -> Result<Self, WebCertificateError> {
        let config = match &files {
            Some(files) => public(files)?,
            None => tls::web_server_config(Arc::clone(own) as _, &[ALPN_H2, ALPN_HTTP1])?,
        };
        Ok(Self {
            config: Arc::new(ArcSwap::new(config)),
            files,
        })
    }

    /// Reads a public certificate again; what was there stays if the new one cannot be used.
    pub fn reload(&self) -> Result<(), WebCertificateError> {
        if let Some(files) = &self.files {
            self.config.store(public(files)?);
        }
        Ok(())
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }
}

fn public(certificate: &WebCertificate) -> Result<Arc<ServerConfig>, WebCertificateError> {
    let path = &certificate.certificate;
    let chain = std::fs::read(path).map_err(|source| WebCertificateError::Unreadable {
        path: path.display().to_string(),
        source,
    })?;
    let key = files::read_private(&certificate.key)?;
    let identity = tls::certified_key(
        tls::certificates_from_pem(&chain)?,
        tls::private_key_from_pem(&key)?,
    )?;
    Ok(tls::web_server_config(
        Arc::new(FixedIdentity(identity)),
        &[ALPN_H2, ALPN_HTTP1],
    )?)
}

/// Serves one connection until it ends, is old, or the server stops.
pub(super) async fn serve(stream: ServerStream<Replay<TcpStream>>, pages: Router, shutdown: Shutdown) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEAD_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(pages));
    tokio::pin!(connection);
    tokio::select! {
        _ended = connection.as_mut() => return,
        () = tokio::time::sleep(CONNECTION_LIFE_MAX) => {}
        () = shutdown.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, connection).await;
}
