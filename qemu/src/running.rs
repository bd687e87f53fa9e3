//! A machine that runs.
use crate::console::{Console, ConsoleError, tail};
use crate::host::{Accelerator, Host};
use crate::machine::Machine;
use crate::patience;
use crate::qmp::{Qmp, QmpError};
use crate::spawn::{bound_to_us, spawn};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::Instant;

/// How much of what QEMU says on stderr is kept, in bytes.
const MAX_STDERR_BYTES: u64 = 16 * 1024;
/// How long an ended QEMU may take to be gone: the kernel gives back its memory.
const REAP: Duration = Duration::from_secs(10);
/// How often a wait looks whether the machine still runs.
const POLL: Duration = Duration::from_millis(50);

/// Why a machine did not do as told.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The emulator could not be started.
    #[error("cannot start {program} for machine {machine}; is it installed?")]
    Spawn {
        /// The machine.
        machine: String,
        /// The emulator.
        program: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The emulator refused its command line or died at once.
    #[error("QEMU for machine {machine} ended before it ran: {reason}")]
    Start {
        /// The machine.
        machine: String,
        /// What it printed.
        reason: String,
    },
    /// The machine ended while something was expected of it.
    #[error(
        "machine {machine} ended ({status}) while '{pattern}' was expected on its console; its last lines:\n{tail}"
    )]
    Ended {
        /// The machine.
        machine: String,
        /// How QEMU ended.
        status: ExitStatus,
        /// What was waited for.
        pattern: String,
        /// The end of the console.
        tail: String,
    },
    /// Something did not appear on the console.
    #[error("machine {machine}: {source}")]
    Console {
        /// The machine.
        machine: String,
        /// What did not.
        source: ConsoleError,
    },
    /// QMP failed.
    #[error("machine {machine}: {source}")]
    Qmp {
        /// The machine.
        machine: String,
        /// Why.
        source: QmpError,
    },
    /// It does not end.
    #[error("machine {machine} did not end within {:.1} s", waited.as_secs_f64())]
    StillRunning {
        /// The machine.
        machine: String,
        /// How long.
        waited: Duration,
    },
    /// The system refused to tell about the process.
    #[error("cannot watch the QEMU process of machine {machine}")]
    Process {
        /// The machine.
        machine: String,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Memory of a process, as the host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Resident set: all pages it has, in bytes.
    pub rss_bytes: u64,
    /// Proportional set: pages shared with others count in part, in bytes.
    pub pss_bytes: u64,
}

impl Memory {
    /// Of process `pid`, from /proc/PID/smaps_rollup (Linux only).
    #[must_use]
    pub fn of_process(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
    }

    fn parse(rollup: &str) -> Option<Self> {
        let field = |name: &str| -> Option<u64> {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Self { rss_bytes: field("Rss:")?, pss_bytes: field("Pss:")? })
    }
}

/// One QEMU process. Dropping it cuts the power.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    pid: u32,
    qmp: Qmp<ChildStdout, ChildStdin>,
    console: Console,
    accelerator: Accelerator,
    started: Instant,
}

impl Running {
    /// Starts `machine`. When this returns its CPUs run.
    pub async fn start(
        machine: &Machine,
        accelerator: Accelerator,
        host: &Host,
    ) -> Result<Self, MachineError> {
        let program = machine.arch.program();
        let console = Console::from_end(&machine.console);
        let started = Instant::now();
        let mut command = bound_to_us(program);
        command.args(machine.command_line(accelerator, host));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let unable = |source| MachineError::Spawn { machine: machine.name.clone(), program, source };
        let mut child = spawn(command).await.map_err(unable)?;
        let gone = || std::io::Error::other("the process has no pipes");
        let (Some(stdin), Some(stdout), Some(pid)) = (child.stdin.take(), child.stdout.take(), child.id())
        else {
            return Err(unable(gone()));
        };
        let qmp = match Qmp::handshake(stdout, stdin).await {
            Ok(qmp) => qmp,
            Err(error) => return Err(explain_start(&machine.name, child, &error).await),
        };
        forward_stderr(&machine.name, &mut child);
        Ok(Self { name: machine.name.clone(), child, pid, qmp, console, accelerator, started })
    }

    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// QEMU's process id (also the id of its process group).
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How the guest's instructions are run.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// Time since QEMU was started.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The console's file.
    #[must_use]
    pub fn console_path(&self) -> &Path {
        self.console.path()
    }

