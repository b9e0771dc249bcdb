//! The three servers' configuration files with overrides from the environment: the same mistakes every time, each
//! with its place, and no unknown key passes.

use iap_runtime::config::ConfigErrors;

use super::Seeds;
use crate::input::choice;

/// Between the file and the environment's lines, each `NAME=value`.
const ENVIRONMENT: &str = "\n---\n";
const FILE: &str = "fuzz.toml";
const STRANGE_KEY: &str = "zz_no_such_key";

pub(crate) fn run(bytes: &[u8]) {
    let Some((server, text)) = choice(bytes, 3) else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let (text, lines) = text.split_once(ENVIRONMENT).unwrap_or((text, ""));
    let environment: Vec<(String, String)> = lines
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| {
            (
                format!("{}__{name}", PREFIXES[usize::from(server)]),
                value.to_owned(),
            )
        })
        .collect();
    let outcome = parse(server, text, &environment);
    assert_eq!(outcome, parse(server, text, &environment), "the same twice");
    if let Err(errors) = &outcome {
        assert!(
            errors.lines().next().is_some_and(|line| line.contains(FILE)),
            "{errors}"
        );
    }
    let foreign = [
        ("PATH".to_owned(), "/bin".to_owned()),
        ("IAP_OTHER__X".to_owned(), "1".to_owned()),
    ];
    let beside = [environment.as_slice(), &foreign].concat();
    assert_eq!(
        outcome,
        parse(server, text, &beside),
        "other variables are nothing to it"
    );
    let strange = format!("{STRANGE_KEY} = 1\n{text}");
    match (&outcome, parse(server, &strange, &environment)) {
        (_, Ok(())) => panic!("an unknown key passed"),
        (Ok(()), Err(errors)) => assert!(errors.contains(STRANGE_KEY), "{errors}"),
        (Err(_), Err(_)) => {}
    }
}

const PREFIXES: [&str; 3] = ["IAP_AUTH", "IAP_PROXY", "IAP_AGENT"];

fn parse(server: u8, text: &str, environment: &[(String, String)]) -> Result<(), String> {
    let environment = environment.to_vec();
    let said = |errors: ConfigErrors| errors.to_string();
    match server {
        0 => iap_auth::config::Config::parse_with(text, FILE, environment)
            .map(drop)
            .map_err(said),
        1 => iap_proxy::Config::parse_with(text, FILE, environment)
            .map(drop)
            .map_err(said),
        _ => iap_agent::Config::parse_with(text, FILE, environment)
            .map(drop)
            .map_err(said),
    }
}

pub(crate) fn seeds() -> Seeds {
    let examples = [
        ("auth", include_str!("../../../../deploy/examples/auth.toml")),
        ("proxy", include_str!("../../../../deploy/examples/proxy.toml")),
        ("agent", include_str!("../../../../deploy/examples/agent.toml")),
    ];
    let overrides = [
        "CLUSTER=iap.example.net\nCONNECTOR__0__CLIENT_ID=other\nLIMITS__DRAIN_TIMEOUT=5s\n",
        "LISTEN=[\"127.0.0.1:8443\"]\nLOG__LEVEL=debug\nNO_SUCH=1\n",
        "SERVICE__0__BACKEND=unix:/run/x\nPROXIES=[\"a:1\", \"b:2\"]\nSERVICE__7__NAME=x\n",
    ];
    let mut seeds = Vec::new();
    for (server, ((name, text), lines)) in (0..).zip(examples.into_iter().zip(overrides)) {
        let bare: String = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty())
            .map(|line| format!("{line}\n"))
            .collect();
        let with = |more: &str| [&[server], bare.as_bytes(), more.as_bytes()].concat();
        seeds.push((name.to_owned(), with("")));
        seeds.push((format!("{name}-environment"), with(&format!("---\n{lines}"))));
        seeds.push((
            format!("{name}-mistakes"),
            with("listen = 7\n[limits]\nx = 1\n[[connector]]\nname = 1\n"),
        ));
    }
    seeds
}
