//! Each part of the way broken for real, and found.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::net::SocketAddr;
use std::sync::Arc;

use iap_testkit::TestCluster;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::net::HostPort;
use crate::tls::{self, FixedIdentity};

fn target(cluster: &TestCluster, address: SocketAddr) -> Target {
    Target {
        address: HostPort::from(address),
        cluster: cluster.name.clone(),
        pin: cluster.pin(),
        named_in: "`addresses` in cluster.json".to_owned(),
    }
}

/// A TLS server with that chain that serves `protocols` and answers requests with that `Date`.
async fn tls_server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    protocols: &'static [&'static str],
    date: &'static str,
) -> SocketAddr {
    tls::install_provider();
    let identity = FixedIdentity(tls::certified_key(chain, key).unwrap());
    let config = tls::web_server_config(Arc::new(identity), protocols).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let config = Arc::clone(&config);
            tokio::spawn(async move {
                let Ok(mut stream) = tls::handshake(stream, config, std::time::Duration::from_secs(5)).await
                else {
                    return;
                };
                let mut request = [0; 512];
                if stream.read(&mut request).await.is_ok_and(|count| count > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\nDate: {date}\r\ncontent-length: 0\r\n\r\n");
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    address
}

fn self_signed(name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
    let certificate = parameters.self_signed(&key).unwrap();
    (
        vec![certificate.der().clone()],
        crate::keys::private_key_der(&key),
    )
}

/// What `auth.<cluster>` shows: leaf, system authority, root.
fn auth(cluster: &TestCluster) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let id = iap_identity::AuthId::from_uuid(uuid::Uuid::now_v7());
    let credential = cluster.auth(id).unwrap();
    let mut chain = credential.chain.clone();
    chain.push(cluster.bundle().root_der().clone());
    (chain, credential.private_key().unwrap())
}

fn failed<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
    let found = findings.iter().find(|finding| finding.check == check);
    let found = found.unwrap_or_else(|| panic!("no {check} in {findings:?}"));
    assert_eq!(found.verdict, Verdict::Failed, "{found:?}");
    assert!(found.fix.is_some());
    found
}

#[tokio::test]
async fn a_name_that_does_not_resolve_and_a_closed_port_end_the_examination() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let findings = check_path(&target(&cluster, closed)).await;
    let tcp = failed(&findings, "tcp");
    assert!(
        tcp.fix.as_deref().unwrap().contains(&closed.port().to_string()),
        "{tcp:?}"
    );
    assert_eq!(findings.len(), 2, "nothing more can be said: {findings:?}");
    let mut nowhere = target(&cluster, closed);
    nowhere.address = HostPort::parse("no-such-host.invalid:443").unwrap();
    let findings = check_path(&nowhere).await;
    assert!(
        failed(&findings, "dns")
            .fix
            .as_deref()
            .unwrap()
            .contains("no-such-host.invalid")
    );
    assert_eq!(findings.len(), 1);
}

#[tokio::test]
async fn a_web_server_that_answers_tls_with_http_is_a_balancer_of_the_wrong_layer() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = [0; 64];
        assert!(stream.read(&mut hello).await.unwrap() > 0);
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        let _ = stream.read(&mut hello).await;
    });
    let findings = check_path(&target(&cluster, address)).await;
    assert!(failed(&findings, "balancer").detail.contains("plain HTTP"));
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_1_3_is_a_balancer() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = [0; 4096];
        let _ = stream.read(&mut hello).await;
        // RFC 8446 §6.2: a fatal protocol_version.
        stream.write_all(&[21, 3, 3, 0, 2, 2, 70]).await.unwrap();
        let _ = stream.read(&mut hello).await;
    });
    let findings = check_path(&target(&cluster, address)).await;
    assert!(
        failed(&findings, "balancer").detail.contains("no TLS 1.3"),
        "{findings:?}"
    );
}

#[tokio::test]
async fn tls_that_is_ended_for_the_clusters_name_is_a_balancer_and_for_another_an_interception() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let balancer = format!("*.{}", cluster.name);
    for (name, check) in [
        (balancer.as_str(), "balancer"),
        ("filter.corp.example", "interception"),
    ] {
        let (chain, key) = self_signed(name);
        let address = tls_server(chain, key, &["h2", "http/1.1"], "").await;
        let findings = check_path(&target(&cluster, address)).await;
        assert!(failed(&findings, check).detail.contains(name), "{findings:?}");
    }
}

#[tokio::test]
async fn the_clusters_own_server_is_right_unless_its_alpn_is_stripped() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let (chain, key) = auth(&cluster);
    let address = tls_server(chain, key, &[], "Thu, 01 Jan 1970 00:00:00 GMT").await;
    let findings = check_path(&target(&cluster, address)).await;
    assert!(
        failed(&findings, "balancer").detail.contains("ALPN"),
        "{findings:?}"
    );
    // Its clock says 1970, so ours is far ahead.
    assert!(
        failed(&findings, "clock").detail.contains("ahead of"),
        "{findings:?}"
    );
    let (chain, key) = auth(&cluster);
    let address = tls_server(chain, key, &["h2", "http/1.1"], "").await;
    let findings = check_path(&target(&cluster, address)).await;
    let tls = findings.iter().find(|finding| finding.check == "tls").unwrap();
    assert_eq!(tls.verdict, Verdict::Ok, "{findings:?}");
}

#[tokio::test]
async fn a_quic_server_is_found_by_its_version_negotiation_and_silence_is_a_warning() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let (chain, key) = auth(&cluster);
    let address = tls_server(chain, key, &["h2"], "").await;
    let udp = |findings: &[Finding]| {
        findings
            .iter()
            .find(|finding| finding.check == "udp")
            .unwrap()
            .clone()
    };
    assert_eq!(
        udp(&check_path(&target(&cluster, address)).await).verdict,
        Verdict::Warning
    );
    let socket = UdpSocket::bind(address).await.unwrap();
    tokio::spawn(async move {
        let mut datagram = [0; 2000];
        let (count, from) = socket.recv_from(&mut datagram).await.unwrap();
        assert!(count >= 1200, "a server may ignore shorter first datagrams");
        socket
            .send_to(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], from)
            .await
            .unwrap();
    });
    assert_eq!(
        udp(&check_path(&target(&cluster, address)).await).verdict,
        Verdict::Ok
    );
}

#[test]
fn a_report_is_healthy_when_nothing_failed_and_says_each_fix() {
    let fine = Finding::ok("dns", "resolves");
    let slow = Finding::warning("udp", "closed", "open it");
    let bad = Finding::failed("tcp", "refused", "start it");
    assert!(Report::new(vec![fine.clone(), slow.clone()]).healthy);
    let report = Report::new(vec![fine, slow, bad]);
    assert!(!report.healthy);
    let text = report.render();
    assert!(
        text.contains("FAILED   tcp") && text.contains("-> start it"),
        "{text}"
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["findings"][2]["verdict"], "failed");
}
