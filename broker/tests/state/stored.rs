//! The real store under a life's changes: restarts, power cuts, damage.
use crate::world::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use wherry_broker::record::{AcmeAccount, Certificate, Change, Key, PendingToken, Record};
use wherry_broker::state::{Input, Output};
use wherry_broker::store::{Store, StoreError};
use wherry_protocol::message::*;
use wherry_protocol::*;

/// The unit in which a power cut tears a write: what the disk writes at once.
const PAGE_BYTES: usize = 4096;

fn changes(out: &[Output]) -> Vec<Change> {
    out.iter()
        .filter_map(|output| match output {
            Output::Store(changes) => Some(changes.clone()),
            _ => None,
        })
        .flatten()
        .collect()
}

fn records(path: &Path) -> Result<BTreeMap<Key, Record>, StoreError> {
    Store::open(path).map(|(_, records)| records)
}

/// One record of each kind, as a life leaves them.
fn life() -> BTreeMap<Key, Record> {
    let mut world = World::new();
    world.settle(None).expect("the usual ones");
    let (admin, user) = (world.admin(1), world.user(10));
    let (one, two) = (world.board(100), world.board(101));
    world.image(&user, "web");
    let web = world.running(&user, "web", one, "n1");
    let probe = world.running(&user, "probe", two, "n2");
    world.ask(user.session, Request::Connect(link(&probe, &web)));
    let party = |value: &str| Party::Labelled { key: "tier".into(), value: value.into() };
    let rule = ConnectRequest { from: party("front"), to: party("db"), port: 80, transport: Transport::Tcp };
    world.ask(user.session, Request::Connect(rule));
    world.reply(&admin, Request::CreateToken { role: Role::User, lifetime_seconds: 60 });
    let set = vec![("shelf".to_owned(), "top".to_owned())];
    world.reply(&admin, Request::LabelNode { node: "n1".into(), set, remove: Vec::new() });
    serve_a_name(&mut world, &admin);
    world.state(two, &probe, EXITED);
    world.reply(&user, Request::StartClean(id(&probe)));
    world.store
}

/// A domain that is somebody's, one that waits for its proof, and a name with a certificate by ACME.
fn serve_a_name(world: &mut World, admin: &User) {
    world.reply(admin, Request::ClaimDomain { domain: "example.org".into(), vouched: true });
    world.reply(admin, Request::PrepareDomain("example.net".into()));
    let acme = AcmeSettings {
        directory: "https://acme.example/dir".into(),
        contacts: vec!["ann@example.org".into()],
        roots: vec![],
        external_account: None,
        terms_agreed: true,
    };
    world.reply(admin, Request::ConfigureAcme(Some(Box::new(acme))));
    let web = Party::Labelled { key: "tier".into(), value: "web".into() };
    let spec = EndpointSpec {
        host: "www.example.org".into(),
        routes: vec![EndpointRoute { prefix: "/".into(), to: web.clone(), port: 80 }],
        certificate: CertificateSource::Acme,
        options: EndpointOptions { rewrite_host: Some("inner".into()), ..EndpointOptions::default() },
        rules: Some(vec![EndpointRule {
            methods: vec!["GET".into()],
            path: "/*".into(),
            callers: vec![EndpointCaller::Anyone, EndpointCaller::Containers(web)],
        }]),
    };
    world.reply(admin, Request::PublishEndpoint(Box::new(spec)));
    world.step(Input::AcmeAccount(AcmeAccount { directory: "d".into(), credentials: vec![1, 2] }));
    let certificate =
        Certificate { chain: b"c".to_vec(), key: b"k".to_vec(), acme: true, not_before: 1, not_after: 2 };
    world.step(Input::Certified { host: "www.example.org".into(), result: Ok(Box::new(certificate)) });
}

fn puts(records: &BTreeMap<Key, Record>) -> Vec<Change> {
    records.iter().map(|(key, record)| Change::Put(key.clone(), record.clone())).collect()
}

#[test]
fn what_was_committed_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let wanted = life();
    let kinds: std::collections::BTreeSet<u8> =
        wanted.keys().map(|key| postcard::to_stdvec(key).unwrap()[0]).collect();
    assert_eq!(kinds.len(), 18, "every kind of record is there");
    let (mut store, empty) = Store::open(&path).unwrap();
    assert!(empty.is_empty());
    assert!(matches!(Store::open(&path), Err(StoreError::InUse { .. })));
    store.commit(&puts(&wanted)).unwrap();
    assert_eq!(store.commits(), 1);
    drop(store);
    assert_eq!(records(&path).unwrap(), wanted);
}

#[test]
fn a_life_and_its_store_agree_at_every_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let (mut store, _) = Store::open(&path).unwrap();
    let mut world = World::new();
    let (user, board) = (world.user(10), world.board(100));
    world.image(&user, "web");
    store.commit(&puts(&world.store)).unwrap();
    for round in 0..20 {
        let (_, out) = world.ask(user.session, run(&format!("web{round}"), |_| {}));
        store.commit(&changes(&out)).unwrap();
        let id = ContainerId(round + 1);
        let container = ContainerRef { id, generation: Generation(1) };
        let report = ContainerReport { container, state: RUNNING, restarts: 0 };
        store.commit(&changes(&world.report(board, FromNode::Container(report)))).unwrap();
        if round % 3 == 0 {
            let container = ContainerSelector::Id(id);
            let (_, out) = world.ask(user.session, Request::Remove { container, force: true });
            store.commit(&changes(&out)).unwrap();
            store.commit(&changes(&world.removed(board, id))).unwrap();
        }
        // The power is cut here, in a copy.
        let copy = dir.path().join("copy.redb");
        fs::copy(&path, &copy).unwrap();
        assert_eq!(records(&copy).unwrap(), world.store);
    }
}

