//! Every limit of the agent, by the name operators use in `[limits]`.

use std::time::Duration;

use iap_audit::asciicast::LINE_BYTES_MAX;
use iap_runtime::config::LiveKeys;
use iap_tunnel::resume::{WINDOW_BYTES_MAX, WINDOW_BYTES_MIN};
use serde::Deserialize;

/// What SIGHUP takes over.
pub const LIVE_KEYS: LiveKeys = LiveKeys {
    taken_over: &["service", "limits"],
    // The spool is laid out, the pools are filled and the proxies dialled with what held at the start.
    fixed: &[
        "limits.pool_connections_per_proxy",
        "limits.proxies_max",
        "limits.spool_bytes_max",
    ],
};

/// Bounds on what the agent holds, waits for and accepts. The unit is the last word of each name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Live sessions at one time.
    pub sessions_max: usize,
    /// Connections that have been dialled back and whose client is not yet authenticated.
    pub handshakes_max: usize,
    /// From the dial-back to a finished handshake, and again for the `iap/1` hello.
    pub handshake_seconds_max: u64,
    /// Bytes of a ClientHello, all its records together.
    pub client_hello_bytes_max: usize,
    /// Bytes of the `iap/1` hello frame.
    pub hello_frame_bytes_max: usize,
    /// Connecting to a proxy, for control and for data.
    pub dial_seconds_max: u64,
    /// How long a proxy may take to answer by QUIC before TLS over TCP is tried.
    pub quic_handshake_seconds_max: u64,
    /// How long a control connection over TCP goes on before QUIC is tried again.
    pub quic_retry_seconds: u64,
    /// With `data = "auto"`: how long one way to fetch a client may take before the next is tried.
    pub data_try_milliseconds_max: u64,
    /// How long after a fallback the cheaper ways are tried again.
    pub data_retry_seconds: u64,
    /// Connections dialled in advance to each proxy; 0: none.
    pub pool_connections_per_proxy: usize,
    /// Connecting to a backend.
    pub backend_dial_seconds_max: u64,
    /// Bytes of audit records that wait for the auth server's acknowledgement.
    pub spool_bytes_max: u64,
    /// Bytes of recordings that wait for the auth server.
    pub recordings_bytes_max: u64,
    /// How long a session of a service with `audit = "required"` stays paused when the spool is full.
    pub spool_full_pause_seconds_max: u64,
    /// How long a session of a service with `audit = "remote"` waits for the auth server to have its start record.
    pub remote_audit_seconds_max: u64,
    /// Age of the newest beat beyond which no new session is allowed.
    pub lock_feed_seconds_max: u64,
    /// How long live sessions go on once the feed is too old or the snapshot has expired.
    pub outage_grace_seconds_max: u64,
    /// How long live sessions may go on after SIGTERM.
    pub drain_seconds_max: u64,
    /// Different (user, service, code) denials that are counted apart in one minute.
    pub denials_per_minute_max: usize,
    /// Proxies the agent keeps a control connection to.
    pub proxies_max: usize,
    /// How long a session waits for a client that lost its connection; 0: not at all.
    pub resume_seconds_max: u64,
    /// Bytes that may be on the way to a client, or from it, unacknowledged.
    pub resume_window_bytes: usize,
    /// Bytes that all sessions together keep for clients that may come back.
    pub resume_bytes_max: usize,
    /// The same for all sessions of one person.
    pub resume_bytes_per_user_max: usize,
    /// Those who watch live sessions at one time; 0: nobody may.
    pub watchers_max: usize,
    /// Those who watch one session.
    pub watchers_per_session_max: usize,
    /// Bytes of a recording that wait for a watcher; whoever is further behind misses what is between.
    pub watcher_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions_max: 10_000,
            handshakes_max: 256,
            handshake_seconds_max: 5,
            client_hello_bytes_max: 16 * 1024,
            hello_frame_bytes_max: 16 * 1024,
            dial_seconds_max: 5,
            quic_handshake_seconds_max: 3,
            quic_retry_seconds: 300,
            data_try_milliseconds_max: 1_500,
            data_retry_seconds: 300,
            pool_connections_per_proxy: 4,
            backend_dial_seconds_max: 10,
            spool_bytes_max: 1024 * 1024 * 1024,
            recordings_bytes_max: 4 * 1024 * 1024 * 1024,
            spool_full_pause_seconds_max: 5,
            remote_audit_seconds_max: 5,
            lock_feed_seconds_max: 4 * 60 * 60,
            outage_grace_seconds_max: 10 * 60,
            drain_seconds_max: 5,
            denials_per_minute_max: 1024,
            proxies_max: 64,
            resume_seconds_max: 300,
            resume_window_bytes: 4 * 1024 * 1024,
            resume_bytes_max: 256 * 1024 * 1024,
            resume_bytes_per_user_max: 64 * 1024 * 1024,
            watchers_max: 64,
            watchers_per_session_max: 8,
            watcher_bytes_max: 1024 * 1024,
        }
    }
}

impl Limits {
    /// What is in force once these limits are taken over by an agent that runs with `held`; see [`LIVE_KEYS`].
    #[must_use]
    pub fn taken_over(self, held: &Self) -> Self {
        Self {
            pool_connections_per_proxy: held.pool_connections_per_proxy,
            proxies_max: held.proxies_max,
            spool_bytes_max: held.spool_bytes_max,
            ..self
        }
    }

