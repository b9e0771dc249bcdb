//! What every command is given: where the home is, how to print, which cluster, whom to ask.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use iap_identity::ClusterName;
use iap_runtime::traces::{Program, Settings, SpanCounts, Traces};

use crate::arguments::Global;
use crate::failure::Failure;
use crate::home::{ClusterHome, Home};
use crate::printer::Printer;

/// Set to 1, nothing ever asks a person or opens a browser.
pub const NONINTERACTIVE: &str = "IAPCTL_NONINTERACTIVE";

/// The folder that keeps logins, where `--home` does not say it.
const HOME: &str = "IAPCTL_HOME";

/// What every command is given.
#[derive(Clone, Debug)]
pub struct Context {
    /// The folder that keeps logins.
    pub home: Home,
    /// Where results and talk go.
    pub printer: Printer,
    /// `-c`, when given.
    pub cluster: Option<ClusterName>,
    /// Whether a person sits at a terminal and may be asked to log in again.
    pub interactive: bool,
    /// Where spans of sessions go; nowhere unless the environment names a collector.
    pub traces: Traces,
}

impl Context {
    /// From the global arguments and the environment.
    ///
    /// # Errors
    /// When there is no home folder, or `-c` is not a cluster name.
    pub fn new(global: &Global) -> anyhow::Result<Self> {
        let color = !global.no_color && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let cluster = global.cluster.as_deref().map(parse_cluster).transpose()?;
        Ok(Self {
            home: Home::new(home_path(global)?),
            printer: Printer::new(color, global.verbose),
            cluster,
            interactive: is_interactive(),
            traces: Traces::off(),
        })
    }

    /// Sends spans to the collector that the environment names, if it names one. No command fails for want of it.
    /// Has to be called within a tokio runtime.
    #[must_use]
    pub fn with_traces(self) -> Self {
        let program = Program {
            name: "iapctl",
            version: env!("CARGO_PKG_VERSION"),
            instance: None,
            cluster: None,
        };
        let settings = Settings::from_environment(|name| std::env::var(name).ok()).unwrap_or_else(|error| {
            self.printer.verbose(&format!("no traces: {error}"));
            None
        });
        let started = Traces::start(settings.as_ref(), &program, &SpanCounts::default());
        let traces = started.unwrap_or_else(|error| {
            self.printer.verbose(&format!("no traces: {error}"));
            Traces::off()
        });
        Self { traces, ..self }
    }

    /// The cluster to work with: `-c`, else the current one, else the only one.
    ///
    /// # Errors
    /// Login needed when there is none.
    pub fn cluster_home(&self) -> anyhow::Result<ClusterHome> {
        if let Some(cluster) = &self.cluster {
            return Ok(self.home.cluster(cluster));
        }
        if let Some(cluster) = self.home.current()? {
            return Ok(self.home.cluster(&cluster));
        }
        match self.home.clusters()?.as_slice() {
            [only] => Ok(self.home.cluster(only)),
            [] => Err(Failure::login_needed("you are not logged in to any cluster")
                .next("iapctl login CLUSTER")
                .into()),
            several => Err(Failure::usage("several clusters are known and none is current")
                .because(
                    several
                        .iter()
                        .map(ClusterName::as_str)
                        .collect::<Vec<_>>()
                        .join(", "),
                )
                .next("name one with -c CLUSTER")
                .into()),
        }
    }
}

fn parse_cluster(name: &str) -> anyhow::Result<ClusterName> {
    ClusterName::parse(name).map_err(|error| {
        Failure::usage(format!("'{name}' is not a cluster name"))
            .because(error.to_string())
            .into()
    })
}

fn home_path(global: &Global) -> anyhow::Result<PathBuf> {
    let named = std::env::var_os(HOME).filter(|home| !home.is_empty());
    if let Some(path) = global.home.clone().or(named.map(PathBuf::from)) {
        return Ok(std::path::absolute(path)?);
    }
    let user_home = std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE"));
    match user_home.filter(|home| !home.is_empty()) {
        Some(home) => Ok(PathBuf::from(home).join(".iapctl")),
        None => Err(Failure::failed("there is no home folder")
            .next("name one with --home DIR or IAPCTL_HOME")
            .into()),
    }
}

/// A person is there when both stdin and stderr are terminals and nobody said otherwise.
fn is_interactive() -> bool {
    !is_browser_refused() && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Whether the environment says that nobody is there to look at a browser.
pub fn is_browser_refused() -> bool {
    std::env::var_os(NONINTERACTIVE).is_some_and(|value| !value.is_empty() && value != "0")
}
