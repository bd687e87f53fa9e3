//! The supervisor with real processes, as PID 1 of a pid namespace and as an ordinary subreaper. Where namespaces are not
//! available these tests fail: they need root, or `unshare -Urmp --fork`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};
use wherry_sys::process::{Child, End, Image, Spawn, spawn, wait};

const PROBE: &str = env!("CARGO_BIN_EXE_supervisor-probe");
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Subreaper,
    PidNamespace,
}

const PLACES: [Place; 2] = [Place::Subreaper, Place::PidNamespace];

/// A supervisor with a service that plays a scenario.
struct World {
    place: Place,
    dir: tempfile::TempDir,
    child: Child,
    ended: bool,
}

impl World {
    fn new(place: Place, scenario: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let null = File::open("/dev/null").unwrap();
        let words = ["supervisor-probe", "init", "--process", "--root"].map(OsStr::new);
        let more = [dir.path().as_os_str(), OsStr::new("--"), OsStr::new(scenario)];
        let arguments: Vec<_> = words.into_iter().chain(more).map(c_string).collect();
        let namespaces = match place {
            Place::Subreaper => CloneFlags::empty(),
            Place::PidNamespace => CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS,
        };
        let request = Spawn {
            image: Image::Program {
                path: &c_string(OsStr::new(PROBE)),
                arguments: &arguments,
                environment: &[c_string(OsStr::new("RUST_BACKTRACE=0"))],
            },
            descriptors: &[null.as_fd(), log.as_fd(), log.as_fd()],
            namespaces,
            cgroup: None,
            death_signal: Some(Signal::SIGKILL),
        };
        let child = spawn(&request)
            .expect("a new namespace: these tests need root, or to run in `unshare -Urmp --fork`");
        Self { place, dir, child, ended: false }
    }

