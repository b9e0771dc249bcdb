//! A client of the harness: `iap/1` over any proxy, with the certificate of a real login.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use iap_identity::{ConnectId, SessionId};
use iap_runtime::tls::{self, ClientStream};
use iap_tunnel::{Hello, Status};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(super) const CLUSTER: &str = "iap.localhost";
/// One attempt, from the first byte to the agent's answer.
const ATTEMPT: Duration = Duration::from_secs(10);

/// Opens sessions as one user.
#[derive(Clone)]
pub(super) struct Dialler(Arc<ClientConfig>);

/// A granted session.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) stream: ClientStream<TcpStream>,
}

/// Bytes came that are not those that were sent.
#[derive(Debug)]
pub(super) struct Corrupt;

impl std::fmt::Display for Corrupt {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("other bytes came than were sent")
    }
}

impl std::error::Error for Corrupt {}

impl Dialler {
    /// Takes the certificate that `iapctl` keeps in `home`.
    pub(super) fn of_home(home: &Path) -> anyhow::Result<Self> {
        let folder = home.join("clusters").join(CLUSTER);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(folder.join("ca.pem"))?)?;
        let chain = CertificateDer::pem_file_iter(folder.join("cert.pem"))?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(folder.join("key.pem"))?;
        let mut config = ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![b"iap/1".to_vec()];
        config.enable_secret_extraction = true;
        Ok(Self(Arc::new(config)))
    }

    /// Opens a session to `service` through the proxy at `proxy`.
    pub(super) async fn open(&self, proxy: SocketAddr, service: &str) -> anyhow::Result<Session> {
        let opening = self.try_open(proxy, service);
        tokio::time::timeout(ATTEMPT, opening)
            .await
            .context("no answer in time")?
    }

    async fn try_open(&self, proxy: SocketAddr, service: &str) -> anyhow::Result<Session> {
        let tcp = TcpStream::connect(proxy).await?;
        tcp.set_nodelay(true)?;
        let host = format!("{service}.{CLUSTER}");
        let mut stream = tls::connect(tcp, &host, Arc::clone(&self.0), ATTEMPT).await?;
        let hello = Hello {
            version: iap_tunnel::status::HELLO_VERSION,
            connect_id: ConnectId::from_uuid(iap_testkit::new_uuid()),
            login: None,
            database: None,
            resume: None,
        };
        stream.write_all(&hello.encode()?).await?;
        stream.flush().await?;
        match read_status(&mut stream).await? {
            Status::Granted { session_id: id, .. } => Ok(Session { id, stream }),
            other => bail!("{other:?}"),
        }
    }
}

impl Session {
    /// Says its id, then moves `bytes` there and back and compares them.
    pub(super) async fn exchange(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(self.id.as_bytes()).await?;
        self.round_trip(bytes).await
    }

    /// Moves `bytes` there and back and compares them.
    pub(super) async fn round_trip(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut back = vec![0; bytes.len()];
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        let write = async {
            writer.write_all(bytes).await?;
            writer.flush().await
        };
        let both = async { tokio::try_join!(write, reader.read_exact(&mut back)) };
        tokio::time::timeout(ATTEMPT, both)
            .await
            .context("the bytes did not come back in time")??;
        if back != bytes {
            return Err(Corrupt.into());
        }
        Ok(())
    }

    /// Ends the session in order and reads to its end.
    pub(super) async fn close(mut self) -> anyhow::Result<()> {
        self.stream.shutdown().await?;
        let mut rest = Vec::new();
        tokio::time::timeout(ATTEMPT, self.stream.read_to_end(&mut rest))
            .await
            .context("the session did not end in time")??;
        if !rest.is_empty() {
            return Err(Corrupt.into());
        }
        Ok(())
    }
}

async fn read_status(stream: &mut ClientStream<TcpStream>) -> anyhow::Result<Status> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = usize::try_from(u32::from_be_bytes(length))?;
    ensure!(length <= iap_tunnel::FRAME_BYTES_MAX, "a frame of {length} bytes");
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    Ok(Status::decode(&frame)?)
}
