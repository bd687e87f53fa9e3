//! Domains and names of the web endpoint.
use crate::world::*;
use std::sync::Arc;
use wherry_broker::record::{AcmeAccount, Certificate};
use wherry_broker::state::{Answer, Input, Output, Web, WebCaller, record_name};
use wherry_protocol::message::*;
use wherry_protocol::*;

const SIX_HOURS_MS: u64 = 6 * 3_600_000;

fn prepare(world: &mut World, user: &User, domain: &str) -> String {
    match world.reply(user, Request::PrepareDomain(domain.into())) {
        Reply::Domain(DomainInfo { state: DomainState::Prepared { token, .. }, .. }) => token,
        other => panic!("{other:?}"),
    }
}

/// The DNS says `texts` when a claim is made.
fn claim(world: &mut World, user: &User, domain: &str, found: Result<Vec<Vec<u8>>, String>) -> Reply {
    let claim = Request::ClaimDomain { domain: domain.into(), vouched: false };
    let (request, out) = world.ask(user.session, claim);
    match answer(&out, request) {
        Some(Answer::Reply(reply)) => return reply,
        Some(Answer::Lookup(asked)) => assert_eq!(asked, domain),
        other => panic!("{other:?}"),
    }
    let (session, domain) = (user.session, domain.to_owned());
    let out = world.step(Input::LookedUp { request, session, domain, found });
    reply(&out, request).expect("an answer")
}

fn own(world: &mut World, user: &User, domain: &str) {
    let token = prepare(world, user, domain);
    let reply = claim(world, user, domain, Ok(vec![b"v=spf1 -all".to_vec(), token.into_bytes()]));
    assert!(
        matches!(
            &reply,
            Reply::Domain(DomainInfo {
                state: DomainState::Claimed { shared: false, vouched: false, .. },
                ..
            })
        ),
        "{reply:?}"
    );
}

