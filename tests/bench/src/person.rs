//! A person's programs: the certificate that a login left in a home, at services and at the auth server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use iap_identity::{ClusterName, ConnectId, SessionId};
use iap_runtime::net::HostPort;
use iap_runtime::rpc;
use iap_runtime::tls::{self, CertificateDer, ClientConfig, ClientStream, PrivateKeyDer};
use iap_tunnel::{ALPN_IAP, FRAME_BYTES_MAX, Hello, Status};
use rustls::crypto::CryptoProvider;
use rustls::{NamedGroup, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Channel;

use crate::plane::Plane;

const TIMEOUT: Duration = Duration::from_secs(20);

/// Somebody who is logged in.
pub(crate) struct Client {
    provider: Arc<CryptoProvider>,
    cluster: ClusterName,
    address: HostPort,
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// A granted session.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) stream: ClientStream<TcpStream>,
}

impl Client {
    /// With the login in `home`.
    pub(crate) fn of_home(plane: &Plane, home: &Path) -> anyhow::Result<Self> {
        let cluster = ClusterName::parse(plane.text("cluster")?)?;
        let folder = home.join("clusters").join(cluster.as_str());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(folder.join("ca.pem"))?)?;
        Ok(Self {
            provider: tls::provider(),
            address: HostPort::parse(plane.text("proxy_addr")?)?,
            roots,
            chain: CertificateDer::pem_file_iter(folder.join("cert.pem"))?.collect::<Result<_, _>>()?,
            key: PrivateKeyDer::from_pem_file(folder.join("key.pem"))?,
            cluster,
        })
    }

    /// The same, who offers this key exchange alone.
    pub(crate) fn exchanging(self, group: NamedGroup) -> Self {
        let mut provider = CryptoProvider::clone(&self.provider);
        provider.kx_groups.retain(|offered| offered.name() == group);
        Self {
            provider: Arc::new(provider),
            ..self
        }
    }

    fn config(&self, alpn: &str) -> anyhow::Result<Arc<ClientConfig>> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        config.enable_secret_extraction = true;
        Ok(Arc::new(config))
    }

    /// The auth server's API, through the proxy.
    pub(crate) fn api(&self) -> anyhow::Result<Channel> {
        let config = self.config(rpc::ALPN_H2)?;
        Ok(rpc::channel(
            self.address.clone(),
            &self.cluster.auth_host(),
            config,
        )?)
    }

    /// A session that was granted.
    pub(crate) async fn open(&self, service: &str) -> anyhow::Result<Session> {
        let tcp = TcpStream::connect(self.address.to_string()).await?;
        tcp.set_nodelay(true)?;
        let host = format!("{service}.{}", self.cluster);
        let mut stream = tls::connect(tcp, &host, self.config(ALPN_IAP)?, TIMEOUT).await?;
        let hello = Hello {
            version: iap_tunnel::status::HELLO_VERSION,
            connect_id: ConnectId::from_uuid(uuid::Uuid::now_v7()),
            login: None,
            database: None,
            resume: None,
        };
        stream.write_all(&hello.encode()?).await?;
        stream.flush().await?;
        match tokio::time::timeout(TIMEOUT, read_status(&mut stream))
            .await
            .context("no answer")??
        {
            Status::Granted { session_id: id, .. } => Ok(Session { id, stream }),
            other => bail!("{other:?}"),
        }
    }
}

async fn read_status(stream: &mut ClientStream<TcpStream>) -> anyhow::Result<Status> {
    let length = usize::try_from(stream.read_u32().await?)?;
    ensure!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes");
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    Ok(Status::decode(&frame)?)
}
