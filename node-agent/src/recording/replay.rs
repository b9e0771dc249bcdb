//! Working out what a terminal shows from the recording of it, while that is being made.

use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::time::{Duration, Instant};

use iap_audit::asciicast::LINE_BYTES_MAX;

use super::{Name, Recordings};
use crate::watch::{Canvas, Keyframe};

/// How much of a recording is looked at, from its end: what was set before and not since is not known.
pub(crate) const KEYFRAME_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// And for how long.
const KEYFRAME_TIME_MAX: Duration = Duration::from_secs(4);

impl Recordings {
    /// What the terminal shows behind the first `position` bytes of a recording; it has `size` there. Blocks.
    pub(super) fn keyframe(
        &self,
        name: Name,
        position: u64,
        size: (u32, u32),
        is_terminal: bool,
    ) -> io::Result<Keyframe> {
        let mut file = self.read(name)?;
        let start = position.saturating_sub(KEYFRAME_BYTES_MAX);
        file.seek(SeekFrom::Start(start))?;
        let mut lines = BufReader::new(file).take(position - start);
        let mut line = Vec::new();
        // The header, or the rest of a line that begins before.
        read_line(&mut lines, &mut line)?;
        let mut canvas =
            Canvas::new(size, is_terminal).ok_or_else(|| io::Error::other("a terminal without a size"))?;
        let began = Instant::now();
        while read_line(&mut lines, &mut line)? {
            canvas
                .push(&line, || began.elapsed() >= KEYFRAME_TIME_MAX)
                .map_err(io::Error::other)?;
        }
        Ok(canvas.keyframe())
    }
}

/// Whether there was one.
fn read_line(lines: &mut io::Take<BufReader<std::fs::File>>, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let read = lines
        .by_ref()
        .take(LINE_BYTES_MAX as u64)
        .read_until(b'\n', line)?;
    Ok(read > 0)
}
