//! `reap` takes any child of the process, so this test is alone in its program.
use nix::sched::CloneFlags;
use std::time::{Duration, Instant};
use wherry_sys::process::{End, Image, Reaped, Spawn, reap, spawn};

#[test]
fn every_ended_child_is_taken_once_and_nothing_waits() {
    assert_eq!(reap(), Ok(None), "no children is not an error");
    let arguments = ["sh", "-c", "exit 7"].map(|word| std::ffi::CString::new(word).unwrap());
    let (namespaces, descriptors) = (CloneFlags::empty(), &[]);
    let request = Spawn {
        image: Image::Program { path: c"/bin/sh", arguments: &arguments, environment: &[] },
        descriptors,
        namespaces,
        cgroup: None,
        death_signal: None,
    };
    let mut pids: Vec<_> = (0..5).map(|_| spawn(&request).unwrap().pid).collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !pids.is_empty() && Instant::now() < deadline {
        let Some(Reaped { pid, end }) = reap().unwrap() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        assert_eq!(end, End::Code(7));
        let place = pids.iter().position(|known| *known == pid).expect("a child of ours");
        pids.remove(place);
    }
    assert_eq!((pids.len(), reap()), (0, Ok(None)));
}