    /// The control connection.
    pub fn qmp(&mut self) -> &mut Qmp<ChildStdout, ChildStdin> {
        &mut self.qmp
    }

    /// What QEMU takes of the host's memory; `None` where the system does not tell.
    #[must_use]
    pub fn memory(&self) -> Option<Memory> {
        Memory::of_process(self.pid)
    }

    /// Waits for `pattern` on the console and returns its line. Fails early when the machine ends.
    pub async fn expect(&mut self, pattern: &str, timeout: Duration) -> Result<String, MachineError> {
        let machine = self.name.clone();
        let path = self.console.path().to_owned();
        tokio::select! {
            biased;
            line = self.console.expect(pattern, timeout) => {
                line.map_err(|source| MachineError::Console { machine, source })
            }
            status = self.child.wait() => {
                // What was printed just before the end counts.
                if let Ok(line) = self.console.expect(pattern, Duration::ZERO).await {
                    return Ok(line);
                }
                let status = status.map_err(|source| MachineError::Process { machine: machine.clone(), source })?;
                Err(MachineError::Ended { machine, status, pattern: pattern.to_owned(), tail: tail(&path) })
            }
        }
    }

    /// Whether QEMU still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until QEMU ends by itself (the guest powered off or rebooted).
    pub async fn wait(&mut self, timeout: Duration) -> Result<ExitStatus, MachineError> {
        let timeout = patience(timeout);
        match tokio::time::timeout(timeout, self.child.wait()).await {
            Ok(status) => {
                status.map_err(|source| MachineError::Process { machine: self.name.clone(), source })
            }
            Err(_) => Err(MachineError::StillRunning { machine: self.name.clone(), waited: timeout }),
        }
    }

    /// Cuts the power: the guest gets no chance to write anything.
    pub async fn power_cut(mut self) -> Result<(), MachineError> {
        let process = |source| MachineError::Process { machine: self.name.clone(), source };
        self.child.start_kill().map_err(process)?;
        self.wait(REAP).await.map(drop)
    }

    /// Presses the power button and waits for the guest to power off. A guest that does not within `timeout` (those
    /// without ACPI have no such button) is ended by QEMU, which still writes out its disks.
    pub async fn power_down(mut self, timeout: Duration) -> Result<(), MachineError> {
        let machine = self.name.clone();
        let qmp = |source| MachineError::Qmp { machine: machine.clone(), source };
        self.qmp.system_powerdown().await.map_err(qmp)?;
        let deadline = Instant::now() + patience(timeout);
        while Instant::now() < deadline {
            if !self.is_running() {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        self.quit().await
    }

    /// Ends QEMU in order: the guest is cut off, the disk files are written out.
    pub async fn quit(mut self) -> Result<(), MachineError> {
        let machine = self.name.clone();
        self.qmp.quit().await.map_err(|source| MachineError::Qmp { machine, source })?;
        self.wait(REAP).await.map(drop)
    }
}

/// QEMU says on stderr why it will not start.
async fn explain_start(machine: &str, mut child: Child, error: &QmpError) -> MachineError {
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let read = async { stderr.take(MAX_STDERR_BYTES).read_to_end(&mut said).await };
        // Whatever came within the time is told; there is nothing to do about the rest.
        drop(tokio::time::timeout(Duration::from_secs(2), read).await);
    }
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let reason = if said.is_empty() { error.to_string() } else { said };
    MachineError::Start { machine: machine.to_owned(), reason }
}

/// Keeps QEMU's stderr from filling its pipe, and puts what it says into our log.
fn forward_stderr(machine: &str, child: &mut Child) {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let Some(stderr) = child.stderr.take() else { return };
    let machine = machine.to_owned();
    tokio::spawn(async move {
        let mut lines = BufReader::new(stderr).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            tracing::warn!(machine, "qemu: {}", String::from_utf8_lossy(&line));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_process() {
        let text = "00400000-7fff rollup\nRss:    2048 kB\nPss:    1024 kB\nPss_Dirty: 5 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { rss_bytes: 2 << 20, pss_bytes: 1 << 20 }));
        assert_eq!(Memory::parse("Rss: x kB\nPss: 1 kB"), None);
        assert_eq!(Memory::parse(""), None);
    }
}
