use crate::world::*;
use wherry_broker::state::{Answer, Output};
use wherry_protocol::message::*;
use wherry_protocol::*;

#[test]
fn run_is_answered_when_placed_and_wait_when_started() {
    let (mut world, user, board) = world();
    let (request, out) = world.ask(user.session, run("web", |_| {}));
    let Some(Reply::Container(info)) = reply(&out, request) else { panic!("{out:?}") };
    assert_eq!((info.state.clone(), info.generation), (ContainerState::Pending, Generation(1)));
    assert_eq!(info.placement, "only node: 512 MiB free, load 0.00");
    let orders = told(&out, board);
    let [ToNode::Container(desired)] = orders.as_slice() else { panic!("{orders:?}") };
    assert_eq!((desired.want, desired.address), (Want::Running, info.address));
    let started = |until| Request::Wait { container: id(&info), until };
    let (start, _) = world.ask(user.session, started(WaitUntil::Started));
    let (end, _) = world.ask(user.session, started(WaitUntil::Ended));
    assert_eq!(reply(&world.state(board, &info, ContainerState::Preparing), start), None);
    let out = world.state(board, &info, RUNNING);
    assert!(matches!(reply(&out, start), Some(Reply::Container(info)) if info.state == RUNNING));
    let out = world.state(board, &info, EXITED);
    assert!(matches!(reply(&out, end), Some(Reply::Container(info)) if info.state == EXITED));
}

#[test]
fn short_containers_in_a_row_do_not_fill_a_board_until_it_reports() {
    let (mut world, user, board) = world();
    for number in 0..40 {
        let bounded = |run: &mut RunRequest| {
            run.spec.resources.memory_bytes = Some(32 << 20);
        };
        let info = world.info(&user, run(&format!("short{number}"), bounded));
        assert_eq!(info.placement, "only node: 512 MiB free, load 0.00", "{number}");
        match number % 2 {
            0 => drop(world.state(board, &info, EXITED)),
            _ => {
                world.ask(user.session, Request::Remove { container: id(&info), force: true });
                world.removed(board, info.id);
            }
        }
    }
    for number in 0..16 {
        world.info(&user, run(&format!("long{number}"), |_| {}));
    }
    let error = world.refused(&user, run("more", |run| run.spec.resources.memory_bytes = Some(32 << 20)));
    assert_eq!(error.code, ErrorCode::NoCapacity, "those that run still count: {error}");
}

#[test]
fn names_are_made_up_and_unique_per_account() {
    let (mut world, user, _board) = world();
    let mut names: Vec<Name> =
        (0..40).map(|_| world.info(&user, run("x", |run| run.name = None)).name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 40);
    world.run(&user, "web", "n1");
    assert_eq!(world.refused(&user, run("web", |_| {})).code, ErrorCode::AlreadyExists);
    let other = world.user(11);
    world.image(&other, "web");
    world.run(&other, "web", "host100");
}

#[test]
fn stop_waits_for_the_end_and_start_begins_a_new_life() {
    let (mut world, user, board) = world();
    let info = world.running(&user, "web", board, "n1");
    let stop = Request::Stop { container: id(&info), grace_seconds: Some(3) };
    let (request, out) = world.ask(user.session, stop.clone());
    let [ToNode::Container(desired)] = &told(&out, board)[..] else { panic!() };
    assert_eq!(desired.want, Want::Stopped { signal: 15, grace_seconds: 3 });
    assert_eq!(world.refused(&user, Request::Start(id(&info))).code, ErrorCode::WrongState);
    let out = world.state(board, &info, EXITED);
    assert!(matches!(reply(&out, request), Some(Reply::Container(_))));
    assert_eq!(world.info(&user, stop).state, EXITED, "again is the same as once");
    let again = world.info(&user, Request::Start(id(&info)));
    assert_eq!((again.generation, again.state), (Generation(2), ContainerState::Pending));
    world.state(board, &info, EXITED);
    assert_eq!(
        world.inspect(&user, info.id).state,
        ContainerState::Pending,
        "a late word about an earlier life"
    );
}

