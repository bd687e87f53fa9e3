//! Containers from a busybox image, with the smallest possible launcher in place of the supervisor.
//!
//! Runs as root: namespaces, mounts and ownership are what is tested.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
pub mod blobs;
#[cfg(feature = "oci")]
pub mod oci;
pub mod service;
pub mod supervisor;

use nix::sched::CloneFlags;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use wherry_images::oci::ImageConfig;
use wherry_node::container::plan::{self, Plan, Process, Surroundings};
use wherry_node::container::report::{self, Failure, Report};
use wherry_node::container::rootfs::DataDir;
use wherry_node::container::seccomp::Filter;
use wherry_node::container::user_namespace::{Fresh, UserNamespaces};
use wherry_node::container::{child, exec};
use wherry_protocol::message::{
    ContainerDesired, ContainerSpec, CopySpec, Descriptor, ExecSpec, ImageManifest, Media, Want,
};
use wherry_protocol::{AccountId, ContainerId, ContainerRef, Digest, Generation};
use wherry_sys::process::{End, Image, Spawn, spawn, wait};

/// How long a container of a test may take for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The node's program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_wherry-node");
/// The processor of this machine in OCI's words.
pub const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 27] = [
    "cat", "chmod", "chown", "cp", "echo", "env", "false", "grep", "id", "kill", "ln", "ls", "mkdir",
    "mknod", "mount", "printf", "pwd", "rm", "sh", "sleep", "stat", "stty", "touch", "true", "tty",
    "unshare", "test",
];

/// A node's data directory and one image.
pub struct World {
    base: tempfile::TempDir,
    pub data: DataDir,
    pub layers: Vec<PathBuf>,
    pub image: ImageConfig,
    filter: Filter,
    user_namespaces: Option<UserNamespaces>,
    /// Of plans that have not been started.
    fresh: Mutex<Vec<Fresh>>,
}

impl World {
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests run as root, as the node does");
        assert!(Path::new(BUSYBOX).exists(), "install busybox-static");
        let base = tempfile::tempdir().unwrap();
        let data = DataDir::open(&base.path().join("data"), &base.path().join("run")).unwrap();
        let layer = data.layers().join("busybox");
        busybox_root(&layer);
        let json = br#"{"config":{"Env":["PATH=/bin","FROM=image"],"Cmd":["/bin/sh"]}}"#;
        let image = ImageConfig::parse(json).unwrap();
        Self {
            user_namespaces: Some(UserNamespaces::open(&data.path()).unwrap()),
            base,
            data,
            layers: vec![layer],
            image,
            filter: Filter::compile(),
            fresh: Mutex::default(),
        }
    }

    /// As on a node whose kernel or disk cannot have any.
    pub fn without_user_namespaces() -> Self {
        Self { user_namespaces: None, ..Self::new() }
    }

    /// The one layer, to be changed before something is started.
    pub fn layer(&self) -> &Path {
        &self.layers[0]
    }

    pub fn path(&self) -> &Path {
        self.base.path()
    }

    pub fn plan(&self, spec: ContainerSpec) -> Plan {
        let desired = desired(spec);
        let dir = self.data.container(desired.container.id);
        let fresh = self.user_namespaces.as_ref().map(|all| all.make().unwrap());
        let around = Surroundings {
            image: &self.image,
            layers: &self.layers,
            dir: &dir,
            nameservers: &[Ipv4Addr::new(9, 9, 9, 9)],
            volumes: &self.data.volumes_of(desired.account),
            filter: &self.filter,
            devices: &[],
            files: &[],
            first_id: fresh.as_ref().map(|fresh| fresh.ids.first()),
            owns_network: true,
        };
        let plan = plan::plan(&desired, &around).unwrap();
        self.fresh.lock().unwrap().extend(fresh);
        dir.prepare(wherry_protocol::Generation(0)).unwrap();
        for mount in &desired.spec.mounts {
            self.data.make_volume(desired.account, &mount.volume).unwrap();
        }
        plan
    }

    pub fn start(&self, spec: ContainerSpec) -> Running {
        self.start_plan(&self.plan(spec))
    }

    pub fn start_plan(&self, plan: &Plan) -> Running {
        let (running, mut gate) = self.start_gated(plan);
        gate.write_all(b"g").ok();
        running
    }

    /// Starts a container that waits until something is written to the file.
    pub fn start_gated(&self, plan: &Plan) -> (Running, File) {
        let bytes = postcard::to_stdvec(plan).unwrap();
        let (go, gate) = pipe();
        let mut fresh = self.fresh.lock().unwrap();
        let own = fresh.iter().position(|fresh| Some(fresh.ids.first()) == plan.process.first_id);
        let own = own.map(|own| fresh.remove(own));
        let (namespaces, extra) = match own {
            Some(Fresh { user, net, uts, ipc, .. }) => (OWN_TREE, vec![user, uts, ipc, net]),
            None => (ALL, Vec::new()),
        };
        (launch(child::ARGUMENT, (&bytes, go, &extra), namespaces, plan.process.tty), gate)
    }

    /// Runs a command to its end.
    pub fn run(&self, command: &[&str]) -> Finished {
        self.start(spec(command)).finish()
    }

    /// Runs a shell command to its end and returns what it printed; it must succeed.
    pub fn shell(&self, script: &str) -> String {
        let finished = self.run(&["/bin/sh", "-c", script]);
        assert_eq!(finished.end, End::Code(0), "{finished:?}");
        finished.stdout
    }
}

