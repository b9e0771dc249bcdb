//! A cluster's authorities for tests, made with the real issuing code: root, system, user and workload
//! authority, a signing key, and credentials of every class. Keys live in memory only.

use anyhow::{Context, anyhow};
use iap_identity::{
    AgentId, AgentProfile, AuthId, AuthProfile, BotName, BotProfile, CaClass, CertificateDer, ClusterName,
    GroupName, IdentityProvider, Issued, IssuerCertificate, LoginId, Pin, Profile, ProxyId, ProxyProfile,
    RawBundle, Request, RootCertificate, Serial, ServiceName, SignedKind, TrustBundle, UserId, UserProfile,
    certificate_request, certify_ca, certify_signing_key, key_id, self_signed_root, signed_message,
};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SigningKey};
use rustls_pki_types::PrivateKeyDer;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// A whole cluster's authorities, as of one moment.
pub struct TestCluster {
    /// The cluster's name.
    pub name: ClusterName,
    /// The moment everything was made at; issuing without a time uses it.
    pub now: OffsetDateTime,
    root_key: KeyPair,
    root: RootCertificate,
    system: TestAuthority,
    user: TestAuthority,
    workload: TestAuthority,
    signing_key: KeyPair,
    bundle: TrustBundle,
}

/// One authority with its key.
struct TestAuthority {
    key: KeyPair,
    certificate: IssuerCertificate,
}

/// A certificate chain with its key.
pub struct Credential {
    /// Leaf, then its authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: KeyPair,
    /// What the issuing code said about it.
    pub issued: Issued,
}

