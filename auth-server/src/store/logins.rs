//! Logins, the people who made them, and the generations of the certificates that came of them.

use std::net::IpAddr;

use async_trait::async_trait;
use iap_identity::{GroupName, LoginId, UserId};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Hash, StoreError};

/// How the person reaches the identity provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoginMethod {
    /// `iapctl` opens the browser and listens on loopback.
    Browser,
    /// The same, but the person opens the printed URL.
    NoBrowser,
    /// A code is typed on another device.
    Headless,
}

impl LoginMethod {
    /// Every method, in the order in which they are preferred.
    pub const ALL: [LoginMethod; 3] = [
        LoginMethod::Browser,
        LoginMethod::NoBrowser,
        LoginMethod::Headless,
    ];

    /// The name on the wire, in configuration, certificates and policy.
    pub fn as_str(self) -> &'static str {
        match self {
            LoginMethod::Browser => "browser",
            LoginMethod::NoBrowser => "no-browser",
            LoginMethod::Headless => "headless",
        }
    }

    /// The method of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == name)
    }
}

/// Where a login stands. Only [`LoginStore::advance_login`] moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginState {
    /// `Login.Start` was called; nobody has opened the page yet.
    Started,
    /// A browser was sent to the provider and holds our cookie.
    AtProvider,
    /// That browser has come back, and its answer is being exchanged at the provider. Nobody else can take the
    /// login from here: a page opened again now changes nothing.
    Exchanging,
    /// The provider has told us who it is; the approval page is shown.
    Identified,
    /// Approved by a POST; a one-time code waits to be redeemed.
    Approved,
    /// The code was redeemed for a certificate.
    Finished,
    /// The person refused on the page, or the provider or our rules did.
    Denied,
}

impl LoginState {
    /// The name in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            LoginState::Started => "started",
            LoginState::AtProvider => "at_provider",
            LoginState::Exchanging => "exchanging",
            LoginState::Identified => "identified",
            LoginState::Approved => "approved",
            LoginState::Finished => "finished",
            LoginState::Denied => "denied",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        use LoginState::{Approved, AtProvider, Denied, Exchanging, Finished, Identified, Started};
        [
            Started, AtProvider, Exchanging, Identified, Approved, Finished, Denied,
        ]
        .into_iter()
        .find(|state| state.as_str() == name)
    }
}

/// Who the provider says logged in, as it will stand in the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Derived from (connector, issuer, subject).
    pub user_id: UserId,
    /// The connector's name in our configuration.
    pub connector: String,
    /// The provider's issuer URL.
    pub issuer: String,
    /// The provider's stable name for the person.
    pub subject: String,
    /// `user.name`: the verified email, else `preferred_username`.
    pub name: String,
    /// The email, only if verified and in a domain the connector owns.
    pub email: Option<String>,
    /// Every group the provider named, as `connector:group`; issuing narrows them to the policy's vocabulary.
    pub groups: Vec<GroupName>,
    /// When the person authenticated at the provider.
    pub auth_time: OffsetDateTime,
    /// When a second factor was used, if the provider says so.
    pub mfa_time: Option<OffsetDateTime>,
    /// The authentication context class the provider reported.
    pub acr: Option<String>,
}

/// What the person has to prove to the provider, beyond what it asks of everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofAsked {
    /// Who they are, anew.
    pub fresh: bool,
    /// Several factors.
    pub mfa: bool,
    /// This authentication context class.
    pub acr: Option<String>,
}

impl ProofAsked {
    /// Whether the provider must not wave a standing session through.
    #[must_use]
    pub fn is_anything(&self) -> bool {
        self.fresh || self.mfa || self.acr.is_some()
    }
}

/// One login from `Login.Start` to its certificate.
#[derive(Clone, Debug)]
pub struct LoginRow {
    /// UUIDv7; also the lock and audit key of everything that follows.
    pub login_id: LoginId,
    /// Where it stands.
    pub state: LoginState,
    /// How the person reaches the provider.
    pub method: LoginMethod,
    /// The connector asked for, or chosen on the page.
    pub connector: Option<String>,
    /// What the person has to prove.
    pub proof: ProofAsked,
    /// SHA-256 of the SubjectPublicKeyInfo that the certificate will be for.
    pub key_thumbprint: Hash,
    /// What asked, as the approval page shows it.
    pub host_name: String,
    /// The local account that asked.
    pub user_name: String,
    /// The loopback port that receives the one-time code; 0 for headless.
    pub redirect_port: u16,
    /// The asking program's version.
    pub client_version: String,
    /// Where `Login.Start` came from.
    pub client_address: IpAddr,
    /// Three words that both sides show.
    pub words: String,
    /// When it was started.
    pub created_at: OffsetDateTime,
    /// After this nothing but reading is possible.
    pub expires_at: OffsetDateTime,
    /// What opens the login's page: the secret in its URL; headless, the code typed on another device.
    pub user_code_hash: Option<Hash>,
    /// The secret of whoever may await the outcome.
    pub poll_secret_hash: Option<Hash>,
    /// The OIDC `state` sent to the provider.
    pub state_hash: Option<Hash>,
    /// The cookie of the browser that went to the provider. Nonce and PKCE verifier are derived from
    /// that cookie and `state`, so that a copy of the database cannot continue anybody's login.
    pub cookie_hash: Option<Hash>,
    /// The one-time code, from approval on.
    pub code_hash: Option<Hash>,
    /// Who it is, from `Identified` on.
    pub identity: Option<Identity>,
    /// Why it was denied, in words for the person.
    pub denial: Option<String>,
    /// Wrong codes presented so far.
    pub tries: u32,
}

