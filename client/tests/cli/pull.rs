//! Pulling from registries that behave, and from those that do not.
use crate::scripted::{Answer, Asked, Content, Scripted};
use crate::world::{Ran, World};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use wherry_protocol::Digest;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// What a registry holds: paths below `/v2/web/` with media type and bytes.
#[derive(Default, Clone)]
struct Held(BTreeMap<String, (String, Vec<u8>)>);

impl Held {
    fn blob(&mut self, bytes: &[u8], media: &str) -> Value {
        let digest = Digest::of(bytes).to_string();
        self.0.insert(format!("blobs/{digest}"), ("application/octet-stream".into(), bytes.into()));
        json!({"mediaType": media, "digest": digest, "size": bytes.len()})
    }

    /// Under its digest, and perhaps a tag.
    fn manifest(&mut self, document: &Value, media: &str, tag: Option<&str>) -> Value {
        let bytes = document.to_string().into_bytes();
        let digest = Digest::of(&bytes).to_string();
        for name in [Some(digest.as_str()), tag].into_iter().flatten() {
            self.0.insert(format!("manifests/{name}"), (media.into(), bytes.clone()));
        }
        json!({"mediaType": media, "digest": digest, "size": bytes.len()})
    }

    /// An image of these layers.
    fn image(&mut self, architecture: &str, layers: &[Vec<u8>], tag: Option<&str>) -> Value {
        let ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config = json!({"architecture": architecture, "os": "linux", "rootfs": {"diff_ids": ids}});
        let config = self.blob(config.to_string().as_bytes(), CONFIG);
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob(layer, LAYER)).collect();
        let document = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.manifest(&document, MANIFEST, tag)
    }

    /// As a registry answers, ranges included.
    fn answer(&self, asked: &Asked) -> Answer {
        let name = asked.path.strip_prefix("/v2/web/").unwrap_or(&asked.path);
        let Some((media, bytes)) = self.0.get(name) else { return Answer::status(404) };
        match asked.from() {
            0 => Answer::new(200, media, bytes.clone()),
            from => Answer::new(206, media, &bytes[from..])
                .with("Content-Range", &format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
        }
    }
}

fn layers(count: u8) -> Vec<Vec<u8>> {
    (0..count).map(|number| vec![number; 400_000]).collect()
}

fn simple() -> Held {
    let mut held = Held::default();
    held.image("arm64", &layers(2), Some("latest"));
    held
}

fn serve(held: Held) -> Scripted {
    Scripted::start(move |asked| held.answer(asked))
}

fn pull(world: &World, registry: &Scripted) -> Ran {
    world.run(&["pull", &format!("{}/web", registry.host())])
}

/// A registry that answers with `special` where that says something.
fn odd(special: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static) -> Scripted {
    let held = simple();
    Scripted::start(move |asked| special(asked).unwrap_or_else(|| held.answer(asked)))
}

fn is_layer(asked: &Asked) -> bool {
    asked.path.ends_with(&Digest::of(&layers(2)[1]).to_string())
}

