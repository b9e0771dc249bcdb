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

fn server_doctor(plane: &Plane, name: &str) -> (i32, Value) {
    let mut command = Command::new(program(&format!("iap-{name}")).unwrap());
    command.args(["doctor", "-f", "json", "--config"]);
    let ran: Ran = command
        .arg(plane.dir().join(format!("config/{name}.toml")))
        .output()
        .unwrap()
        .into();
    (ran.code, report(&ran))
}

fn agent_doctor(plane: &Plane) -> (i32, Value) {
    server_doctor(plane, "agent")
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

/// Replaces one value of a server's file.
fn configure(plane: &Plane, name: &str, from: &str, to: &str) {
    let file = plane.dir().join(format!("config/{name}.toml"));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{name}.toml no longer says {from}: {text}");
    std::fs::write(&file, text.replace(from, to)).unwrap();
}

#[test]
fn the_proxys_doctor_finds_the_auth_server_gone_loose_files_and_an_address_that_leads_elsewhere() {
    let plane = Plane::demo().unwrap();
    let (code, healthy) = server_doctor(&plane, "proxy");
    assert_eq!(code, 0, "{healthy:#}");
    for check in [
        "permissions",
        "join",
        "certificate",
        "auth",
        "listen",
        "tls",
        "public_address",
        "proxy",
    ] {
        assert_eq!(finding(&healthy, check)["verdict"], "ok", "{check}: {healthy:#}");
    }

    let key = plane.dir().join("proxy/key.pem");
    std::fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let (code, loose) = server_doctor(&plane, "proxy");
    assert_eq!(code, 1);
    let fix = finding(&loose, "permissions")["fix"].as_str().unwrap().to_owned();
    assert_eq!(fix, format!("chmod 0600 {}", key.display()));
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();

    // The supervisor would start the auth server again.
    plane.signal("dev", Signal::STOP).unwrap();
    plane.signal("auth", Signal::KILL).unwrap();
    let (code, alone) = server_doctor(&plane, "proxy");
    assert_eq!(
        (code, &finding(&alone, "auth")["verdict"]),
        (1, &"failed".into()),
        "{alone:#}"
    );
    assert!(
        finding(&alone, "auth")["fix"]
            .as_str()
            .unwrap()
            .contains("start iap-auth")
    );
    plane.signal("dev", Signal::CONT).unwrap();

    let proxy = plane.descriptor().unwrap()["proxy_addr"]
        .as_str()
        .unwrap()
        .to_owned();
    let port = free_port();
    let _nginx = nginx(plane.scratch(), port, &proxy);
    let public = std::fs::read_to_string(plane.dir().join("config/proxy.toml")).unwrap();
    let line = public
        .lines()
        .find(|line| line.starts_with("public_address"))
        .unwrap();
    configure(
        &plane,
        "proxy",
        line,
        &format!("public_address = \"127.0.0.1:{port}\""),
    );
    let (code, balanced) = server_doctor(&plane, "proxy");
    assert_eq!(code, 1);
    assert!(
        finding(&balanced, "balancer")["fix"]
            .as_str()
            .unwrap()
            .contains("layer 4"),
        "{balanced:#}"
    );
}

#[test]
fn the_auth_servers_doctor_finds_a_provider_that_is_gone_a_damaged_key_and_that_no_proxy_is_connected() {
    let plane = Plane::demo().unwrap();
    let (code, healthy) = server_doctor(&plane, "auth");
    assert_eq!(code, 0, "{healthy:#}");
    for check in [
        "permissions",
        "keys",
        "database",
        "listen",
        "connector",
        "redirect_uri",
        "proxies",
        "tls",
        "auth",
    ] {
        assert_eq!(finding(&healthy, check)["verdict"], "ok", "{check}: {healthy:#}");
    }
    let told = finding(&healthy, "redirect_uri")["detail"].as_str().unwrap();
    assert!(told.contains("/login/callback"), "{told}");

    // The supervisor is the provider of the development plane, and would start the proxy again.
    plane.signal("dev", Signal::STOP).unwrap();
    plane.signal("proxy", Signal::KILL).unwrap();
    wait_until("the auth server notices", || {
        let (_, alone) = server_doctor(&plane, "auth");
        Ok(finding(&alone, "proxies")["verdict"] == "failed")
    })
    .unwrap();
    let (code, alone) = server_doctor(&plane, "auth");
    assert_eq!(code, 1);
    assert_eq!(finding(&alone, "connector")["verdict"], "failed", "{alone:#}");
    let fix = finding(&alone, "connector")["fix"].as_str().unwrap();
    assert!(fix.contains("iap-auth idp test --connector"), "{fix}");
    assert!(
        finding(&alone, "proxies")["fix"]
            .as_str()
            .unwrap()
            .contains("proxy_protocol_from")
    );
    plane.signal("dev", Signal::CONT).unwrap();

    std::fs::write(plane.dir().join("auth/ca/user.pem"), "gone").unwrap();
    let (code, damaged) = server_doctor(&plane, "auth");
    assert_eq!(code, 1);
    let keys = finding(&damaged, "keys");
    assert!(keys["detail"].as_str().unwrap().contains("user.pem"), "{keys}");
    assert!(
        keys["fix"].as_str().unwrap().contains("iap-auth restore"),
        "{keys}"
    );
}