impl TestCluster {
    /// A cluster made now.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Self::at(name, OffsetDateTime::now_utc())
    }

    /// A cluster made at a certain time.
    pub fn at(name: &str, now: OffsetDateTime) -> anyhow::Result<Self> {
        let name = ClusterName::parse(name)?;
        let root_key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?;
        let root = RootCertificate::parse(&self_signed_root(&name, &root_key, now, random_serial()?)?)?;
        let authority = |class| TestAuthority::new(class, &name, &root, &root_key, now);
        let (system, user, workload) = (
            authority(CaClass::System)?,
            authority(CaClass::User)?,
            authority(CaClass::Workload)?,
        );
        let signing_key = KeyPair::generate_for(&PKCS_ED25519)?;
        let certified = certify_signing_key(
            &name,
            &ed25519_public(&signing_key)?,
            &root,
            &root_key,
            now,
            random_serial()?,
        )?;
        let raw = RawBundle {
            cluster: name.clone(),
            epoch: 1,
            version: 1,
            root: root.der().to_vec(),
            authorities: [&system, &user, &workload]
                .map(|authority| {
                    (
                        authority.certificate.class(),
                        authority.certificate.der().to_vec(),
                    )
                })
                .to_vec(),
            signing_keys: vec![certified],
        };
        let bundle = TrustBundle::verify(raw, &root.pin(), &name, now)?;
        Ok(Self {
            name,
            now,
            root_key,
            root,
            system,
            user,
            workload,
            signing_key,
            bundle,
        })
    }

    /// The pin of the root.
    pub fn pin(&self) -> Pin {
        self.root.pin()
    }

    /// What everybody in the cluster trusts.
    pub const fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The root's certificate.
    pub const fn root(&self) -> &RootCertificate {
        &self.root
    }

    /// The root's key.
    pub const fn root_key(&self) -> &KeyPair {
        &self.root_key
    }

    /// An authority's certificate.
    pub const fn issuer(&self, class: CaClass) -> &IssuerCertificate {
        &self.authority(class).certificate
    }

    /// An authority's key.
    pub const fn issuer_key(&self, class: CaClass) -> &KeyPair {
        &self.authority(class).key
    }

    /// The Ed25519 key that signs snapshots, beats, lock lists and bundles.
    pub const fn signing_key(&self) -> &KeyPair {
        &self.signing_key
    }

    /// (key id, signature) over a payload.
    pub fn sign(&self, kind: SignedKind, payload: &[u8]) -> anyhow::Result<(String, Vec<u8>)> {
        let signature = self.signing_key.sign(&signed_message(kind, payload))?;
        Ok((key_id(&ed25519_public(&self.signing_key)?), signature))
    }

    /// Issues with a new P-256 key.
    pub fn issue(&self, profile: Profile) -> anyhow::Result<Credential> {
        self.issue_at(profile, self.now)
    }

    /// Issues as if it were another time: how expired and future certificates are made.
    pub fn issue_at(&self, profile: Profile, now: OffsetDateTime) -> anyhow::Result<Credential> {
        self.issue_for(profile, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?, now)
    }

    /// Issues for a certain key.
    pub fn issue_for(
        &self,
        profile: Profile,
        key: KeyPair,
        now: OffsetDateTime,
    ) -> anyhow::Result<Credential> {
        let authority = self.authority(profile.ca_class());
        let issued = Request::parse(&certificate_request(&key)?)?
            .approve(profile)
            .prepare(now, random_serial()?, &authority.certificate)?
            .sign(&authority.key)?
            .finish(now)?;
        let chain = issued.chain_der().into_iter().map(CertificateDer::from).collect();
        Ok(Credential { chain, key, issued })
    }

    /// A user's profile with everyday values; groups are without their connector, `dev`.
    pub fn user_profile(&self, name: &str, groups: &[&str]) -> anyhow::Result<UserProfile> {
        let groups = groups
            .iter()
            .map(|group| GroupName::new("dev", group))
            .collect::<Result<_, _>>()?;
        let issuer = "https://idp.example.com";
        Ok(UserProfile {
            id: UserId::derive("dev", issuer, name),
            cluster: self.name.clone(),
            name: name.to_owned(),
            login_id: LoginId::from_uuid(Uuid::now_v7()),
            auth_time: self.now,
            login_deadline: self.now + Duration::hours(12),
            generation: 0,
            idp: IdentityProvider {
                connector: "dev".to_owned(),
                issuer: issuer.to_owned(),
                subject: name.to_owned(),
                acr: None,
            },
            login_method: "browser".to_owned(),
            mfa_time: None,
            groups,
            groups_vocabulary: 1,
            groups_as_of: self.now,
            life: Duration::hours(1),
        })
    }

    /// A user.
    pub fn user(&self, name: &str, groups: &[&str]) -> anyhow::Result<Credential> {
        self.issue(Profile::User(self.user_profile(name, groups)?))
    }

    /// A bot.
    pub fn bot(&self, name: &str) -> anyhow::Result<Credential> {
        self.issue(Profile::Bot(BotProfile {
            name: BotName::parse(name)?,
            cluster: self.name.clone(),
            login_id: LoginId::from_uuid(Uuid::now_v7()),
            generation: 0,
            life: Duration::hours(1),
        }))
    }

    /// An agent's own certificate.
    pub fn agent(&self, id: AgentId) -> anyhow::Result<Credential> {
        self.issue(Profile::Agent(AgentProfile {
            id,
            cluster: self.name.clone(),
            generation: 0,
        }))
    }

    /// What an agent shows to a service's clients.
    pub fn service_leaf(&self, agent: AgentId, service: &str) -> anyhow::Result<Credential> {
        let service = ServiceName::parse(service)?;
        self.issue(Profile::ServiceLeaf {
            agent,
            service,
            cluster: self.name.clone(),
        })
    }

    /// A proxy.
    pub fn proxy(&self, id: ProxyId) -> anyhow::Result<Credential> {
        self.issue(Profile::Proxy(ProxyProfile {
            id,
            cluster: self.name.clone(),
        }))
    }

    /// An auth server.
    pub fn auth(&self, id: AuthId) -> anyhow::Result<Credential> {
        self.issue(Profile::Auth(AuthProfile {
            id,
            cluster: self.name.clone(),
        }))
    }

    const fn authority(&self, class: CaClass) -> &TestAuthority {
        match class {
            CaClass::System => &self.system,
            CaClass::User => &self.user,
            CaClass::Workload => &self.workload,
        }
    }
}

impl TestAuthority {
    fn new(
        class: CaClass,
        cluster: &ClusterName,
        root: &RootCertificate,
        root_key: &KeyPair,
        now: OffsetDateTime,
    ) -> anyhow::Result<Self> {
        use rcgen::PublicKeyData;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let spki = key.subject_public_key_info();
        let der = certify_ca(class, cluster, &spki, root, root_key, now, random_serial()?)?;
        Ok(Self {
            key,
            certificate: IssuerCertificate::parse(&der)?,
        })
    }
}

impl Credential {
    /// The leaf alone.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        self.issued.leaf_der()
    }

    /// The key as rustls takes it.
    pub fn private_key(&self) -> anyhow::Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::try_from(self.key.serialize_der()).map_err(|error| anyhow!(error))
    }

    /// The chain as a PEM file holds it.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|der| pem(der)).collect()
    }

    /// The key as a PEM file holds it.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

/// One certificate in PEM.
pub fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

/// A serial from the system's random source.
pub fn random_serial() -> anyhow::Result<Serial> {
    let mut bytes = [0; 20];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow!("no randomness"))?;
    Ok(Serial::from_random(bytes))
}

fn ed25519_public(key: &KeyPair) -> anyhow::Result<[u8; 32]> {
    key.public_key_raw()
        .try_into()
        .context("an Ed25519 key has 32 bytes")
}
