//! The wire is pinned here: a service of one build may meet a supervisor that booted from another.
use super::*;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::os::fd::{AsFd as _, OwnedFd};
use wherry_sys::fdpass;

const KEY: ProcessKey = ProcessKey { id: 300, generation: 2 };

fn pinned<M: Serialize + DeserializeOwned + PartialEq + Debug>(message: &M, bytes: &[u8]) {
    assert_eq!(postcard::to_stdvec(message).unwrap(), bytes, "{message:?}");
    assert_eq!(&postcard::from_bytes::<M>(bytes).unwrap(), message);
}

fn launch() -> Launch {
    let namespaces = Namespaces::MOUNT | Namespaces::PID;
    let kept = vec!["log".into(), "pty".into()];
    Launch { key: KEY, namespaces, argument: "container".into(), cgroup: true, extra: 1, kept }
}

#[test]
fn messages_to_the_supervisor_are_pinned() {
    let expected = b"\0\xac\x02\x02\x03\x09container\x01\x01\x02\x03log\x03pty";
    pinned(&ToSupervisor::Launch(launch()), expected);
    pinned(&ToSupervisor::Signal { key: KEY, signal: 15 }, &[1, 0xac, 2, 2, 30]);
    pinned(&ToSupervisor::Release(KEY), &[2, 0xac, 2, 2]);
    pinned(
        &ToSupervisor::CloseKept { key: KEY, label: "stdin".into() },
        &[5, 0xac, 2, 2, 5, b's', b't', b'd', b'i', b'n'],
    );
    pinned(&ToSupervisor::Alive, &[3]);
    pinned(&ToSupervisor::Power(Power::PowerOff), &[4, 0]);
    pinned(&ToSupervisor::Power(Power::Reboot), &[4, 1]);
}

#[test]
fn messages_from_the_supervisor_are_pinned() {
    let running = EntryState::Running;
    let entry =
        |state| FromSupervisor::Entry { key: KEY, pid: 5, started_ms: 9, state, kept: vec!["log".into()] };
    pinned(&entry(running), b"\0\xac\x02\x02\x0a\x09\0\x01\x03log");
    pinned(&entry(EntryState::Exited(RawStatus::Code(7))), b"\0\xac\x02\x02\x0a\x09\x01\0\x0e\x01\x03log");
    pinned(&FromSupervisor::InventoryEnd, &[1]);
    pinned(&FromSupervisor::Launched { key: KEY, pid: 5 }, &[2, 0xac, 2, 2, 10]);
    let steps = [
        LaunchStep::Key,
        LaunchStep::Table,
        LaunchStep::Request,
        LaunchStep::Clone,
        LaunchStep::Child,
        LaunchStep::Exec,
    ];
    for (number, step) in (0..).zip(steps) {
        pinned(&FromSupervisor::LaunchFailed { key: KEY, errno: 1, step }, &[3, 0xac, 2, 2, 2, number]);
    }
    pinned(&FromSupervisor::Exited { key: KEY, status: RawStatus::Signal(9) }, &[4, 0xac, 2, 2, 1, 18]);
}

#[test]
fn the_environment_variable_is_pinned() {
    assert_eq!(CONTROL_FD_ENV, "WHERRY_CONTROL_FD");
}

#[test]
fn unknown_namespaces_are_refused() {
    assert_eq!(Namespaces::try_from(63), Ok(Namespaces::ALL));
    assert!(Namespaces::try_from(64).is_err());
    assert!(Namespaces::ALL.contains(Namespaces::CGROUP) && !Namespaces::NONE.contains(Namespaces::NET));
}

#[test]
fn status_as_shells_count() {
    assert_eq!((RawStatus::Code(7).shell_code(), RawStatus::Signal(9).shell_code()), (7, 137));
    assert_eq!(RawStatus::Signal(i32::MAX).shell_code(), i32::MAX);
}

#[test]
fn garbage_is_an_error_and_the_next_message_arrives() {
    let (service, supervisor) = Endpoint::pair().unwrap();
    fdpass::send(service.as_fd(), &[0xff; 9], &[service.as_fd()]).unwrap();
    fdpass::send(service.as_fd(), &[3, 3], &[]).unwrap();
    fdpass::send(service.as_fd(), &[3; MAX_DATAGRAM + 1], &[]).unwrap();
    service.send(&ToSupervisor::Alive, &[]).unwrap();
    assert_eq!(supervisor.recv::<ToSupervisor>().unwrap_err(), ControlError::Garbage { bytes: 9 });
    assert_eq!(supervisor.recv::<ToSupervisor>().unwrap_err(), ControlError::Garbage { bytes: 2 });
    assert_eq!(supervisor.recv::<ToSupervisor>().unwrap_err(), ControlError::TooLarge);
    assert_eq!(supervisor.recv::<ToSupervisor>().unwrap().0, ToSupervisor::Alive);
    drop(service);
    assert_eq!(supervisor.recv::<ToSupervisor>().unwrap_err(), ControlError::Closed);
    assert_eq!(supervisor.send(&FromSupervisor::InventoryEnd, &[]), Err(ControlError::Closed));
}

