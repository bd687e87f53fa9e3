//! Wishes that no laptop of ours would send, and those that only the broker can judge: one exact sentence, and no container.
use crate::world::*;
use wherry_protocol::message::*;
use wherry_protocol::*;

type Change = Box<dyn Fn(&mut RunRequest)>;

fn of_spec(change: impl Fn(&mut ContainerSpec) + 'static) -> Change {
    Box::new(move |run| change(&mut run.spec))
}

fn volume(path: &str) -> VolumeMount {
    VolumeMount { volume: "v".parse().expect("a name"), path: path.into(), read_only: false }
}

fn published(port: u16, container_port: u16) -> PublishedPort {
    PublishedPort::tcp(port, container_port)
}

const HOST: &str = "is not a host name: use 1 to 63 letters, digits and '-' (RFC 1123)";
const USER: &str = "the user is not usable: 1 to 256 bytes without control characters, please";

fn published_cases() -> Vec<(Change, ErrorCode, String)> {
    let invalid = |change, text: &str| (change, ErrorCode::Invalid, text.to_owned());
    vec![
        invalid(
            of_spec(|spec| spec.publish = vec![published(0, 80)]),
            "a published port is 1 to 65535, not 0",
        ),
        invalid(
            of_spec(|spec| {
                let (transport, on) = (Transport::Udp, PublishedOn::Node);
                spec.publish = vec![PublishedPort { transport, on, ..published(51820, 80) }];
            }),
            "port 51820/udp is the boards' own: publish on another one",
        ),
        invalid(
            of_spec(|spec| {
                spec.publish =
                    vec![PublishedPort { transport: Transport::Udp, proxy: true, ..published(53, 53) }];
            }),
            "the PROXY protocol is for TCP: leave out proxy",
        ),
        invalid(
            of_spec(|spec| {
                spec.publish =
                    vec![PublishedPort { on: PublishedOn::Node, proxy: true, ..published(53, 53) }];
            }),
            "a port of a node shows who really connects: leave out proxy",
        ),
        invalid(
            of_spec(|spec| {
                let allow = vec!["192.168.50.9/24".parse().expect("a network")];
                spec.publish = vec![PublishedPort { allow, ..published(81, 80) }];
            }),
            "allow=192.168.50.9/24 has an address within a network: say allow=192.168.50.0/24",
        ),
        invalid(
            of_spec(|spec| spec.publish = vec![published(2020, 80)]),
            "port 2020 is the broker's own: publish on another one",
        ),
        invalid(
            of_spec(|spec| spec.publish = vec![published(80, 80), published(80, 81)]),
            "port 80 is published twice",
        ),
    ]
}

fn cases() -> Vec<(Change, ErrorCode, String)> {
    let invalid = |change, text: &str| (change, ErrorCode::Invalid, text.to_owned());
    let workdir = |path: &str| {
        let (path, shown) = (path.to_owned(), path.chars().take(80).collect::<String>());
        let text =
            format!("the working directory '{shown}' is not usable: an absolute path without '..', please");
        (of_spec(move |spec| spec.workdir = Some(path.clone())), ErrorCode::Invalid, text)
    };
    let hostname = |name: &'static str| {
        (of_spec(|spec| spec.hostname = Some(name.into())), ErrorCode::Invalid, format!("'{name}' {HOST}"))
    };
    let user = |name: String| invalid(of_spec(move |spec| spec.user = Some(name.clone())), USER);
    let node = |name: &'static str| {
        let text = format!("there is no node '{name}': list them with `wherry resources`");
        (Box::new(|run: &mut RunRequest| run.node = Some(name.into())) as Change, ErrorCode::NotFound, text)
    };
    vec![
        node(""),
        node("../x"),
        hostname(""),
        hostname("a b"),
        hostname("a/b"),
        hostname("-x-"),
        user(String::new()),
        user("a\nb".into()),
        user("a".repeat(257)),
        workdir("srv"),
        workdir(""),
        workdir("/a/../b"),
        workdir(&("/".to_owned() + &"a".repeat(4096))),
        invalid(of_spec(|spec| spec.command = vec!["a\0b".into()]), "an argument contains a NUL byte"),
        invalid(of_spec(|spec| spec.entrypoint = Some(vec!["\0".into()])), "an argument contains a NUL byte"),
        invalid(
            of_spec(|spec| spec.env = vec![("A=B".into(), "c".into())]),
            "'A=B' cannot be an environment variable: no '=' and no NUL byte, please",
        ),
        (
            of_spec(|spec| spec.command = vec!["x".repeat(64 << 10)]),
            ErrorCode::TooLarge,
            "arguments and environment take 65537 bytes, the limit is 65536".into(),
        ),
        invalid(
            of_spec(|spec| spec.mounts = vec![volume("/a"), volume("/a")]),
            "two volumes are mounted at the same path",
        ),
        invalid(
            of_spec(|spec| spec.mounts = vec![volume("/a/../b")]),
            "the path of a volume '/a/../b' is not usable: an absolute path without '..', please",
        ),
        invalid(
            of_spec(|spec| {
                spec.mounts = vec![volume("/a")];
                spec.settings = vec![Setting::Tmpfs { path: "/a".into(), size_bytes: 1 << 20 }];
            }),
            "two things are mounted at '/a': choose one of both",
        ),
        invalid(
            of_spec(|spec| spec.resources.memory_bytes = Some(1023)),
            "1023 bytes of memory are too few to start in: give at least 1m",
        ),
        invalid(
            of_spec(|spec| spec.labels = vec![("k".into(), "v".repeat(2000))]),
            "a label has no name, or more than 1024 bytes",
        ),
    ]
}

#[test]
fn every_nonsense_has_its_sentence_and_leaves_nothing() {
    let mut world = World::new();
    let user = world.user(10);
    let board = world.board(100);
    world.image(&user, "web");
    for (change, code, sentence) in cases().into_iter().chain(published_cases()) {
        let error = world.refused(&user, run("front", change));
        assert_eq!((error.code, error.message.as_str()), (code, sentence.as_str()));
    }
    let Reply::Containers(left) = world.reply(&user, Request::Containers { all_accounts: false }) else {
        panic!("a list")
    };
    assert!(left.is_empty(), "{left:?}");
    // The name that all of them wanted is free.
    world.running(&user, "front", board, "n1");
}
