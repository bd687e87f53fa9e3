//! The containers' addresses: chosen once, and where they may not be.
use crate::world::*;
use wherry_protocol::message::*;
use wherry_protocol::*;

/// A world whose containers have other addresses than usual.
fn world(overlay: &str) -> (World, User, Board) {
    let mut world = World::new();
    world.settle(Some(overlay)).expect("nobody has an address");
    let (user, board) = (world.user(10), world.board(100));
    world.image(&user, "web");
    (world, user, board)
}

#[test]
fn the_first_start_chooses_and_the_next_ones_keep() {
    let mut world = World::new();
    world.settle(None).unwrap();
    let first = world.broker.overlay();
    assert_eq!((first.network(), world.commits), (Overlay::default().network(), 1), "written down");
    world.number();
    world.settle(None).unwrap();
    world.settle(Some("10.0.0.0/8")).unwrap();
    assert_eq!((world.broker.overlay(), world.commits), (first, 1), "nothing new");
    // Nobody has an address yet.
    world.settle(Some("172.20.0.0/14")).unwrap();
    world.restart();
    world.settle(None).unwrap();
    assert_eq!(world.broker.overlay().to_string(), "172.20.0.0/14");
    assert_eq!(world.broker.overlay().network6(), first.network6(), "made once");
}

#[test]
fn boards_and_containers_get_their_parts() {
    let (mut world, user, board) = world("172.20.0.0/14");
    let web = world.running(&user, "web", board, "n1");
    assert_eq!(web.address.to_string(), "172.20.4.2");
    assert_eq!(web.address6.to_string(), "fd01:101:101:1::2");
    let (_, orders) = world.arrive(100, facts(100), Vec::new());
    let desired = sync(&orders);
    assert_eq!(desired.overlay, world.broker.overlay());
    assert_eq!(desired.containers[0].address, web.address);
}

#[test]
fn another_choice_is_refused_while_there_are_containers() {
    let (mut world, user, board) = world("172.20.0.0/14");
    let web = world.running(&user, "web", board, "n1");
    world.restart();
    let refused = world.settle(Some("10.0.0.0/8")).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "containers have addresses in 172.20.0.0/14 (1 of them), and the configuration says 10.0.0.0/8: put overlay = \
         \"172.20.0.0/14\" back, remove the containers, and then change it"
    );
    assert_eq!(world.broker.overlay().to_string(), "172.20.0.0/14");
    let (mut user, mut board) = (user, board);
    world.back(&mut user);
    board.session = world.arrive(100, facts(100), Vec::new()).0.session;
    world.ask(user.session, Request::Remove { container: id(&web), force: true });
    assert!(world.settle(Some("10.0.0.0/8")).is_err(), "its board has not said that nothing is left");
    world.removed(board, web.id);
    world.settle(Some("10.0.0.0/8")).unwrap();
}

#[test]
fn a_small_overlay_is_full_before_a_board_is() {
    let (mut world, user, board) = world("192.168.0.0/16");
    let moved = NodeFacts { underlay: "172.16.0.9".parse().unwrap(), ..facts(100) };
    world.arrive(100, moved, Vec::new());
    let _ = board;
    for number in 0..253 {
        let info = world.run(&user, &format!("web{number}"), "n1");
        assert_eq!(info.address.octets()[..3], [192, 168, 1]);
    }
    let refused = world.refused(&user, run("more", |request| request.node = Some("n1".into())));
    assert_eq!(refused.code, ErrorCode::NoCapacity);
    assert!(refused.message.contains("holds as many containers as one board may"), "{refused:?}");
}

#[test]
fn a_board_whose_own_address_is_a_container_s_takes_none() {
    let (mut world, user, _) = world("10.0.0.0/8");
    let moved = NodeFacts { underlay: "10.0.5.9".parse().unwrap(), ..facts(100) };
    world.arrive(100, moved, Vec::new());
    let refused = world.refused(&user, run("web", |_| {}));
    assert_eq!(
        refused.message,
        "no node can take it: host100 has its own address 10.0.5.9 in the containers' network 10.0.0.0/8 (`overlay` in \
         the broker's configuration chooses another)"
    );
}

#[test]
fn egress_to_a_network_never_means_other_containers() {
    let (mut world, _, _) = world("172.20.0.0/14");
    let admin = world.admin(1);
    world.image(&admin, "web");
    let lan = |network: &str| {
        let egress = Setting::Egress(Egress::Lan(network.parse().unwrap()));
        run("web", |request| request.spec.settings = vec![egress])
    };
    let refused = world.refused(&admin, lan("172.16.0.0/12"));
    assert!(refused.message.contains("reaches into 172.20.0.0/14"), "{refused:?}");
    assert_eq!(refused.code, ErrorCode::Invalid);
    // What is usually the overlay is a network like any other here.
    world.info(&admin, lan("10.1.0.0/16"));
}
