//! `iapctl ca export`: what a service's backend is told to trust; `ca sign-host-key` has its own file.

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};
use iap_identity::backend::SshAuthority;
use iap_proto::v1;
use iap_runtime::tls::certificates_to_pem;
use serde_json::json;

use super::sign_host_key::{self, SignHostKeyArguments};
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::exit::ExitStatus;

/// `ca`.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Print an authority of a service, as the program that is to trust it reads it
    #[command(
        after_help = "Examples:\n  iapctl ca export --service web-1 --kind ssh-user   # for sshd's TrustedUserCAKeys\n  \
        iapctl ca export --service db-prod --kind postgres   # for PostgreSQL's ssl_ca_file"
    )]
    Export {
        /// The service
        #[arg(long, value_name = "NAME")]
        service: String,
        /// Which of its authorities
        #[arg(long, value_enum)]
        kind: Kind,
        /// How results are printed
        #[command(flatten)]
        output: Output,
    },
    /// Certify the key of a service's SSH server, so that nobody is asked about its fingerprint. Needs ca.sign
    SignHostKey(SignHostKeyArguments),
}

/// The authorities that a service has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Signs for people and agents at its SSH servers: one line for `TrustedUserCAKeys`
    SshUser,
    /// Signs for its SSH servers: one line for known hosts behind `@cert-authority`
    SshHost,
    /// Signs for logins at its PostgreSQL server: PEM for `ssl_ca_file`
    Postgres,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::SshUser => "ssh-user",
            Self::SshHost => "ssh-host",
            Self::Postgres => "postgres",
        }
    }
}

pub(super) async fn run(command: CaCommand, context: &Context) -> anyhow::Result<ExitStatus> {
    match command {
        CaCommand::Export {
            service,
            kind,
            output,
        } => export(service, kind, output, context).await,
        CaCommand::SignHostKey(arguments) => sign_host_key::run(arguments, context).await,
    }
}

async fn export(
    service: String,
    kind: Kind,
    output: Output,
    context: &Context,
) -> anyhow::Result<ExitStatus> {
    let name = api::service_name(&service)?.to_string();
    let asked = v1::NameRequest { name };
    let reply = api::ask(context, async |auth| {
        auth.admin().service_authorities(asked.clone()).await
    })
    .await?;
    let cluster = context.cluster_home()?;
    let (text, fingerprint) = match kind {
        Kind::Postgres => (
            certificates_to_pem([reply.client.as_slice()]),
            format!("sha256:{}", iap_identity::hex(&api::sha256(&reply.client))),
        ),
        Kind::SshUser => ssh(
            &reply.ssh_user,
            &format!("SSH user CA of {service} at {}", cluster.cluster()),
        )?,
        Kind::SshHost => ssh(
            &reply.ssh_host,
            &format!("SSH host CA of {service} at {}", cluster.cluster()),
        )?,
    };
    if output.is_json() {
        context.printer.json(&json!({
            "service": service,
            "kind": kind.as_str(),
            "authority": text,
            "fingerprint": fingerprint,
        }))?;
    } else {
        context.printer.result(text.trim_end())?;
    }
    Ok(ExitStatus::Done)
}

fn ssh(key: &[u8], comment: &str) -> anyhow::Result<(String, String)> {
    let authority = SshAuthority::from_bytes(key).context("the auth server's answer cannot be read")?;
    Ok((authority.line(comment), authority.fingerprint()))
}
