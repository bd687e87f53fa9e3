//! Pushing from the engines of this computer: Docker's API, and the programs that read podman's images.
use crate::push::{append, layers};
use crate::scripted::{Answer, Asked, Content, Scripted};
use crate::world::{Ran, World};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use wherry_protocol::Digest;

/// What `docker save` writes.
fn saved(architecture: &str, tags: &[&str]) -> Vec<u8> {
    let layers = layers(2);
    let ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config =
        json!({"architecture": architecture, "os": "linux", "rootfs": {"diff_ids": ids}}).to_string();
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let manifest =
        json!([{"Config": config_name, "RepoTags": tags, "Layers": ["0/layer.tar", "1/layer.tar"]}]);
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, &config_name, config.as_bytes());
    for (number, layer) in layers.iter().enumerate() {
        append(&mut tar, &format!("{number}/layer.tar"), layer);
    }
    append(&mut tar, "manifest.json", manifest.to_string().as_bytes());
    tar.into_inner().unwrap()
}

/// A person with a world, a socket for Docker, a directory for programs and one for temporary files.
struct Person {
    world: World,
    socket: PathBuf,
    programs: PathBuf,
    temporary: PathBuf,
}

impl Person {
    fn new() -> Self {
        let world = World::joined();
        let home = world.home.path();
        let (socket, programs, temporary) = (home.join("docker.sock"), home.join("bin"), home.join("tmp"));
        std::fs::create_dir(&programs).unwrap();
        std::fs::create_dir(&temporary).unwrap();
        Self { world, socket, programs, temporary }
    }

    fn push(&self, arguments: &[&str]) -> Ran {
        self.push_at(&format!("unix://{}", self.socket.display()), arguments)
    }

    /// Pushes, and sees to it that nothing is left behind.
    fn push_at(&self, host: &str, arguments: &[&str]) -> Ran {
        let mut command = self.world.command(&[&["image", "push"], arguments].concat());
        command.env("DOCKER_HOST", host).env("PATH", &self.programs).env("TMPDIR", &self.temporary);
        let ran = command.output().unwrap().into();
        assert_eq!(std::fs::read_dir(&self.temporary).unwrap().count(), 0, "{ran:?}");
        ran
    }

