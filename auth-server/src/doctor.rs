//! `iap-auth doctor`: what may be wrong on this host, at the identity providers, and on the way in through a proxy.

use std::path::Path;
use std::time::Duration;

use iap_identity::Pin;
use iap_runtime::doctor::{
    Finding, Report, Server, Target, Transport, Verdict, check_bindable, check_listening, check_path,
    check_private_tree, check_room, check_running,
};
use iap_runtime::files::DataDir;
use time::OffsetDateTime;

use crate::authority::{AuthorityKeys, DATABASE_FILE, format_time};
use crate::config::{Config, ConnectorConfig};
use crate::local::{self, KnownProxies, LocalError};
use crate::login::Trial;
use crate::store::sqlite::quick_check;

const START: &str = "start it: `systemctl start iap-auth` makes keys and database at the first start";
/// Below this the database may not find room for the next day.
const FREE_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// How long before its end an authority is spoken of.
const KEYS_WARNED_BEFORE: time::Duration = time::Duration::days(180);
/// A database of many gigabytes takes longer; then its operator looks when there is time.
const DATABASE_SECONDS_MAX: Duration = Duration::from_secs(60);

/// Looks at everything; nothing is changed, and a running server is not disturbed.
pub async fn examine(config: &Config, file: &Path) -> Report {
    let server = Server {
        check: "auth",
        unit: "iap-auth",
        admin: config.admin_listen,
    };
    let (runs, running) = check_running(server).await;
    let private = check_private_tree(&config.data_dir, START);
    // What is not private is not read.
    let may_look = private.verdict == Verdict::Ok;
    let mut findings = vec![private];
    let mut pin = None;
    if may_look {
        findings.push(check_room(&config.data_dir, FREE_BYTES_MIN));
        let (keys, known) = check_keys(config, OffsetDateTime::now_utc());
        findings.push(keys);
        findings.push(check_database(&config.data_dir.join(DATABASE_FILE)).await);
        pin = known;
    }
    findings.push(match runs {
        true => check_listening(config.listen, Transport::Tcp, server.unit).await,
        false => check_bindable(config.listen, Transport::Tcp),
    });
    findings.extend(check_connectors(config, file).await);
    if may_look && runs {
        let asked = local::ask_for_proxies(&config.data_dir).await;
        findings.push(check_proxies(asked, config.listen.port(), file));
    }
    if let Some(pin) = pin.filter(|_| runs) {
        let target = Target {
            address: config.public_address.clone(),
            cluster: config.cluster.clone(),
            pin,
            named_in: format!("`public_address` in {}", file.display()),
        };
        findings.extend(check_path(&target).await);
    }
    findings.push(running);
    Report::new(findings)
}

/// Whether the keys belong together, and how long their certificates last.
fn check_keys(config: &Config, now: OffsetDateTime) -> (Finding, Option<Pin>) {
    let failed = |why: String| {
        let fix = "restore data_dir from a backup: `iap-auth restore FILE`";
        (Finding::failed("keys", why, fix), None)
    };
    let dir = match DataDir::open_or_create(&config.data_dir) {
        Ok(dir) => dir,
        Err(error) => return failed(error.to_string()),
    };
    match AuthorityKeys::is_first_start(&dir) {
        Ok(true) => {
            let detail = "there are none yet: the server makes them at its first start";
            return (Finding::warning("keys", detail, START), None);
        }
        Ok(false) => {}
        Err(error) => return failed(error.to_string()),
    }
    let keys = match AuthorityKeys::load(&dir, &config.cluster, now) {
        Ok(keys) => keys,
        Err(error) => return failed(error.to_string()),
    };
    match keys.ends() {
        Ok(ends) => (judge_ends(&ends, now), Some(keys.pin())),
        Err(error) => failed(error.to_string()),
    }
}

fn judge_ends(ends: &[(&str, OffsetDateTime)], now: OffsetDateTime) -> Finding {
    let Some((name, end)) = ends.iter().min_by_key(|(_, end)| *end) else {
        return Finding::ok("keys", "none");
    };
    let detail = format!(
        "the first of {} authorities to end is {name}, at {}",
        ends.len(),
        format_time(*end)
    );
    match *end - now < KEYS_WARNED_BEFORE {
        false => Finding::ok("keys", detail),
        true => Finding::warning(
            "keys",
            detail,
            "no certificate outlives its authority: plan the cluster's move to new keys (\"Rotating keys\" in docs/operate.md)",
        ),
    }
}

async fn check_database(path: &Path) -> Finding {
    let restore =
        "stop the server, keep the file for inspection, and restore a backup: `iap-auth restore FILE`";
    if !path.exists() {
        let detail = format!("{} does not exist", path.display());
        return Finding::warning("database", detail, START);
    }
    match tokio::time::timeout(DATABASE_SECONDS_MAX, quick_check(path)).await {
        Ok(Ok(wrong)) if wrong.is_empty() => Finding::ok(
            "database",
            format!("{} passes SQLite's quick check", path.display()),
        ),
        Ok(Ok(wrong)) => Finding::failed("database", wrong.join("; "), restore),
        Ok(Err(error)) => Finding::failed("database", error.to_string(), restore),
        Err(_) => Finding::warning(
            "database",
            format!("not looked through within {} s", DATABASE_SECONDS_MAX.as_secs()),
            format!(
                "when there is time: `sqlite3 {} 'PRAGMA quick_check'`",
                path.display()
            ),
        ),
    }
}

