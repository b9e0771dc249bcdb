//! The identity extension: who a certificate speaks for, beyond what a URI can say.
//!
//! Non-critical, because rustls, OpenSSL and Go refuse critical private extensions; our verifier
//! requires it. One DER SEQUENCE of at most 4 KiB, one encoding per value:
//!
//! ```asn1
//! IdentityExtension ::= SEQUENCE {
//!   version           INTEGER { v1(1) },
//!   kind              ENUMERATED { user(0), agent(1), proxy(2), auth(3), bot(4), workload(5) },
//!   cluster           UTF8String,
//!   principal         UTF8String (SIZE (1..255)),      -- equals the last part of the URI SAN
//!   loginId           OCTET STRING (SIZE (16)) OPTIONAL,
//!   authTime          [0]  EXPLICIT GeneralizedTime OPTIONAL,
//!   loginDeadline     [1]  EXPLICIT GeneralizedTime OPTIONAL,
//!   generation        [2]  EXPLICIT INTEGER (0..18446744073709551615) OPTIONAL,
//!   idp               [3]  EXPLICIT SEQUENCE { connector UTF8String, issuer UTF8String,
//!                                              subject UTF8String, acr UTF8String OPTIONAL } OPTIONAL,
//!   loginMethod       [4]  EXPLICIT UTF8String OPTIONAL,
//!   mfaTime           [5]  EXPLICIT GeneralizedTime OPTIONAL,
//!   deviceId          [6]  EXPLICIT UTF8String OPTIONAL,
//!   groups            [7]  EXPLICIT SEQUENCE (SIZE (1..MAX)) OF UTF8String OPTIONAL,
//!   groupsVocabulary  [8]  EXPLICIT INTEGER OPTIONAL,
//!   groupsAsOf        [9]  EXPLICIT GeneralizedTime OPTIONAL,
//!   name              [10] EXPLICIT UTF8String OPTIONAL } -- a user's name that is no email address
//! ```

use time::OffsetDateTime;

use crate::class::Class;
pub use crate::der::DerError;
use crate::der::{self, Reader, Writer};
use crate::ids::LoginId;
use crate::names::{ClusterName, GroupName, NameError};

/// Under the enterprise number reserved for documentation (RFC 5612) until one is registered.
pub const IDENTITY_EXTENSION_OID: &str = "1.3.6.1.4.1.32473.1.1";
/// The components of [`IDENTITY_EXTENSION_OID`].
pub const IDENTITY_EXTENSION_OID_PARTS: [u64; 9] = [1, 3, 6, 1, 4, 1, 32473, 1, 1];
/// The whole encoding.
pub const IDENTITY_EXTENSION_BYTES_MAX: usize = 4096;
/// Every text field but the provider's.
pub const TEXT_BYTES_MAX: usize = 255;
/// The provider's issuer, subject and acr.
pub const PROVIDER_TEXT_BYTES_MAX: usize = 1024;

const VERSION: u64 = 1;

/// Who said who this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityProvider {
    /// The connector's name in the auth server's configuration.
    pub connector: String,
    /// The OpenID provider's issuer URL.
    pub issuer: String,
    /// The provider's immutable subject.
    pub subject: String,
    /// The authentication context class the provider reported.
    pub acr: Option<String>,
}