#[test]
fn an_image_goes_through_this_computer_and_not_onto_it() {
    let world = World::joined();
    let registry = serve(simple());
    let before: Vec<_> = walk(world.home.path());
    let pulled = pull(&world, &registry);
    assert!(pulled.ok().starts_with("web:latest (arm64) pulled: 781.5 KiB in 3 of 3 blobs"), "{pulled:?}");
    let pinned = pulled.out.lines().last().unwrap().to_owned();
    assert!(pinned.starts_with(&format!("{}/web@sha256:", registry.host())), "{pulled:?}");
    assert_eq!(walk(world.home.path()), before);
    assert_eq!(world.broker.state().sent.len(), 3);
    // Again, by what was printed: nothing but two documents travels.
    let asked = registry.asked().len();
    let again = world.run(&["--json", "pull", &pinned, "web:2"]).json();
    assert_eq!((&again["name"], &again["sent_bytes"]), (&json!("web:2"), &json!(0)));
    assert_eq!(again["reference"], json!(pinned));
    let documents = registry.asked()[asked..].iter().filter(|asked| asked.path.contains("/web/")).count();
    assert_eq!((documents, world.broker.state().sent.len()), (2, 3));
    assert_eq!(world.line("images -q").ok().lines().count(), 2);
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn only_what_the_broker_lacks_is_asked_for() {
    let world = World::joined();
    let mut held = Held::default();
    held.image("arm64", &layers(2), Some("1"));
    held.image("arm64", &layers(3), Some("2"));
    let registry = serve(held);
    let tagged = |tag: &str| world.run(&["pull", &format!("{}/web:{tag}", registry.host())]);
    assert!(tagged("1").ok().contains("3 of 3 blobs"));
    assert!(tagged("2").ok().contains("2 of 4 blobs"));
    let all = layers(3);
    for layer in &all {
        let path = format!("/v2/web/blobs/{}", Digest::of(layer));
        assert_eq!(registry.asked().iter().filter(|asked| asked.path == path).count(), 1);
    }
}

#[test]
fn an_index_is_for_the_boards_to_choose_from() {
    let world = World::joined();
    let mut held = Held::default();
    let mut entries = Vec::new();
    for (os, architecture) in
        [("linux", "amd64"), ("linux", "arm64"), ("linux", "s390x"), ("windows", "arm64")]
    {
        let mut entry = held.image(architecture, &layers(1), None);
        entry["platform"] = json!({"os": os, "architecture": architecture});
        entries.push(entry);
    }
    entries.push(json!({"mediaType": MANIFEST, "digest": Digest::of(b"x").to_string(), "size": 1,
        "platform": {"os": "unknown", "architecture": "unknown"}}));
    held.manifest(&json!({"schemaVersion": 2, "manifests": entries}), INDEX, Some("latest"));
    let only_s390 = json!({"schemaVersion": 2, "manifests": [entries[2]]});
    held.manifest(&only_s390, INDEX, Some("big"));
    let registry = serve(held);
    // The one node that was ever seen is arm64.
    assert!(pull(&world, &registry).ok().contains("(arm64)"));
    let host = registry.host();
    let chosen = world.run(&["pull", &format!("{host}/web"), "--platform", "amd64"]);
    assert!(chosen.ok().contains("(amd64)"), "{chosen:?}");
    let big = world.run(&["pull", &format!("{host}/web:big")]);
    big.fails(1, "the image is not available for linux/amd64 or arm64, only for linux/s390x");
    // A pin of the index stands for all of it.
    let pinned = chosen.out.lines().last().unwrap();
    assert!(world.run(&["pull", pinned, "p"]).ok().contains("(arm64)"));
}

#[test]
fn a_pin_is_kept() {
    let world = World::joined();
    let registry = serve(simple());
    let wrong = Digest::of(b"something else");
    let reference = format!("{}/web@{wrong}", registry.host());
    world.run(&["pull", &reference]).fails(2, "has no tag to name the image by: add a name");
    world.run(&["pull", &reference, "web"]).fails(1, "has no image");
    // A registry that gives something else for a pin is found out.
    let lying = odd(|asked| {
        asked.path.contains("manifests/sha256").then(|| Answer::new(200, MANIFEST, "{\"schemaVersion\": 2}"))
    });
    let reference = format!("{}/web:1@{wrong}", lying.host());
    world.run(&["pull", &reference]).fails(1, &format!("sent something else than {wrong}"));
    let unsure = odd(|asked| {
        let bytes = "{\"schemaVersion\": 2}";
        let said =
            Answer::new(200, MANIFEST, bytes).with("Docker-Content-Digest", &Digest::of(b"x").to_string());
        asked.path.ends_with("manifests/latest").then_some(said)
    });
    pull(&world, &unsure).fails(1, "sent something else than");
    assert!(world.broker.state().sent.is_empty() && world.broker.state().images.is_empty());
}

#[test]
fn a_cut_blob_goes_on_where_it_was_cut() {
    let world = World::joined();
    let held = simple();
    let cuts = AtomicUsize::new(0);
    let registry = Scripted::start(move |asked| {
        let whole = held.answer(asked);
        let Content::Whole(bytes) = &whole.content else { return whole };
        if is_layer(asked) && cuts.fetch_add(1, Ordering::Relaxed) < 3 {
            let cut = Content::Cut(bytes.len(), bytes[..100_000].to_vec());
            return whole.content(cut);
        }
        whole
    });
    let pulled = pull(&world, &registry);
    assert!(pulled.ok().contains("3 of 3 blobs"), "{pulled:?}");
    let from: Vec<usize> = registry.asked().iter().filter(|asked| is_layer(asked)).map(Asked::from).collect();
    assert_eq!(from, [0, 100_000, 200_000, 300_000]);
}

#[test]
fn a_server_without_ranges_begins_anew_and_nothing_is_sent_twice() {
    let world = World::joined();
    let held = simple();
    let cuts = AtomicUsize::new(0);
    let registry = Scripted::start(move |asked| {
        let plain = Asked { headers: BTreeMap::new(), ..asked.clone() };
        let whole = held.answer(&plain);
        let Content::Whole(bytes) = &whole.content else { return whole };
        if is_layer(asked) && cuts.fetch_add(1, Ordering::Relaxed) < 2 {
            let cut = Content::Cut(bytes.len(), bytes[..150_000].to_vec());
            return whole.content(cut);
        }
        whole
    });
    let pulled = world.run(&["--json", "pull", &format!("{}/web", registry.host())]).json();
    let config = world.broker.state().blobs.values().map(Vec::len).min().unwrap();
    assert_eq!(pulled["sent_bytes"], json!(800_000 + config));
}

#[test]
fn a_broker_that_goes_away_is_waited_for() {
    let world = World::joined();
    let registry = serve(simple());
    world.broker.state().faults.cut_blob = 1;
    let pulled = pull(&world, &registry);
    assert!(pulled.ok().contains("pulled"), "{pulled:?}");
    assert_eq!(pulled.err, "wherry: lost the connection, waiting for the broker to go on\n");
    assert_eq!(world.broker.state().sent.len(), 3);
}

#[test]
fn wrong_bytes_and_sizes_are_found_out_before_a_blob_is_whole() {
    let world = World::joined();
    for (content, words) in [
        (Content::Whole(vec![9; 400_000]), "sent something else than sha256:"),
        (Content::Whole(vec![1; 399_999]), "sent 399999 bytes for"),
        (Content::Whole(vec![1; 400_001]), "sent 400001 bytes for"),
        (Content::Unmeasured(vec![1; 399_999]), "sent 399999 bytes for"),
        (Content::Endless, "the image says 400000"),
    ] {
        let registry =
            odd(move |asked| is_layer(asked).then(|| Answer::status(200).content(content.clone())));
        pull(&world, &registry).fails(1, words);
        let state = world.broker.state();
        assert!(state.images.is_empty() && !state.blobs.contains_key(&Digest::of(&layers(2)[1])), "{words}");
    }
}

#[test]
fn documents_that_make_no_sense_are_refused_in_one_sentence() {
    let world = World::joined();
    let config = json!({"mediaType": CONFIG, "digest": Digest::of(b"{}").to_string(), "size": 2});
    let entry = json!({"mediaType": MANIFEST, "digest": Digest::of(b"x").to_string(), "size": 1,
        "platform": {"os": "linux", "architecture": "arm64"}});
    let chart = json!({"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": Digest::of(b"{}").to_string(), "size": 2});
    let foreign = json!({"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": Digest::of(b"x").to_string(), "size": 1, "urls": ["http://192.0.2.1/layer"]});
    let huge = json!({"mediaType": DOCKER_LAYER, "digest": Digest::of(b"x").to_string(), "size": u64::MAX});
    let md5 = json!({"mediaType": DOCKER_LAYER, "digest": "md5:12", "size": 1});
    let manifest = |config: &Value, layers: &[&Value]| {
        json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string()
    };
    let many = vec![&md5; 10_000];
    let entries: Vec<Value> = (0..300).map(|_| entry.clone()).collect();
    for (media, bytes, words) in [
        (
            "text/html; charset=utf-8",
            "<html>Welcome</html>".to_owned(),
            "is not a container registry: it sent a web page",
        ),
        ("application/json", "<html>Welcome</html>".to_owned(), "it is not JSON"),
        (MANIFEST, "{}".to_owned(), "it is neither an index nor an image"),
        (MANIFEST, "[]".to_owned(), "cannot be used"),
        (MANIFEST, format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)), "cannot be used"),
        (MANIFEST, json!({"schemaVersion": 1, "fsLayers": []}).to_string(), "of the old schema 1"),
        (
            INDEX,
            json!({"manifests": [entry], "config": config, "layers": []}).to_string(),
            "both an index and an image",
        ),
        (INDEX, json!({"manifests": entries}).to_string(), "list of platforms is too large: 300"),
        (MANIFEST, manifest(&config, &many), "list of layers is too large: 10000"),
        (MANIFEST, manifest(&config, &[&foreign]), "foreign.diff.tar.gzip', which is not supported"),
        (MANIFEST, manifest(&config, &[&huge]), "too large"),
        (MANIFEST, manifest(&config, &[&md5]), "'md5:12', which is not a sha256 digest"),
        (MANIFEST, manifest(&chart, &[]), "helm.config.v1+json', not a container image"),
        (INDEX, json!({"manifests": []}).to_string(), "only for nothing"),
    ] {
        let media = media.to_owned();
        let registry = odd(move |asked| {
            asked.path.ends_with("manifests/latest").then(|| Answer::new(200, &media, bytes.clone()))
        });
        pull(&world, &registry).fails(1, words);
    }
    assert!(world.broker.state().sent.is_empty());
}

