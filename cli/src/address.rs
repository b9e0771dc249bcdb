//! `CLUSTER[:PORT]` as people type it.

use std::fmt;

use iap_identity::ClusterName;

use crate::failure::Failure;

/// The port of a cluster when none is named.
pub const PORT_DEFAULT: u16 = 443;

/// A cluster and where its proxy listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterAddress {
    /// The cluster's name: what is resolved, and the suffix of every server name.
    pub cluster: ClusterName,
    /// The proxy's port.
    pub port: u16,
}

impl ClusterAddress {
    /// Parses `CLUSTER`, `CLUSTER:PORT`, or the address of the cluster's web page.
    ///
    /// # Errors
    /// Bad input.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let refuse = |why: String| {
            Failure::usage(format!("'{text}' is not a cluster"))
                .because(why)
                .next("iapctl login CLUSTER[:PORT]")
        };
        let bare = text.strip_prefix("https://").unwrap_or(text);
        let bare = bare.strip_suffix('/').unwrap_or(bare);
        let (name, port) = match bare.split_once(':') {
            Some((name, port)) => {
                let port = port.parse().ok().filter(|port| *port != 0);
                (
                    name,
                    port.ok_or_else(|| refuse("the port must be a number from 1 to 65535".to_owned()))?,
                )
            }
            None => (bare, PORT_DEFAULT),
        };
        let cluster = ClusterName::parse(name).map_err(|error| refuse(error.to_string()))?;
        Ok(Self { cluster, port })
    }

    /// The address as `host:port`.
    pub fn host_port(&self) -> String {
        format!("{}:{}", self.cluster.as_str(), self.port)
    }
}

impl fmt::Display for ClusterAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            PORT_DEFAULT => out.write_str(self.cluster.as_str()),
            port => write!(out, "{}:{port}", self.cluster.as_str()),
        }
    }
}

/// Whether names under this cluster never leave the machine (RFC 6761 §6.3).
pub fn is_on_this_machine(cluster: &ClusterName) -> bool {
    cluster.as_str() == "localhost" || cluster.as_str().ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_cluster_may_name_its_port() {
        let address = ClusterAddress::parse("iap.localhost:8443").unwrap();
        assert_eq!((address.cluster.as_str(), address.port), ("iap.localhost", 8443));
        assert_eq!(address.to_string(), "iap.localhost:8443");
        assert_eq!(
            ClusterAddress::parse("iap.example.com").unwrap().to_string(),
            "iap.example.com"
        );
        assert_eq!(
            ClusterAddress::parse("https://iap.example.com/").unwrap().port,
            443
        );
    }

    #[test]
    fn bad_names_and_ports_are_bad_input() {
        for bad in [
            "",
            "iap.example.com:0",
            "iap.example.com:http",
            "iap.example.com:99999",
            "a b",
            "x:1:2",
        ] {
            let failure = ClusterAddress::parse(bad).unwrap_err();
            assert_eq!(failure.status().code(), 2, "{bad}");
        }
    }
}
