//! The supervisor's side of the control socket in a thread: forks, keeps, reports, and outlives the services that talk
//! to it. Where the real one is tested is crate `init`; here it lets a runtime crash and come back inside of one test.
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use wherry_init::control::{
    ControlError, Descriptors, Endpoint, EntryState, FromSupervisor, Launch, LaunchStep, Namespaces,
    ProcessKey, RawStatus, ToSupervisor,
};
use wherry_sys::process::{Child, End, Image, Spawn, spawn, wait};

struct Known {
    child: Child,
    status: Option<RawStatus>,
    kept: Vec<(String, OwnedFd)>,
}

/// Everything it has launched is killed when this is dropped.
pub struct Supervisor {
    endpoints: Option<Sender<Endpoint>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Supervisor {
    /// Starts what it is asked for with `program`.
    pub fn new(program: &Path) -> Self {
        let program = CString::new(program.as_os_str().as_bytes()).unwrap();
        let (endpoints, queue) = channel();
        let thread = std::thread::spawn(move || Loop { program, known: BTreeMap::new() }.run(&queue));
        Self { endpoints: Some(endpoints), thread: Some(thread) }
    }

    /// A new service's end; a former one must have been dropped.
    pub fn connect(&self) -> Endpoint {
        let (ours, service) = Endpoint::pair().unwrap();
        self.endpoints.as_ref().unwrap().send(ours).unwrap();
        service
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.endpoints.take());
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || std::thread::panicking(), "the supervisor's thread failed");
        }
    }
}

struct Loop {
    program: CString,
    known: BTreeMap<ProcessKey, Known>,
}

impl Loop {
    fn run(&mut self, endpoints: &Receiver<Endpoint>) {
        while let Ok(endpoint) = endpoints.recv() {
            self.inventory(&endpoint);
            self.serve(&endpoint);
        }
        for known in self.known.values().filter(|known| known.status.is_none()) {
            wherry_sys::process::pidfd_send_signal(&known.child.pidfd, 9).unwrap();
            wait(known.child.pid).unwrap();
        }
    }

    fn inventory(&mut self, endpoint: &Endpoint) {
        self.reap(None);
        for (key, known) in &self.known {
            let state = known.status.map_or(EntryState::Running, EntryState::Exited);
            let pidfd = known.status.is_none().then(|| known.child.pidfd.as_fd());
            let descriptors: Vec<BorrowedFd<'_>> =
                pidfd.into_iter().chain(known.kept.iter().map(|(_, fd)| fd.as_fd())).collect();
            let kept = known.kept.iter().map(|(label, _)| label.clone()).collect();
            let entry = FromSupervisor::Entry {
                key: *key,
                pid: known.child.pid.as_raw(),
                started_ms: 1,
                state,
                kept,
            };
            endpoint.send(&entry, &descriptors).unwrap();
        }
        endpoint.send(&FromSupervisor::InventoryEnd, &[]).unwrap();
    }

    fn serve(&mut self, endpoint: &Endpoint) {
        endpoint.set_nonblocking(true).unwrap();
        loop {
            self.wait(endpoint);
            self.reap(Some(endpoint));
            match endpoint.recv::<ToSupervisor>() {
                Ok((message, attached)) => self.handle(endpoint, message, attached),
                Err(ControlError::WouldBlock) => {}
                Err(ControlError::Closed) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn wait(&self, endpoint: &Endpoint) {
        let running = self.known.values().filter(|known| known.status.is_none());
        let mut fds: Vec<PollFd<'_>> = std::iter::once(endpoint.as_fd())
            .chain(running.map(|known| known.child.pidfd.as_fd()))
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        poll(&mut fds, PollTimeout::NONE).unwrap();
    }

    fn reap(&mut self, endpoint: Option<&Endpoint>) {
        for (key, known) in self.known.iter_mut().filter(|(_, known)| known.status.is_none()) {
            let mut ended = [PollFd::new(known.child.pidfd.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ended, PollTimeout::ZERO).unwrap() == 0 {
                continue;
            }
            let status = match wait(known.child.pid).unwrap() {
                End::Code(code) => RawStatus::Code(code),
                End::Signal(signal) => RawStatus::Signal(signal),
            };
            known.status = Some(status);
            if let Some(endpoint) = endpoint {
                // The service may have gone this very moment.
                endpoint.send(&FromSupervisor::Exited { key: *key, status }, &[]).ok();
            }
        }
    }

    fn handle(&mut self, endpoint: &Endpoint, message: ToSupervisor, attached: Vec<OwnedFd>) {
        match message {
            ToSupervisor::Launch(launch) => self.launch(endpoint, &launch, attached),
            ToSupervisor::Signal { key, signal } => {
                if let Some(known) = self.known.get(&key).filter(|known| known.status.is_none()) {
                    wherry_sys::process::pidfd_send_signal(&known.child.pidfd, signal).ok();
                }
            }
            ToSupervisor::Release(key) => {
                if let Some(known) = self.known.remove(&key)
                    && known.status.is_none()
                {
                    wherry_sys::process::pidfd_send_signal(&known.child.pidfd, 9).ok();
                    wait(known.child.pid).unwrap();
                }
            }
            ToSupervisor::CloseKept { key, label } => {
                if let Some(known) = self.known.get_mut(&key) {
                    known.kept.retain(|(have, _)| *have != label);
                }
            }
            ToSupervisor::Alive => {}
            ToSupervisor::Power(power) => panic!("nobody asks a test to {power:?}"),
        }
    }

    fn launch(&mut self, endpoint: &Endpoint, launch: &Launch, attached: Vec<OwnedFd>) {
        let descriptors = Descriptors::split(launch, attached).unwrap();
        let arguments = [self.program.clone(), CString::new(launch.argument.as_str()).unwrap()];
        let fixed = [&descriptors.plan, &descriptors.go, &descriptors.report];
        let fds: Vec<BorrowedFd<'_>> =
            descriptors.stdio.iter().chain(fixed).chain(&descriptors.extra).map(|fd| fd.as_fd()).collect();
        let spawned = spawn(&Spawn {
            image: Image::Program { path: &self.program, arguments: &arguments, environment: &[] },
            descriptors: &fds,
            namespaces: flags(launch.namespaces),
            cgroup: descriptors.cgroup.as_ref().map(|fd| fd.as_fd()),
            death_signal: None,
        });
        let key = launch.key;
        match spawned {
            Ok(child) => {
                let launched = FromSupervisor::Launched { key, pid: child.pid.as_raw() };
                endpoint.send(&launched, &[child.pidfd.as_fd()]).ok();
                self.known.insert(key, Known { child, status: None, kept: descriptors.kept });
            }
            Err(error) => {
                let failed = FromSupervisor::LaunchFailed {
                    key,
                    errno: error.errno() as i32,
                    step: LaunchStep::Clone,
                };
                endpoint.send(&failed, &[]).ok();
            }
        }
    }
}

fn flags(namespaces: Namespaces) -> CloneFlags {
    let table = [
        (Namespaces::MOUNT, CloneFlags::CLONE_NEWNS),
        (Namespaces::PID, CloneFlags::CLONE_NEWPID),
        (Namespaces::NET, CloneFlags::CLONE_NEWNET),
        (Namespaces::UTS, CloneFlags::CLONE_NEWUTS),
        (Namespaces::IPC, CloneFlags::CLONE_NEWIPC),
        (Namespaces::CGROUP, CloneFlags::CLONE_NEWCGROUP),
    ];
    table.into_iter().filter(|(one, _)| namespaces.contains(*one)).map(|(_, flag)| flag).collect()
}