#[test]
fn configurations_have_to_fit() {
    let world = World::joined();
    let layer = vec![7; 100];
    let id = Digest::of(&layer).to_string();
    for (config, words) in [
        (
            json!({"architecture": "arm64", "os": "windows", "rootfs": {"diff_ids": [id]}}),
            "only for windows/arm64",
        ),
        (
            json!({"architecture": "riscv64", "os": "linux", "rootfs": {"diff_ids": [id]}}),
            "only for linux/riscv64",
        ),
        (
            json!({"architecture": "arm64", "os": "linux", "rootfs": {"diff_ids": []}}),
            "1 layers but 0 diff_ids",
        ),
        (
            json!({"architecture": "arm64", "os": "linux", "rootfs": {"diff_ids": [Digest::of(b"x").to_string()]}}),
            "sent something else than",
        ),
        (json!({"architecture": 5}), "not valid JSON of its kind"),
    ] {
        let mut held = Held::default();
        let config = held.blob(config.to_string().as_bytes(), CONFIG);
        let layer = held.blob(&layer, LAYER);
        held.manifest(
            &json!({"schemaVersion": 2, "config": config, "layers": [layer]}),
            MANIFEST,
            Some("latest"),
        );
        pull(&world, &serve(held)).fails(1, words);
    }
    let endless = odd(|asked| {
        let is_config = asked.path.contains("/blobs/")
            && !layers(2).iter().any(|layer| asked.path.ends_with(&Digest::of(layer).to_string()));
        is_config.then(|| Answer::status(200).content(Content::Endless))
    });
    pull(&world, &endless).fails(1, "more than 4194304 bytes of a configuration");
    assert!(world.broker.state().sent.is_empty());
}

