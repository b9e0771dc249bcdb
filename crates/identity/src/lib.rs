//! Who somebody is, and how that is proven.
//!
//! Names on the wire, the identity extension, certificate profiles, issuing as a typestate, and
//! verification by class. Pure: the time, randomness, keys and bytes are arguments.
//!
//! Reading order: [`names`] and [`ids`], [`class`], [`extension`], [`bundle`] (what is trusted),
//! [`verify`] (who is at the other end), [`profile`] and [`issue`] (how a certificate comes to be).

pub mod authority;
pub mod backend;
pub mod bundle;
mod ca;
pub mod class;
mod consistency;
mod der;
pub mod extension;
pub mod ids;
pub mod issue;
pub mod join_token;
mod leaf;
mod lint;
pub mod locks;
pub mod names;
mod path;
pub mod peer;
pub mod pin;
pub mod profile;
mod read;
pub mod request;
pub mod server_name;
pub mod signed;
mod text;
pub mod trace;
pub mod uri;
pub mod verify;

pub use authority::{
    AuthorityError, CaError, IssuerCertificate, RootCertificate, certify_ca, certify_signing_key,
    self_signed_root,
};
pub use bundle::{BundleError, RawBundle, SigningKeyCertificate, TrustBundle};
pub use class::{CaClass, Class, ClassSet};
pub use extension::{
    ExtensionError, IDENTITY_EXTENSION_BYTES_MAX, IDENTITY_EXTENSION_OID, IdentityExtension, IdentityProvider,
};
pub use ids::{AgentId, AuthId, ConnectId, ConnectionId, LoginId, ProxyId, SessionId};
pub use issue::{Approved, CLOCK_SKEW, IssueError, Issued, PrepareError, Prepared, Serial, Unverified};
pub use join_token::{JoinToken, JoinTokenError};
pub use locks::{Lock, LockKind, Locks};
pub use names::{BotName, ClusterName, GroupName, LoginName, NameError, ServiceName, UserId};
pub use peer::{
    AgentPeer, AuthPeer, BotPeer, PeerAlert, PeerError, ProxyPeer, ServerIdentity, UserPeer, VerifiedPeer,
    VerifiedServer,
};
pub use pin::{Pin, PinError};
pub use profile::{AgentProfile, AuthProfile, BotProfile, Profile, ProxyProfile, UserProfile};
pub use rcgen::SigningKey as Signer;
pub use request::{Request, RequestError, certificate_request};
pub use rustls_pki_types::CertificateDer;
pub use server_name::{ServerName, ServerNameError};
pub use signed::{SignedError, SignedKind, VerifiedPayload, key_id, signed_message, verify_signed};
pub use text::{hex, hex_to_32};
pub use trace::{Anchor, SampleRatio, SampleRatioError, SpanId, TraceId};
pub use verify::{
    FirstContactError, ServiceLeaf, verify_client, verify_expired_agent, verify_expired_user,
    verify_first_contact, verify_server, verify_service_leaf, verify_signed_by_peer,
};

/// SHA-256, as this crate uses it for pins, thumbprints and ids.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}
