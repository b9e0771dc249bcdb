//! Certificates that were verified a moment ago: the next connection with the same one costs no signature of an
//! authority's. Possession of its key is proven on every connection all the same.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use iap_identity::TrustBundle;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

/// Certificates remembered, of about 1 KiB each. Who was asked about longest ago is forgotten first.
const KNOWN_MAX: usize = 128;

/// What certificates turned out to say, for as long as nothing that was looked at can have changed.
#[derive(Debug)]
pub(super) struct Known<T>(Mutex<VecDeque<Entry<T>>>);

#[derive(Debug)]
struct Entry<T> {
    leaf: CertificateDer<'static>,
    bundle: Arc<TrustBundle>,
    term: Term,
    found: T,
}

/// From when to when, both included, a verification has no other outcome.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term {
    /// When it was made.
    pub(super) since: OffsetDateTime,
    /// The first end of what it rests on: the certificate's or an authority's.
    pub(super) until: OffsetDateTime,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Known<T> {
    /// What was found out about `leaf` by the same bundle, if that still holds and `fits`.
    pub(super) fn recall(
        &self,
        leaf: &CertificateDer<'_>,
        bundle: &Arc<TrustBundle>,
        now: OffsetDateTime,
        fits: impl Fn(&T) -> bool,
    ) -> Option<T> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = entries.iter().position(|entry| {
            Arc::ptr_eq(&entry.bundle, bundle)
                && entry.leaf.as_ref() == leaf.as_ref()
                && entry.term.holds(now)
                && fits(&entry.found)
        })?;
        let entry = entries.remove(place)?;
        let found = entry.found.clone();
        entries.push_front(entry);
        Some(found)
    }

    /// Remembers what was found out, and forgets what was found by other bundles.
    pub(super) fn keep(&self, leaf: &CertificateDer<'_>, bundle: &Arc<TrustBundle>, term: Term, found: T) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| Arc::ptr_eq(&entry.bundle, bundle) && entry.term.holds(term.since));
        entries.truncate(KNOWN_MAX - 1);
        entries.push_front(Entry {
            leaf: leaf.clone().into_owned(),
            bundle: Arc::clone(bundle),
            term,
            found,
        });
    }
}

impl Term {
    fn holds(self, now: OffsetDateTime) -> bool {
        self.since <= now && now <= self.until
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use iap_testkit::TestCluster;
    use time::Duration;

    fn leaf(number: u8) -> CertificateDer<'static> {
        CertificateDer::from(vec![number; 8])
    }

    #[test]
    fn what_was_found_counts_for_the_same_certificate_bundle_and_time_alone() {
        let cluster = TestCluster::at("iap.example.com", OffsetDateTime::now_utc()).unwrap();
        let (bundle, same_again) = (
            Arc::new(cluster.bundle().clone()),
            Arc::new(cluster.bundle().clone()),
        );
        let since = cluster.now;
        let until = since + Duration::HOUR;
        let known = Known::default();
        known.keep(&leaf(1), &bundle, Term { since, until }, "one");
        let recall = |number, bundle, now| known.recall(&leaf(number), bundle, now, |_| true);
        assert_eq!(recall(1, &bundle, since), Some("one"));
        assert_eq!(recall(1, &bundle, until), Some("one"));
        assert_eq!(recall(1, &bundle, until + Duration::SECOND), None);
        assert_eq!(recall(1, &bundle, since - Duration::SECOND), None);
        assert_eq!(recall(2, &bundle, since), None);
        assert_eq!(recall(1, &same_again, since), None);
        assert_eq!(
            known.recall(&leaf(1), &bundle, since, |found| *found == "two"),
            None
        );
        known.keep(&leaf(2), &same_again, Term { since, until }, "two");
        assert_eq!(
            known.recall(&leaf(1), &bundle, since, |_| true),
            None,
            "another bundle came"
        );
    }

    #[test]
    fn who_was_asked_about_longest_ago_is_forgotten_first() {
        let cluster = TestCluster::at("iap.example.com", OffsetDateTime::now_utc()).unwrap();
        let bundle = Arc::new(cluster.bundle().clone());
        let since = cluster.now;
        let term = Term {
            since,
            until: since + Duration::HOUR,
        };
        let known = Known::default();
        for number in 0..=127 {
            known.keep(&leaf(number), &bundle, term, number);
        }
        assert_eq!(known.recall(&leaf(0), &bundle, since, |_| true), Some(0));
        known.keep(&leaf(128), &bundle, term, 128);
        assert_eq!(known.recall(&leaf(1), &bundle, since, |_| true), None);
        assert_eq!(known.recall(&leaf(0), &bundle, since, |_| true), Some(0));
    }
}
