//! Joining, stored locations, and everything that can be wrong on the way to a broker.
use crate::world::World;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use wherry_protocol::{ErrorCode, OsRandom, Role, SecretKey, Token, WireError};

#[test]
fn a_token_becomes_the_default_location() {
    let world = World::empty();
    let token = world.broker.token(Role::User).to_string();
    let address = world.broker.address();
    let joined = world.run(&["join", &token]);
    assert!(joined.ok().starts_with(&format!("joined demo at {address} as ada-")), "{joined:?}");
    assert!(joined.out.ends_with("(user); it is the default location\n"), "{joined:?}");
    let file = world.locations().join("demo.toml");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(world.locations().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let listed = world.line("locations");
    assert!(listed.ok().contains("*        demo"), "{listed:?}");
    assert!(world.line("status").ok().contains("fake 1"));
}

#[test]
fn joining_again_with_the_same_token_changes_nothing() {
    let world = World::empty();
    let token = world.broker.token(Role::User).to_string();
    world.run(&["join", &token]).ok();
    let before = std::fs::read(world.locations().join("demo.toml")).unwrap();
    world.run_with_input(&["join", "-"], format!("{token}\n").as_bytes()).ok();
    assert_eq!(std::fs::read(world.locations().join("demo.toml")).unwrap(), before);
    assert_eq!(world.broker.state().members.len(), 1);
}

#[test]
fn a_lost_answer_does_not_lose_the_token() {
    let world = World::empty();
    let token = world.broker.token(Role::User).to_string();
    world.broker.state().faults.lose_enrolment = 1;
    world.run(&["join", &token]).fails(1, "lost the connection");
    assert!(!world.locations().join("demo.toml").exists());
    world.run(&["join", &token]).ok();
    assert_eq!(world.broker.state().members.len(), 1, "the same key was shown twice");
    let pending = world.home.path().join(".config/wherry/pending");
    assert_eq!(std::fs::read_dir(pending).unwrap().count(), 0);
}

#[test]
fn tokens_that_do_not_hold() {
    let world = World::empty();
    let token = world.broker.token(Role::User);
    let text = token.to_string();
    let (head, address) = text.split_once('@').unwrap();
    world.run(&["join", &format!("{}@{address}", &head[..head.len() - 1])]).fails(1, "damaged");
    world.run(&["join", "hello"]).fails(1, "not a token");
    world.run(&["join", &text.replace("-user-", "-admin-")]).fails(1, "the token is damaged");
    let unknown = Token { secret: wherry_protocol::token::TokenSecret([1; 16]), ..token.clone() };
    world.run(&["join", &unknown.to_string()]).fails(1, "the token is wrong, used or expired");
    let other = SecretKey::generate(&mut OsRandom).public();
    world.broker.state().tokens.insert(token.secret.hash(), (Role::User, Some(other)));
    world.run(&["join", &text]).fails(1, "the token is wrong, used or expired");
    let node = world.broker.token(Role::Node).to_string();
    world.run(&["join", &node]).fails(1, "belongs into a board's wherry.toml");
    let nowhere = Token { address: None, ..token };
    world.run(&["join", &nowhere.to_string()]).fails(1, "add --address");
    assert!(!world.locations().exists(), "nothing was stored");
}

#[test]
fn a_broker_that_is_not_there() {
    let world = World::joined();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let token = world.broker.token(Role::User).to_string();
    let refused = world.run(&["join", &token, "--address", &free.to_string()]);
    let port = free.port() + 1;
    refused
        .fails(1, &format!("cannot reach the broker at 127.0.0.1 port {port} (connection refused): check"));
    let unknown = world.run(&["join", &token, "--address", "no-such-host.invalid"]);
    unknown.fails(1, "cannot reach the broker at no-such-host.invalid port 2021");
    world.run(&["join", &token, "--address", "a b"]).ok_usage("is not an address");
}

impl crate::world::Ran {
    /// Wrong usage, as clap reports it.
    fn ok_usage(&self, words: &str) {
        assert_eq!(self.code, Some(2), "{self:?}");
        assert!(self.err.contains(words), "{self:?}");
    }
}

#[test]
fn another_broker_at_the_same_address_is_refused_without_a_question() {
    let world = World::joined();
    let file = world.locations().join("demo.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let key = world.broker.key.public().to_string();
    let other = SecretKey::generate(&mut OsRandom).public().to_string();
    std::fs::write(&file, text.replace(&key, &other)).unwrap();
    let refused = world.run_with_input(&["ps"], b"yes\nyes\n");
    refused.fails(1, "does not hold the broker's key: it is another broker or an impostor");
    let token = Token { broker: other.parse().unwrap(), ..world.broker.token(Role::User) };
    world.run(&["join", &token.to_string(), "--name", "x"]).fails(1, "does not hold the broker's key");
}

#[test]
fn something_else_at_that_address() {
    let world = World::joined();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            socket.unwrap().write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    });
    let file = world.locations().join("demo.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(&world.broker.address(), &address.to_string())).unwrap();
    world.line("ps").fails(1, "is not a Wherry broker");
}

#[test]
fn refusals_of_the_broker_are_passed_on() {
    let world = World::joined();
    let refuse = |code, text: &str| world.broker.state().faults.refuse = Some(WireError::new(code, text));
    refuse(ErrorCode::Version, "this broker speaks version 7 to 9, upgrade wherry");
    world.line("ps").fails(1, "this broker speaks version 7 to 9, upgrade wherry");
    refuse(ErrorCode::Busy, "too many sessions, try again later");
    world.line("ps").fails(1, "too many sessions");
    world.broker.state().members.clear();
    world.line("ps").fails(1, "does not accept this computer's key: this key is not enrolled here");
}

#[test]
fn stored_locations_are_kept_private_and_can_be_chosen() {
    let world = World::joined();
    let second = world.broker.token(Role::User).to_string();
    world.run(&["join", &second]).ok();
    assert_eq!(world.broker.state().members.len(), 2);
    world.run(&["join", &second, "--name", "shed", "--label", "me"]).ok();
    let names = |value: serde_json::Value| -> Vec<(String, bool)> {
        let location = |one: &serde_json::Value| {
            (one["name"].as_str().unwrap().to_owned(), one["default"].as_bool().unwrap())
        };
        value.as_array().unwrap().iter().map(location).collect()
    };
    let listed = world.line("locations --json");
    assert_eq!(names(listed.json()), [("demo".into(), true), ("shed".into(), false)]);
    assert!(!listed.out.contains("secret"), "{listed:?}");
    assert_eq!(world.line("locations use shed").ok(), "shed\n");
    assert_eq!(names(world.line("locations --json").json())[1], ("shed".into(), true));
    world.line("--location nowhere ps").fails(1, "no location is called 'nowhere'");
    assert_eq!(world.line("locations rm shed").ok(), "shed\n");
    world.line("locations rm shed").fails(1, "no location is called 'shed'");
    let file = world.locations().join("demo.toml");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    world.line("ps").fails(1, "holds a secret key but others can read it (mode 644): run chmod 600");
    std::fs::remove_file(&file).unwrap();
    world.line("ps").fails(1, "no location has been joined yet: run `wherry join <token>`");
}
