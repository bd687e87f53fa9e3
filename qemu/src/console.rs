//! A machine's serial console, as the file that QEMU appends to.
use crate::patience;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// How much of a console is read at a time and shown in errors, in bytes.
const TAIL_BYTES: u64 = 4 * 1024;
/// How much text without a match is kept while waiting, in bytes: a guest that prints without end costs no memory.
const WINDOW_BYTES: usize = 256 * 1024;
/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Why a text did not appear.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The deadline passed.
    #[error("'{pattern}' did not appear on {} within {:.1} s; its last lines:\n{tail}", path.display(), waited.as_secs_f64())]
    Timeout {
        /// What was waited for.
        pattern: String,
        /// The console's file.
        path: PathBuf,
        /// How long.
        waited: Duration,
        /// The end of the console.
        tail: String,
    },
    /// The file cannot be read.
    #[error("cannot read the console {}", path.display())]
    Io {
        /// The console's file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Reads a console from where the last [`Console::expect`] stopped.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    offset: u64,
    window: Vec<u8>,
}

impl Console {
    /// The console in `path`, from its present end on (so that a machine's earlier lives are not mistaken for this
    /// one). The file need not exist yet.
    #[must_use]
    pub fn from_end(path: &Path) -> Self {
        let offset = std::fs::metadata(path).map_or(0, |meta| meta.len());
        Self { path: path.to_owned(), offset, window: Vec::new() }
    }

    /// The console in `path`, from its beginning.
    #[must_use]
    pub fn from_start(path: &Path) -> Self {
        Self { path: path.to_owned(), offset: 0, window: Vec::new() }
    }

    /// The console's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until `pattern` appears (also across reads) and returns the line it stands in, without its line end. Text up to and including
    /// that match is used up. `timeout` is stretched by [`patience`].
    pub async fn expect(&mut self, pattern: &str, timeout: Duration) -> Result<String, ConsoleError> {
        let timeout = patience(timeout);
        let started = Instant::now();
        loop {
            self.fill()?;
            if let Some(line) = self.take_match(pattern) {
                return Ok(line);
            }
            if started.elapsed() >= timeout {
                return Err(ConsoleError::Timeout {
                    pattern: pattern.to_owned(),
                    path: self.path.clone(),
                    waited: started.elapsed(),
                    tail: tail(&self.path),
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether `pattern` has appeared since the last match; does not wait.
    pub fn seen(&mut self, pattern: &str) -> Result<bool, ConsoleError> {
        self.fill()?;
        Ok(self.take_match(pattern).is_some())
    }

    fn fill(&mut self) -> Result<(), ConsoleError> {
        let io = |source| ConsoleError::Io { path: self.path.clone(), source };
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io(error)),
        };
        file.seek(SeekFrom::Start(self.offset)).map_err(io)?;
        let read = file.take(WINDOW_BYTES as u64).read_to_end(&mut self.window).map_err(io)?;
        self.offset = self.offset.saturating_add(read as u64);
        let excess = self.window.len().saturating_sub(WINDOW_BYTES);
        self.window.drain(..excess);
        Ok(())
    }

    fn take_match(&mut self, pattern: &str) -> Option<String> {
        let found = find(&self.window, pattern.as_bytes())?;
        let end = found.saturating_add(pattern.len());
        let line_start = self.window.get(..found)?.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let rest = self.window.get(end..)?;
        let line_end = end + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        let line = String::from_utf8_lossy(self.window.get(line_start..line_end)?).trim_end().to_owned();
        self.window.drain(..end);
        Some(line)
    }
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.is_empty() {
        return Some(0);
    }
    hay.windows(needle.len()).position(|window| window == needle)
}

/// The last lines of a console, for a report; empty if it cannot be read.
#[must_use]
pub fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).replace('\r', "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn matches_are_used_up_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        std::fs::write(&path, "one: 1\r\ntwo: 2\r\none: 3\r\n").unwrap();
        let mut console = Console::from_start(&path);
        assert_eq!(console.expect("one:", Duration::ZERO).await.unwrap(), "one: 1");
        assert_eq!(console.expect("one:", Duration::ZERO).await.unwrap(), "one: 3");
        let error = console.expect("one:", Duration::from_millis(30)).await.unwrap_err().to_string();
        assert!(error.contains("did not appear") && error.contains("two: 2"), "{error}");
    }

    #[tokio::test]
    async fn a_match_may_arrive_in_pieces_and_late() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let mut console = Console::from_end(&path);
        let writer = tokio::spawn(async move {
            let mut file = File::options().create(true).append(true).open(&path).unwrap();
            for piece in ["log", "in: ", "ready\n"] {
                tokio::time::sleep(Duration::from_millis(25)).await;
                file.write_all(piece.as_bytes()).unwrap();
            }
        });
        assert_eq!(console.expect("login: ready", Duration::from_secs(5)).await.unwrap(), "login: ready");
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn an_earlier_life_is_not_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        std::fs::write(&path, "ready\n").unwrap();
        assert!(!Console::from_end(&path).seen("ready").unwrap());
    }

    #[test]
    fn endless_output_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        std::fs::write(&path, vec![b'x'; 3 * WINDOW_BYTES]).unwrap();
        let mut console = Console::from_start(&path);
        for _ in 0..4 {
            assert!(!console.seen("y").unwrap());
            assert!(console.window.len() <= WINDOW_BYTES);
        }
    }
}
