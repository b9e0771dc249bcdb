//! The client's side of a session, before bytes flow: what it is told, in the way it understands.

use std::io;
use std::time::Duration;

use iap_identity::{SessionId, TraceId};
use iap_tunnel::Status;

use super::farewell;
use crate::dialback::{ClientStream, say_last, write_status};
use crate::session::Started;

/// The client's stream.
#[derive(Debug)]
pub struct Client {
    stream: ClientStream,
    speech: Speech,
}

/// What it understands before bytes flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    /// `iap/1`, and it waits for its status, with the trace that is recorded.
    Framed { trace: Option<TraceId> },
    /// PostgreSQL, so that it can be answered once it has begun.
    Postgres { session: SessionId, patience: Duration },
    /// The backend's bytes alone.
    Bytes,
}

impl Client {
    /// A client that speaks `iap/1` and waits for its status, which names the trace where one is recorded.
    #[must_use]
    pub fn framed(stream: ClientStream, trace: Option<TraceId>) -> Self {
        Self {
            stream,
            speech: Speech::Framed { trace },
        }
    }

    /// A client that sends and expects the backend's bytes alone.
    #[must_use]
    pub fn raw(stream: ClientStream) -> Self {
        Self {
            stream,
            speech: Speech::Bytes,
        }
    }

    /// The same for a PostgreSQL service; `patience` is for its startup message, should it have to be answered here.
    #[must_use]
    pub fn postgres(stream: ClientStream, session: SessionId, patience: Duration) -> Self {
        Self {
            stream,
            speech: Speech::Postgres { session, patience },
        }
    }

    /// Tells the client that the session runs; what follows is the backend's.
    ///
    /// # Errors
    /// When the client has gone.
    pub async fn granted(mut self, started: &Started) -> io::Result<ClientStream> {
        if let Speech::Framed { trace } = self.speech {
            let status = Status::Granted {
                session_id: started.session_id(),
                login: started.grant().login().cloned(),
                protocol: started.facts().protocol.as_str().to_owned(),
                resume_name: None,
                trace_id: trace,
            };
            write_status(&mut self.stream, &status).await?;
        }
        Ok(self.stream)
    }

    /// Tells the client, where it can be told, that there will be no session, and closes.
    pub async fn unavailable(mut self, text: &str, retry: bool) {
        match self.speech {
            Speech::Framed { trace } => {
                say_last(
                    &mut self.stream,
                    &Status::Unavailable {
                        text: text.to_owned(),
                        retry,
                        trace_id: trace,
                    },
                )
                .await;
            }
            Speech::Postgres { session, patience } => {
                let fatal = farewell::unavailable(text, session);
                // Boxed, because every session would hold its size for what hardly ever happens.
                Box::pin(farewell::tell_postgres(&mut self.stream, &fatal, patience)).await;
            }
            Speech::Bytes => {
                let _ = tokio::io::AsyncWriteExt::shutdown(&mut self.stream).await;
            }
        }
    }
}
