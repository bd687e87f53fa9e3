//! With a terminal: raw while a process has it, given back in every case.
use crate::world::World;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::process::Child;

struct Terminal {
    ours: File,
    theirs: File,
}

impl Terminal {
    fn open() -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        let theirs = OpenOptions::new().read(true).write(true).open(name).unwrap();
        let terminal = Self { ours: File::from(ours), theirs };
        terminal.resize(33, 99);
        terminal
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.theirs, size).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.theirs).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    fn run(&self, world: &World, arguments: &[&str]) -> Child {
        let clone = || self.theirs.try_clone().unwrap();
        world.command(arguments).stdin(clone()).stdout(clone()).stderr(clone()).spawn().unwrap()
    }

    fn read_until(&mut self, words: &str) -> String {
        let mut seen = String::new();
        let mut buffer = [0; 1024];
        while !seen.contains(words) {
            let count = self.ours.read(&mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        seen
    }
}

#[test]
fn a_process_gets_the_terminal_and_gives_it_back() {
    let world = World::joined();
    world.broker.state().add("web", &["cat"]);
    let mut terminal = Terminal::open();
    let mut child = terminal.run(&world, &["exec", "-it", "web", "size"]);
    terminal.read_until("33x99\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!terminal.is_raw());
    let mut child = terminal.run(&world, &["run", "-it", "web", "cat"]);
    crate::world::eventually("raw mode", || terminal.is_raw());
    // Ctrl-C is a key like any other now; ctrl-P ctrl-Q leaves.
    terminal.ours.write_all(b"ping\x03").unwrap();
    terminal.read_until("ping\x03");
    terminal.ours.write_all(b"\x10\x11").unwrap();
    terminal.read_until("detached from");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn a_signal_or_a_lost_broker_gives_the_terminal_back_too() {
    let world = World::joined();
    let mut terminal = Terminal::open();
    let mut child = terminal.run(&world, &["run", "-it", "web", "cat"]);
    crate::world::eventually("raw mode", || terminal.is_raw());
    terminal.ours.write_all(b"here").unwrap();
    terminal.read_until("here");
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(!terminal.is_raw());
    let mut child = terminal.run(&world, &["run", "-it", "web", "cat"]);
    terminal.ours.write_all(b"there").unwrap();
    terminal.read_until("there");
    crate::world::eventually("raw mode", || terminal.is_raw());
    world.broker.cut();
    terminal.read_until("lost the connection");
    assert_eq!(child.wait().unwrap().code(), Some(125));
    assert!(!terminal.is_raw());
}
