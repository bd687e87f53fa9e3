//! Disks that are full, and a broker that loses power while an image arrives.
use super::images::archive;
use super::view::wait_for_state;
use crate::cli::Wherry;
use crate::failure::{Failure, ensure};
use crate::noise::noise;
use crate::tar::{Tar, docker_archive};
use crate::vm::BOOT;
use crate::wait::until;
use crate::world::{DATA_MIB, World};
use std::time::Duration;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
const FULL: &str = "full";

/// An image called `name` whose only layer has a busybox and so much noise, as an archive in `directory`.
fn noisy(world: &dyn World, directory: &TempDir, name: &str, mebibytes: usize) -> Result<String, Failure> {
    let busybox = crate::given::busybox(world.arch())?;
    let seed = name.bytes().fold(1, |sum, byte| sum * 31 + u64::from(byte));
    let layer = Tar::new()
        .file("bin/busybox", &busybox)
        .symlink("bin/true", "busybox")
        .file("noise", &noise(mebibytes * MIB, seed))
        .finish();
    let path = directory.path().join(format!("{name}.tar"));
    std::fs::write(&path, docker_archive(name, world.arch(), &layer))
        .map_err(Failure::file("write", &path))?;
    Ok(path.display().to_string())
}

fn directory() -> Result<TempDir, Failure> {
    tempfile::tempdir().map_err(Failure::io("make a temporary directory"))
}

/// A broker whose disk is full says so, loses nothing and does the rest of its work.
pub(super) fn full_broker(world: &mut dyn World) -> Result<(), Failure> {
    const PIECE_MIB: usize = 12;
    let (world, directory) = (&*world, directory()?);
    let admin = world.admin();
    let before = admin.json(&["images"])?;
    let mut pushed = Vec::new();
    // More than fits.
    let refused = (0..=DATA_MIB as usize / PIECE_MIB).find_map(|number| {
        let name = format!("piece{number}");
        let path = match noisy(world, &directory, &name, PIECE_MIB) {
            Ok(path) => path,
            Err(failure) => return Some(Err(failure)),
        };
        match admin.run(&["image", "push", &path]) {
            Ok(outcome) if outcome.code == 0 => {
                pushed.push(name);
                None
            }
            other => Some(other),
        }
    });
    let refused = refused.ok_or_else(|| Failure::Unexpected(format!("{} images fit", pushed.len())))??;
    ensure(refused.stderr.contains("disk is full"), || format!("a full disk is told as {refused:?}"))?;
    let listed = admin.ok(&["images"])?;
    ensure(pushed.iter().all(|name| listed.contains(name)), || format!("images were lost: {listed}"))?;
    ensure(!listed.contains(&format!("piece{}", pushed.len())), || format!("half an image: {listed}"))?;
    admin.run(&["run", "--rm", "client", "true"])?.expect_code(0)?;
    for name in &pushed {
        admin.ok(&["rmi", name])?;
    }
    ensure(admin.json(&["images"])? == before, || "other images changed".into())?;
    admin.ok(&["image", "push", &noisy(world, &directory, "piece0", PIECE_MIB)?])?;
    admin.ok(&["rmi", "piece0"]).map(drop)
}

/// A node whose disk is full says so, keeps what runs, and is well again once there is room.
pub(super) fn full_node(world: &mut dyn World) -> Result<(), Failure> {
    const FILL: &str = "dd if=/dev/zero of=/hog bs=64k; echo filled; exec sleep 1d";
    const EARLY_MIB: usize = 2;
    const LATE_MIB: usize = 10;
    let (world, directory) = (&*world, directory()?);
    let admin = world.admin();
    let node = world.nodes().first().cloned().unwrap_or_default();
    admin.ok(&["image", "push", &noisy(world, &directory, "early", EARLY_MIB)?])?;
    admin.ok(&["image", "push", &noisy(world, &directory, "late", LATE_MIB)?])?;
    admin.ok(&["run", "-d", "--name", "hog", "--node", &node, "client", "sh", "-c", FILL])?;
    until("a full disk", SOON, || match admin.run(&["logs", "hog"]) {
        Ok(outcome) if outcome.stdout.contains("filled") => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let logs = admin.run(&["logs", "hog"])?;
    ensure(logs.stderr.contains("No space left"), || format!("the container did not notice: {logs:?}"))?;
    // Layers of other scenarios that nobody uses make way for this one, if there are enough of them; after that there is no
    // more to be had than its own.
    admin.run(&["run", "--rm", "--node", &node, "early", "true"])?;
    admin.run(&["exec", "hog", "--", "dd", "if=/dev/zero", "of=/hog2", "bs=64k"])?;
    let late = admin.run(&["run", "--rm", "--node", &node, "late", "true"])?;
    // The board says so, or the broker, by what the board last told it.
    let told = late.stderr.contains(FULL) || late.stderr.contains("of disk free");
    ensure(late.code != 0 && told, || format!("a full disk is told as {late:?}"))?;
    admin.run(&["exec", "hog", "--", "true"])?.expect_code(0)?;
    wait_for_state(admin, "hog", "running", SOON)?;
    admin.ok(&["rm", "-f", "hog"])?;
    // The broker hears of the room with the board's next report.
    until("room for an image", SOON, || {
        match admin.run(&["run", "--rm", "--node", &node, "late", "true"]) {
            Ok(outcome) if outcome.code == 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    admin.ok(&["rmi", "early"])?;
    admin.ok(&["rmi", "late"]).map(drop)
}

/// The broker's power goes while an image arrives: the push waits, goes on, and everything is as if nothing had been.
pub(super) fn cut_push(world: &mut dyn World) -> Result<(), Failure> {
    const MIB_TO_PUSH: usize = 24;
    let directory = directory()?;
    let path = noisy(world, &directory, "interrupted", MIB_TO_PUSH)?;
    let before = world.admin().json(&["images"])?;
    let whole = world.admin().run(&["image", "push", &path])?.expect_code(0)?.took;
    world.admin().ok(&["rmi", "interrupted"])?;
    let mut noticed = 0;
    // At different moments of the push, whose first part is spent reading the archive.
    for percent in [50, 65, 80] {
        noticed += u32::from(push_with_cut(world, &path, whole * percent / 100)?);
        let admin = world.admin();
        admin.run(&["run", "--rm", "interrupted", "true"])?.expect_code(0)?;
        admin.ok(&["rmi", "interrupted"])?;
        ensure(admin.json(&["images"])? == before, || "other images changed".into())?;
    }
    ensure(noticed > 0, || "every push was over before the power went".into())?;
    // An image that was there before is still whole.
    let again = world.admin().run(&["image", "push", &archive(world, "client.tar")?])?.expect_code(0)?;
    ensure(again.stdout.contains("already"), || format!("blobs were lost: {again:?}"))
}

/// Whether the push noticed.
fn push_with_cut(world: &mut dyn World, path: &str, after: Duration) -> Result<bool, Failure> {
    let admin: Wherry = world.admin().clone();
    let mut push = admin.start(&["image", "push", path])?;
    std::thread::sleep(after);
    world.power_cut("broker")?;
    world.boot("broker")?;
    let outcome = match push.wait(2 * BOOT)? {
        Some(outcome) => outcome.expect_code(0)?,
        None => return Err(push.kill()?.failure("did not go on after the broker came back")),
    };
    super::wait_for_nodes(world, BOOT)?;
    let listed = world.admin().ok(&["images"])?;
    ensure(listed.contains("interrupted"), || format!("it is not listed: {listed}"))?;
    Ok(outcome.stderr.contains("lost the connection"))
}
