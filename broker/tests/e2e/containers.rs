use crate::world::*;
use wherry_protocol::message::*;
use wherry_protocol::*;

#[tokio::test(flavor = "multi_thread")]
async fn run_ps_stop_start_rm() {
    let broker = Broker::start().await;
    let (user, board) = (broker.user(10).await, broker.board(100).await);
    user.push("web", b"layer").await;
    let info = user.run("web").await;
    assert!(matches!(info.state, ContainerState::Running { pid: 42, .. }));
    assert_eq!(info.address, std::net::Ipv4Addr::new(10, 1, 0, 2));
    assert!(info.placement.starts_with("only node: 512 MiB free"), "{}", info.placement);
    let Reply::Containers(all) = user.ask(Request::Containers { all_accounts: false }).await else {
        panic!()
    };
    assert_eq!(all, std::slice::from_ref(&info));
    let stop = Request::Stop { container: by_name("web"), grace_seconds: Some(1) };
    let stopped = user.container(stop).await;
    assert!(matches!(stopped.state, ContainerState::Exited { status: ExitStatus::Signal(15), .. }));
    let again = user.container(Request::Start(by_name("web"))).await;
    assert_eq!(again.generation, Generation(2));
    let wait = Request::Wait { container: by_name("web"), until: WaitUntil::Started };
    assert!(matches!(user.container(wait).await.state, ContainerState::Running { .. }));
    let remove = |force| Request::Remove { container: by_name("web"), force };
    assert_eq!(user.refused(remove(false)).await.code, ErrorCode::WrongState);
    assert_eq!(user.ask(remove(true)).await, Reply::Done);
    assert!(board.containers.lock().await.is_empty());
    assert_eq!(user.refused(Request::Inspect(by_name("web"))).await.code, ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_nodes_images_and_ports_that_do_not_fit_get_one_sentence() {
    let broker = Broker::start().await;
    let (user, _board) = (broker.user(10).await, broker.board(100).await);
    assert_eq!(user.refused(run("web")).await.code, ErrorCode::NotFound);
    user.push("web", b"layer").await;
    user.run("web").await;
    assert_eq!(user.refused(run("web")).await.code, ErrorCode::AlreadyExists);
    let elsewhere = run_with("other", |run| run.node = Some("mars".into()));
    assert!(user.refused(elsewhere).await.message.contains("mars"));
    let publish = |port| {
        run_with(&format!("p{port}"), |run| {
            run.spec.publish = vec![PublishedPort::tcp(port, 80)];
        })
    };
    user.container(publish(9080)).await;
    assert_eq!(user.refused(publish(9080)).await.code, ErrorCode::AlreadyExists);
    let taken = tokio::net::TcpListener::bind((broker.ip, 0)).await.unwrap();
    let error = user.refused(publish(taken.local_addr().unwrap().port())).await;
    assert_eq!(error.code, ErrorCode::AlreadyExists, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_do_not_see_one_another() {
    let broker = Broker::start().await;
    let (one, two, admin) = (broker.user(10).await, broker.user(11).await, broker.user(1).await);
    let _board = broker.board(100).await;
    one.push("web", b"layer").await;
    let info = one.run("web").await;
    let id = ContainerSelector::Id(info.id);
    let Reply::Containers(seen) = two.ask(Request::Containers { all_accounts: false }).await else {
        panic!()
    };
    assert!(seen.is_empty());
    for request in [
        Request::Inspect(id.clone()),
        Request::Stop { container: id.clone(), grace_seconds: Some(0) },
        Request::Remove { container: id.clone(), force: true },
        Request::Exec {
            container: id.clone(),
            spec: ExecSpec { command: vec!["sh".into()], ..ExecSpec::default() },
        },
        Request::Logs { container: id.clone(), query: LogQuery::default() },
        Request::Tunnel { container: id.clone(), port: 80, transport: Transport::Tcp },
        Request::Attach(id.clone()),
        Request::Signal { container: id.clone(), signal: 9 },
        Request::Start(id.clone()),
        Request::Inspect(by_name("web")),
    ] {
        assert_eq!(two.refused(request.clone()).await.code, ErrorCode::NotFound, "{request:?}");
    }
    for request in
        [Request::Containers { all_accounts: true }, Request::Accounts, Request::CrashNode(NodeIndex(1))]
    {
        assert_eq!(two.refused(request).await.code, ErrorCode::Forbidden);
    }
    let Reply::Containers(seen) = admin.ask(Request::Containers { all_accounts: true }).await else {
        panic!()
    };
    assert_eq!(seen.len(), 1);
    let exec =
        Request::Exec { container: id, spec: ExecSpec { command: vec!["sh".into()], ..ExecSpec::default() } };
    assert_eq!(admin.refused(exec).await.code, ErrorCode::NotFound, "an admin does not enter either");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_confirmed_by_both_boards() {
    let broker = Broker::start().await;
    let user = broker.user(10).await;
    let (mut one, mut two) = (broker.board(100).await, broker.board(101).await);
    user.push("web", b"layer").await;
    for (name, node) in [("web", "n1"), ("probe", "n2")] {
        user.container(run_with(name, |run| run.node = Some(node.into()))).await;
    }
    let link = ConnectRequest {
        from: Party::Container(by_name("probe")),
        to: Party::Container(by_name("web")),
        port: 80,
        transport: Transport::Tcp,
    };
    assert_eq!(user.ask(Request::Connect(link.clone())).await, Reply::Done);
    for board in [&mut one, &mut two] {
        let network = loop {
            match soon(board.told.recv()).await.unwrap() {
                ToNode::Network(network) if !network.connections.is_empty() => break network,
                _ => {}
            }
        };
        assert_eq!(network.peers.len(), 1);
        assert_eq!(network.connections[0].to_address, std::net::Ipv4Addr::new(10, 1, 0, 2));
    }
    let Reply::Connections { connections, .. } = user.ask(Request::Connections).await else { panic!() };
    assert_eq!(connections[0].from_name.as_str(), "probe");
    assert_eq!(user.ask(Request::Disconnect(link.clone())).await, Reply::Done);
    assert_eq!(user.refused(Request::Disconnect(link)).await.code, ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_reach_their_account_only() {
    let broker = Broker::start().await;
    let (one, two) = (broker.user(10).await, broker.user(11).await);
    let _board = broker.board(100).await;
    let mut mine = one.open(&Request::Events).await;
    let mut theirs = two.open(&Request::Events).await;
    assert_eq!(soon(reply(&mut mine)).await, Reply::Done);
    assert_eq!(soon(reply(&mut theirs)).await, Reply::Done);
    one.push("web", b"layer").await;
    one.run("web").await;
    let event = soon(async {
        loop {
            match io::recv::<Event>(&mut mine, 65536).await.unwrap().unwrap() {
                Event::Node { .. } => {}
                other => break other,
            }
        }
    })
    .await;
    assert!(matches!(event, Event::Container(info) if info.name.as_str() == "web"));
    let _second = broker.board(101).await;
    let event = soon(io::recv::<Event>(&mut theirs, 65536)).await.unwrap().unwrap();
    assert!(matches!(event, Event::Node { connected: true, .. }), "{event:?}");
}
