use crate::world::*;
use wherry_protocol::message::*;
use wherry_protocol::*;

/// Two boards with one running container each.
fn world() -> (World, User, [Board; 2], [ContainerInfo; 2]) {
    let mut world = World::new();
    let user = world.user(10);
    let boards = [world.board(100), world.board(101)];
    world.image(&user, "web");
    let web = world.running(&user, "web", boards[0], "n1");
    let probe = world.running(&user, "probe", boards[1], "n2");
    (world, user, boards, [web, probe])
}

fn connections(world: &mut World, user: &User) -> usize {
    match world.reply(user, Request::Connections) {
        Reply::Connections { connections, .. } => connections.len(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_connection_is_open_when_both_boards_say_so() {
    let (mut world, user, [one, two], [web, probe]) = world();
    let (request, out) = world.ask(user.session, Request::Connect(link(&probe, &web)));
    for (board, peer, other) in [(one, 2, 101), (two, 1, 100)] {
        let orders = told(&out, board);
        let desired = network(&orders).unwrap();
        assert_eq!(desired.revision, 1);
        let underlay = std::net::Ipv4Addr::new(192, 168, 50, other);
        let wireguard = Some(keys(other));
        assert_eq!(desired.peers, [Peer { index: NodeIndex(peer), underlay, wireguard }]);
        assert_eq!(desired.connections[0].from_address, probe.address);
        assert_eq!(desired.connections[0].to_address, web.address);
    }
    assert_eq!(reply(&out, request), None);
    assert_eq!(reply(&world.applied(one, 1), request), None);
    assert_eq!(reply(&world.applied(two, 1), request), Some(Reply::Done));
    let before = world.commits;
    assert_eq!(
        world.reply(&user, Request::Connect(link(&probe, &web))),
        Reply::Done,
        "again is the same as once"
    );
    assert_eq!(world.commits, before);
}

#[test]
fn a_connection_within_one_board_needs_no_peer() {
    let (mut world, user, [one, _], [web, _]) = world();
    let near = world.running(&user, "near", one, "n1");
    let (request, out) = world.ask(user.session, Request::Connect(link(&near, &web)));
    let orders = told(&out, one);
    let desired = network(&orders).unwrap();
    assert_eq!((desired.peers.len(), desired.connections.len()), (0, 1));
    assert_eq!(reply(&world.applied(one, 1), request), Some(Reply::Done));
}

#[test]
fn names_go_to_the_board_of_whoever_may_connect_and_follow_a_change() {
    let (mut world, user, [one, two], [web, probe]) = world();
    let (_, out) = world.ask(user.session, Request::Connect(link(&probe, &web)));
    let names = |out: &[wherry_broker::state::Output], board| {
        network(&told(out, board)).map(|network| network.names.clone())
    };
    assert_eq!(names(&out, one), Some(vec![]), "nobody here may connect to anybody");
    let called = names(&out, two).unwrap();
    assert_eq!((called.len(), called[0].container, called[0].name.as_str()), (1, web.id, "web"));
    let front = "front".parse().unwrap();
    let (_, out) = world.ask(user.session, Request::Rename { container: id(&web), name: front });
    assert_eq!(names(&out, two).unwrap()[0].name.as_str(), "front");
    assert_eq!(names(&out, one), None);
}

#[test]
fn a_board_that_cannot_takes_the_connection_back() {
    let (mut world, user, [one, two], [web, probe]) = world();
    let (request, _) = world.ask(user.session, Request::Connect(link(&probe, &web)));
    world.applied(one, 1);
    let failed = FromNode::Network { revision: 1, error: Some("no nf_tables in this kernel".into()) };
    let out = world.report(two, failed);
    let Some(Reply::Error(error)) = reply(&out, request) else { panic!("{out:?}") };
    assert_eq!(error.message, "host101 could not change its network: no nf_tables in this kernel");
    assert!(network(&told(&out, one)).unwrap().connections.is_empty());
    assert_eq!(connections(&mut world, &user), 0);
}

#[test]
fn a_board_that_does_not_answer_takes_the_connection_back_too() {
    let (mut world, user, [one, _], [web, probe]) = world();
    let (request, _) = world.ask(user.session, Request::Connect(link(&probe, &web)));
    world.applied(one, 1);
    let out = world.wait(15_000);
    let Some(Reply::Error(error)) = reply(&out, request) else { panic!("{out:?}") };
    assert_eq!(error.code, ErrorCode::Timeout);
    assert!(error.message.contains("host101"), "{error}");
    assert_eq!(connections(&mut world, &user), 0);
}

#[test]
fn a_board_that_leaves_meanwhile_is_named() {
    let (mut world, user, [_, two], [web, probe]) = world();
    let (request, _) = world.ask(user.session, Request::Connect(link(&probe, &web)));
    let out = world.leave(two.session);
    assert!(
        matches!(reply(&out, request), Some(Reply::Error(error)) if error.code == ErrorCode::NodeUnreachable)
    );
    assert_eq!(connections(&mut world, &user), 0);
    let error = world.refused(&user, Request::Connect(link(&probe, &web)));
    assert!(error.message.contains("host101 is not connected"), "{error}");
}

#[test]
fn closing_needs_one_end_at_least() {
    let (mut world, user, [one, two], [web, probe]) = world();
    let connect = |world: &mut World, revision| {
        world.ask(user.session, Request::Connect(link(&probe, &web)));
        world.applied(one, revision);
        world.applied(two, revision);
    };
    connect(&mut world, 1);
    let (request, _) = world.ask(user.session, Request::Disconnect(link(&probe, &web)));
    world.applied(one, 2);
    assert_eq!(reply(&world.applied(two, 2), request), Some(Reply::Done));
    connect(&mut world, 3);
    let (request, _) = world.ask(user.session, Request::Disconnect(link(&probe, &web)));
    world.applied(one, 4);
    assert_eq!(reply(&world.leave(two.session), request), Some(Reply::Done), "one end has closed it");
    let (two, orders) = world.arrive(101, facts(101), report(&probe));
    assert!(sync(&orders).network.connections.is_empty());
    world.applied(two, 4);
    world.ask(user.session, Request::Connect(link(&probe, &web)));
    world.applied(one, 5);
    world.applied(two, 5);
    world.leave(one.session);
    world.leave(two.session);
    let error = world.refused(&user, Request::Disconnect(link(&probe, &web)));
    assert_eq!(error.code, ErrorCode::NodeUnreachable);
    assert_eq!(connections(&mut world, &user), 0, "it is withdrawn all the same");
}

fn report(info: &ContainerInfo) -> Vec<ContainerReport> {
    let container = ContainerRef { id: info.id, generation: info.generation };
    vec![ContainerReport { container, state: RUNNING, restarts: 0 }]
}

#[test]
fn an_address_rests_until_the_other_board_has_forgotten_it() {
    let (mut world, user, [one, two], [web, probe]) = world();
    world.ask(user.session, Request::Connect(link(&web, &probe)));
    world.applied(one, 1);
    world.applied(two, 1);
    let (request, _) = world.ask(user.session, Request::Remove { container: id(&web), force: true });
    assert_eq!(reply(&world.removed(one, web.id), request), Some(Reply::Done));
    world.applied(one, 2);
    assert_ne!(world.run(&user, "a", "n1").address, web.address, "n2 would let it through");
    world.restart();
    let (one, orders) = world.arrive(100, facts(100), Vec::new());
    world.applied(one, sync(&orders).network.revision);
    let (two, orders) = world.arrive(101, facts(101), report(&probe));
    let mut user = user;
    world.back(&mut user);
    assert_ne!(world.run(&user, "b", "n1").address, web.address);
    world.applied(two, sync(&orders).network.revision);
    assert_eq!(world.run(&user, "c", "n1").address, web.address);
}

#[test]
fn an_address_rests_also_when_the_connection_was_closed_before() {
    let (mut world, user, [one, two], [web, probe]) = world();
    world.ask(user.session, Request::Connect(link(&web, &probe)));
    world.applied(one, 1);
    world.applied(two, 1);
    world.ask(user.session, Request::Disconnect(link(&web, &probe)));
    world.applied(one, 2);
    world.ask(user.session, Request::Remove { container: id(&web), force: true });
    world.removed(one, web.id);
    assert_ne!(world.run(&user, "a", "n1").address, web.address, "n2 would still let it through");
    world.applied(two, 2);
    assert_eq!(world.run(&user, "b", "n1").address, web.address);
}

#[test]
fn a_board_that_could_not_is_asked_again() {
    let (mut world, user, [one, two], [web, probe]) = world();
    world.ask(user.session, Request::Connect(link(&probe, &web)));
    world.applied(one, 1);
    world.applied(two, 1);
    world.ask(user.session, Request::Disconnect(link(&probe, &web)));
    world.applied(one, 2);
    world.report(two, FromNode::Network { revision: 2, error: Some("out of memory".into()) });
    let orders = told(&world.wait(10_000), two);
    assert_eq!(network(&orders).unwrap().revision, 2);
    world.applied(two, 2);
    assert!(told(&world.wait(20_000), two).is_empty());
}

#[test]
fn a_moved_board_is_told_to_its_peers() {
    let (mut world, user, [one, two], [web, probe]) = world();
    world.ask(user.session, Request::Connect(link(&probe, &web)));
    world.applied(one, 1);
    world.applied(two, 1);
    world.leave(two.session);
    let moved = NodeFacts { underlay: std::net::Ipv4Addr::new(192, 168, 50, 200), ..facts(101) };
    let two = Board { session: world.open(101).unwrap() };
    let hello = Box::new(NodeHello { facts: moved, load: load(), inventory: report(&probe) });
    let out = world.step(wherry_broker::state::Input::Hello { session: two.session, hello });
    let orders = told(&out, one);
    assert_eq!(network(&orders).unwrap().peers[0].underlay, std::net::Ipv4Addr::new(192, 168, 50, 200));
}

#[test]
fn a_board_s_new_key_is_told_to_its_peers_and_one_without_has_none() {
    let (mut world, user, [one, two], [web, probe]) = world();
    world.ask(user.session, Request::Connect(link(&probe, &web)));
    world.applied(one, 1);
    world.applied(two, 1);
    for wireguard in [Some(keys(0xaa)), None, Some(keys(0xbb))] {
        let session = world.open(101).unwrap();
        let hello = NodeHello {
            facts: NodeFacts { wireguard, ..facts(101) },
            load: load(),
            inventory: report(&probe),
        };
        let out = world.step(wherry_broker::state::Input::Hello { session, hello: Box::new(hello) });
        let peers = network(&told(&out, one)).unwrap().peers.clone();
        let keys: Vec<_> = peers.iter().map(|peer| peer.wireguard).collect();
        assert_eq!(keys, wireguard.map(Some).into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn boards_without_gre_reach_only_themselves() {
    let (mut world, user, [one, _], [web, _]) = world();
    world.enrol(102, Role::Node);
    let (poor, _) = world.arrive(102, NodeFacts { overlay: false, ..facts(102) }, Vec::new());
    let lonely = world.running(&user, "lonely", poor, "n3");
    let error = world.refused(&user, Request::Connect(link(&lonely, &web)));
    assert!(error.message.starts_with("the kernel of host102 has no GRE or no WireGuard"), "{error}");
    let near = world.running(&user, "near", poor, "n3");
    let (request, _) = world.ask(user.session, Request::Connect(link(&near, &lonely)));
    assert_eq!(reply(&world.applied(poor, 1), request), Some(Reply::Done));
    world.applied(one, 9);
}

#[test]
fn a_board_cannot_confirm_what_it_was_not_told() {
    let (mut world, user, [one, two], [web, probe]) = world();
    world.applied(one, u64::MAX);
    world.applied(two, u64::MAX);
    let (request, out) = world.ask(user.session, Request::Connect(link(&probe, &web)));
    assert_eq!(reply(&out, request), None);
}

#[test]
fn nonsense_connections_are_refused() {
    let (mut world, user, _, [web, probe]) = world();
    assert_eq!(world.refused(&user, Request::Connect(link(&web, &web))).code, ErrorCode::Invalid);
    let zero = ConnectRequest { port: 0, ..link(&probe, &web) };
    assert_eq!(world.refused(&user, Request::Connect(zero)).code, ErrorCode::Invalid);
    let other = world.user(11);
    assert_eq!(world.refused(&other, Request::Connect(link(&probe, &web))).code, ErrorCode::NotFound);
}

#[test]
fn tunnels_get_new_keys_every_hour_on_the_way_that_nobody_uses() {
    let (mut world, user, [one, two], [web, probe]) = world();
    let orders = |out: &[wherry_broker::state::Output], board| -> Vec<ToNode> {
        let all = told(out, board).into_iter();
        all.filter(|order| matches!(order, ToNode::Rekey(_) | ToNode::Plane(_))).collect()
    };
    // Boards say something now and then, or they count as gone.
    let pass = |world: &mut World, minutes: u64| {
        let mut seen = (Vec::new(), Vec::new());
        for _ in 0..minutes * 4 {
            for board in [one, two] {
                world.report(board, FromNode::Load(load()));
            }
            let out = world.wait(15_000);
            seen.0.extend(orders(&out, one));
            seen.1.extend(orders(&out, two));
        }
        seen
    };
    assert!(pass(&mut world, 62).0.is_empty(), "there are no tunnels");
    world.ask(user.session, Request::Connect(link(&probe, &web)));
    world.applied(one, 1);
    world.applied(two, 1);
    let first = pass(&mut world, 58);
    assert_eq!(first.0, [ToNode::Rekey(1)]);
    assert_eq!(first.1, first.0);
    let new = [keys(100)[0], [9; 32]];
    let out = world.report(one, FromNode::Keys(new));
    let told_two = told(&out, two);
    assert_eq!(network(&told_two).unwrap().peers[0].wireguard, Some(new), "its peers hear of it");
    let settled = pass(&mut world, 2);
    assert_eq!(settled.0, [ToNode::Plane(1)]);
    let second = pass(&mut world, 58);
    assert_eq!(second.0, [ToNode::Rekey(0)], "the other way round");
    assert_eq!(pass(&mut world, 2).0, [ToNode::Plane(0)]);
    // Who is away would not hear of a new key: its peers keep theirs.
    world.step(wherry_broker::state::Input::Closed(two.session));
    let mut alone = Vec::new();
    for _ in 0..300 {
        world.report(one, FromNode::Load(load()));
        alone.extend(orders(&world.wait(15_000), one));
    }
    assert_eq!(alone, []);
}
