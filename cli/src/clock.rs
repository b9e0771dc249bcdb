//! Wrong clocks: what is good to everybody else looks expired, or not valid yet, on a machine whose clock is wrong.

use iap_identity::PeerError;
use rustls::CertificateError;
use time::OffsetDateTime;

use crate::duration::rough;
use crate::failure::Failure;

const SET_IT: &str = "compare `date -u` with a clock you trust and set this machine's (timedatectl)";

/// The failure of a server's certificate that is wrong in nothing but its time.
#[must_use]
pub fn server_out_of_time(error: &CertificateError, whose: &str, now: OffsetDateTime) -> Option<Failure> {
    let how = match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "is not valid yet",
        _ => return None,
    };
    let failure = Failure::failed(format!(
        "by this machine's clock, {}, the certificate of {whose} {how}",
        text(now)
    ));
    Some(failure.because("one of the two clocks is wrong").next(SET_IT))
}

/// The failure of a certificate that was issued to us just now and is out of its time here.
#[must_use]
pub fn new_certificate_out_of_time(error: &PeerError, now: OffsetDateTime) -> Option<Failure> {
    let apart = match error {
        PeerError::Expired { not_after } => format!("expired {} ago", rough(now - *not_after)),
        PeerError::NotYetValid { not_before } => format!("begins in {}", rough(*not_before - now)),
        _ => return None,
    };
    let failure = Failure::failed(format!(
        "the certificate issued just now {apart} by this machine's clock, {}",
        text(now)
    ));
    Some(
        failure
            .because("this machine's clock and the auth server's differ")
            .next(SET_IT),
    )
}

/// The failure of our certificate that another machine's clock takes for expired, when ours does not.
#[must_use]
pub fn expired_elsewhere(whose: &str, not_after: OffsetDateTime, now: OffsetDateTime) -> Option<Failure> {
    (not_after > now).then(|| {
        Failure::failed(format!(
            "{whose} takes your certificate for expired; by this machine's clock, {}, it is valid for {}",
            text(now),
            rough(not_after - now)
        ))
        .because("one of the two clocks is wrong")
        .next(SET_IT)
    })
}

fn text(now: OffsetDateTime) -> String {
    let minute = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    now.to_offset(time::UtcOffset::UTC)
        .format(&minute)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn noon() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::hours(12)
    }

    fn said(failure: Option<Failure>) -> String {
        format!("{:?}", failure.unwrap())
    }

    #[test]
    fn a_certificate_wrong_in_its_time_alone_blames_the_clock() {
        for error in [CertificateError::Expired, CertificateError::NotValidYet] {
            let said = said(server_out_of_time(&error, "'db-prod'", noon()));
            assert!(
                said.contains("1970-01-01 12:00 UTC") && said.contains("timedatectl"),
                "{said}"
            );
        }
        assert!(server_out_of_time(&CertificateError::UnknownIssuer, "'db-prod'", noon()).is_none());
    }

    #[test]
    fn a_new_certificate_out_of_its_time_says_by_how_much() {
        let expired = PeerError::Expired {
            not_after: noon() - time::Duration::hours(3),
        };
        assert!(said(new_certificate_out_of_time(&expired, noon())).contains("expired 3h ago"));
        let early = PeerError::NotYetValid {
            not_before: noon() + time::Duration::hours(2),
        };
        assert!(said(new_certificate_out_of_time(&early, noon())).contains("begins in 2h"));
        assert!(new_certificate_out_of_time(&PeerError::WrongUsage, noon()).is_none());
    }

    #[test]
    fn a_certificate_that_is_expired_here_too_is_no_matter_of_clocks() {
        let later = noon() + time::Duration::minutes(20);
        assert!(said(expired_elsewhere("'db-prod'", later, noon())).contains("valid for 20"));
        assert!(expired_elsewhere("'db-prod'", noon(), later).is_none());
    }
}
