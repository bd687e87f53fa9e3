//! What the service does in each scenario.
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, raise};
use nix::unistd::pipe2;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;
use wherry_init::control::{
    ControlError, Descriptors, Endpoint, EntryState, FromSupervisor, Launch, Namespaces, Power, ProcessKey,
    RawStatus, ToSupervisor,
};
use wherry_init::environment::Environment;
use wherry_sys::{fd, fdpass};

const KEY: ProcessKey = ProcessKey { id: 1, generation: 1 };

/// An entry of the inventory with its descriptors.
type Known = (FromSupervisor, Vec<OwnedFd>);

struct Service {
    control: Endpoint,
    run: PathBuf,
    inventory: Vec<Known>,
}

/// Plays `scenario`; on a machine, where nobody names one, it is `machine`.
pub(crate) fn play(scenario: Option<&str>) {
    let mut service = Service::new();
    let incarnation = service.count("start ");
    let pid = std::process::id();
    service.note(&format!("start {pid}"));
    service.read_inventory();
    if scenario != Some("silent") {
        service.send(&ToSupervisor::Alive);
    }
    match scenario.unwrap_or("machine") {
        "idle" | "silent" => service.idle(),
        "orphans" => service.orphans(),
        "crash" => {}
        "keeper" => service.keeper(incarnation),
        "stubborn" => service.power("", Power::PowerOff),
        "obedient" => service.power("exit 0", Power::PowerOff),
        "reboot" => service.power("exit 0", Power::Reboot),
        "last-words" => service.last_words(),
        "garbage" => service.garbage(),
        "deaf" => service.deaf(incarnation),
        "refused" => service.refused(),
        "release" => service.release(),
        "cgroup" => {
            service.cgroup();
            service.idle()
        }
        "machine" => service.machine(),
        other => unreachable!("no scenario {other}"),
    }
}

impl Service {
    fn new() -> Self {
        let run = Environment::inherited().unwrap().dirs.run;
        Self { control: Endpoint::from_env().unwrap(), run, inventory: Vec::new() }
    }

