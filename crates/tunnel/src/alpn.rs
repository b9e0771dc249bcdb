//! The application protocols of our own TLS handshakes (RFC 7301).

/// Between `iapctl` and an agent: a hello frame, a status frame, then the backend's bytes.
pub const ALPN_IAP: &str = "iap/1";

/// Between an agent and the proxy at `proxy.<cluster>`: length-prefixed control messages.
pub const ALPN_CONTROL: &str = "iap-control/1";

/// There too: a dial-back inside TLS; the preface, then a client's bytes.
pub const ALPN_DATA: &str = "iap-data/1";

/// Between a client and the agent: the same two frames, and then those of [`resume`](crate::resume).
pub const ALPN_RESUME: &str = "iap-resume/1";

/// At an agent's own name: watching a session that it records; see [`watch`](crate::watch).
pub const ALPN_WATCH: &str = "iap-watch/1";
