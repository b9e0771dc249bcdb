//! The gate before every handler: the table's row, the class, the certificate's and the login's end,
//! locks, admin verbs, and how old the login is. What passes carries a [`Caller`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use iap_audit::EventKind;
use iap_identity::{UserPeer, VerifiedPeer};
use iap_policy::limits::ADMIN_AUTH_AGE_SECONDS_MAX;
use time::OffsetDateTime;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::caller::{Caller, Connection, Presented, UserCaller};
use super::error::{ErrorCode, RpcError};
use super::table::{Callers, Row, row_of};
use crate::context::AppContext;
use crate::feed::frame;
use crate::metrics::Metrics;

/// Refusals of admin RPCs are recorded once per user, RPC and minute.
const REFUSALS_REMEMBERED_MAX: usize = 4096;

/// Puts the gate before a service.
#[derive(Clone, Debug)]
pub struct GateLayer {
    gate: Arc<Gate>,
}

impl GateLayer {
    /// A gate that judges by that context's policy, locks and clock.
    pub fn new(context: Arc<AppContext>, metrics: Metrics) -> Self {
        Self {
            gate: Arc::new(Gate {
                context,
                metrics,
                refused: Mutex::default(),
            }),
        }
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            gate: Arc::clone(&self.gate),
            inner,
        }
    }
}

/// A service behind the gate.
#[derive(Clone, Debug)]
pub struct Gated<S> {
    gate: Arc<Gate>,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Gated<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let gate = Arc::clone(&self.gate);
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        Box::pin(async move {
            let connection = request.extensions().get::<Connection>().cloned();
            match gate.admit(request.uri().path(), connection).await {
                Ok(caller) => {
                    request.extensions_mut().insert(caller);
                    Ok(frame::unpack(inner.call(request).await?))
                }
                Err(refused) => Ok(Status::from(refused).into_http()),
            }
        })
    }
}

#[derive(Debug)]
struct Gate {
    context: Arc<AppContext>,
    metrics: Metrics,
    /// (user, RPC) → the minute of the last recorded refusal.
    refused: Mutex<BTreeMap<(String, &'static str), i64>>,
}

impl Gate {
    async fn admit(&self, path: &str, connection: Option<Connection>) -> Result<Caller, RpcError> {
        let row = row_of(path).ok_or_else(|| RpcError::denied("there is no such call"))?;
        let judged = self.judge(row, connection).await;
        let outcome = judged
            .as_ref()
            .map_or_else(|refused| refused.code.as_str(), |_| "admitted");
        self.metrics.call(row.path, outcome);
        judged
    }

    async fn judge(&self, row: &'static Row, connection: Option<Connection>) -> Result<Caller, RpcError> {
        let connection = connection.ok_or_else(|| RpcError::internal("a request without a connection"))?;
        let now = self.context.clock.now();
        self.check_class(row, &connection, now)?;
        let user = match &connection.certificate {
            Presented::Valid { peer, .. } => match &**peer {
                VerifiedPeer::User(user) => Some(user),
                VerifiedPeer::Bot(_)
                | VerifiedPeer::Agent(_)
                | VerifiedPeer::Proxy(_)
                | VerifiedPeer::Auth(_) => None,
            },
            Presented::ExpiredUser(user) => Some(&**user),
            Presented::NoCertificate | Presented::ExpiredAgent(_) => None,
        };
        let user = match user {
            Some(user) => Some(self.admit_user(row, user, now).await?),
            None => None,
        };
        Ok(Caller {
            user: user.map(Arc::new),
            connection,
        })
    }

