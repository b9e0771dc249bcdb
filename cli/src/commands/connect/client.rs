//! What a local client finds in its environment.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::identity::Identity;
use crate::services::{self, POSTGRES};
use crate::session::{Session, Wanted};

/// Settings a user may have for servers reached directly; towards our local end they only do harm.
const INHERITED_PREFIX: &str = "PGSSL";
const INHERITED: [&str; 5] = [
    "PGHOSTADDR",
    "PGSERVICE",
    "PGREQUIRESSL",
    "PGGSSENCMODE",
    "PGCHANNELBINDING",
];

/// The login and the database of a PostgreSQL service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    postgres: Option<(String, String)>,
}

/// Where the local end is.
#[derive(Clone, Debug)]
pub(super) struct LocalEnvironment {
    pub(super) address: SocketAddr,
    /// Where there is a Unix socket too, its folder; for clients of libpq.
    pub(super) socket_folder: Option<PathBuf>,
    pub(super) names: Names,
}

impl Names {
    /// The login asked for, else the agent's choice, else what is known of the service.
    pub(super) fn of(identity: &Identity, wanted: &Wanted, session: &Session) -> Self {
        if session.protocol != POSTGRES {
            return Self { postgres: None };
        }
        let known = identity.home.services().unwrap_or_default();
        let known = known.iter().find(|known| known.name == wanted.service.as_str());
        let asked = wanted.login.as_ref().map(|login| login.as_str().to_owned());
        let login = asked.or_else(|| session.login.clone()).unwrap_or_else(|| {
            services::default_login(known, &identity.peer.name)
                .unwrap_or_else(|logins| logins.into_iter().next().unwrap_or_default())
        });
        let database = wanted.database.clone().unwrap_or_else(|| login.clone());
        Self {
            postgres: Some((login, database)),
        }
    }
}

impl LocalEnvironment {
    /// Variables to set.
    pub(super) fn set(&self) -> Vec<(&'static str, String)> {
        let (host, port) = (self.address.ip().to_string(), self.address.port().to_string());
        let mut variables = vec![("IAP_HOST", host.clone()), ("IAP_PORT", port.clone())];
        if let Some((login, database)) = &self.names.postgres {
            let folder = self.socket_folder.as_ref();
            variables.extend([
                (
                    "PGHOST",
                    folder.map_or(host, |folder| folder.display().to_string()),
                ),
                ("PGPORT", port),
                ("PGUSER", login.clone()),
                ("PGDATABASE", database.clone()),
                ("PGSSLMODE", "disable".to_owned()),
                ("PGGSSENCMODE", "disable".to_owned()),
            ]);
        }
        variables
    }

    /// Variables to remove of those inherited, before setting ours.
    pub(super) fn removed(&self, inherited: impl Iterator<Item = OsString>) -> Vec<OsString> {
        if self.names.postgres.is_none() {
            return Vec::new();
        }
        inherited
            .filter(|name| {
                let name = name.to_string_lossy();
                name.starts_with(INHERITED_PREFIX) || INHERITED.contains(&name.as_ref())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(postgres: bool) -> LocalEnvironment {
        LocalEnvironment {
            address: SocketAddr::from(([127, 0, 0, 1], 4711)),
            socket_folder: None,
            names: Names {
                postgres: postgres.then(|| ("app".to_owned(), "shop".to_owned())),
            },
        }
    }

    #[test]
    fn a_postgres_client_is_led_to_the_local_end_without_tls() {
        let set = environment(true).set();
        for pair in [
            ("IAP_PORT", "4711"),
            ("PGHOST", "127.0.0.1"),
            ("PGUSER", "app"),
            ("PGSSLMODE", "disable"),
        ] {
            assert!(set.contains(&(pair.0, pair.1.to_owned())), "{pair:?}");
        }
        assert!(
            environment(false)
                .set()
                .iter()
                .all(|(name, _)| name.starts_with("IAP_"))
        );
    }

    #[test]
    fn a_client_of_libpq_is_led_to_the_unix_socket() {
        let environment = LocalEnvironment {
            socket_folder: Some("/home/alice/.iapctl/clusters/x/sockets".into()),
            ..environment(true)
        };
        let set = environment.set();
        assert!(set.contains(&("PGHOST", "/home/alice/.iapctl/clusters/x/sockets".to_owned())));
        assert!(set.contains(&("PGPORT", "4711".to_owned())));
        assert!(
            set.contains(&("IAP_HOST", "127.0.0.1".to_owned())),
            "for everybody else"
        );
    }

    #[test]
    fn inherited_settings_for_direct_connections_are_removed() {
        let inherited =
            ["PGSSLCERT", "PGSSLROOTCERT", "PGHOSTADDR", "PGPASSWORD", "PATH"].map(OsString::from);
        let removed = environment(true).removed(inherited.clone().into_iter());
        assert_eq!(
            removed,
            ["PGSSLCERT", "PGSSLROOTCERT", "PGHOSTADDR"].map(OsString::from)
        );
        assert!(environment(false).removed(inherited.into_iter()).is_empty());
    }
}
