//! The client's side of a session, before bytes flow: what it is told, in the way it understands.

use std::io;

use iap_tunnel::Status;

use crate::dialback::{ClientStream, say_last, write_status};
use crate::session::Started;

/// The client's stream.
#[derive(Debug)]
pub struct Client {
    stream: ClientStream,
    framed: bool,
}

impl Client {
    /// A client that speaks `iap/1` and waits for its status.
    #[must_use]
    pub fn framed(stream: ClientStream) -> Self {
        Self { stream, framed: true }
    }

    /// A client that sends and expects the backend's bytes alone.
    #[must_use]
    pub fn raw(stream: ClientStream) -> Self {
        Self {
            stream,
            framed: false,
        }
    }

    /// Tells the client that the session runs; what follows is the backend's.
    ///
    /// # Errors
    /// When the client has gone.
    pub async fn granted(mut self, started: &Started) -> io::Result<ClientStream> {
        if self.framed {
            let status = Status::Granted {
                session_id: started.session_id(),
                login: started.grant().login().cloned(),
                protocol: started.facts().protocol.as_str().to_owned(),
                resume_name: None,
            };
            write_status(&mut self.stream, &status).await?;
        }
        Ok(self.stream)
    }

    /// Tells the client, where it can be told, that there will be no session, and closes.
    pub async fn unavailable(mut self, text: &str, retry: bool) {
        if self.framed {
            say_last(
                &mut self.stream,
                &Status::Unavailable {
                    text: text.to_owned(),
                    retry,
                },
            )
            .await;
        } else {
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut self.stream).await;
        }
    }
}
