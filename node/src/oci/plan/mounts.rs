//! Mounts and their options (runtime-spec, config.md, "Linux mount options"; mount(8)).
use super::super::error::OciError;
use std::path::{Path, PathBuf};
use wherry_sys::mount::{Attributes, Change, Propagation};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Mount {
    pub(in super::super) source: Source,
    /// Where, inside.
    pub(in super::super) target: String,
    /// For the mount itself.
    pub(in super::super) change: Change,
    /// For it and all below it.
    pub(in super::super) change_all: Change,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Source {
    /// A new file system.
    New {
        kind: String,
        /// A device, or only a word.
        device: String,
        /// Words without a value, and those with one.
        options: Vec<(String, Option<String>)>,
    },
    /// A file or directory of the host.
    Bind {
        path: PathBuf,
        recursive: bool,
        /// Options of file systems, which mean nothing for what is mounted already (mount(2), MS_BIND).
        ignored: Vec<String>,
    },
}

impl Mount {
    /// Whether the host's own devices are seen in /dev, which are then left as they are.
    pub(super) fn is_hosts_dev(&self) -> bool {
        self.target.trim_end_matches('/') == "/dev" && matches!(self.source, Source::Bind { .. })
    }

    /// What is asked for and cannot have an effect, as a sentence.
    pub(super) fn warning(&self) -> Option<String> {
        match &self.source {
            Source::Bind { ignored, .. } if !ignored.is_empty() => {
                let options = ignored.join(",");
                Some(format!(
                    "options {options} of the mount at {} mean nothing for a bind mount",
                    self.target
                ))
            }
            Source::Bind { .. } | Source::New { .. } => None,
        }
    }
}

/// # Errors
/// [`OciError::Config`], [`OciError::Unsupported`].
pub(super) fn plan(mounts: &[oci_spec::runtime::Mount], bundle: &Path) -> Result<Vec<Mount>, OciError> {
    mounts.iter().map(|mount| one(mount, bundle)).collect()
}

fn one(mount: &oci_spec::runtime::Mount, bundle: &Path) -> Result<Mount, OciError> {
    let target = mount.destination().to_str().map(str::to_owned);
    let target = target.ok_or_else(|| OciError::Config("a mount destination is not UTF-8".into()))?;
    let mut read = Options::default();
    for option in mount.options().iter().flatten().filter(|option| !option.is_empty()) {
        read.take(option).map_err(|reason| refuse(&target, option, reason))?;
    }
    let Options { bind, change, change_all, data } = read;
    let kind = mount.typ().as_deref().unwrap_or_default();
    let given = mount.source().clone().unwrap_or_default();
    let bind = bind.or((kind == "bind").then_some(false));
    let source = match bind {
        Some(recursive) => {
            if given.as_os_str().is_empty() {
                return Err(OciError::Config(format!("the mount at {target} has no source")));
            }
            // Refused by no other runtime: configurations have them, and runtime-tools tests with them.
            let ignored = data.into_iter().map(|(name, value)| match value {
                Some(value) => format!("{name}={value}"),
                None => name,
            });
            Source::Bind { path: bundle.join(given), recursive, ignored: ignored.collect() }
        }
        None if kind.is_empty() || kind == "none" => {
            return Err(OciError::Config(format!("the mount at {target} has no type and is no bind mount")));
        }
        None => Source::New {
            // There is one version of cgroups here.
            kind: if kind == "cgroup" { "cgroup2".into() } else { kind.to_owned() },
            device: given.to_string_lossy().into_owned(),
            options: data,
        },
    };
    Ok(Mount { source, target, change, change_all })
}

fn refuse(target: &str, option: &str, reason: &str) -> OciError {
    let shown: String = option.chars().take(80).collect();
    OciError::Unsupported(format!("option '{shown}' of the mount at {target} ({reason})"))
}

#[derive(Default)]
struct Options {
    /// Whether with what is mounted below.
    bind: Option<bool>,
    change: Change,
    change_all: Change,
    data: Vec<(String, Option<String>)>,
}

const NONE: Attributes = Attributes::NOTHING;
const RO: Attributes = Attributes::READ_ONLY;
const TIMES: Attributes = Attributes::ACCESS_TIMES;
const DIRECTORY_TIMES: Attributes = Attributes::NO_DIRECTORY_ACCESS_TIME;

/// Attributes by name: what is taken away, then what is added. With an `r` before it, for all mounts below too.
const ATTRIBUTES: [(&str, Attributes, Attributes); 17] = [
    ("ro", NONE, RO),
    ("rw", RO, NONE),
    ("nosuid", NONE, Attributes::NO_SUID),
    ("suid", Attributes::NO_SUID, NONE),
    ("nodev", NONE, Attributes::NO_DEVICES),
    ("dev", Attributes::NO_DEVICES, NONE),
    ("noexec", NONE, Attributes::NO_EXEC),
    ("exec", Attributes::NO_EXEC, NONE),
    ("nosymfollow", NONE, Attributes::NO_SYMLINKS),
    ("symfollow", Attributes::NO_SYMLINKS, NONE),
    ("noatime", TIMES, Attributes::NO_ACCESS_TIME),
    ("atime", TIMES, NONE),
    ("relatime", TIMES, NONE),
    ("norelatime", TIMES, Attributes::STRICT_ACCESS_TIME),
    ("strictatime", TIMES, Attributes::STRICT_ACCESS_TIME),
    ("nostrictatime", TIMES, NONE),
    ("diratime", DIRECTORY_TIMES, NONE),
];

const PROPAGATIONS: [(&str, Propagation); 4] = [
    ("shared", Propagation::Shared),
    ("slave", Propagation::Slave),
    ("private", Propagation::Private),
    ("unbindable", Propagation::Unbindable),
];

impl Options {
    fn take(&mut self, option: &str) -> Result<(), &'static str> {
        match option {
            "bind" => self.bind = self.bind.or(Some(false)),
            "rbind" => self.bind = Some(true),
            // What the kernel does anyway.
            "defaults" | "async" | "nomand" | "nolazytime" | "loud" | "noiversion" => {}
            // Of the file system, not of the mount.
            "sync" | "dirsync" | "lazytime" | "silent" | "iversion" => {
                self.data.push((option.to_owned(), None));
            }
            "remount" => return Err("nothing is mounted there yet"),
            "mand" => return Err("kernels have no mandatory locks any more"),
            "idmap" | "ridmap" => return Err("mounts have no id mappings here"),
            "tmpcopyup" => return Err("it is no option of the specification's"),
            "nodiratime" => add(&mut self.change, NONE, DIRECTORY_TIMES),
            "rnodiratime" => add(&mut self.change_all, NONE, DIRECTORY_TIMES),
            other => self.take_other(other),
        }
        Ok(())
    }

    fn take_other(&mut self, option: &str) {
        let all = option.strip_prefix('r');
        if let Some((_, clear, set)) = ATTRIBUTES.iter().find(|(name, ..)| *name == option) {
            add(&mut self.change, *clear, *set);
        } else if let Some((_, propagation)) = PROPAGATIONS.iter().find(|(name, _)| *name == option) {
            self.change.propagation = Some(*propagation);
        } else if let Some((_, clear, set)) = ATTRIBUTES.iter().find(|(name, ..)| Some(*name) == all) {
            add(&mut self.change_all, *clear, *set);
        } else if let Some((_, propagation)) = PROPAGATIONS.iter().find(|(name, _)| Some(*name) == all) {
            self.change_all.propagation = Some(*propagation);
        } else {
            self.data.push(match option.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (option.to_owned(), None),
            });
        }
    }
}

