use crate::world::*;
use wherry_broker::state::Output;
use wherry_protocol::message::*;
use wherry_protocol::token::TokenSecret;
use wherry_protocol::*;

fn token(reply: Reply) -> Token {
    match reply {
        Reply::Token { text, .. } => text.parse().expect("a token"),
        other => panic!("expected a token, got {other:?}"),
    }
}

fn code(reply: EnrolReply) -> ErrorCode {
    match reply {
        EnrolReply::Refused(error) => error.code,
        EnrolReply::Enrolled { .. } => panic!("enrolled"),
    }
}

fn create(role: Role, lifetime_seconds: u32) -> Request {
    Request::CreateToken { role, lifetime_seconds }
}

#[test]
fn a_token_holds_once_until_it_expires_and_for_its_role_only() {
    let mut world = World::new();
    let admin = world.admin(1);
    let made = token(world.reply(&admin, create(Role::User, 60)));
    assert_eq!(made.broker, identity().key);
    assert_eq!(code(world.claim(10, made.secret, Role::Admin)), ErrorCode::BadToken);
    let first = world.claim(10, made.secret, Role::User);
    assert!(matches!(first, EnrolReply::Enrolled { .. }));
    assert_eq!(world.claim(10, made.secret, Role::User), first);
    assert_eq!(code(world.claim(11, made.secret, Role::User)), ErrorCode::BadToken);
    let late = token(world.reply(&admin, create(Role::User, 60)));
    world.wait(60_000);
    assert_eq!(code(world.claim(12, late.secret, Role::User)), ErrorCode::BadToken);
    world.restart();
    assert_eq!(world.claim(10, made.secret, Role::User), first, "also after a restart");
}

#[test]
fn only_the_hash_of_a_secret_is_stored() {
    let mut world = World::new();
    let admin = world.admin(1);
    let made = token(world.reply(&admin, create(Role::User, 60)));
    let stored = format!("{:?}", world.store);
    let bytes = postcard::to_stdvec(&world.store.values().collect::<Vec<_>>()).unwrap();
    assert!(!bytes.windows(16).any(|window| window == made.secret.0));
    assert!(stored.contains(&format!("{:?}", made.secret.hash())));
}

#[test]
fn tokens_are_bounded_in_time_and_number() {
    let mut world = World::new();
    let admin = world.admin(1);
    for seconds in [0, 31 * 24 * 3600] {
        assert_eq!(world.refused(&admin, create(Role::User, seconds)).code, ErrorCode::Invalid);
    }
    let mut made = 0;
    let full = loop {
        let secret = made_secret(made);
        let request = wherry_broker::state::RequestId(world.number());
        let input = wherry_broker::state::Input::Ask {
            request,
            session: admin.session,
            body: Box::new(create(Role::User, 60)),
            fresh: secret,
        };
        match reply(&world.step(input), request) {
            Some(Reply::Token { .. }) => made += 1,
            Some(Reply::Error(error)) => break error,
            other => panic!("unexpected {other:?}"),
        }
        assert!(made < 10_000);
    };
    assert_eq!(full.code, ErrorCode::Busy);
    world.wait(61_000);
    token(world.reply(&admin, create(Role::User, 60)));
    assert!(world.store.len() < 10, "expired tokens went when one was made");
}

fn made_secret(number: u32) -> [u8; 16] {
    let mut secret = [0; 16];
    secret[..4].copy_from_slice(&number.to_le_bytes());
    secret
}

#[test]
fn a_configured_token_is_taken_over_once_for_ever() {
    let mut world = World::new();
    let secret = TokenSecret([9; 16]);
    let adopt = || wherry_broker::state::Input::Adopt {
        hash: secret.hash(),
        role: Role::Admin,
        expires_seconds: u64::MAX,
    };
    assert!(!world.broker.has_admin());
    world.step(adopt());
    assert!(world.broker.has_admin());
    assert!(matches!(world.claim(1, secret, Role::Admin), EnrolReply::Enrolled { .. }));
    world.restart();
    let before = world.commits;
    world.step(adopt());
    assert_eq!(world.commits, before, "said again at each start, written once");
    assert_eq!(code(world.claim(2, secret, Role::Admin)), ErrorCode::BadToken);
}

#[test]
fn an_enrolled_key_needs_no_second_token_and_does_not_use_it_up() {
    let mut world = World::new();
    let admin = world.admin(1);
    world.user(10);
    let made = token(world.reply(&admin, create(Role::Admin, 60)));
    assert_eq!(code(world.claim(10, made.secret, Role::Admin)), ErrorCode::AlreadyExists);
    assert!(matches!(world.claim(2, made.secret, Role::Admin), EnrolReply::Enrolled { .. }));
}