/// The content of the extension. Times have whole seconds: encoding drops fractions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityExtension {
    /// The class of the peer.
    pub kind: Class,
    /// The cluster that issued.
    pub cluster: ClusterName,
    /// The immutable id, equal to the last part of the URI SAN.
    pub principal: String,
    /// The login this certificate descends from.
    pub login_id: Option<LoginId>,
    /// When the user authenticated at the provider.
    pub auth_time: Option<OffsetDateTime>,
    /// The hard end of the login, which renewals do not move.
    pub login_deadline: Option<OffsetDateTime>,
    /// Counts renewals.
    pub generation: Option<u64>,
    /// Who said who this is.
    pub idp: Option<IdentityProvider>,
    /// How the login came about: `browser`, `no-browser`, `headless`.
    pub login_method: Option<String>,
    /// When a second factor was last shown.
    pub mfa_time: Option<OffsetDateTime>,
    /// The enrolled device.
    pub device_id: Option<String>,
    /// Groups, as far as the policy names them.
    pub groups: Vec<GroupName>,
    /// The policy version that did the naming.
    pub groups_vocabulary: Option<u64>,
    /// When the groups were read from the provider.
    pub groups_as_of: Option<OffsetDateTime>,
    /// The user's display name where it is no email address and so cannot be an rfc822Name.
    pub name: Option<String>,
}

