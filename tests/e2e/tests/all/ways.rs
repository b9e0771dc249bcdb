//! What control connections and sessions run over: QUIC where UDP gets through, TLS over TCP where it does not.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use iap_e2e::{Background, Plane, wait_until};
use iap_testkit::Relay;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Changes a program's file and starts the program again, as an operator would.
fn reconfigure(plane: &Plane, name: &str, changes: &[(&str, &str)]) {
    let file = plane.dir().join("config").join(format!("{name}.toml"));
    let mut text = std::fs::read_to_string(&file).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{name}.toml has no {from}:\n{text}");
        text = text.replace(from, to);
    }
    std::fs::write(&file, text).unwrap();
    let before = plane.pid(name).unwrap();
    plane.signal(name, Signal::KILL).unwrap();
    wait_until("the program is started again", || Ok(plane.pid(name)? != before)).unwrap();
}

fn configured(plane: &Plane, name: &str, key: &str) -> String {
    let file = plane.dir().join("config").join(format!("{name}.toml"));
    let text = std::fs::read_to_string(file).unwrap();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{key} = ")));
    value.unwrap().trim_matches(['"', '[', ']']).to_owned()
}

fn proxy_address(plane: &Plane) -> SocketAddr {
    let address = plane.descriptor().unwrap()["proxy_addr"].clone();
    address.as_str().unwrap().parse().unwrap()
}

/// The value of one line of a program's `/metrics`; 0 when it is not there.
fn metric(plane: &Plane, name: &str, line: &str) -> u64 {
    let answer = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(configured(plane, name, "admin_listen"))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    // The program may just be starting.
    let text = answer().unwrap_or_default();
    let value = text.lines().find_map(|found| found.strip_prefix(line));
    value
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or_default()
}

/// The proxies of the one agent as `agents ls` has them.
fn proxies(plane: &Plane) -> Value {
    plane
        .json("admin", &["agents", "ls"])
        .map_or(Value::Null, |agents| agents[0]["proxies"].clone())
}

fn wait_for_control(plane: &Plane, address: &str, control: &str) {
    wait_for_ways(plane, address, control, "tcp");
}

fn wait_for_ways(plane: &Plane, address: &str, control: &str, data: &str) {
    let wanted = json!([{"address": address, "control": control, "data": data}]);
    let mut last = Value::Null;
    wait_until("`agents ls` shows the way", || {
        last = proxies(plane);
        Ok(last == wanted)
    })
    .unwrap_or_else(|error| panic!("{error}: {last}, not {wanted}"));
}

fn echo(plane: &Plane) -> anyhow::Result<()> {
    plane.echo_session("alice").map(drop)
}

fn wait_for_echo(plane: &Plane) {
    wait_until("a session opens", || Ok(echo(plane).is_ok())).unwrap();
}

fn agent_log(plane: &Plane) -> String {
    std::fs::read_to_string(plane.dir().join("logs").join("agent.log")).unwrap()
}

/// Agent and proxy speak through a network that the test controls.
fn behind_a_relay(plane: &Plane, agent: &str) -> Relay {
    let proxy = proxy_address(plane);
    let relay = Relay::start(proxy).unwrap();
    let (old, new) = (
        format!("public_address = \"{proxy}\""),
        format!("public_address = \"{}\"", relay.address()),
    );
    reconfigure(plane, "proxy", &[(&old, &new)]);
    let (old, new) = (
        format!("proxies = [\"{proxy}\"]"),
        format!("proxies = [\"{}\"]\n{agent}", relay.address()),
    );
    reconfigure(plane, "agent", &[(&old, &new)]);
    relay
}

#[test]
fn control_runs_over_quic_by_default_and_everyone_can_see_it() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "admin"] {
        plane.log_in(user).unwrap();
    }
    echo(&plane).unwrap();
    let address = proxy_address(&plane).to_string();
    wait_for_control(&plane, &address, "quic");
    let table = plane.iapctl("admin", &["agents", "ls"]).unwrap();
    let table = table.succeeded().unwrap().to_owned();
    assert!(table.contains(&format!("{address} (quic + tcp)")), "{table}");
    assert!(agent_log(&plane).contains("way=quic"));
    wait_until("both ends count it", || {
        let at_agent = metric(&plane, "agent", "iap_agent_control_ways{way=\"quic\"}");
        let at_proxy = metric(&plane, "proxy", "iap_proxy_control_connections{way=\"quic\"}");
        Ok((at_agent, at_proxy) == (1, 1))
    })
    .unwrap();
    // A proxy that does not offer it.
    reconfigure(
        &plane,
        "proxy",
        &[("admin_listen", "quic = { enabled = false }\nadmin_listen")],
    );
    wait_for_control(&plane, &address, "tls");
    wait_for_echo(&plane);
    assert_eq!(
        metric(&plane, "proxy", "iap_proxy_control_connections{way=\"quic\"}"),
        0
    );
}

