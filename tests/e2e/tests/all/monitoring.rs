//! What the running programs count is what docs/metrics.md, the alert rules and the dashboard speak of.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use iap_e2e::{Plane, wait_until};

/// The samples' names and kinds of one server, with what it said.
pub(crate) fn scrape(plane: &Plane, name: &str) -> (BTreeMap<String, String>, String) {
    let config = std::fs::read_to_string(plane.dir().join(format!("config/{name}.toml"))).unwrap();
    let (_, rest) = config.split_once("admin_listen = \"").unwrap();
    let mut stream = TcpStream::connect(rest.split('"').next().unwrap()).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let kinds = text.lines().filter_map(|line| {
        let (family, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        let total = if kind == "counter" { "_total" } else { "" };
        Some((format!("{family}{total}"), kind.to_owned()))
    });
    (kinds.collect(), text)
}

/// The rows of docs/metrics.md for a server: those of all servers and those of its own chapter.
fn documented(name: &str) -> BTreeMap<String, String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    let chapters = page.split("\n## ").filter(|chapter| {
        let title = chapter.lines().next().unwrap();
        title == "All servers" || title == format!("iap-{name}")
    });
    let rows = chapters.flat_map(|chapter| chapter.lines().filter(|line| line.starts_with("| `iap_")));
    rows.map(|row| {
        let mut cells = row
            .split('|')
            .map(|cell| cell.trim().trim_matches('`').to_owned())
            .skip(1);
        (cells.next().unwrap(), cells.next().unwrap())
    })
    .collect()
}

#[test]
fn the_running_servers_count_exactly_what_the_metrics_page_lists() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    drop(plane.echo_session("alice").unwrap());
    plane.log_in("bob").unwrap();
    let denied = plane.iapctl("bob", &["connect", "echo", "--stdio"]).unwrap();
    assert_eq!(denied.code, 3, "{denied:?}");
    wait_until("the session is counted", || {
        Ok(scrape(&plane, "agent")
            .1
            .contains("\niap_agent_sessions_total 1\n"))
    })
    .unwrap();
    for name in ["auth", "proxy", "agent"] {
        let (kinds, text) = scrape(&plane, name);
        assert_eq!(kinds, documented(name), "docs/metrics.md against iap-{name}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        assert!(text.contains("\niap_ready{condition=\"running\"} 1\n"), "{text}");
    }
    let (_, proxy) = scrape(&plane, "proxy");
    assert!(
        proxy.contains("iap_proxy_connections_routed_total{destination=\"agent\"}"),
        "{proxy}"
    );
    assert!(proxy.contains("\niap_proxy_agents 1\n"), "{proxy}");
}
