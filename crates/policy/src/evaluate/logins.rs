//! Which login, when none is named; and what may be used, for listings.

use std::collections::BTreeSet;

use iap_identity::LoginName;

use super::{Deciding, Verdict};
use crate::decision::{Decision, Visible};
use crate::facts::{Sight, UserFacts};
use crate::limits::LOGIN_CANDIDATES_MAX;
use crate::rule::Effect;
use crate::selector::ANY;
use crate::target::{Wanted, is_permitted};

/// `user.local`, unless it is reserved or no login.
pub(crate) fn own_login<'a>(user: &'a UserFacts, reserved: &BTreeSet<String>) -> Option<&'a str> {
    let local = user.local();
    is_permitted(local, reserved).then_some(local)
}

impl<'q> Deciding<'_, 'q> {
    /// The default login, in order: the service's, the user's own, the only one written literally.
    pub(super) fn choose_login(&self, database: Wanted<'_>) -> Decision {
        let granted =
            |login: &str| matches!(self.verdict(Wanted::Named(login), database), Verdict::Allowed(_));
        let service_default = self
            .question
            .service
            .default_login
            .as_ref()
            .map(LoginName::as_str);
        let first = service_default
            .into_iter()
            .chain(self.own_login())
            .find(|login| granted(login));
        let (literals, rendered) = self.login_candidates();
        let literals: Vec<String> = literals.into_iter().filter(|login| granted(login)).collect();
        let rendered: Vec<String> = rendered.into_iter().filter(|login| granted(login)).collect();
        let chosen = match (first, literals.as_slice(), rendered.as_slice()) {
            (Some(login), _, _) => Some(login),
            (None, [only], _) | (None, [], [only]) => Some(only.as_str()),
            (None, _, _) => None,
        };
        if let Some(login) = chosen {
            let verdict = self.verdict(Wanted::Named(login), database);
            return self.decision(verdict, Wanted::Named(login), LoginName::parse(login).ok());
        }
        let choices: BTreeSet<LoginName> = literals
            .iter()
            .chain(&rendered)
            .filter_map(|login| LoginName::parse(login).ok())
            .collect();
        self.no_obvious_login(choices.into_iter().collect(), database)
    }

    /// Where the backend holds people to the logins of their certificate: whether there is any that they may use. Which
    /// one they will use is not known here, so the decision names none.
    pub(super) fn decide_certified(&self, database: Wanted<'_>) -> Decision {
        let (literals, rendered) = self.login_candidates();
        let default = self.question.service.default_login.as_ref();
        let mut candidates = default
            .into_iter()
            .map(LoginName::as_str)
            .chain(self.own_login())
            .chain(literals.iter().map(String::as_str))
            .chain(rendered.iter().map(String::as_str))
            .map(|login| (Wanted::Named(login), self.verdict(Wanted::Named(login), database)));
        if let Some((wanted, allowed)) =
            candidates.find(|(_, verdict)| matches!(verdict, Verdict::Allowed(_)))
        {
            return self.decision(allowed, wanted, None);
        }
        match self.verdict(Wanted::Whichever, database) {
            // Each login that a rule gives, another takes.
            Verdict::Allowed(_) if !self.gives_any_login() => {
                self.decision(Verdict::Nothing, Wanted::Nothing, None)
            }
            verdict => self.decision(verdict, Wanted::Nothing, None),
        }
    }

    fn no_obvious_login(&self, choices: Vec<LoginName>, database: Wanted<'_>) -> Decision {
        let verdict = self.verdict(Wanted::Whichever, database);
        let any = self.gives_any_login();
        match verdict {
            Verdict::Allowed(_) if any || !choices.is_empty() => Decision::Denial(self.login_choice(choices)),
            // Each login that a rule gives, another takes.
            Verdict::Allowed(_) => self.decision(Verdict::Nothing, Wanted::Nothing, None),
            other => self.decision(other, Wanted::Nothing, None),
        }
    }

    fn gives_any_login(&self) -> bool {
        self.matched
            .iter()
            .any(|matched| matched.rule.effect == Effect::Allow && matched.rule.logins.is_any())
    }

    /// `user.local`, unless it is one that must be granted literally and asked for.
    fn own_login(&self) -> Option<&'q str> {
        own_login(self.question.user, &self.policy.options.reserved_logins)
    }

    /// The logins that allow rules write down, and those that their templates come to.
    pub(crate) fn login_candidates(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let mut literals = BTreeSet::new();
        let mut rendered = BTreeSet::new();
        for matched in self
            .matched
            .iter()
            .filter(|matched| matched.rule.effect == Effect::Allow)
        {
            let logins = &matched.rule.logins;
            let room = LOGIN_CANDIDATES_MAX.saturating_sub(literals.len() + rendered.len());
            literals.extend(logins.literals().take(room).map(str::to_owned));
            let reserved = &self.policy.options.reserved_logins;
            rendered.extend(logins.rendered(self.question.user, reserved).take(room));
        }
        (literals, rendered)
    }

    pub(crate) fn visible(&self) -> Option<Visible> {
        let database = match self.question.service.database_sight() {
            Sight::Visible => Wanted::Whichever,
            Sight::Opaque | Sight::Certified | Sight::Absent => self.wanted_database(),
        };
        let (logins, login) = match self.question.service.login_sight() {
            Sight::Visible | Sight::Certified => self.visible_logins(database)?,
            Sight::Opaque | Sight::Absent => {
                let login = self.wanted_login()?;
                if !matches!(self.verdict(login, database), Verdict::Allowed(_)) {
                    return None;
                }
                (Vec::new(), None)
            }
        };
        Some(Visible {
            logins,
            databases: self.visible_databases(database),
            login,
        })
    }

    fn visible_logins(&self, database: Wanted<'_>) -> Option<(Vec<String>, Option<LoginName>)> {
        let (mut logins, rendered) = self.login_candidates();
        logins.extend(rendered);
        logins.retain(|login| matches!(self.verdict(Wanted::Named(login), database), Verdict::Allowed(_)));
        let mut logins: Vec<String> = logins.into_iter().collect();
        let any = self.gives_any_login()
            && matches!(self.verdict(Wanted::Whichever, database), Verdict::Allowed(_));
        if any {
            logins.push(ANY.to_owned());
        }
        let login = match self.choose_login(database) {
            Decision::Grant(grant) => grant.login,
            Decision::Denial(_) => None,
        };
        (login.is_some() || !logins.is_empty()).then_some((logins, login))
    }

    fn visible_databases(&self, database: Wanted<'_>) -> Vec<String> {
        if database != Wanted::Whichever {
            return Vec::new();
        }
        let mut names = BTreeSet::new();
        for matched in self
            .matched
            .iter()
            .filter(|matched| matched.rule.effect == Effect::Allow)
        {
            let databases = &matched.rule.databases;
            if databases.is_any() {
                names.insert(ANY.to_owned());
            }
            names.extend(databases.literals().map(str::to_owned));
            names.extend(databases.rendered(self.question.user, &BTreeSet::new()));
        }
        names.into_iter().collect()
    }
}
