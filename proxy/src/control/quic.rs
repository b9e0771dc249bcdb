//! The same control connection over QUIC: one bidirectional stream, on UDP at the public port.

use std::sync::Arc;
use std::time::Instant;

use iap_runtime::quic::{self, Attempt, Connection, Listener};
use iap_runtime::shutdown::Shutdown;
use iap_runtime::tls::{self, NamedIdentity, PeerVerifier};
use iap_tunnel::{ALPN_CONTROL, ControlWay};

use super::{Agent, ControlDoor, EstablishError, proven_agent};
use crate::admission::{Source, WaitingPlace};
use crate::metrics::Refusal;

impl ControlDoor {
    /// Accepts until the shutdown. Lines are tracked by `shutdown` and outlive this.
    pub(crate) async fn accept_quic(self, listener: Listener, shutdown: Shutdown) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => None,
            };
            let Some(attempt) = accepted else { break };
            let source = Source::of(attempt.address().ip());
            match self.admission.admit(Some(source), Instant::now()) {
                Ok(place) => {
                    // Boxed, here and below: a line lives for hours, and what it began with need not.
                    let attempt = Box::new(attempt);
                    shutdown.spawn(self.clone().serve_quic(attempt, place, shutdown.clone()));
                }
                Err(reason) => {
                    self.metrics.refused(reason);
                    attempt.refuse();
                }
            }
        }
        listener.stop_accepting();
        // The socket carries the lines that are there, for as long as they last.
        self.end.cancelled().await;
    }

    #[expect(
        clippy::manual_async_fn,
        reason = "the future of an async fn holds its arguments twice"
    )]
    fn serve_quic(
        self,
        attempt: Box<Attempt>,
        place: WaitingPlace,
        shutdown: Shutdown,
    ) -> impl Future<Output = ()> {
        async move {
            let address = attempt.address();
            let mut gave_way = std::pin::pin!(place.gave_way());
            let established = tokio::select! {
                established = Box::pin(self.establish_quic(attempt)) => established,
                () = &mut gave_way => return self.metrics.refused(Refusal::GaveWay),
                _ = self.end.cancelled() => return,
            };
            let (agent, connection, stream) = match established {
                Ok(established) => established,
                Err(error) => {
                    tracing::debug!(%address, %error, "no control connection");
                    self.metrics.refused(Refusal::Control);
                    return;
                }
            };
            let id = agent.peer.id;
            let line = Box::pin(self.line(agent, stream, ControlWay::Quic, address, place, shutdown));
            let end = tokio::select! {
                end = line => end,
                never = Box::pin(self.take_streams(&id, &connection)) => match never {},
                () = gave_way => {
                    self.metrics.refused(Refusal::GaveWay);
                    return quic::close(&connection, "another needed its place");
                }
            };
            // Sessions on other streams go on after a line that ended in order, as they do on connections of
            // their own. The connection ends with the last of them.
            if !end.is_orderly() {
                quic::close(&connection, &end.to_string());
            }
        }
    }

    async fn establish_quic(
        &self,
        attempt: Box<Attempt>,
    ) -> Result<(Agent, Connection, quic::Stream), EstablishError> {
        let patience = self.limits.now().control_handshake_seconds_max;
        let verifier = Arc::new(self.verifier());
        let config = self.quic_config(&verifier)?;
        let connection = attempt.accept(config, patience).await?;
        // A client that offers no protocol at all is refused by QUIC itself (RFC 9001 §8.1); see it anyway.
        if quic::protocol(&connection).as_deref() != Some(ALPN_CONTROL.as_bytes()) {
            return Err(EstablishError::Protocol);
        }
        let agent = Agent {
            peer: proven_agent(&verifier)?,
            leaf: quic::peer_certificates(&connection)
                .into_iter()
                .next()
                .ok_or(EstablishError::NotAnAgent)?,
        };
        match tokio::time::timeout(patience, connection.accept_bi()).await {
            Ok(Ok((send, recv))) => Ok((agent, connection, quic::urgent(send, recv))),
            Ok(Err(_)) | Err(_) => Err(EstablishError::NoStream),
        }
    }

    /// As over TCP; there the front has read the server name already.
    pub(crate) fn quic_config(
        &self,
        verifier: &Arc<PeerVerifier>,
    ) -> Result<Arc<tls::ServerConfig>, EstablishError> {
        let identity = NamedIdentity {
            host: self.material.bundle().cluster().proxy_host(),
            material: Arc::clone(&self.material),
        };
        tls::server_config(Arc::new(identity), Arc::clone(verifier) as _, &[ALPN_CONTROL])
            .map_err(|error| EstablishError::Config(error.to_string()))
    }

    /// What the listener needs to know before the first client comes.
    pub(crate) fn quic_template(&self) -> Result<Arc<tls::ServerConfig>, EstablishError> {
        self.quic_config(&Arc::new(self.verifier()))
    }
}
