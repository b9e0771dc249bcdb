//! The operator's page, `docs/postgres.md`, with a server of its own: blocks as written, and nothing but names, addresses and
//! paths in their place.

use std::path::Path;
use std::process::Command;

use iap_e2e::{Page, Plane, Ran, wait_until};

use super::server::Server;
use super::statements;

const PAGE: Page = Page::new(include_str!("../../../../../docs/postgres.md"));
/// What the policy has besides the page's rule.
const ADMINISTRATORS: &str = "[[admin]]\nusers = { groups = [\"dev:admins\"] }\n\
    verbs = [\"policy.write\", \"service.write\", \"audit.read\"]\n\
    [[admin]]\nusers = { groups = [\"dev:auditors\"] }\nverbs = [\"audit.read\"]\n";
/// The server's owner, for whom the page has no line.
const OWNER: &str = "local all postgres trust\n";

struct Guide {
    plane: Plane,
    server: Server,
    me: String,
}

impl Guide {
    /// The page up to where the agent logs in: service, policy, and a server that knows the logins.
    fn start() -> Self {
        let plane = Plane::start(&["--service", "db-prod=127.0.0.1:1"]).unwrap();
        for user in ["admin", "auditor", "alice"] {
            plane.log_in(user).unwrap();
        }
        let apply = |what: &str, document: &str| {
            let file = plane.scratch().join(format!("{what}.toml"));
            std::fs::write(&file, document).unwrap();
            let applied = plane.iapctl("admin", &[what, "apply", file.to_str().unwrap()]);
            applied.unwrap().succeeded().unwrap();
        };
        apply("services", &block("toml", "inspect = true"));
        apply(
            "policy",
            &format!("{}{ADMINISTRATORS}", block("toml", "[[rule]]")),
        );
        let folder = Server::folder();
        let export = block("sh", "ca export");
        plane
            .shell("admin", folder.path(), &export)
            .unwrap()
            .succeeded()
            .unwrap();
        let me: Ran = Command::new("id").arg("-un").output().unwrap().into();
        let me = me.succeeded().unwrap().trim().to_owned();
        let rules = |saying: &str| block("pg_hba", saying).replace("10.0.0.9", "127.0.0.1");
        let rules = format!("{OWNER}{}{}", rules("peer"), rules("hostssl"));
        let idents = block("pg_ident", "iap-agent").replace("iap-agent", &me);
        let server = Server::start(folder, &block("postgresql", "ssl_ca_file"), &rules, &idents);
        for statement in [
            "create role app login",
            "create role readonly login",
            "create database app owner app",
            "create database orders owner app",
        ] {
            server.superuser(statement).succeeded().unwrap();
        }
        Self { plane, server, me }
    }

    /// A table of the agent's own file, for this server.
    fn serve(&self, table: &str) {
        let table = self.placed(table);
        self.plane.serve("db-prod", &table).unwrap();
    }

    fn placed(&self, text: &str) -> String {
        let folder = self.plane.scratch().display().to_string();
        let own = self.server.folder.path().display().to_string();
        text.replace("/run/postgresql/.s.PGSQL.5432", &self.server.socket())
            .replace("db.internal:5432", &format!("localhost:{}", self.server.port))
            .replace("/etc/iap/db-prod-server-ca.pem", &format!("{own}/server.pem"))
            .replace("/etc/iap/", &format!("{folder}/"))
    }

    /// What alice is answered as `login`.
    fn ask(&self, login: &str, database: &str, statement: &str) -> Ran {
        let arguments = [
            "connect",
            "db-prod",
            "--login",
            login,
            "--database",
            database,
            "--",
            "psql",
            "-X",
            "-Atc",
            statement,
        ];
        self.plane.iapctl("alice", &arguments).unwrap()
    }