const OWN_TREE: CloneFlags = CloneFlags::CLONE_NEWNS.union(CloneFlags::CLONE_NEWPID);
const ALL: CloneFlags =
    OWN_TREE.union(CloneFlags::CLONE_NEWNET).union(CloneFlags::CLONE_NEWUTS).union(CloneFlags::CLONE_NEWIPC);

/// A root directory with busybox in it.
pub fn busybox_root(root: &Path) {
    for directory in ["bin", "etc", "tmp", "root", "home/ann"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    APPLETS.iter().for_each(|applet| symlink("busybox", root.join("bin").join(applet)).unwrap());
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nann:x:1001:\nlogs:x:40:ann\n").unwrap();
    fs::set_permissions(root.join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
}

pub fn spec(command: &[&str]) -> ContainerSpec {
    ContainerSpec {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        ..ContainerSpec::default()
    }
}

pub fn desired(spec: ContainerSpec) -> ContainerDesired {
    let config = Descriptor { digest: Digest::of(b""), size: 0, media: Media::Config };
    ContainerDesired {
        container: ContainerRef { id: ContainerId(7), generation: Generation(1) },
        account: AccountId(3),
        name: "box".parse().unwrap(),
        spec,
        image: ImageManifest { config, layers: Vec::new() },
        address: Ipv4Addr::new(10, 2, 0, 5),
        want: Want::Running,
        restarts: 0,
        clean_since: Generation(0),
    }
}

fn pipe() -> (OwnedFd, File) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (read, File::from(write))
}

/// A process of the node's program with its descriptors.
fn launch(
    argument: &str,
    (plan, fourth, extra): (&[u8], OwnedFd, &[OwnedFd]),
    namespaces: CloneFlags,
    tty: bool,
) -> Running {
    let plan = wherry_sys::fd::sealed_memfd(c"plan", plan).unwrap();
    let (report, report_child) = pipe();
    let program = CString::new(PROGRAM).unwrap();
    let arguments = [program.clone(), CString::new(argument).unwrap()];
    let (stdin_child, stdin) = pipe();
    let (stdout, stdout_child) = pipe();
    let (stderr, stderr_child) = pipe();
    let size = wherry_sys::terminal::WindowSize { rows: 24, columns: 80 };
    let pty = tty.then(|| wherry_sys::terminal::open_pty(size).unwrap());
    let inside = match &pty {
        Some(pty) => [pty.terminal.as_fd(); 3],
        None => [stdin_child.as_fd(), stdout_child.as_fd(), stderr_child.as_fd()],
    };
    let fixed = [plan.as_fd(), fourth.as_fd(), report_child.as_fd()];
    let descriptors: Vec<BorrowedFd<'_>> =
        inside.into_iter().chain(fixed).chain(extra.iter().map(AsFd::as_fd)).collect();
    let request = Spawn {
        image: Image::Program { path: &program, arguments: &arguments, environment: &[] },
        descriptors: &descriptors,
        namespaces,
        cgroup: None,
        death_signal: None,
    };
    let child = spawn(&request).unwrap();
    let network = extra.get(3).unwrap_or(&child.pidfd).try_clone().unwrap();
    Running {
        network,
        pid: child.pid,
        pidfd: child.pidfd,
        stdin: Some(stdin),
        stdout: File::from(stdout),
        stderr: File::from(stderr),
        terminal: pty.map(|pty| File::from(pty.controller)),
        report: File::from(report),
    }
}

/// A process that has been started.
pub struct Running {
    pub pid: nix::unistd::Pid,
    pub pidfd: OwnedFd,
    /// Its network namespace, or a process in it.
    pub network: OwnedFd,
    pub stdin: Option<File>,
    pub stdout: File,
    pub stderr: File,
    pub terminal: Option<File>,
    report: File,
}

/// How it went.
#[derive(Debug)]
pub struct Finished {
    pub end: End,
    pub stdout: String,
    pub stderr: String,
    pub reports: Vec<Report>,
}

impl Finished {
    /// Why it could not be started.
    pub fn failure(&self) -> Failure {
        match self.reports.last() {
            Some(Report::Failed(failure)) => failure.clone(),
            other => panic!("it did not fail: {other:?} {self:?}"),
        }
    }
}

impl Running {
    /// Waits until the container's program runs.
    pub fn executed(&mut self) {
        let mut bytes = Vec::new();
        self.report.read_to_end(&mut bytes).unwrap();
        assert_eq!(report::decode(&bytes).0, [Report::Executing]);
    }

    /// Reads its output line by line until one contains `word`.
    pub fn wait_for(&mut self, word: &str) -> String {
        let mut text = String::new();
        let mut byte = [0];
        while !text.contains(word) {
            assert_eq!(self.stdout.read(&mut byte).unwrap(), 1, "it ended after {text:?}");
            text.push(char::from(byte[0]));
        }
        text
    }

    pub fn signal(&self, number: i32) {
        wherry_sys::process::pidfd_send_signal(&self.pidfd, number).unwrap();
    }

    pub fn exec(&self, first: &Process, spec: &ExecSpec) -> Running {
        self.add(&plan::exec(first, spec).unwrap())
    }

    pub fn copy(&self, first: &Process, copy: &CopySpec) -> Running {
        self.add(&plan::copy(first, copy).unwrap())
    }

    fn add(&self, process: &Process) -> Running {
        let bytes = postcard::to_stdvec(process).unwrap();
        let target = self.pidfd.try_clone().unwrap();
        launch(exec::ARGUMENT, (&bytes, target, &[]), CloneFlags::empty(), process.tty)
    }

    /// Ends its input, and waits for its end.
    pub fn finish(mut self) -> Finished {
        drop(self.stdin.take());
        let watch = watchdog(self.pidfd.try_clone().unwrap());
        let (mut stdout, mut stderr, mut bytes) = (String::new(), String::new(), Vec::new());
        let mut err = self.stderr.try_clone().unwrap();
        let errors = std::thread::spawn(move || {
            err.read_to_string(&mut stderr).unwrap();
            stderr
        });
        self.stdout.read_to_string(&mut stdout).unwrap();
        self.report.read_to_end(&mut bytes).unwrap();
        let end = wait(self.pid).unwrap();
        drop(watch);
        Finished { end, stdout, stderr: errors.join().unwrap(), reports: report::decode(&bytes).0 }
    }

    /// Kills it and waits for its end.
    pub fn kill(self) {
        self.signal(9);
        wait(self.pid).unwrap();
    }
}

/// Kills a process that takes longer than [`PATIENCE`], so that a test fails instead of hanging.
fn watchdog(pidfd: OwnedFd) -> std::sync::mpsc::Sender<()> {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if receiver.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            wherry_sys::process::pidfd_send_signal(&pidfd, 9).ok();
        }
    });
    sender
}

/// Where this machine has cgroup v2.
pub fn cgroup_hierarchy() -> &'static Path {
    let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    places.into_iter().find(|path| path.join("cgroup.controllers").exists()).expect("cgroup v2 is mounted")
}

/// Waits until `done`.
pub fn eventually(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}