    fn events(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("run/events")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The first event that begins with `prefix`, without it.
    fn event(&self, prefix: &str) -> String {
        let find = || self.events().iter().find_map(|line| line.strip_prefix(prefix).map(str::to_owned));
        self.until(prefix, find)
    }

    fn until<T>(&self, what: &str, mut find: impl FnMut() -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(found) = find() {
                return found;
            }
            let tired = started.elapsed() > PATIENCE;
            assert!(!tired, "{:?}: no `{what}` in {:?}\n{}", self.place, self.events(), self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: Signal) {
        kill(self.child.pid, signal).unwrap();
    }

    fn end(&mut self) -> End {
        self.ended = true;
        wait(self.child.pid).unwrap()
    }

    /// What reboot(2) in a pid namespace makes of its PID 1, or the exit of an ordinary process.
    fn assert_off(&mut self) {
        let expected = match self.place {
            Place::Subreaper => End::Code(0),
            Place::PidNamespace => End::Signal(Signal::SIGINT as i32),
        };
        assert_eq!(self.end(), expected, "{:?}: {}", self.place, self.log());
    }

    fn children(&self) -> Vec<(i32, char)> {
        processes()
            .into_iter()
            .filter(|process| process.parent == self.child.pid.as_raw())
            .map(|p| (p.pid, p.state))
            .collect()
    }
}

impl Drop for World {
    /// A failed test leaves nobody behind: SIGTERM, so that children go too.
    fn drop(&mut self) {
        if !self.ended {
            kill(self.child.pid, Signal::SIGTERM).ok();
            wait(self.child.pid).ok();
        }
    }
}

fn c_string(text: &OsStr) -> CString {
    CString::new(text.as_bytes()).unwrap()
}

struct Process {
    pid: i32,
    parent: i32,
    state: char,
}

fn processes() -> Vec<Process> {
    let parse = |path: &Path| {
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?.chars().next()?;
        Some(Process { pid, parent: fields.next()?.parse().ok()?, state })
    };
    std::fs::read_dir("/proc").unwrap().filter_map(|entry| parse(&entry.ok()?.path())).collect()
}

#[test]
fn orphans_are_adopted_and_reaped() {
    for place in PLACES {
        let mut world = World::new(place, "orphans");
        let adopted = || (world.children().len() > 5).then_some(());
        world.until("adopted orphans", adopted);
        world.event("orphaned");
        let only_the_service = || (world.children().len() == 1).then_some(());
        world.until("reaped orphans", only_the_service);
        assert!(world.children().iter().all(|(_, state)| *state != 'Z'));
        world.signal(Signal::SIGTERM);
        world.assert_off();
    }
}

#[test]
fn a_crashing_service_is_restarted_with_growing_pauses() {
    let world = World::new(Place::PidNamespace, "crash");
    let (mut seen, mut starts) = (0, Vec::new());
    world.until("four starts", || {
        let count = world.events().len();
        starts.extend((seen..count).map(|_| Instant::now()));
        seen = count;
        (count >= 4).then_some(())
    });
    let pauses: Vec<u128> = starts.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    let (first, second, third) = (pauses[0], pauses[1], pauses[2]);
    assert!(first >= 150 && second >= 350 && third >= 750, "200, 400, 800 expected: {pauses:?}");
    assert!(world.log().contains("service ended with code 0, restart in 800 ms"), "{}", world.log());
}

#[test]
fn a_container_outlives_its_service_and_loses_nothing() {
    for place in PLACES {
        let world = World::new(place, "keeper");
        let pid = world.event("launched ");
        assert_eq!(world.event("running "), format!("{pid} before outage"), "{}", world.log());
        assert_eq!(world.event("exited "), format!("{pid} Code(7) end"), "{}", world.log());
        assert_eq!(world.event("inventory of "), "0", "a released process is forgotten");
        let services: Vec<_> = world.events().into_iter().filter(|line| line.starts_with("start ")).collect();
        assert_eq!(services.len(), 4, "{services:?}");
    }
}

#[test]
fn poweroff_does_not_wait_for_ever_for_a_container_that_ignores_it() {
    for place in PLACES {
        let mut world = World::new(place, "stubborn");
        world.event("power");
        let started = Instant::now();
        world.assert_off();
        let (took, log) = (started.elapsed(), world.log());
        assert!(took >= Duration::from_millis(2_900), "it had its time: {took:?} {log}");
        assert!(took < Duration::from_millis(3_000 + 1_000 + 1_000 + 4_000), "{took:?} {log}");
        assert!(log.contains("1 processes did not stop in time, killing them"), "{log}");
        assert!(processes().iter().all(|process| !is_of(process.pid, &world)), "nobody is left");
    }
}

/// Whether a process has our directory in its command line.
fn is_of(pid: i32, world: &World) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let dir = world.dir.path().as_os_str().as_bytes();
    command.windows(dir.len()).any(|window| window == dir)
}

#[test]
fn poweroff_is_quick_when_all_obey() {
    for place in PLACES {
        let mut world = World::new(place, "obedient");
        world.event("power");
        let started = Instant::now();
        world.assert_off();
        assert!(started.elapsed() < Duration::from_millis(2_900), "{:?} {}", started.elapsed(), world.log());
    }
}

#[test]
fn reboot_is_told_from_poweroff() {
    let mut world = World::new(Place::PidNamespace, "reboot");
    assert_eq!(world.end(), End::Signal(Signal::SIGHUP as i32), "{}", world.log());
    let mut world = World::new(Place::PidNamespace, "idle");
    world.event("start ");
    world.signal(Signal::SIGINT);
    assert_eq!(world.end(), End::Signal(Signal::SIGHUP as i32), "ctrl-alt-del: {}", world.log());
}

#[test]
fn the_last_request_of_a_service_that_ends_is_obeyed() {
    for place in PLACES {
        let mut world = World::new(place, "last-words");
        world.event("power");
        world.assert_off();
    }
}

#[test]
fn an_ordinary_process_stops_in_order_on_sigterm() {
    let mut world = World::new(Place::Subreaper, "idle");
    let service: i32 = world.event("start ").parse().unwrap();
    world.signal(Signal::SIGTERM);
    world.assert_off();
    assert!(kill(Pid::from_raw(service), None).is_err());
}

#[test]
fn garbage_from_the_service_is_survived() {
    for place in PLACES {
        let world = World::new(place, "garbage");
        world.event("survived");
        let starts = world.events().iter().filter(|line| line.starts_with("start ")).count();
        assert_eq!(starts, 1, "the service was not restarted either: {}", world.log());
        let complaints = world.log().lines().filter(|line| line.contains("does not decode")).count();
        assert!((1..=5).contains(&complaints), "told, but not without end: {}", world.log());
    }
}

#[test]
fn a_service_that_does_not_listen_or_speak_is_restarted() {
    let world = World::new(Place::Subreaper, "deaf");
    world.event("restarted");
    assert!(world.log().contains("does not read its messages"), "{}", world.log());
    let world = World::new(Place::Subreaper, "silent");
    world.until("a second start", || (world.events().len() >= 2).then_some(()));
    assert!(world.log().contains("service silent for"), "{}", world.log());
}

#[test]
fn a_launch_that_fails_says_where() {
    for place in PLACES {
        let world = World::new(place, "refused");
        assert_eq!(world.event("refused Clone "), "EBADF", "no cgroup is at that descriptor");
        assert_eq!(world.event("refused Request "), "EINVAL");
    }
}

#[test]
fn a_released_process_is_killed_and_its_key_free() {
    for place in PLACES {
        World::new(place, "release").event("released");
    }
}

#[test]
fn a_process_starts_in_its_cgroup_and_everything_there_is_killed_with_it() {
    World::new(Place::Subreaper, "cgroup").event("emptied");
}

/// A panic of PID 1 must restart the machine; an ordinary process ends with all its children.
#[test]
fn a_panic_of_the_supervisor_reboots() {
    for place in PLACES {
        let mut world = World::new(place, "idle");
        world.event("start ");
        world.until("the service", || (world.children().len() == 1).then_some(()));
        let service = world.children()[0].0;
        world.signal(Signal::SIGUSR1);
        let expected = match place {
            Place::Subreaper => Signal::SIGABRT,
            Place::PidNamespace => Signal::SIGHUP,
        };
        assert_eq!(world.end(), End::Signal(expected as i32), "{}", world.log());
        assert!(world.log().contains("asked to panic"), "{}", world.log());
        let gone = || kill(Pid::from_raw(service), None).is_err().then_some(());
        world.until("an end of the service", gone);
    }
}
