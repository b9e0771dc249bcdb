//! Saying once what lasts: a task that tries again and again logs each reason of an outage when it appears, and not at
//! every attempt.

use std::collections::BTreeSet;
use std::fmt::Display;

/// Reasons told apart within one outage. Further ones are no news.
const REASONS_MAX: usize = 32;

/// One outage, and the reasons that were given for it.
#[derive(Debug, Default)]
pub struct Outage {
    reasons: BTreeSet<String>,
}

impl Outage {
    /// Whether this reason was not given before in this outage, which begins with the first one.
    pub fn is_news(&mut self, reason: &impl Display) -> bool {
        self.reasons.len() < REASONS_MAX && self.reasons.insert(reason.to_string())
    }

    /// It works again. Whether there was an outage.
    pub fn over(&mut self) -> bool {
        !std::mem::take(&mut self.reasons).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_news_once_until_the_outage_is_over() {
        let mut outage = Outage::default();
        assert!(!outage.over(), "none has begun");
        let said = ["away", "silent", "away", "silent"].map(|reason| outage.is_news(&reason));
        assert_eq!(said, [true, true, false, false]);
        assert!(outage.over());
        assert!(outage.is_news(&"away"), "another outage");
    }

    #[test]
    fn reasons_that_always_differ_do_not_pile_up() {
        let mut outage = Outage::default();
        let news = (0..1000).filter(|number| outage.is_news(number)).count();
        assert_eq!(news, REASONS_MAX);
    }
}
