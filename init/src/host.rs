//! What the supervisor has been given to work with, fixed after boot.
use crate::boot;
use crate::command_line::CommandLine;
use crate::config::SupervisorConfig;
use crate::environment::{Data, Environment};
use crate::log::Log;
use crate::mode::{Abilities, Dirs, Mode, NotProcessOne, Observed, is_virtual};
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;
use wherry_sys::child::{ThreadsCounted, count_threads};
use wherry_sys::power::Watchdog;
use wherry_sys::{SysError, fd};

/// The place, made ready.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) config: SupervisorConfig,
    pub(crate) abilities: Abilities,
    pub(crate) environment: Environment,
    pub(crate) off_is_restart: bool,
    pub(crate) log: Log,
    /// Standard input of the service.
    pub(crate) null: OwnedFd,
    /// Its standard output and error.
    pub(crate) console: OwnedFd,
    pub(crate) watchdog: Option<Watchdog>,
    /// One: nothing here starts another.
    pub(crate) threads: ThreadsCounted,
}

/// Why there is nothing to supervise.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error(transparent)]
    Mode(#[from] NotProcessOne),
    #[error("cannot make the directories below {root}: {error}")]
    Dirs { root: String, error: std::io::Error },
    #[error(transparent)]
    Call(#[from] SysError),
}

/// A minute: some drivers allow less and keep their own, no machine is so busy that the loop does not turn for so long.
const WATCHDOG_TIMEOUT: Duration = Duration::from_secs(60);

impl Host {
    /// Decides what this place is and makes it ready: on a machine that is the boot.
    pub(crate) fn prepare(config: SupervisorConfig) -> Result<Self, HostError> {
        let pid = std::process::id();
        let as_process = config.process_root.is_some();
        // Asking the machine needs its file systems, and only PID 1 may mount them.
        let problems = if pid == 1 && !as_process { boot::mount_all(&boot::MOUNTS) } else { Vec::new() };
        let mode = Mode::derive(Observed { pid, as_process, virtual_machine: observe_virtual() })?;
        let abilities = Abilities::of(mode, pid);
        let log = Log::new(abilities.supports(Abilities::KERNEL_LOG));
        problems.iter().for_each(|problem| log.error(problem));
        let dirs = Dirs::below(config.process_root.as_deref().unwrap_or(Path::new("/")));
        boot::raise_limits();
        let (data, command_line) = if abilities.supports(Abilities::MACHINE) {
            let command_line = CommandLine::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
            (boot::prepare(&log, &dirs, command_line), command_line)
        } else {
            let error = |error| HostError::Dirs { root: dirs.root.display().to_string(), error };
            boot::make_dirs(&dirs).map_err(error)?;
            (Data::Mounted, CommandLine { test: true, ..CommandLine::default() })
        };
        let watchdog = if abilities.supports(Abilities::WATCHDOG) { arm(&log) } else { None };
        let (null, console) = (null()?, console(abilities)?);
        let environment = Environment { mode, dirs, data, test: command_line.test };
        let off_is_restart = command_line.off_is_restart;
        let threads = count_threads();
        Ok(Self { config, abilities, environment, off_is_restart, log, null, console, watchdog, threads })
    }
}

fn observe_virtual() -> bool {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let device_tree = fs::read("/proc/device-tree/compatible").unwrap_or_default();
    is_virtual(&text("/sys/class/dmi/id/sys_vendor"), &device_tree, &text("/proc/cpuinfo"))
}

fn arm(log: &Log) -> Option<Watchdog> {
    match Watchdog::arm(Path::new("/dev/watchdog"), WATCHDOG_TIMEOUT) {
        Ok(watchdog) => Some(watchdog),
        Err(error) => {
            log.info(format_args!("no watchdog: {error}"));
            None
        }
    }
}

fn null() -> Result<OwnedFd, SysError> {
    let file = File::open("/dev/null");
    file.map(OwnedFd::from).map_err(|error| SysError::Open(fd::errno_of(&error)))
}

/// The console of a machine, else where this process itself writes. Never its controlling terminal.
fn console(abilities: Abilities) -> Result<OwnedFd, SysError> {
    let own = || std::io::stderr().as_fd().try_clone_to_owned();
    let open = || OpenOptions::new().write(true).custom_flags(nix::libc::O_NOCTTY).open("/dev/console");
    let console = if abilities.supports(Abilities::MACHINE) { open().map(OwnedFd::from) } else { own() };
    console.or_else(|_| own()).map_err(|error| SysError::Dup(fd::errno_of(&error)))
}
