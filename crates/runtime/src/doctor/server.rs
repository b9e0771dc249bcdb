//! A server on this machine: whether it runs, and whether its clock is behind what was signed.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Finding, Verdict};

const ADMIN_SECONDS_MAX: Duration = Duration::from_secs(5);
const ADMIN_ANSWER_BYTES_MAX: u64 = 64 * 1024;
const SKEW_TOLERATED: time::Duration = time::Duration::seconds(60);

/// Which server is asked.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    /// The word for it in findings, such as `agent`.
    pub check: &'static str,
    /// The name of its unit.
    pub unit: &'static str,
    /// Where it answers `/readyz`.
    pub admin: SocketAddr,
}

/// What the server says of itself, and whether it runs at all.
pub async fn check_running(server: Server) -> (bool, Finding) {
    let Server { check, unit, admin } = server;
    let asked = tokio::time::timeout(ADMIN_SECONDS_MAX, ask_ready(admin)).await;
    let finding = match asked {
        Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200") => Finding::ok(check, "runs and is ready"),
        Ok(Ok(answer)) => {
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            let unmet: Vec<&str> = body.lines().filter(|line| !line.ends_with(": ok")).collect();
            Finding::failed(
                check,
                format!("runs and is not ready: {}", unmet.join("; ")),
                format!("see the other findings and `journalctl -u {unit}`"),
            )
        }
        Ok(Err(error)) => Finding::warning(
            check,
            format!("does not run here ({admin}: {error})"),
            format!("start it: `systemctl start {unit}`"),
        ),
        Err(_) => Finding::failed(
            check,
            format!("{admin} does not answer"),
            format!("restart it: `systemctl restart {unit}`"),
        ),
    };
    (finding.verdict != Verdict::Warning, finding)
}

async fn ask_ready(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    stream
        .take(ADMIN_ANSWER_BYTES_MAX)
        .read_to_string(&mut answer)
        .await?;
    Ok(answer)
}

/// Signed times lie in the past: a clock before them is wrong, whatever else is.
pub fn check_signed_time(now: OffsetDateTime, signed: OffsetDateTime) -> Finding {
    match signed - now > SKEW_TOLERATED {
        true => Finding::failed(
            "clock",
            format!("this machine says {now}, and the auth server has signed {signed}"),
            "set the clock: `timedatectl set-ntp true`",
        ),
        false => Finding::ok("clock", "not before the newest signed time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_before_signed_time_is_wrong() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let at = |ahead| check_signed_time(now, now + ahead).verdict;
        assert_eq!(at(time::Duration::seconds(61)), Verdict::Failed);
        assert_eq!(at(time::Duration::seconds(59)), Verdict::Ok);
        assert_eq!(at(time::Duration::days(-30)), Verdict::Ok);
    }
}
