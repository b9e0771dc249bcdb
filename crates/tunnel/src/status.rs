//! The two frames of ALPN `iap/1`: the client's hello and the agent's status, after which the stream carries
//! the backend's bytes. Each is a u32 big-endian length of at most 16 KiB and UTF-8 JSON; unknown keys are
//! ignored.

use iap_identity::{ConnectId, LoginName, SessionId, TraceId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::frame::{self, FrameError};
use crate::resume::{ResumeOffer, ResumeRequest, Ticket};

/// The most one `iap/1` frame may hold, its length not counted.
pub const FRAME_BYTES_MAX: usize = 16 * 1024;

/// The version a hello names.
pub const HELLO_VERSION: u32 = 1;

/// What a client says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`HELLO_VERSION`].
    pub version: u32,
    /// Shared by all sessions of one `connect`.
    pub connect_id: ConnectId,
    /// The login asked for at the backend; without one the service's rules choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<LoginName>,
    /// The database asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// By `iap-resume/1` at an agent's own name: the session to go on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<ResumeRequest>,
}

impl Hello {
    /// The frame, its length included.
    pub fn encode(&self) -> Result<Vec<u8>, StatusError> {
        encode(self)
    }

    /// Reads a frame's payload.
    pub fn decode(payload: &[u8]) -> Result<Self, StatusError> {
        let hello: Self = decode(payload)?;
        if hello.version != HELLO_VERSION {
            return Err(StatusError::Version {
                version: hello.version,
            });
        }
        Ok(hello)
    }
}

/// What a new login would have to bring for the same question to be answered with yes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StepUp {
    /// Several factors; without it and a class, fresh proof is enough.
    #[serde(default)]
    pub mfa: bool,
    /// An authentication context class (OpenID Connect Core §2, `acr`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acr: Option<String>,
}

impl StepUp {
    /// The command that logs in so.
    #[must_use]
    pub fn command(&self) -> String {
        let mut command = "iapctl login --fresh".to_owned();
        if self.mfa {
            command += " --mfa";
        }
        if let Some(acr) = &self.acr {
            let quoted = acr.replace('\'', r"'\''");
            command += &format!(" --acr '{quoted}'");
        }
        command
    }
}

/// What an agent answers, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Status {
    /// The session runs; what follows is the backend's.
    Granted {
        /// The id in the record.
        session_id: SessionId,
        /// The login the session uses at the backend, where the agent knows one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        login: Option<LoginName>,
        /// The service's protocol: `tcp`, `postgres`, `ssh`, `http`.
        protocol: String,
        /// The server name a resume dials; absent where sessions cannot resume.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume_name: Option<String>,
        /// By `iap-resume/1`: how it may go on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume: Option<ResumeOffer>,
        /// The trace that the agent records this in, where it does (docs/tracing.md).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trace_id: Option<TraceId>,
    },
    /// The session goes on; what follows are the frames of `iap-resume/1`.
    Resumed {
        /// Where the agent stands: it has passed on every byte before.
        position: u64,
        /// For the next time. Anything the client sends behind it shows that it has this one, and the one before is void.
        ticket: Ticket,
        /// The trace that the agent records this in, where it does (docs/tracing.md).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trace_id: Option<TraceId>,
    },
    /// By `iap-watch/1`: the record says who watches, and what the session shows follows.
    Watching {
        /// Which session.
        session_id: SessionId,
        /// Whose.
        user: String,
        /// On which service.
        service: String,
        /// As which login.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        login: Option<LoginName>,
        /// The trace that the agent records this in, where it does (docs/tracing.md).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trace_id: Option<TraceId>,
    },
    /// Policy, or a lock, says no.
    Denied {
        /// A stable word for programs.
        code: String,
        /// A sentence for people.
        text: String,
        /// Whom to ask, from the service's record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        contact: Option<String>,
        /// What the refusal is called in the record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_id: Option<SessionId>,
        /// Code `step_up`: which login would change the answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step_up: Option<StepUp>,
        /// The trace that the agent records this in, where it does (docs/tracing.md).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trace_id: Option<TraceId>,
    },
    /// The certificate's groups are older than the policy that names them: renew it and ask once more.
    Renew,
    /// Not a matter of permission: the backend, the disk, the agent.
    Unavailable {
        /// A sentence for people.
        text: String,
        /// Whether asking again soon may help.
        #[serde(default)]
        retry: bool,
        /// The trace that the agent records this in, where it does (docs/tracing.md).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trace_id: Option<TraceId>,
    },
}

