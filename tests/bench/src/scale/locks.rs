//! From the call of `LockAdd` until the client of the locked session sees its end.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use iap_proto::v1::LockAddRequest;
use iap_proto::v1::admin_client::AdminClient;
use tokio::io::AsyncReadExt as _;
use tokio::runtime::Runtime;

use super::client::Client;
use super::quantile;
use crate::ours::Plane;

const PATIENCE: Duration = Duration::from_secs(30);
const LOCK_SECONDS: u64 = 3600;

/// `lock_cut_ms_p50`, `_p99`, `_max`.
pub(super) fn measure(
    plane: &Plane,
    runtime: &Runtime,
    count: usize,
    add: &mut impl FnMut(&str, f64, &str),
) -> anyhow::Result<()> {
    let user = Client::of_home(plane, &plane.log_in("alice")?)?;
    let admin = Client::of_home(plane, &plane.log_in("admin")?)?;
    let mut admin = AdminClient::new(admin.api()?);
    let mut milliseconds = Vec::with_capacity(count);
    runtime.block_on(async {
        let mut open = Vec::with_capacity(count);
        for _ in 0..count {
            open.push(user.open("bulk").await?);
        }
        for mut session in open {
            let request = LockAddRequest {
                kind: "session".to_owned(),
                target: session.id.to_string(),
                reason: "scale".to_owned(),
                ttl_seconds: LOCK_SECONDS,
            };
            let begun = Instant::now();
            let mut rest = Vec::new();
            let ended = session.stream.read_to_end(&mut rest);
            let (locked, ended) =
                tokio::join!(admin.lock_add(request), tokio::time::timeout(PATIENCE, ended));
            locked?;
            // How it ended, by an alert or a plain close, is nothing to the time it took.
            let _how = ended.context("a locked session goes on")?;
            milliseconds.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        anyhow::Ok(())
    })?;
    milliseconds.sort_by(f64::total_cmp);
    for (figure, share) in [
        ("lock_cut_ms_p50", 0.5),
        ("lock_cut_ms_p99", 0.99),
        ("lock_cut_ms_max", 1.0),
    ] {
        add(figure, quantile(&milliseconds, share), "ms");
    }
    Ok(())
}