#[test]
fn what_has_no_end_is_ended() {
    let world = World::joined();
    let endless =
        odd(|asked| asked.path.contains("manifests").then(|| Answer::status(200).content(Content::Endless)));
    pull(&world, &endless).fails(1, "more than 4194304 bytes of a manifest");
    let looping = odd(|asked| asked.path.contains("manifests").then(|| Answer::redirect(&asked.path)));
    pull(&world, &looping).fails(1, "redirects more than 10 times");
    assert_eq!(looping.asked().iter().filter(|asked| asked.path.contains("manifests")).count(), 11);
    let wordy = odd(|asked| {
        let long = "x".repeat(100_000);
        asked.path.contains("manifests").then(|| Answer::status(200).with("X-Long", &long))
    });
    pull(&world, &wordy).fails(1, "the connection to 127.0.0.1 port");
    let many = odd(|asked| {
        let mut answer = Answer::status(200);
        answer.headers.extend((0..1000).map(|number| (format!("X-{number}"), "x".into())));
        asked.path.contains("manifests").then_some(answer)
    });
    pull(&world, &many).fails(1, "the connection to 127.0.0.1 port");
}

#[test]
fn refusals_say_what_to_do() {
    let world = World::joined();
    for (status, header, words) in [
        (401, ("WWW-Authenticate", "Basic realm=\"x\""), "wants a login for 'web'"),
        (401, ("WWW-Authenticate", "Negotiate"), "wants to be authenticated by 'Negotiate'"),
        (401, ("X", "x"), "wants to be authenticated by 'nothing'"),
        (403, ("X", "x"), "does not allow us to pull 'web': ask its owner"),
        (404, ("X", "x"), "/web:latest': check its name and its tag"),
        (429, ("Retry-After", "30"), "has had too many requests from here: wait 30 s, or log in"),
        (429, ("Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT"), "wait a while, or log in"),
        (500, ("X", "x"), "failed (500): that is its own trouble, try again later"),
        (418, ("X", "x"), "answered with status 418"),
        (302, ("X", "x"), "Location"),
    ] {
        let registry = odd(move |asked| {
            asked.path.contains("manifests").then(|| Answer::status(status).with(header.0, header.1))
        });
        let ran = pull(&world, &registry);
        if status != 302 {
            ran.fails(1, words);
        }
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(!ran.err.contains("said by the server"), "{ran:?}");
    }
    let lost = odd(|asked| is_layer(asked).then(|| Answer::status(404)));
    pull(&world, &lost).fails(1, "which the image needs: whoever pushed it has to push it again");
    world.line("pull 127.0.0.1:1/web").fails(1, "cannot reach 127.0.0.1 port 1 (connection refused)");
    world.line("pull https://ghcr.io/web").fails(2, "it is a URL, leave out what ends with ://");
}

