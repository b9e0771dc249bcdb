//! Configuration files: TOML into a type, environment overrides, and every mistake reported at once.
//!
//! A configuration type is a plain `serde::Deserialize` structure without `flatten`. Keys it does not have are
//! errors; so are keys it needs and does not find. All of them are found in one go, each with the file, the
//! dotted key and what is allowed, by replacing each faulty value with a stand-in and reading on.

mod environment;
mod errors;
mod in_force;
mod reader;
mod reload;
mod stand_in;
mod suggest;
mod values;

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;

pub use errors::{ConfigError, ConfigErrors};
pub use in_force::InForce;
pub use reload::{Changes, LiveKeys, Values};
pub use values::{ByteSize, ConfigDuration, ValueError};

/// Configuration files beyond this size are refused.
pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Reads the file at `path`, with overrides from the process environment: `IAP_AUTH__SECTION__KEY` for
/// prefix `IAP_AUTH`. An override is a TOML value, or else taken as a string. `check` is told the file and looks at
/// what values mean; its findings are reported together with those about single values.
pub fn load<T: DeserializeOwned, C>(
    path: &Path,
    environment_prefix: &str,
    check: impl FnOnce(T, &str) -> Result<C, ConfigErrors>,
) -> Result<C, ConfigErrors> {
    let file = path.display().to_string();
    let text = read_text(path).map_err(|message| ConfigErrors::of(&file, "", message))?;
    parse(&text, &file, environment_prefix, std::env::vars(), check)
}

/// Reads configuration from `text`; `file` is what errors call it, `environment` the variables to look at.
pub fn parse<T: DeserializeOwned, C>(
    text: &str,
    file: &str,
    environment_prefix: &str,
    environment: impl IntoIterator<Item = (String, String)>,
    check: impl FnOnce(T, &str) -> Result<C, ConfigErrors>,
) -> Result<C, ConfigErrors> {
    let mut errors = ConfigErrors::none(file);
    let mut table = match text.parse::<toml::Table>() {
        Ok(table) => table,
        Err(error) => {
            return Err(ConfigErrors::of(
                file,
                "",
                error.to_string().trim_end().to_owned(),
            ));
        }
    };
    let origins = environment::apply(&mut table, environment_prefix, environment, &mut errors);
    let mut holes = stand_in::Holes::default();
    let read = read_all::<T>(&table, &mut holes, &mut errors);
    let checked = read.map(|value| check(value, file));
    let checked = match checked {
        Some(Ok(checked)) => Some(checked),
        Some(Err(findings)) => {
            errors.add_those_beyond(findings, &holes);
            None
        }
        None => None,
    };
    errors.name_origins(&origins);
    match checked {
        Some(checked) if errors.is_empty() => Ok(checked),
        Some(_) | None => Err(errors),
    }
}

/// Reads `table` again and again, each time past the faults already known, until no new one turns up.
fn read_all<T: DeserializeOwned>(
    table: &toml::Table,
    holes: &mut stand_in::Holes,
    errors: &mut ConfigErrors,
) -> Option<T> {
    loop {
        let attempt = reader::read::<T>(table, holes);
        for unknown in attempt.unknown_keys {
            errors.push_once(&unknown.key, unknown.message);
        }
        let fault = match attempt.result {
            Ok(value) => return Some(value),
            Err(fault) => fault,
        };
        match holes.learn(&fault) {
            stand_in::Learned::NewFault => errors.push_once(&fault.path, fault.message),
            stand_in::Learned::NextStandIn => {}
            stand_in::Learned::NothingFits => return None,
        }
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| format!("cannot open: {error}"))?;
    let mut limited = file.take(CONFIG_BYTES_MAX + 1);
    limited
        .read_to_string(&mut text)
        .map_err(|error| format!("cannot read: {error}"))?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(format!("larger than {CONFIG_BYTES_MAX} bytes"));
    }
    Ok(text)
}

/// Which environment variable a dotted key came from.
type Origins = BTreeMap<String, String>;

#[cfg(test)]
mod tests;
