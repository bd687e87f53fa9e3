//! The last time that was known. A board that was off comes up with a clock that is too early; it is never earlier than this.
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// No board that runs this program lives in an earlier time: 2026-11-01, in seconds since 1970.
pub const EARLIEST_SECONDS: u64 = 1_793_491_200;
/// A text that is longer is no number of seconds.
const MAX_BYTES: u64 = 32;

/// A file with the last known time, in seconds since 1970. It is a hint, no store: one that cannot be read is said to be so, and
/// written anew.
#[derive(Debug, Clone)]
pub struct Floor(PathBuf);

impl Floor {
    /// The file `clock` in a directory of the data partition.
    #[must_use]
    pub fn within(directory: &Path) -> Self {
        Self(directory.join("clock"))
    }

    /// The earliest time that it can be now, in seconds since 1970.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        match self.read() {
            Ok(seconds) => seconds.max(EARLIEST_SECONDS),
            Err(error) if error.kind() == io::ErrorKind::NotFound => EARLIEST_SECONDS,
            Err(error) => {
                tracing::warn!("the last known time in {} cannot be read: {error}", self.0.display());
                EARLIEST_SECONDS
            }
        }
    }

    fn read(&self) -> io::Result<u64> {
        if fs::metadata(&self.0)?.len() > MAX_BYTES {
            return Err(io::Error::other("it is no number of seconds"));
        }
        let text = fs::read_to_string(&self.0)?;
        text.trim_end().parse().map_err(|_| io::Error::other("it is no number of seconds"))
    }

    /// Remembers a time. The old one stays until the new one is whole.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remember(&self, seconds: u64) -> io::Result<()> {
        let new = self.0.with_extension("new");
        let mut file = fs::File::create(&new)?;
        writeln!(file, "{seconds}")?;
        file.sync_all()?;
        fs::rename(&new, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_time_is_remembered_and_nonsense_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let floor = Floor::within(dir.path());
        assert_eq!(floor.seconds(), EARLIEST_SECONDS);
        floor.remember(EARLIEST_SECONDS + 5).unwrap();
        assert_eq!(floor.seconds(), EARLIEST_SECONDS + 5);
        floor.remember(7).unwrap();
        assert_eq!(floor.seconds(), EARLIEST_SECONDS, "never before the program");
        for nonsense in ["", "yesterday", "-1", "99999999999999999999999", &"9".repeat(100)] {
            std::fs::write(dir.path().join("clock"), nonsense).unwrap();
            assert_eq!(floor.seconds(), EARLIEST_SECONDS, "{nonsense}");
        }
        assert!(Floor::within(&dir.path().join("nowhere")).remember(1).is_err());
    }
}
