//! What is watched exists: metrics, the page about them, the alert rules, the dashboard.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeSet;

fn read(path: &str) -> String {
    std::fs::read_to_string(iap_tidy::root().join(path)).unwrap()
}

/// The names in the first column of docs/metrics.md.
fn documented() -> BTreeSet<String> {
    let page = read("docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `iap_"));
    rows.map(|row| format!("iap_{}", row.split('`').next().unwrap()))
        .collect()
}

/// Everything that looks like the name of a metric.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| word.starts_with("iap_"))
        .map(str::to_owned)
        .collect()
}

/// Name and help of each metric that a file registers; help only where it stands in the call itself.
fn registered(path: &str) -> Vec<(String, Option<String>)> {
    let code = read(path);
    let prefix = code
        .split_once("sub_registry_with_prefix(\"")
        .map(|(_, rest)| format!("{}_", rest.split('"').next().unwrap()));
    let calls = code.split(".register").skip(1).filter_map(|rest| {
        let call = rest.split(";\n").next().unwrap();
        let mut strings = call.split('"').skip(1).step_by(2).map(str::to_owned);
        Some((strings.next()?, strings.next()))
    });
    calls
        .map(|(name, help)| (format!("{}{name}", prefix.clone().unwrap_or_default()), help))
        .collect()
}

#[test]
fn every_metric_of_the_code_stands_on_the_metrics_page_with_its_meaning() {
    let page = read("docs/metrics.md");
    let mut found = 0;
    for path in [
        "auth-server/src/metrics.rs",
        "proxy/src/metrics.rs",
        "node-agent/src/metrics.rs",
    ] {
        for (name, help) in registered(path) {
            let is_its = |row: &&str| {
                let Some(rest) = row.strip_prefix(&format!("| `{name}")) else {
                    return false;
                };
                ["`", "_total`", "_bytes`", "_bytes_total`"]
                    .iter()
                    .any(|end| rest.starts_with(end))
            };
            let row = page.lines().find(is_its);
            let row = row.unwrap_or_else(|| panic!("docs/metrics.md lacks {name} of {path}"));
            if let Some(help) = help {
                assert!(
                    row.ends_with(&format!(" | {help} |")),
                    "docs/metrics.md should say of {name}: {help}"
                );
            }
            found += 1;
        }
    }
    assert!(found > 20, "only {found} registrations were found");
}

#[test]
fn every_reason_for_which_a_proxy_turns_connections_away_is_explained() {
    let page = read("docs/metrics.md");
    let code = read("proxy/src/metrics.rs");
    let (_, rest) = code.split_once("impl Refusal {").unwrap();
    let body = rest.split("\n}\n").next().unwrap();
    let reasons: Vec<&str> = body
        .lines()
        .filter_map(|line| line.split_once("=> \"")?.1.strip_suffix("\","))
        .collect();
    assert!(reasons.len() > 15, "{reasons:?}");
    for reason in reasons {
        assert!(
            page.contains(&format!("| `{reason}` | ")),
            "docs/metrics.md lacks {reason}"
        );
    }
}

#[test]
fn alerts_and_dashboard_use_metrics_that_exist() {
    let documented = documented();
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("deploy/monitoring/dashboard.json")).unwrap();
    for (file, at_least) in [
        ("deploy/monitoring/alerts.yaml", 9),
        ("deploy/monitoring/dashboard.json", 15),
    ] {
        let used = metrics_in(&read(file));
        assert!(used.len() >= at_least, "{used:?}");
        for name in used {
            assert!(
                documented.contains(&name),
                "{file} uses {name}, which no server has"
            );
        }
    }
    let panels = dashboard["panels"].as_array().unwrap();
    let empty =
        |panel: &&serde_json::Value| panel["type"] != "row" && panel["targets"][0]["expr"].as_str().is_none();
    assert!(!panels.iter().any(|panel| empty(&panel)), "a panel shows nothing");
}

#[test]
fn every_alert_has_a_history_that_raises_it_and_an_answer_in_the_operators_guide() {
    let guide = read("docs/operate.md");
    let rules = read("deploy/monitoring/alerts.yaml");
    let histories = read("deploy/monitoring/alerts.test.yaml");
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        assert!(
            guide.contains(&format!("| `{alert}` | ")),
            "docs/operate.md does not say what to do about {alert}"
        );
        assert!(
            histories.contains(&format!("alertname: {alert}\n        exp_alerts:\n")),
            "deploy/monitoring/alerts.test.yaml has no history that raises {alert}"
        );
    }
}