    /// Class, validity and locks.
    fn check_class(&self, row: &Row, connection: &Connection, now: OffsetDateTime) -> Result<(), RpcError> {
        let published = self.context.feed.published_locks();
        let locks = &published.content.locks;
        match (&connection.certificate, row.callers) {
            (Presented::NoCertificate, Callers::NoCertificate) => Ok(()),
            (
                Presented::NoCertificate,
                Callers::Classes(_) | Callers::AgentOrExpired | Callers::UserOrExpired,
            ) => Err(RpcError::new(ErrorCode::LoginRequired, "this needs a login")),
            (Presented::Valid { peer, .. }, Callers::Classes(accepted))
                if accepted.contains(peer.class()) =>
            {
                check_valid(peer, now)?;
                refuse_locked(locks.matching_peer(peer, now))
            }
            (Presented::Valid { peer, .. }, Callers::AgentOrExpired) => match &**peer {
                VerifiedPeer::Agent(_) => refuse_locked(locks.matching_peer(peer, now)),
                VerifiedPeer::User(_)
                | VerifiedPeer::Bot(_)
                | VerifiedPeer::Proxy(_)
                | VerifiedPeer::Auth(_) => Err(wrong_class()),
            },
            (Presented::Valid { peer, .. }, Callers::UserOrExpired) => match &**peer {
                VerifiedPeer::User(_) => refuse_locked(locks.matching_peer(peer, now)),
                VerifiedPeer::Agent(_)
                | VerifiedPeer::Bot(_)
                | VerifiedPeer::Proxy(_)
                | VerifiedPeer::Auth(_) => Err(wrong_class()),
            },
            (Presented::ExpiredAgent(agent), Callers::AgentOrExpired) => {
                refuse_locked(locks.matching_agent(&agent.id, &agent.serial, now))
            }
            (Presented::ExpiredUser(user), Callers::UserOrExpired) => {
                refuse_locked(locks.matching_user(user, now))
            }
            (Presented::ExpiredAgent(_), Callers::Classes(_) | Callers::UserOrExpired) => Err(
                login_required("the agent's certificate has expired: renew it first"),
            ),
            (Presented::ExpiredUser(_), Callers::Classes(_) | Callers::AgentOrExpired) => {
                Err(login_required("your certificate has expired: renew it first"))
            }
            (Presented::Valid { .. }, Callers::Classes(_) | Callers::NoCertificate)
            | (Presented::ExpiredAgent(_) | Presented::ExpiredUser(_), Callers::NoCertificate) => {
                Err(wrong_class())
            }
        }
    }

    async fn admit_user(
        &self,
        row: &'static Row,
        peer: &UserPeer,
        now: OffsetDateTime,
    ) -> Result<UserCaller, RpcError> {
        if peer.login_deadline <= now {
            return Err(login_required("your login is over"));
        }
        let caller = self.context.policies.caller(&self.context, peer).await?;
        if row.verbs.is_empty() {
            return Ok(caller);
        }
        if !row.verbs.iter().any(|verb| caller.may(*verb)) {
            return Err(self.refuse_admin(row, &caller, now).await);
        }
        let age = now - peer.auth_time;
        if row.needs_recent_login() && age.whole_seconds() > ADMIN_AUTH_AGE_SECONDS_MAX {
            let text = "your login is older than 15 minutes, and this needs a newer one";
            return Err(RpcError::new(ErrorCode::Reauthenticate, text));
        }
        Ok(caller)
    }

    async fn refuse_admin(&self, row: &'static Row, caller: &UserCaller, now: OffsetDateTime) -> RpcError {
        let verbs = row
            .verbs
            .iter()
            .map(|verb| verb.as_str())
            .collect::<Vec<_>>()
            .join(" or ");
        if self.is_news(row, caller, now) {
            let recorded = match self.context.audit.event(EventKind::AdminDenied) {
                Ok(event) => {
                    let event = event.user(&caller.record()).login_id(&caller.peer.login_id);
                    let event = event.field("call", row.path).field("needs", verbs.clone());
                    self.context.audit.record(event).await
                }
                Err(error) => Err(error.into()),
            };
            if let Err(error) = recorded {
                return error.into();
            }
        }
        RpcError::denied(format!(
            "this needs the admin verb {verbs}; ask an administrator to grant it in the policy"
        ))
    }

    fn is_news(&self, row: &'static Row, caller: &UserCaller, now: OffsetDateTime) -> bool {
        let minute = now.unix_timestamp() / 60;
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= REFUSALS_REMEMBERED_MAX {
            refused.clear();
        }
        refused.insert((caller.facts.id.clone(), row.path), minute) != Some(minute)
    }
}

fn check_valid(peer: &VerifiedPeer, now: OffsetDateTime) -> Result<(), RpcError> {
    match now < peer.not_after() {
        true => Ok(()),
        false => Err(login_required("the certificate of this connection has expired")),
    }
}

fn refuse_locked(lock: Option<&iap_identity::Lock>) -> Result<(), RpcError> {
    match lock {
        None => Ok(()),
        Some(lock) => Err(RpcError::denied(format!("locked: {}", lock.reason))),
    }
}

fn wrong_class() -> RpcError {
    RpcError::denied("a certificate of this kind may not call this")
}

fn login_required(text: &str) -> RpcError {
    RpcError::new(ErrorCode::LoginRequired, text)
}