#[test]
fn a_cluster_has_254_boards_with_names_of_their_own() {
    let mut world = World::new();
    let user = world.user(1);
    for number in 0..254_u32 {
        assert!(matches!(enrol_board(&mut world, number, "node"), EnrolReply::Enrolled { .. }), "{number}");
    }
    assert_eq!(code(enrol_board(&mut world, 254, "node")), ErrorCode::NoCapacity);
    let Reply::Nodes(nodes) = world.reply(&user, Request::Nodes) else { panic!() };
    let mut names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names[..2], ["node", "node-2"]);
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 254);
}

fn enrol_board(world: &mut World, number: u32, label: &str) -> EnrolReply {
    let mut bytes = [0xcc; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    let secret = TokenSecret(made_secret(number));
    world.step(wherry_broker::state::Input::Adopt {
        hash: secret.hash(),
        role: Role::Node,
        expires_seconds: u64::MAX,
    });
    let request = wherry_broker::state::RequestId(world.number());
    let claim = EnrolRequest { role: Role::Node, secret, label: label.parse().expect("a name") };
    let out = world.step(wherry_broker::state::Input::Enrol { request, key: PublicKey(bytes), claim });
    match answer(&out, request) {
        Some(wherry_broker::state::Answer::Enrol(reply)) => reply,
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn a_board_cannot_take_the_number_of_another_as_its_name() {
    let mut world = World::new();
    let user = world.user(1);
    enrol_board(&mut world, 1, "n7");
    let Reply::Nodes(nodes) = world.reply(&user, Request::Nodes) else { panic!() };
    assert_eq!(nodes[0].name.as_str(), "n7-1");
}

#[test]
fn a_removed_user_leaves_nothing() {
    let mut world = World::new();
    let (admin, user) = (world.admin(1), world.user(10));
    let board = world.board(100);
    let before = world.store.clone();
    world.image(&user, "web");
    let (web, probe) = (world.running(&user, "web", board, "n1"), world.running(&user, "probe", board, "n1"));
    world.ask(user.session, Request::Connect(link(&probe, &web)));
    let (request, out) = world.ask(admin.session, Request::RemoveAccount(user.account));
    assert_eq!(reply(&out, request), Some(Reply::Done));
    assert!(out.contains(&Output::Close(user.session)));
    assert_eq!(out.iter().filter(|output| matches!(output, Output::DeleteBlob(_))).count(), 2);
    for container in [&web, &probe] {
        assert!(told(&out, board).contains(&ToNode::Remove(container.id)));
        world.removed(board, container.id);
    }
    world.applied(board, 2);
    assert!(world.open(10).is_err());
    let left: Vec<_> = world.store.keys().filter(|key| !before.contains_key(key)).collect();
    assert!(left.is_empty(), "{left:?}");
    world.restart();
}

#[test]
fn a_removed_board_takes_its_containers_with_it() {
    let mut world = World::new();
    let (admin, user) = (world.admin(1), world.user(10));
    let (one, two) = (world.board(100), world.board(101));
    world.image(&user, "web");
    let (web, probe) = (world.running(&user, "web", one, "n1"), world.running(&user, "probe", two, "n2"));
    let (request, _) = world.ask(user.session, Request::Connect(link(&probe, &web)));
    world.applied(one, 1);
    assert_eq!(reply(&world.applied(two, 1), request), Some(Reply::Done));
    let Reply::Accounts(accounts) = world.reply(&admin, Request::Accounts) else { panic!() };
    let account = accounts.iter().find(|account| account.key == key(100)).unwrap().id;
    let (request, out) = world.ask(admin.session, Request::RemoveAccount(account));
    assert_eq!(reply(&out, request), Some(Reply::Done));
    assert!(network(&told(&out, two)).unwrap().connections.is_empty());
    let Reply::Containers(left) = world.reply(&user, Request::Containers { all_accounts: false }) else {
        panic!()
    };
    assert_eq!(left.len(), 1);
    assert!(world.open(100).is_err());
    let Reply::Nodes(nodes) = world.reply(&user, Request::Nodes) else { panic!() };
    assert_eq!(nodes.len(), 1);
    world.restart();
    world.enrol(102, Role::Node);
    let Reply::Nodes(nodes) = world.reply_new(&user, Request::Nodes) else { panic!() };
    assert_eq!(nodes.iter().map(|node| node.index.0).collect::<Vec<_>>(), [2, 3], "a number rests");
}

impl World {
    /// After a restart a user has to come back first.
    fn reply_new(&mut self, user: &User, body: Request) -> Reply {
        let mut user = *user;
        self.back(&mut user);
        self.reply(&user, body)
    }
}

#[test]
fn the_last_admin_stays() {
    let mut world = World::new();
    let (one, two) = (world.admin(1), world.admin(2));
    assert_eq!(world.reply(&one, Request::RemoveAccount(two.account)), Reply::Done);
    assert_eq!(world.refused(&one, Request::RemoveAccount(one.account)).code, ErrorCode::WrongState);
    assert_eq!(world.refused(&one, Request::RemoveAccount(AccountId(99))).code, ErrorCode::NotFound);
}
