//! What can be said of a document without a cluster. Conditions are evaluated on a large stack.

use std::net::IpAddr;
use std::path::Path;

use iap_identity::{Class, GroupName, LoginName, ServiceName};
use iap_policy::{Asked, Policy, Protocol, Question, ServiceFacts, UserFacts, Vocabulary};
use serde_json::Value;
use time::OffsetDateTime;

use crate::failure::Failure;
use crate::services::KnownService;

/// A user logs in this long before the question, where a document is only tried.
const AUTH_AGE_SECONDS: i64 = 60;
/// The connector of groups that are given without one.
const CONNECTOR: &str = "local";

/// A question about users and groups as one would have them.
pub(super) struct WhatIf {
    pub(super) user: String,
    pub(super) groups: Vec<String>,
    pub(super) service: KnownService,
    pub(super) login: Option<String>,
    pub(super) database: Option<String>,
    pub(super) client_ip: IpAddr,
}

/// Loads a document and runs its tests; how many passed.
pub(super) async fn check(path: &Path, document: &str) -> Result<usize, Failure> {
    let name = path.display().to_string();
    let document = document.to_owned();
    iap_runtime::big_stack::run_async(move || {
        let policy = load(&name, &document)?;
        let tests = policy.run_tests().map_err(|failures| {
            let why = failures
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n");
            Failure::usage(format!(
                "{name}: {}",
                counted(failures.len(), "test fails", "tests fail")
            ))
            .because(why)
        })?;
        Ok(tests.count)
    })
    .await
}

/// The explanation as JSON and as text.
pub(super) async fn explain(
    path: &Path,
    document: &str,
    what_if: WhatIf,
) -> Result<(Value, String), Failure> {
    let name = path.display().to_string();
    let document = document.to_owned();
    iap_runtime::big_stack::run_async(move || {
        let policy = load(&name, &document)?;
        answer(&policy, what_if)
    })
    .await
}

fn load(name: &str, document: &str) -> Result<Policy, Failure> {
    Policy::load(document).map_err(|errors| {
        let why = errors
            .0
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n");
        Failure::usage(format!("{name} is not a valid policy")).because(why)
    })
}

fn answer(policy: &Policy, what_if: WhatIf) -> Result<(Value, String), Failure> {
    let bad = |what: &str, why: String| Failure::usage(format!("the {what} is not usable")).because(why);
    let now = OffsetDateTime::now_utc();
    let login = what_if.login.as_deref().map(LoginName::parse).transpose();
    let login = login.map_err(|error| bad("login", error.to_string()))?;
    let user = user(&what_if, now).map_err(|why| bad("group", why))?;
    let service = service(&what_if.service).map_err(|why| bad("service", why))?;
    let question = Question {
        user: &user,
        service: &service,
        login: Asked::Visible(login.as_ref()),
        database: Asked::Visible(what_if.database.as_deref()),
        client_ip: what_if.client_ip,
        now,
    };
    let explanation = policy.explain(&question, &Vocabulary::default());
    let json = serde_json::to_value(&explanation).map_err(|error| bad("explanation", error.to_string()))?;
    Ok((json, explanation.render()))
}

fn user(what_if: &WhatIf, now: OffsetDateTime) -> Result<UserFacts, String> {
    let group = |name: &String| {
        let full = if name.contains(':') {
            name.clone()
        } else {
            format!("{CONNECTOR}:{name}")
        };
        GroupName::parse(&full).map_err(|error| error.to_string())
    };
    let groups = what_if.groups.iter().map(group).collect::<Result<Vec<_>, _>>()?;
    let idp = groups.first().map_or(CONNECTOR, GroupName::connector).to_owned();
    Ok(UserFacts {
        id: what_if.user.clone(),
        name: what_if.user.clone(),
        kind: Class::User,
        groups,
        groups_vocabulary: None,
        auth_time: Some(now - time::Duration::seconds(AUTH_AGE_SECONDS)),
        mfa_time: None,
        acr: None,
        idp,
        login_method: "browser".to_owned(),
    })
}

fn service(known: &KnownService) -> Result<ServiceFacts, String> {
    let default_login = known.login.as_deref().map(LoginName::parse).transpose();
    Ok(ServiceFacts {
        name: ServiceName::parse(&known.name).map_err(|error| error.to_string())?,
        protocol: Protocol::parse(&known.protocol).map_err(|error| error.to_string())?,
        inspect: known.inspect,
        labels: known.labels.clone(),
        default_login: default_login.map_err(|error| error.to_string())?,
    })
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::Ipv4Addr;

    const DOCUMENT: &str = r#"
        [[rule]]
        name = "engineers reach the web"
        effect = "allow"
        users = { groups = ["engineering"] }
        services = { names = ["web"] }

        [[test]]
        user = { name = "alice@example.com", groups = ["engineering"] }
        service = "web"
        expect = "allow"
    "#;

    fn what_if(group: &str) -> WhatIf {
        let service = KnownService {
            name: "web".to_owned(),
            protocol: "tcp".to_owned(),
            ..KnownService::default()
        };
        WhatIf {
            user: "alice@example.com".to_owned(),
            groups: vec![group.to_owned()],
            service,
            login: None,
            database: None,
            client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }

    #[tokio::test]
    async fn a_document_is_checked_with_its_tests() {
        assert_eq!(check(Path::new("policy.toml"), DOCUMENT).await, Ok(1));
        let failing = DOCUMENT.replace("expect = \"allow\"", "expect = \"deny\"");
        assert_eq!(
            check(Path::new("policy.toml"), &failing)
                .await
                .unwrap_err()
                .status()
                .code(),
            2
        );
        assert_eq!(
            check(Path::new("policy.toml"), "[[rule]]\n")
                .await
                .unwrap_err()
                .status()
                .code(),
            2
        );
    }

    #[tokio::test]
    async fn an_explanation_names_the_deciding_rule() {
        let (json, text) = explain(Path::new("p"), DOCUMENT, what_if("engineering"))
            .await
            .unwrap();
        assert_eq!(json.get("effect").unwrap(), "allow");
        assert!(text.contains("engineers reach the web"), "{text}");
        let (json, _) = explain(Path::new("p"), DOCUMENT, what_if("support"))
            .await
            .unwrap();
        assert_eq!(json.get("effect").unwrap(), "deny");
    }
}
