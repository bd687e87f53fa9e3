//! What people and strangers get wrong: one clear sentence, an exit code that is not 0, and no loss.
use super::images::archive;
use super::view::{containers, wait_for_nodes};
use crate::failure::{Failure, ensure};
use crate::tar::Tar;
use crate::wait::until;
use crate::world::World;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

pub(super) fn names(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    for command in [
        &["logs", "nobody"][..],
        &["stop", "nobody"],
        &["rm", "nobody"],
        &["inspect", "nobody"],
        &["exec", "nobody", "--", "true"],
        &["connect", "nobody", "nobody:80"],
        &["tunnel", "0", "nobody:80"],
    ] {
        admin.refused(command, "nobody")?;
    }
    admin.refused(&["run", "no-such-image"], "no-such-image")?;
    admin.refused(&["run", "--node", "no-such-node", "client", "true"], "no-such-node")?;
    admin.refused(&["run", "--name", "../evil", "client", "true"], "name")?;
    admin.refused(&["rmi", "no-such-image"], "no-such-image")?;
    admin.refused(&["--location", "nowhere", "ps"], "nowhere")?;
    admin.ok(&["run", "-d", "--name", "taken", "client", "sleep", "1d"])?;
    admin.refused(&["run", "-d", "--name", "taken", "client", "sleep", "1d"], "taken")?;
    let count = containers(admin)?.iter().filter(|view| view.name == "taken").count();
    ensure(count == 1, || format!("{count} containers are called 'taken'"))?;
    admin.ok(&["rm", "-f", "taken"]).map(drop)
}

pub(super) fn archives(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    let directory = tempfile::tempdir().map_err(Failure::io("make a temporary directory"))?;
    let good = archive(world, "client.tar")?;
    let good_bytes = std::fs::read(&good).map_err(Failure::file("read", Path::new(&good)))?;
    let push = |name: &str, bytes: &[u8], word: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).map_err(Failure::file("write", &path))?;
        admin.refused(&["image", "push", &path.display().to_string()], word)
    };
    admin.refused(&["image", "push", "/no/such/file.tar"], "/no/such/file.tar")?;
    push("empty.tar", b"", "empty.tar")?;
    push("text.tar", b"this is a shopping list\n", "text.tar")?;
    push("truncated.tar", &good_bytes[..good_bytes.len() * 2 / 3], "truncated.tar")?;
    push("tampered.tar", &tampered(&good_bytes), "")?;
    let before = admin.json(&["images"])?;
    for (name, layer) in evil_layers() {
        let path = directory.path().join(name);
        let image = crate::tar::docker_archive(&format!("evil-{name}"), world.arch(), &layer);
        std::fs::write(&path, image).map_err(Failure::file("write", &path))?;
        refused_somewhere(world, &path, &format!("evil-{name}"))?;
    }
    let after = admin.json(&["images"])?;
    let count = |list: &serde_json::Value| list.as_array().map_or(0, Vec::len);
    ensure(count(&after) >= count(&before), || "images got lost".into())
}

/// One byte in the middle of the largest part flipped: a layer no longer matches its digest.
fn tampered(good: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 0x55;
    }
    bytes
}

fn evil_layers() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("dotdot", Tar::new().file("../../escaped", b"x").finish()),
        ("absolute-link", Tar::new().symlink("out", "/").file("out/escaped", b"x").finish()),
        ("device", Tar::new().device("dev-sda", 8, 0).finish()),
        ("boast", Tar::new().boast("endless").finish()),
        ("hard-link", Tar::new().hard_link("passwd", "../../../etc/passwd").finish()),
    ]
}

/// An evil image is refused when it is pushed, or at the latest when it should run. Links may also be kept inside the
/// container's root: then it runs and nothing has escaped, which its missing program shows.
fn refused_somewhere(world: &dyn World, path: &Path, image: &str) -> Result<(), Failure> {
    let admin = world.admin();
    let pushed = admin.run(&["image", "push", &path.display().to_string()])?;
    if pushed.code == 0 {
        let ran = admin.run(&["run", "--rm", image, "/bin/true"])?;
        ensure(ran.code != 0 && !ran.stderr.trim().is_empty(), || format!("an evil image runs: {ran:?}"))?;
        for view in containers(admin)? {
            admin.ok(&["rm", "-f", &view.name])?;
        }
        admin.ok(&["rmi", image])?;
    }
    wait_for_nodes(world, SOON)
}

/// Strangers who speak no Wherry, or stop in the middle.
pub(super) fn garbage(world: &mut dyn World) -> Result<(), Failure> {
    for port in [2020, 2021] {
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], &[0xff; 4096], b""] {
            poke(world, port, bytes)?;
        }
        // More at once than may be served, all silent.
        let address = (world.broker(), port);
        let silent: Vec<TcpStream> = (0..64).filter_map(|_| TcpStream::connect(address).ok()).collect();
        until("an answer beside strangers", SOON, || world.admin().ok(&["ps"]).map_err(|e| e.to_string()))?;
        drop(silent);
    }
    wait_for_nodes(world, SOON)?;
    world.admin().run(&["run", "--rm", "client", "true"])?.expect_code(0).map(drop)
}

fn poke(world: &dyn World, port: u16, bytes: &[u8]) -> Result<(), Failure> {
    let connected = TcpStream::connect((world.broker(), port));
    let mut stream = connected.map_err(Failure::io(format!("reach the broker's port {port}")))?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).map_err(Failure::io("set a time limit"))?;
    // The broker may hang up while we still talk: that is what it should do.
    drop(stream.write_all(bytes));
    let mut answer = Vec::new();
    drop(stream.take(4096).read_to_end(&mut answer));
    let text = String::from_utf8_lossy(&answer);
    ensure(!text.contains("panicked"), || format!("port {port} answers {text}"))
}
