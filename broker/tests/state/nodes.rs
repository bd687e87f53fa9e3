use crate::world::*;
use wherry_broker::state::Output;
use wherry_protocol::message::*;
use wherry_protocol::*;

fn report(info: &ContainerInfo, state: ContainerState) -> ContainerReport {
    ContainerReport {
        container: ContainerRef { id: info.id, generation: info.generation },
        state,
        restarts: 0,
    }
}

fn rebooted() -> NodeFacts {
    NodeFacts { boot_id: [0xee; 16], ..facts(100) }
}

#[test]
fn a_board_that_was_away_keeps_its_containers() {
    let (mut world, user, board) = world();
    let info = world.running(&user, "web", board, "n1");
    let out = world.leave(board.session);
    assert!(out.contains(&Output::Event {
        account: None,
        event: Event::Node { index: NodeIndex(1), connected: false }
    }));
    let away = world.inspect(&user, info.id);
    assert!(!away.node_connected && away.state == RUNNING);
    let (_, told) = world.arrive(100, facts(100), vec![report(&info, RUNNING)]);
    let desired = sync(&told);
    assert_eq!((desired.index, desired.containers.len(), told.len()), (NodeIndex(1), 1, 1));
    assert_eq!(desired.containers[0].want, Want::Running);
    assert_eq!(world.inspect(&user, info.id), info);
}

#[test]
fn what_ended_while_it_was_away_is_learnt() {
    let (mut world, user, board) = world();
    let info = world.running(&user, "web", board, "n1");
    let (wait, _) = world.ask(user.session, Request::Wait { container: id(&info), until: WaitUntil::Ended });
    world.leave(board.session);
    let session = world.open(100).unwrap();
    let hello =
        Box::new(NodeHello { facts: facts(100), load: load(), inventory: vec![report(&info, EXITED)] });
    let out = world.step(wherry_broker::state::Input::Hello { session, hello });
    assert!(matches!(reply(&out, wait), Some(Reply::Container(info)) if info.state == EXITED));
}

#[test]
fn a_rebooted_board_starts_again_what_ran() {
    let (mut world, user, board) = world();
    let runs = world.running(&user, "runs", board, "n1");
    let ended = world.running(&user, "ended", board, "n1");
    world.state(board, &ended, EXITED);
    let stopping = world.running(&user, "stopping", board, "n1");
    let (stop, _) =
        world.ask(user.session, Request::Stop { container: id(&stopping), grace_seconds: Some(9) });
    let pending = world.run(&user, "pending", "n1");
    let out = world.leave(board.session);
    assert!(
        matches!(reply(&out, stop), Some(Reply::Error(error)) if error.code == ErrorCode::NodeUnreachable)
    );
    // It remembers that one of them died with the machine; that is not an end of its own.
    let (_, told) = world.arrive(100, rebooted(), vec![report(&runs, EXITED)]);
    let wants: Vec<(ContainerId, u32, Want)> =
        sync(&told).containers.iter().map(|c| (c.container.id, c.container.generation.0, c.want)).collect();
    let dead = Want::Stopped { signal: 9, grace_seconds: 0 };
    let stopped = Want::Stopped { signal: 15, grace_seconds: 9 };
    assert_eq!(
        wants,
        [
            (runs.id, 2, Want::Running),
            (ended.id, 1, dead),
            (stopping.id, 1, stopped),
            (pending.id, 1, Want::Running)
        ]
    );
    assert_eq!(world.inspect(&user, runs.id).state, ContainerState::Pending);
    assert_eq!(world.inspect(&user, ended.id).state, EXITED);
    let killed = world.inspect(&user, stopping.id).state;
    assert!(matches!(killed, ContainerState::Exited { status: ExitStatus::Signal(9), .. }), "{killed:?}");
}

#[test]
fn a_reboot_during_the_brokers_own_absence_is_noticed() {
    let (mut world, user, board) = world();
    let info = world.running(&user, "web", board, "n1");
    world.restart();
    world.arrive(100, rebooted(), Vec::new());
    let mut user = user;
    world.back(&mut user);
    assert_eq!(world.inspect(&user, info.id).generation, Generation(2));
}

