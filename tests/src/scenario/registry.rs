//! Pulling from a real registry, and pushing from the storage of podman and its relatives.
use super::images::archive;
use crate::cli::Wherry;
use crate::failure::{Failure, ensure};
use crate::registry::{Access, Authority, Cutter, PASSWORD, Registry, TokenService, USER, fill};
use crate::world::World;
use data_encoding::BASE64;
use serde_json::json;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// Runs `echo WORD` from an image on the last node: what is unpacked there is not in the way of scenarios about full disks.
fn echoes(world: &dyn World, image: &str, word: &str) -> Result<(), Failure> {
    let node = world.nodes().last().cloned().unwrap_or_default();
    let ran = world.admin().run(&["run", "--rm", "--node", &node, image, "echo", word])?;
    ran.expect_code(0)?.expect_stdout(&format!("{word}\n")).map(drop)
}

fn directory() -> Result<TempDir, Failure> {
    tempfile::tempdir().map_err(Failure::io("make a temporary directory"))
}

/// What Debian's registry serves is pulled for the boards' processor, runs, and is not sent twice.
pub(super) fn pull(world: &mut dyn World) -> Result<(), Failure> {
    let (admin, directory) = (world.admin(), directory()?);
    let open = Registry::start(directory.path(), Access::Open)?;
    fill(&open, Path::new(&archive(world, "client.tar")?), directory.path(), "1")?;
    let reference = format!("{}/tools/client:1", open.host());
    let pulled = admin.json(&["pull", &reference])?;
    ensure(pulled["name"] == "tools/client:1" && pulled["sent_blobs"] == 3, || format!("pulled {pulled}"))?;
    echoes(world, "tools/client:1", "pulled")?;
    let again = admin.run(&["pull", pulled["reference"].as_str().unwrap_or_default(), "pinned"])?;
    again.expect_code(0)?.expect_stdout("everything was there already")?;
    admin.refused(&["pull", &format!("{}/tools/client:2", open.host())], "check its name and its tag")?;
    admin.refused(&["pull", &format!("{reference}@sha256:{}", "0".repeat(64))], "has no image")?;
    for name in ["tools/client:1", "pinned"] {
        admin.ok(&["rmi", name])?;
    }
    cut(world, &open)?;
    locked(world, directory.path())?;
    drop(open);
    admin.refused(&["pull", &reference], "connection refused").map(drop)
}

/// A connection that is cut again and again: what has arrived is not fetched again, or there would be no end to it.
fn cut(world: &dyn World, registry: &Registry) -> Result<(), Failure> {
    const BYTES: u64 = 300_000;
    let cutter = Cutter::start(registry.port(), BYTES)?;
    let pulled = world.admin().json(&["pull", &format!("{}/tools/client:1", cutter.host()), "pieces"])?;
    let (sent, cuts) = (pulled["sent_bytes"].as_u64().unwrap_or_default(), cutter.cuts());
    ensure(cuts > 1 && sent > 2 * BYTES, || format!("{cuts} cuts in {sent} bytes"))?;
    echoes(world, "pieces", "whole")?;
    world.admin().ok(&["rmi", "pieces"]).map(drop)
}

/// Registries that want TLS and to know who pulls, by login and by token.
fn locked(world: &dyn World, directory: &Path) -> Result<(), Failure> {
    let admin = world.admin();
    let authority = Authority::new(directory)?;
    let ca = authority.root().display().to_string();
    let service = TokenService::start(&authority, directory)?;
    for access in [Access::Login(&authority), Access::Token(&authority, &service)] {
        let registry = Registry::start(directory, access)?;
        let reference = format!("{}/tools/client:1", registry.host());
        admin.refused(&["pull", &reference], "no trusted authority has signed its certificate")?;
        let pull = ["pull", "--ca", &ca, reference.as_str(), "locked"];
        admin.refused(&pull, "wants a login for 'tools/client'")?;
        log_in(admin, &registry.host(), "guess")?;
        admin.refused(&pull, "does not accept the stored login")?;
        log_in(admin, &registry.host(), PASSWORD)?;
        admin.run(&pull)?.expect_code(0)?.expect_stdout("locked:latest")?;
        echoes(world, "locked", "in")?;
        admin.ok(&["rmi", "locked"])?;
    }
    let asked = service.scopes();
    let expected = |scope: &String| scope == "repository:tools/client:pull";
    ensure(!asked.is_empty() && asked.iter().all(expected), || format!("tokens were asked for {asked:?}"))?;
    let docker = admin.home().join(".docker");
    std::fs::remove_dir_all(&docker).map_err(Failure::file("remove", &docker))
}

/// As `docker login` stores it.
fn log_in(person: &Wherry, host: &str, password: &str) -> Result<(), Failure> {
    let directory = person.home().join(".docker");
    std::fs::create_dir_all(&directory).map_err(Failure::file("make", &directory))?;
    let auth = BASE64.encode(format!("{USER}:{password}").as_bytes());
    let path = directory.join("config.json");
    let stored = json!({"auths": {host: {"auth": auth}}});
    std::fs::write(&path, stored.to_string()).map_err(Failure::file("write", &path))
}

/// An image in the storage that podman, buildah and skopeo share goes to the cluster without a file between.
pub(super) fn storage(world: &mut dyn World) -> Result<(), Failure> {
    let directory = directory()?;
    let below = |name: &str| directory.path().join(name).display().to_string();
    let settings = below("storage.conf");
    let text = format!(
        "[storage]\ndriver = \"vfs\"\nrunroot = \"{}\"\ngraphroot = \"{}\"\n",
        below("run"),
        below("root")
    );
    std::fs::write(&settings, text).map_err(Failure::io("write storage.conf"))?;
    let copied = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet"])
        .arg(format!("docker-archive:{}", archive(world, "client.tar")?))
        .arg("containers-storage:localhost/kept:1")
        .env("CONTAINERS_STORAGE_CONF", &settings)
        .output()
        .map_err(Failure::io("run skopeo"))?;
    ensure(copied.status.success(), || String::from_utf8_lossy(&copied.stderr).into_owned())?;
    let person = world.admin().clone().wrapped(&["env", &format!("CONTAINERS_STORAGE_CONF={settings}")]);
    let pushed = person.run(&["image", "push", "podman:localhost/kept:1"])?;
    pushed.expect_code(0)?.expect_stdout("kept:1 (")?;
    let id = person.json(&["image", "inspect", "kept:1"])?[0]["id"].clone();
    let id = id.as_str().unwrap_or_default().trim_start_matches("sha256:");
    let short = id.get(..12).unwrap_or_default();
    echoes(world, short, "kept")?;
    person.ok(&["tag", short, "named:2"])?;
    echoes(world, "named:2", "named")?;
    // The same image, whoever saved it.
    person.run(&["image", "push", &format!("podman:{short}"), "third"])?.expect_stdout("there already")?;
    person
        .refused(&["image", "push", "podman:localhost/missing:1"], "gives no image 'localhost/missing:1'")?;
    person.refused(&["image", "inspect", "0000000000"], "nor does an id begin so")?;
    for name in ["kept:1", "named:2", "third"] {
        person.ok(&["rmi", name])?;
    }
    Ok(())
}