impl Status {
    /// The frame, its length included.
    pub fn encode(&self) -> Result<Vec<u8>, StatusError> {
        encode(self)
    }

    /// Reads a frame's payload.
    pub fn decode(payload: &[u8]) -> Result<Self, StatusError> {
        decode(payload)
    }
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, StatusError> {
    let json = serde_json::to_vec(message).map_err(StatusError::Json)?;
    Ok(frame::encode(&json, FRAME_BYTES_MAX)?)
}

fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, StatusError> {
    if payload.len() > FRAME_BYTES_MAX {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        return Err(FrameError::TooLong {
            length,
            frame_bytes_max: FRAME_BYTES_MAX,
        }
        .into());
    }
    serde_json::from_slice(payload).map_err(StatusError::Json)
}

/// Why a frame of `iap/1` cannot be built or read.
#[derive(Debug, Error)]
pub enum StatusError {
    /// Beyond [`FRAME_BYTES_MAX`].
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Not the JSON that belongs here.
    #[error("the iap/1 frame is not the JSON expected: {0}")]
    Json(#[source] serde_json::Error),
    /// A client newer than this agent.
    #[error("iap hello version {version} is not supported, only {HELLO_VERSION}")]
    Version {
        /// What the client named.
        version: u32,
    },
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;
    use crate::LengthPrefixed;
    use uuid::Uuid;

    const ID: Uuid = Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0001);

    fn payload(frame: &[u8]) -> Vec<u8> {
        let mut decoder = LengthPrefixed::new(FRAME_BYTES_MAX);
        decoder.push(frame);
        decoder.next_frame().unwrap().unwrap()
    }

    #[test]
    fn a_hello_survives_the_wire_with_and_without_its_options() {
        let bare = Hello {
            version: 1,
            connect_id: ConnectId::from_uuid(ID),
            login: None,
            database: None,
            resume: None,
        };
        let full = Hello {
            login: Some(LoginName::parse("readonly").unwrap()),
            ..bare.clone()
        };
        let again = Hello {
            resume: Some(ResumeRequest {
                session_id: SessionId::from_uuid(ID),
                ticket: Ticket::from_random([7; 32]),
                position: u64::MAX,
            }),
            ..bare.clone()
        };
        for hello in [bare, full, again] {
            assert_eq!(Hello::decode(&payload(&hello.encode().unwrap())).unwrap(), hello);
        }
    }

