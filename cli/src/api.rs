//! The auth server's API as the commands use it: channels, and errors turned into what a person can act on.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use iap_identity::{ClusterName, ServerName, ServiceName};
use iap_proto::v1;
use iap_proto::v1::admin_client::AdminClient;
use iap_proto::v1::user_client::UserClient;
use iap_runtime::net::HostPort;
use iap_runtime::rpc::{self, ALPN_H2};
use iap_runtime::tls::{self, ClientConfig, FixedIdentity, PinVerifier};
use time::OffsetDateTime;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::address::ClusterAddress;
use crate::context::Context;
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::identity::{self, Identity};
use crate::login;
use crate::services::KnownService;
use crate::trust::Trust;

/// The metadata key that says what kind of refusal it is.
const ERROR_METADATA_KEY: &str = "iap-error";
/// How long the list of services may take where it is only refreshed on the way.
const SERVICES_SECONDS_MAX: u64 = 3;
/// Documents are read whole; nobody writes larger ones.
const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A connection to the auth server as a user.
#[derive(Clone)]
pub struct Auth {
    channel: Channel,
}

impl Auth {
    /// A channel that shows this login. It connects at first use.
    ///
    /// # Errors
    /// When the stored login is damaged.
    pub fn connect(identity: &Identity) -> anyhow::Result<Self> {
        let cluster = identity.home.cluster();
        let verifier = PinVerifier::new(identity.record.pin()?, cluster.clone());
        let certificate = FixedIdentity(tls::certified_key(
            identity.chain.clone(),
            iap_runtime::keys::private_key_der(&identity.key()?),
        )?);
        let config = tls::client_config(Arc::new(verifier), Some(Arc::new(certificate)), &[ALPN_H2])?;
        Ok(Self {
            channel: channel(identity.proxies()?, cluster, config)?,
        })
    }

    /// What every user may call.
    pub fn user(&self) -> UserClient<Channel> {
        UserClient::new(self.channel.clone())
    }

    /// What the policy's admin rules allow.
    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone())
    }
}

/// A channel to an auth server of which only the pin is known, without a certificate.
///
/// # Errors
/// When the address makes no URL.
pub fn first_contact(address: &ClusterAddress, trust: &Trust) -> anyhow::Result<Channel> {
    let verifier = PinVerifier::new(trust.pin, address.cluster.clone());
    let config = tls::client_config(Arc::new(verifier), None, &[ALPN_H2])?;
    channel(
        vec![HostPort::new(address.cluster.as_str(), address.port)?],
        &address.cluster,
        config,
    )
}

fn channel(
    addresses: Vec<HostPort>,
    cluster: &ClusterName,
    config: Arc<ClientConfig>,
) -> anyhow::Result<Channel> {
    Ok(rpc::channel_outwards(
        addresses,
        &ServerName::Auth.host(cluster),
        config,
    )?)
}

/// Asks the auth server as the user who is logged in. Renews a certificate near its end on the way; on a
/// terminal, an answer that asks for a fresh login gets one, and the question is put again.
///
/// # Errors
/// A failure with its exit status.
pub async fn ask<T>(
    context: &Context,
    question: impl AsyncFn(Auth) -> Result<Response<T>, Status>,
) -> anyhow::Result<T> {
    let identity = identity::require(context).await?;
    identity::renew_if_due(&identity, context).await;
    match question(Auth::connect(&current(identity)?)?).await {
        Err(status) if context.interactive && failure(status.clone()).status() == ExitStatus::LoginNeeded => {
            context
                .printer
                .talk(&format!("{}; logging in again.", failure(status)));
            let identity = Box::pin(login::forced(context, &context.cluster_home()?)).await?;
            Ok(answer(question(Auth::connect(&identity)?).await)?)
        }
        result => Ok(answer(result)?),
    }
}

/// The login as it is stored now: a renewal may just have replaced it.
fn current(identity: Identity) -> anyhow::Result<Identity> {
    match identity::load(&identity.home, OffsetDateTime::now_utc())? {
        identity::Standing::Valid(fresh) => Ok(*fresh),
        identity::Standing::NoLogin(_) => Ok(identity),
    }
}

/// The services the user may reach, remembered for when the auth server cannot be asked.
///
/// # Errors
/// When it cannot be asked, or refuses.
pub async fn refresh_services(identity: &Identity) -> Result<Vec<KnownService>, Failure> {
    let broken = |error: anyhow::Error| Failure::failed(format!("{error:#}"));
    let auth = Auth::connect(identity).map_err(broken)?;
    let asking = async { answer(auth.user().services(v1::Empty {}).await) };
    let reply = tokio::time::timeout(Duration::from_secs(SERVICES_SECONDS_MAX), asking)
        .await
        .map_err(|_| {
            Failure::failed(format!(
                "the auth server did not answer within {SERVICES_SECONDS_MAX} s"
            ))
        })??;
    identity.home.learn_proxies(&reply.proxies).map_err(broken)?;
    let mut services: Vec<_> = reply
        .services
        .into_iter()
        .map(KnownService::from_visible)
        .collect();
    services.sort_by(|left, right| left.name.cmp(&right.name));
    identity.home.write_services(&services).map_err(broken)?;
    Ok(services)
}

/// The answer, or the failure it stands for.
///
/// # Errors
/// A failure with its exit status.
pub fn answer<T>(result: Result<Response<T>, Status>) -> Result<T, Failure> {
    result.map(Response::into_inner).map_err(failure)
}

