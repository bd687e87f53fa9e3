//! Errors and warnings: on standard error, and in the file that `--log` names, which is what programs above read.
use super::cli::Global;
use super::error::OciError;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::SystemTime;

#[derive(Debug)]
pub(super) struct Log {
    file: Option<File>,
    json: bool,
}

impl Log {
    /// # Errors
    /// When the file cannot be opened.
    pub(super) fn open(global: &Global) -> Result<Self, OciError> {
        let open = |path: &std::path::PathBuf| {
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o644);
            options.open(path).map_err(OciError::io("opening log", path))
        };
        Ok(Self { file: global.log.as_ref().map(open).transpose()?, json: global.log_as_json })
    }

    pub(super) fn error(&self, message: &str) {
        self.say("error", message);
        eprintln!("wherry-node oci: {message}");
    }

    pub(super) fn warn(&self, message: &str) {
        self.say("warning", message);
        eprintln!("wherry-node oci: warning: {message}");
    }

    fn say(&self, level: &str, message: &str) {
        let Some(mut file) = self.file.as_ref() else { return };
        // A full disk is no reason to fail; standard error has it too.
        file.write_all(line(self.json, SystemTime::now(), level, message).as_bytes()).ok();
    }
}

/// One entry, in the ways of runc: programs look for the fields `level` and `msg`.
fn line(json: bool, now: SystemTime, level: &str, message: &str) -> String {
    let time = humantime::format_rfc3339_seconds(now);
    if json {
        let entry = serde_json::json!({ "level": level, "msg": message, "time": time.to_string() });
        format!("{entry}\n")
    } else {
        format!("time=\"{time}\" level={level} msg={message:?}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_lines_of_either_kind() {
        let then = SystemTime::UNIX_EPOCH;
        let text = "time=\"1970-01-01T00:00:00Z\" level=error msg=\"no \\\"x\\\"\\n\"\n";
        assert_eq!(line(false, then, "error", "no \"x\"\n"), text);
        let json = line(true, then, "warning", "no \"x\"\n");
        assert_eq!(json.lines().count(), 1);
        let entry: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&entry["level"], &entry["msg"]), (&"warning".into(), &"no \"x\"\n".into()));
    }
}
