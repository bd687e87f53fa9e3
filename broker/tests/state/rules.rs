use crate::world::*;
use wherry_broker::state::{Output, RequestId};
use wherry_protocol::message::*;
use wherry_protocol::*;

fn labelled(name: &str, node: &str, labels: &[(&str, &str)]) -> Request {
    run(name, |run| {
        run.node = Some(node.into());
        run.spec.labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    })
}

fn party(key: &str, value: &str) -> Party {
    Party::Labelled { key: key.into(), value: value.into() }
}

fn rule(from: Party, to: Party) -> ConnectRequest {
    ConnectRequest { from, to, port: 80, transport: Transport::Tcp }
}

fn front_to_db() -> ConnectRequest {
    rule(party("tier", "front"), party("tier", "db"))
}

fn listed(world: &mut World, user: &User) -> (Vec<(ContainerId, ContainerId)>, Vec<RuleInfo>) {
    match world.reply(user, Request::Connections) {
        Reply::Connections { connections, rules } => {
            (connections.iter().map(|info| (info.from, info.to)).collect(), rules)
        }
        other => panic!("{other:?}"),
    }
}

/// Has all boards take what they are told, and gives the answer.
fn settled(world: &mut World, boards: &[Board], (request, out): (RequestId, Vec<Output>)) -> Option<Reply> {
    let mut answer = reply(&out, request);
    for board in boards {
        if let Some(revision) = network(&told(&out, *board)).map(|network| network.revision) {
            let more = world.applied(*board, revision);
            answer = answer.or_else(|| reply(&more, request));
        }
    }
    answer
}

fn world() -> (World, User, [Board; 2]) {
    let mut world = World::new();
    let user = world.user(10);
    let boards = [world.board(100), world.board(101)];
    world.image(&user, "web");
    (world, user, boards)
}

#[test]
fn a_rule_holds_for_those_that_are_there_and_those_that_come() {
    let (mut world, user, boards) = world();
    let front = world.info(&user, labelled("front", "n1", &[("tier", "front")]));
    let db = world.info(&user, labelled("db", "n2", &[("tier", "db")]));
    world.info(&user, labelled("other", "n2", &[("tier", "dbx"), ("db", "tier")]));
    let asked = world.ask(user.session, Request::Connect(front_to_db()));
    assert_eq!(settled(&mut world, &boards, asked), Some(Reply::Done));
    let (connections, rules) = listed(&mut world, &user);
    assert_eq!(connections, [(front.id, db.id)]);
    assert_eq!(
        (rules[0].from.as_str(), rules[0].to.as_str(), rules[0].connections),
        ("label:tier=front", "label:tier=db", 1)
    );
    // Somebody else's labels are nobody else's business.
    let stranger = world.user(11);
    world.image(&stranger, "web");
    world.info(&stranger, labelled("db", "n2", &[("tier", "db")]));
    let (_, out) = world.ask(user.session, labelled("db2", "n1", &[("tier", "db")]));
    let orders = told(&out, boards[0]);
    let desired = network(&orders).expect("told at once");
    assert_eq!(desired.connections.len(), 2);
    let (connections, rules) = listed(&mut world, &user);
    assert_eq!((connections.len(), rules[0].connections), (2, 2));
    assert_eq!(listed(&mut world, &stranger).1, []);
}

#[test]
fn what_a_rule_allows_goes_with_it_unless_somebody_allowed_it_too() {
    let (mut world, user, boards) = world();
    let front = world.info(&user, labelled("front", "n1", &[("tier", "front")]));
    let db = world.info(&user, labelled("db", "n2", &[("tier", "db"), ("service", "store")]));
    let db2 = world.info(&user, labelled("db2", "n2", &[("tier", "db")]));
    let second = rule(Party::Container(id(&front)), party("service", "store"));
    for request in [front_to_db(), second.clone(), rule(id(&front).into(), id(&db2).into())] {
        let asked = world.ask(user.session, Request::Connect(request));
        assert_eq!(settled(&mut world, &boards, asked), Some(Reply::Done));
    }
    assert_eq!(listed(&mut world, &user).0.len(), 2);
    let refused = world.refused(&user, Request::Disconnect(link(&front, &db)));
    assert_eq!(refused.code, ErrorCode::WrongState);
    assert!(refused.message.contains("label:"), "{refused}");
    let asked = world.ask(user.session, Request::Disconnect(front_to_db()));
    assert_eq!(settled(&mut world, &boards, asked), Some(Reply::Done));
    assert_eq!(
        listed(&mut world, &user).0,
        [(front.id, db.id), (front.id, db2.id)],
        "by the other rule; by itself"
    );
    let asked = world.ask(user.session, Request::Disconnect(second.clone()));
    assert_eq!(settled(&mut world, &boards, asked), Some(Reply::Done));
    assert_eq!(listed(&mut world, &user), (vec![(front.id, db2.id)], vec![]));
    assert_eq!(world.refused(&user, Request::Disconnect(second)).code, ErrorCode::NotFound);
    let asked = world.ask(user.session, Request::Disconnect(link(&front, &db2)));
    assert_eq!(settled(&mut world, &boards, asked), Some(Reply::Done));
    assert_eq!(listed(&mut world, &user).0, []);
}

#[test]
fn rules_outlive_the_broker_and_end_with_what_they_name() {
    let (mut world, user, boards) = world();
    let front = world.info(&user, labelled("front", "n1", &[("tier", "front")]));
    world.info(&user, labelled("db", "n2", &[("tier", "db")]));
    for request in [front_to_db(), rule(Party::Container(id(&front)), party("tier", "db"))] {
        let asked = world.ask(user.session, Request::Connect(request));
        settled(&mut world, &boards, asked);
    }
    world.restart();
    let user = User { session: world.open(10).expect("known"), ..user };
    let (connections, rules) = listed(&mut world, &user);
    assert_eq!((connections.len(), rules.len()), (1, 2));
    world.ask(user.session, Request::Remove { container: id(&front), force: true });
    let (connections, rules) = listed(&mut world, &user);
    assert_eq!((connections.len(), rules.len()), (0, 1), "the rule that names it is gone");
    assert_eq!(&world.broker.durable(), &world.store);
}

#[test]
fn rules_have_bounds() {
    let (mut world, user, _) = world();
    let long = "x".repeat(600);
    for (key, value) in [("", "x"), ("k", long.as_str())] {
        let request = Request::Connect(rule(party(key, value), party("tier", "db")));
        assert_eq!(world.refused(&user, request).code, ErrorCode::Invalid);
    }
    let zero = ConnectRequest { port: 0, ..front_to_db() };
    assert_eq!(world.refused(&user, Request::Connect(zero)).code, ErrorCode::Invalid);
    for port in 1..=256 {
        let request = ConnectRequest { port, ..front_to_db() };
        assert_eq!(world.reply(&user, Request::Connect(request)), Reply::Done);
    }
    let more = ConnectRequest { port: 257, ..front_to_db() };
    assert_eq!(world.refused(&user, Request::Connect(more)).code, ErrorCode::NoCapacity);
    // 256 rules for ten of each would be 25600 connections.
    for number in 0..10 {
        world.info(&user, labelled(&format!("front{number}"), "n1", &[("tier", "front")]));
        world.info(&user, labelled(&format!("db{number}"), "n1", &[("tier", "db")]));
    }
    let count = listed(&mut world, &user).0.len();
    assert_eq!(count, 2000, "as many as a board takes");
    assert_eq!(&world.broker.durable(), &world.store);
}