    /// `handshake_seconds_max` as a duration.
    #[must_use]
    pub fn handshake(&self) -> Duration {
        Duration::from_secs(self.handshake_seconds_max)
    }

    /// `dial_seconds_max` as a duration.
    #[must_use]
    pub fn dial(&self) -> Duration {
        Duration::from_secs(self.dial_seconds_max)
    }

    /// `quic_handshake_seconds_max` as a duration.
    #[must_use]
    pub fn quic_handshake(&self) -> Duration {
        Duration::from_secs(self.quic_handshake_seconds_max)
    }

    /// `quic_retry_seconds` as a duration.
    #[must_use]
    pub fn quic_retry(&self) -> Duration {
        Duration::from_secs(self.quic_retry_seconds)
    }

    /// `data_try_milliseconds_max` as a duration.
    #[must_use]
    pub fn data_try(&self) -> Duration {
        Duration::from_millis(self.data_try_milliseconds_max)
    }

    /// `data_retry_seconds` as a duration.
    #[must_use]
    pub fn data_retry(&self) -> Duration {
        Duration::from_secs(self.data_retry_seconds)
    }

    /// `backend_dial_seconds_max` as a duration.
    #[must_use]
    pub fn backend_dial(&self) -> Duration {
        Duration::from_secs(self.backend_dial_seconds_max)
    }

    /// `spool_full_pause_seconds_max` as a duration.
    #[must_use]
    pub fn spool_full_pause(&self) -> Duration {
        Duration::from_secs(self.spool_full_pause_seconds_max)
    }

    /// `remote_audit_seconds_max` as a duration.
    #[must_use]
    pub fn remote_audit(&self) -> Duration {
        Duration::from_secs(self.remote_audit_seconds_max)
    }

    /// `lock_feed_seconds_max` as a duration.
    #[must_use]
    pub fn lock_feed(&self) -> Duration {
        Duration::from_secs(self.lock_feed_seconds_max)
    }

    /// `outage_grace_seconds_max` as a duration.
    #[must_use]
    pub fn outage_grace(&self) -> Duration {
        Duration::from_secs(self.outage_grace_seconds_max)
    }

    /// `drain_seconds_max` as a duration.
    #[must_use]
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds_max)
    }

    /// What is wrong with the values, as (key, what is allowed).
    pub(crate) fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let checks = [
            (self.sessions_max == 0, "limits.sessions_max", "at least 1"),
            (
                self.resume_seconds_max > 86_400,
                "limits.resume_seconds_max",
                "0 to 86400",
            ),
            (
                !(WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX).contains(&self.resume_window_bytes),
                "limits.resume_window_bytes",
                "65536 to 67108864",
            ),
            (self.handshakes_max == 0, "limits.handshakes_max", "at least 1"),
            (
                self.handshake_seconds_max == 0,
                "limits.handshake_seconds_max",
                "at least 1",
            ),
            (
                !(512..=65_536).contains(&self.client_hello_bytes_max),
                "limits.client_hello_bytes_max",
                "512 to 65536",
            ),
            (
                !(64..=16_384).contains(&self.hello_frame_bytes_max),
                "limits.hello_frame_bytes_max",
                "64 to 16384",
            ),
            (
                self.dial_seconds_max == 0,
                "limits.dial_seconds_max",
                "at least 1",
            ),
            (
                !(1..=30).contains(&self.quic_handshake_seconds_max),
                "limits.quic_handshake_seconds_max",
                "1 to 30",
            ),
            (
                self.quic_retry_seconds == 0,
                "limits.quic_retry_seconds",
                "at least 1",
            ),
            (
                !(100..=10_000).contains(&self.data_try_milliseconds_max),
                "limits.data_try_milliseconds_max",
                "100 to 10000",
            ),
            (
                self.data_retry_seconds == 0,
                "limits.data_retry_seconds",
                "at least 1",
            ),
            (
                self.pool_connections_per_proxy > 256,
                "limits.pool_connections_per_proxy",
                "0 to 256",
            ),
            (
                self.backend_dial_seconds_max == 0,
                "limits.backend_dial_seconds_max",
                "at least 1",
            ),
            (
                self.spool_bytes_max < 64 * 1024,
                "limits.spool_bytes_max",
                "at least 65536",
            ),
            (
                self.recordings_bytes_max < 1024 * 1024,
                "limits.recordings_bytes_max",
                "at least 1048576",
            ),
            (
                self.remote_audit_seconds_max == 0,
                "limits.remote_audit_seconds_max",
                "at least 1",
            ),
            (
                self.lock_feed_seconds_max < 30,
                "limits.lock_feed_seconds_max",
                "at least 30",
            ),
            (
                self.denials_per_minute_max == 0,
                "limits.denials_per_minute_max",
                "at least 1",
            ),
            (self.proxies_max == 0, "limits.proxies_max", "at least 1"),
            (
                !(LINE_BYTES_MAX..=64 * 1024 * 1024).contains(&self.watcher_bytes_max),
                "limits.watcher_bytes_max",
                "262144 to 67108864",
            ),
        ];
        checks
            .into_iter()
            .filter(|(wrong, _, _)| *wrong)
            .map(|(_, key, allowed)| (key, allowed))
            .collect()
    }
}