/// Docker's file of logins, with `ada:secret` for these hosts.
fn log_in(world: &World, hosts: &[&str]) {
    let directory = world.home.path().join(".docker");
    std::fs::create_dir_all(&directory).unwrap();
    let auths: BTreeMap<&str, Value> =
        hosts.iter().map(|&host| (host, json!({"auth": "YWRhOnNlY3JldA=="}))).collect();
    std::fs::write(directory.join("config.json"), json!({"auths": auths}).to_string()).unwrap();
}

const LOGIN: &str = "Basic YWRhOnNlY3JldA==";

fn knows_ada(asked: &Asked) -> bool {
    asked.header("authorization") == Some(LOGIN)
}

#[test]
fn a_login_is_used_where_it_belongs_and_nowhere_else() {
    let world = World::joined();
    let held = Arc::new(simple());
    // Where blobs really are: it asks for a login too, and does not get it.
    let store_held = Arc::clone(&held);
    let storage = Scripted::start(move |asked| store_held.answer(asked));
    let to = storage.host();
    let registry = Scripted::start(move |asked| match (knows_ada(asked), asked.path.contains("/blobs/")) {
        (false, _) => Answer::status(401).with("WWW-Authenticate", "Basic realm=\"x\""),
        (true, true) => Answer::redirect(&format!("http://{to}{}?signature=s", asked.path.replace('?', ""))),
        (true, false) => held.answer(asked),
    });
    log_in(&world, &["127.0.0.1:1", "127.0.0.1"]);
    pull(&world, &registry).fails(1, "wants a login for 'web'");
    assert!(
        registry.asked().iter().all(|asked| asked.header("authorization").is_none()),
        "nor to another port"
    );
    log_in(&world, &[&registry.host()]);
    let failed = pull(&world, &registry);
    // The storage does not know signatures; what matters is what it was told.
    assert!(!failed.err.contains("secret") && !failed.err.contains("YWRh"), "{failed:?}");
    assert!(registry.asked().iter().any(knows_ada));
    assert!(!storage.asked().is_empty());
    for asked in storage.asked() {
        assert!(!format!("{asked:?}").contains("YWRh"), "{asked:?}");
    }
}