/// The last word counts.
fn add(change: &mut Change, clear: Attributes, set: Attributes) {
    change.set = change.set.without(clear).and(set);
    change.clear = change.clear.without(set).and(clear);
    if clear.contains(TIMES) {
        change.clear = change.clear.and(TIMES);
    }
}

/// Every option that belongs to mounts and not to one kind of file system.
pub(in super::super) fn names() -> Vec<String> {
    const OTHERS: [&str; 15] = [
        "async",
        "bind",
        "defaults",
        "dirsync",
        "iversion",
        "lazytime",
        "loud",
        "nodiratime",
        "noiversion",
        "nolazytime",
        "nomand",
        "rbind",
        "rnodiratime",
        "silent",
        "sync",
    ];
    let own = ATTRIBUTES.iter().map(|(name, ..)| *name).chain(PROPAGATIONS.iter().map(|(name, _)| *name));
    let mut names: Vec<String> = own.flat_map(|name| [name.to_owned(), format!("r{name}")]).collect();
    names.extend(OTHERS.iter().map(|name| (*name).to_owned()));
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &str) -> Result<Options, &'static str> {
        let mut read = Options::default();
        options.split(',').try_for_each(|option| read.take(option)).map(|()| read)
    }

    #[test]
    fn the_last_of_opposite_options_counts() {
        let read = of("ro,nosuid,rw,noatime,nosuid,suid,relatime,strictatime").unwrap();
        assert_eq!(read.change.set, Attributes::STRICT_ACCESS_TIME);
        assert_eq!(read.change.clear, RO.and(Attributes::NO_SUID).and(TIMES));
        let read = of("rbind,rro,rslave,private,bind").unwrap();
        assert_eq!((read.bind, read.change_all.set), (Some(true), RO));
        assert_eq!(read.change_all.propagation, Some(Propagation::Slave));
        assert_eq!(read.change.propagation, Some(Propagation::Private));
    }

    #[test]
    fn what_is_no_attribute_belongs_to_the_file_system() {
        let read = of("size=1k,newinstance,context=a=b,sync,defaults").unwrap();
        let some = |text: &str| Some(text.to_owned());
        let expected =
            [("size", some("1k")), ("newinstance", None), ("context", some("a=b")), ("sync", None)];
        let expected: Vec<_> = expected.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        assert_eq!(read.data, expected);
        for refused in ["remount", "mand", "idmap", "tmpcopyup"] {
            assert!(of(refused).is_err(), "{refused}");
        }
    }
}
