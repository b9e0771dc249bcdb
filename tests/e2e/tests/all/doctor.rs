//! `doctor` finds what is broken for real, and says how to mend it.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use iap_e2e::{Background, Plane, Ran, program, wait_until};
use rustix::process::Signal;
use serde_json::Value;

fn finding<'a>(report: &'a Value, check: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["check"] == check);
    found.unwrap_or_else(|| panic!("no {check} in {report:#}"))
}

fn report(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn doctor(plane: &Plane) -> (i32, Value) {
    let ran = plane.iapctl("alice", &["doctor", "-f", "json"]).unwrap();
    (ran.code, report(&ran))
}

fn agent_doctor(plane: &Plane) -> (i32, Value) {
    let mut command = Command::new(program("iap-agent").unwrap());
    command.args(["doctor", "--format", "json", "--config"]);
    let ran: Ran = command
        .arg(plane.dir().join("config/agent.toml"))
        .output()
        .unwrap()
        .into();
    (ran.code, report(&ran))
}

/// Points alice's home at another port of this machine.
fn dial_instead(plane: &Plane, port: u16) {
    let file = plane.home("alice").join("clusters/iap.localhost/cluster.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    record["addresses"] = serde_json::json!([format!("127.0.0.1:{port}")]);
    std::fs::write(&file, record.to_string()).unwrap();
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// nginx as somebody sets it up who takes a proxy for a web server: it ends TLS and speaks HTTP onwards.
fn nginx(folder: &Path, port: u16, onwards: &str) -> Background {
    let (certificate, key) = (folder.join("lb.pem"), folder.join("lb.key"));
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=balancer",
    ]);
    openssl.args([
        "-addext",
        "subjectAltName=DNS:iap.localhost,DNS:*.iap.localhost",
        "-keyout",
    ]);
    openssl.arg(&key).arg("-out").arg(&certificate);
    assert!(openssl.stderr(Stdio::null()).status().unwrap().success());
    let (certificate, key) = (certificate.display(), key.display());
    let folder_text = folder.display();
    let text = format!(
        "daemon off; master_process off; pid {folder_text}/nginx.pid; error_log {folder_text}/nginx.log; events {{}}\n\
         http {{ access_log off; client_body_temp_path {folder_text}/t1; proxy_temp_path {folder_text}/t2;\n\
         fastcgi_temp_path {folder_text}/t3; uwsgi_temp_path {folder_text}/t4; scgi_temp_path {folder_text}/t5;\n\
         server {{ listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3; ssl_certificate {certificate}; ssl_certificate_key {key};\n\
         location / {{ proxy_pass https://{onwards}; }} }} }}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let child = Command::new("nginx")
        .arg("-c")
        .arg(&file)
        .arg("-p")
        .arg(folder)
        .spawn()
        .unwrap();
    wait_until("nginx listens", || {
        Ok(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())
    })
    .unwrap();
    Background(child)
}

#[test]
fn on_a_working_plane_nothing_fails_and_each_broken_part_is_found() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let (code, healthy) = doctor(&plane);
    assert_eq!(code, 0, "{healthy:#}");
    for check in ["permissions", "login", "dns", "tls", "clock", "auth"] {
        assert_eq!(finding(&healthy, check)["verdict"], "ok", "{healthy:#}");
    }

    let key = plane.home("alice").join("clusters/iap.localhost/cluster.json");
    std::fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let (code, loose) = doctor(&plane);
    assert_eq!(code, 1);
    assert_eq!(
        finding(&loose, "permissions")["fix"],
        format!("chmod 0600 {}", key.display())
    );
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();

    dial_instead(&plane, free_port());
    let (code, closed) = doctor(&plane);
    assert_eq!((code, &finding(&closed, "tcp")["verdict"]), (1, &"failed".into()));

    let onwards = plane.descriptor().unwrap()["proxy_addr"]
        .as_str()
        .unwrap()
        .to_owned();
    let port = free_port();
    let _nginx = nginx(plane.scratch(), port, &onwards);
    dial_instead(&plane, port);
    let (code, balanced) = doctor(&plane);
    assert_eq!(code, 1);
    let balancer = finding(&balanced, "balancer");
    assert!(
        balancer["detail"].as_str().unwrap().contains("*.iap.localhost"),
        "{balanced:#}"
    );
    assert!(
        balancer["fix"].as_str().unwrap().contains("layer 4"),
        "{balanced:#}"
    );
}

#[test]
fn the_agents_doctor_says_which_backend_is_gone_and_that_the_proxy_cannot_be_reached() {
    let plane = Plane::demo().unwrap();
    let (code, healthy) = agent_doctor(&plane);
    assert_eq!(code, 0, "{healthy:#}");
    for check in ["permissions", "join", "certificate", "tls", "backend", "agent"] {
        assert_eq!(finding(&healthy, check)["verdict"], "ok", "{healthy:#}");
    }
    // The supervisor serves the demo's echo and would start the proxy again.
    plane.signal("dev", Signal::STOP).unwrap();
    plane.signal("proxy", Signal::KILL).unwrap();
    wait_until("the agent is not ready", || {
        let (_, broken) = agent_doctor(&plane);
        Ok(
            finding(&broken, "agent")["verdict"] == "failed"
                && finding(&broken, "tcp")["verdict"] == "failed",
        )
    })
    .unwrap();
    let (code, broken) = agent_doctor(&plane);
    assert_eq!(code, 1);
    assert!(
        finding(&broken, "agent")["detail"]
            .as_str()
            .unwrap()
            .contains("proxies"),
        "{broken:#}"
    );
    plane.signal("dev", Signal::CONT).unwrap();
}
