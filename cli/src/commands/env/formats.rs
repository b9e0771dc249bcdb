//! The settings of one service in each form, quoted as its reader wants it.

use serde_json::{Map, Value};

use super::EnvFormat;
use crate::failure::Failure;

/// Where and how a TLS client reaches a service.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// The proxy's host.
    pub(super) host: String,
    /// The address to use where the server name does not resolve.
    pub(super) address: Option<String>,
    pub(super) port: u16,
    /// What the client sends as SNI and verifies.
    pub(super) server_name: String,
    pub(super) ca: String,
    pub(super) certificate: String,
    pub(super) key: String,
    /// The key as PKCS#8 DER, which Java reads.
    pub(super) key_pk8: String,
    /// Login and database, for PostgreSQL.
    pub(super) postgres: Option<(String, String)>,
}

/// The settings in one form.
///
/// # Errors
/// Bad input when a service has no such form.
pub(super) fn render(endpoint: &Endpoint, format: EnvFormat) -> Result<String, Failure> {
    let lines = |line: fn(&str, &str) -> String| {
        variables(endpoint)
            .iter()
            .map(|(name, value)| line(name, value))
            .collect::<Vec<_>>()
            .join("\n")
    };
    Ok(match format {
        EnvFormat::Shell => lines(|name, value| format!("export {name}={}", shell_quoted(value))),
        EnvFormat::Fish => lines(|name, value| format!("set -gx {name} {}", fish_quoted(value))),
        EnvFormat::Powershell => lines(|name, value| format!("$env:{name} = {}", powershell_quoted(value))),
        EnvFormat::Dotenv => lines(|name, value| format!("{name}={}", dotenv_quoted(value))),
        EnvFormat::Jdbc => jdbc(endpoint)?,
        EnvFormat::Url => url(endpoint),
        EnvFormat::Json => json(endpoint),
    })
}

/// The variables in the order they are printed.
fn variables(endpoint: &Endpoint) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        (
            "IAP_HOST",
            endpoint.address.clone().unwrap_or_else(|| endpoint.host.clone()),
        ),
        ("IAP_PORT", endpoint.port.to_string()),
        ("IAP_SERVER_NAME", endpoint.server_name.clone()),
        ("IAP_CA", endpoint.ca.clone()),
        ("IAP_CERT", endpoint.certificate.clone()),
        ("IAP_KEY", endpoint.key.clone()),
    ];
    let Some((login, database)) = &endpoint.postgres else {
        return variables;
    };
    variables.push(("PGHOST", endpoint.server_name.clone()));
    if let Some(address) = &endpoint.address {
        variables.push(("PGHOSTADDR", address.clone()));
    }
    variables.extend([
        ("PGPORT", endpoint.port.to_string()),
        ("PGUSER", login.clone()),
        ("PGDATABASE", database.clone()),
        ("PGSSLMODE", "verify-full".to_owned()),
        ("PGSSLROOTCERT", endpoint.ca.clone()),
        ("PGSSLCERT", endpoint.certificate.clone()),
        ("PGSSLKEY", endpoint.key.clone()),
        ("PGGSSENCMODE", "disable".to_owned()),
    ]);
    variables
}

/// POSIX: nothing is special between single quotes but the quote itself.
fn shell_quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// fish: `\'` and `\\` are the only escapes between single quotes.
fn fish_quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
}

/// PowerShell: a quote is doubled between single quotes, the typographic ones it takes for quotes too.
fn powershell_quoted(value: &str) -> String {
    let doubled = value.chars().flat_map(|character| {
        let quote = matches!(
            character,
            '\'' | '\u{2018}' | '\u{2019}' | '\u{201a}' | '\u{201b}'
        );
        std::iter::once(character).chain(quote.then_some(character))
    });
    format!("'{}'", doubled.collect::<String>())
}

/// dotenv: bare where that is safe, literal in single quotes where there is none, else escaped.
fn dotenv_quoted(value: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_-./:@+,%".contains(character);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    if !value.contains('\'') && !value.contains('\n') {
        return format!("'{value}'");
    }
    let escaped = value
        .replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('$', r"\$")
        .replace('\n', r"\n");
    format!("\"{escaped}\"")
}

fn jdbc(endpoint: &Endpoint) -> Result<String, Failure> {
    let Some((login, database)) = &endpoint.postgres else {
        return Err(
            Failure::usage("only PostgreSQL services have a JDBC URL").next("--format url or --format json")
        );
    };
    let parameters = [
        ("user", login.as_str()),
        ("sslmode", "verify-full"),
        ("sslrootcert", &endpoint.ca),
        ("sslcert", &endpoint.certificate),
        ("sslkey", &endpoint.key_pk8),
        ("gssEncMode", "disable"),
    ];
    let (host, port) = (&endpoint.server_name, endpoint.port);
    Ok(format!(
        "jdbc:postgresql://{host}:{port}/{}?{}",
        encoded(database),
        query(&parameters)
    ))
}

