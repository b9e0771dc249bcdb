//! Clients fetched inside TLS and on streams of the QUIC connection.

use std::time::Duration;

use iap_identity::AgentId;
use iap_proxy::metrics::Refusal;
use iap_runtime::quic::Connection;
use iap_testkit::new_uuid;
use iap_tunnel::{ALPN_DATA, DataWay, Preface};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::agent::{Duplex, Opened, control_stream, line_refusal};
use crate::support::*;

fn preface(opened: &Opened) -> [u8; 37] {
    let preface = Preface {
        connection_id: opened.connection_id,
        token: opened.token.clone(),
    };
    preface.encode()
}

/// A dial-back of this agent, its preface sent.
async fn dial_back(
    plane: &Plane,
    way: DataWay,
    agent: AgentId,
    line: &Connection,
    opened: &Opened,
) -> Box<dyn Duplex> {
    let mut stream: Box<dyn Duplex> = match way {
        DataWay::Tcp => Box::new(TcpStream::connect(plane.address).await.unwrap()),
        DataWay::Tls => {
            let credential = plane.cluster.agent(agent).unwrap();
            Box::new(
                control_stream(plane, Some(&credential), &[ALPN_DATA])
                    .await
                    .unwrap(),
            )
        }
        DataWay::Quic => {
            let (send, recv) = line.open_bi().await.unwrap();
            Box::new(tokio::io::join(recv, send))
        }
    };
    stream.write_all(&preface(opened)).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

async fn serving(plane: &Plane) -> (TestAgent, Connection) {
    let (mut agent, line) = TestAgent::by_quic(plane).await;
    let db = agent.offer(plane, "db");
    agent.announce(vec![db]).await;
    (agent, line)
}

/// Everything until the other side ends its direction.
async fn all(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    soon(stream.read_to_end(&mut bytes)).await.unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_and_half_closes_pass_both_ways_over_each_way() {
    let plane = Plane::start().await;
    let (mut agent, line) = serving(&plane).await;
    let hello = hello(&plane.cluster, &plane.host("db"));
    let megabytes = |salt: u8| -> Vec<u8> { (0..5_000_003_u32).map(|at| (at % 249) as u8 ^ salt).collect() };
    for way in DataWay::ALL {
        let mut client = dial(plane.address, &hello).await;
        let opened = agent.opened().await;
        let mut fetched = dial_back(&plane, way, agent.id, &line, &opened).await;
        assert_eq!(take(&mut fetched, hello.len()).await, hello, "{way}");
        // The client ends first and the agent goes on.
        client.write_all(&megabytes(0)[..1000]).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(all(&mut fetched).await, megabytes(0)[..1000], "{way}");
        let back = megabytes(1);
        let writing = async {
            fetched.write_all(&back).await.unwrap();
            fetched.shutdown().await.unwrap();
        };
        let ((), got) = soon(async { tokio::join!(writing, all(&mut client)) }).await;
        assert!(got == back, "{way}: {} bytes", got.len());
        // And the other way round.
        let mut client = dial(plane.address, &hello).await;
        let opened = agent.opened().await;
        let mut fetched = dial_back(&plane, way, agent.id, &line, &opened).await;
        take(&mut fetched, hello.len()).await;
        fetched.write_all(b"the agent is done").await.unwrap();
        fetched.shutdown().await.unwrap();
        assert_eq!(all(&mut client).await, b"the agent is done", "{way}");
        let there = megabytes(2);
        let writing = async {
            client.write_all(&there).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let ((), got) = soon(async { tokio::join!(writing, all(&mut fetched)) }).await;
        assert!(got == there, "{way}: {} bytes", got.len());
        assert_eq!(plane.metrics.fetches(way), 2);
        until(|| plane.board.sessions() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proven_agent_with_another_agents_token_gets_nothing() {
    let plane = Plane::start().await;
    let (mut first, first_line) = serving(&plane).await;
    let (second, second_line) = TestAgent::by_quic(&plane).await;
    let hello = hello(&plane.cluster, &plane.host("db"));
    let _client = dial(plane.address, &hello).await;
    let opened = first.opened().await;
    for (refusals, way) in [(1, DataWay::Tls), (2, DataWay::Quic)] {
        let mut stream = dial_back(&plane, way, second.id, &second_line, &opened).await;
        let mut byte = [0];
        assert!(!matches!(soon(stream.read(&mut byte)).await, Ok(1..)), "{way}");
        until(|| plane.metrics.refusals(Refusal::DialBack) == refusals).await;
    }
    // Nor has it used up what was not its own.
    let mut fetched = dial_back(&plane, DataWay::Quic, first.id, &first_line, &opened).await;
    assert_eq!(take(&mut fetched, hello.len()).await, hello);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_agents_dial_back_inside_tls() {
    let plane = Plane::start().await;
    let alice = plane.cluster.user("alice@example.com", &[]).unwrap();
    assert!(line_refusal(&plane, Some(&alice), &[ALPN_DATA]).await.is_some());
    assert!(line_refusal(&plane, None, &[ALPN_DATA]).await.is_some());
    until(|| plane.metrics.refusals(Refusal::Control) == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dial_back_that_says_nothing_is_closed_in_time() {
    let plane = Plane::start_with(|config| {
        config.limits.client_hello_seconds_max = Duration::from_millis(500);
    })
    .await;
    let (agent, line) = TestAgent::by_quic(&plane).await;
    let credential = plane.cluster.agent(agent.id).unwrap();
    let mut silent = control_stream(&plane, Some(&credential), &[ALPN_DATA])
        .await
        .unwrap();
    assert!(!matches!(soon(silent.read(&mut [0])).await, Ok(1..)));
    let (mut send, mut recv) = line.open_bi().await.unwrap();
    send.write_all(b"I").await.unwrap();
    assert!(!matches!(soon(recv.read(&mut [0])).await, Ok(Some(1..))));
    until(|| plane.metrics.refusals(Refusal::DialBack) == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_on_streams_outlive_the_line_they_were_opened_on() {
    let plane = Plane::start().await;
    let (mut agent, line) = serving(&plane).await;
    let hello = hello(&plane.cluster, &plane.host("db"));
    let mut client = dial(plane.address, &hello).await;
    let opened = agent.opened().await;
    let mut fetched = dial_back(&plane, DataWay::Quic, agent.id, &line, &opened).await;
    take(&mut fetched, hello.len()).await;
    let id = agent.id;
    let credential = plane.cluster.agent(id).unwrap();
    let (_new, _its_connection) = TestAgent::by_quic_as(&plane, plane.address, id, &credential).await;
    agent.closed().await;
    drop((agent, line));
    fetched.write_all(b"still here").await.unwrap();
    assert_eq!(take(&mut client, 10).await, b"still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_an_upload_arrives_also_on_the_last_stream_of_a_connection() {
    let plane = Plane::start().await;
    let (mut agent, line) = serving(&plane).await;
    let hello = hello(&plane.cluster, &plane.host("db"));
    let mut client = dial(plane.address, &hello).await;
    let opened = agent.opened().await;
    let mut fetched = dial_back(&plane, DataWay::Quic, agent.id, &line, &opened).await;
    take(&mut fetched, hello.len()).await;
    let credential = plane.cluster.agent(agent.id).unwrap();
    let moved = TestAgent::by_quic_as(&plane, plane.address, agent.id, &credential).await;
    agent.closed().await;
    fetched.shutdown().await.unwrap();
    // More than the agent's window, so that the proxy has some of it when the client has gone.
    let upload = vec![7; 1_000_000];
    client.write_all(&upload).await.unwrap();
    client.shutdown().await.unwrap();
    drop(client);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(all(&mut fetched).await.len(), upload.len());
    drop(moved);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_streams_are_bounded() {
    let plane = Plane::start_with(|config| config.limits.quic_sessions_per_agent_max = 2).await;
    let (_agent, line) = TestAgent::by_quic(&plane).await;
    let _both = (line.open_bi().await.unwrap(), line.open_bi().await.unwrap());
    let third = tokio::time::timeout(Duration::from_millis(300), line.open_bi()).await;
    assert!(third.is_err(), "a third stream is open");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_agent_id_is_no_way_around_the_token() {
    let plane = Plane::start().await;
    let (mut agent, line) = serving(&plane).await;
    let _client = dial(plane.address, &hello(&plane.cluster, &plane.host("db"))).await;
    let mut opened = agent.opened().await;
    opened.connection_id = iap_identity::ConnectionId::from_uuid(new_uuid());
    let mut stream = dial_back(&plane, DataWay::Quic, agent.id, &line, &opened).await;
    assert!(!matches!(soon(stream.read(&mut [0])).await, Ok(1..)));
    plane.refused_once(Refusal::DialBack).await;
}
