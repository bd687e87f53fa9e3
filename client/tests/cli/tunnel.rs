//! A local port into a container, and back again after the session broke.
use crate::world::World;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;

fn exchange(address: &str, text: &str) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all(text.as_bytes()).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn bytes_travel_both_ways_also_after_a_broken_session() {
    let world = World::joined();
    world.broker.state().add("web", &["sleep"]);
    let mut child = world.spawn(&["tunnel", "0", "web:80"], Stdio::null());
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.strip_prefix("listening on ").unwrap().split(',').next().unwrap().to_owned();
    assert!(address.starts_with("127.0.0.1:"), "{line}");
    assert_eq!(line, format!("listening on {address}, leading to web port 80; ctrl-C ends it\n"));
    assert_eq!(exchange(&address, "hello"), "80 HELLO");
    world.broker.cut();
    assert_eq!(exchange(&address, "again"), "80 AGAIN");
    let several: Vec<_> = (0..8)
        .map(|number| {
            let address = address.clone();
            std::thread::spawn(move || exchange(&address, &format!("n{number}")))
        })
        .collect();
    for (number, thread) in several.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), format!("80 N{number}"));
    }
    let child_pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(child_pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_tunnel_that_leads_nowhere_is_refused_at_once() {
    let world = World::joined();
    world.broker.state().add("web", &["sleep"]);
    world.line("tunnel 0 nothing:80").fails(1, "no container is called 'nothing'");
    world.line("tunnel 0 web:53/udp").fails(2, "only TCP can");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    world.run(&["tunnel", &port, "web:80"]).fails(1, &format!("cannot listen on 127.0.0.1:{port}"));
}
