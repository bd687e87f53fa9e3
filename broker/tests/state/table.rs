//! Every request by everybody in every state of a container, against a table that people can read.
use crate::world::*;
use std::fmt::Write as _;
use wherry_broker::state::{Answer, authorise};
use wherry_protocol::message::*;
use wherry_protocol::*;

const SITUATIONS: [&str; 7] =
    ["starting", "running", "restarting", "stopping", "ended", "failed", "removing"];
const ASKERS: [&str; 3] = ["owner", "stranger", "admin"];

fn container_requests(id: ContainerId) -> Vec<(&'static str, Request)> {
    let container = ContainerSelector::Id(id);
    let exec = ExecSpec { command: vec!["sh".into()], ..ExecSpec::default() };
    vec![
        ("inspect", Request::Inspect(container.clone())),
        ("wait started", Request::Wait { container: container.clone(), until: WaitUntil::Started }),
        ("wait ended", Request::Wait { container: container.clone(), until: WaitUntil::Ended }),
        ("stop", Request::Stop { container: container.clone(), grace_seconds: Some(1) }),
        ("start", Request::Start(container.clone())),
        ("remove", Request::Remove { container: container.clone(), force: false }),
        ("remove by force", Request::Remove { container: container.clone(), force: true }),
        ("signal", Request::Signal { container: container.clone(), signal: 1 }),
        ("exec", Request::Exec { container: container.clone(), spec: exec }),
        ("attach", Request::Attach(container.clone())),
        ("logs", Request::Logs { container: container.clone(), query: LogQuery::default() }),
        ("rename", Request::Rename { container: container.clone(), name: "other".parse().expect("a name") }),
        ("stats", Request::Stats(container.clone())),
        ("processes", Request::Processes(container.clone())),
        ("copy", Request::Copy { container: container.clone(), copy: CopySpec::Out { path: "/etc".into() } }),
        ("pause", Request::Pause { container: container.clone(), paused: true }),
        ("ready", Request::Ready { container: container.clone(), probe: None, timeout_ms: 1 }),
        ("wake", Request::Wake(container.clone())),
        ("start clean", Request::StartClean(container.clone())),
        ("changes", Request::Changes { container: container.clone(), query: ChangesQuery::Names }),
        ("tunnel", Request::Tunnel { container: container.clone(), port: 80, transport: Transport::Tcp }),
        (
            "connect",
            Request::Connect(ConnectRequest {
                from: container.clone().into(),
                to: ContainerSelector::Name("peer".parse().expect("a name")).into(),
                port: 80,
                transport: Transport::Tcp,
            }),
        ),
        (
            "disconnect",
            Request::Disconnect(ConnectRequest {
                from: container.into(),
                to: ContainerSelector::Name("peer".parse().expect("a name")).into(),
                port: 80,
                transport: Transport::Tcp,
            }),
        ),
    ]
}

/// A container of user 10 in this situation, made anew for each cell.
fn prepare(situation: &str) -> (World, [User; 3], ContainerId) {
    let mut world = World::new();
    let users = [world.user(10), world.user(11), world.admin(1)];
    let owner = users[0];
    let board = world.board(100);
    world.image(&owner, "web");
    world.running(&owner, "peer", board, "n1");
    let info = world.run(&owner, "web", "n1");
    match situation {
        "starting" => drop(world.state(board, &info, ContainerState::Preparing)),
        "running" => drop(world.state(board, &info, RUNNING)),
        "restarting" => drop(world.state(board, &info, RESTARTING)),
        "stopping" => {
            world.state(board, &info, RUNNING);
            world.ask(owner.session, Request::Stop { container: id(&info), grace_seconds: Some(1) });
        }
        "ended" => drop(world.state(board, &info, EXITED)),
        "failed" => drop(world.state(board, &info, failed())),
        "removing" => drop(world.ask(owner.session, Request::Remove { container: id(&info), force: true })),
        other => panic!("no such situation: {other}"),
    }
    (world, users, info.id)
}

fn outcome(world: &mut World, user: &User, request: Request) -> String {
    let (number, out) = world.ask(user.session, request);
    match answer(&out, number) {
        None => "later".into(),
        Some(Answer::Route { .. }) => "to the node".into(),
        Some(Answer::Reply(Reply::Error(error))) => format!("{:?}", error.code),
        Some(Answer::Reply(_)) => "yes".into(),
        Some(other) => panic!("unexpected {other:?}"),
    }
}

