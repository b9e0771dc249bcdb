//! Clients: with and without `iap/1`.

use std::io;
use std::sync::Arc;

use iap_identity::{ConnectId, ConnectionId};
use iap_runtime::keys;
use iap_runtime::tls::{self, AlertDescription, ClientStream, FixedIdentity, Material, ServerVerifier};
use iap_testkit::Credential;
use iap_tunnel::{Hello, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::plane::{CLUSTER, Plane};
use crate::proxy::WAIT;

pub type Stream = ClientStream<TcpStream>;

pub fn hello() -> Hello {
    Hello {
        version: 1,
        connect_id: ConnectId::from_uuid(Uuid::now_v7()),
        login: None,
        database: None,
        resume: None,
    }
}

/// Opens a connection for `service` and completes the client's side of a handshake that asks for `sni`.
pub async fn connect_as(
    plane: &Plane,
    service: &str,
    sni: &str,
    credential: Option<&Credential>,
    alpn: &[&str],
) -> (ConnectionId, Result<Stream, tls::HandshakeError>) {
    let (id, stream) = plane.proxy.open(service).await;
    (id, shake_hands(plane, stream, sni, credential, alpn).await)
}

/// The client's side of a handshake.
pub async fn shake_hands(
    plane: &Plane,
    stream: TcpStream,
    sni: &str,
    credential: Option<&Credential>,
    alpn: &[&str],
) -> Result<Stream, tls::HandshakeError> {
    let material = Material::new(plane.cluster.bundle().clone());
    let identity = credential.map(|credential| {
        let key = keys::private_key_der(&credential.key);
        Arc::new(FixedIdentity(
            tls::certified_key(credential.chain.clone(), key).unwrap(),
        )) as _
    });
    let config = tls::client_config(Arc::new(ServerVerifier::new(material)), identity, alpn).unwrap();
    let mut config = Arc::unwrap_or_clone(config);
    config.time_provider = Arc::new(plane.client_clock.clone());
    tls::connect(stream, sni, Arc::new(config), WAIT).await
}

pub fn host(service: &str) -> String {
    format!("{service}.{CLUSTER}")
}

/// A client without `iap/1`.
pub async fn raw(plane: &Plane, service: &str, credential: &Credential) -> (ConnectionId, Stream) {
    let (id, stream) = connect_as(plane, service, &host(service), Some(credential), &[]).await;
    (id, stream.unwrap())
}

/// A client with `iap/1`, and the agent's answer to its hello.
pub async fn framed(plane: &Plane, service: &str, credential: &Credential) -> (Stream, Status) {
    let (_, stream) = connect_as(plane, service, &host(service), Some(credential), &["iap/1"]).await;
    let mut stream = stream.unwrap();
    stream.write_all(&hello().encode().unwrap()).await.unwrap();
    let status = status(&mut stream).await.unwrap();
    (stream, status)
}

pub async fn status(stream: &mut Stream) -> io::Result<Status> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame).await?;
    Ok(Status::decode(&frame).unwrap())
}

/// Sends bytes and expects them back.
pub async fn echoes(stream: &mut Stream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut back = vec![0; text.len()];
    tokio::time::timeout(WAIT, stream.read_exact(&mut back))
        .await
        .expect("an answer")
        .unwrap();
    assert_eq!(back, text.as_bytes());
}

/// Reads until the agent ends the connection; the alert it sent, if it did.
pub async fn ending(stream: &mut Stream) -> Option<AlertDescription> {
    let mut rest = Vec::new();
    match tokio::time::timeout(WAIT, stream.read_to_end(&mut rest))
        .await
        .expect("the connection ends")
    {
        Ok(_) => None,
        Err(error) => tls::alert_received(&error),
    }
}

/// The alert that a raw client gets, whether during its handshake or with its first read.
pub async fn refused(
    plane: &Plane,
    service: &str,
    sni: &str,
    credential: Option<&Credential>,
    alpn: &[&str],
) -> (ConnectionId, Option<AlertDescription>) {
    let (id, connected) = connect_as(plane, service, sni, credential, alpn).await;
    match connected {
        Ok(mut stream) => (id, ending(&mut stream).await),
        Err(error) => (id, error.alert_received()),
    }
}
