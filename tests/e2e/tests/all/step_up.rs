//! A rule that asks for more proof than the login brought reopens login, with a certified OpenID provider.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use iap_e2e::{Background, Plane, Ran};
use iap_testkit::browser::Browser;

use super::oidc::{Provider, browser, login, on_the_web, sign_in_and_approve};

const CLASS: &str = "urn:example:two-factors";

/// A program in the browser's place: it writes down what it is given.
fn browser_that_writes(folder: &Path) -> (String, std::path::PathBuf) {
    let (program, address) = (folder.join("browser"), folder.join("address"));
    let mut options = std::fs::OpenOptions::new();
    let options = options.create(true).truncate(true).write(true).mode(0o755);
    let script = format!(
        "#!/bin/sh\nprintf %s \"$1\" > {0}.new && mv {0}.new {0}\n",
        address.display()
    );
    let mut file = options.open(&program).unwrap();
    file.write_all(script.as_bytes()).unwrap();
    (program.display().to_string(), address)
}

/// `iapctl` on a terminal of its own.
fn on_a_terminal(plane: &Plane, user: &str, browser: &str, line: &str) -> Background {
    let iapctl = iap_e2e::program("iapctl").unwrap();
    let child = Command::new("script")
        .args(["-qec", &format!("{} {line}", iapctl.display()), "/dev/null"])
        .env("IAPCTL_HOME", plane.home(user))
        .env("BROWSER", browser)
        .env_remove("IAPCTL_NONINTERACTIVE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Background(child)
}

fn query(plane: &Plane) -> Ran {
    let query = ["connect", "db-prod", "--", "psql", "-X", "-Atc", "select 6 * 7"];
    plane.iapctl("carol", &query).unwrap()
}

/// Logs carol in with what the provider asks of everybody.
fn log_in(plane: &Plane) -> Browser {
    let mut waiting = login(plane, "carol", "--no-browser");
    let mut url = String::new();
    BufReader::new(waiting.0.stdout.take().unwrap())
        .read_line(&mut url)
        .unwrap();
    let browser = on_the_web(async {
        let mut browser = browser(plane);
        let page = browser.open(url.trim()).await?;
        sign_in_and_approve(&mut browser, page, "alice").await?;
        Ok(browser)
    });
    waiting.finish().unwrap().succeeded().unwrap();
    browser
}

#[test]
fn a_rule_that_asks_for_a_class_reopens_login_with_it_and_connects() {
    let provider = Provider::start();
    let plane = provider.plane_whose_rule_says(
        &format!("mfa_acr = [\"{CLASS}\"]\n"),
        &format!("when = 'user.acr == \"{CLASS}\" && user.mfa_age < duration(\"1h\")'\n"),
    );
    let mut browser = log_in(&plane);
    let refused = query(&plane);
    assert_eq!(refused.code, 4, "without a terminal nobody is asked: {refused:?}");
    let command = format!("iapctl login --fresh --mfa --acr '{CLASS}'");
    assert!(refused.stderr.contains(&command), "{refused:?}");

    let folder = tempfile::tempdir().unwrap();
    let (program, address) = browser_that_writes(folder.path());
    let connecting = on_a_terminal(
        &plane,
        "carol",
        &program,
        "connect db-prod -- psql -X -P pager=off -Atc 'select 6 * 7'",
    );
    iap_e2e::wait_until("login is reopened", || Ok(address.exists())).unwrap();
    let url = std::fs::read_to_string(&address).unwrap();
    on_the_web(async {
        // The same browser: its session at the provider must not do.
        let page = browser.open(&url).await?;
        anyhow::ensure!(
            page.body.contains("name=\"login\""),
            "the provider asks anew: {}",
            page.text()
        );
        sign_in_and_approve(&mut browser, page, "alice").await
    });
    let ended = connecting.finish().unwrap();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("42"), "{ended:?}");
    assert_eq!(
        query(&plane).succeeded().unwrap().trim(),
        "42",
        "the login stays as strong"
    );
}

#[test]
fn a_login_without_the_proof_that_was_asked_for_is_denied_once_and_says_so() {
    let provider = Provider::start();
    // The connector knows no class that means several factors: the provider cannot be asked for them.
    let plane = provider.plane_whose_rule_says("", "when = 'user.mfa_age < duration(\"1h\")'\n");
    let mut browser = log_in(&plane);
    let folder = tempfile::tempdir().unwrap();
    let (program, address) = browser_that_writes(folder.path());
    let connecting = on_a_terminal(&plane, "carol", &program, "connect db-prod -- true");
    iap_e2e::wait_until("login is reopened", || Ok(address.exists())).unwrap();
    let url = std::fs::read_to_string(&address).unwrap();
    on_the_web(async {
        let page = browser.open(&url).await?;
        sign_in_and_approve(&mut browser, page, "alice").await
    });
    let ended = connecting.finish().unwrap();
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(ended.stdout.contains("did not vouch"), "{ended:?}");
}