/// What a refusal means to the person.
pub fn failure(status: Status) -> Failure {
    let text = status.message().to_owned();
    let code = status
        .metadata()
        .get(ERROR_METADATA_KEY)
        .and_then(|code| code.to_str().ok());
    match code {
        Some("denied") => Failure::denied(text),
        Some("login_required") => Failure::login_needed(text).next("iapctl login"),
        Some("reauthenticate") => Failure::login_needed(text).next("iapctl login --fresh"),
        Some("invalid" | "conflict" | "not_found") => Failure::usage(text),
        Some("needs_force") => Failure::usage(text).next("--force, if that is meant"),
        Some(_) => Failure::failed(text),
        None => transport_failure(&status),
    }
}

/// Nothing of ours has spoken: the network, TLS, or a server of another kind.
fn transport_failure(status: &Status) -> Failure {
    let why = innermost(status);
    match status.code() {
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => explain_tls(status)
            .unwrap_or_else(|| {
                Failure::failed("the auth server cannot be reached")
                    .because(why)
                    .next("try again, or tell your operator")
            }),
        Code::Unauthenticated => Failure::login_needed("the auth server wants a login")
            .because(why)
            .next("iapctl login"),
        Code::PermissionDenied => Failure::denied("the auth server refuses").because(why),
        Code::Unimplemented => Failure::failed("the auth server does not know this command")
            .because("it is older than this iapctl"),
        _ => Failure::failed("the auth server failed").because(why),
    }
}

fn explain_tls(status: &Status) -> Option<Failure> {
    match causes(status).find_map(tls_error)? {
        rustls::Error::InvalidCertificate(why) => Some(
            crate::clock::server_out_of_time(why, "the auth server", OffsetDateTime::now_utc())
                .unwrap_or_else(|| {
                    Failure::failed("whatever answered for the auth server could not prove to be it")
                .because("its certificate does not lead to the pinned root")
                .next(
                    "check the address; if the cluster was set up anew: iapctl login CLUSTER --ca FILE|PIN",
                )
                }),
        ),
        rustls::Error::AlertReceived(alert) => Some(match alert {
            tls::AlertDescription::CertificateExpired
            | tls::AlertDescription::CertificateRevoked
            | tls::AlertDescription::BadCertificate
            | tls::AlertDescription::UnknownCA
            | tls::AlertDescription::AccessDenied => {
                Failure::login_needed("the auth server does not accept this login").next("iapctl login")
            }
            other => Failure::failed("the auth server refused the connection")
                .because(format!("TLS alert {other:?}")),
        }),
        _ => None,
    }
}

/// The TLS error a cause stands for, also where it hides in an I/O error.
pub(crate) fn tls_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let in_io = || cause.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref();
    cause.downcast_ref().or_else(in_io)
}

pub(crate) fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    // An I/O error may hold the next cause where `source` passes it by.
    std::iter::successors(Some(error), |cause| {
        let held = cause
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        held.map(|held| held as &(dyn std::error::Error + 'static))
            .or_else(|| cause.source())
    })
}

fn innermost(status: &Status) -> String {
    let last = causes(status).skip(1).last().map(ToString::to_string);
    last.unwrap_or_else(|| status.message().to_owned())
}

/// A service's name as typed.
///
/// # Errors
/// Bad input.
pub fn service_name(text: &str) -> Result<ServiceName, Failure> {
    ServiceName::parse(text).map_err(|error| {
        Failure::usage(format!("'{text}' is not a service name"))
            .because(error.to_string())
            .next("iapctl ls")
    })
}

/// A document named on the command line; `-` is stdin.
///
/// # Errors
/// Bad input when it cannot be read.
pub fn read_document(path: &Path) -> Result<String, Failure> {
    use std::io::Read as _;
    let refuse = |why: String| Failure::usage(format!("cannot read {}", path.display())).because(why);
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin()
            .take(DOCUMENT_BYTES_MAX)
            .read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(DOCUMENT_BYTES_MAX).read_to_string(&mut text))
    };
    read.map_err(|error| refuse(error.to_string()))?;
    Ok(text)
}

/// The moment so many seconds ago, as the wire wants it.
pub fn unix_ms_before_now(seconds: u64) -> i64 {
    let ago = time::Duration::seconds(i64::try_from(seconds).unwrap_or(i64::MAX));
    let then = OffsetDateTime::now_utc()
        .checked_sub(ago)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    iap_proto::convert::time_to_wire(then)
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn refusal(code: &'static str) -> Status {
        let mut status = Status::new(Code::Unknown, "no");
        status
            .metadata_mut()
            .insert(ERROR_METADATA_KEY, code.parse().unwrap());
        status
    }

    #[test]
    fn each_refusal_has_its_exit_code() {
        for (code, exit) in [
            ("denied", 3),
            ("login_required", 4),
            ("reauthenticate", 4),
            ("invalid", 2),
            ("conflict", 2),
            ("not_found", 2),
            ("needs_force", 2),
            ("internal", 1),
        ] {
            assert_eq!(failure(refusal(code)).status().code(), exit, "{code}");
        }
        assert_eq!(failure(Status::unavailable("gone")).status().code(), 1);
    }

    #[test]
    fn a_service_name_is_checked_before_anybody_is_asked() {
        for bad in ["", "auth", "proxy", "DB", "a.b", "a_b", "-a", &"a".repeat(64)] {
            assert_eq!(service_name(bad).unwrap_err().status().code(), 2, "{bad}");
        }
    }
}
