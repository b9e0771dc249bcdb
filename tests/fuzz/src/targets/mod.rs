//! The targets.

mod asciicast;
mod backend_certificates;
mod client_hello;
mod configuration;
mod control;
mod frames;
mod identity;
mod login_pages;
mod policy;
mod postgres;
mod postgres_session;
mod preface;
mod proxy_protocol;
mod resume;
mod snapshot;
mod tls_records;
mod transfer;
mod watch;

/// Inputs by name.
pub(crate) type Seeds = Vec<(String, Vec<u8>)>;

/// Something that reads what a stranger sent.
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Panics when a property does not hold for these bytes.
    pub run: fn(&[u8]),
    /// Inputs from the real encoders.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "client_hello",
        run: client_hello::run,
        seeds: client_hello::seeds,
    },
    Target {
        name: "preface",
        run: preface::run,
        seeds: preface::seeds,
    },
    Target {
        name: "control",
        run: control::run,
        seeds: control::seeds,
    },
    Target {
        name: "identity",
        run: identity::run,
        seeds: identity::seeds,
    },
    Target {
        name: "backend_certificates",
        run: backend_certificates::run,
        seeds: backend_certificates::seeds,
    },
    Target {
        name: "snapshot",
        run: snapshot::run,
        seeds: snapshot::seeds,
    },
    Target {
        name: "policy",
        run: policy::run,
        seeds: policy::seeds,
    },
    Target {
        name: "postgres",
        run: postgres::run,
        seeds: postgres::seeds,
    },
    Target {
        name: "postgres_session",
        run: postgres_session::run,
        seeds: postgres_session::seeds,
    },
    Target {
        name: "proxy_protocol",
        run: proxy_protocol::run,
        seeds: proxy_protocol::seeds,
    },
    Target {
        name: "frames",
        run: frames::run,
        seeds: frames::seeds,
    },
    Target {
        name: "resume",
        run: resume::run,
        seeds: resume::seeds,
    },
    Target {
        name: "tls_records",
        run: tls_records::run,
        seeds: tls_records::seeds,
    },
    Target {
        name: "configuration",
        run: configuration::run,
        seeds: configuration::seeds,
    },
    Target {
        name: "login_pages",
        run: login_pages::run,
        seeds: login_pages::seeds,
    },
    Target {
        name: "transfer",
        run: transfer::run,
        seeds: transfer::seeds,
    },
    Target {
        name: "asciicast",
        run: asciicast::run,
        seeds: asciicast::seeds,
    },
    Target {
        name: "watch",
        run: watch::run,
        seeds: watch::seeds,
    },
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
