//! Images that are there: what they are, more names for them, and which one is meant.
use crate::push::{archive, file, layers};
use crate::world::World;
use serde_json::{Value, json};
use wherry_protocol::Digest;
use wherry_protocol::message::ImageName;

/// A world with an image of so many layers under this name; its id.
fn push(world: &World, name: &str, count: u8) -> String {
    let path = file(world, "image.tar", &archive(&["arm64"], &layers(count)));
    let pushed = world.run(&["--json", "image", "push", path.to_str().unwrap(), name]).json();
    pushed["id"].as_str().unwrap().to_owned()
}

fn names(world: &World) -> Vec<String> {
    let listed = world.line("--json images").json();
    listed.as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap().to_owned()).collect()
}

/// Twelve digits of an id, as `wherry images` shows it.
fn short(id: &str) -> &str {
    &id["sha256:".len()..][..12]
}

#[test]
fn an_image_tells_all_about_itself() {
    let world = World::joined();
    let id = push(&world, "web", 2);
    let config = json!({"architecture": "arm64", "os": "linux", "created": "2026-01-02T03:04:05Z", "author": "Ada",
        "config": {"User": "1000", "ExposedPorts": {"80/tcp": {}}, "Env": ["A=1"], "Entrypoint": ["/bin/web"],
            "Cmd": ["-v"], "Volumes": {"/data": {}}, "WorkingDir": "/srv", "Labels": {"a": "b"},
            "StopSignal": "SIGINT"},
        "rootfs": {"diff_ids": layers(2).iter().map(|layer| Digest::of(layer).to_string()).collect::<Vec<_>>()},
        "history": [{"created_by": "COPY . /", "created": "2026-01-02T03:04:05Z"}, {"empty_layer": true}]});
    let bytes = config.to_string().into_bytes();
    let told = Digest::of(&bytes);
    {
        let mut state = world.broker.state();
        let info = state.images.get_mut(&"web:latest".parse::<ImageName>().unwrap()).unwrap();
        (info.id, info.manifest.config.digest) = (told, told);
        state.blobs.insert(told, bytes);
    }
    assert_ne!(id, told.to_string());
    let found = world.line("image inspect web").json();
    let image = &found[0];
    for (field, value) in [
        ("name", json!("web:latest")),
        ("id", json!(told.to_string())),
        ("architecture", json!("arm64")),
        ("os", json!("linux")),
        ("created", json!("2026-01-02T03:04:05Z")),
        ("author", json!("Ada")),
        ("entrypoint", json!(["/bin/web"])),
        ("cmd", json!(["-v"])),
        ("env", json!(["A=1"])),
        ("workdir", json!("/srv")),
        ("user", json!("1000")),
        ("exposed_ports", json!(["80/tcp"])),
        ("volumes", json!(["/data"])),
        ("stop_signal", json!("SIGINT")),
        ("labels", json!({"a": "b"})),
    ] {
        assert_eq!(image[field], value, "{field}");
    }
    let layer = Digest::of(&layers(2)[1]).to_string();
    let expected = json!({"digest": layer, "diff_id": layer, "size": 400_000,
        "media_type": "application/vnd.oci.image.layer.v1.tar"});
    assert_eq!(image["layers"][1], expected);
    assert_eq!(image["history"][1], json!({"empty_layer": true}));
    // The same by whatever it may be called.
    let id = told.to_string();
    for text in [&id, short(&id), &id[..15], &format!("web@{id}"), "web:latest"] {
        assert_eq!(world.run(&["image", "inspect", text]).json(), found, "{text}");
    }
}

#[test]
fn what_a_broker_says_of_a_configuration_is_checked() {
    let world = World::joined();
    let id: Digest = push(&world, "web", 1).parse().unwrap();
    let good = world.broker.state().blobs[&id].clone();
    let mut damaged = good.clone();
    damaged[3] ^= 1;
    for (bytes, words) in [
        (damaged, "the broker sent something else than sha256:"),
        (good[1..].to_vec(), "the broker sent something else than sha256:"),
        (Vec::new(), "the broker sent something else than sha256:"),
        (vec![b'x'; 4 * 1024 * 1024 + 1], "the broker answered 'read blob' with something else"),
    ] {
        world.broker.state().blobs.insert(id, bytes);
        world.line("image inspect web").fails(1, words);
    }
    world.broker.state().blobs.remove(&id);
    world.line("image inspect web").fails(1, &format!("this account has no blob {id}"));
    for text in ["{", "[5]", r#"{"rootfs": 5}"#, r#"{"config": {"Env": "A=1"}}"#] {
        let told = Digest::of(text.as_bytes());
        {
            let mut state = world.broker.state();
            state.images.get_mut(&"web:latest".parse::<ImageName>().unwrap()).unwrap().id = told;
            state.blobs.insert(told, text.into());
        }
        let words = "the configuration of image 'web:latest' cannot be understood";
        world.line("image inspect web").fails(1, words);
    }
}