#[test]
fn what_the_broker_does_not_know_is_removed() {
    let (mut world, user, board) = world();
    let stranger = ContainerRef { id: ContainerId(77), generation: Generation(1) };
    let state = ContainerState::Running { pid: 1, started_ms: 1 };
    let out =
        world.report(board, FromNode::Container(ContainerReport { container: stranger, state, restarts: 0 }));
    assert_eq!(told(&out, board), [ToNode::Remove(ContainerId(77))]);
    let info = world.running(&user, "web", board, "n1");
    let elsewhere = world.board(101);
    let out = world.state(elsewhere, &info, EXITED);
    assert_eq!(told(&out, elsewhere), [ToNode::Remove(info.id)]);
    assert_eq!(world.inspect(&user, info.id).state, RUNNING, "another board has no say in it");
    world.removed(elsewhere, info.id);
    world.inspect(&user, info.id);
}

#[test]
fn removal_from_a_board_that_is_away_is_made_up_for() {
    let (mut world, user, board) = world();
    let info = world.running(&user, "web", board, "n1");
    world.leave(board.session);
    assert_eq!(world.reply(&user, Request::Remove { container: id(&info), force: true }), Reply::Done);
    world.restart();
    let (board, told) = world.arrive(100, facts(100), vec![report(&info, RUNNING)]);
    assert!(sync(&told).containers.is_empty());
    assert_eq!(told[1..], [ToNode::Remove(info.id)]);
    let mut user = user;
    world.back(&mut user);
    assert_ne!(world.run(&user, "a", "n1").address, info.address);
    world.removed(board, info.id);
    assert_eq!(world.run(&user, "b", "n1").address, info.address);
}

#[test]
fn a_container_that_vanishes_is_shown_as_failed() {
    let (mut world, user, board) = world();
    let info = world.running(&user, "web", board, "n1");
    world.removed(board, info.id);
    let state = world.inspect(&user, info.id).state;
    assert!(
        matches!(&state, ContainerState::Failed(error) if error.message.contains("host100")),
        "{state:?}"
    );
    assert_eq!(world.info(&user, Request::Start(id(&info))).generation, Generation(2));
}

#[test]
fn a_silent_board_is_gone_after_half_a_minute() {
    let (mut world, user, board) = world();
    let info = world.running(&user, "web", board, "n1");
    for _ in 0..20 {
        world.wait(20_000);
        world.report(board, FromNode::Load(load()));
    }
    assert!(world.inspect(&user, info.id).node_connected);
    let mut out = world.wait(29_000);
    assert!(!out.contains(&Output::Close(board.session)));
    out = world.wait(2_000);
    assert!(out.contains(&Output::Close(board.session)));
    assert!(!world.inspect(&user, info.id).node_connected);
}

#[test]
fn a_new_session_of_a_board_replaces_the_old_one() {
    let (mut world, user, old) = world();
    let info = world.running(&user, "web", old, "n1");
    let session = world.open(100).unwrap();
    let hello =
        Box::new(NodeHello { facts: facts(100), load: load(), inventory: vec![report(&info, RUNNING)] });
    let out = world.step(wherry_broker::state::Input::Hello { session, hello });
    assert!(out.contains(&Output::Close(old.session)));
    world.state(old, &info, EXITED);
    world.leave(old.session);
    let now = world.inspect(&user, info.id);
    assert!(now.node_connected && now.state == RUNNING, "{now:?}");
}

#[test]
fn hostile_facts_and_reports_are_cut_short() {
    let (mut world, user, board) = world();
    let info = world.run(&user, "web", "n1");
    let long = WireError::new(ErrorCode::StartFailed, "x".repeat(100_000));
    world.state(board, &info, ContainerState::Failed(long));
    let ContainerState::Failed(error) = world.inspect(&user, info.id).state else { panic!() };
    assert_eq!(error.message.len(), 500);
    let hostile = NodeFacts { kernel: "\u{1b}[31m".repeat(10_000), ..facts(100) };
    world.arrive(100, hostile, Vec::new());
    let Reply::Nodes(nodes) = world.reply(&user, Request::Nodes) else { panic!() };
    let kernel = &nodes[0].facts.as_ref().unwrap().kernel;
    assert!(kernel.len() <= 128 && !kernel.contains('\u{1b}'), "{kernel}");
}
