//! Who may come in, and what each sees.
use super::view::{containers, wait_for_nodes};
use crate::cli::Wherry;
use crate::failure::{Failure, ensure};
use crate::vm::BOOT;
use crate::world::World;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

pub(super) fn resources(world: &mut dyn World) -> Result<(), Failure> {
    wait_for_nodes(world, BOOT)?;
    let list = world.admin().json(&["resources"])?;
    let architecture = match world.arch() {
        wherry_images::disk::Arch::X86_64 => "amd64",
        wherry_images::disk::Arch::Aarch64 => "arm64",
    };
    for node in list.as_array().into_iter().flatten() {
        let number = |key: &str| node.get(key).and_then(serde_json::Value::as_u64).unwrap_or_default();
        let sane = node["architecture"] == architecture
            && number("cpus") >= 1
            && number("memory_bytes") > number("memory_available_bytes")
            && number("memory_available_bytes") > 0
            && node["overlay"] == world.abilities().overlay
            && node["limits"] == world.abilities().limits;
        ensure(sane, || format!("`wherry --json resources` says {node}"))?;
    }
    let table = world.admin().ok(&["resources"])?;
    let all_named = world.nodes().iter().all(|name| table.contains(name));
    ensure(all_named, || format!("`wherry resources` lacks a node:\n{table}"))
}

/// Another person, not yet joined.
fn person(world: &dyn World, name: &str) -> Wherry {
    let homes = world.admin().home().parent().unwrap_or(world.admin().home());
    world.admin().with_home(homes.join(name))
}

/// A fresh one-time token, made by the administrator, good for so long.
fn token_for(world: &dyn World, time: &str) -> Result<String, Failure> {
    let made = world.admin().ok(&["token", "create", "--role", "user", "--expires", time])?;
    let token = made.split_whitespace().find(|word| word.starts_with("wry1-user-"));
    let token = token
        .ok_or_else(|| Failure::Unexpected(format!("`wherry token create` printed no token: {made}")))?;
    let bare = token.split('@').next().unwrap_or(token);
    Ok(format!("{bare}@{}", world.broker()))
}

/// Somebody who has joined as a user.
pub(super) fn new_user(world: &dyn World, name: &str) -> Result<Wherry, Failure> {
    let who = person(world, name);
    who.ok(&["join", &token_for(world, "1h")?])?;
    Ok(who)
}

pub(super) fn tokens(world: &mut dyn World) -> Result<(), Failure> {
    let carol = person(world, "carol");
    carol.refused(&["join", "wry1-user-nonsense"], "token")?;
    carol.refused(&["join", "hello"], "token")?;
    carol.refused(&["join", world.used_token()], "token")?;
    let expired = token_for(world, "1s")?;
    let token = token_for(world, "1h")?;
    // One character changed: the text itself shows it.
    let damaged = token.replacen("wry1-user-a", "wry1-user-b", 1);
    let damaged = if damaged == token { token.replacen("wry1-user-", "wry1-user-a", 1) } else { damaged };
    carol.refused(&["join", &damaged], "token")?;
    carol.ok(&["join", &token])?;
    person(world, "dave").refused(&["join", &token], "token")?;
    private_files(&carol)?;
    std::thread::sleep(Duration::from_secs(2));
    person(world, "dave").refused(&["join", &expired], "expired")?;
    let stopped = format!("{}@{}:9", token.split('@').next().unwrap_or_default(), world.broker());
    person(world, "erin").refused(&["join", &stopped], "cannot reach").map(drop)
}

/// Secret keys are for nobody else's eyes.
fn private_files(who: &Wherry) -> Result<(), Failure> {
    let root = who.home().join("config/wherry");
    let mut pending = vec![root.clone()];
    let mut files = 0;
    while let Some(path) = pending.pop() {
        let meta = path.metadata().map_err(Failure::file("read", &path))?;
        if meta.is_dir() {
            let entries = path.read_dir().map_err(Failure::file("read", &path))?;
            pending.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
            continue;
        }
        files += 1;
        let mode = meta.permissions().mode() & 0o777;
        ensure(mode & 0o077 == 0, || format!("{} has mode {mode:o}", path.display()))?;
    }
    ensure(files > 0, || format!("nothing is stored below {}", root.display()))
}

pub(super) fn isolation(world: &mut dyn World) -> Result<(), Failure> {
    let bob = new_user(world, "bob")?;
    world.admin().ok(&["image", "push", &super::images::archive(world, "client.tar")?])?;
    world.admin().ok(&["run", "-d", "--name", "secret", "client", "sleep", "1d"])?;
    ensure(containers(&bob)?.is_empty(), || "another account's containers are listed".into())?;
    for command in [
        &["exec", "secret", "--", "true"][..],
        &["logs", "secret"],
        &["stop", "secret"],
        &["rm", "-f", "secret"],
        &["inspect", "secret"],
    ] {
        bob.refused(command, "secret")?;
    }
    bob.refused(&["run", "client"], "client")?;
    bob.refused(&["token", "create", "--role", "user"], "admin")?;
    world.admin().ok(&["rm", "-f", "secret"]).map(drop)
}
