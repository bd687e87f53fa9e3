//! What changes while a container runs: conditions, waking, clean starts; and what is said about boards.
use crate::world::*;
use wherry_broker::state::Output;
use wherry_protocol::message::*;
use wherry_protocol::*;

fn condition(world: &mut World, board: Board, info: &ContainerInfo, condition: Condition) -> Vec<Output> {
    let container = ContainerRef { id: info.id, generation: info.generation };
    world.report(board, FromNode::Condition { container, condition })
}

fn asleep(asleep: bool) -> Condition {
    Condition { asleep, ..Condition::default() }
}

fn with(settings: &[Setting]) -> Request {
    run("web", |run| run.spec.settings = settings.to_vec())
}

fn desired(out: &[Output], board: Board) -> ContainerDesired {
    match told(out, board).pop() {
        Some(ToNode::Container(desired)) => *desired,
        other => panic!("expected a container, got {other:?}"),
    }
}

fn constraint(text: &str) -> Setting {
    Setting::Constraint(text.parse().expect("a constraint"))
}

#[test]
fn a_container_that_is_asleep_is_woken_once_and_for_good() {
    let (mut world, user, board) = world();
    let info = world.info(&user, with(&[Setting::Asleep]));
    world.state(board, &info, RUNNING);
    condition(&mut world, board, &info, asleep(true));
    assert!(world.inspect(&user, info.id).condition.asleep);
    let (request, out) = world.ask(user.session, Request::Wake(id(&info)));
    assert!(!desired(&out, board).spec.is_asleep());
    assert_eq!(reply(&out, request), None, "it still sleeps");
    let out = condition(&mut world, board, &info, asleep(false));
    let Some(Reply::Container(woken)) = reply(&out, request) else { panic!("{out:?}") };
    assert!(!woken.condition.asleep);
    assert_eq!(world.info(&user, Request::Wake(id(&info))).id, info.id, "again is the same as once");
    world.restart();
    let (_, told) = world.arrive(100, facts(100), Vec::new());
    assert!(sync(&told).containers.iter().all(|desired| !desired.spec.is_asleep()));
}

#[test]
fn one_that_ends_while_it_is_woken_is_told_as_it_is() {
    let (mut world, user, board) = world();
    let info = world.info(&user, with(&[Setting::Asleep]));
    world.state(board, &info, RUNNING);
    condition(&mut world, board, &info, asleep(true));
    let (request, _) = world.ask(user.session, Request::Wake(id(&info)));
    let out = world.state(board, &info, EXITED);
    assert!(matches!(reply(&out, request), Some(Reply::Container(info)) if info.state == EXITED), "{out:?}");
    assert_eq!(world.refused(&user, Request::Wake(id(&info))).code, ErrorCode::WrongState);
}

#[test]
fn conditions_belong_to_one_life_and_to_the_board_that_has_it() {
    let (mut world, user, board) = world();
    let other = world.board(101);
    let info = world.running(&user, "web", board, "n1");
    let long = HealthReport { health: Health::Unhealthy, failures: 3, output: "ä\u{1b}".repeat(1000) };
    let sick = Condition { paused: true, asleep: false, health: Some(long) };
    condition(&mut world, other, &info, sick.clone());
    assert_eq!(world.inspect(&user, info.id).condition, Condition::default(), "not its board");
    let out = condition(&mut world, board, &info, sick.clone());
    assert!(out.iter().any(|output| matches!(output, Output::Event { .. })), "whoever watches is told");
    let found = world.inspect(&user, info.id).condition;
    let health = found.health.expect("it has been told");
    assert!(found.paused && health.health == Health::Unhealthy);
    assert!(health.output.len() <= HealthReport::MAX_OUTPUT_BYTES && !health.output.contains('\u{1b}'));
    world.state(board, &info, EXITED);
    assert_eq!(world.inspect(&user, info.id).condition, Condition::default());
    condition(&mut world, board, &info, sick);
    assert_eq!(world.inspect(&user, info.id).condition, Condition::default(), "a late word");
}

#[test]
fn a_clean_start_is_remembered_by_every_later_one() {
    let (mut world, user, board) = world();
    let info = world.running(&user, "web", board, "n1");
    assert_eq!(world.refused(&user, Request::StartClean(id(&info))).code, ErrorCode::WrongState);
    world.state(board, &info, EXITED);
    let (_, out) = world.ask(user.session, Request::StartClean(id(&info)));
    let clean = desired(&out, board);
    assert_eq!((clean.container.generation, clean.clean_since), (Generation(2), Generation(2)));
    assert_eq!(clean.address, info.address);
    let info = world.inspect(&user, info.id);
    world.state(board, &info, EXITED);
    world.restart();
    let (board, _) = world.arrive(100, facts(100), Vec::new());
    let user = User { session: world.open(10).expect("known"), ..user };
    let (_, out) = world.ask(user.session, Request::Start(id(&info)));
    let next = desired(&out, board);
    assert_eq!((next.container.generation, next.clean_since), (Generation(3), Generation(2)));
}

