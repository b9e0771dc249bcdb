//! The client's side of a session, before bytes flow: what it is told, in the way it understands.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use iap_identity::{ClusterName, ConnectionId, LoginName, ServerName, SessionId, TraceId};
use iap_postgres::Startup;
use iap_tunnel::Status;
use iap_tunnel::resume::ResumeOffer;

use super::farewell;
use super::postgres;
use super::stream::SessionStream;
use crate::control::Link;
use crate::dialback::{ClientStream, say_last, write_status};
use crate::session::{Live, Resumptions, SessionFacts, Started};

/// The client's stream.
#[derive(Debug)]
pub struct Client {
    stream: ClientStream,
    speech: Speech,
}

/// Where a client may come back, and the proxy that is to know that it can.
#[derive(Debug)]
pub(crate) struct Returning {
    pub(crate) resumptions: Resumptions,
    pub(crate) link: Link,
    pub(crate) connection_id: ConnectionId,
}

/// What it understands before bytes flow.
#[derive(Debug)]
enum Speech {
    /// `iap/1`, and it waits for its status, with the trace that is recorded.
    Framed {
        trace: Option<TraceId>,
        /// If it may come back.
        returning: Option<Box<Returning>>,
    },
    /// PostgreSQL, and it has said what it wants.
    Started {
        startup: Box<Startup>,
        session: SessionId,
        patience: Duration,
    },
    /// PostgreSQL, so that it can be answered once it has begun.
    Postgres { session: SessionId, patience: Duration },
    /// The backend's bytes alone.
    Bytes,
}

impl Client {
    /// A client that speaks `iap/1`, or `iap-resume/1` if it may come back, and waits for its status, which names the trace
    /// where one is recorded.
    #[must_use]
    pub(crate) fn framed(stream: ClientStream, trace: Option<TraceId>, returning: Option<Returning>) -> Self {
        let returning = returning.map(Box::new);
        Self {
            stream,
            speech: Speech::Framed { trace, returning },
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

    /// A client of a PostgreSQL service that is inspected, which waits for the answer to its startup message.
    pub(crate) fn started(
        stream: ClientStream,
        startup: Box<Startup>,
        session: SessionId,
        patience: Duration,
    ) -> Self {
        Self {
            stream,
            speech: Speech::Started {
                startup,
                session,
                patience,
            },
        }
    }

    /// Tells the client that the session runs, where it can be told before it has said what it wants; or what it has said.
    ///
    /// # Errors
    /// When the client has gone.
    pub(crate) async fn postgres_started(
        self,
        started: &Started,
        live: &Arc<Live>,
        cluster: &ClusterName,
    ) -> io::Result<(SessionStream, Option<Startup>)> {
        match self.speech {
            Speech::Started { startup, .. } => Ok((SessionStream::Direct(self.stream), Some(*startup))),
            Speech::Framed { .. } | Speech::Postgres { .. } | Speech::Bytes => {
                Ok((self.granted(started, live, cluster).await?, None))
            }
        }
    }

    /// Tells the client that the session runs; what follows is the backend's.
    ///
    /// # Errors
    /// When the client has gone.
    pub(crate) async fn granted(
        self,
        started: &Started,
        live: &Arc<Live>,
        cluster: &ClusterName,
    ) -> io::Result<SessionStream> {
        self.told(started.facts(), started.grant().login(), live, cluster)
            .await
    }

    async fn told(
        self,
        facts: &SessionFacts,
        login: Option<&LoginName>,
        live: &Arc<Live>,
        cluster: &ClusterName,
    ) -> io::Result<SessionStream> {
        let Speech::Framed { trace, returning } = self.speech else {
            return Ok(SessionStream::Direct(self.stream));
        };
        let granted = |resume: Option<ResumeOffer>| Status::Granted {
            session_id: facts.session_id,
            login: login.cloned(),
            protocol: facts.protocol.as_str().to_owned(),
            resume_name: resume
                .as_ref()
                .map(|_| ServerName::Agent(facts.agent).host(cluster)),
            resume,
            trace_id: trace,
        };
        let mut stream = self.stream;
        let Some(returning) = returning else {
            write_status(&mut stream, &granted(None)).await?;
            return Ok(SessionStream::Direct(stream));
        };
        let offer = returning.resumptions.offer()?;
        write_status(&mut stream, &granted(Some(offer.clone()))).await?;
        let stream = returning.resumptions.begin(live, &offer, stream)?;
        returning.link.resumable(returning.connection_id);
        Ok(SessionStream::Resumable(Box::new(stream)))
    }

    /// Tells the client that it is heard, before it is known as whom it wants in; what follows is between it and this
    /// agent.
    ///
    /// # Errors
    /// When the client has gone.
    pub(crate) async fn heard(
        self,
        facts: &SessionFacts,
        live: &Arc<Live>,
        cluster: &ClusterName,
    ) -> io::Result<SessionStream> {
        self.told(facts, None, live, cluster).await
    }

    /// Tells the client, where it can be told, that there will be no session, and closes.
    pub async fn unavailable(mut self, text: &str, retry: bool) {
        match self.speech {
            Speech::Framed { trace, .. } => {
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
            Speech::Started {
                session, patience, ..
            } => {
                let fatal = farewell::unavailable(text, session);
                Box::pin(postgres::say_fatal(&mut self.stream, &fatal, patience)).await;
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
