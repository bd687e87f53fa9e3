//! What is executed, as whom, with which rights.
use super::super::error::OciError;
use super::seccomp::Filter;
use oci_spec::runtime::{Capabilities, PosixRlimitType};
use rustix::process::Resource;
use wherry_sys::capability::CapabilitySet;
use wherry_sys::terminal::WindowSize;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Process {
    pub(in super::super) argv: Vec<String>,
    /// `NAME=value`.
    pub(in super::super) env: Vec<String>,
    pub(in super::super) cwd: String,
    pub(in super::super) uid: u32,
    pub(in super::super) gid: u32,
    pub(in super::super) groups: Vec<u32>,
    pub(in super::super) umask: u32,
    pub(in super::super) capabilities: Sets,
    pub(in super::super) limits: Vec<Limit>,
    pub(in super::super) no_new_privileges: bool,
    pub(in super::super) terminal: Option<WindowSize>,
    pub(in super::super) oom_score_adjustment: Option<i32>,
    pub(in super::super) filter: Option<Filter>,
}

/// capabilities(7), "Thread capability sets".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in super::super) struct Sets {
    pub(in super::super) bounding: CapabilitySet,
    pub(in super::super) effective: CapabilitySet,
    pub(in super::super) inheritable: CapabilitySet,
    pub(in super::super) permitted: CapabilitySet,
    pub(in super::super) ambient: CapabilitySet,
}

impl Sets {
    /// Ambient capabilities must be permitted and inheritable; the kernel gives no others.
    pub(in super::super) fn possible_ambient(self) -> CapabilitySet {
        self.ambient & self.permitted & self.inheritable
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Limit {
    pub(in super::super) resource: Resource,
    pub(in super::super) soft: u64,
    pub(in super::super) hard: u64,
}

/// What files that the program makes may not be for others, unless it is said otherwise.
const USUAL_UMASK: u32 = 0o022;

/// # Errors
/// [`OciError::Config`].
pub(super) fn plan(
    process: &oci_spec::runtime::Process,
    filter: Option<Filter>,
) -> Result<Process, OciError> {
    let user = process.user();
    let cwd = process.cwd().to_str().map(str::to_owned);
    let limits = process.rlimits().iter().flatten();
    Ok(Process {
        argv: process.args().clone().unwrap_or_default(),
        env: process.env().clone().unwrap_or_default(),
        cwd: cwd.ok_or_else(|| OciError::Config("process.cwd is not UTF-8".into()))?,
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask().unwrap_or(USUAL_UMASK),
        capabilities: process.capabilities().as_ref().map(sets).transpose()?.unwrap_or_default(),
        limits: limits
            .map(|limit| Limit { resource: resource(limit.typ()), soft: limit.soft(), hard: limit.hard() })
            .collect(),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        terminal: process.terminal().unwrap_or(false).then(|| size(process)),
        oom_score_adjustment: process.oom_score_adj(),
        filter,
    })
}

fn size(process: &oci_spec::runtime::Process) -> WindowSize {
    let cells = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
    let size = process.console_size();
    WindowSize {
        rows: size.as_ref().map_or(0, |size| cells(size.height())),
        columns: size.as_ref().map_or(0, |size| cells(size.width())),
    }
}

fn sets(sets: &oci_spec::runtime::LinuxCapabilities) -> Result<Sets, OciError> {
    Ok(Sets {
        bounding: set(sets.bounding())?,
        effective: set(sets.effective())?,
        inheritable: set(sets.inheritable())?,
        permitted: set(sets.permitted())?,
        ambient: set(sets.ambient())?,
    })
}

fn set(names: &Option<Capabilities>) -> Result<CapabilitySet, OciError> {
    let mut set = CapabilitySet::EMPTY;
    for capability in names.iter().flatten() {
        let name = capability.to_string();
        let one = CapabilitySet::named(&name);
        set = set | one.ok_or_else(|| OciError::Config(format!("unknown capability {name}")))?;
    }
    Ok(set)
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}
