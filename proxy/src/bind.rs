//! Binding the public addresses: each on TCP, and on UDP at the same port where QUIC is on.

use std::net::SocketAddr;
use std::sync::Arc;

use iap_runtime::inherited::Inherited;
use iap_runtime::net;
use iap_runtime::quic::{ListenLimits, Listener};
use iap_runtime::tls;
use tokio::net::TcpListener;
use zeroize::Zeroizing;

use crate::app::AppError;
use crate::config::Config;
use crate::front::door::Door;

/// How often a port is chosen anew when the system chose one for TCP that is taken on UDP.
const CHOICES_MAX: usize = 16;

/// One public address.
pub(crate) struct Listeners {
    pub(crate) tcp: TcpListener,
    pub(crate) quic: Option<Listener>,
}

pub(crate) struct Binder {
    addresses: Vec<SocketAddr>,
    quic: Option<Quic>,
}

struct Quic {
    secret: Zeroizing<Vec<u8>>,
    template: Arc<tls::ServerConfig>,
    limits: ListenLimits,
}

impl Binder {
    /// `secret` outlives the process, so that agents notice a restart at once.
    pub(crate) fn new(config: &Config, door: &Door, secret: Vec<u8>) -> Result<Self, AppError> {
        let secret = Zeroizing::new(secret);
        let quic = if config.quic.enabled {
            let template = door.control.quic_template();
            Some(Quic {
                secret,
                template: template.map_err(|error| AppError::Quic(error.to_string()))?,
                limits: ListenLimits {
                    incoming_max: config.limits.waiting_connections_max,
                    streams_max: config.limits.quic_streams_max(),
                },
            })
        } else {
            None
        };
        Ok(Self {
            addresses: config.listen.clone(),
            quic,
        })
    }

    /// Every address: on the sockets that a socket unit passed, or bound here where it passed none for an address.
    pub(crate) fn bind_all(&self) -> Result<Vec<Listeners>, AppError> {
        let mut inherited = Inherited::from_environment().map_err(AppError::Inherited)?;
        let mut all = Vec::with_capacity(self.addresses.len());
        for address in &self.addresses {
            all.push(self.bind(*address, &mut inherited)?);
        }
        match inherited.left_over() {
            Some(address) => Err(AppError::NotConfigured { address }),
            None => Ok(all),
        }
    }

    fn bind(&self, address: SocketAddr, inherited: &mut Inherited) -> Result<Listeners, AppError> {
        let choices = if address.port() == 0 { CHOICES_MAX } else { 1 };
        let mut choice = 1;
        loop {
            match self.bind_once(address, inherited) {
                Err(AppError::ListenUdp { .. }) if choice < choices => choice += 1,
                bound => return bound,
            }
        }
    }

    fn bind_once(&self, address: SocketAddr, inherited: &mut Inherited) -> Result<Listeners, AppError> {
        let refused = |source| AppError::Listen { address, source };
        let tcp = match inherited.take_tcp(address) {
            Some(passed) => TcpListener::from_std(passed).map_err(refused)?,
            None => net::listen(address).map_err(refused)?,
        };
        let address = tcp.local_addr().map_err(refused)?;
        let quic = match &self.quic {
            None => None,
            Some(quic) => {
                let template = Arc::clone(&quic.template);
                let bound = match inherited.take_udp(address) {
                    Some(passed) => Listener::on(passed, &quic.secret, template, quic.limits),
                    None => Listener::bind(address, &quic.secret, template, quic.limits),
                };
                Some(bound.map_err(|source| AppError::ListenUdp { address, source })?)
            }
        };
        Ok(Listeners { tcp, quic })
    }
}
