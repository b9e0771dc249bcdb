//! The listener: who is asked for, and who is believed about where they come from.

use std::sync::Arc;

use iap_runtime::tls::{self, ClientConfig, HandshakeError, Material, ServerVerifier};
use iap_runtime::{proxy_protocol, rpc};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use iap_proto::v1::{self, join_client::JoinClient};

use crate::harness::{ADMIN, CLUSTER, Plane, join_request};

const UNRECOGNIZED_NAME: u8 = 112;
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

fn client(plane: &Plane, alpn: &[&str]) -> Arc<ClientConfig> {
    let material = Material::new(plane.context.authority.bundle.as_ref().clone());
    tls::client_config(Arc::new(ServerVerifier::new(material)), None, alpn).unwrap()
}

async fn connect(plane: &Plane, sni: &str) -> Result<tls::ClientStream<TcpStream>, HandshakeError> {
    let stream = TcpStream::connect(plane.address).await.unwrap();
    tls::connect(stream, sni, client(plane, &["http/1.1"]), PATIENCE).await
}

#[tokio::test]
async fn names_we_do_not_have_are_answered_by_an_alert() {
    let plane = Plane::start().await;
    for name in ["db-prod", "proxy", "www", "auth.auth"] {
        let error = connect(&plane, &format!("{name}.{CLUSTER}"))
            .await
            .expect_err(name);
        assert_eq!(
            error.alert_received().map(u8::from),
            Some(UNRECOGNIZED_NAME),
            "{name}"
        );
    }
    let error = connect(&plane, "other.example.com")
        .await
        .expect_err("another cluster");
    assert_eq!(error.alert_received().map(u8::from), Some(UNRECOGNIZED_NAME));
}

#[tokio::test]
async fn what_is_not_tls_is_closed_with_an_alert() {
    let plane = Plane::start().await;
    let mut stream = TcpStream::connect(plane.address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: iap.example.com\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(answer.first(), Some(&21), "a TLS alert, no page: {answer:?}");
}

#[tokio::test]
async fn who_says_nothing_is_given_up() {
    let plane = Plane::start().await;
    let mut stream = TcpStream::connect(plane.address).await.unwrap();
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(closed.is_ok(), "the server closes by itself");
}

#[tokio::test]
async fn the_web_pages_answer_at_the_clusters_name() {
    let plane = Plane::start().await;
    let mut stream = connect(&plane, CLUSTER).await.unwrap();
    let request = format!("GET /.well-known/iap HTTP/1.1\r\nhost: {CLUSTER}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.contains(&plane.context.authority.pin().to_string()),
        "{answer}"
    );
}

/// A join through a connection that begins with `first`.
async fn join_behind(
    plane: &Plane,
    secret: Vec<u8>,
    first: Vec<u8>,
) -> Result<v1::JoinedAgent, tonic::Status> {
    let (address, config) = (plane.address, client(plane, &[rpc::ALPN_H2]));
    let dial = move || {
        let first = first.clone();
        async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(&first).await?;
            Ok(stream)
        }
    };
    let channel = rpc::channel_over(dial, &format!("auth.{CLUSTER}"), config).unwrap();
    let joined = JoinClient::new(channel)
        .join_agent(join_request(secret).1)
        .await?;
    Ok(joined.into_inner())
}

#[tokio::test]
async fn a_listed_peer_is_believed_about_its_clients_address() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let secret = plane.agent_token(&admin, &[], 2).await;
    let header = proxy_protocol::encode("203.0.113.7:4711".parse().unwrap(), plane.address);
    join_behind(&plane, secret.clone(), header).await.unwrap();
    join_behind(&plane, secret, Vec::new()).await.unwrap();
    let records = plane.records(&admin, "join.success").await;
    assert_eq!(records[0]["client_ip"], "203.0.113.7");
    assert_eq!(records[1]["client_ip"], "127.0.0.1");
}

#[tokio::test]
async fn a_malformed_proxy_header_is_not_forwarded() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let secret = plane.agent_token(&admin, &[], 1).await;
    let mut header = proxy_protocol::encode("203.0.113.7:4711".parse().unwrap(), plane.address);
    header[1] ^= 1;
    assert!(join_behind(&plane, secret, header).await.is_err());
}

#[tokio::test]
async fn an_unlisted_peer_is_not_believed() {
    let plane = Plane::start().await;
    let unlisted = TcpSocket::new_v4().unwrap();
    unlisted.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = unlisted.connect(plane.address).await.unwrap();
    let header = proxy_protocol::encode("203.0.113.7:4711".parse().unwrap(), plane.address);
    stream.write_all(&header).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(answer.first(), Some(&21), "a TLS alert: {answer:?}");
}

#[tokio::test]
async fn a_connection_without_a_certificate_does_not_last() {
    let plane = Plane::start().await;
    let stream = TcpStream::connect(plane.address).await.unwrap();
    let config = client(&plane, &[rpc::ALPN_H2]);
    let mut stream = tls::connect(stream, &format!("auth.{CLUSTER}"), config, PATIENCE)
        .await
        .unwrap();
    // The preface and empty settings of an HTTP/2 client that asks for nothing.
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(closed.is_ok(), "the server closes by itself");
}

#[tokio::test]
async fn a_stranger_cannot_send_a_long_message() {
    let plane = Plane::start().await;
    let request = v1::JoinRequest {
        csr: vec![0; 64 * 1024],
        ..join_request(vec![1; 32]).1
    };
    let status = plane.join().join_agent(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status:?}");
}
