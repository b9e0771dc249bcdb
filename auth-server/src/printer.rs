//! The only place that writes to standard output and standard error.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use crate::authority::format_time;
use crate::backup::{Made, RestoreReport};
use crate::break_glass::{AdminCertificate, Wish};
use crate::config::{Config, ConnectorConfig};
use crate::login::Finding;
use crate::store::Identity;
use iap_identity::Pin;
use iap_policy::{AdminAbout, RuleAbout, Verb};
use serde_json::{Map, Value};

/// The configuration can be used.
pub fn configuration_is_good(config: &Config) {
    println!("the configuration of {} is good", config.cluster);
}

/// Why the program ends.
pub fn failure(error: &dyn std::fmt::Display) {
    eprintln!("iap-auth: {error}");
}

/// What a server that is ready says of its conditions.
pub fn readiness(report: &str) {
    println!("{report}");
}

/// What `doctor` found, as text or JSON.
pub fn findings_of_doctor(report: &str) {
    println!("{report}");
}

/// A join token, alone on its line, for `> FILE`.
pub fn token(token: &str) {
    println!("{token}");
}

/// A break-glass certificate was issued.
pub fn admin_certificate(wish: &Wish, given: &AdminCertificate) {
    let home = wish.home.display();
    println!(
        "{home} is a home for iapctl, as {} with every admin verb until {}:",
        given.name, given.not_after
    );
    println!();
    println!("  iapctl --home {home} lock ls");
    println!();
    println!("It is on record with its reason. Remove the folder when you are done: rm -r {home}");
}

/// A backup was made.
pub fn backup_made(made: &Made) {
    println!(
        "{} holds the database and keys of the cluster: {} files, {} bytes.",
        made.output.display(),
        made.files,
        made.bytes
    );
    println!("Whoever reads it can issue certificates for anybody: keep it like the keys themselves.");
    if !made.recorded {
        eprintln!("iap-auth: no server runs here, so the backup is in no audit log");
    }
}

/// A backup was restored.
pub fn restored(config: &Config, report: &RestoreReport) {
    let made = format_time(report.backup_made);
    let restored = &report.restored;
    println!(
        "{} is restored in {} as it was at {made}: epoch {}, {} records.",
        config.cluster,
        config.data_dir.display(),
        restored.epoch,
        restored.records
    );
    println!();
    println!("Withdrawn, so that nothing is good a second time:");
    println!();
    println!(
        "  {} join tokens; {} logins, whose users run `iapctl login` again",
        restored.tokens, restored.logins
    );
    println!();
    println!("Gone, because it happened after the backup was made. Before users come back, look at");
    println!("`iapctl lock ls`, `iapctl policy get` and `iapctl services ls`, and repeat what is missing:");
    println!();
    println!("  locks and changes of policy and services; agents and proxies that joined (they join again)");
    println!();
    println!("Records that agents still hold are sent again by themselves. Now start the server.");
}

/// After the first start: what to trust, and how to get the first admin.
pub fn first_start(config: &Config, pin: &Pin) {
    println!(
        "A new cluster, {}, was made in {}.",
        config.cluster,
        config.data_dir.display()
    );
    println!();
    println!("  its CA pin:  {pin}");
    println!();
    println!("The first proxy joins with a token, in a file that nobody else may read. Here, as");
    println!("this user:");
    println!();
    println!("  (umask 077; iap-auth token proxy --config FILE > proxy.token)");
    println!();
    println!("On the proxy's host, as the user it will run as:");
    println!();
    println!(
        "  iap-proxy join --config FILE --auth HOST:{} --token-file proxy.token",
        config.listen.port()
    );
    println!();
    if config.bootstrap_admins.is_empty() {
        println!("It has no administrator yet. Name yourself in the configuration and restart:");
        println!();
        println!("  [bootstrap]");
        println!("  admins = [\"you@example.com\"]");
        println!();
        println!("Then log in:");
    } else {
        let admins: Vec<&str> = config.bootstrap_admins.iter().map(String::as_str).collect();
        println!(
            "Its first administrators are {}. Each of them logs in with:",
            admins.join(", ")
        );
    }
    println!();
    println!("  iapctl login {} --ca {pin}", config.public_address);
    println!();
}

/// The connector on trial.
pub fn connector(connector: &ConnectorConfig) {
    let kind = format!("{:?}", connector.kind).to_lowercase();
    println!("connector {} ({kind}), {}", connector.name, connector.issuer);
}

/// What was seen of the provider.
pub fn findings(findings: &[Finding]) {
    for finding in findings {
        let mark = if finding.good { "ok " } else { "BAD" };
        println!("  {mark} {}: {}", finding.what, finding.seen);
    }
}

/// Where to sign in, and what to bring back.
pub fn sign_in(redirect_uri: &str, url: &str) {
    println!();
    println!("The provider must know the redirect URI {redirect_uri}");
    println!("Open this address in a browser and sign in:");
    println!();
    println!("  {url}");
    println!();
    println!("You land on a page that does not know this login, or on none. Paste its address here:");
}

/// What the provider says.
pub fn claims(claims: &Map<String, Value>) {
    println!();
    println!("claims:");
    for (name, value) in claims {
        println!("  {name}: {value}");
    }
}

/// Who that is.
pub fn identity(identity: &Identity) {
    println!();
    println!(
        "principal: {} {} {}",
        identity.connector, identity.issuer, identity.subject
    );
    println!("user id:   {}", identity.user_id);
    println!("user name: {}", identity.name);
    let groups: Vec<&str> = identity.groups.iter().map(AsRef::as_ref).collect();
    match groups.as_slice() {
        [] => println!("groups:    none"),
        groups => println!("groups:    {}", groups.join(", ")),
    }
    let factors = match identity.mfa_time {
        Some(_) => "several factors",
        None => "one factor, as far as the provider says",
    };
    println!("signed in: with {factors}");
}

/// Why nobody could log in.
pub fn no_identity(error: &dyn std::fmt::Display) {
    println!();
    println!("NOBODY CAN LOG IN SO: {error}");
}

/// Rules could not be looked through.
pub fn no_rules(why: &dyn std::fmt::Display) {
    println!();
    println!("rules: not looked through, give --policy FILE ({why})");
}

/// Which rules are about the person.
pub fn rules(rules: &[RuleAbout], admins: &[AdminAbout], is_bootstrap_admin: bool) {
    println!();
    if rules.is_empty() {
        println!("rules: none is about this person");
    } else {
        println!("rules about this person:");
    }
    for rule in rules {
        let condition = rule
            .condition
            .as_ref()
            .map(|condition| format!(", when {condition}"))
            .unwrap_or_default();
        println!(
            "  {} {:?} (line {}){condition}",
            rule.effect.as_str(),
            rule.name,
            rule.line
        );
    }
    for admin in admins {
        let verbs: Vec<&str> = admin.verbs.iter().map(|verb| Verb::as_str(*verb)).collect();
        println!("  {}: {}", admin.what, verbs.join(", "));
    }
    if is_bootstrap_admin {
        println!("  bootstrap.admins: every verb");
    }
}