/// Each provider's discovery document, keys and clock, and the address that it must have been told.
async fn check_connectors(config: &Config, file: &Path) -> Vec<Finding> {
    if config.connectors.is_empty() {
        let fix = format!(
            "add a [[connector]] to {}; docs/idp has a page for each kind",
            file.display()
        );
        return vec![Finding::failed(
            "connector",
            "nobody can log in: there is none",
            fix,
        )];
    }
    let mut findings = Vec::new();
    for connector in &config.connectors {
        findings.push(check_connector(config, connector, file).await);
    }
    let registered = format!(
        "each provider must have registered {}/login/callback, character by character; `iap-auth idp test` tries it out",
        config.web_url()
    );
    findings.push(Finding::ok("redirect_uri", registered));
    findings
}

async fn check_connector(config: &Config, connector: &ConnectorConfig, file: &Path) -> Finding {
    let name = &connector.name;
    let fix = format!(
        "let this host reach it, or correct the [[connector]] {name:?} in {}; `iap-auth idp test --connector {name}` shows more",
        file.display()
    );
    let examined = match Trial::new(config, Some(name), OffsetDateTime::now_utc()) {
        Ok(trial) => trial.examine().await,
        Err(error) => Err(error),
    };
    match examined {
        Ok(findings) => match findings.iter().find(|finding| !finding.good) {
            None => Finding::ok(
                "connector",
                format!("{name}: discovery, keys and clock are as they must be"),
            ),
            Some(bad) => Finding::failed("connector", format!("{name}: {}: {}", bad.what, bad.seen), fix),
        },
        Err(error) => Finding::failed("connector", format!("{name}: {error}"), fix),
    }
}

fn check_proxies(asked: Result<KnownProxies, LocalError>, port: u16, file: &Path) -> Finding {
    let join = "join one: `iap-auth token proxy` here, then `iap-proxy join` on its host";
    match asked {
        Ok(proxies) if !proxies.connected.is_empty() => {
            Finding::ok("proxies", format!("connected: {}", proxies.connected.join(", ")))
        }
        Ok(KnownProxies { joined: 0, .. }) => Finding::failed(
            "proxies",
            "none has ever joined: nobody outside reaches this server",
            join,
        ),
        Ok(proxies) => Finding::failed(
            "proxies",
            format!(
                "none of {} is connected: nobody outside reaches this server",
                proxies.joined
            ),
            format!(
                "start iap-proxy there and let TCP {port} through from it; its address has to be in `proxy_protocol_from` of {}",
                file.display()
            ),
        ),
        Err(error) => Finding::warning(
            "proxies",
            error.to_string(),
            "run this as the server's own user or as root",
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::RuleStore as _;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    #[test]
    fn the_first_authority_to_end_is_named_in_time() {
        let years = |years: i64| NOW + time::Duration::days(365 * years);
        let far = judge_ends(&[("root", years(20)), ("user", years(5))], NOW);
        assert!(
            far.verdict == Verdict::Ok && far.detail.contains("is user"),
            "{far:?}"
        );
        let near = judge_ends(
            &[("root", years(20)), ("user", NOW + time::Duration::days(179))],
            NOW,
        );
        assert_eq!(near.verdict, Verdict::Warning);
    }

    #[tokio::test]
    async fn a_damaged_database_is_found_and_one_that_is_not_there_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.db");
        assert_eq!(check_database(&path).await.verdict, Verdict::Warning);
        assert!(!path.exists());
        crate::store::sqlite::SqliteStore::open(&path)
            .await
            .unwrap()
            .close()
            .await;
        let sound = check_database(&path).await;
        assert_eq!(sound.verdict, Verdict::Ok, "{sound:?}");
        let mut bytes = std::fs::read(&path).unwrap();
        let half = bytes.len() / 2;
        bytes.iter_mut().skip(half).for_each(|byte| *byte = 0xa5);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(check_database(&path).await.verdict, Verdict::Failed);
    }

    #[test]
    fn a_server_without_a_connected_proxy_is_cut_off() {
        let file = Path::new("auth.toml");
        let with = |joined, connected: &[&str]| {
            let connected = connected.iter().map(|address| (*address).to_owned()).collect();
            check_proxies(Ok(KnownProxies { joined, connected }), 7443, file).verdict
        };
        assert_eq!(with(0, &[]), Verdict::Failed);
        assert_eq!(with(2, &[]), Verdict::Failed);
        assert_eq!(with(2, &["iap.example.com:443"]), Verdict::Ok);
    }
}