#[test]
fn a_power_cut_within_a_commit_gives_before_or_after() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let (mut store, _) = Store::open(&path).unwrap();
    let before = life();
    store.commit(&puts(&before)).unwrap();
    let old = fs::read(&path).unwrap();
    let mut after = before.clone();
    let token = Record::Token(PendingToken { role: Role::User, expires_seconds: 7 });
    let more: Vec<Change> =
        (0..40_u8).map(|n| Change::Put(Key::Token(Digest([n; 32])), token.clone())).collect();
    after.extend((0..40_u8).map(|n| (Key::Token(Digest([n; 32])), token.clone())));
    store.commit(&more).unwrap();
    let new = fs::read(&path).unwrap();
    drop(store);
    let pages = new.len().div_ceil(PAGE_BYTES);
    let changed: Vec<usize> = (0..pages).filter(|page| part(&old, *page) != part(&new, *page)).collect();
    assert!(changed.len() > 2, "{changed:?}");
    let torn = dir.path().join("torn.redb");
    let mut outcomes = [0, 0];
    for subset in 0..200_u32 {
        let chosen = subset.wrapping_mul(2_654_435_761);
        let mut bytes = old.clone();
        bytes.resize(new.len(), 0);
        for (position, page) in changed.iter().enumerate() {
            if chosen.rotate_left(u32::try_from(position).unwrap()) & 1 == 1 {
                let range = page * PAGE_BYTES..((page + 1) * PAGE_BYTES).min(new.len());
                bytes[range.clone()].copy_from_slice(&new[range]);
            }
        }
        fs::write(&torn, &bytes).unwrap();
        let found = records(&torn).unwrap_or_else(|error| panic!("subset {subset}: {error}"));
        assert!(found == before || found == after, "subset {subset} gives something else");
        outcomes[usize::from(found == after)] += 1;
    }
    assert!(outcomes[0] > 0, "{outcomes:?}");
}

fn part(bytes: &[u8], page: usize) -> &[u8] {
    let end = bytes.len().min((page + 1) * PAGE_BYTES);
    bytes.get(page * PAGE_BYTES..end).unwrap_or_default()
}

#[test]
fn damage_is_refused_or_harmless_but_never_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let wanted = life();
    let (mut store, _) = Store::open(&path).unwrap();
    store.commit(&puts(&wanted)).unwrap();
    drop(store);
    let whole = fs::read(&path).unwrap();
    let damaged = dir.path().join("damaged.redb");
    let mut refused = 0;
    let mut wrong = Vec::new();
    for position in (0..whole.len()).step_by(211) {
        let mut bytes = whole.clone();
        bytes[position] ^= 0x10;
        fs::write(&damaged, &bytes).unwrap();
        // redb's own bookkeeping is looked at late: then closing it panics, after all records were read and compared.
        let opened = std::panic::catch_unwind(|| {
            let (store, found) = Store::open(&damaged)?;
            let _closing = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(store)));
            Ok(found)
        });
        match opened.expect("opening itself does not panic") {
            Ok(found) if found == wanted => {}
            Err(StoreError::Corrupt { .. } | StoreError::Failed { .. }) => refused += 1,
            Ok(_) | Err(_) => wrong.push(position),
        }
    }
    assert!(wrong.is_empty(), "believed at {wrong:?}");
    assert!(refused > 0);
}

#[test]
fn a_record_of_another_kind_or_age_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let (mut store, _) = Store::open(&path).unwrap();
    let contradiction = Change::Put(Key::Account(AccountId(1)), Record::Link);
    store.commit(&[contradiction]).unwrap();
    drop(store);
    let found = records(&path).unwrap();
    let error = wherry_broker::state::Broker::load(World::new().now, identity(), found).unwrap_err();
    assert!(error.to_string().contains("of another kind"), "{error}");
}

#[test]
fn the_bytes_of_records_are_pinned() {
    use wherry_broker::record::Stored;
    let hex = |stored: &Stored| data(&postcard::to_stdvec(stored).unwrap());
    let token = Record::Token(PendingToken { role: Role::Admin, expires_seconds: 300 });
    assert_eq!(hex(&Stored::V4(token)), "030201ac02");
    assert_eq!(data(&postcard::to_stdvec(&Key::Container(ContainerId(300))).unwrap()), "07ac02");
    let whole: Vec<u8> =
        life().into_values().flat_map(|r| postcard::to_stdvec(&Stored::V4(r)).unwrap()).collect();
    assert_eq!(Digest::of(&whole).short(), PINNED, "the stored form changed: add a version instead");
}

/// Over one record of each kind. A change means that stores in the field cannot be read any more.
const PINNED: &str = "85f358528ad9";

fn data(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