fn error(reply: Reply) -> WireError {
    match reply {
        Reply::Error(error) => error,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn labelled(value: &str) -> Party {
    Party::Labelled { key: "service".into(), value: value.into() }
}

fn spec(host: &str, to: Party) -> EndpointSpec {
    EndpointSpec {
        host: host.into(),
        routes: vec![EndpointRoute { prefix: "/".into(), to, port: 80 }],
        certificate: CertificateSource::None,
        options: EndpointOptions::default(),
        rules: None,
    }
}

fn publish(spec: EndpointSpec) -> Request {
    Request::PublishEndpoint(Box::new(spec))
}

fn served(out: &[Output]) -> Option<Arc<Web>> {
    out.iter().find_map(|output| match output {
        Output::Web(web) => Some(Arc::clone(web)),
        _ => None,
    })
}

fn pair(name: &str) -> (Vec<u8>, Vec<u8>) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new([name.to_owned()]).expect("a name");
    // The test world's clock shows January 1970.
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    params.not_after = rcgen::date_time_ymd(1970, 3, 1);
    let pem = |label: &str, bytes: &[u8]| {
        let text = data_encoding::BASE64.encode(bytes);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n").into_bytes()
    };
    let certificate = params.self_signed(&key).expect("a certificate");
    (pem("CERTIFICATE", certificate.der()), pem("PRIVATE KEY", &key.serialize_der()))
}

#[test]
fn a_domain_is_theirs_who_can_write_into_it() {
    let (mut world, ann, _) = world();
    let bob = world.user(11);
    let token = prepare(&mut world, &ann, "Example.ORG.");
    assert_eq!(prepare(&mut world, &ann, "example.org"), token, "the same again while it holds");
    let other = prepare(&mut world, &bob, "example.org");
    assert_ne!(other, token, "every account has one of its own");
    let texts = |text: &str| Ok(vec![text.as_bytes().to_vec()]);
    for (found, word) in [
        (Ok(vec![]), "there is no TXT record _wherry.example.org"),
        (texts("something"), "says something else"),
        (texts(&other), "says something else"),
        (texts(&format!("{token} ")), "says something else"),
        (Err("no name server answers".to_owned()), "no name server answers"),
    ] {
        let error = error(claim(&mut world, &ann, "example.org", found));
        assert!(error.message.contains(word) && error.message.contains(&token), "{error}");
        assert_eq!(error.code, ErrorCode::WrongState);
    }
    own(&mut world, &ann, "example.org");
    // Ann was quicker: Bob's token is worth nothing now.
    let late = error(claim(&mut world, &bob, "example.org", texts(&other)));
    assert_eq!(late.code, ErrorCode::AlreadyExists);
    assert!(late.message.contains("another account's"), "{late}");
    world.restart();
    // Who has it may say so again.
    let mut ann = ann;
    world.back(&mut ann);
    assert!(matches!(claim(&mut world, &ann, "example.org", Ok(vec![])), Reply::Domain(_)));
    let Reply::Domains(domains) = world.reply(&ann, Request::Domains) else { panic!() };
    assert_eq!(domains.len(), 1);
    assert_eq!(record_name("example.org"), "_wherry.example.org");
}

#[test]
fn a_token_holds_for_six_hours() {
    let (mut world, ann, _) = world();
    let token = prepare(&mut world, &ann, "example.org");
    world.wait(SIX_HOURS_MS - 1000);
    let wrong = error(claim(&mut world, &ann, "example.org", Ok(vec![])));
    assert!(wrong.message.contains("no TXT record"), "{wrong}");
    world.wait(1000);
    let late = error(claim(&mut world, &ann, "example.org", Ok(vec![token.clone().into_bytes()])));
    assert!(late.message.contains("wherry domain prepare"), "{late}");
    assert_ne!(prepare(&mut world, &ann, "example.org"), token);
    let Reply::Domains(domains) = world.reply(&ann, Request::Domains) else { panic!() };
    assert_eq!(domains.len(), 1);
    // One that was only begun is simply forgotten.
    assert_eq!(world.reply(&ann, Request::ReleaseDomain("example.org".into())), Reply::Done);
    assert_eq!(world.reply(&ann, Request::Domains), Reply::Domains(vec![]));
    for n in 0..16 {
        prepare(&mut world, &ann, &format!("d{n}.example"));
    }
    let many = world.refused(&ann, Request::PrepareDomain("d16.example".into()));
    assert_eq!(many.code, ErrorCode::NoCapacity);
    world.wait(SIX_HOURS_MS);
    prepare(&mut world, &ann, "d16.example");
}

#[test]
fn names_are_served_in_domains_of_ones_own_and_in_shared_ones() {
    let (mut world, ann, _) = world();
    let (bob, root) = (world.user(11), world.admin(1));
    let nowhere = world.refused(&ann, publish(spec("www.example.org", labelled("web"))));
    assert!(nowhere.message.contains("wherry domain prepare"), "{nowhere}");
    own(&mut world, &ann, "example.org");
    for host in ["www.example.org", "example.org", "*.example.org", "a.b.example.org"] {
        assert!(
            matches!(world.reply(&ann, publish(spec(host, labelled("web")))), Reply::Endpoint(_)),
            "{host}"
        );
    }
    for host in ["example.com", "xexample.org", "org", "*.org"] {
        assert_eq!(
            world.refused(&ann, publish(spec(host, labelled("web")))).code,
            ErrorCode::Forbidden,
            "{host}"
        );
    }
    let foreign = world.refused(&bob, publish(spec("bob.example.org", labelled("web"))));
    assert!(foreign.message.contains("not shared"), "{foreign}");
    let share = |shared| Request::ShareDomain { domain: "example.org".into(), shared };
    assert_eq!(world.refused(&bob, share(true)).code, ErrorCode::NotFound);
    assert!(matches!(world.reply(&ann, share(true)), Reply::Domain(_)));
    assert!(matches!(
        world.reply(&bob, publish(spec("bob.example.org", labelled("web")))),
        Reply::Endpoint(_)
    ));
    let taken = world.refused(&bob, publish(spec("www.example.org", labelled("web"))));
    assert_eq!(taken.code, ErrorCode::AlreadyExists);
    // Every name that nobody has is its owner's to give, not the first comer's.
    assert_eq!(world.reply(&ann, Request::RemoveEndpoint("*.example.org".into())), Reply::Done);
    let every = world.refused(&bob, publish(spec("*.example.org", labelled("web"))));
    assert_eq!(every.code, ErrorCode::Forbidden);
    assert!(every.message.contains("one by one"), "{every}");
    let below = world.reply(&bob, publish(spec("*.bob.example.org", labelled("web"))));
    assert!(matches!(below, Reply::Endpoint(_)), "{below:?}");
    assert_eq!(world.reply(&bob, Request::RemoveEndpoint("*.bob.example.org".into())), Reply::Done);
    assert!(matches!(world.reply(&ann, publish(spec("*.example.org", labelled("web")))), Reply::Endpoint(_)));
    // A part of the domain that was proven by somebody else is theirs alone.
    own(&mut world, &bob, "deep.example.org");
    let deep = world.refused(&ann, publish(spec("x.deep.example.org", labelled("web"))));
    assert_eq!(deep.code, ErrorCode::Forbidden);
    // Taking back what others use.
    let used = world.refused(&ann, share(false));
    assert!(used.message.contains("bob.example.org"), "{used}");
    assert_eq!(
        world.refused(&bob, Request::RemoveEndpoint("www.example.org".into())).code,
        ErrorCode::NotFound
    );
    assert_eq!(world.reply(&ann, Request::RemoveEndpoint("bob.example.org".into())), Reply::Done);
    assert!(matches!(world.reply(&ann, share(false)), Reply::Domain(_)));
    let busy = world.refused(&ann, Request::ReleaseDomain("example.org".into()));
    assert_eq!(busy.code, ErrorCode::InUse);
    assert_eq!(world.reply(&root, Request::RemoveEndpoint("www.example.org".into())), Reply::Done);
    // An admin's word is enough, and only an admin's.
    let vouch = |domain: &str| Request::ClaimDomain { domain: domain.into(), vouched: true };
    assert_eq!(world.refused(&bob, vouch("home.arpa")).code, ErrorCode::Forbidden);
    assert!(matches!(
        world.reply(&root, vouch("home.arpa")),
        Reply::Domain(DomainInfo { state: DomainState::Claimed { vouched: true, .. }, .. })
    ));
    // An account takes what it has with it.
    assert_eq!(world.reply(&root, Request::RemoveAccount(ann.account)), Reply::Done);
    let Reply::Endpoints(left) = world.reply(&root, Request::Endpoints { all_accounts: true }) else {
        panic!()
    };
    assert_eq!(left, []);
    own(&mut world, &bob, "example.org");
    world.restart();
}

#[test]
fn containers_that_are_well_get_requests() {
    let (mut world, ann, board) = world();
    own(&mut world, &ann, "example.org");
    let labels = |name: &str| {
        run(name, |run| {
            run.node = Some("n1".into());
            run.spec.labels = vec![("service".into(), "web".into())];
        })
    };
    let mut wanted = spec("www.example.org", labelled("web"));
    wanted.rules = Some(vec![EndpointRule {
        methods: vec!["GET".into()],
        path: "/user".into(),
        callers: vec![EndpointCaller::Containers(labelled("web")), EndpointCaller::Anyone],
    }]);
    let (_, out) = world.ask(ann.session, publish(wanted));
    let health = |web: &Web| -> Vec<bool> {
        web.hosts["www.example.org"].routes[0].backends.iter().map(|backend| backend.healthy).collect()
    };
    assert_eq!(health(&served(&out).expect("a table")), [] as [bool; 0]);
    let one = world.info(&ann, labels("one"));
    assert_eq!(health(&world.broker.web()), [false], "it has not started yet");
    let out = world.state(board, &one, RUNNING);
    let web = served(&out).expect("a table");
    assert_eq!(health(&web), [true]);
    let rules = web.hosts["www.example.org"].rules.as_ref().unwrap();
    assert_eq!(rules[0].callers, [WebCaller::Container(one.id), WebCaller::Anyone]);
    let condition = |health| Condition {
        paused: false,
        asleep: false,
        health: Some(HealthReport { health, failures: 0, output: String::new() }),
    };
    let container = ContainerRef { id: one.id, generation: one.generation };
    for (state, well) in [(Health::Starting, false), (Health::Healthy, true), (Health::Unhealthy, false)] {
        world.report(board, FromNode::Condition { container, condition: condition(state) });
        assert_eq!(health(&world.broker.web()), [well], "{state:?}");
    }
    world.report(board, FromNode::Condition { container, condition: condition(Health::Healthy) });
    // Another one comes, the board goes and returns, one is removed.
    let two = world.info(&ann, labels("two"));
    world.state(board, &two, RUNNING);
    assert_eq!(health(&world.broker.web()), [true, true]);
    let out = world.leave(board.session);
    assert_eq!(health(&served(&out).expect("a table")), [false, false]);
    let report = |info: &ContainerInfo| ContainerReport {
        container: ContainerRef { id: info.id, generation: info.generation },
        state: RUNNING,
        restarts: 0,
    };
    let (_board, _) = world.arrive(100, facts(100), vec![report(&one), report(&two)]);
    assert_eq!(health(&world.broker.web()), [true, true]);
    world.ask(ann.session, Request::Remove { container: id(&two), force: true });
    assert_eq!(health(&world.broker.web()), [true]);
    // The way there is open for what is served only.
    let visit = |world: &mut World, container, port| {
        let request = wherry_broker::state::RequestId(world.number());
        let out = world.step(Input::VisitWeb { request, container, port });
        matches!(answer(&out, request), Some(Answer::Route { .. }))
    };
    assert!(visit(&mut world, one.id, 80));
    assert!(!visit(&mut world, one.id, 81) && !visit(&mut world, two.id, 80));
    world.restart();
    assert_eq!(health(&world.broker.web()), [false], "until the board is back");
}

/// What the board was told last of who may ask the web endpoint.
fn callers(out: &[Output]) -> Option<Vec<wherry_protocol::message::WebCaller>> {
    out.iter().rev().find_map(|output| match output {
        Output::ToNode { message, .. } => match &**message {
            ToNode::Network(network) => Some(network.callers.clone()),
            _ => None,
        },
        _ => None,
    })
}

#[test]
fn containers_that_rules_name_are_told_to_their_boards() {
    let (mut world, ann, board) = world();
    own(&mut world, &ann, "example.org");
    let run = |name: &str, service: &str| {
        let service = service.to_owned();
        run(name, |run| run.spec.labels = vec![("service".into(), service)])
    };
    let shop = world.info(&ann, run("shop", "shop"));
    let other = world.info(&ann, run("other", "other"));
    let mut wanted = spec("api.example.org", labelled("api"));
    wanted.rules = Some(vec![EndpointRule {
        methods: vec![],
        path: "/*".into(),
        callers: vec![EndpointCaller::Containers(labelled("shop"))],
    }]);
    let (_, out) = world.ask(ann.session, publish(wanted.clone()));
    let caller = |info: &ContainerInfo, hosts: &[&str]| wherry_protocol::message::WebCaller {
        container: info.id,
        address: info.address,
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
    };
    assert_eq!(callers(&out), Some(vec![caller(&shop, &["api.example.org"])]));
    let call = |world: &mut World, session, container| {
        let request = wherry_broker::state::RequestId(world.number());
        let out = world.step(Input::CallWeb { request, session, container });
        reply(&out, request).expect("an answer")
    };
    assert_eq!(call(&mut world, board.session, shop.id), Reply::Done);
    assert_eq!(error(call(&mut world, board.session, other.id)).code, ErrorCode::Forbidden);
    // Nobody but its own board speaks for a container.
    let far = world.board(101);
    assert_eq!(error(call(&mut world, far.session, shop.id)).code, ErrorCode::Forbidden);
    assert!(matches!(call(&mut world, ann.session, shop.id), Reply::Error(_)));
    // One that comes later is told too, and one that goes is told no more.
    let mut later = run("later", "shop");
    if let Request::Run(later) = &mut later {
        later.node = Some("n1".into());
    }
    let (_, out) = world.ask(ann.session, later);
    let told = callers(&out).expect("a network");
    assert_eq!(told.len(), 2, "{told:?}");
    wanted.rules = None;
    let (_, out) = world.ask(ann.session, publish(wanted));
    assert_eq!(callers(&out), Some(vec![]));
    assert_eq!(error(call(&mut world, board.session, shop.id)).code, ErrorCode::Forbidden);
}

#[test]
fn certificates_are_checked_before_they_count() {
    let (mut world, mut ann, _) = world();
    own(&mut world, &ann, "example.org");
    let given = |chain: &[u8], key: &[u8]| {
        let certificate = CertificateSource::Given { chain: chain.to_vec(), key: key.to_vec() };
        publish(EndpointSpec { certificate, ..spec("www.example.org", labelled("web")) })
    };
    let ((chain, key), (_, other), (elsewhere, elsewhere_key)) =
        (pair("www.example.org"), pair("www.example.org"), pair("example.com"));
    for (chain, key, word) in [
        (&chain, &other, "not the one"),
        (&elsewhere, &elsewhere_key, "not for www.example.org"),
        (&b"x".to_vec(), &key, "1 to 10 certificates"),
        (&chain, &b"x".to_vec(), "one private key"),
        (&vec![b'x'; 70_000], &key, "65536"),
    ] {
        let error = world.refused(&ann, given(chain, key));
        assert!(error.message.contains(word), "{error}");
    }
    let (_, out) = world.ask(ann.session, given(&chain, &key));
    assert!(served(&out).unwrap().hosts["www.example.org"].certificate.is_some());
    world.restart();
    world.back(&mut ann);
    assert!(world.broker.web().hosts["www.example.org"].certificate.is_some());
}

/// Only when an admin has said whom to ask.
#[test]
fn certificates_come_by_acme() {
    let (mut world, mut ann, _) = world();
    let root = world.admin(1);
    own(&mut world, &ann, "example.org");
    let (chain, key) = pair("www.example.org");
    let acme = || {
        publish(EndpointSpec {
            certificate: CertificateSource::Acme,
            ..spec("www.example.org", labelled("web"))
        })
    };
    assert!(world.refused(&ann, acme()).message.contains("wherry endpoint acme"));
    let settings = AcmeSettings {
        directory: "https://acme.example/dir".into(),
        contacts: vec!["ann@example.org".into()],
        roots: vec![],
        external_account: None,
        terms_agreed: true,
    };
    let configure = |settings: &AcmeSettings| Request::ConfigureAcme(Some(Box::new(settings.clone())));
    assert_eq!(world.refused(&ann, configure(&settings)).code, ErrorCode::Forbidden);
    for (wrong, word) in [
        (AcmeSettings { terms_agreed: false, ..settings.clone() }, "--agree-terms"),
        (AcmeSettings { directory: "http://acme.example/dir".into(), ..settings.clone() }, "https://"),
        (AcmeSettings { contacts: vec!["nobody".into()], ..settings.clone() }, "mail"),
    ] {
        let error = world.refused(&root, configure(&wrong));
        assert!(error.message.contains(word), "{error}");
    }
    assert_eq!(world.reply(&root, configure(&settings)), Reply::Done);
    let info = |reply: Reply| match reply {
        Reply::Endpoint(info) => info.certificate,
        other => panic!("{other:?}"),
    };
    assert_eq!(info(world.reply(&ann, acme())), CertificateInfo::Awaited { problem: None });
    let host = || "www.example.org".to_owned();
    world.step(Input::AcmeAccount(AcmeAccount {
        directory: settings.directory.clone(),
        credentials: vec![1],
    }));
    world.step(Input::Certified { host: host(), result: Err("the authority cannot be reached".into()) });
    let Reply::Endpoints(list) = world.reply(&ann, Request::Endpoints { all_accounts: false }) else {
        panic!()
    };
    let problem = Some("the authority cannot be reached".to_owned());
    assert_eq!(list[0].certificate, CertificateInfo::Awaited { problem });
    let waits = world.refused(&root, Request::ConfigureAcme(None));
    assert!(waits.message.contains("www.example.org"), "{waits}");
    let certificate = Certificate { chain, key, acme: true, not_before: 1, not_after: 2 };
    let out = world.step(Input::Certified { host: host(), result: Ok(Box::new(certificate)) });
    assert!(served(&out).unwrap().hosts["www.example.org"].certificate.is_some());
    let present = CertificateInfo::Present { acme: true, not_before: 1, not_after: 2, problem: None };
    assert_eq!(info(world.reply(&ann, acme())), present, "kept when it is published again");
    world.restart();
    // One for a name that is not served any more is of no use.
    world.back(&mut ann);
    assert_eq!(world.reply(&ann, Request::RemoveEndpoint(host())), Reply::Done);
    let out = world.step(Input::Certified { host: host(), result: Err("late".into()) });
    assert!(served(&out).is_none());
    world.restart();
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (mut world, ann, _) = world();
    own(&mut world, &ann, "example.org");
    let route = |prefix: &str, port| EndpointRoute { prefix: prefix.into(), to: labelled("web"), port };
    let with = |change: &dyn Fn(&mut EndpointSpec)| {
        let mut wanted = spec("www.example.org", labelled("web"));
        change(&mut wanted);
        publish(wanted)
    };
    let rule = |methods: &[&str], path: &str, callers: Vec<EndpointCaller>| EndpointRule {
        methods: methods.iter().map(|method| (*method).to_owned()).collect(),
        path: path.into(),
        callers,
    };
    let anyone = || vec![EndpointCaller::Anyone];
    let long = "a".repeat(64);
    let cases: Vec<(Request, &str)> = vec![
        (with(&|s| s.host = "www example".into()), "domain name"),
        (with(&|s| s.host = format!("{long}.example.org")), "domain name"),
        (with(&|s| s.routes.clear()), "1 to 32"),
        (with(&|s| s.routes = vec![route("/", 80); 40]), "1 to 32"),
        (with(&|s| s.routes = vec![route("/", 0)]), "not 0"),
        (with(&|s| s.routes = vec![route("/a/../b", 80)]), "/a/../b"),
        (with(&|s| s.routes = vec![route("/a", 80), route("/a/", 81)]), "two routes"),
        (
            with(&|s| s.routes[0].to = Party::Container(ContainerSelector::Name("nobody".parse().unwrap()))),
            "nobody",
        ),
        (with(&|s| s.options.rewrite_host = Some("a\r\nb: c".into())), "not a host"),
        (with(&|s| s.options.max_body_bytes = Some(0)), "at least 1"),
        (with(&|s| s.rules = Some(vec![rule(&["get"], "/", anyone())])), "words such as GET"),
        (with(&|s| s.rules = Some(vec![rule(&["GET"], "user", anyone())])), "user"),
        (with(&|s| s.rules = Some(vec![rule(&["GET"], "/", vec![])])), "callers"),
        (with(&|s| s.rules = Some(vec![rule(&[], "/", anyone()); 65])), "64"),
    ];
    for (request, word) in cases {
        let error = world.refused(&ann, request);
        assert!(error.message.contains(word), "{word}: {error}");
    }
    for domain in ["", "*.example.net", "exa mple", "a..b", &format!("{long}.org")] {
        assert_eq!(
            world.refused(&ann, Request::PrepareDomain(domain.into())).code,
            ErrorCode::Invalid,
            "{domain}"
        );
    }
    let log = Request::AccessLog { host: Some("www.example.org".into()), follow: false };
    assert_eq!(world.refused(&ann, log).code, ErrorCode::NotFound);
    assert_eq!(world.broker.web().hosts.len(), 0);
}

#[test]
fn the_ports_of_the_endpoint_are_not_published_too() {
    let (mut world, ann, _) = world();
    own(&mut world, &ann, "example.org");
    let publishing =
        |name: &str, port| run(name, |run| run.spec.publish = vec![PublishedPort::tcp(port, 80)]);
    let first = world.info(&ann, publishing("first", 443));
    let taken = world.refused(&ann, publish(spec("example.org", labelled("web"))));
    assert!(taken.message.contains("443") && taken.message.contains("first"), "{taken}");
    world.ask(ann.session, Request::Remove { container: id(&first), force: true });
    assert!(matches!(world.reply(&ann, publish(spec("example.org", labelled("web")))), Reply::Endpoint(_)));
    let taken = world.refused(&ann, publishing("second", 80));
    assert!(taken.message.contains("wherry endpoint publish"), "{taken}");
    world.info(&ann, publishing("third", 8080));
}
