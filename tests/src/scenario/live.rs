//! What can be done with containers besides running and ending them.
use super::view::wait_for_state;
use crate::cli::Wherry;
use crate::failure::{Failure, ensure};
use crate::wait::until;
use crate::world::World;
use serde_json::Value;
use std::fs;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

fn inspected(admin: &Wherry, name: &str) -> Result<Value, Failure> {
    Ok(admin.json(&["inspect", name])?[0].clone())
}

fn log(admin: &Wherry, name: &str, wanted: impl Fn(&str) -> bool) -> Result<(), Failure> {
    until(&format!("the log of {name}"), SOON, || match admin.ok(&["logs", name]) {
        Ok(text) if wanted(&text) => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

/// Paused ones stand still; those that sleep begin when they are woken.
pub(super) fn pause_and_sleep(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    if world.abilities().cgroups {
        pause(admin)?;
    } else {
        admin.ok(&["run", "-d", "--name", "clock", "client", "sleep", "1d"])?;
        admin.refused(&["pause", "clock"], "has no cgroup v2")?;
        admin.refused(&["commit", "clock", "clock:1"], "has no cgroup v2")?;
        admin.ok(&["rm", "-f", "clock"])?;
    }
    sleep(admin)
}

fn pause(admin: &Wherry) -> Result<(), Failure> {
    let count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done";
    admin.ok(&["run", "-d", "--name", "clock", "client", "sh", "-c", count])?;
    log(admin, "clock", |text| !text.is_empty())?;
    admin.run(&["pause", "clock"])?.expect_stdout("clock\n")?;
    let before = admin.ok(&["logs", "clock"])?;
    std::thread::sleep(Duration::from_millis(300));
    ensure(admin.ok(&["logs", "clock"])? == before, || "a paused container goes on".into())?;
    until("that it is shown", SOON, || match admin.ok(&["ps"]) {
        Ok(text) if text.contains("(paused)") => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    admin.refused(&["exec", "clock", "true"], "paused")?;
    admin.ok(&["unpause", "clock"])?;
    log(admin, "clock", |text| text.len() > before.len())?;
    admin.ok(&["pause", "clock"])?;
    admin.ok(&["stop", "-t", "1", "clock"])?;
    admin.refused(&["pause", "clock"], "is not running")?;
    admin.ok(&["rm", "clock"]).map(drop)
}

fn sleep(admin: &Wherry) -> Result<(), Failure> {
    admin.ok(&["run", "-d", "--asleep", "--name", "bear", "client", "sh", "-c", "echo awake; sleep 1d"])?;
    until("that it sleeps", SOON, || match inspected(admin, "bear") {
        Ok(bear) if bear["asleep"] == true && bear["state"] == "running" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure(admin.ok(&["logs", "bear"])?.is_empty(), || "it talks in its sleep".into())?;
    admin.run(&["wake", "bear"])?.expect_stdout("bear\n")?;
    log(admin, "bear", |text| text == "awake\n")?;
    ensure(inspected(admin, "bear")?["asleep"].is_null(), || "it still sleeps".into())?;
    admin.ok(&["wake", "bear"])?;
    admin.ok(&["rm", "-f", "bear"]).map(drop)
}

/// Ready is who answers; who is ill is told, killed and started again.
pub(super) fn health(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    // An image with a web server on port 80.
    admin.ok(&[
        "run",
        "-d",
        "--name",
        "site",
        "--health-http",
        "80/",
        "--health-interval",
        "200ms",
        "web",
    ])?;
    admin.run(&["wait", "--healthy", "--timeout", "30s", "site"])?.expect_stdout("site\n")?;
    for probe in [["--tcp", "80"], ["--http", "80/"], ["--http", "80/index.html"]] {
        admin.ok(&[&["wait"], &probe[..], &["--timeout", "30s", "site"]].concat())?;
    }
    admin.refused(&["wait", "--tcp", "81", "--timeout", "300ms", "site"], "is not ready after 0.3 s")?;
    admin.refused(&["wait", "--http", "80/none", "--timeout", "300ms", "site"], "status 404")?;
    ensure(admin.ok(&["ps"])?.contains("(healthy)"), || "its health is not shown".into())?;
    admin.ok(&["rm", "-f", "site"])?;

    let life = "touch /well; echo life; sleep 1d";
    let check = ["--health-cmd", "test -e /well", "--health-interval", "100ms", "--health-retries", "2"];
    let flags = ["--restart", "always", "--health-on-failure", "kill"];
    let run =
        [&["run", "-d", "--name", "phoenix"], &check[..], &flags, &["client", "sh", "-c", life]].concat();
    admin.ok(&run)?;
    admin.ok(&["wait", "--healthy", "phoenix"])?;
    admin.ok(&["wait", "--exec", "test -e /well", "phoenix"])?;
    admin.refused(
        &["wait", "--exec", "echo 'not yet' >&2; false", "--timeout", "300ms", "phoenix"],
        "not yet",
    )?;
    admin.run(&["exec", "phoenix", "rm", "/well"])?.expect_code(0)?;
    log(admin, "phoenix", |text| text == "life\nlife\n")?;
    admin.ok(&["wait", "--healthy", "phoenix"])?;
    admin.ok(&["rm", "-f", "phoenix"])?;
    admin.ok(&["run", "-d", "--name", "plain", "client", "sleep", "1d"])?;
    admin.refused(&["wait", "--healthy", "plain"], "has no health check")?;
    admin.ok(&["rm", "-f", "plain"]).map(drop)
}

/// Files of this computer are there before the program; labels of boards decide where it runs; devices are looked up there.
pub(super) fn files_and_places(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    let tree = admin.home().join("given");
    fs::create_dir_all(tree.join("sub")).map_err(Failure::file("create", &tree))?;
    fs::write(tree.join("sub/page"), "for you\n").map_err(Failure::file("write", &tree))?;
    let given = tree.display();
    let (file, directory) = (format!("{given}/sub/page:/etc/app/page"), format!("{given}:/srv/tree"));
    let script = "cat /etc/app/page /srv/tree/sub/page; echo mine > /etc/app/page; echo kept > /kept";
    let run = ["run", "--name", "host", "-f", &file, "-f", &directory, "client", "sh", "-c", script];
    admin.run(&run)?.expect_stdout("for you\nfor you\n")?;
    admin.ok(&["start", "host"])?;
    wait_for_state(admin, "host", "exited", SOON)?;
    log(admin, "host", |text| text == "for you\nfor you\n")?;
    admin.refused(&["run", "-f", "/no/such:/x", "client", "true"], "/no/such: No such file")?;
    admin.ok(&["rm", "host"])?;

    let nodes = world.nodes();
    let last = nodes.last().ok_or_else(|| Failure::Unexpected("a cluster without nodes".into()))?;
    admin.refused(
        &["run", "--constraint", "node.labels.shelf==top", "client", "true"],
        "node.labels.shelf==top",
    )?;
    admin.run(&["node", "label", last, "shelf=top"])?.expect_stdout(&format!("{last} shelf=top\n"))?;
    ensure(admin.ok(&["resources"])?.contains("shelf=top"), || "resources does not show the label".into())?;
    for name in ["placed1", "placed2"] {
        let run = ["run", "--name", name, "--constraint", "node.labels.shelf==top", "client", "true"];
        admin.run(&run)?.expect_code(0)?;
        let view = super::view::container(admin, name)?;
        ensure(&view.node == last, || format!("it is not on {last}: {view:?}"))?;
        admin.ok(&["rm", name])?;
    }
    admin.ok(&["node", "label", last, "--rm", "shelf"])?;
    admin.refused(&["node", "label", last, "--rm", "shelf"], "has no label 'shelf'")?;
    admin.refused(&["run", "--rm", "--device", "/dev/ttyUSB99", "client", "true"], "is not on this board")?;
    admin.refused(&["run", "--device", "/dev/mem", "client", "true"], "cannot be had").map(drop)
}

/// A restart with clean files keeps the address; what was written can be looked at, and made an image of.
pub(super) fn files_over_time(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    let script = "echo changed >> /etc/motd; test -e /mark && echo old; touch /mark; sleep 1d";
    admin.ok(&["run", "-d", "--init", "--name", "box", "client", "sh", "-c", script])?;
    admin.ok(&["wait", "--exec", "test -e /mark", "box"])?;
    let first = wait_for_state(admin, "box", "running", SOON)?;
    let changes = admin.ok(&["diff", "box"])?;
    ensure(changes.contains("A /mark\n") && changes.contains("/etc/motd\n"), || format!("diff: {changes}"))?;
    let listed = admin.json(&["diff", "box"])?;
    let mark = |change: &Value| change["path"] == "/mark" && change["change"] == "added";
    ensure(listed.as_array().is_some_and(|all| all.iter().any(mark)), || format!("diff: {listed}"))?;

    let pause: &[&str] = if world.abilities().cgroups { &[] } else { &["--no-pause"] };
    let committed = admin.ok(&[&["commit", "-m", "as it was"], pause, &["box", "boxed:1"]].concat())?;
    ensure(committed.starts_with("boxed:1 "), || format!("commit: {committed}"))?;
    ensure(inspected(admin, "box")?["paused"].is_null(), || "it is still paused".into())?;
    admin.run(&["run", "--rm", "boxed:1", "cat", "/etc/motd"])?.expect_stdout("changed\n")?;
    admin.run(&["run", "--rm", "boxed:1", "ls", "/mark"])?.expect_stdout("/mark\n")?;
    let inspected_image = admin.ok(&["image", "inspect", "boxed:1"])?;
    ensure(inspected_image.contains("as it was"), || format!("no history: {inspected_image}"))?;

    admin.ok(&["restart", "-t", "1", "box"])?;
    log(admin, "box", |text| text == "old\n")?;
    admin.refused(&["start", "--reset", "box"], "restart --reset")?;
    admin.ok(&["reboot", "-t", "1", "--reset", "box"])?;
    admin.ok(&["wait", "--exec", "test -e /mark", "box"])?;
    ensure(admin.ok(&["logs", "box"])?.is_empty(), || "old files are still there".into())?;
    let now = wait_for_state(admin, "box", "running", SOON)?;
    ensure(now.address == first.address, || format!("{first:?}, now {now:?}"))?;
    admin.ok(&["stop", "-t", "1", "box"])?;
    // Also of one that has ended.
    ensure(admin.ok(&["diff", "box"])?.contains("A /mark\n"), || "no diff after its end".into())?;
    admin.ok(&["rm", "box"])?;
    admin.ok(&["rmi", "boxed:1"]).map(drop)
}