#[test]
fn where_udp_is_blocked_an_agent_serves_over_tls_and_moves_to_quic_when_it_gets_through() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "admin"] {
        plane.log_in(user).unwrap();
    }
    let relay = behind_a_relay(&plane, "limits = { quic_retry_seconds = 2 }");
    let address = relay.address().to_string();
    wait_for_control(&plane, &address, "quic");
    relay.lose_udp(true);
    let agent = plane.pid("agent").unwrap();
    plane.signal("agent", Signal::KILL).unwrap();
    wait_until("the agent is started again", || Ok(plane.pid("agent")? != agent)).unwrap();
    wait_for_echo(&plane);
    wait_for_control(&plane, &address, "tls");
    let mut session = plane.echo_session("alice").unwrap();
    relay.lose_udp(false);
    let mut sessions = 0;
    wait_until("the agent moves to QUIC", || {
        // Not one is lost on the way.
        echo(&plane)?;
        sessions += 1;
        Ok(proxies(&plane)[0]["control"] == "quic")
    })
    .unwrap();
    assert!(sessions > 0);
    session.round_trip(b"still here\n").unwrap();
    echo(&plane).unwrap();
}

#[test]
fn an_agent_whose_address_changes_keeps_its_control_connection() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "admin"] {
        plane.log_in(user).unwrap();
    }
    let relay = behind_a_relay(&plane, "control = \"quic\"");
    wait_for_control(&plane, &relay.address().to_string(), "quic");
    echo(&plane).unwrap();
    let established = || {
        agent_log(&plane)
            .matches("control connection established")
            .count()
    };
    let before = established();
    let mut session = plane.echo_session("alice").unwrap();
    for address in ["127.0.0.2", "127.0.0.3"] {
        let answered = relay.datagrams_back();
        relay.move_to(address.parse().unwrap()).unwrap();
        wait_until("the proxy answers the new address", || {
            Ok(relay.datagrams_back() > answered)
        })
        .unwrap();
        echo(&plane).unwrap();
        session.round_trip(b"still here\n").unwrap();
    }
    assert_eq!(established(), before, "{}", agent_log(&plane));
}

#[test]
fn a_locked_agent_is_cut_on_quic_too() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "admin"] {
        plane.log_in(user).unwrap();
    }
    let address = proxy_address(&plane).to_string();
    wait_for_control(&plane, &address, "quic");
    let _session = plane.echo_session("alice").unwrap();
    let agents = plane.json("admin", &["agents", "ls"]).unwrap();
    let agent = agents[0]["agent_id"].as_str().unwrap();
    let lock = ["lock", "add", "--agent", agent, "--reason", "stolen"];
    plane.iapctl("admin", &lock).unwrap().succeeded().unwrap();
    let connected = || metric(&plane, "proxy", "iap_proxy_agents ");
    wait_until("the proxy cuts its line", || Ok(connected() == 0)).unwrap();
    wait_until("and refuses another", || {
        Ok(metric(
            &plane,
            "proxy",
            "iap_proxy_connections_refused_total{reason=\"control\"}",
        ) > 0)
    })
    .unwrap();
    assert_eq!(connected(), 0);
    assert!(echo(&plane).is_err());
}

/// A session whose client ends its direction first: everything comes back, and the records are whole.
fn half_close(plane: &Plane, way: &str) {
    let sent: String = (0..200_000).map(|number| format!("{number}\n")).collect();
    let command = plane.command("alice", &["connect", "echo", "--stdio"]);
    let mut session = Background(command.unwrap().stdin(Stdio::piped()).spawn().unwrap());
    let mut input = session.0.stdin.take().unwrap();
    let writing = {
        let sent = sent.clone();
        std::thread::spawn(move || input.write_all(sent.as_bytes()))
    };
    let mut back = String::new();
    session
        .0
        .stdout
        .as_mut()
        .unwrap()
        .read_to_string(&mut back)
        .unwrap();
    writing.join().unwrap().unwrap();
    assert!(
        back == sent,
        "{way}: {} of {} bytes came back",
        back.len(),
        sent.len()
    );
    session.finish().unwrap().succeeded().unwrap();
    let bytes = u64::try_from(sent.len()).unwrap();
    let whole = |session: &Value| session["bytes_in"] == bytes && session["bytes_out"] == bytes;
    plane
        .sessions_when(|all| all.iter().any(|one| !one["end"].is_null() && whole(one)))
        .unwrap();
    let counted = metric(
        plane,
        "agent",
        &format!("iap_agent_fetched_total{{way=\"{way}\"}}"),
    );
    assert!(counted > 0, "{way}");
}

