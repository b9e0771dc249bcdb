//! A lightweight agent: joined by the real API, with a certificate and a service leaf of its own, on a real control
//! connection. It serves nobody.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use iap_identity::{ServerName, ServiceName, certificate_request};
use iap_proto::v1::ServiceLeafRequest;
use iap_proto::v1::agent_client::AgentClient;
use iap_proto::{decode_control, encode_control};
use iap_runtime::keys::{KeyKind, generate};
use iap_runtime::tls::{self, ClientStream, ServerVerifier, client_config};
use iap_tunnel::{ALPN_CONTROL, CONTROL_FRAME_BYTES_MAX, CONTROL_VERSION, ControlMessage, LengthPrefixed};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::snapshot::Joined;

const TIMEOUT: Duration = Duration::from_secs(20);
/// As the real agent: the first retry comes soon, none later than this, and no two at the same moment.
const RETRY_MILLISECONDS_MAX: u64 = 5_000;

/// What reconnecting takes.
pub(super) struct Agent {
    joined: Joined,
    service: ServiceName,
    leaf: Vec<u8>,
    number: u64,
}

/// A connection whose service the proxy routes.
struct Line {
    stream: ClientStream<TcpStream>,
    decoder: LengthPrefixed,
}

impl Agent {
    /// Joins and fetches the leaf of its service.
    pub(super) async fn join(joined: Joined, service: &str, number: u64) -> anyhow::Result<Self> {
        let key = generate(KeyKind::P256)?;
        let request = ServiceLeafRequest {
            service: service.to_owned(),
            csr: certificate_request(&key)?,
        };
        let issued = AgentClient::new(joined.channel.clone())
            .service_leaf(request)
            .await?
            .into_inner();
        let leaf = issued.chain.into_iter().next().context("no leaf")?;
        Ok(Self {
            joined,
            service: ServiceName::parse(service)?,
            leaf,
            number,
        })
    }

    /// Connects, and connects again whenever the connection ends; counts itself while its service is routed.
    pub(super) async fn stay(self, served: watch::Sender<usize>) {
        let mut failures = 0;
        loop {
            match self.connect().await {
                Ok(line) => {
                    failures = 0;
                    served.send_modify(|count| *count += 1);
                    let _ended = line.answer_pings().await;
                    served.send_modify(|count| *count -= 1);
                }
                Err(_) => failures += 1,
            }
            // Spread by number in place of chance.
            let most = (200_u64 << failures.min(5)).min(RETRY_MILLISECONDS_MAX);
            let wait = most / 2 + self.number.wrapping_mul(7919) % (most / 2);
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    async fn connect(&self) -> anyhow::Result<Line> {
        let tcp = TcpStream::connect(self.joined.address.to_string()).await?;
        tcp.set_nodelay(true)?;
        let material = &self.joined.material;
        let verifier = Arc::new(ServerVerifier::new(material.clone()));
        let config = client_config(verifier, Some(material.clone()), &[ALPN_CONTROL])?;
        let host = ServerName::Proxy.host(&self.joined.cluster);
        let stream = tls::connect(tcp, &host, config, TIMEOUT).await?;
        let mut line = Line {
            stream,
            decoder: LengthPrefixed::new(CONTROL_FRAME_BYTES_MAX),
        };
        tokio::time::timeout(TIMEOUT, line.announce(&self.service, &self.leaf)).await??;
        Ok(line)
    }
}

impl Line {
    async fn announce(&mut self, service: &ServiceName, leaf: &[u8]) -> anyhow::Result<()> {
        self.send(ControlMessage::Hello {
            version: CONTROL_VERSION,
            software: concat!("iap-bench ", env!("CARGO_PKG_VERSION")).to_owned(),
            data: "tcp".to_owned(),
            run: None,
        })
        .await?;
        self.send(ControlMessage::Announce {
            services: vec![(service.clone(), leaf.to_vec())],
        })
        .await?;
        loop {
            match self.next().await? {
                ControlMessage::Announced { accepted, refused } => {
                    ensure!(accepted.contains(service), "{refused:?}");
                    return Ok(());
                }
                ControlMessage::Ping(nonce) => self.send(ControlMessage::Pong(nonce)).await?,
                _ => {}
            }
        }
    }

    async fn answer_pings(mut self) -> anyhow::Result<()> {
        loop {
            if let ControlMessage::Ping(nonce) = self.next().await? {
                self.send(ControlMessage::Pong(nonce)).await?;
            }
        }
    }

    async fn send(&mut self, message: ControlMessage) -> anyhow::Result<()> {
        self.stream.write_all(&encode_control(message)?).await?;
        Ok(self.stream.flush().await?)
    }

    async fn next(&mut self) -> anyhow::Result<ControlMessage> {
        let mut buffer = [0; 2048];
        loop {
            while let Some(frame) = self.decoder.next_frame()? {
                if let Some(message) = decode_control(&frame)? {
                    return Ok(message);
                }
            }
            match self.stream.read(&mut buffer).await? {
                0 => bail!("the proxy closed"),
                length => self.decoder.push(buffer.get(..length).unwrap_or_default()),
            }
        }
    }
}
