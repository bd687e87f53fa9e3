//! One more process in a running container, as the service sees it: started through the supervisor, its streams at hand.
use super::exec::ARGUMENT;
use super::instance::{Instance, not_running, unusable};
use super::plan::{self, Process};
use super::pump::{AsyncDescriptor, END_OF_TRANSMISSION};
use super::report::{self, Report};
use super::supervisor::{ExitWatch, Supervisor};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;
use wherry_init::control::{Descriptors, Launch, Namespaces, ProcessKey};
use wherry_protocol::message::{CopySpec, ExecSpec, ExitStatus};
use wherry_protocol::{ErrorCode, WireError};
use wherry_sys::terminal::{Pty, WindowSize, open_pty_of, set_window_size};

/// Ids of exec'd processes have this bit, which no container's has; a restarted service ends what it finds of them,
/// because whoever asked for them is gone.
pub const EXEC_BIT: u64 = 1 << 63;
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A process in a container.
#[derive(Debug)]
pub struct Execution {
    /// Towards it; `None` when it reads end-of-file.
    stdin: Mutex<Option<AsyncDescriptor>>,
    /// From it; of a terminal both ways.
    pub stdout: AsyncDescriptor,
    /// From it; `None` with a terminal.
    pub stderr: Option<AsyncDescriptor>,
    key: ProcessKey,
    report: AsyncDescriptor,
    supervisor: Supervisor,
    exit: ExitWatch,
}

impl Execution {
    /// Starts `spec` in the container that `instance` is.
    ///
    /// # Errors
    /// One sentence when there is nothing to join or the wish makes no sense. That the program is missing is told by
    /// [`Execution::wait`].
    pub async fn start(
        supervisor: &Supervisor,
        instance: &Instance,
        spec: &ExecSpec,
    ) -> Result<Self, WireError> {
        let process = plan::exec(&instance.process, spec)?;
        Self::begin(supervisor, instance, (&process, spec)).await
    }

    /// Starts copying files out of or into the container that `instance` is.
    ///
    /// # Errors
    /// As [`Execution::start`].
    pub async fn copy(
        supervisor: &Supervisor,
        instance: &Instance,
        copy: &CopySpec,
    ) -> Result<Self, WireError> {
        let process = plan::copy(&instance.process, copy)?;
        let spec = ExecSpec { stdin: copy.reads(), ..ExecSpec::default() };
        Self::begin(supervisor, instance, (&process, &spec)).await
    }

    async fn begin(
        supervisor: &Supervisor,
        instance: &Instance,
        (process, spec): (&Process, &ExecSpec),
    ) -> Result<Self, WireError> {
        let pidfd = instance.pidfd().ok_or_else(|| not_running(instance.container))?;
        if instance.condition().borrow().paused {
            let message = format!("container {} is paused: let it go on first", instance.container.id);
            return Err(WireError::new(ErrorCode::WrongState, message));
        }
        let cgroup = if instance.cgroup.is_real() {
            Some(instance.cgroup.directory().map_err(|error| unusable(io::Error::other(error)))?)
        } else {
            None
        };
        let ends = Ends::open(spec, process, (instance.pid, pidfd), cgroup).map_err(unusable)?;
        // From here on the id is taken; a supervisor that lives long enough to see 2^63 of them would be a wonder.
        let key = ProcessKey {
            id: EXEC_BIT | NEXT.fetch_add(1, Ordering::Relaxed),
            generation: std::process::id(),
        };
        let launch = Launch {
            key,
            namespaces: Namespaces::NONE,
            argument: ARGUMENT.into(),
            cgroup: ends.child.cgroup.is_some(),
            extra: 0,
            kept: Vec::new(),
        };
        let launched = supervisor.launch(launch, &ends.child).await?;
        let supervisor = supervisor.clone();
        let Ends { child: _, stdin, stdout, stderr, report } = ends;
        Ok(Self { stdin: Mutex::new(stdin), stdout, stderr, key, report, supervisor, exit: launched.exit })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it never became the program that was asked for.
    pub async fn wait(&self) -> Result<ExitStatus, WireError> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 1024];
        while bytes.len() <= report::MAX_BYTES {
            match self.report.read(&mut buffer).await.map_err(unusable)? {
                0 => break,
                length => bytes.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            }
        }
        match report::decode(&bytes).0.pop() {
            Some(Report::Code(code)) => Ok(ExitStatus::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX))),
            Some(Report::Signal(signal)) => Ok(ExitStatus::Signal(u8::try_from(signal).unwrap_or(u8::MAX))),
            Some(Report::Failed(failure)) => Err(failure.into()),
            // The helper itself was killed, with the container.
            Some(Report::Executing | Report::AtTheGate) | None => Ok(ExitStatus::Signal(9)),
        }
    }

    /// Completes when it has ended.
    pub async fn ended(&self) {
        self.exit.clone().wait_for(Option::is_some).await.ok();
    }

    /// Writes to its stdin, or its terminal.
    ///
    /// # Errors
    /// As write(2): EPIPE when it reads no more.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        if self.stderr.is_none() {
            return self.stdout.write_all(bytes).await;
        }
        match self.stdin.lock().await.as_ref() {
            Some(stdin) => stdin.write_all(bytes).await,
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// No more input comes.
    pub async fn end_input(&self) {
        if self.stderr.is_none() {
            self.stdout.write_all(&[END_OF_TRANSMISSION]).await.ok();
        } else {
            self.stdin.lock().await.take();
        }
    }

    /// Tells its terminal the size.
    pub fn resize(&self, rows: u16, columns: u16) {
        if self.stderr.is_none()
            && let Err(error) = set_window_size(self.stdout.get().as_fd(), WindowSize { rows, columns })
        {
            tracing::debug!("a terminal was not resized: {error}");
        }
    }

    /// Sends a signal; it reaches the process through its helper.
    pub async fn signal(&self, signal: u8) {
        self.supervisor.signal(self.key, i32::from(signal)).await.ok();
    }

    /// Ends it, whether or not it still runs, and forgets it.
    pub async fn release(&self) {
        self.supervisor.release(self.key).await.ok();
    }
}