    fn note(&self, line: &str) {
        let mut events = OpenOptions::new().create(true).append(true).open(self.run.join("events")).unwrap();
        events.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn count(&self, prefix: &str) -> usize {
        let text = std::fs::read_to_string(self.run.join("events")).unwrap_or_default();
        text.lines().filter(|line| line.starts_with(prefix)).count()
    }

    fn send(&self, message: &ToSupervisor) {
        self.control.send(message, &[]).unwrap();
    }

    fn recv(&self) -> Known {
        self.control.recv().unwrap()
    }

    fn read_inventory(&mut self) {
        loop {
            match self.recv() {
                (FromSupervisor::InventoryEnd, _) => return,
                entry => self.inventory.push(entry),
            }
        }
    }

    fn idle(&self) -> ! {
        loop {
            sleep(Duration::from_secs(1));
        }
    }

    /// Launches a script with its output in a pipe that the supervisor keeps; returns the read end.
    fn launch(&self, script: &str, namespaces: Namespaces) -> File {
        self.launch_in(script, namespaces, None)
    }

    fn launch_in(&self, script: &str, namespaces: Namespaces, cgroup: Option<OwnedFd>) -> File {
        let pipe = || pipe2(OFlag::O_CLOEXEC).unwrap();
        let ((go, _), (report_read, report), (stdout_read, stdout)) = (pipe(), pipe(), pipe());
        let null: OwnedFd = File::open("/dev/null").unwrap().into();
        let descriptors = Descriptors {
            plan: fd::sealed_memfd(c"plan", script.as_bytes()).unwrap(),
            go,
            report,
            stdio: [null.try_clone().unwrap(), stdout.try_clone().unwrap(), stdout],
            cgroup,
            extra: vec![],
            kept: vec![("stdout".into(), stdout_read.try_clone().unwrap())],
        };
        // Both ways to start something are tried in many scenarios.
        let argument = if namespaces == Namespaces::NONE { "container" } else { crate::COPIED };
        let (argument, kept) = (argument.into(), descriptors.labels());
        let cgroup = descriptors.cgroup.is_some();
        let launch = Launch { key: KEY, namespaces, argument, cgroup, extra: 0, kept };
        self.control.send(&ToSupervisor::Launch(launch), &descriptors.in_order()).unwrap();
        drop(descriptors);
        let (FromSupervisor::Launched { key: KEY, pid }, pidfds) = self.recv() else { unreachable!() };
        assert_eq!(pidfds.len(), 1);
        self.note(&format!("launched {pid}"));
        let mut report = String::new();
        File::from(report_read).read_to_string(&mut report).unwrap();
        assert_eq!(report, "ready");
        stdout_read.into()
    }

    /// A process whose parent ends before it does, many times.
    fn orphans(&self) {
        for _ in 0..20 {
            Command::new("/bin/sh").args(["-c", "sleep 0.3 & sleep 0.3 &"]).status().unwrap();
        }
        self.note("orphaned");
        self.idle()
    }

    fn keeper(&self, incarnation: usize) {
        match incarnation {
            0 => self.keeper_launches(),
            1 => self.keeper_reads(),
            2 => self.keeper_learns_the_end(),
            _ => {
                self.note(&format!("inventory of {}", self.inventory.len()));
                self.idle()
            }
        }
    }

    /// The container tells by the service's absence that it is out; both are in one pid namespace.
    fn keeper_launches(&self) {
        let first = std::process::id();
        let finish = self.run.join("finish");
        let script = format!(
            "echo before; while kill -0 {first} 2>/dev/null; do sleep 0.01; done; echo outage; \
             while ! second=$(cat {finish} 2>/dev/null) || [ -z \"$second\" ]; do sleep 0.01; done; \
             while kill -0 $second 2>/dev/null; do sleep 0.01; done; echo end; exit 7",
            finish = finish.display()
        );
        self.launch(&script, Namespaces::MOUNT | Namespaces::UTS | Namespaces::IPC);
        raise(Signal::SIGKILL).unwrap();
    }

    fn keeper_reads(&self) {
        let [(FromSupervisor::Entry { key: KEY, pid, state: EntryState::Running, kept, .. }, fds)] =
            &self.inventory[..]
        else {
            unreachable!("{:?}", self.inventory)
        };
        assert_eq!((kept.len(), kept[0].as_str(), fds.len()), (1, "stdout", 2));
        wherry_sys::process::pidfd_send_signal(&fds[0], 0).unwrap();
        let mut output = File::from(fds[1].try_clone().unwrap());
        let mut text = String::new();
        while !text.ends_with("outage\n") {
            let mut byte = [0];
            output.read_exact(&mut byte).unwrap();
            text.push(char::from(byte[0]));
        }
        self.note(&format!("running {pid} {}", text.replace('\n', " ").trim()));
        let own = std::process::id();
        std::fs::write(self.run.join("finish.tmp"), own.to_string()).unwrap();
        std::fs::rename(self.run.join("finish.tmp"), self.run.join("finish")).unwrap();
        raise(Signal::SIGKILL).unwrap();
    }

    fn keeper_learns_the_end(&self) {
        let [(FromSupervisor::Entry { pid, state: EntryState::Exited(status), .. }, fds)] =
            &self.inventory[..]
        else {
            unreachable!("{:?}", self.inventory)
        };
        let mut text = String::new();
        File::from(fds[0].try_clone().unwrap()).read_to_string(&mut text).unwrap();
        self.note(&format!("exited {pid} {status:?} {}", text.trim()));
        self.send(&ToSupervisor::Release(KEY));
        raise(Signal::SIGKILL).unwrap();
    }

    fn power(&self, on_term: &str, power: Power) {
        let script = format!("trap '{on_term}' TERM; echo ready; while :; do sleep 0.1; done");
        let mut output = self.launch(&script, Namespaces::PID | Namespaces::MOUNT);
        output.read_exact(&mut [0; 6]).unwrap();
        self.note("power");
        self.send(&ToSupervisor::Power(power));
        self.idle()
    }

    /// Asks for the end and ends itself, without having read everything sent to it.
    fn last_words(&self) {
        self.send(&ToSupervisor::Launch(Launch {
            key: KEY,
            namespaces: Namespaces::NONE,
            argument: "container".into(),
            cgroup: false,
            extra: 0,
            kept: vec![],
        }));
        sleep(Duration::from_millis(100));
        self.note("power");
        self.send(&ToSupervisor::Power(Power::PowerOff));
    }

    fn garbage(&self) {
        let raw = |bytes: &[u8], fds: usize| {
            fdpass::send(self.control.as_fd(), bytes, &vec![self.control.as_fd(); fds]).unwrap();
        };
        for length in [1, 7, 100, 4096, 5000, 60_000] {
            raw(&vec![0xff; length], 0);
            raw(&vec![0; length], fdpass::MAX_DESCRIPTORS);
        }
        for number in 0_u32..300 {
            let noise: Vec<u8> = (0..number % 40 + 1).map(|at| (number * 31 + at * 17) as u8).collect();
            // Not a decodable Power message, which would be obeyed.
            if noise.first() != Some(&4) {
                raw(&noise, (number % 5) as usize);
            }
        }
        for signal in [0, -1, 65, i32::MAX] {
            self.send(&ToSupervisor::Signal { key: KEY, signal });
        }
        self.control.set_nonblocking(true).unwrap();
        sleep(Duration::from_millis(300));
        while !matches!(self.control.recv::<FromSupervisor>(), Err(ControlError::WouldBlock)) {}
        self.control.set_nonblocking(false).unwrap();
        self.launch("exit 0", Namespaces::NONE);
        let (FromSupervisor::Exited { status: RawStatus::Code(0), .. }, _) = self.recv() else {
            unreachable!()
        };
        self.note("survived");
        self.idle()
    }

    /// Asks and asks, and never reads an answer.
    fn deaf(&self, incarnation: usize) {
        if incarnation > 0 {
            self.note("restarted");
            self.idle()
        }
        let launch = Launch {
            key: KEY,
            namespaces: Namespaces::NONE,
            argument: "container".into(),
            cgroup: false,
            extra: 0,
            kept: vec![],
        };
        loop {
            self.send(&ToSupervisor::Launch(launch.clone()));
        }
    }

    /// Launches that fail at each step that can be made to fail.
    fn refused(&self) {
        let file = || OwnedFd::from(File::open("/dev/null").unwrap());
        let launch = |cgroup| Launch {
            key: KEY,
            namespaces: Namespaces::NONE,
            argument: "container".into(),
            cgroup,
            extra: 0,
            kept: vec![],
        };
        let fds: Vec<OwnedFd> = (0..7).map(|_| file()).collect();
        let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        for (cgroup, count) in [(true, 7), (false, 7), (false, 3)] {
            self.control.send(&ToSupervisor::Launch(launch(cgroup)), &borrowed[..count]).unwrap();
            let (FromSupervisor::LaunchFailed { key: KEY, errno, step }, _) = self.recv() else {
                unreachable!()
            };
            let errno = nix::errno::Errno::from_raw(errno);
            self.note(&format!("refused {step:?} {errno:?}"));
        }
        self.idle()
    }

    /// Releases a running process, and launches another under the same key.
    fn release(&self) {
        let pid_of_end = |service: &Self| {
            service.send(&ToSupervisor::Release(KEY));
            let (FromSupervisor::Exited { status, .. }, _) = service.recv() else { unreachable!() };
            status
        };
        self.launch("sleep 1000", Namespaces::PID);
        assert_eq!(pid_of_end(self), RawStatus::Signal(9));
        self.launch("sleep 1000", Namespaces::PID);
        self.send(&ToSupervisor::Signal { key: KEY, signal: 12 });
        sleep(Duration::from_millis(50));
        assert_eq!(pid_of_end(self), RawStatus::Signal(9), "PID 1 of a namespace has no default for signals");
        self.note("released");
        self.idle()
    }

    /// A process without a pid namespace starts in its cgroup, and its children die with it there.
    fn cgroup(&self) {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let tree =
            mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        let group = PathBuf::from(tree.unwrap()).join(format!("wherry-probe-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        let members = || std::fs::read_to_string(group.join("cgroup.procs")).unwrap().lines().count();
        let directory = File::open(&group).unwrap().into();
        let script = "sleep 1000 & sleep 1000 & echo ready; wait";
        let mut output = self.launch_in(script, Namespaces::PID, Some(directory));
        output.read_exact(&mut [0; 6]).unwrap();
        assert_eq!(members(), 3);
        self.send(&ToSupervisor::Release(KEY));
        let (FromSupervisor::Exited { status: RawStatus::Signal(9), .. }, _) = self.recv() else {
            unreachable!()
        };
        while members() > 0 {
            sleep(Duration::from_millis(10));
        }
        std::fs::remove_dir(&group).unwrap();
        self.note("emptied");
    }

    /// On a machine: says what the boot has made of it, leaves orphans, runs a container, and powers off.
    fn machine(&self) {
        let environment = Environment::inherited().unwrap();
        self.note("machine");
        println!("probe: {environment:?}");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        for place in ["/proc", "/sys", "/dev/pts", "/dev/shm", "/run", "/tmp", "/sys/fs/cgroup", "/data"] {
            let mounted = mounts.lines().any(|line| line.split(' ').nth(4) == Some(place));
            println!("probe: {place} {}", if mounted { "mounted" } else { "MISSING" });
        }
        let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.subtree_control").unwrap();
        println!("probe: controllers {}", controllers.trim());
        Command::new("/bin/sh").args(["-c", "sleep 0.2 & sleep 0.2 &"]).status().unwrap();
        self.cgroup();
        println!("probe: cgroup emptied");
        let mut output = self.launch("echo container as $$; exit 7", Namespaces::ALL);
        let mut text = String::new();
        let (FromSupervisor::Exited { status, .. }, _) = self.recv() else { unreachable!() };
        output.read_to_string(&mut text).unwrap();
        println!("probe: {} {status:?}", text.trim());
        sleep(Duration::from_millis(500));
        let zombies = std::fs::read_dir("/proc").unwrap().filter(|entry| {
            let stat =
                entry.as_ref().ok().and_then(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
            stat.is_some_and(|stat| stat.contains(") Z "))
        });
        println!("probe: zombies {}", zombies.count());
        let config = std::fs::read_to_string("/config/wherry.toml").unwrap_or_default();
        println!("probe: config {config:?}, writable {}", std::fs::write("/config/x", "").is_ok());
        let boots = std::fs::read_to_string("/data/boots").unwrap_or_default().len() + 1;
        let stored = std::fs::write("/data/boots", "x".repeat(boots));
        println!("probe: boot {boots} {stored:?}");
        if std::fs::read_to_string("/proc/cmdline").unwrap().contains("probe.panic") {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(1), Signal::SIGUSR1).unwrap();
            self.idle()
        }
        self.send(&ToSupervisor::Power(Power::PowerOff));
        self.idle()
    }
}