/// Why an identity extension was refused, by reader or writer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExtensionError {
    /// The certificate has none although its class requires one.
    #[error("the identity extension is missing")]
    Missing,
    /// The certificate has more than one.
    #[error("the identity extension occurs more than once")]
    Duplicate,
    /// The certificate has one although its class has none.
    #[error("an identity extension where none belongs")]
    Unexpected,
    /// Over [`IDENTITY_EXTENSION_BYTES_MAX`].
    #[error("the identity extension is larger than 4096 bytes")]
    TooLarge,
    /// Not the one encoding.
    #[error("the identity extension is not well-formed: {0}")]
    Der(#[from] DerError),
    /// A version this code does not know.
    #[error("the identity extension has version {0}, only 1 is known")]
    Version(u64),
    /// A kind this code does not know.
    #[error("the identity extension names the unknown kind {0}")]
    Kind(u64),
    /// A name in it is invalid.
    #[error("the identity extension holds an invalid name: {0}")]
    Name(#[from] NameError),
    /// A text is empty, too long, or has control characters.
    #[error("the identity extension's {0} is empty, too long or has control characters")]
    Text(&'static str),
}

impl IdentityExtension {
    /// An extension with only the required fields.
    pub fn new(kind: Class, cluster: ClusterName, principal: String) -> Self {
        Self {
            kind,
            cluster,
            principal,
            login_id: None,
            auth_time: None,
            login_deadline: None,
            generation: None,
            idp: None,
            login_method: None,
            mfa_time: None,
            device_id: None,
            groups: Vec::new(),
            groups_vocabulary: None,
            groups_as_of: None,
            name: None,
        }
    }

    /// The one encoding of this value.
    pub fn to_der(&self) -> Result<Vec<u8>, ExtensionError> {
        self.check_texts()?;
        let mut writer = Writer::default();
        writer.constructed(der::SEQUENCE, |fields| {
            self.write_required(fields)?;
            self.write_login(fields)?;
            self.write_groups(fields)
        })?;
        let bytes = writer.into_bytes();
        if bytes.len() > IDENTITY_EXTENSION_BYTES_MAX {
            return Err(ExtensionError::TooLarge);
        }
        Ok(bytes)
    }

    /// Reads the one encoding; anything else is refused.
    pub fn from_der(bytes: &[u8]) -> Result<Self, ExtensionError> {
        if bytes.len() > IDENTITY_EXTENSION_BYTES_MAX {
            return Err(ExtensionError::TooLarge);
        }
        let mut fields = Reader::new(der::read_single(bytes, der::SEQUENCE)?);
        let version = der::unsigned(fields.read(der::INTEGER)?)?;
        if version != VERSION {
            return Err(ExtensionError::Version(version));
        }
        let extension = Self {
            kind: kind_of(der::unsigned(fields.read(der::ENUMERATED)?)?)?,
            cluster: ClusterName::parse(der::utf8(fields.read(der::UTF8_STRING)?)?)?,
            principal: der::utf8(fields.read(der::UTF8_STRING)?)?.to_owned(),
            login_id: fields
                .optional(der::OCTET_STRING)?
                .map(LoginId::from_bytes)
                .transpose()?,
            auth_time: optional_time(&mut fields, 0)?,
            login_deadline: optional_time(&mut fields, 1)?,
            generation: optional_unsigned(&mut fields, 2)?,
            idp: optional_provider(&mut fields, 3)?,
            login_method: optional_text(&mut fields, 4)?,
            mfa_time: optional_time(&mut fields, 5)?,
            device_id: optional_text(&mut fields, 6)?,
            groups: optional_groups(&mut fields, 7)?,
            groups_vocabulary: optional_unsigned(&mut fields, 8)?,
            groups_as_of: optional_time(&mut fields, 9)?,
            name: optional_text(&mut fields, 10)?,
        };
        fields.finish()?;
        extension.check_texts()?;
        Ok(extension)
    }

    fn check_texts(&self) -> Result<(), ExtensionError> {
        check_text("principal", Some(&self.principal), TEXT_BYTES_MAX)?;
        check_text("login method", self.login_method.as_deref(), TEXT_BYTES_MAX)?;
        check_text("device id", self.device_id.as_deref(), TEXT_BYTES_MAX)?;
        check_text("name", self.name.as_deref(), TEXT_BYTES_MAX)?;
        if let Some(idp) = &self.idp {
            check_text("connector", Some(&idp.connector), TEXT_BYTES_MAX)?;
            check_text("issuer", Some(&idp.issuer), PROVIDER_TEXT_BYTES_MAX)?;
            check_text("subject", Some(&idp.subject), PROVIDER_TEXT_BYTES_MAX)?;
            check_text("acr", idp.acr.as_deref(), PROVIDER_TEXT_BYTES_MAX)?;
        }
        Ok(())
    }

    fn write_required(&self, fields: &mut Writer) -> Result<(), DerError> {
        fields
            .unsigned(der::INTEGER, VERSION)?
            .unsigned(der::ENUMERATED, kind_number(self.kind))?
            .utf8(self.cluster.as_str())?
            .utf8(&self.principal)?;
        if let Some(login_id) = &self.login_id {
            fields.element(der::OCTET_STRING, login_id.as_bytes())?;
        }
        Ok(())
    }

    fn write_login(&self, fields: &mut Writer) -> Result<(), DerError> {
        write_time(fields, 0, self.auth_time)?;
        write_time(fields, 1, self.login_deadline)?;
        write_unsigned(fields, 2, self.generation)?;
        if let Some(idp) = &self.idp {
            fields.explicit(3, |field| {
                field
                    .constructed(der::SEQUENCE, |seq| write_provider(seq, idp))
                    .map(drop)
            })?;
        }
        write_text(fields, 4, self.login_method.as_deref())?;
        write_time(fields, 5, self.mfa_time)?;
        write_text(fields, 6, self.device_id.as_deref())
    }

    fn write_groups(&self, fields: &mut Writer) -> Result<(), DerError> {
        if !self.groups.is_empty() {
            let write_all = |seq: &mut Writer| {
                self.groups
                    .iter()
                    .try_for_each(|group| seq.utf8(group.as_str()).map(drop))
            };
            fields.explicit(7, |field| field.constructed(der::SEQUENCE, write_all).map(drop))?;
        }
        write_unsigned(fields, 8, self.groups_vocabulary)?;
        write_time(fields, 9, self.groups_as_of)?;
        write_text(fields, 10, self.name.as_deref())
    }
}

fn check_text(field: &'static str, text: Option<&str>, bytes_max: usize) -> Result<(), ExtensionError> {
    match text {
        Some(text) if text.is_empty() || text.len() > bytes_max || text.chars().any(char::is_control) => {
            Err(ExtensionError::Text(field))
        }
        Some(_) | None => Ok(()),
    }
}

const fn kind_number(kind: Class) -> u64 {
    match kind {
        Class::User => 0,
        Class::Agent => 1,
        Class::Proxy => 2,
        Class::Auth => 3,
        Class::Bot => 4,
        Class::Workload => 5,
    }
}

fn kind_of(number: u64) -> Result<Class, ExtensionError> {
    Class::ALL
        .into_iter()
        .find(|kind| kind_number(*kind) == number)
        .ok_or(ExtensionError::Kind(number))
}

fn write_time(fields: &mut Writer, number: u8, time: Option<OffsetDateTime>) -> Result<(), DerError> {
    match time {
        Some(time) => fields
            .explicit(number, |field| field.time(time).map(drop))
            .map(drop),
        None => Ok(()),
    }
}

fn write_unsigned(fields: &mut Writer, number: u8, value: Option<u64>) -> Result<(), DerError> {
    match value {
        Some(value) => fields
            .explicit(number, |field| field.unsigned(der::INTEGER, value).map(drop))
            .map(drop),
        None => Ok(()),
    }
}

fn write_text(fields: &mut Writer, number: u8, text: Option<&str>) -> Result<(), DerError> {
    match text {
        Some(text) => fields
            .explicit(number, |field| field.utf8(text).map(drop))
            .map(drop),
        None => Ok(()),
    }
}

fn write_provider(fields: &mut Writer, idp: &IdentityProvider) -> Result<(), DerError> {
    fields
        .utf8(&idp.connector)?
        .utf8(&idp.issuer)?
        .utf8(&idp.subject)?;
    if let Some(acr) = &idp.acr {
        fields.utf8(acr)?;
    }
    Ok(())
}

fn optional_time(fields: &mut Reader<'_>, number: u8) -> Result<Option<OffsetDateTime>, DerError> {
    match fields.optional(der::explicit(number))? {
        Some(field) => der::generalized_time(der::read_single(field, der::GENERALIZED_TIME)?).map(Some),
        None => Ok(None),
    }
}

fn optional_unsigned(fields: &mut Reader<'_>, number: u8) -> Result<Option<u64>, DerError> {
    match fields.optional(der::explicit(number))? {
        Some(field) => der::unsigned(der::read_single(field, der::INTEGER)?).map(Some),
        None => Ok(None),
    }
}

fn optional_text(fields: &mut Reader<'_>, number: u8) -> Result<Option<String>, DerError> {
    match fields.optional(der::explicit(number))? {
        Some(field) => Ok(Some(
            der::utf8(der::read_single(field, der::UTF8_STRING)?)?.to_owned(),
        )),
        None => Ok(None),
    }
}

fn optional_provider(fields: &mut Reader<'_>, number: u8) -> Result<Option<IdentityProvider>, DerError> {
    let Some(field) = fields.optional(der::explicit(number))? else {
        return Ok(None);
    };
    let mut parts = Reader::new(der::read_single(field, der::SEQUENCE)?);
    let idp = IdentityProvider {
        connector: der::utf8(parts.read(der::UTF8_STRING)?)?.to_owned(),
        issuer: der::utf8(parts.read(der::UTF8_STRING)?)?.to_owned(),
        subject: der::utf8(parts.read(der::UTF8_STRING)?)?.to_owned(),
        acr: match parts.optional(der::UTF8_STRING)? {
            Some(acr) => Some(der::utf8(acr)?.to_owned()),
            None => None,
        },
    };
    parts.finish()?;
    Ok(Some(idp))
}

fn optional_groups(fields: &mut Reader<'_>, number: u8) -> Result<Vec<GroupName>, ExtensionError> {
    let Some(field) = fields.optional(der::explicit(number))? else {
        return Ok(Vec::new());
    };
    let mut items = Reader::new(der::read_single(field, der::SEQUENCE)?);
    let mut groups = Vec::new();
    // No groups are written as no field: an empty list would be a second encoding.
    loop {
        groups.push(GroupName::parse(der::utf8(items.read(der::UTF8_STRING)?)?)?);
        if items.is_empty() {
            return Ok(groups);
        }
    }
}
