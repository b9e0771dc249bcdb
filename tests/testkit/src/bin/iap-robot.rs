//! A person with a browser, for scripts: types the code of `iapctl login --headless`, signs in at the test provider,
//! approves. `iap-robot PROXY_ADDRESS ROOT_FILE URL CODE USER`
#![allow(clippy::print_stderr)]

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use iap_testkit::Browser;

fn main() -> ExitCode {
    match approve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("iap-robot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn approve() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [proxy, root, url, code, user] = <[String; 5]>::try_from(arguments)
        .map_err(|_| anyhow::anyhow!("usage: iap-robot PROXY_ADDRESS ROOT_FILE URL CODE USER"))?;
    let proxy: SocketAddr = proxy.parse().context("PROXY_ADDRESS")?;
    let root = std::fs::read(&root).with_context(|| format!("cannot read {root}"))?;
    let host = url
        .strip_prefix("https://")
        .and_then(|rest| rest.split(['/', ':']).next())
        .context("URL begins with https://")?;
    let mut browser = Browser::new(Some(&root), &[(host, proxy)])?;
    let page = browser.open(&url).await?;
    let asking = browser.submit(&page, &[("code", &code)]).await?;
    let page = browser.follow(&asking, "/login/").await?;
    let approval = browser.sign_in(page, &user).await?;
    let last = browser.approve(&approval).await?;
    ensure!(last.status.is_success(), "the last page says: {}", last.text());
    Ok(())
}
