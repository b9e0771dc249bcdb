//! The reference of configuration keys lists exactly the keys that the three programs accept, and says of each whether
//! SIGHUP takes it over.

use std::collections::BTreeSet;
use std::process::Command;

use iap_e2e::{Plane, Ran, program, wait_until};
use rustix::process::Signal;

/// `service.ceiling.logins` is the deepest key there is.
const DEPTH_MAX: usize = 3;

/// A table inside the file, as its keys and whether each is an array of tables.
type Place = Vec<(String, bool)>;

/// What `--check-config` says is allowed at `place`; nothing when no table belongs there.
fn allowed(name: &str, place: &Place) -> Option<BTreeSet<String>> {
    let mut value = "{ no-such-key = 1 }".to_owned();
    for (depth, (key, is_array)) in place.iter().enumerate().rev() {
        let inner = if *is_array { format!("[{value}]") } else { value };
        value = match depth {
            0 => format!("{key} = {inner}"),
            _ => format!("{{ {key} = {inner} }}"),
        };
    }
    if place.is_empty() {
        "no-such-key = 1".clone_into(&mut value);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), value + "\n").unwrap();
    let ran: Ran = Command::new(program(&format!("iap-{name}")).unwrap())
        .args(["--check-config", "--config"])
        .arg(file.path())
        .output()
        .unwrap()
        .into();
    let line = ran.stderr.lines().find(|line| {
        line.contains("no-such-key: unknown key") || line.contains("no-such-key: unknown field")
    })?;
    let (_, keys) = line.split_once("llowed here: ")?;
    Some(keys.split(", ").map(|key| key.trim().to_owned()).collect())
}

/// Every dotted key that is no table itself.
fn keys(name: &str, place: &Place, found: &mut BTreeSet<String>) {
    for key in allowed(name, place).unwrap() {
        let deeper = [false, true].map(|is_array| {
            let mut deeper = place.clone();
            deeper.push((key.clone(), is_array));
            deeper
        });
        let table = deeper
            .into_iter()
            .filter(|deeper| deeper.len() <= DEPTH_MAX)
            .find(|deeper| allowed(name, deeper).is_some());
        match table {
            Some(table) => keys(name, &table, found),
            None => {
                let path = place.iter().map(|(key, _)| key.as_str()).chain([key.as_str()]);
                found.insert(path.collect::<Vec<_>>().join("."));
            }
        }
    }
}

/// A row of a program's table: the key, its default, and whether SIGHUP takes it over.
struct Row {
    key: String,
    default: String,
    is_live: bool,
}

fn documented(name: &str) -> Vec<Row> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once(&format!("\n## iap-{name}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let inner = row.trim_matches('|');
        let cells: Vec<&str> = inner
            .split('|')
            .map(|cell| cell.trim_matches([' ', '`']))
            .collect();
        let [key, _, default, _, live] = cells.as_slice() else {
            panic!("not five cells: {row}");
        };
        assert!(["yes", ""].contains(live), "{row}");
        Row {
            key: (*key).to_owned(),
            default: (*default).to_owned(),
            is_live: *live == "yes",
        }
    })
    .collect()
}

#[test]
fn the_reference_of_configuration_keys_lists_what_the_programs_accept() {
    for name in ["auth", "proxy", "agent"] {
        let mut accepted = BTreeSet::new();
        keys(name, &Vec::new(), &mut accepted);
        assert!(accepted.len() > 15, "iap-{name} only spoke of {accepted:?}");
        let documented: BTreeSet<String> = documented(name).into_iter().map(|row| row.key).collect();
        assert_eq!(documented, accepted, "iap-{name}");
    }
}

/// One less than a default such as `5`, `15m` or `4MiB`, as TOML.
fn one_less(default: &str) -> String {
    let digits = default
        .find(|one: char| !one.is_ascii_digit())
        .unwrap_or(default.len());
    let (number, unit) = default.split_at(digits);
    let less = number.parse::<u64>().unwrap() - 1;
    match unit {
        "" => less.to_string(),
        unit => format!("\"{less}{unit}\""),
    }
}

/// The keys that the newest line of this kind names.
fn keys_in(log: &str, message: &str) -> Option<BTreeSet<String>> {
    let line = log.lines().rev().find(|line| line.contains(message))?;
    let (_, keys) = line.split_once("keys=\"")?;
    Some(keys.split('"').next()?.split(' ').map(str::to_owned).collect())
}

#[test]
fn the_reference_says_of_each_limit_whether_sighup_takes_it_over_and_a_bad_file_changes_nothing() {
    let plane = Plane::demo().unwrap();
    for name in ["auth", "proxy", "agent"] {
        let file = plane.dir().join(format!("config/{name}.toml"));
        let log = || std::fs::read_to_string(plane.dir().join(format!("logs/{name}.log"))).unwrap();
        let before = std::fs::read_to_string(&file).unwrap();
        let limits: Vec<Row> = documented(name)
            .into_iter()
            .filter(|row| row.key.starts_with("limits."))
            .collect();
        assert!(limits.len() > 10, "iap-{name}");
        let mut changed = format!("{before}\n[limits]\n");
        for row in &limits {
            let key = row.key.trim_start_matches("limits.");
            changed += &format!("{key} = {}\n", one_less(&row.default));
        }

        std::fs::write(&file, format!("{changed}no_such_limit = 1\n")).unwrap();
        plane.signal(name, Signal::HUP).unwrap();
        wait_until("the mistake is named", || {
            Ok(log().contains("limits.no_such_limit"))
        })
        .unwrap();
        assert!(log().contains("the configuration file has mistakes: everything stays as it was"));
        assert_eq!(keys_in(&log(), "configuration taken over"), None, "iap-{name}");

        std::fs::write(&file, changed).unwrap();
        plane.signal(name, Signal::HUP).unwrap();
        let needs_restart = "configuration that takes effect at the next start only";
        wait_until("it is said what takes effect", || {
            Ok(keys_in(&log(), needs_restart).is_some())
        })
        .unwrap();
        let documented = |is_live: bool| -> BTreeSet<String> {
            let rows = limits.iter().filter(|row| row.is_live == is_live);
            rows.map(|row| row.key.clone()).collect()
        };
        assert_eq!(
            keys_in(&log(), "configuration taken over"),
            Some(documented(true)),
            "iap-{name}"
        );
        assert_eq!(
            keys_in(&log(), needs_restart),
            Some(documented(false)),
            "iap-{name}"
        );
    }
    plane.log_in("alice").unwrap();
    let mut session = plane.echo_session("alice").unwrap();
    session.round_trip(b"all of them go on\n").unwrap();
}
