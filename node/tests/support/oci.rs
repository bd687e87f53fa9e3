//! Bundles, and the OCI runtimes that run them: ours, and Debian's crun to prove that a test is right.
use super::{PROGRAM, busybox_root, eventually};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// What `crun spec` writes.
const USUAL: &str = include_str!("../../src/oci/plan/golden/usual.json");
/// Seconds after which a runtime is killed, so that a test fails instead of hanging.
const PATIENCE: &str = "30";

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    Wherry,
    Crun,
}

pub const BOTH: [Runtime; 2] = [Runtime::Wherry, Runtime::Crun];

impl Runtime {
    /// The program with its options, up to the command.
    pub fn command(self, bundle: &Bundle) -> Command {
        self.command_with(bundle, self == Self::Wherry)
    }

    /// The same with cgroups or without.
    pub fn command_with(self, bundle: &Bundle, cgroups: bool) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", PATIENCE]);
        match self {
            Self::Wherry => command.args([PROGRAM, "oci"]),
            // It refuses a machine that has both versions of cgroups mounted.
            Self::Crun => command.args(["unshare", "-m", "sh", "-c", ONLY_CGROUP_V2, "crun"]),
        };
        command.arg("--root").arg(bundle.state());
        if !cgroups {
            command.arg("--cgroup-manager=disabled");
        }
        command.stdin(Stdio::null());
        command
    }
}

const ONLY_CGROUP_V2: &str =
    "umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup /sys/fs/cgroup; exec crun \"$@\"";

/// How a command ended.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// It must have failed, with this in its sentence.
    #[track_caller]
    pub fn refused(&self, says: &str) {
        assert!(self.code != 0 && self.stderr.contains(says), "not refused with '{says}': {self:?}");
        let ours = self.stderr.lines().filter(|line| line.starts_with("wherry-node oci: ")).count();
        assert_eq!(ours, 1, "one sentence: {self:?}");
    }

    #[track_caller]
    pub fn succeeded(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        &self.stdout
    }
}

/// A bundle with a busybox root file system, and a state directory beside it.
pub struct Bundle {
    directory: tempfile::TempDir,
    pub config: Value,
    pub id: String,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Bundle {
    /// One that runs a shell script as root of a writable root file system, with all rights that root may have.
    pub fn new(script: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests run as root");
        let directory = tempfile::tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), open).unwrap();
        let root = directory.path().join("rootfs");
        busybox_root(&root);
        // In a user namespace they could not be made.
        ["dev", "proc", "sys"].iter().for_each(|name| fs::create_dir(root.join(name)).unwrap());
        let mut config: Value = serde_json::from_str(USUAL).unwrap();
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        config["process"]["env"] = json!(["PATH=/bin"]);
        config["process"]["capabilities"]["ambient"] = json!([]);
        config["root"]["readonly"] = false.into();
        let id = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { directory, config, id }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn root(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    pub fn save(&self) {
        fs::write(self.path().join("config.json"), self.config.to_string()).unwrap();
    }

    /// Runs it to its end.
    pub fn run(&self, runtime: Runtime) -> Output {
        self.save();
        let mut command = runtime.command(self);
        command.args(["run", "--bundle"]).arg(self.path()).arg(&self.id);
        output(&mut command)
    }

    /// What it prints, which must be all that goes wrong.
    #[track_caller]
    pub fn prints(&self, runtime: Runtime) -> String {
        let output = self.run(runtime);
        assert!(output.code == 0, "{runtime:?}: {output:?}");
        output.stdout
    }

    /// Any command of ours.
    pub fn oci(&self, words: &[&str]) -> Output {
        output(Runtime::Wherry.command(self).args(words))
    }

    /// Creates it; the container's output goes to the files `stdout` and `stderr`, because it outlives the command.
    pub fn create(&self, extra: &[&str]) -> Output {
        self.save();
        self.create_unsaved(extra)
    }

    pub fn create_unsaved(&self, extra: &[&str]) -> Output {
        let mut command = Runtime::Wherry.command(self);
        command.args(["create", "--bundle"]).arg(self.path()).args(extra).arg(&self.id);
        self.with_files(&mut command)
    }

    /// Runs a command whose output is kept by the container.
    pub fn with_files(&self, command: &mut Command) -> Output {
        let file = |name: &str| File::create(self.path().join(name)).unwrap();
        let status = command.stdout(file("stdout")).stderr(file("stderr")).status().unwrap();
        Output { code: status.code().unwrap_or(-1), stdout: self.said("stdout"), stderr: self.said("stderr") }
    }

    /// What a file of the bundle holds.
    pub fn said(&self, file: &str) -> String {
        fs::read_to_string(self.path().join(file)).unwrap_or_default()
    }

    pub fn start(&self) -> Output {
        self.oci(&["start", &self.id])
    }

    pub fn delete(&self) -> Output {
        self.oci(&["delete", &self.id])
    }

    pub fn inspect(&self) -> Value {
        let output = self.oci(&["state", &self.id]);
        serde_json::from_str(output.succeeded()).unwrap()
    }

    pub fn status(&self) -> String {
        self.inspect()["status"].as_str().unwrap().to_owned()
    }

    pub fn stopped(&self) {
        eventually("the end of the container", || self.status() == "stopped");
    }

    /// Nothing is left of it.
    #[track_caller]
    pub fn gone(&self) {
        let left: Vec<_> = fs::read_dir(self.state()).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // After a failed test something may still run.
        if self.state().exists() {
            self.oci(&["delete", "--force", &self.id]);
        }
    }
}

pub fn output(command: &mut Command) -> Output {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
