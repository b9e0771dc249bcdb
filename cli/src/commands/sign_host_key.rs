//! `iapctl ca sign-host-key`: a certificate for the own key of an SSH server, so that nobody is asked about it.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use iap_identity::backend::{SshAuthority, SshCertificate, SshCertificateKind, SshHostKey};
use iap_proto::v1;
use iap_runtime::files::write_atomic;
use serde_json::json;
use time::OffsetDateTime;

use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::duration;
use crate::exit::ExitStatus;
use crate::failure::Failure;

const KEY_BYTES_MAX: u64 = 64 * 1024;
/// As servers keep their certificates: everybody may read them.
const PUBLIC_FILE_MODE: u32 = 0o644;

/// `ca sign-host-key`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    iapctl ca sign-host-key --service web-1 --public-key /etc/ssh/ssh_host_ed25519_key.pub\n  \
    iapctl ca sign-host-key --service web-1 --public-key web-1.pub --ttl 365d --output web-1-cert.pub\n\n\
    The server then has, in sshd_config: HostCertificate /etc/ssh/ssh_host_ed25519_key-cert.pub")]
pub struct SignHostKeyArguments {
    /// The service whose server it is
    #[arg(long, value_name = "NAME")]
    service: String,
    /// The server's public key, Ed25519 or P-256
    #[arg(long, value_name = "FILE")]
    public_key: PathBuf,
    /// For how long, at most 366d; servers do not renew it themselves
    #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = duration::parse_seconds)]
    ttl: u64,
    /// Where to [default: beside the key, with -cert.pub in place of .pub]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How results are printed
    #[command(flatten)]
    format: Output,
}

pub(super) async fn run(arguments: SignHostKeyArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let service = api::service_name(&arguments.service)?;
    let (text, key) = read(&arguments.public_key)?;
    let target = match &arguments.output {
        Some(path) => path.clone(),
        None => beside(&arguments.public_key)?,
    };
    let asked = v1::SshHostSignRequest {
        service: service.to_string(),
        public_key: text,
        ttl_seconds: u32::try_from(arguments.ttl).unwrap_or(u32::MAX),
    };
    let reply = api::ask(context, async |auth| {
        auth.admin().ssh_host_sign(asked.clone()).await
    })
    .await?;
    let certificate = certificate(&reply, &key)?;
    let line = format!("{}\n", certificate.line());
    write_atomic(&target, line.as_bytes(), PUBLIC_FILE_MODE)
        .with_context(|| format!("cannot write {}", target.display()))?;
    let until = duration::rfc3339(certificate.not_after());
    if arguments.format.is_json() {
        context.printer.json(&json!({
            "service": service.as_str(),
            "file": target,
            "fingerprint": key.fingerprint(),
            "principals": certificate.principals(),
            "serial": certificate.serial().to_string(),
            "not_after": until,
        }))?;
    } else {
        context.printer.talk(&format!(
            "{} is certified for {} until {until}",
            key.fingerprint(),
            certificate.principals().join(", ")
        ));
        context.printer.result(&target.display().to_string())?;
    }
    Ok(ExitStatus::Done)
}

fn read(path: &Path) -> anyhow::Result<(String, SshHostKey)> {
    let name = path.display();
    let file = std::fs::File::open(path)
        .map_err(|error| Failure::usage(format!("cannot read {name}")).because(error.to_string()))?;
    let mut text = String::new();
    file.take(KEY_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| Failure::usage(format!("cannot read {name}")).because(error.to_string()))?;
    let key = SshHostKey::parse(&text)
        .map_err(|error| Failure::usage(format!("{name} cannot be certified")).because(error.to_string()))?;
    Ok((text, key))
}

/// As `ssh-keygen -s` names it.
fn beside(key: &Path) -> Result<PathBuf, Failure> {
    let name = key.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.strip_suffix(".pub").filter(|stem| !stem.is_empty());
    let stem = stem.ok_or_else(|| {
        Failure::usage(format!("{} does not end in .pub", key.display())).next("the same with --output FILE")
    })?;
    Ok(key.with_file_name(format!("{stem}-cert.pub")))
}

/// What came is for this key and signed by the authority named beside it.
fn certificate(reply: &v1::SshHostSignReply, key: &SshHostKey) -> anyhow::Result<SshCertificate> {
    let authority = SshAuthority::from_bytes(&reply.authority);
    let authority = authority.context("the auth server's answer cannot be read")?;
    let (kind, now) = (SshCertificateKind::Host, OffsetDateTime::now_utc());
    let certificate = SshCertificate::verify(&reply.certificate, kind, &authority, now);
    let certificate = certificate.context("the auth server's answer cannot be used")?;
    anyhow::ensure!(
        certificate.certificate().public_key() == key.data(),
        "the auth server's answer is for another key"
    );
    Ok(certificate)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_certificate_lies_where_ssh_keygen_puts_it() {
        let beside = |path: &str| beside(Path::new(path));
        let expected = Path::new("/etc/ssh/ssh_host_ed25519_key-cert.pub");
        assert_eq!(beside("/etc/ssh/ssh_host_ed25519_key.pub").unwrap(), expected);
        assert!(beside("/etc/ssh/ssh_host_ed25519_key").is_err());
        assert!(beside(".pub").is_err());
    }
}
