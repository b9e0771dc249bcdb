//! The approval page: what asked, who is signed in, and the one POST that lets the login go on.

use iap_identity::LoginId;

use super::secrets::Secret;
use super::step::{Cookies, StepError, not_in};
use super::{CODE_LIFE, Logins};
use crate::store::{Identity, LoginChange, LoginMethod, LoginRow, LoginState};

/// What the approval page shows.
pub struct Approval {
    /// The login, as it was started.
    pub login: LoginRow,
    /// Who is signed in.
    pub identity: Identity,
    /// What the form carries, so that no other site can send it.
    pub form_token: String,
}

/// Which button was pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Log this program in.
    Approve,
    /// This is not mine.
    Refuse,
}

/// Where the browser goes from the approval page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// To the program's loopback port, with the one-time code.
    Loopback(String),
    /// Nowhere: the program fetches the code itself.
    Waiting,
    /// The login is over.
    Refused,
}

impl Logins {
    /// What the approval page shows, in the browser that came back from the provider and in no other.
    ///
    /// # Errors
    /// When the login is unknown or at another step, or the browser is another one.
    pub async fn approval(&self, id: LoginId, cookies: &Cookies) -> Result<Approval, StepError> {
        let (login, cookie) = self.in_this_browser(id, cookies).await?;
        match (login.state, login.identity.clone()) {
            (LoginState::Identified, Some(identity)) => Ok(Approval {
                form_token: cookie.form_token(&id.to_string()),
                login,
                identity,
            }),
            (state, _) => Err(not_in(state)),
        }
    }

    /// The button was pressed.
    ///
    /// # Errors
    /// As for [`Logins::approval`], and when the form is not ours.
    pub async fn decide(
        &self,
        id: LoginId,
        cookies: &Cookies,
        form_token: &str,
        decision: Decision,
    ) -> Result<Outcome, StepError> {
        let (login, cookie) = self.in_this_browser(id, cookies).await?;
        if !cookie.made_form_token(&id.to_string(), form_token) {
            self.count_wrong(
                &login,
                "forged_approval",
                "an approval came without the page's token",
            )
            .await;
            return Err(StepError::Forged);
        }
        if login.state != LoginState::Identified {
            return Err(not_in(login.state));
        }
        match decision {
            Decision::Approve => self.approve(&login).await,
            Decision::Refuse => {
                self.deny(&login, "refused_by_person", "it was refused on the approval page")
                    .await;
                Ok(Outcome::Refused)
            }
        }
    }

    async fn approve(&self, login: &LoginRow) -> Result<Outcome, StepError> {
        let context = &self.context;
        let now = context.clock.now();
        // For a headless login nobody ever learns this one: the program that waits makes its own code,
        // because only a hash may be kept.
        let code = Secret::fresh_code(&context.random, now + CODE_LIFE)?;
        let change = LoginChange::Approved {
            code_hash: code.hash(),
        };
        let approved = context
            .store
            .advance_login(login.login_id, LoginState::Identified, now, change)
            .await?;
        let approved = approved.ok_or(StepError::Taken)?;
        self.changed.send_modify(|version| *version += 1);
        Ok(match approved.method {
            LoginMethod::Headless => Outcome::Waiting,
            LoginMethod::Browser | LoginMethod::NoBrowser => {
                Outcome::Loopback(self.loopback(&approved, &code))
            }
        })
    }

    /// The program that asked checks login id, thumbprint and pin against its own before it uses the code:
    /// a server that merely relays could show its own pin, but not ours.
    fn loopback(&self, login: &LoginRow, code: &Secret) -> String {
        let thumbprint = iap_identity::hex(&login.key_thumbprint);
        format!(
            "http://127.0.0.1:{}/callback?code={}&login_id={}&thumbprint={thumbprint}&pin={}",
            login.redirect_port,
            code.expose(),
            login.login_id,
            self.context.authority.pin(),
        )
    }

    async fn in_this_browser(&self, id: LoginId, cookies: &Cookies) -> Result<(LoginRow, Secret), StepError> {
        let row = self.live(id).await?.ok_or(StepError::Unknown)?;
        match cookies
            .of_login(id)
            .filter(|cookie| cookie.matches(row.cookie_hash.as_ref()))
        {
            Some(cookie) => Ok((row, cookie)),
            None => Err(StepError::OtherBrowser),
        }
    }
}