#[test]
fn one_more_name_costs_nothing() {
    let world = World::joined();
    let id = push(&world, "web", 2);
    let sent = world.broker.state().sent.len();
    assert_eq!(world.line("tag web front:1").ok(), "front:1\n");
    assert_eq!(world.run(&["image", "tag", short(&id), "tools/front"]).ok(), "tools/front:latest\n");
    let tagged: Value = world.line("--json tag front:1 third").json();
    assert_eq!((&tagged["name"], &tagged["id"]), (&json!("third:latest"), &json!(id)));
    assert_eq!(names(&world), ["front:1", "third:latest", "tools/front:latest", "web:latest"]);
    assert_eq!(world.broker.state().sent.len(), sent);
    world.line("tag nothing x").fails(1, "no image is called 'nothing:latest'");
    world.line("tag web Bad!").fails(2, "not an image name");
    world.line("tag web").fails(2, "<NAME>");
}

#[test]
fn an_id_must_mean_one_image() {
    let world = World::joined();
    let (one, two) = (push(&world, "one", 1), push(&world, "two", 2));
    world.line("tag one also").ok();
    // With two names it can be shown, run and tagged, but which name should go?
    world.run(&["image", "inspect", short(&one)]).ok();
    world
        .run(&["rmi", short(&one)])
        .fails(1, "may mean several images (also:latest, one:latest): say which by name");
    assert_eq!(world.run(&["rmi", short(&two)]).ok(), "two:latest\n");
    world.run(&["rmi", short(&two)]).fails(1, "nor does an id begin so: list them with `wherry images`");
    assert_eq!(world.run(&["rmi", &format!("also@{one}")]).ok(), "also:latest\n");
    assert_eq!(world.run(&["rmi", &one]).ok(), "one:latest\n");
    assert!(names(&world).is_empty());
    // A pin that is not kept any more, and texts that mean nothing.
    let other = Digest::of(b"x");
    push(&world, "one", 1);
    world
        .run(&["rmi", &format!("one@{other}")])
        .fails(1, &format!("no image is called 'one:latest@{other}'"));
    world.run(&["image", "inspect", "one@sha256:12"]).fails(2, "'one@sha256:12' names no image");
    assert_eq!(names(&world), ["one:latest"]);
}

#[test]
fn a_beginning_that_fits_several_ids_is_refused_and_a_name_goes_first() {
    let world = World::joined();
    let id: Digest = push(&world, "one", 1).parse().unwrap();
    let near = {
        let mut bytes = id.0;
        bytes[31] ^= 1;
        Digest(bytes)
    };
    {
        let mut state = world.broker.state();
        let mut info = state.images[&"one:latest".parse::<ImageName>().unwrap()].clone();
        (info.id, info.manifest.config.digest, info.name) = (near, near, "near".parse().unwrap());
        state.images.insert(info.name.clone(), info);
    }
    let common = &id.hex()[..12];
    world.run(&["tag", common, "x"]).fails(1, "may mean several images (near:latest, one:latest)");
    world.run(&["tag", &id.to_string(), "x"]).ok();
    // Somebody calls an image like the beginning of another one's id.
    world.run(&["tag", "near", &common[..8]]).ok();
    let found = world.run(&["--json", "tag", &common[..8], "y"]).json();
    assert_eq!(found["id"], json!(near.to_string()));
}

#[test]
fn a_container_runs_the_image_with_that_id() {
    let world = World::joined();
    let id = push(&world, "web", 1);
    for image in [short(&id), &id, &format!("web@{id}")] {
        let container = world.run(&["run", "-d", image]);
        let shown = world.run(&["inspect", container.ok().trim()]).json();
        assert_eq!(shown[0]["image"], json!("web:latest"), "{image}");
    }
    world.line("run -d deadbeef").fails(125, "no image is called 'deadbeef', nor does an id begin so");
    world
        .run(&["run", "-d", &format!("web@{}", Digest::of(b"x"))])
        .fails(125, "no image is called 'web:latest@");
}
