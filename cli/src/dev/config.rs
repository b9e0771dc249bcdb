//! The configuration an operator would write, generated once and commented.
//!
//! The servers' files are written at every start (they hold nothing but ports and paths);
//! services and policy only once, because they are there to be edited.

use anyhow::Context as _;
use iap_identity::ServiceName;

use super::descriptor::{DemoService, demo_services};
use super::layout::{CLUSTER, Layout};

/// Names of the connector and client the servers and the built-in provider agree on.
pub(crate) const CONNECTOR: &str = "dev";
pub(crate) const CLIENT_ID: &str = "iap";

/// Writes the three servers' files.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn write_servers(layout: &Layout, offer: &Offer) -> anyhow::Result<()> {
    write(layout, "auth.toml", &auth(layout, &offer.connectors))?;
    write(layout, "proxy.toml", &proxy(layout))?;
    write(layout, "agent.toml", &agent(layout, offer))
}

/// Writes `services.toml`, `own-services.toml` and `policy.toml`; what is there to be edited is not written again.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn write_documents(layout: &Layout, offer: &Offer) -> anyhow::Result<()> {
    if offer.demo {
        let login = super::sshd::login()?;
        write_new(layout, "services.toml", SERVICES)?;
        append_new(layout, "services.toml", SSH_NAME, &ssh_service(&login))?;
    }
    if !offer.own.is_empty() {
        write(
            layout,
            "own-services.toml",
            &offer.own.iter().map(OwnService::record).collect::<String>(),
        )?;
    }
    let policy = match offer {
        Offer { demo: true, .. } => DEMO_POLICY,
        Offer { own, .. } if own.is_empty() => BARE_POLICY,
        // Its tests are about the demo's services; one of these may have such a name, and speak something else.
        Offer { .. } => DEMO_POLICY.split("\n[[test]]").next().unwrap_or(DEMO_POLICY),
    };
    write_new(layout, "policy.toml", policy)?;
    if offer.demo {
        append_new(layout, "policy.toml", SSH_NAME, &ssh_rule(&super::sshd::login()?))?;
    }
    Ok(())
}

/// By which one sees whether a document knows of it.
const SSH_NAME: &str = "\"ssh-demo\"";

fn ssh_service(login: &str) -> String {
    format!(
        r##"
[[service]]
name = "ssh-demo"
protocol = "ssh"
inspect = true          # the agent ends SSH itself, and records
recording = "required"  # and what cannot be recorded does not happen
labels = {{ env = "prod" }}
description = "A shell on this machine, on record"
contact = "#platform"
default_login = "{login}"
"##
    )
}

fn ssh_rule(login: &str) -> String {
    format!(
        r#"
[[rule]]
name = "engineers get a shell"
effect = "allow"
users = {{ groups = ["dev:engineering"] }}
services = {{ names = ["ssh-demo"] }}
logins = ["{login}"]
"#
    )
}

/// What the plane offers to its users.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    /// The services db-prod, echo, ssh-demo and web.
    pub(crate) demo: bool,
    /// Further `[[connector]]` tables: one's own identity providers beside the built-in one.
    pub(crate) connectors: String,
    /// Services named on the command line.
    pub(crate) own: Vec<OwnService>,
}

/// `NAME=HOST:PORT` or `NAME=unix:/path`: a TCP service of one's own.
#[derive(Clone, Debug)]
pub(crate) struct OwnService {
    name: ServiceName,
    backend: String,
}

impl std::str::FromStr for OwnService {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, backend) = text
            .split_once('=')
            .ok_or("say NAME=HOST:PORT or NAME=unix:/path")?;
        let name = ServiceName::parse(name).map_err(|error| error.to_string())?;
        if backend.is_empty() || backend.contains(['"', '\\', '\n']) {
            return Err("the address behind = is HOST:PORT or unix:/path".to_owned());
        }
        Ok(Self {
            name,
            backend: backend.to_owned(),
        })
    }
}

impl OwnService {
    fn record(&self) -> String {
        format!(
            "[[service]]\nname = \"{}\"\nprotocol = \"tcp\"\nlabels = {{ env = \"dev\" }}\n\n",
            self.name
        )
    }
}

impl Offer {
    /// Everything offered, as `dev.json` lists it.
    pub(crate) fn services(&self) -> Vec<DemoService> {
        let mut services = if self.demo { demo_services() } else { Vec::new() };
        services.extend(self.own.iter().map(|own| DemoService {
            name: own.name.to_string(),
            protocol: "tcp".to_owned(),
        }));
        services
    }
}

fn auth(layout: &Layout, connectors: &str) -> String {
    let ports = &layout.ports;
    format!(
        r#"# iap-auth: certificate authority, login, policy, audit. Written by `iapctl dev` at every start.
cluster = "{CLUSTER}"
data_dir = "{data}"
listen = "127.0.0.1:{auth}"
public_address = "{CLUSTER}:{proxy}"
proxy_protocol_from = ["127.0.0.1/32"]
admin_listen = "127.0.0.1:{admin}"
development = true

[bootstrap]
admins = ["admin@example.com"]

[[connector]]
name = "{CONNECTOR}"
issuer = "{issuer}"
client_id = "{CLIENT_ID}"
client_secret_file = "{secret}"
scopes = ["openid", "email", "profile", "groups"]
groups_claim = "groups"
domains = ["example.com"]
{connectors}"#,
        data = layout.dir.join("auth").display(),
        auth = ports.auth,
        proxy = ports.proxy,
        admin = ports.auth_admin,
        issuer = layout.issuer(),
        secret = layout.secret("client_secret").display(),
    )
}