#[test]
fn a_stop_that_takes_too_long_says_so() {
    let (mut world, user, board) = world();
    let info = world.running(&user, "web", board, "n1");
    let (request, _) =
        world.ask(user.session, Request::Stop { container: id(&info), grace_seconds: Some(3) });
    let mut out = Vec::new();
    for _ in 0..7 {
        world.report(board, FromNode::Load(load()));
        out.extend(world.wait(5_000));
    }
    assert!(matches!(reply(&out, request), Some(Reply::Error(error)) if error.code == ErrorCode::Timeout));
}

#[test]
fn states_only_go_forward() {
    let (mut world, user, board) = world();
    let info = world.running(&user, "web", board, "n1");
    world.state(board, &info, EXITED);
    for late in [ContainerState::Pending, ContainerState::Preparing, RUNNING, failed()] {
        world.state(board, &info, late);
        assert_eq!(world.inspect(&user, info.id).state, EXITED);
    }
}

#[test]
fn an_address_is_free_only_when_its_board_says_so() {
    let (mut world, user, board) = world();
    let first = world.running(&user, "web", board, "n1");
    let (request, out) = world.ask(user.session, Request::Remove { container: id(&first), force: true });
    assert_eq!(reply(&out, request), None);
    assert_eq!(told(&out, board), [ToNode::Remove(first.id)]);
    assert_eq!(world.refused(&user, Request::Inspect(id(&first))).code, ErrorCode::NotFound);
    let second = world.run(&user, "web", "n1");
    assert_ne!(second.address, first.address);
    assert_eq!(reply(&world.removed(board, first.id), request), Some(Reply::Done));
    assert_eq!(world.run(&user, "third", "n1").address, first.address);
}

#[test]
fn a_container_of_a_lost_session_goes_after_two_minutes() {
    let (mut world, mut user, board) = world();
    let bound = run("bound", |run| run.detached = false);
    let info = world.info(&user, bound);
    let kept = world.run(&user, "kept", "n1");
    world.leave(user.session);
    quiet(&mut world, board, 110_000);
    world.back(&mut user);
    quiet(&mut world, board, 300_000);
    world.inspect(&user, info.id);
    world.leave(user.session);
    quiet(&mut world, board, 121_000);
    world.back(&mut user);
    assert_eq!(world.refused(&user, Request::Inspect(id(&info))).code, ErrorCode::NotFound);
    world.inspect(&user, kept.id);
}

#[test]
fn another_keys_session_does_not_keep_it_and_a_restart_begins_the_clock_anew() {
    let (mut world, mut user, board) = world();
    let mut other = world.user(11);
    let info = world.info(&user, run("bound", |run| run.detached = false));
    world.leave(user.session);
    quiet(&mut world, board, 100_000);
    world.back(&mut other);
    world.restart();
    world.wait(100_000);
    world.back(&mut user);
    world.inspect(&user, info.id);
    world.leave(user.session);
    world.wait(121_000);
    world.back(&mut user);
    assert_eq!(world.refused(&user, Request::Inspect(id(&info))).code, ErrorCode::NotFound);
}

/// Time passes while the board keeps reporting.
fn quiet(world: &mut World, board: Board, milliseconds: u64) {
    for _ in 0..milliseconds / 5_000 {
        world.wait(5_000);
        world.report(board, FromNode::Load(load()));
    }
}

fn restarts(info: &ContainerInfo, state: ContainerState, restarts: u32) -> FromNode {
    let container = ContainerRef { id: info.id, generation: info.generation };
    FromNode::Container(ContainerReport { container, state, restarts })
}

