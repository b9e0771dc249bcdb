//! An agent that has joined: by the real API, or with certificates that the harness issued in the auth server's place.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use iap_identity::{
    AgentId, AgentProfile, ClusterName, Issued, IssuerCertificate, JoinToken, Profile, Request, Serial,
    ServiceName, TrustBundle, certificate_request,
};
use iap_proto::open_bundle;
use iap_proto::v1::JoinRequest;
use iap_proto::v1::join_client::JoinClient;
use iap_runtime::keys::{self, KeyKind, generate, private_key_der};
use iap_runtime::net::HostPort;
use iap_runtime::rpc;
use iap_runtime::tls::{
    CertificateDer, Material, PinVerifier, ServerVerifier, certificates_from_pem, client_config,
};
use rcgen::KeyPair;
use time::OffsetDateTime;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::light_agent::Agent;
use crate::plane::Plane;

/// An agent that has joined, with what it may call with.
pub(crate) struct Joined {
    pub(crate) cluster: ClusterName,
    /// The proxy.
    pub(crate) address: HostPort,
    /// Its certificate and what it trusts.
    pub(crate) material: Arc<Material>,
    /// The auth server's API.
    pub(crate) channel: Channel,
}

impl Joined {
    /// Joins with a token, through the proxy.
    pub(crate) async fn with(plane: &Plane, token: &str) -> anyhow::Result<Self> {
        let cluster = ClusterName::parse(plane.text("cluster")?)?;
        let address = HostPort::parse(plane.text("proxy_addr")?)?;
        let token = JoinToken::parse(token)?;
        let now = OffsetDateTime::now_utc();
        let key = generate(KeyKind::P256)?;
        let first = client_config(
            Arc::new(PinVerifier::new(*token.pin(), cluster.clone())),
            None,
            &[rpc::ALPN_H2],
        )?;
        let channel = rpc::channel(address.clone(), &cluster.auth_host(), first)?;
        let request = JoinRequest {
            secret: token.secret().to_vec(),
            csr: certificate_request(&key)?,
            host_name: "bench".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let joined = JoinClient::new(channel).join_agent(request).await?.into_inner();
        let bundle = open_bundle(&joined.bundle.context("no bundle")?, token.pin(), &cluster, now)?;
        let material = Material::new(bundle);
        let chain = joined
            .issued
            .context("no certificate")?
            .chain
            .into_iter()
            .map(CertificateDer::from)
            .collect();
        material.publish_identity(chain, private_key_der(&key), now)?;
        let verifier = Arc::new(ServerVerifier::new(material.clone()));
        let config = client_config(verifier, Some(material.clone()), &[rpc::ALPN_H2])?;
        let channel = rpc::channel(address.clone(), &cluster.auth_host(), config)?;
        Ok(Self {
            cluster,
            address,
            material,
            channel,
        })
    }
}

/// Issues with a plane's own key what its auth server would issue, so that thousands of agents need not join one by one.
pub(crate) struct Authority {
    certificate: IssuerCertificate,
    key: KeyPair,
    bundle: TrustBundle,
    cluster: ClusterName,
    address: HostPort,
    channel: Channel,
}

impl Authority {
    /// Of the plane that `first` joined.
    ///
    /// # Errors
    /// When the plane's files are not as they should be.
    pub(crate) fn of(plane: &Plane, first: &Joined) -> anyhow::Result<Self> {
        let folder = plane.dir.join("auth/ca");
        Ok(Self {
            certificate: read_issuer(&folder.join("system.pem"))?,
            key: keys::load(&folder.join("system.key.pem"), KeyKind::P256)?,
            bundle: TrustBundle::clone(&first.material.bundle()),
            cluster: first.cluster.clone(),
            address: first.address.clone(),
            channel: first.channel.clone(),
        })
    }

    /// An agent with an id, a certificate and a leaf of its own.
    ///
    /// # Errors
    /// When a certificate cannot be made.
    pub(crate) fn agent(&self, service: &ServiceName, number: u64) -> anyhow::Result<Agent> {
        let id = AgentId::from_uuid(Uuid::now_v7());
        let key = generate(KeyKind::P256)?;
        let own = self.issue(
            &key,
            Profile::Agent(AgentProfile {
                id,
                cluster: self.cluster.clone(),
                generation: 1,
            }),
        )?;
        let leaf = self.issue(
            &key,
            Profile::ServiceLeaf {
                agent: id,
                service: service.clone(),
                cluster: self.cluster.clone(),
            },
        )?;
        let material = Material::new(self.bundle.clone());
        let chain = own.chain_der().into_iter().map(CertificateDer::from).collect();
        material.publish_identity(chain, private_key_der(&key), OffsetDateTime::now_utc())?;
        let joined = Joined {
            cluster: self.cluster.clone(),
            address: self.address.clone(),
            material,
            channel: self.channel.clone(),
        };
        let leaf = leaf.leaf_der().to_vec();
        Ok(Agent::with_leaf(joined, service.clone(), leaf, number))
    }

    fn issue(&self, key: &KeyPair, profile: Profile) -> anyhow::Result<Issued> {
        let now = OffsetDateTime::now_utc();
        let request = Request::parse(&certificate_request(key)?)?;
        let prepared = request
            .approve(profile)
            .prepare(now, serial(), &self.certificate)?;
        Ok(prepared.sign(&self.key)?.finish(now)?)
    }
}

fn read_issuer(path: &Path) -> anyhow::Result<IssuerCertificate> {
    let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let certificates = certificates_from_pem(&pem)?;
    let certificate = certificates.first().context("no certificate")?;
    Ok(IssuerCertificate::parse(certificate)?)
}

/// Different each time, which is all that matters here.
fn serial() -> Serial {
    let mut bytes = [0; 20];
    let drawn = [Uuid::now_v7(), Uuid::now_v7()];
    let drawn = drawn.iter().flat_map(|uuid| uuid.as_bytes().iter().rev());
    for (slot, byte) in bytes.iter_mut().zip(drawn) {
        *slot = *byte;
    }
    Serial::from_random(bytes)
}