fn proxy(layout: &Layout) -> String {
    let ports = &layout.ports;
    format!(
        r#"# iap-proxy: the one public port. Written by `iapctl dev` at every start.
cluster = "{CLUSTER}"
state_dir = "{state}"
listen = ["127.0.0.1:{proxy}"]
public_address = "127.0.0.1:{proxy}"
auth = "127.0.0.1:{auth}"
admin_listen = "127.0.0.1:{admin}"
"#,
        state = layout.dir.join("proxy").display(),
        proxy = ports.proxy,
        auth = ports.auth,
        admin = ports.proxy_admin,
    )
}

fn agent(layout: &Layout, offer: &Offer) -> String {
    let ports = &layout.ports;
    let mut text = format!(
        r#"# iap-agent: sits beside the private services. Written by `iapctl dev` at every start.
cluster = "{CLUSTER}"
state_dir = "{state}"
proxies = ["127.0.0.1:{proxy}"]
admin_listen = "127.0.0.1:{admin}"
"#,
        state = layout.dir.join("agent").display(),
        proxy = ports.proxy,
        admin = ports.agent_admin,
    );
    for own in &offer.own {
        text.push_str(&format!(
            "\n[[service]]\nname = \"{}\"\nbackend = \"{}\"\n",
            own.name, own.backend
        ));
    }
    if offer.demo {
        let socket = super::postgres::socket_path(layout);
        text.push_str(&format!(
            r#"
[[service]]
name = "db-prod"
backend = "unix:{socket}"

[[service]]
name = "echo"
backend = "127.0.0.1:{echo}"

[[service]]
name = "web"
backend = "127.0.0.1:{web}"

[[service]]
name = "ssh-demo"
backend = "127.0.0.1:{sshd}"

[service.ssh]
known_hosts_file = "{known_hosts}"
"#,
            socket = socket.display(),
            echo = ports.echo,
            web = ports.web,
            sshd = ports.sshd,
            known_hosts = super::sshd::known_hosts(layout).display(),
        ));
    }
    text
}

const SERVICES: &str = r##"# What exists, centrally. `iapctl services apply FILE` reads this; addresses stay in the agent's own file.
[[service]]
name = "db-prod"
protocol = "postgres"
inspect = true
labels = { env = "prod" }
description = "The production database of the demo"
contact = "#databases"
default_login = "app"

[[service]]
name = "echo"
protocol = "tcp"
labels = { env = "dev" }
description = "Sends back every byte"
contact = "#platform"

[[service]]
name = "web"
protocol = "tcp"
labels = { env = "dev" }
description = "A small web server; /headers shows the request's headers"
contact = "#platform"
"##;

const DEMO_POLICY: &str = r#"# Who may do what. `iapctl policy apply FILE` reads this; deny wins, and the default is deny.
# Groups are connector:group; the prefix may be left out while there is one connector.
[[rule]]
name = "engineers reach the databases"
effect = "allow"
users = { groups = ["dev:engineering"] }
services = { names = ["db-prod"] }
logins = ["app", "readonly", "{{user.local}}"]

[[rule]]
name = "engineers reach development services"
effect = "allow"
users = { groups = ["dev:engineering"] }
services = { labels = { env = "dev" } }

[[rule]]
name = "support reaches the web app"
effect = "allow"
users = { groups = ["dev:support"] }
services = { names = ["web"] }

[[admin]]
users = { groups = ["dev:auditors"] }
verbs = ["audit.read", "recording.read"]

[[admin]]
users = { groups = ["dev:admins"] }
verbs = ["policy.write", "service.write", "token.write", "lock.write", "session.kill", "audit.read", "audit.erase", "recording.read", "ca.rotate", "ca.sign"]

[[test]]
user = { name = "alice@example.com", groups = ["dev:engineering"] }
service = "db-prod"
login = "app"
expect = "allow"

[[test]]
user = { name = "alice@example.com", groups = ["dev:engineering"] }
service = "db-prod"
login = "postgres"
expect = "deny"

[[test]]
user = { name = "bob@example.com", groups = ["dev:support"] }
service = "db-prod"
expect = "deny"
"#;

const BARE_POLICY: &str = r#"# Who may do what. Add a [[rule]] for each service; deny wins, and the default is deny.
[[admin]]
users = { groups = ["dev:auditors"] }
verbs = ["audit.read", "recording.read"]

[[admin]]
users = { groups = ["dev:admins"] }
verbs = ["policy.write", "service.write", "token.write", "lock.write", "session.kill", "audit.read", "audit.erase", "recording.read", "ca.rotate", "ca.sign"]
"#;

fn write(layout: &Layout, name: &str, text: &str) -> anyhow::Result<()> {
    let path = layout.config(name);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn write_new(layout: &Layout, name: &str, text: &str) -> anyhow::Result<()> {
    if layout.config(name).exists() {
        Ok(())
    } else {
        write(layout, name, text)
    }
}

/// Adds to a document of before there was such a thing.
fn append_new(layout: &Layout, name: &str, mark: &str, text: &str) -> anyhow::Result<()> {
    let path = layout.config(name);
    let mut written =
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if written.contains(mark) {
        return Ok(());
    }
    written.push_str(text);
    write(layout, name, &written)
}