#[test]
fn nobody_but_the_registry_may_ask_for_a_login() {
    let world = World::joined();
    let storage = Scripted::start(|_| Answer::status(401).with("WWW-Authenticate", "Basic realm=\"x\""));
    let to = storage.host();
    let registry =
        odd(move |asked| is_layer(asked).then(|| Answer::redirect(&format!("http://{to}{}", asked.path))));
    log_in(&world, &[&registry.host(), &storage.host()]);
    pull(&world, &registry).fails(1, "answered with status 401");
    assert!(storage.asked().iter().all(|asked| asked.header("authorization").is_none()));
    // Back home, after having been away, nothing is told either.
    let home = Arc::new(std::sync::Mutex::new(String::new()));
    let back = Arc::clone(&home);
    let away = Scripted::start(move |_| Answer::redirect(&format!("http://{}/trap", back.lock().unwrap())));
    let to = away.host();
    let registry = Scripted::start(move |asked| match (asked.path.as_str(), knows_ada(asked)) {
        ("/trap", _) => Answer::status(401).with("WWW-Authenticate", "Basic realm=\"x\""),
        (_, false) => Answer::status(401).with("WWW-Authenticate", "Basic realm=\"x\""),
        (_, true) => Answer::redirect(&format!("http://{to}/")),
    });
    *home.lock().unwrap() = registry.host();
    log_in(&world, &[&registry.host()]);
    pull(&world, &registry).fails(1, "answered with status 401");
    let trapped: Vec<_> = registry.asked().into_iter().filter(|asked| asked.path == "/trap").collect();
    assert!(!trapped.is_empty() && trapped.iter().all(|asked| !knows_ada(asked)));
}

#[test]
fn redirects_and_realms_do_not_leave_for_plain_http_or_odd_places() {
    let world = World::joined();
    for (target, words) in [
        ("http://192.0.2.1/blob?signature=hidden", "'http://192.0.2.1/blob', which is refused: plain HTTP"),
        ("ftp://192.0.2.1/", "it is not a URL of http or https"),
        ("file:///etc/passwd", "it is not a URL of http or https"),
        ("https://user:pass@192.0.2.1/", "it is not a URL of http or https"),
    ] {
        let redirecting =
            odd(move |asked| asked.path.contains("manifests").then(|| Answer::redirect(target)));
        let ran = pull(&world, &redirecting);
        ran.fails(1, words);
        assert!(!ran.err.contains("hidden"), "{ran:?}");
        let challenge = format!("Bearer realm=\"{target}\",service=\"x\"");
        let challenging = odd(move |asked| {
            asked.path.contains("manifests").then(|| Answer::status(401).with("WWW-Authenticate", &challenge))
        });
        pull(&world, &challenging).fails(1, words);
    }
}