    #[test]
    fn a_hello_with_unknown_keys_is_read_and_one_of_another_version_is_not() {
        let known = format!(r#"{{"version":1,"connect_id":"{ID}","colour":"green"}}"#);
        assert!(Hello::decode(known.as_bytes()).is_ok());
        let newer = format!(r#"{{"version":2,"connect_id":"{ID}"}}"#);
        assert!(matches!(
            Hello::decode(newer.as_bytes()),
            Err(StatusError::Version { version: 2 })
        ));
    }

    #[test]
    fn a_ticket_is_hexadecimal_and_nothing_else() {
        let hello = |ticket: &str| {
            format!(
                r#"{{"version":1,"connect_id":"{ID}","resume":{{"session_id":"{ID}","ticket":"{ticket}","position":0}}}}"#
            )
        };
        assert!(Hello::decode(hello(&"0f".repeat(32)).as_bytes()).is_ok());
        for bad in [
            "",
            "0f",
            &"0f".repeat(33),
            &"+f".repeat(32),
            &"0ö".repeat(32),
            &"x".repeat(64),
        ] {
            assert!(Hello::decode(hello(bad).as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hello_with_a_login_that_no_backend_has_is_refused() {
        let hello = format!(r#"{{"version":1,"connect_id":"{ID}","login":"a\u0000b"}}"#);
        assert!(matches!(
            Hello::decode(hello.as_bytes()),
            Err(StatusError::Json(_))
        ));
    }

    #[test]
    fn each_status_is_tagged_with_its_documented_word() {
        let granted = Status::Granted {
            session_id: SessionId::from_uuid(ID),
            login: None,
            protocol: "tcp".into(),
            resume_name: None,
            resume: None,
            trace_id: Some(TraceId::parse(&ID.simple().to_string()).unwrap()),
        };
        let denied = Status::Denied {
            code: "no_rule_matches".into(),
            text: "No.".into(),
            contact: None,
            session_id: None,
            step_up: None,
            trace_id: None,
        };
        let unavailable = Status::Unavailable {
            text: "The backend is down.".into(),
            retry: true,
            trace_id: None,
        };
        let resumed = Status::Resumed {
            position: 1,
            ticket: Ticket::from_random([7; 32]),
            trace_id: None,
        };
        let watching = Status::Watching {
            session_id: SessionId::from_uuid(ID),
            user: "alice@example.com".into(),
            service: "shell".into(),
            login: None,
            trace_id: None,
        };
        let words = ["granted", "resumed", "denied", "renew", "unavailable", "watching"];
        for (status, word) in [granted, resumed, denied, Status::Renew, unavailable, watching]
            .into_iter()
            .zip(words)
        {
            let payload = payload(&status.encode().unwrap());
            let json: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            assert_eq!(json["status"], word);
            assert_eq!(Status::decode(&payload).unwrap(), status);
        }
    }

    /// A client that knows nothing of `step_up` reads the keys it knows.
    #[test]
    fn a_denial_that_a_login_would_change_is_a_denial_to_older_clients() {
        #[derive(Deserialize)]
        #[serde(tag = "status", rename_all = "snake_case")]
        enum Older {
            Denied { code: String, text: String },
        }
        let status = Status::Denied {
            code: "step_up".into(),
            text: "To reach db, log in anew.".into(),
            contact: None,
            session_id: None,
            step_up: Some(StepUp {
                mfa: true,
                acr: Some("it's".into()),
            }),
            trace_id: None,
        };
        let payload = payload(&status.encode().unwrap());
        let Older::Denied { code, text } = serde_json::from_slice(&payload).unwrap();
        assert_eq!(
            (code.as_str(), text.as_str()),
            ("step_up", "To reach db, log in anew.")
        );
        let Status::Denied { step_up, .. } = Status::decode(&payload).unwrap() else {
            panic!("{status:?}")
        };
        let command = step_up.unwrap().command();
        assert_eq!(command, r"iapctl login --fresh --mfa --acr 'it'\''s'");
    }

    /// Neither end has to know of traces.
    #[test]
    fn a_trace_id_is_left_out_where_there_is_none_and_refused_where_it_is_none() {
        let granted = |trace: &str| {
            format!(r#"{{"status":"granted","session_id":"{ID}","protocol":"tcp"{trace}}}"#).into_bytes()
        };
        let bare = Status::decode(&granted("")).unwrap();
        assert!(matches!(bare, Status::Granted { trace_id: None, .. }));
        assert!(
            !String::from_utf8(bare.encode().unwrap())
                .unwrap()
                .contains("trace_id")
        );
        let traced = granted(r#","trace_id":"01a203e46fd674f098deeb8bb6cd0fec""#);
        assert!(matches!(
            Status::decode(&traced),
            Ok(Status::Granted {
                trace_id: Some(_),
                ..
            })
        ));
        let nonsense = granted(r#","trace_id":"../etc""#);
        assert!(matches!(Status::decode(&nonsense), Err(StatusError::Json(_))));
    }

    #[test]
    fn a_status_that_exceeds_the_frame_is_refused_at_both_ends() {
        let long = Status::Unavailable {
            text: "x".repeat(FRAME_BYTES_MAX),
            retry: false,
            trace_id: None,
        };
        assert!(matches!(long.encode(), Err(StatusError::Frame(_))));
        assert!(matches!(
            Status::decode(&vec![b' '; FRAME_BYTES_MAX + 1]),
            Err(StatusError::Frame(_))
        ));
    }
}
