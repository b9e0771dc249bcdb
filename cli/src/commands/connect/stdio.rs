//! `connect --stdio`: one session over stdin and stdout.

use std::fs::File;
use std::io::IsTerminal as _;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};

use super::super::interruption::Interruption;
use crate::context::Context;
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::session::{Early, Session, Sessions};

const BUFFER_BYTES: usize = 64 * 1024;

/// Opens a session and carries stdin and stdout until the service ends it, or somebody this program. The end of stdin is
/// passed on, and what the service still has to say is awaited.
pub(super) async fn run(context: &Context, sessions: &Arc<Sessions>) -> anyhow::Result<ExitStatus> {
    let (mut input, output) = open()?;
    // Whoever types waits for the session, and a terminal has no end that could be found twice.
    let mut early = match std::io::stdin().is_terminal() {
        true => Early::none(),
        false => Early::of(&mut input),
    };
    let session = Box::pin(sessions.open(&mut early)).await?;
    let interruption = Interruption::listen()?;
    super::say_session(context, &session);
    // The span lasts as long as the session.
    let Session {
        stream, span: _span, ..
    } = session;
    let (reader, writer) = tokio::io::split(stream);
    let carrying = carry(pass_on(input, writer), pass_on(reader, output));
    let ended = tokio::select! {
        ended = carrying => ended,
        // OpenSSH hangs up on its proxy command. The agent hears that nobody will come back.
        () = interruption.wait() => Ok(()),
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