/// A registry that takes the token `good` only, and its token service.
fn with_tokens(token_answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> (Scripted, Scripted) {
    let service = Scripted::start(token_answer);
    let realm = format!("http://{}/token", service.host());
    let held = simple();
    let registry = Scripted::start(move |asked| match asked.header("authorization") {
        Some("Bearer good") => held.answer(asked),
        _ => {
            let challenge = format!(
                "Bearer realm=\"{realm}\",service=\"the registry\",scope=\"repository:web:pull,push\""
            );
            Answer::status(401).with("WWW-Authenticate", &challenge)
        }
    });
    (registry, service)
}

#[test]
fn tokens_are_asked_for_once_and_with_no_more_right_than_needed() {
    let world = World::joined();
    let (registry, service) = with_tokens(|_| Answer::new(200, "application/json", r#"{"token":"good"}"#));
    assert!(pull(&world, &registry).ok().contains("3 of 3 blobs"));
    let asked = service.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].path, "/token?service=the%20registry&scope=repository%3Aweb%3Apull");
    assert_eq!(asked[0].header("authorization"), None);
    log_in(&world, &[&registry.host()]);
    assert!(world.run(&["pull", &format!("{}/web", registry.host()), "again"]).ok().contains("already"));
    assert!(knows_ada(&service.asked()[1]), "a login is for the token service that the registry names");
    assert!(registry.asked().iter().all(|asked| !knows_ada(asked)), "and the registry itself gets the token");
}

#[test]
fn a_token_that_expires_on_the_way_is_renewed() {
    let world = World::joined();
    let held = simple();
    let counter = Arc::new(AtomicUsize::new(0));
    let next = Arc::clone(&counter);
    let service = Scripted::start(move |_| {
        let number = next.fetch_add(1, Ordering::Relaxed) + 1;
        Answer::new(200, "application/json", json!({"access_token": format!("t{number}")}).to_string())
    });
    let realm = format!("http://{}/token", service.host());
    let registry = Scripted::start(move |asked| {
        let newest = format!("Bearer t{}", counter.load(Ordering::Relaxed));
        let good = asked.header("authorization") == Some(newest.as_str());
        // The first one is good for the manifest only.
        match good && (newest != "Bearer t1" || asked.path.contains("manifests")) {
            true => held.answer(asked),
            false => Answer::status(401).with("WWW-Authenticate", &format!("Bearer realm=\"{realm}\"")),
        }
    });
    assert!(pull(&world, &registry).ok().contains("3 of 3 blobs"));
    assert_eq!(service.asked().len(), 2);
}

#[test]
fn token_services_are_not_trusted_either() {
    let world = World::joined();
    for (answer, words) in [
        (Answer::status(401), "wants a login for 'web'"),
        (Answer::status(403), "does not allow us to pull 'web'"),
        (Answer::status(429), "too many requests"),
        (Answer::status(503), "failed (503)"),
        (Answer::redirect("http://127.0.0.1:1/"), "gave no usable token: it sends us elsewhere"),
        (Answer::new(200, "text/html", "<html>"), "gave no usable token: its answer is not JSON"),
        (Answer::new(200, "application/json", "{}"), "gave no usable token: there is none in its answer"),
        (
            Answer::new(200, "application/json", "{\"token\":\"a\\r\\nb\"}"),
            "characters that no header may have",
        ),
        (Answer::status(200).content(Content::Endless), "more than 65536 bytes of a token"),
        (Answer::new(200, "application/json", r#"{"token":"bad"}"#), "wants a login for 'web'"),
    ] {
        let (registry, service) = with_tokens(move |_| answer.clone());
        pull(&world, &registry).fails(1, words);
        assert_eq!(service.asked().len(), 1, "{words}");
    }
    let (registry, _service) = with_tokens(|_| Answer::status(401));
    log_in(&world, &[&registry.host()]);
    pull(&world, &registry).fails(1, "does not accept the stored login for 'web'");
}

#[test]
fn identity_tokens_are_exchanged_by_form() {
    let world = World::joined();
    let (registry, service) = with_tokens(|asked| match asked.method.as_str() {
        "POST" => Answer::new(200, "application/json", r#"{"access_token":"good"}"#),
        _ => Answer::status(401),
    });
    let directory = world.home.path().join("auth.json");
    let auths = json!({"auths": {registry.host(): {"identitytoken": "refresh-me"}}});
    std::fs::write(&directory, auths.to_string()).unwrap();
    let reference = format!("{}/web", registry.host());
    let mut command = world.command(&["pull", &reference]);
    let ran: Ran = command.env("REGISTRY_AUTH_FILE", &directory).output().unwrap().into();
    assert!(ran.ok().contains("3 of 3 blobs"), "{ran:?}");
    let form = service.asked()[0].body.clone();
    assert!(form.contains("refresh_token=refresh-me") && form.contains("grant_type=refresh_token"), "{form}");
    let missing = command.env("REGISTRY_AUTH_FILE", "/nowhere/auth.json").output().unwrap();
    Ran::from(missing).fails(1, "cannot read the stored logins in /nowhere/auth.json");
}
