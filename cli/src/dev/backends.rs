//! The demo's two small backends: `echo` sends back every byte, `web` shows what reached it.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use axum::http::HeaderMap;
use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Connections `echo` serves at once.
const ECHO_CONNECTIONS_MAX: usize = 1_024;
const ECHO_BUFFER_BYTES: usize = 64 * 1024;

/// Binds both and serves until `stop`.
///
/// # Errors
/// When a port is taken.
pub(crate) async fn serve(echo_port: u16, web_port: u16, stop: CancellationToken) -> anyhow::Result<()> {
    let echo = bind(echo_port).await?;
    let web = bind(web_port).await?;
    tokio::spawn(serve_echo(echo, stop.clone()));
    let app = axum::Router::new()
        .route("/", get(home))
        .route("/headers", get(headers));
    tokio::spawn(async move {
        let served = axum::serve(web, app)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the demo web server ended");
        }
    });
    Ok(())
}

async fn bind(port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))
}

async fn serve_echo(listener: TcpListener, stop: CancellationToken) {
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(ECHO_CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (Ok((stream, _)), Ok(slot)) = (accepted, slots.clone().try_acquire_owned()) else {
            continue;
        };
        let stop = stop.clone();
        tokio::spawn(async move {
            let _slot = slot;
            tokio::select! {
                () = stop.cancelled() => {}
                _ = echo(stream) => {}
            }
        });
    }
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; ECHO_BUFFER_BYTES];
    loop {
        let read = stream.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return stream.shutdown().await;
        };
        stream.write_all(bytes).await?;
    }
}

async fn home() -> &'static str {
    "This page has no public address: it reached you through the access plane.\nSee /headers.\n"
}

async fn headers(headers: HeaderMap) -> axum::Json<serde_json::Map<String, serde_json::Value>> {
    let mut shown = serde_json::Map::new();
    for name in headers.keys() {
        let values: Vec<String> = headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect();
        shown.insert(name.as_str().to_owned(), values.join(", ").into());
    }
    axum::Json(shown)
}
