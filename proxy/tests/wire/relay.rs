//! Bytes pass as they are, both ways, to the last one.

use iap_identity::{AgentId, ServerName, verify_server};
use iap_runtime::tls::{self, Material, ServerVerifier};
use iap_testkit::new_uuid;
use std::sync::Arc;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

/// Different at every offset, so that a byte lost, doubled or moved shows.
fn pattern(bytes: usize, salt: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| u8::try_from((at * 31 + at / 251 + salt) % 256).unwrap())
        .collect()
}

async fn session(plane: &Plane) -> (TcpStream, TcpStream) {
    let mut agent = TestAgent::serving(plane, &["db"]).await;
    let hello = hello(&plane.cluster, &plane.host("db"));
    let client = dial(plane.address, &hello).await;
    let (_, mut fetched) = agent.fetch().await;
    assert_eq!(take(&mut fetched, hello.len()).await, hello);
    // The line may end; the session does not depend on it.
    drop(agent);
    (client, fetched)
}

#[tokio::test]
async fn megabytes_pass_intact_both_ways_at_once_and_half_close_passes_too() {
    let plane = Plane::start().await;
    let (client, fetched) = session(&plane).await;
    let (inwards, outwards) = (pattern(9 * 1024 * 1024 + 7, 1), pattern(5 * 1024 * 1024 + 3, 2));
    let (mut client_read, mut client_write) = client.into_split();
    let (mut fetched_read, mut fetched_write) = fetched.into_split();
    let client_sends = async {
        client_write.write_all(&inwards).await.unwrap();
        client_write.shutdown().await.unwrap();
    };
    let agent_sends = async {
        fetched_write.write_all(&outwards).await.unwrap();
        fetched_write.shutdown().await.unwrap();
    };
    let (mut at_agent, mut at_client) = (Vec::new(), Vec::new());
    let all = async {
        tokio::join!(
            client_sends,
            agent_sends,
            async { fetched_read.read_to_end(&mut at_agent).await.unwrap() },
            async { client_read.read_to_end(&mut at_client).await.unwrap() },
        )
    };
    soon(all).await;
    assert!(at_agent == inwards, "client to agent");
    assert!(at_client == outwards, "agent to client");
    until(|| plane.metrics.sessions.get() == 0).await;
    assert_eq!(plane.board.sessions(), 0);
}

#[tokio::test]
async fn one_side_may_go_on_after_the_other_has_finished() {
    let plane = Plane::start().await;
    let (mut client, mut fetched) = session(&plane).await;
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut fetched).await, b"request");
    for piece in 0..20 {
        let bytes = pattern(1000, piece);
        fetched.write_all(&bytes).await.unwrap();
        assert_eq!(take(&mut client, bytes.len()).await, bytes);
    }
    fetched.shutdown().await.unwrap();
    assert!(rest(&mut client).await.is_empty());
}

#[tokio::test]
async fn a_side_that_breaks_ends_the_other() {
    let plane = Plane::start().await;
    let (client, mut fetched) = session(&plane).await;
    client.set_zero_linger().unwrap();
    drop(client);
    rest(&mut fetched).await;
    until(|| plane.metrics.sessions.get() == 0).await;
}

/// The whole point: TLS ends at the agent, with the agent's leaf, and the proxy sees ciphertext.
#[tokio::test]
async fn tls_runs_end_to_end_through_the_proxy() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let leaf = plane.cluster.service_leaf(agent.id, "db").unwrap();
    let key = tls::certified_key(leaf.chain.clone(), leaf.private_key().unwrap()).unwrap();
    let server = tls::web_server_config(Arc::new(tls::FixedIdentity(key)), &[]).unwrap();
    let material = Material::new(plane.cluster.bundle().clone());
    let client = tls::client_config(Arc::new(ServerVerifier::new(material)), None, &[]).unwrap();
    let host = plane.host("db");
    let dialling = async {
        let stream = TcpStream::connect(plane.address).await.unwrap();
        tls::connect(stream, &host, client, PATIENCE).await.unwrap()
    };
    let serving = async {
        let (_, fetched) = agent.fetch().await;
        tls::handshake(fetched, server, PATIENCE).await.unwrap()
    };
    let (mut client, mut server) = tokio::join!(dialling, serving);
    client.write_all(b"secret").await.unwrap();
    assert_eq!(take(&mut server, 6).await, b"secret");
    let chain = client.get_ref().1.peer_certificates().unwrap();
    let name = ServerName::parse(&host, &plane.cluster.name).unwrap();
    assert!(verify_server(chain, &name, plane.cluster.bundle(), OffsetDateTime::now_utc()).is_ok());
    let other = ServerName::Agent(AgentId::from_uuid(new_uuid()));
    assert!(verify_server(chain, &other, plane.cluster.bundle(), OffsetDateTime::now_utc()).is_err());
}