#[test]
fn a_container_that_starts_again_is_followed_from_life_to_life() {
    let (mut world, user, board) = world();
    let info = world.running(&user, "web", board, "n1");
    let ended = Request::Wait { container: id(&info), until: WaitUntil::Ended };
    let (wait, _) = world.ask(user.session, ended);
    for count in 0..3 {
        world.report(board, restarts(&info, RESTARTING, count));
        let now = world.inspect(&user, info.id);
        assert_eq!((now.state, now.restarts), (RESTARTING, count));
        // What is late, or repeated, changes nothing.
        assert_eq!(events(&world.report(board, restarts(&info, RUNNING, count))), 0);
        assert_eq!(answer(&world.report(board, restarts(&info, RUNNING, count + 1)), wait), None);
        let now = world.inspect(&user, info.id);
        assert_eq!((now.state, now.restarts), (RUNNING, count + 1));
    }
    // Its board boots: it runs again, as a new life.
    world.leave(board.session);
    let (board, told) = world.arrive(100, NodeFacts { boot_id: [0xee; 16], ..facts(100) }, vec![]);
    let now = world.inspect(&user, info.id);
    assert_eq!((now.generation, now.restarts), (Generation(info.generation.0 + 1), 0));
    assert!(told.iter().any(|message| matches!(message, ToNode::Sync(desired)
        if desired.containers[0].want == Want::Running && desired.containers[0].restarts == 0)));
    // In the pause between two lives it can be stopped, and is not removed by mistake.
    world.state(board, &now, RUNNING);
    world.report(board, restarts(&now, RESTARTING, 0));
    assert_eq!(
        world.refused(&user, Request::Remove { container: id(&info), force: false }).code,
        ErrorCode::WrongState
    );
    let (stop, out) = world.ask(user.session, Request::Stop { container: id(&info), grace_seconds: None });
    assert!(told_to_stop(&out, board, 10));
    let out = world.report(board, restarts(&now, EXITED, 0));
    assert!(matches!(reply(&out, stop), Some(Reply::Container(info)) if info.state == EXITED));
}

#[test]
fn what_ended_while_its_board_s_service_was_away_starts_again() {
    let (mut world, user, board) = world();
    let always = run("web", |run| run.spec.settings = vec![Setting::Restart(RestartPolicy::Always)]);
    let info = world.info(&user, always);
    world.state(board, &info, RUNNING);
    let ended = Request::Wait { container: id(&info), until: WaitUntil::Ended };
    let (wait, _) = world.ask(user.session, ended);
    world.leave(board.session);
    let container = ContainerRef { id: info.id, generation: info.generation };
    let report = ContainerReport { container, state: EXITED, restarts: 0 };
    let (board, told) = world.arrive(100, facts(100), vec![report]);
    let wants =
        |message: &ToNode| matches!(message, ToNode::Sync(all) if all.containers[0].want == Want::Running);
    assert!(told.iter().any(wants), "{told:?}");
    assert!(matches!(world.inspect(&user, info.id).state, ContainerState::Restarting { .. }));
    assert_eq!(answer(&world.report(board, restarts(&info, RUNNING, 1)), wait), None);
    assert_eq!(world.inspect(&user, info.id).state, RUNNING);
}

fn events(out: &[Output]) -> usize {
    out.iter().filter(|output| matches!(output, Output::Event { .. })).count()
}

fn told_to_stop(out: &[Output], board: Board, seconds: u16) -> bool {
    told(out, board).iter().any(|message| {
        matches!(message, ToNode::Container(desired)
            if desired.want == Want::Stopped { signal: 15, grace_seconds: seconds })
    })
}

#[test]
fn a_container_s_own_grace_counts_unless_somebody_says_otherwise() {
    let (mut world, user, board) = world();
    let own = run("own", |run| run.spec.settings = vec![Setting::StopSeconds(77)]);
    let info = world.info(&user, own);
    world.state(board, &info, RUNNING);
    let stop = |grace_seconds| Request::Stop { container: id(&info), grace_seconds };
    let (_, out) = world.ask(user.session, stop(None));
    assert!(told_to_stop(&out, board, 77), "{out:?}");
    let (_, out) = world.ask(user.session, stop(Some(1)));
    assert!(told_to_stop(&out, board, 1), "{out:?}");
    assert_eq!(world.refused(&user, stop(Some(3601))).code, ErrorCode::Invalid);
}

#[test]
fn a_new_name_is_free_and_lasts() {
    let (mut world, mut user, board) = world();
    let web = world.running(&user, "web", board, "n1");
    let other = world.run(&user, "other", "n1");
    let rename = |name: &str| Request::Rename { container: id(&web), name: name.parse().unwrap() };
    assert_eq!(world.refused(&user, rename("other")).code, ErrorCode::AlreadyExists);
    let (same, out) = world.ask(user.session, rename("web"));
    assert!(matches!(reply(&out, same), Some(Reply::Container(_))));
    assert_eq!(events(&out), 0);
    let (renamed, out) = world.ask(user.session, rename("front"));
    assert!(matches!(reply(&out, renamed), Some(Reply::Container(info)) if info.name.as_str() == "front"));
    assert_eq!(told(&out, board), [], "nothing changes for the board");
    world.restart();
    world.back(&mut user);
    assert_eq!(world.inspect(&user, web.id).name.as_str(), "front");
    let stranger = world.user(11);
    let theft = Request::Rename { container: id(&other), name: "mine".parse().unwrap() };
    assert_eq!(world.refused(&stranger, theft).code, ErrorCode::NotFound);
}

