//! The reference of configuration keys lists exactly the keys that the three programs accept.

use std::collections::BTreeSet;
use std::process::Command;

use iap_e2e::{Ran, program};

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

/// The first column of the tables in a program's section.
fn documented(name: &str) -> BTreeSet<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once(&format!("\n## iap-{name}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split_once('`'))
        .map(|(key, _)| key.to_owned())
        .collect()
}

#[test]
fn the_reference_of_configuration_keys_lists_what_the_programs_accept() {
    for name in ["auth", "proxy", "agent"] {
        let mut accepted = BTreeSet::new();
        keys(name, &Vec::new(), &mut accepted);
        assert!(accepted.len() > 15, "iap-{name} only spoke of {accepted:?}");
        assert_eq!(documented(name), accepted, "iap-{name}");
    }
}