struct Ends {
    child: Descriptors<OwnedFd>,
    stdin: Option<AsyncDescriptor>,
    stdout: AsyncDescriptor,
    stderr: Option<AsyncDescriptor>,
    report: AsyncDescriptor,
}

impl Ends {
    fn open(
        spec: &ExecSpec,
        process: &Process,
        (pid, pidfd): (u32, OwnedFd),
        cgroup: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let bytes = postcard::to_stdvec(process).map_err(io::Error::other)?;
        let plan = wherry_sys::fd::sealed_memfd(c"wherry-exec", &bytes)
            .map_err(|error| io::Error::from(error.errno()))?;
        let (report, report_child) = pipe()?;
        let (stdio, stdin, stdout, stderr) = match spec.tty {
            Some((rows, columns)) => {
                let pty = inside_terminal(pid, &pidfd, WindowSize { rows, columns })?;
                let inside = [pty.terminal.try_clone()?, pty.terminal.try_clone()?, pty.terminal];
                (inside, None, AsyncDescriptor::new(pty.controller)?, None)
            }
            None => {
                let (stdin_child, stdin) = input(spec.stdin)?;
                let (stdout, stdout_child) = pipe()?;
                let (stderr, stderr_child) = pipe()?;
                let stderr = Some(AsyncDescriptor::new(stderr)?);
                ([stdin_child, stdout_child, stderr_child], stdin, AsyncDescriptor::new(stdout)?, stderr)
            }
        };
        // The helper finds the container's pidfd where a container finds its gate.
        let child = Descriptors {
            plan,
            go: pidfd,
            report: report_child,
            stdio,
            cgroup,
            extra: Vec::new(),
            kept: Vec::new(),
        };
        Ok(Self { child, stdin, stdout, stderr, report: AsyncDescriptor::new(report)? })
    }
}

/// A terminal of the container's own /dev/pts, so that its programs find it there by name (ttyname(3)).
fn inside_terminal(pid: u32, pidfd: &OwnedFd, size: WindowSize) -> io::Result<Pty> {
    const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
    let root = rustix::fs::openat(CWD, format!("/proc/{pid}/root"), PATH, Mode::empty())?;
    // It has not ended, so the number has meant it and nobody else.
    wherry_sys::process::pidfd_send_signal(pidfd, 0).map_err(|error| io::Error::from(error.errno()))?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let multiplexer = rustix::fs::openat2(root, "dev/pts/ptmx", PATH, Mode::empty(), inside)?;
    open_pty_of(multiplexer, size).map_err(|error| io::Error::from(error.errno()))
}

fn input(wanted: bool) -> io::Result<(OwnedFd, Option<AsyncDescriptor>)> {
    if !wanted {
        return Ok((File::open("/dev/null")?.into(), None));
    }
    let (reader, writer) = pipe()?;
    Ok((reader, Some(AsyncDescriptor::new(writer)?)))
}

/// A pipe, close-on-exec: read end, write end.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}
