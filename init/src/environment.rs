//! What the supervisor tells the service through its environment.
use crate::mode::{Dirs, Mode};
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// `board`, `vm` or `process`.
pub const MODE_ENV: &str = "WHERRY_MODE";
/// The directory below which everything is.
pub const ROOT_ENV: &str = "WHERRY_ROOT";
/// `mounted`, `memory`, `damaged` or `absent`.
pub const DATA_ENV: &str = "WHERRY_DATA";
/// `1` if the kernel command line allows failing on purpose.
pub const TEST_ENV: &str = "WHERRY_TEST";

/// What became of the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// It survives a reboot.
    Mounted,
    /// It is lost at power-off, as the command line asked.
    Memory,
    /// The partition is there and cannot be mounted. It is never formatted: somebody may still rescue what is on it.
    Damaged,
    /// There is no such partition.
    Absent,
}

impl Data {
    fn word(self) -> &'static str {
        match self {
            Self::Mounted => "mounted",
            Self::Memory => "memory",
            Self::Damaged => "damaged",
            Self::Absent => "absent",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Mounted, Self::Memory, Self::Damaged, Self::Absent]
            .into_iter()
            .find(|data| data.word() == word)
    }
}

/// What the service knows of the place it runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// What kind of place.
    pub mode: Mode,
    /// Where things are.
    pub dirs: Dirs,
    /// State of `dirs.data`.
    pub data: Data,
    /// The kernel command line allows failing on purpose.
    pub test: bool,
}

impl Environment {
    /// The service's own, `None` if no supervisor has started this process.
    #[must_use]
    pub fn inherited() -> Option<Self> {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let word = |name: &str| lookup(name)?.into_string().ok();
        Some(Self {
            mode: Mode::from_word(&word(MODE_ENV)?)?,
            dirs: Dirs::below(Path::new(&lookup(ROOT_ENV)?)),
            data: Data::from_word(&word(DATA_ENV)?)?,
            test: word(TEST_ENV).as_deref() == Some("1"),
        })
    }

    /// As the service gets it.
    pub(crate) fn variables(&self) -> Vec<CString> {
        let text = |name: &str, value: &[u8]| CString::new([name.as_bytes(), b"=", value].concat()).ok();
        // What a developer sets to see more; a board's PID 1 has neither.
        let seen = |name: &str| text(name, std::env::var_os(name)?.as_bytes());
        let fixed = [
            seen("RUST_LOG"),
            seen("RUST_BACKTRACE"),
            text("PATH", b"/usr/sbin:/usr/bin:/sbin:/bin"),
            text(MODE_ENV, self.mode.word().as_bytes()),
            text(ROOT_ENV, self.dirs.root.as_os_str().as_bytes()),
            text(DATA_ENV, self.data.word().as_bytes()),
            if self.test { text(TEST_ENV, b"1") } else { None },
        ];
        fixed.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_understood() {
        for data in [Data::Mounted, Data::Memory, Data::Damaged, Data::Absent] {
            let told = Environment {
                mode: Mode::Vm,
                dirs: Dirs::below(Path::new("/r")),
                data,
                test: data == Data::Memory,
            };
            let variables = told.variables();
            let lookup = |name: &str| {
                let prefix = format!("{name}=");
                let value = |text: &CString| text.to_str().unwrap().strip_prefix(&prefix).map(OsString::from);
                variables.iter().find_map(value)
            };
            assert_eq!(Environment::from_lookup(lookup), Some(told));
        }
    }

    #[test]
    fn a_foreign_environment_is_refused() {
        assert_eq!(Environment::from_lookup(|_| None), None);
        assert_eq!(Environment::from_lookup(|_| Some("nonsense".into())), None);
    }
}