#[test]
fn last_words_are_heard_even_if_the_speaker_did_not_listen() {
    let (service, supervisor) = Endpoint::pair().unwrap();
    supervisor.send(&FromSupervisor::InventoryEnd, &[]).unwrap();
    service.send(&ToSupervisor::Power(Power::Reboot), &[]).unwrap();
    drop(service);
    assert_eq!(supervisor.recv::<ToSupervisor>().unwrap().0, ToSupervisor::Power(Power::Reboot));
    assert_eq!(supervisor.recv::<ToSupervisor>().unwrap_err(), ControlError::Closed);
}

#[test]
fn a_nonblocking_end_never_waits() {
    let (service, supervisor) = Endpoint::pair().unwrap();
    supervisor.set_nonblocking(true).unwrap();
    assert_eq!(supervisor.recv::<ToSupervisor>().unwrap_err(), ControlError::WouldBlock);
    let mut sent = 0;
    while supervisor.send(&FromSupervisor::InventoryEnd, &[]).is_ok() {
        sent += 1;
    }
    assert_eq!(supervisor.send(&FromSupervisor::InventoryEnd, &[]), Err(ControlError::WouldBlock));
    for _ in 0..sent {
        service.recv::<FromSupervisor>().unwrap();
    }
}

#[test]
fn a_message_that_does_not_fit_is_refused_by_the_sender() {
    let (service, _supervisor) = Endpoint::pair().unwrap();
    let long = Launch { argument: "x".repeat(MAX_DATAGRAM), ..launch() };
    assert_eq!(service.send(&ToSupervisor::Launch(long), &[]), Err(ControlError::TooLarge));
}

fn files(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| tempfile::tempfile().unwrap().into()).collect()
}

fn inode(fd: &OwnedFd) -> u64 {
    nix::sys::stat::fstat(fd).unwrap().st_ino
}

#[test]
fn descriptors_keep_their_order_across_the_socket() {
    let (service, supervisor) = Endpoint::pair().unwrap();
    let sent = Descriptors::split(&launch(), files(10)).unwrap();
    let order: Vec<u64> = sent.in_order().iter().map(|fd| inode(&fd.try_clone_to_owned().unwrap())).collect();
    assert_eq!(sent.labels(), launch().kept);
    service.send(&ToSupervisor::Launch(launch()), &sent.in_order()).unwrap();
    let (message, attached) = supervisor.recv::<ToSupervisor>().unwrap();
    assert_eq!(message, ToSupervisor::Launch(launch()));
    let got = Descriptors::split(&launch(), attached).unwrap();
    let (plan, stdout, cgroup) =
        (inode(&got.plan), inode(&got.stdio[1]), inode(got.cgroup.as_ref().unwrap()));
    assert_eq!((plan, stdout, cgroup), (order[0], order[4], order[6]));
    assert_eq!((inode(&got.extra[0]), inode(&got.kept[1].1)), (order[7], order[9]));
}

#[test]
fn requests_that_do_not_fit_together_are_refused() {
    let refuse = |launch: &Launch, count| Descriptors::split(launch, files(count)).unwrap_err();
    assert_eq!(refuse(&launch(), 9), DescriptorsError::Count { needed: 10, attached: 9 });
    assert_eq!(refuse(&launch(), 11), DescriptorsError::Count { needed: 10, attached: 11 });
    let extra = Launch { extra: MAX_EXTRA + 1, ..launch() };
    assert_eq!(refuse(&extra, 10), DescriptorsError::TooMany { kept: 2, extra: 5 });
    for argument in ["", "Container", "a b", "../x", &"x".repeat(MAX_ARGUMENT + 1)] {
        let launch = Launch { argument: argument.to_owned(), ..launch() };
        assert_eq!(refuse(&launch, 10), DescriptorsError::Argument, "{argument}");
    }
    for kept in [vec!["log".into(), "log".into()], vec!["x".into(), String::new()]] {
        assert_eq!(refuse(&Launch { kept, ..launch() }, 10), DescriptorsError::Label);
    }
    let many = (0..=MAX_KEPT).map(|number| number.to_string()).collect();
    assert!(matches!(refuse(&Launch { kept: many, ..launch() }, 10), DescriptorsError::TooMany { .. }));
}

/// The largest legal launch must fit into a datagram and into one message's descriptors.
#[test]
fn the_largest_launch_fits() {
    let kept = (0..MAX_KEPT).map(|number| format!("{number:032}")).collect();
    let argument = "x".repeat(MAX_ARGUMENT);
    let largest = Launch { extra: MAX_EXTRA, kept, argument, ..launch() };
    let count = 7 + usize::from(MAX_EXTRA) + MAX_KEPT;
    assert!(count <= fdpass::MAX_DESCRIPTORS);
    let (service, supervisor) = Endpoint::pair().unwrap();
    let sent = Descriptors::split(&largest, files(count)).unwrap();
    service.send(&ToSupervisor::Launch(largest.clone()), &sent.in_order()).unwrap();
    let attached = supervisor.recv::<ToSupervisor>().unwrap().1;
    assert_eq!(Descriptors::split(&largest, attached).unwrap().kept.len(), MAX_KEPT);
}

proptest! {
    #[test]
    fn any_datagram_is_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
        let (service, supervisor) = Endpoint::pair().unwrap();
        fdpass::send(service.as_fd(), &bytes, &[]).unwrap();
        match supervisor.recv::<ToSupervisor>() {
            Ok((message, _)) => prop_assert!(postcard::to_stdvec(&message).unwrap().len() <= bytes.len()),
            Err(error) => prop_assert_eq!(error, ControlError::Garbage { bytes: bytes.len() }),
        }
    }
}