fn url(endpoint: &Endpoint) -> String {
    let (host, port) = (&endpoint.server_name, endpoint.port);
    let Some((login, database)) = &endpoint.postgres else {
        return format!("tls://{host}:{port}");
    };
    let mut parameters = vec![
        ("sslmode", "verify-full"),
        ("sslrootcert", endpoint.ca.as_str()),
        ("sslcert", &endpoint.certificate),
        ("sslkey", &endpoint.key),
        ("gssencmode", "disable"),
    ];
    parameters.extend(endpoint.address.as_deref().map(|address| ("hostaddr", address)));
    format!(
        "postgresql://{}@{host}:{port}/{}?{}",
        encoded(login),
        encoded(database),
        query(&parameters)
    )
}

fn json(endpoint: &Endpoint) -> String {
    let object: Map<String, Value> = variables(endpoint)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Value::String(value)))
        .collect();
    format!("{:#}", Value::Object(object))
}

fn query(parameters: &[(&str, &str)]) -> String {
    parameters
        .iter()
        .map(|(name, value)| format!("{name}={}", encoded(value)))
        .collect::<Vec<_>>()
        .join("&")
}

/// Percent-encoding of everything but the unreserved characters (RFC 3986 §2.3).
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HOSTILE: &str = "it's $HOME \\ \"x\" `id`";

    fn endpoint(postgres: bool) -> Endpoint {
        Endpoint {
            host: "iap.localhost".to_owned(),
            address: Some("127.0.0.1".to_owned()),
            port: 8443,
            server_name: "db-prod.iap.localhost".to_owned(),
            ca: "/h/ca.pem".to_owned(),
            certificate: "/h/cert.pem".to_owned(),
            key: "/h/key.pem".to_owned(),
            key_pk8: "/h/key.pk8".to_owned(),
            postgres: postgres.then(|| ("alice".to_owned(), "shop db".to_owned())),
        }
    }

    #[test]
    fn a_tcp_service_has_the_six_variables_and_postgres_all_of_them() {
        let names = |postgres| {
            variables(&endpoint(postgres))
                .iter()
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(false),
            [
                "IAP_HOST",
                "IAP_PORT",
                "IAP_SERVER_NAME",
                "IAP_CA",
                "IAP_CERT",
                "IAP_KEY"
            ]
        );
        let postgres = names(true);
        for name in [
            "PGHOST",
            "PGHOSTADDR",
            "PGPORT",
            "PGUSER",
            "PGDATABASE",
            "PGSSLMODE",
            "PGSSLROOTCERT",
            "PGSSLCERT",
            "PGSSLKEY",
            "PGGSSENCMODE",
        ] {
            assert!(postgres.contains(&name), "{name}");
        }
    }

    #[test]
    fn only_a_development_plane_needs_an_address() {
        let remote = Endpoint {
            address: None,
            host: "iap.example.com".to_owned(),
            ..endpoint(true)
        };
        assert!(!variables(&remote).iter().any(|(name, _)| *name == "PGHOSTADDR"));
        assert!(
            render(&remote, EnvFormat::Shell)
                .unwrap()
                .starts_with("export IAP_HOST='iap.example.com'\n")
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_shell_reads_back_exactly_what_was_quoted() {
        let script = format!("X={}; printf %s \"$X\"", shell_quoted(HOSTILE));
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), HOSTILE);
    }

    #[test]
    fn each_shell_has_its_own_quotes() {
        assert_eq!(shell_quoted("it's"), r"'it'\''s'");
        assert_eq!(fish_quoted(r"it's \n"), r"'it\'s \\n'");
        assert_eq!(powershell_quoted("it's ‘$x’"), "'it''s ‘‘$x’’'");
        assert_eq!(dotenv_quoted("/h/ca.pem"), "/h/ca.pem");
        assert_eq!(dotenv_quoted("a b $c"), "'a b $c'");
        assert_eq!(dotenv_quoted("it's $c"), r#""it's \$c""#);
        assert_eq!(dotenv_quoted(""), "''");
    }

    #[test]
    fn urls_encode_what_is_not_plain() {
        let url = render(&endpoint(true), EnvFormat::Url).unwrap();
        assert!(
            url.starts_with("postgresql://alice@db-prod.iap.localhost:8443/shop%20db?sslmode=verify-full&")
        );
        assert!(url.ends_with("&hostaddr=127.0.0.1"), "{url}");
        let jdbc = render(&endpoint(true), EnvFormat::Jdbc).unwrap();
        assert!(jdbc.contains("sslkey=%2Fh%2Fkey.pk8"), "{jdbc}");
        assert_eq!(
            render(&endpoint(false), EnvFormat::Jdbc)
                .unwrap_err()
                .status()
                .code(),
            2
        );
        assert_eq!(
            render(&endpoint(false), EnvFormat::Url).unwrap(),
            "tls://db-prod.iap.localhost:8443"
        );
    }

    #[test]
    fn json_is_one_object_of_strings() {
        let object: Value = serde_json::from_str(&render(&endpoint(true), EnvFormat::Json).unwrap()).unwrap();
        assert_eq!(object.get("IAP_PORT").unwrap(), "8443");
        assert_eq!(object.get("PGHOST").unwrap(), "db-prod.iap.localhost");
    }
}