#[test]
fn wishes_that_are_not_granted_are_refused_before_anything_is_placed() {
    let (mut world, user, _) = world();
    for (setting, word) in [
        (Setting::AddCapability("SYS_ADMIN".into()), "SYS_ADMIN"),
        (Setting::Sysctl { name: "kernel.core_pattern".into(), value: "x".into() }, "kernel.core_pattern"),
        (Setting::Tmpfs { path: "/a/../b".into(), size_bytes: 1 << 20 }, "/a/../b"),
    ] {
        let wish = run("web", |run| run.spec.settings = vec![setting]);
        let error = world.refused(&user, wish);
        assert!(error.code == ErrorCode::Invalid && error.message.contains(word), "{error}");
    }
}

#[test]
fn auto_remove_leaves_time_to_read_the_result() {
    let (mut world, user, board) = world();
    let info = world.info(&user, run("once", |run| run.spec.auto_remove = true));
    world.state(board, &info, EXITED);
    world.wait(9_000);
    assert_eq!(world.inspect(&user, info.id).state, EXITED);
    let out = world.wait(2_000);
    assert_eq!(told(&out, board), [ToNode::Remove(info.id)]);
    assert_eq!(world.refused(&user, Request::Inspect(id(&info))).code, ErrorCode::NotFound);
}

#[test]
fn attach_waits_for_the_start_and_tells_of_a_failure() {
    let (mut world, user, board) = world();
    let info = world.run(&user, "web", "n1");
    let (request, out) = world.ask(user.session, Request::Attach(id(&info)));
    assert_eq!(answer(&out, request), None);
    let out = world.state(board, &info, RUNNING);
    let Some(Answer::Route { session, routed }) = answer(&out, request) else { panic!("{out:?}") };
    assert_eq!(session, board.session);
    assert_eq!(routed.account, user.account);
    let other = world.run(&user, "bad", "n1");
    let (request, _) = world.ask(user.session, Request::Attach(id(&other)));
    let out = world.state(board, &other, failed());
    assert!(
        matches!(reply(&out, request), Some(Reply::Error(error)) if error.code == ErrorCode::StartFailed)
    );
}

#[test]
fn whoever_waits_for_a_removed_container_is_told() {
    let (mut world, user, board) = world();
    let info = world.running(&user, "web", board, "n1");
    let (request, _) =
        world.ask(user.session, Request::Wait { container: id(&info), until: WaitUntil::Ended });
    let (_, out) = world.ask(user.session, Request::Remove { container: id(&info), force: true });
    assert!(matches!(reply(&out, request), Some(Reply::Error(error)) if error.code == ErrorCode::NotFound));
}

#[test]
fn a_question_that_was_taken_back_is_not_answered() {
    let (mut world, user, board) = world();
    let info = world.running(&user, "web", board, "n1");
    let (request, _) =
        world.ask(user.session, Request::Wait { container: id(&info), until: WaitUntil::Ended });
    world.step(wherry_broker::state::Input::Abandon(request));
    assert_eq!(answer(&world.state(board, &info, EXITED), request), None);
}

#[test]
fn a_port_of_a_node_belongs_to_one_container_there() {
    let (mut world, user, _) = world();
    world.board(101);
    let publish = |name: &str, node: Option<&str>| {
        run(name, |run| {
            run.node = node.map(str::to_owned);
            run.spec.publish = vec![PublishedPort { on: PublishedOn::Node, ..PublishedPort::tcp(8080, 80) }];
        })
    };
    let first = world.info(&user, publish("one", Some("n1")));
    let text = world.refused(&user, publish("two", Some("n1"))).message;
    assert!(text.starts_with("host100 has its port 8080 published for another container"), "{text}");
    let second = world.info(&user, publish("two", None));
    assert_ne!(first.node, second.node, "there is room elsewhere");
    assert!(world.refused(&user, publish("three", None)).message.contains("port 8080"));
    assert!(world.broker.published_ports().is_empty(), "the broker has nothing to do with it");
    let udp = run("udp", |run| {
        run.node = Some("n1".into());
        let (transport, on) = (Transport::Udp, PublishedOn::Node);
        run.spec.publish = vec![PublishedPort { transport, on, ..PublishedPort::tcp(8080, 80) }];
    });
    assert_eq!(world.info(&user, udp).node, first.node);
}