    fn docker(&self, handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Scripted {
        if self.socket.exists() {
            std::fs::remove_file(&self.socket).unwrap();
        }
        Scripted::behind(&self.socket, handler)
    }

    /// A program that does as `script` says; `$archive` is what podman saves.
    fn program(&self, name: &str, script: &str) {
        let archive = self.programs.join("archive.tar");
        std::fs::write(&archive, saved("arm64", &["localhost/web:1"])).unwrap();
        let path = self.programs.join(name);
        let asked = self.programs.join("asked");
        let script = format!(
            "#!/bin/sh\narchive={}\necho {name} \"$@\" >> {}\n{script}\n",
            archive.display(),
            asked.display()
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn asked(&self) -> String {
        let path = self.programs.join("asked");
        let asked = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        asked
    }

    fn nothing_arrived(&self) {
        let state = self.world.broker.state();
        assert!(state.sent.is_empty() && state.images.is_empty());
    }
}

const DESCRIPTION: &str = r#"{"Id": "sha256:12", "RepoTags": ["web:1"]}"#;

/// An engine that has one image.
fn engine(archive: Vec<u8>) -> impl Fn(&Asked) -> Answer {
    move |asked| match asked.path.rsplit('/').next() {
        Some("json") => Answer::new(200, "application/json", DESCRIPTION),
        Some("get") => Answer::status(200).content(Content::Unmeasured(archive.clone())),
        _ => Answer::new(404, "application/json", r#"{"message": "page not found"}"#),
    }
}

#[test]
fn an_image_comes_straight_from_docker() {
    let person = Person::new();
    let docker = person.docker(engine(saved("arm64", &["registry.lan:5000/tools/web:1"])));
    let pushed = person.push(&["docker:registry.lan:5000/tools/web:1"]);
    assert!(pushed.ok().contains("web:1 (arm64) pushed: 781.5 KiB in 3 of 3 blobs"), "{pushed:?}");
    let paths: Vec<String> = docker.asked().into_iter().map(|asked| asked.path).collect();
    let below = "/images/registry.lan:5000/tools/web:1";
    assert_eq!(paths, [format!("{below}/json"), format!("{below}/get")]);
    let again = person.push(&["docker-daemon:web:1", "other"]);
    assert_eq!(again.ok(), "other:latest (arm64) pushed: everything was there already\n");
    // An id is no name.
    let _docker = person.docker(engine(saved("arm64", &[])));
    person.push(&["docker:0123456789ab"]).fails(2, "does not say what the image is called: add a name");
    assert!(person.push(&["docker:0123456789ab", "named"]).ok().starts_with("named:latest (arm64)"));
    assert!(person.push(&["docker:tools/web"]).ok().starts_with("web:latest (arm64)"));
}

#[test]
fn docker_may_be_on_a_port_of_this_computer_only() {
    let person = Person::new();
    let docker = Scripted::start(engine(saved("arm64", &["web:1"])));
    let pushed = person.push_at(&format!("tcp://{}", docker.host()), &["docker:web:1"]);
    assert!(pushed.ok().starts_with("web:1 (arm64) pushed"), "{pushed:?}");
    for far in ["tcp://192.0.2.1:2375", "ssh://ada@shed", "nonsense"] {
        let words = format!("the Docker engine at '{far}' cannot be reached from here");
        person.push_at(far, &["docker:web"]).fails(1, &words);
    }
}

#[test]
fn what_docker_refuses_is_told_in_one_sentence() {
    let person = Person::new();
    person.push(&["docker:web"]).fails(1, "no Docker engine answers at");
    for name in ["docker:", "docker://web", "docker:../containers", "docker:web?x", "podman:--help"] {
        person.push(&[name]).fails(2, "is not the name of an image in an engine");
    }
    let json = |status, text: &str| Answer::new(status, "application/json", text);
    for (answer, words) in [
        (json(404, r#"{"message": "No such image: web:latest"}"#), "the Docker engine has no image 'web'"),
        (json(500, r#"{"message": "Error: layer is\n gone"}"#), "does not give 'web' (status 500): "),
        (json(404, "<html>"), "is not a Docker engine: it answered with status 404"),
        (json(200, "{}"), "is not a Docker engine: its description of the image makes no sense"),
        (json(200, "hello"), "is not a Docker engine: its description of the image makes no sense"),
        (Answer::status(200).content(Content::Endless), "sent more than 4194304 bytes of a description"),
    ] {
        let _docker = person.docker(move |_| answer.clone());
        person.push(&["docker:web"]).fails(1, words);
    }
    person.nothing_arrived();
}

#[test]
fn an_archive_of_docker_s_is_as_hostile_as_any() {
    let person = Person::new();
    let good = saved("arm64", &["web:1"]);
    let mut flipped = good.clone();
    flipped[100_000] ^= 1;
    let half = good[..good.len() / 2].to_vec();
    for (content, words) in [
        (Content::Cut(good.len(), half.clone()), "the Docker engine stopped in the middle of 'web'"),
        (Content::Unmeasured(half), "cannot push docker:web: the archive is truncated"),
        (Content::Unmeasured(flipped), "cannot push docker:web: the archive is damaged"),
        (Content::Unmeasured(b"hello".to_vec()), "cannot push docker:web: not an image"),
        (Content::Unmeasured(Vec::new()), "cannot push docker:web: not an image"),
        (
            Content::Unmeasured(saved("s390x", &["web:1"])),
            "no image for linux/amd64 or linux/arm64; it has linux/s390x",
        ),
    ] {
        let _docker = person.docker(move |asked| match asked.path.ends_with("/json") {
            true => Answer::new(200, "application/json", DESCRIPTION),
            false => Answer::status(200).content(content.clone()),
        });
        let spoilt = person.push(&["docker:web"]);
        spoilt.fails(1, words);
        assert!(!spoilt.err.contains("said by the server"), "{spoilt:?}");
    }
    person.nothing_arrived();
}

#[test]
fn podman_is_asked_first_and_skopeo_where_it_is_missing() {
    let person = Person::new();
    person.push(&["podman:web"]).fails(1, "neither podman nor skopeo is installed");
    person.program("skopeo", "exec /bin/cat \"$archive\"");
    let pushed = person.push(&["containers-storage:localhost/web:1"]);
    assert!(pushed.ok().starts_with("web:1 (arm64) pushed: 781.5 KiB"), "{pushed:?}");
    assert_eq!(
        person.asked(),
        "skopeo copy --quiet containers-storage:localhost/web:1 docker-archive:/dev/stdout:localhost/web:1\n"
    );
    person.program("podman", "exec /bin/cat \"$archive\"");
    assert!(person.push(&["podman:localhost/web:1", "again"]).ok().starts_with("again:latest (arm64)"));
    assert_eq!(person.asked(), "podman save --quiet --format docker-archive localhost/web:1\n");
}

#[test]
fn a_program_that_fails_says_why_in_one_sentence() {
    let person = Person::new();
    let half = "/usr/bin/head -c 500000 \"$archive\"";
    for (script, words) in [
        (
            "echo 'Error: web: image not known' >&2; exit 125",
            "podman gives no image 'web': web: image not known",
        ),
        ("exit 1", "podman gives no image 'web': it does not say why"),
        ("kill -9 $$", "podman gives no image 'web': it does not say why"),
        ("/usr/bin/yes no | /usr/bin/head -c 999999 >&2; exit 1", "podman gives no image 'web': no"),
        (&format!("{half}; echo broken >&2; exit 1"), "podman gives no image 'web': broken"),
        (half, "cannot push podman:web: the archive is truncated"),
        ("exit 0", "cannot push podman:web: not an image"),
    ] {
        person.program("podman", script);
        person.push(&["podman:web"]).fails(1, words);
    }
    person.nothing_arrived();
}
