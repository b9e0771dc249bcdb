//! The id that spans of different programs share (W3C Trace Context), made of an id the plane has anyway: a
//! connection's for a session, a login's for a login. Nobody hands a trace id from one program to another, so nobody
//! from outside can choose one.

use std::fmt;

use uuid::Uuid;

use crate::ids::{ConnectionId, LoginId};
use crate::names::NameError;
use crate::text::{hex, text_traits};

const KIND: &str = "trace id";

/// A trace's id (W3C Trace Context §3.2.2.3): 16 bytes, not all of them zero. Text is 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId(Uuid);

/// A span's id (W3C Trace Context §3.2.2.4): 8 bytes, not all of them zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId([u8; 8]);

/// Spans whose ids follow from their trace's, so that programs can refer to each other's without having been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// `iapctl`: from dialling to the end.
    Client,
    /// The proxy: from accepting the connection to its end.
    Proxy,
    /// The agent: from the proxy's `Open` to the session's end.
    Agent,
    /// The auth server: from the start of a login to its certificate.
    Login,
}

/// Which share of traces is recorded. The id decides, so that every program that knows it decides alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleRatio(f64);

/// Not a share.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{ratio} is no share of traces: write a number from 0 (none) to 1 (all)")]
pub struct SampleRatioError {
    ratio: f64,
}

impl TraceId {
    /// The trace of a connection that a proxy asks an agent to fetch. None for the nil UUID, which is no trace id.
    #[must_use]
    pub fn of_connection(id: &ConnectionId) -> Option<Self> {
        Self::of(id.as_uuid())
    }

    /// The trace of a login. None for the nil UUID.
    #[must_use]
    pub fn of_login(id: &LoginId) -> Option<Self> {
        Self::of(id.as_uuid())
    }

    fn of(id: &Uuid) -> Option<Self> {
        (!id.is_nil()).then_some(Self(*id))
    }

    /// Reads 32 lower-case hex digits.
    ///
    /// # Errors
    /// When the text is anything else, or all zeros.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let refused = || NameError::new(KIND, text, "is not 32 lower-case hex digits, one of them not 0");
        let id = Uuid::try_parse(text).map_err(|_| refused())?;
        match Self::of(&id) {
            Some(trace) if trace.to_string() == text => Ok(trace),
            Some(_) | None => Err(refused()),
        }
    }

    /// The 16 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id of the trace's span that others refer to: the last eight bytes, which differ from trace to trace and, in
    /// a UUID, are never zero (RFC 9562 §4.1), with the anchor's number in their lowest bits.
    #[must_use]
    pub fn span(&self, anchor: Anchor) -> SpanId {
        let (_, low) = self.0.as_u64_pair();
        let number = match anchor {
            Anchor::Client => 1,
            Anchor::Proxy => 2,
            Anchor::Agent => 3,
            Anchor::Login => 4,
        };
        SpanId::from_bytes((low ^ number).to_be_bytes()).unwrap_or(SpanId([0xff; 8]))
    }
}

impl SpanId {
    /// From random bytes. None when all are zero.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }

    /// The 8 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl SampleRatio {
    /// All traces.
    pub const ALL: Self = Self(1.0);

    /// From a number from 0 to 1.
    ///
    /// # Errors
    /// When it is another.
    pub fn new(ratio: f64) -> Result<Self, SampleRatioError> {
        match (0.0..=1.0).contains(&ratio) {
            true => Ok(Self(ratio)),
            false => Err(SampleRatioError { ratio }),
        }
    }

    /// Whether the trace is recorded. Its last 32 bits are compared with the share, the larger ones being in: these
    /// bits are random even among the UUIDs that one program makes within a millisecond, where others count.
    #[must_use]
    pub fn takes(self, trace: &TraceId) -> bool {
        let (_, low) = trace.0.as_u64_pair();
        let below_one = (low & u64::from(u32::MAX)) as f64 / TWO_TO_32;
        below_one >= 1.0 - self.0
    }
}

const TWO_TO_32: f64 = 4_294_967_296.0;

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.simple())
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceId({self})")
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpanId({})", hex(&self.0))
    }
}

text_traits!(TraceId, NameError);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn connection(low: u64) -> TraceId {
        let id = Uuid::from_u64_pair(0x01a2_03e4_6fd6_74f0, 0x8000_0000_0000_0000 | low);
        TraceId::of_connection(&ConnectionId::from_uuid(id)).unwrap()
    }

    #[test]
    fn a_traces_id_is_its_connections_without_the_hyphens() {
        let text = "01a203e4-6fd6-74f0-98de-eb8bb6cd0fec";
        let trace = TraceId::of_connection(&ConnectionId::parse(text).unwrap()).unwrap();
        assert_eq!(trace.to_string(), text.replace('-', ""));
        assert_eq!(TraceId::parse(&text.replace('-', "")).unwrap(), trace);
        let login = LoginId::parse(text).unwrap();
        assert_eq!(TraceId::of_login(&login), Some(trace));
    }

    #[test]
    fn what_is_no_trace_id_is_refused() {
        for text in [
            "",
            "01a203e4-6fd6-74f0-98de-eb8bb6cd0fec",
            "01A203E46FD674F098DEEB8BB6CD0FEC",
            "01a203e46fd674f098deeb8bb6cd0fe",
            "00000000000000000000000000000000",
        ] {
            assert!(TraceId::parse(text).is_err(), "{text}");
        }
        assert_eq!(
            TraceId::of_connection(&ConnectionId::from_uuid(Uuid::nil())),
            None
        );
    }

    #[test]
    fn anchors_of_one_trace_differ_and_follow_from_it() {
        let anchors = [Anchor::Client, Anchor::Proxy, Anchor::Agent, Anchor::Login];
        let mut seen = std::collections::BTreeSet::new();
        for low in [0, 1, 0xffff_ffff] {
            let ids = anchors.map(|anchor| connection(low << 8).span(anchor));
            assert_eq!(ids, anchors.map(|anchor| connection(low << 8).span(anchor)));
            seen.extend(ids);
        }
        assert_eq!(seen.len(), 12);
        // Whatever a hostile proxy makes up, no span id is zero.
        let odd = Uuid::from_u64_pair(1, 2);
        let odd = TraceId::of_connection(&ConnectionId::from_uuid(odd)).unwrap();
        assert_ne!(odd.span(Anchor::Proxy).as_bytes(), &[0; 8]);
    }

    #[test]
    fn a_smaller_share_is_part_of_a_larger_one() {
        let shares = [0.0, 0.001, 0.25, 0.5, 1.0].map(|ratio| SampleRatio::new(ratio).unwrap());
        let mut taken = [0_u32; 5];
        for step in 0..10_000_u64 {
            let trace = connection(step.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8);
            let answers = shares.map(|share| share.takes(&trace));
            assert!(answers.is_sorted(), "{answers:?}");
            for (count, answer) in taken.iter_mut().zip(answers) {
                *count += u32::from(answer);
            }
        }
        let [none, thousandth, quarter, half, all] = taken;
        assert_eq!((none, all), (0, 10_000));
        assert!((1..=30).contains(&thousandth), "{thousandth}");
        assert!((2_300..=2_700).contains(&quarter), "{quarter}");
        assert!((4_700..=5_300).contains(&half), "{half}");
    }

    #[test]
    fn what_is_no_share_is_refused() {
        for ratio in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(SampleRatio::new(ratio).is_err(), "{ratio}");
        }
    }
}