#[test]
fn published_ports_belong_to_one_container_of_all_accounts() {
    let (mut world, user, board) = world();
    let publish = |name: &str| run(name, |run| run.spec.publish = vec![PublishedPort::tcp(8080, 80)]);
    let (request, out) = world.ask(user.session, publish("web"));
    let Some(Reply::Container(info)) = reply(&out, request) else { panic!() };
    assert!(out.contains(&Output::Publish([((Transport::Tcp, 8080), PublishedPort::tcp(8080, 80))].into())));
    let other = world.user(11);
    world.image(&other, "web");
    assert_eq!(world.refused(&other, publish("web")).code, ErrorCode::AlreadyExists);
    let visit = wherry_broker::state::RequestId(world.number());
    let out = world.step(wherry_broker::state::Input::Visit { request: visit, port: (Transport::Tcp, 8080) });
    assert!(matches!(reply(&out, visit), Some(Reply::Error(_))), "it does not run yet");
    world.state(board, &info, RUNNING);
    let visit = wherry_broker::state::RequestId(world.number());
    let out = world.step(wherry_broker::state::Input::Visit { request: visit, port: (Transport::Tcp, 8080) });
    let Some(Answer::Route { routed, .. }) = answer(&out, visit) else { panic!("{out:?}") };
    assert_eq!(routed.account, user.account);
    world.restart();
    assert_eq!(world.broker.published_ports().len(), 1);
    let mut user = user;
    world.back(&mut user);
    let (_, out) = world.ask(user.session, Request::Remove { container: id(&info), force: true });
    assert!(out.contains(&Output::Publish([].into())));
}

#[test]
fn a_burst_is_spread_before_the_boards_report() {
    let (mut world, user, _board) = world();
    world.board(101);
    let nodes: Vec<NodeIndex> =
        (0..4).map(|n| world.info(&user, run(&format!("web{n}"), |_| {})).node).collect();
    assert_eq!(nodes, [NodeIndex(1), NodeIndex(2), NodeIndex(1), NodeIndex(2)]);
}

#[test]
fn long_lists_and_full_boards_stay_within_a_message() {
    let (mut world, user, _board) = world();
    let big = |name: &str| run(name, |run| run.spec.command = vec!["x".repeat(60_000)]);
    let mut count = 0;
    let full = loop {
        match world.reply(&user, big(&format!("web{count}"))) {
            Reply::Container(_) => count += 1,
            Reply::Error(error) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(full.code, ErrorCode::NoCapacity);
    assert!(count >= 8, "{count}");
    for number in 101..110 {
        world.board(number);
        while let Reply::Container(_) = world.reply(&user, big(&format!("web{count}"))) {
            count += 1;
        }
    }
    let list = world.reply(&user, Request::Containers { all_accounts: false });
    assert!(postcard::to_stdvec(&list).unwrap().len() < Limits::DEFAULT.message_bytes);
    let Reply::Containers(infos) = list else { panic!() };
    assert_eq!(infos.len(), count);
    let (_, told) = world.arrive(100, facts(100), Vec::new());
    assert!(postcard::to_stdvec(&told[0]).unwrap().len() < Limits::DEFAULT.message_bytes);
}

#[test]
fn what_costs_no_write() {
    let (mut world, user, board) = world();
    let info = world.run(&user, "web", "n1");
    world.state(board, &info, RUNNING);
    let before = world.commits;
    for _ in 0..1000 {
        world.report(board, FromNode::Load(load()));
        world.wait(5_000);
        world.state(board, &info, RUNNING);
        world.reply(&user, Request::Status);
        world.reply(&user, Request::Nodes);
        world.reply(&user, Request::Containers { all_accounts: false });
        world.reply(&user, Request::Ping);
    }
    world.open(10).unwrap();
    assert_eq!(world.commits, before);
}
