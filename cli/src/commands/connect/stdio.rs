//! `connect --stdio`: one session over stdin and stdout.

use std::fs::File;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};

use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::session::Session;

const BUFFER_BYTES: usize = 64 * 1024;

/// Carries stdin and stdout until the service ends the session, or somebody this program. The end of stdin is passed on,
/// and what the service still has to say is awaited.
pub(super) async fn run(session: Session) -> anyhow::Result<ExitStatus> {
    let (input, output) = open()?;
    // The span lasts as long as the session.
    let Session {
        stream, span: _span, ..
    } = session;
    let (reader, writer) = tokio::io::split(stream);
    let carrying = carry(pass_on(input, writer), pass_on(reader, output));
    let ended = tokio::select! {
        ended = carrying => ended,
        // OpenSSH hangs up on its proxy command. The agent hears that nobody will come back.
        interrupted = super::interrupted() => interrupted,
    };
    ended.map_err(|error| Failure::failed("the session was cut").because(error.to_string()))?;
    Ok(ExitStatus::Done)
}

async fn carry(
    inward: impl Future<Output = std::io::Result<()>>,
    outward: impl Future<Output = std::io::Result<()>>,
) -> std::io::Result<()> {
    tokio::pin!(inward, outward);
    tokio::select! {
        ended = &mut outward => ended,
        passed = &mut inward => match passed {
            Ok(()) => outward.await,
            Err(error) => Err(error),
        },
    }
}

async fn pass_on(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut from = BufReader::with_capacity(BUFFER_BYTES, from);
    tokio::io::copy_buf(&mut from, &mut to).await?;
    to.shutdown().await
}

/// Duplicates of the two, so that no lock of the standard library is held over them.
#[cfg(unix)]
fn open() -> std::io::Result<(tokio::fs::File, tokio::fs::File)> {
    use std::os::fd::AsFd as _;
    let input = std::io::stdin().as_fd().try_clone_to_owned()?;
    let output = std::io::stdout().as_fd().try_clone_to_owned()?;
    Ok((File::from(input).into(), File::from(output).into()))
}

#[cfg(windows)]
fn open() -> std::io::Result<(tokio::fs::File, tokio::fs::File)> {
    use std::os::windows::io::AsHandle as _;
    let input = std::io::stdin().as_handle().try_clone_to_owned()?;
    let output = std::io::stdout().as_handle().try_clone_to_owned()?;
    Ok((File::from(input).into(), File::from(output).into()))
}