#[test]
fn sessions_run_over_each_way_that_an_agent_may_be_told_to_use() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "admin", "auditor"] {
        plane.log_in(user).unwrap();
    }
    let address = proxy_address(&plane).to_string();
    let mut before = "admin_listen".to_owned();
    for way in ["tcp", "tls", "quic"] {
        let next = format!("data = \"{way}\"\nadmin_listen");
        reconfigure(&plane, "agent", &[(&before, &next)]);
        before = next;
        wait_for_ways(&plane, &address, "quic", way);
        wait_for_echo(&plane);
        half_close(&plane, way);
        let fetched = metric(
            &plane,
            "proxy",
            &format!("iap_proxy_sessions_fetched_total{{way=\"{way}\"}}"),
        );
        assert!(fetched > 0, "{way}");
    }
}

#[test]
fn where_plain_tcp_is_swallowed_sessions_run_inside_tls_and_without_new_tcp_over_quic() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "admin", "auditor"] {
        plane.log_in(user).unwrap();
    }
    let relay = behind_a_relay(
        &plane,
        "limits = { data_try_milliseconds_max = 500, pool_connections_per_proxy = 0 }",
    );
    let address = relay.address().to_string();
    wait_for_ways(&plane, &address, "quic", "tcp");
    wait_for_echo(&plane);
    relay.swallow_plain(true);
    // The very first client is served already.
    half_close(&plane, "tls");
    wait_for_ways(&plane, &address, "quic", "tls");
    let failures = metric(&plane, "agent", "iap_agent_fetch_failures_total{way=\"tcp\"}");
    half_close(&plane, "tls");
    assert_eq!(
        metric(&plane, "agent", "iap_agent_fetch_failures_total{way=\"tcp\"}"),
        failures,
        "it remembers what works"
    );
    relay.refuse_tcp(true);
    half_close(&plane, "quic");
    relay.refuse_tcp(false);
    wait_for_ways(&plane, &address, "quic", "quic");
}

#[test]
fn clients_come_on_connections_dialled_in_advance_unless_there_are_none() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "admin", "auditor"] {
        plane.log_in(user).unwrap();
    }
    let address = proxy_address(&plane).to_string();
    wait_for_control(&plane, &address, "quic");
    let waiting = || metric(&plane, "proxy", "iap_proxy_pool_connections ");
    wait_until("the pool is full", || Ok(waiting() == 4)).unwrap();
    let used = || metric(&plane, "agent", "iap_agent_pool_used_total ");
    let before = used();
    half_close(&plane, "tcp");
    assert!(used() > before);
    assert!(metric(&plane, "proxy", "iap_proxy_pool_total{outcome=\"answered\"}") > 0);
    wait_until("the pool is full again", || Ok(waiting() == 4)).unwrap();
    // A proxy that dies is noticed by its connections: the agent is back long before it would ask.
    let proxy = plane.pid("proxy").unwrap();
    plane.signal("proxy", Signal::KILL).unwrap();
    wait_until("the proxy is started again", || Ok(plane.pid("proxy")? != proxy)).unwrap();
    wait_for_echo(&plane);
    let none = "limits = { pool_connections_per_proxy = 0 }\nadmin_listen";
    reconfigure(&plane, "agent", &[("admin_listen", none)]);
    wait_for_control(&plane, &address, "quic");
    wait_for_echo(&plane);
    half_close(&plane, "tcp");
    assert_eq!((waiting(), used()), (0, 0));
}

#[test]
fn over_a_slow_link_that_loses_datagrams_control_stays_on_quic_and_sessions_run() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "admin", "auditor"] {
        plane.log_in(user).unwrap();
    }
    let relay = behind_a_relay(&plane, "");
    relay.slow_down(Duration::from_millis(100), 20);
    let agent = plane.pid("agent").unwrap();
    plane.signal("agent", Signal::KILL).unwrap();
    wait_until("the agent is started again", || Ok(plane.pid("agent")? != agent)).unwrap();
    let address = relay.address().to_string();
    wait_for_control(&plane, &address, "quic");
    wait_for_echo(&plane);
    half_close(&plane, "tcp");
    reconfigure(
        &plane,
        "agent",
        &[("admin_listen", "data = \"quic\"\nadmin_listen")],
    );
    wait_for_ways(&plane, &address, "quic", "quic");
    wait_for_echo(&plane);
    let mut session = plane.echo_session("alice").unwrap();
    for _ in 0..10 {
        session.round_trip(&[b'x'; 1000]).unwrap();
    }
}
