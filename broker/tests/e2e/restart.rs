use crate::world::*;
use std::path::Path;
use wherry_broker::serve::{ServeError, ServeLimits, Service, Setup};
use wherry_broker::store::StoreError;
use wherry_protocol::message::*;
use wherry_protocol::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_broker_changes_nothing() {
    let broker = Broker::start().await;
    let (user, board) = (broker.user(10).await, broker.board(100).await);
    user.push("web", b"layer").await;
    for name in ["web", "probe"] {
        user.run(name).await;
    }
    let link = ConnectRequest {
        from: Party::Container(by_name("probe")),
        to: Party::Container(by_name("web")),
        port: 80,
        transport: Transport::Tcp,
    };
    assert_eq!(user.ask(Request::Connect(link)).await, Reply::Done);
    let all = Request::Containers { all_accounts: false };
    let Reply::Containers(before) = user.ask(all.clone()).await else { panic!() };
    let (key, account) = (user.key.clone(), user.account);
    let (board_key, facts, containers) = board.leave().await;
    drop(user);
    let broker = broker.restart().await;
    let user = broker.session(key, account).await;
    let Reply::Containers(away) = user.ask(all.clone()).await else { panic!() };
    assert!(away.iter().all(|info| !info.node_connected));
    let mut board = Board::connect(&broker, board_key, facts, containers).await;
    let Reply::Containers(after) = user.ask(all).await else { panic!() };
    assert_eq!(before, after);
    assert_eq!(board.containers.lock().await.len(), 2);
    assert!(board.told.try_recv().is_err(), "nothing but the first order");
    let Reply::Connections { connections, .. } = user.ask(Request::Connections).await else { panic!() };
    assert_eq!(connections.len(), 1);
    let Reply::Images(images) = user.ask(Request::Images).await else { panic!() };
    assert_eq!(images.len(), 1);
    // A token of the configuration that was claimed does not hold again.
    let thief = SecretKey::generate(&mut OsRandom);
    assert!(matches!(broker.enrol(&thief, Role::User, token_secret(10)).await, EnrolReply::Refused(_)));
}

fn open(data: &Path) -> Result<Service, ServeError> {
    Service::open(Setup {
        secret: SecretKey::from_bytes([1; 32]),
        location: "test".parse().expect("a name"),
        data: data.to_owned(),
        overlay: None,
        tokens: Vec::new(),
        publish_address: [127, 0, 0, 1].into(),
        web: web_setup().0,
        limits: ServeLimits::default(),
    })
}

#[test]
fn the_first_admin_token_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    assert_eq!(first.first_token().unwrap().role, Role::Admin);
    drop(first);
    // The state's thread lets go of the file a moment later.
    let second = loop {
        match open(dir.path()) {
            Err(ServeError::Store(StoreError::InUse { .. })) => std::thread::yield_now(),
            other => break other.unwrap(),
        }
    };
    assert!(second.first_token().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_memory_is_refused_and_left_as_it_is() {
    let broker = Broker::start().await;
    let user = broker.user(10).await;
    user.push("web", b"layer").await;
    drop(user);
    let place = broker.stop().await;
    let path = place.path().join("state.redb");
    let whole = std::fs::read(&path).unwrap();
    for damaged in
        [Vec::new(), whole[..whole.len() / 2].to_vec(), vec![0; whole.len()], b"not a database".to_vec()]
    {
        std::fs::write(&path, &damaged).unwrap();
        let error = open(place.path()).expect_err("it must not start");
        assert!(error.to_string().contains("left as it is"), "{error}");
        assert!(std::fs::read(&path).unwrap() == damaged, "it must not be touched");
    }
    std::fs::write(&path, &whole).unwrap();
    open(place.path()).unwrap();
}
