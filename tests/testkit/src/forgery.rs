//! Certificates an honest authority would not issue. Starts as a good certificate; each test spoils
//! exactly one thing.

use anyhow::Context;
use iap_identity::{AgentId, CaClass, CertificateDer, Class, IDENTITY_EXTENSION_OID, IdentityExtension};
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, SanType, SerialNumber, SigningKey,
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::certificates::TestCluster;

/// Everything a certificate says, open to change.
#[derive(Clone)]
pub struct Forgery {
    /// URI alternative names.
    pub uris: Vec<String>,
    /// DNS alternative names.
    pub dns: Vec<String>,
    /// rfc822Name alternative names.
    pub emails: Vec<String>,
    /// Contents of identity extensions, each written as it is.
    pub extensions: Vec<Vec<u8>>,
    /// Whether the identity extensions are critical.
    pub critical: bool,
    /// The extended key usage.
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    /// The start.
    pub not_before: OffsetDateTime,
    /// The end.
    pub not_after: OffsetDateTime,
    /// The basic constraints.
    pub is_ca: IsCa,
    /// The key usage.
    pub key_usages: Vec<KeyUsagePurpose>,
    /// The serial's bytes.
    pub serial: Vec<u8>,
    /// A common name in the subject, which is empty in a good leaf.
    pub common_name: Option<String>,
    /// The subject key identifier; `None`: that of the key.
    pub key_identifier: Option<Vec<u8>>,
    /// Whether there is an authority key identifier.
    pub names_authority: bool,
    /// An extension no profile knows.
    pub foreign_extension: Option<CustomExtension>,
}

impl Forgery {
    /// A good user certificate for `alice@example.com`.
    pub fn user(cluster: &TestCluster) -> anyhow::Result<Self> {
        let profile = cluster.user_profile("alice@example.com", &["engineering"])?;
        let mut extension =
            IdentityExtension::new(Class::User, profile.cluster.clone(), profile.id.to_string());
        extension.login_id = Some(profile.login_id);
        extension.auth_time = Some(profile.auth_time);
        extension.login_deadline = Some(profile.login_deadline);
        extension.generation = Some(profile.generation);
        extension.idp = Some(profile.idp);
        extension.login_method = Some(profile.login_method);
        extension.groups = profile.groups;
        extension.groups_vocabulary = Some(profile.groups_vocabulary);
        extension.groups_as_of = Some(profile.groups_as_of);
        let uri = format!("iap://{}/user/{}", cluster.name, profile.id);
        Ok(Self {
            emails: vec![profile.name],
            ..Self::leaf(cluster, uri, &extension, &[ExtendedKeyUsagePurpose::ClientAuth])?
        })
    }

    /// A good agent certificate.
    pub fn agent(cluster: &TestCluster, id: AgentId) -> anyhow::Result<Self> {
        let extension = IdentityExtension::new(Class::Agent, cluster.name.clone(), id.to_string());
        let uri = format!("spiffe://{}/agent/{id}", cluster.name);
        let usages = [
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        Ok(Self {
            dns: vec![cluster.name.agent_host(&id)],
            ..Self::leaf(cluster, uri, &extension, &usages)?
        })
    }

    /// The one identity extension, read, for changing and putting back with [`Forgery::set_extension`].
    pub fn extension(&self) -> anyhow::Result<IdentityExtension> {
        let bytes = self.extensions.first().context("no extension")?;
        Ok(IdentityExtension::from_der(bytes)?)
    }

    /// Makes this the one identity extension.
    pub fn set_extension(&mut self, extension: &IdentityExtension) -> anyhow::Result<()> {
        self.extensions = vec![extension.to_der()?];
        Ok(())
    }

    /// Signed by one of the cluster's authorities.
    pub fn signed_by(
        &self,
        cluster: &TestCluster,
        class: CaClass,
    ) -> anyhow::Result<CertificateDer<'static>> {
        self.signed(cluster.issuer(class).der(), cluster.issuer_key(class))
    }

    /// Signed under the name of `issuer` with any key.
    pub fn signed(
        &self,
        issuer: &CertificateDer<'_>,
        key: &impl SigningKey,
    ) -> anyhow::Result<CertificateDer<'static>> {
        let issuer = Issuer::from_ca_cert_der(issuer, key)?;
        let own = KeyPair::generate()?;
        Ok(self.params(&own)?.signed_by(&own, &issuer)?.der().clone())
    }

    /// Signed by its own key.
    pub fn self_signed(&self) -> anyhow::Result<CertificateDer<'static>> {
        let own = KeyPair::generate()?;
        Ok(self.params(&own)?.self_signed(&own)?.der().clone())
    }

    fn leaf(
        cluster: &TestCluster,
        uri: String,
        extension: &IdentityExtension,
        usages: &[ExtendedKeyUsagePurpose],
    ) -> anyhow::Result<Self> {
        Ok(Self {
            uris: vec![uri],
            dns: Vec::new(),
            emails: Vec::new(),
            extensions: vec![extension.to_der()?],
            critical: false,
            usages: usages.to_vec(),
            not_before: cluster.now - Duration::minutes(1),
            not_after: cluster.now + Duration::hours(1),
            is_ca: IsCa::ExplicitNoCa,
            key_usages: vec![KeyUsagePurpose::DigitalSignature],
            serial: [&[0x40; 4], Uuid::now_v7().as_bytes().as_slice()].concat(),
            common_name: None,
            key_identifier: None,
            names_authority: true,
            foreign_extension: None,
        })
    }

    fn params(&self, key: &KeyPair) -> anyhow::Result<CertificateParams> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = &self.common_name {
            params.distinguished_name.push(DnType::CommonName, name.as_str());
        }
        params.serial_number = Some(SerialNumber::from_slice(&self.serial));
        params.not_before = self.not_before;
        params.not_after = self.not_after;
        params.is_ca = self.is_ca;
        params.key_usages.clone_from(&self.key_usages);
        params.extended_key_usages.clone_from(&self.usages);
        params.use_authority_key_identifier_extension = self.names_authority;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.public_key_raw());
        let of_key = digest.as_ref().iter().take(20).copied().collect();
        params.key_identifier_method =
            KeyIdMethod::PreSpecified(self.key_identifier.clone().unwrap_or(of_key));
        params.custom_extensions.extend(self.foreign_extension.clone());
        for uri in &self.uris {
            params
                .subject_alt_names
                .push(SanType::URI(uri.as_str().try_into()?));
        }
        for email in &self.emails {
            params
                .subject_alt_names
                .push(SanType::Rfc822Name(email.as_str().try_into()?));
        }
        for host in &self.dns {
            params
                .subject_alt_names
                .push(SanType::DnsName(host.as_str().try_into()?));
        }
        let oid: Vec<u64> = IDENTITY_EXTENSION_OID
            .split('.')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        for content in &self.extensions {
            let mut extension = CustomExtension::from_oid_content(&oid, content.clone());
            extension.set_criticality(self.critical);
            params.custom_extensions.push(extension);
        }
        Ok(params)
    }
}
