//! Sessions of the built program with an agent that answers as each test wants.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![cfg(target_os = "linux")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use iap_tunnel::Status;
use support::{Plane, granted, granting};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

/// Sends a line to `IAP_HOST:IAP_PORT` and prints what comes back.
const TALK: &str = "exec 3<>/dev/tcp/$IAP_HOST/$IAP_PORT; read -r hello <&3; echo ping >&3; read -r back <&3; echo \"$hello $back\"";

#[tokio::test(flavor = "multi_thread")]
async fn a_command_reaches_the_service_and_its_exit_code_is_passed_on() {
    let plane = Plane::start(granting("tcp")).await;
    let run = plane
        .run(&["connect", "echo", "--", "bash", "-c", &format!("{TALK}; exit 7")])
        .await;
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (7, "welcome ping\n"),
        "{}",
        run.stderr
    );
    assert_eq!(
        plane.hello_count(),
        1,
        "the first connection uses the session opened in advance"
    );
    assert!(run.stderr.is_empty(), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_one_connect_share_its_id() {
    let plane = Plane::start(granting("tcp")).await;
    let run = plane
        .run(&[
            "connect",
            "echo",
            "--",
            "bash",
            "-c",
            &format!("({TALK}); ({TALK})"),
        ])
        .await;
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (0, "welcome ping\nwelcome ping\n"),
        "{}",
        run.stderr
    );
    let hellos = plane.hellos.lock().unwrap();
    assert_eq!(hellos.len(), 2);
    assert_eq!(hellos[0].connect_id, hellos[1].connect_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_dies_of_a_signal_is_128_and_the_signal() {
    let plane = Plane::start(granting("tcp")).await;
    let run = plane
        .run(&["connect", "echo", "--", "bash", "-c", "kill -TERM $$"])
        .await;
    assert_eq!(run.code, 143, "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_exits_3_with_one_sentence_and_the_contact_and_the_command_never_runs() {
    let denied = Status::Denied {
        code: "denied".to_owned(),
        text: "alice@example.com may not reach echo.".to_owned(),
        contact: Some("#platform".to_owned()),
        session_id: None,
        step_up: None,
        trace_id: None,
    };
    let plane = Plane::start(Arc::new(move |_, _| denied.clone())).await;
    let mark = plane.home.path().join("ran");
    let run = plane
        .run(&["connect", "echo", "--", "touch", mark.to_str().unwrap()])
        .await;
    assert_eq!(run.code, 3);
    assert_eq!(
        run.stderr,
        "denied: alice@example.com may not reach echo.\n  \
         next: ask #platform, who can see why with: iapctl policy explain alice@example.com echo\n"
    );
    assert!(!mark.exists(), "the command ran although the session was denied");
    for arguments in [
        &["connect", "echo"][..],
        &["connect", "echo", "--stdio"],
        &["connect", "echo", "--listen", "0"],
    ] {
        assert_eq!(plane.run(arguments).await.code, 3, "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_choice_of_logins_is_bad_input() {
    let choice = Status::Denied {
        code: "login_choice".to_owned(),
        text: "which login: a or b?".to_owned(),
        contact: None,
        session_id: None,
        step_up: None,
        trace_id: None,
    };
    let plane = Plane::start(Arc::new(move |_, _| choice.clone())).await;
    assert_eq!(plane.run(&["connect", "echo", "--", "true"]).await.code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unavailable_backend_is_1_and_around_a_command_125() {
    let down = Status::Unavailable {
        text: "the backend refused the connection".to_owned(),
        retry: true,
        trace_id: None,
    };
    let plane = Plane::start(Arc::new(move |_, _| down.clone())).await;
    let run = plane.run(&["connect", "echo"]).await;
    assert_eq!(run.code, 1);
    assert!(
        run.stderr.contains("the backend refused the connection"),
        "{}",
        run.stderr
    );
    assert_eq!(plane.run(&["connect", "echo", "--", "true"]).await.code, 125);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_cannot_be_had_is_tried_once() {
    let plane = Plane::start(Arc::new(|_, _| Status::Renew)).await;
    let run = plane.run(&["connect", "echo", "--", "true"]).await;
    assert_eq!(run.code, 125, "{}", run.stderr);
    assert_eq!(plane.hello_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn stdio_carries_one_session_and_ends_with_it() {
    let plane = Plane::start(granting("tcp")).await;
    let run = plane
        .run_with(&["connect", "echo", "--stdio"], &[], b"to and fro\n")
        .await;
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (0, "welcome\nto and fro\n"),
        "{}",
        run.stderr
    );
}

/// What the program says at once need not wait for the answer, and is said again where the answer is another question.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_at_once_goes_out_behind_the_hello() {
    let plane = Plane::start(granting("tcp")).await;
    let input = plane.home.path().join("input");
    std::fs::write(&input, "SSH-2.0-first\n").unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_iapctl"))
        .args(["connect", "echo", "--stdio"])
        .env("IAPCTL_HOME", plane.home.path())
        .stdin(std::fs::File::open(&input).unwrap())
        .output()
        .await
        .unwrap();
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(0), &b"welcome\nSSH-2.0-first\n"[..]),
        "{output:?}"
    );
    assert_eq!(*plane.early.lock().unwrap(), [b"SSH-2.0-first\n"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_prints_its_address_and_ends_when_asked() {
    // The port follows from the name, and whoever else is on the machine may run this test too.
    let service = format!("echo-{}", std::process::id());
    let plane = Plane::start_for(&service, granting("tcp")).await;
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_iapctl"))
        .args(["connect", &service])
        .env("IAPCTL_HOME", plane.home.path())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines.next_line().await.unwrap().unwrap();
    let port: u16 = address.strip_prefix("127.0.0.1:").unwrap().parse().unwrap();
    assert!((20_000..=29_999).contains(&port), "{address}");
    let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    stream.write_all(b"hello\n").await.unwrap();
    let mut back = vec![0; 14];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, b"welcome\nhello\n");
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = tokio::time::timeout(Duration::from_secs(10), child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    let record =
        std::fs::read_to_string(plane.home.path().join("clusters/iap.localhost/cluster.json")).unwrap();
    assert!(
        record.contains(&format!("\"{service}\": {port}")),
        "the port is not remembered: {record}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_command_finds_the_local_end_in_its_environment() {
    let plane = Plane::start_for("db-prod", granting("postgres")).await;
    let script = "env | grep -E '^(PG|IAP_(HOST|PORT))' | sort";
    let environment = [
        ("PGSSLCERT", "/x"),
        ("PGSSLROOTCERT", "/y"),
        ("PGHOSTADDR", "192.0.2.1"),
    ];
    let run = plane
        .run_with(
            &["connect", "db-prod", "--", "bash", "-c", script],
            &environment,
            b"",
        )
        .await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    let lines: Vec<&str> = run
        .stdout
        .lines()
        .filter(|line| !line.contains("PORT="))
        .collect();
    assert_eq!(
        lines,
        [
            "IAP_HOST=127.0.0.1",
            "PGDATABASE=app",
            "PGGSSENCMODE=disable",
            "PGHOST=127.0.0.1",
            "PGSSLMODE=disable",
            "PGUSER=app"
        ]
    );
    let asked = plane.run(&[
        "connect",
        "db-prod",
        "--login",
        "ro",
        "--database",
        "shop",
        "--",
        "sh",
        "-c",
        "echo $PGUSER $PGDATABASE",
    ]);
    assert_eq!(asked.await.stdout, "ro shop\n");
    assert_eq!(plane.hellos.lock().unwrap()[1].database.as_deref(), Some("shop"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_service_without_its_client_names_it() {
    let plane = Plane::start_for("db-prod", granting("postgres")).await;
    let run = plane
        .run_with(&["connect", "db-prod"], &[("PATH", "/nowhere")], b"")
        .await;
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("psql is not installed"), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_leaf_for_the_name_is_not_believed() {
    let plane = Plane::start_for("other", granting("tcp")).await;
    let run = plane.run(&["connect", "echo", "--", "true"]).await;
    assert_eq!(run.code, 125);
    assert!(run.stderr.contains("could not prove to be it"), "{}", run.stderr);
    assert_eq!(plane.hello_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_login_exits_4_and_never_reaches_the_agent() {
    let plane = Plane::start(granting("tcp")).await;
    plane.log_in_since(time::Duration::minutes(61));
    let run = plane.run(&["connect", "echo", "--", "true"]).await;
    assert_eq!(run.code, 4, "{}", run.stderr);
    let next = format!("next: iapctl login iap.localhost:{}", plane.address.port());
    assert!(
        run.stderr.contains("as alice@example.com expired") && run.stderr.contains(&next),
        "{}",
        run.stderr
    );
    assert_eq!(plane.hello_count(), 0);
    assert_eq!(plane.run(&["status"]).await.code, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_of_another_cluster_is_not_usable() {
    let plane = Plane::start(granting("tcp")).await;
    let other = iap_testkit::TestCluster::new(support::CLUSTER).unwrap();
    plane.log_in(&other.user("alice@example.com", &[]).unwrap());
    let run = plane.run(&["connect", "echo", "--", "true"]).await;
    assert_eq!(run.code, 4, "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_who_and_until_when() {
    let plane = Plane::start(granting("tcp")).await;
    let run = plane.run(&["status", "-f", "json"]).await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    let status: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(status["user"], "alice@example.com");
    assert_eq!(status["cluster"], "iap.localhost");
    assert_eq!(status["groups"], serde_json::json!(["dev:engineering"]));
    let text = plane.run(&["status"]).await.stdout;
    assert!(
        text.starts_with("User     alice@example.com\nCluster  iap.localhost\n"),
        "{text}"
    );
    assert_eq!(plane.run(&["logout"]).await.code, 0);
    assert_eq!(plane.run(&["status"]).await.code, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn env_prints_what_a_tls_client_of_its_own_needs() {
    let plane = Plane::start(granting("tcp")).await;
    let folder = plane.home.path().join("clusters/iap.localhost");
    let folder = folder.display();
    let port = plane.address.port();
    let run = plane.run(&["env", "echo"]).await;
    assert_eq!(
        run.stdout,
        format!(
            "export IAP_HOST='127.0.0.1'\nexport IAP_PORT='{port}'\nexport IAP_SERVER_NAME='echo.iap.localhost'\n\
             export IAP_CA='{folder}/ca.pem'\nexport IAP_CERT='{folder}/cert.pem'\nexport IAP_KEY='{folder}/key.pem'\n"
        ),
        "{}",
        run.stderr
    );
    let run = plane.run(&["env", "db-prod", "--format", "json"]).await;
    let variables: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(variables["PGUSER"], "app");
    assert_eq!(variables["PGSSLMODE"], "verify-full");
    assert_eq!(variables["PGHOSTADDR"], "127.0.0.1");
    for file in ["IAP_CA", "IAP_CERT", "IAP_KEY"] {
        assert!(
            std::path::Path::new(variables[file].as_str().unwrap()).is_file(),
            "{file}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_denial_reaches_a_postgres_client_in_its_own_words() {
    let denied = Status::Denied {
        code: "denied_by_rule".to_owned(),
        text: "not any more.".to_owned(),
        contact: None,
        session_id: None,
        step_up: None,
        trace_id: None,
    };
    let plane = Plane::start_for(
        "db-prod",
        Arc::new(move |number, _| {
            if number == 1 {
                granted("postgres")
            } else {
                denied.clone()
            }
        }),
    )
    .await;
    // The first connection takes the session opened in advance; the second is denied.
    let script = "exec 3<>/dev/tcp/$PGHOST/$PGPORT; read -r hello <&3; exec 4<>/dev/tcp/$PGHOST/$PGPORT; \
        printf '\\0\\0\\0\\010\\0\\003\\0\\0' >&4; tr -d '\\0' <&4";
    let run = plane
        .run(&["connect", "db-prod", "--", "bash", "-c", script])
        .await;
    assert!(
        run.stdout.contains("FATAL") && run.stdout.contains("C28000Mnot any more."),
        "{:?}",
        run.stdout
    );
    assert!(run.stderr.contains("not any more."), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_users_connection_to_the_local_end_is_refused() {
    if !rustix::process::geteuid().is_root() {
        // Only root can be somebody else.
        return;
    }
    let plane = Plane::start(granting("tcp")).await;
    let script = "setpriv --reuid=65534 --clear-groups bash -c 'exec 3<>/dev/tcp/$IAP_HOST/$IAP_PORT; cat <&3' | wc -c";
    let run = plane.run(&["connect", "echo", "--", "bash", "-c", script]).await;
    assert_eq!(run.stdout, "0\n", "{}", run.stderr);
    assert!(run.stderr.contains("it is another user's"), "{}", run.stderr);
}