/// A step of a login, with what it brings. The state it leads to is [`LoginChange::to`].
#[derive(Clone, Debug)]
pub enum LoginChange {
    /// To `AtProvider`: a browser was redirected. Allowed again from `AtProvider` (a reloaded page).
    SentToProvider {
        /// The connector chosen.
        connector: String,
        /// Hash of the OIDC `state`.
        state_hash: Hash,
        /// Hash of the browser's cookie.
        cookie_hash: Hash,
    },
    /// To `Exchanging`: an answer came with this `state`, in the browser with this cookie. It holds only while
    /// both are those of the browser that was sent last.
    Answered {
        /// Hash of the OIDC `state` in the answer.
        state_hash: Hash,
        /// Hash of the browser's cookie.
        cookie_hash: Hash,
    },
    /// To `Identified`: the provider vouched. `state_hash` is forgotten, so a callback works once.
    Identified(Box<Identity>),
    /// To `Approved`: the person pressed the button.
    Approved {
        /// Hash of the one-time code.
        code_hash: Hash,
    },
    /// To `Finished`: the code was redeemed; it is forgotten, so it works once.
    Finished,
    /// To `Denied`.
    Denied {
        /// In words for the person.
        why: String,
    },
}

impl LoginChange {
    /// The state this change leads to.
    pub fn to(&self) -> LoginState {
        match self {
            LoginChange::SentToProvider { .. } => LoginState::AtProvider,
            LoginChange::Answered { .. } => LoginState::Exchanging,
            LoginChange::Identified(_) => LoginState::Identified,
            LoginChange::Approved { .. } => LoginState::Approved,
            LoginChange::Finished => LoginState::Finished,
            LoginChange::Denied { .. } => LoginState::Denied,
        }
    }
}

/// A person as of the last login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    /// Derived from (connector, issuer, subject).
    pub user_id: UserId,
    /// The connector's name.
    pub connector: String,
    /// The provider's issuer URL.
    pub issuer: String,
    /// The provider's stable name for the person.
    pub subject: String,
    /// `user.name`.
    pub name: String,
    /// The verified email.
    pub email: Option<String>,
    /// Every group the provider named.
    pub groups: Vec<GroupName>,
    /// When the groups were read.
    pub groups_as_of: OffsetDateTime,
    /// The newest login.
    pub last_login: OffsetDateTime,
}

/// Which certificate of a login is the newest, and whether the one before it may still renew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationRow {
    /// The login.
    pub login_id: LoginId,
    /// Whose it is.
    pub user_id: UserId,
    /// The newest generation issued; 1 is the login's own certificate.
    pub generation: u64,
    /// Until then the generation before the newest is accepted once more.
    pub previous_until: Option<OffsetDateTime>,
    /// Set by `logout`: no renewal afterwards.
    pub ended_at: Option<OffsetDateTime>,
    /// The request that led to the newest generation; none for the login's own certificate.
    pub answered: Option<AnsweredRequest>,
}

/// A renewal's request, remembered so that its repetition is told from a second holder of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnsweredRequest {
    /// SHA-256 of the request's exact bytes, whose signature makes each one different.
    pub request: Hash,
    /// The generation of the certificate that it came with.
    pub from: u64,
    /// Until then it is answered again.
    pub until: OffsetDateTime,
}

/// Logins and people.
#[async_trait]
pub trait LoginStore: Send + Sync + 'static {
    /// Keeps a new login, in state `Started`.
    async fn create_login(&self, row: &LoginRow) -> Result<(), StoreError>;

    /// The login with that id.
    async fn login(&self, id: LoginId) -> Result<Option<LoginRow>, StoreError>;

    /// The login whose OIDC `state` has that hash.
    async fn login_by_state(&self, state_hash: &Hash) -> Result<Option<LoginRow>, StoreError>;

    /// The unexpired headless login whose user code has that hash.
    async fn login_by_user_code(
        &self,
        user_code_hash: &Hash,
        now: OffsetDateTime,
    ) -> Result<Option<LoginRow>, StoreError>;

    /// Moves a login by compare-and-set: only if it is in state `from` and unexpired at `now`, and, for
    /// [`LoginChange::Answered`], bound to that `state` and cookie.
    /// Returns the row as it is afterwards, or nothing if the condition did not hold. Of two callers
    /// with the same `from` exactly one gets the row (unless `from` equals the change's own state).
    async fn advance_login(
        &self,
        id: LoginId,
        from: LoginState,
        now: OffsetDateTime,
        change: LoginChange,
    ) -> Result<Option<LoginRow>, StoreError>;

    /// Counts one wrong code and returns how many there were, this one included.
    async fn count_login_try(&self, id: LoginId) -> Result<u32, StoreError>;

    /// Forgets logins that expired before `before`; returns how many.
    async fn forget_logins(&self, before: OffsetDateTime) -> Result<u64, StoreError>;

    /// Creates or replaces a person's row.
    async fn upsert_user(&self, row: &UserRow) -> Result<(), StoreError>;

    /// The person with that id.
    async fn user(&self, id: &UserId) -> Result<Option<UserRow>, StoreError>;

    /// Everybody who ever logged in, by name, at most so many.
    async fn users(&self, limit: u32) -> Result<Vec<UserRow>, StoreError>;

    /// The persons of that name, the most recent login first.
    async fn users_by_name(&self, name: &str) -> Result<Vec<UserRow>, StoreError>;

    /// Starts counting generations for a login.
    async fn start_generations(&self, row: &GenerationRow) -> Result<(), StoreError>;

    /// The login's generations.
    async fn generations(&self, id: LoginId) -> Result<Option<GenerationRow>, StoreError>;

    /// Replaces `expected` by `new` if it is still what is stored; says whether it was.
    async fn replace_generations(
        &self,
        expected: &GenerationRow,
        new: &GenerationRow,
    ) -> Result<bool, StoreError>;
}