    fn wait_for(&self, what: &str, login: &str, statement: &str, expected: &str) {
        wait_until(what, || {
            Ok(self.ask(login, "app", statement).stdout.trim() == expected)
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", self.ask(login, "app", statement)));
    }

    /// Soon: the server's rules are read anew by its next processes.
    fn refuses(&self, login: &str, why: &str) {
        let said = "the agent cannot log in to the service's backend";
        wait_until(why, || {
            let refused = self.ask(login, "app", "select 1");
            let log = std::fs::read_to_string(self.plane.dir().join("logs/agent.log"))?;
            Ok(refused.stderr.contains(said) && log.contains(why))
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", self.ask(login, "app", "select 1")));
    }
}

fn block(language: &str, saying: &str) -> String {
    PAGE.block(language, saying).unwrap()
}

const WHO: &str = "select current_user || coalesce(' ' || client_dn, '') || ' ' || ssl from pg_stat_ssl where pid = pg_backend_pid()";

#[test]
fn the_page_on_setting_up_postgresql_works_as_written() {
    let guide = Guide::start();
    // A password that nobody knows, and a socket.
    let owner = format!(
        "psql -X -h {} -p {} -U postgres",
        guide.server.folder.path().display(),
        guide.server.port
    );
    let password = guide
        .placed(&block("sh", "openssl rand"))
        .replace("runuser -u postgres -- psql", &owner)
        .replace("chown iap-agent", &format!("chown {}", guide.me));
    guide
        .plane
        .shell("admin", guide.plane.scratch(), &password)
        .unwrap()
        .succeeded()
        .unwrap();
    let table = block("toml", "unix:/run/postgresql");
    guide.serve(&table);
    guide.wait_for(
        "peer, by the name that the agent's system user has",
        "app",
        WHO,
        "app false",
    );
    guide.wait_for("a password that the agent has", "readonly", WHO, "readonly false");
    let orders = guide.ask("app", "orders", "select current_database()");
    assert_eq!(orders.succeeded().unwrap().trim(), "orders");
    let other = guide.ask("app", "postgres", "select 1");
    assert!(other.stderr.contains("does not allow"), "{other:?}");
    // What the backend is told of the user.
    let announced = [
        (
            "announce = \"application_name\"",
            "show application_name",
            "psql (alice@example.com)",
        ),
        (
            "announce = { setting = \"iap.user\" }",
            "select current_setting('iap.user')",
            "alice@example.com",
        ),
        ("announce = \"nothing\"", "show application_name", "psql"),
    ];
    for (line, statement, expected) in announced {
        guide.serve(&table.replace(announced[0].0, line));
        guide.wait_for(line, "app", statement, expected);
    }
    // By TLS.
    guide.serve(&block("toml", "client_certificate = true"));
    guide.wait_for("the login's certificate", "app", WHO, "app /CN=app true");
    guide.wait_for(
        "a password inside TLS",
        "readonly",
        WHO,
        "readonly /CN=readonly true",
    );
    let elsewhere = guide.ask("alice", "app", "select 1");
    assert!(elsewhere.stderr.contains("no pg_hba.conf entry"), "{elsewhere:?}");
    // The rows of the table that are left.
    guide.serve(&table);
    guide.server.rule(&format!("{OWNER}local all all trust\n"));
    guide.wait_for("trust", "app", WHO, "app false");
    for (method, why) in [
        ("password", "wants a password in the clear"),
        ("md5", "wants a password hashed with MD5"),
    ] {
        guide
            .server
            .rule(&format!("{OWNER}local all readonly {method}\n"));
        let hashed = "set password_encryption = 'md5'; alter role readonly password 'x'";
        guide.server.superuser(hashed).succeeded().unwrap();
        guide.refuses("readonly", why);
    }
}

#[test]
fn the_commands_by_which_an_auditor_reads_statements_are_as_the_page_has_them() {
    let guide = Guide::start();
    guide.server.rule(&format!("{OWNER}local all all trust\n"));
    guide.serve(&block("toml", "unix:/run/postgresql").replace("password_files", "# password_files"));
    guide.wait_for("the agent logs in", "readonly", "select 1", "1");
    guide
        .ask("app", "app", "create table t (id int)")
        .succeeded()
        .unwrap();
    guide.ask("app", "app", "DELETE FROM t").succeeded().unwrap();
    let failed = guide.ask("readonly", "app", "select * from t");
    assert!(failed.stderr.contains("permission denied"), "{failed:?}");
    let found = statements(&guide.plane, r#"statement.contains("DELETE")"#, |all| {
        !all.is_empty()
    });
    statements(&guide.plane, r#"sqlstate == "42501""#, |all| !all.is_empty());
    let session = found[0]["session_id"].as_str().unwrap();
    let commands = block("sh", "audit search").replace("SESSION", session);
    let expected = ["DELETE FROM t", "select * from t", "Observed   statements"];
    assert_eq!(commands.lines().count(), expected.len());
    for (command, expected) in commands.lines().zip(expected) {
        let ran = guide.plane.shell("auditor", Path::new("/tmp"), command).unwrap();
        assert!(ran.succeeded().unwrap().contains(expected), "{command}: {ran:?}");
    }
}
