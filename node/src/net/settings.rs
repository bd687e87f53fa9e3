//! Kernel settings below /proc/sys/net. They belong to the network namespace of the thread that opens the file.
use std::io;
use std::path::PathBuf;

fn path(setting: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(setting)
}

/// The setting's value; `None` where this kernel or namespace does not have it.
pub(crate) fn read(setting: &str) -> Option<String> {
    std::fs::read_to_string(path(setting)).ok().map(|text| text.trim().to_owned())
}

/// Writes the setting.
pub(crate) fn write(setting: &str, value: &str) -> io::Result<()> {
    std::fs::write(path(setting), value)
}

/// Writes the setting where this kernel or namespace has it.
pub(crate) fn write_if_there(setting: &str, value: &str) -> io::Result<()> {
    match write(setting, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