fn container_table() -> String {
    let mut table = format!("{:<16}{:<10}", "request", "asker");
    SITUATIONS.iter().for_each(|situation| write!(table, "{situation:<13}").expect("a string"));
    for position in 0..container_requests(ContainerId(0)).len() {
        for (asker, name) in ASKERS.iter().enumerate() {
            let request = container_requests(ContainerId(0))[position].0;
            write!(table, "\n{request:<16}{name:<10}").expect("a string");
            for situation in SITUATIONS {
                let (mut world, users, id) = prepare(situation);
                let request = container_requests(id).swap_remove(position).1;
                write!(table, "{:<13}", outcome(&mut world, &users[asker], request)).expect("a string");
            }
        }
    }
    trimmed(&table)
}

fn trimmed(table: &str) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn what_may_be_done_with_a_container() {
    assert_eq!(container_table(), include_str!("container_table.txt"), "\n{}", container_table());
}

fn every_request() -> Vec<(&'static str, Request)> {
    let image: ImageName = "web".parse().expect("an image name");
    let blob = descriptor(b"x", Media::LayerTar);
    let manifest = ImageManifest { config: blob.clone(), layers: vec![blob.clone()] };
    let mut all = vec![
        ("ping", Request::Ping),
        ("status", Request::Status),
        ("nodes", Request::Nodes),
        ("missing blobs", Request::MissingBlobs(vec![])),
        ("put blob", Request::PutBlob(blob)),
        ("put image", Request::PutImage { name: image.clone(), architecture: "amd64".into(), manifest }),
        ("images", Request::Images),
        ("remove image", Request::RemoveImage(image)),
        ("read blob", Request::ReadBlob(Digest::of(b"x"))),
        ("run", run("web", |_| {})),
        ("containers", Request::Containers { all_accounts: false }),
        ("all containers", Request::Containers { all_accounts: true }),
        ("connections", Request::Connections),
        ("create token", Request::CreateToken { role: Role::User, lifetime_seconds: 60 }),
        ("accounts", Request::Accounts),
        ("remove account", Request::RemoveAccount(AccountId(9))),
        ("crash node", Request::CrashNode(NodeIndex(1))),
        ("label node", Request::LabelNode { node: "n1".into(), set: vec![], remove: vec!["x".into()] }),
        ("events", Request::Events),
        ("publish web", Request::PublishEndpoint(Box::new(endpoint()))),
        ("remove web", Request::RemoveEndpoint("a.example".into())),
        ("web", Request::Endpoints { all_accounts: false }),
        ("all web", Request::Endpoints { all_accounts: true }),
        ("access log", Request::AccessLog { host: None, follow: false }),
        ("domains", Request::Domains),
        ("prepare domain", Request::PrepareDomain("a.example".into())),
        ("claim domain", Request::ClaimDomain { domain: "a.example".into(), vouched: false }),
        ("vouch for it", Request::ClaimDomain { domain: "a.example".into(), vouched: true }),
        ("share domain", Request::ShareDomain { domain: "a.example".into(), shared: true }),
        ("release domain", Request::ReleaseDomain("a.example".into())),
        ("configure acme", Request::ConfigureAcme(None)),
    ];
    all.extend(container_requests(ContainerId(1)));
    all
}

fn endpoint() -> EndpointSpec {
    EndpointSpec {
        host: "a.example".into(),
        routes: vec![],
        certificate: CertificateSource::None,
        options: EndpointOptions::default(),
        rules: None,
    }
}

#[test]
fn who_may_ask_at_all() {
    let mut table = format!("{:<16}{:<11}{:<11}{:<11}", "request", "user", "admin", "node");
    for (name, request) in every_request() {
        write!(table, "\n{name:<16}").expect("a string");
        for role in [Role::User, Role::Admin, Role::Node] {
            let cell = match authorise(role, &request) {
                Ok(reach) => format!("{reach:?}").to_lowercase(),
                Err(error) => format!("{:?}", error.code),
            };
            write!(table, "{cell:<11}").expect("a string");
        }
    }
    let table = trimmed(&table);
    assert_eq!(table, include_str!("role_table.txt"), "\n{table}");
}
