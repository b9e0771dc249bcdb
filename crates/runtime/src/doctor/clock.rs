//! This machine's clock against the `Date` that the auth server's web page states.

use std::sync::Arc;
use std::time::Duration;

use iap_identity::ServerName;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Finding, Target};
use crate::net;
use crate::tls;
use crate::tls::Presented;

const SECONDS_MAX: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: u64 = 8 * 1024;
/// Certificates are backdated by this much; beyond, new ones are not valid yet.
const SKEW_TOLERATED: time::Duration = time::Duration::seconds(60);

pub(super) async fn check(target: &Target) -> Finding {
    let before = OffsetDateTime::now_utc();
    let asked = tokio::time::timeout(SECONDS_MAX, stated_time(target));
    let stated = match asked.await {
        Ok(Ok(stated)) => stated,
        Ok(Err(why)) => return unknown(&why),
        Err(_) => return unknown("no answer in time"),
    };
    // The header has whole seconds, and the answer took a while.
    judge(before, stated)
}

fn judge(now: OffsetDateTime, stated: OffsetDateTime) -> Finding {
    let skew = now - stated;
    let seconds = skew.whole_seconds();
    match skew.abs() <= SKEW_TOLERATED {
        true => Finding::ok(
            "clock",
            format!("within {} s of the auth server's", seconds.abs().max(1)),
        ),
        false => Finding::failed(
            "clock",
            format!(
                "{} s {} the auth server's",
                seconds.abs(),
                if seconds > 0 { "ahead of" } else { "behind" }
            ),
            "set the clock: `timedatectl set-ntp true`",
        ),
    }
}

fn unknown(why: &str) -> Finding {
    Finding::warning(
        "clock",
        format!("the auth server's time could not be learnt: {why}"),
        "compare by hand: `date -u` here and on the auth server",
    )
}

/// Only a hint, so the page's certificate, which may be a public one, is not judged here.
async fn stated_time(target: &Target) -> Result<OffsetDateTime, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let host = ServerName::Cluster.host(&target.cluster);
    let stream = net::connect(&target.address, SECONDS_MAX)
        .await
        .map_err(|error| text(&error))?;
    let verifier: Arc<Presented> = Presented::new();
    let config = tls::client_config(verifier, None, &["http/1.1"]).map_err(|error| text(&error))?;
    let mut stream = tls::connect(stream, &host, config, SECONDS_MAX)
        .await
        .map_err(|error| text(&error))?;
    let request = format!("GET /.well-known/iap HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(|error| text(&error))?;
    let mut head = Vec::new();
    // However it ends: what counts is in the beginning.
    let _ = (&mut stream).take(HEAD_BYTES_MAX).read_to_end(&mut head).await;
    let head = String::from_utf8_lossy(&head);
    let date = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date").then(|| value.trim().to_owned())
    });
    let date = date.ok_or("the web page states no date")?;
    OffsetDateTime::parse(&date.replace("GMT", "+0000"), &Rfc2822).map_err(|error| text(&error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_minute_is_tolerated_and_more_is_named_with_its_direction() {
        let now = OffsetDateTime::UNIX_EPOCH + time::Duration::hours(1);
        let at = |seconds| judge(now, now - time::Duration::seconds(seconds));
        assert_eq!(at(59).verdict, Verdict::Ok);
        assert_eq!(at(-59).verdict, Verdict::Ok);
        assert!(at(90).verdict == Verdict::Failed && at(90).detail.contains("ahead of"));
        assert!(at(-90).detail.contains("90 s behind"));
    }
}