#[test]
fn constraints_choose_the_board() {
    let (mut world, user, _board) = world();
    world.board(101);
    let admin = world.admin(1);
    let label = |node: &str, value: &str| Request::LabelNode {
        node: node.into(),
        set: vec![("shelf".into(), value.into())],
        remove: Vec::new(),
    };
    let Reply::Nodes(nodes) = world.reply(&admin, label("n2", "top")) else { panic!("no nodes") };
    assert_eq!((nodes.len(), nodes[0].labels.clone()), (1, vec![("shelf".to_owned(), "top".to_owned())]));
    for (text, node) in [
        ("node.labels.shelf==top", 2),
        ("node.labels.shelf!=top", 1),
        ("node.hostname==host100", 1),
        ("node.id==n2", 2),
    ] {
        let request = run("x", |run| {
            run.name = None;
            run.spec.settings = vec![constraint(text), constraint("node.platform.arch==x86_64")];
        });
        assert_eq!(world.info(&user, request).node, NodeIndex(node), "{text}");
    }
    let error = world.refused(&user, with(&[constraint("node.labels.shelf==cellar")]));
    assert_eq!(error.code, ErrorCode::NoCapacity, "{error}");
    assert!(error.message.contains("node.labels.shelf==cellar"), "{error}");
    let both = run("web", |run| {
        run.node = Some("n1".into());
        run.spec.settings = vec![constraint("node.labels.shelf==top")];
    });
    let error = world.refused(&user, both);
    assert!(error.message.contains("node.labels.shelf==top"), "{error}");
    world.restart();
    let admin = User { session: world.open(1).expect("known"), ..admin };
    let Reply::Nodes(nodes) = world.reply(&admin, Request::Nodes) else { panic!("no nodes") };
    assert_eq!(nodes[1].labels.len(), 1, "labels are kept");
}

#[test]
fn labels_are_bounded_and_for_admins() {
    let (mut world, user, _board) = world();
    let admin = world.admin(1);
    let label = |node: &str, set: &[(&str, &str)], remove: &[&str]| Request::LabelNode {
        node: node.into(),
        set: set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        remove: remove.iter().map(|&name| name.to_owned()).collect(),
    };
    assert_eq!(world.refused(&user, label("n1", &[("a", "b")], &[])).code, ErrorCode::Forbidden);
    for (request, code) in [
        (label("n9", &[("a", "b")], &[]), ErrorCode::NotFound),
        (label("n1", &[], &["a"]), ErrorCode::NotFound),
        (label("n1", &[("a b", "c")], &[]), ErrorCode::Invalid),
        (label("n1", &[("a", "\n")], &[]), ErrorCode::Invalid),
    ] {
        assert_eq!(world.refused(&admin, request).code, code);
    }
    let many: Vec<String> = (0..200).map(|number| format!("label{number}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "x")).collect();
    assert_eq!(world.refused(&admin, label("n1", &many, &[])).code, ErrorCode::Invalid);
    assert!(matches!(world.reply(&admin, label("host100", &[("a", "b"), ("a", "c")], &[])), Reply::Nodes(_)));
    let Reply::Nodes(nodes) = world.reply(&admin, label("n1", &[], &["a"])) else { panic!("no nodes") };
    assert!(nodes[0].labels.is_empty());
}

#[test]
fn devices_are_given_away_by_admins_alone() {
    let (mut world, user, board) = world();
    let device = Setting::Device { device: "/dev/ttyUSB0".into(), path: "/dev/modem".into() };
    let error = world.refused(&user, with(std::slice::from_ref(&device)));
    assert_eq!(error.code, ErrorCode::Forbidden, "{error}");
    let admin = world.admin(1);
    world.image(&admin, "web");
    let (_, out) = world.ask(admin.session, with(std::slice::from_ref(&device)));
    assert_eq!(desired(&out, board).spec.settings, [device]);
}

#[test]
fn the_boards_own_networks_are_opened_by_admins_alone() {
    let (mut world, user, board) = world();
    let lan = [Setting::Egress(Egress::Lan("192.168.50.0/24".parse().unwrap()))];
    assert_eq!(world.refused(&user, with(&lan)).code, ErrorCode::Forbidden);
    let overlay = [Setting::Egress(Egress::Lan("10.2.0.0/16".parse().unwrap()))];
    let admin = world.admin(1);
    world.image(&admin, "web");
    assert_eq!(world.refused(&admin, with(&overlay)).code, ErrorCode::Invalid);
    let (_, out) = world.ask(admin.session, with(&lan));
    assert_eq!(desired(&out, board).spec.settings, lan);
}

#[test]
fn files_are_given_by_those_who_have_them_and_stay_as_long_as_the_container() {
    let (mut world, user, board) = world();
    let archive = descriptor(b"an archive", Media::LayerTar);
    let error = world.refused(&user, with(&[Setting::Files(archive.clone())]));
    assert_eq!(error.code, ErrorCode::NotFound, "{error}");
    let other = world.user(11);
    world.upload(&other, b"an archive", Media::LayerTar);
    assert_eq!(
        world.refused(&user, with(&[Setting::Files(archive.clone())])).code,
        ErrorCode::NotFound,
        "somebody else's"
    );
    world.upload(&user, b"an archive", Media::LayerTar);
    let wrong = Descriptor { size: 5, ..archive.clone() };
    assert!(matches!(world.reply(&user, with(&[Setting::Files(wrong)])), Reply::Error(_)), "not its size");
    let info = world.info(&user, with(&[Setting::Files(archive.clone())]));
    world.state(board, &info, RUNNING);
    let missing = |world: &mut World| match world.reply(&user, Request::MissingBlobs(vec![archive.digest])) {
        Reply::Missing(missing) => !missing.is_empty(),
        other => panic!("unexpected {other:?}"),
    };
    world.wait(25 * 3_600_000);
    assert!(!missing(&mut world), "the next start needs it");
    world.ask(user.session, Request::Remove { container: id(&info), force: true });
    world.removed(board, info.id);
    assert!(missing(&mut world), "nobody needs it any more");
}
