//! The SSH server in front of a container, as OpenSSH's own programs see it.
use super::view::wait_for_state;
use crate::cli::{Background, Outcome, Wherry};
use crate::failure::{Failure, ensure};
use crate::http::{free_port, get};
use crate::wait::until;
use crate::world::World;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);
/// Enough for many packets and windows of SSH.
const LARGE_BYTES: usize = 6 * 1024 * 1024;

/// A listening `wherry ssh`, and how to get to it.
struct Bridge {
    background: Background,
    config: String,
    port: String,
}

impl Bridge {
    fn start(person: &Wherry, container: &str) -> Result<Self, Failure> {
        let background = person.start(&["--json", "ssh", container])?;
        let line = until("the line of `wherry ssh`", SOON, || match background.stdout() {
            text if text.contains('\n') => Ok(text),
            _ => Err(background.stderr()),
        })?;
        let told: serde_json::Value = serde_json::from_str(line.lines().next().unwrap_or_default())
            .map_err(|error| Failure::Unexpected(format!("`wherry ssh` printed {line}: {error}")))?;
        let word = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
        let address = word("address");
        let port = address.strip_prefix("127.0.0.1:").map(str::to_owned);
        let port = port.ok_or_else(|| Failure::Unexpected(format!("it listens on {address}")))?;
        Ok(Self { background, config: word("config"), port })
    }

    /// `ssh`, with what comes before the host.
    fn ssh(&self, person: &Wherry, options: &[&str], command: &[&str]) -> Result<Outcome, Failure> {
        person
            .program("ssh")
            .run(&[&["-F", &self.config, "-p", &self.port], options, &[HOST], command].concat())
    }

    /// A line of shell in which $ssh and $scp are these programs.
    fn script(&self, person: &Wherry, script: &str) -> Result<Outcome, Failure> {
        let Self { config, port, .. } = self;
        let words = format!("ssh='ssh -F {config} -p {port}'; scp='scp -q -F {config} -P {port}'\n{script}");
        person.program("sh").run(&["-ec", &words])
    }
}

const HOST: &str = "bridge.wherry";

pub(super) fn bridge(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    admin.refused(&["ssh", "nobody"], "nobody")?;
    admin.ok(&["run", "-d", "--name", "box", "client", "sleep", "1d"])?;
    admin.ok(&["run", "-d", "--name", "web", "web"])?;
    wait_for_state(admin, "box", "running", SOON)?;
    wait_for_state(admin, "web", "running", SOON)?;
    let files = tempfile::tempdir().map_err(Failure::io("make a temporary directory"))?;
    own_key(admin)?;
    let bridge = Bridge::start(admin, "box")?;
    admin.refused(&["ssh", "--port", &bridge.port, "box"], &bridge.port)?;
    commands(admin, &bridge)?;
    slow_readers(admin, &bridge, files.path())?;
    terminal(admin, &bridge)?;
    copies(admin, &bridge, files.path())?;
    strangers(admin, &bridge, files.path())?;
    let web = Bridge::start(admin, "web")?;
    without_shell(admin, &web, files.path())?;
    web.background.interrupt()?.expect_code(0)?;
    by_name(admin)?;
    removed(admin, bridge)?;
    admin.ok(&["rm", "-f", "web"]).map(drop)
}

/// A key pair of this person's own, as ssh-keygen makes it by default.
fn own_key(admin: &Wherry) -> Result<(), Failure> {
    let directory = admin.home().join(".ssh");
    std::fs::create_dir_all(&directory).map_err(Failure::file("make", &directory))?;
    make_key(admin, &directory.join("id_ed25519"))
}

fn make_key(admin: &Wherry, path: &Path) -> Result<(), Failure> {
    let path = path.display().to_string();
    if Path::new(&path).exists() {
        return Ok(());
    }
    admin.program("ssh-keygen").ok(&["-q", "-t", "ed25519", "-N", "", "-f", &path]).map(drop)
}

/// Exit codes, streams, signals, users, the environment.
fn commands(admin: &Wherry, bridge: &Bridge) -> Result<(), Failure> {
    let failing = bridge.ssh(admin, &[], &["echo out; echo err >&2; exit 7"])?.expect_code(7)?;
    ensure(failing.stdout == "out\n" && failing.stderr == "err\n", || format!("streams: {failing:?}"))?;
    bridge.script(admin, "printf 'one\\ntwo\\n' | $ssh bridge.wherry wc -l")?.expect_stdout("2")?;
    let quoting = bridge.ssh(admin, &[], &["printf", "'%s|'", "'a  b'", "c"])?.expect_code(0)?;
    ensure(quoting.stdout == "a  b|c|", || format!("words: {quoting:?}"))?;
    // OpenSSH tells a signal of the remote program by 255.
    bridge.ssh(admin, &[], &["kill -KILL $$"])?.expect_code(255)?;
    bridge.ssh(admin, &["-l", "1234"], &["id -u"])?.expect_stdout("1234\n")?;
    bridge.ssh(admin, &["-o", "SetEnv COLOUR=blue"], &["echo $COLOUR"])?.expect_stdout("blue\n")?;
    let nobody = bridge.ssh(admin, &["-l", "no-such-user"], &["true"])?.expect_code(127)?;
    ensure(nobody.stderr.contains("no-such-user"), || format!("it does not say who: {nobody:?}"))?;
    // Many at once, over one connection and over several.
    let many = "for i in 1 2 3 4 5 6 7 8; do $ssh bridge.wherry echo number $i & done; wait";
    let many = bridge.script(admin, many)?.expect_code(0)?;
    ensure(many.stdout.matches("number").count() == 8, || format!("eight at once: {many:?}"))?;
    let large = format!("head -c {LARGE_BYTES} /dev/zero | $ssh bridge.wherry 'cat; sleep 0.2' | wc -c");
    bridge.script(admin, &large)?.expect_stdout(&LARGE_BYTES.to_string())?;
    Ok(())
}

/// Programs that do not read, and people who do not: neither keeps others waiting, nor themselves for ever.
fn slow_readers(admin: &Wherry, bridge: &Bridge, directory: &Path) -> Result<(), Failure> {
    let paused = "head -c 40000000 /dev/zero | $ssh bridge.wherry cat | (sleep 2; wc -c)";
    bridge.script(admin, paused)?.expect_stdout("40000000")?;
    let control = directory.join("control");
    let beside = format!(
        "shared=\"$ssh -S {} bridge.wherry\"\n\
         $ssh -S {} -fNM bridge.wherry\n\
         yes | $shared 'exec sleep 1000' & sleep 2\n\
         $shared echo quick\n\
         head -c 300000 /dev/zero | $shared 'cat >/dev/null; echo and more'\n\
         kill $!; $ssh -S {} -O exit bridge.wherry",
        control.display(),
        control.display(),
        control.display()
    );
    bridge.script(admin, &beside)?.expect_stdout("quick\nand more\n").map(drop)
}

fn terminal(admin: &Wherry, bridge: &Bridge) -> Result<(), Failure> {
    let words = ["-F", &bridge.config, "-p", &bridge.port, HOST];
    let mut shell = admin.program("ssh").in_terminal(&words, 33, 99)?;
    shell.expect("# ", SOON)?;
    shell.press("busybox stty size; echo $TERM; echo over$((6 * 7))there\r")?;
    for text in ["33 99", "xterm", "over42there"] {
        shell.expect(text, SOON)?;
    }
    shell.resize(44, 111)?;
    until("the new size", SOON, || {
        shell.press("busybox stty size\r").map_err(|error| error.to_string())?;
        shell.expect("44 111", Duration::from_secs(2)).map_err(|error| error.to_string())
    })?;
    shell.press("sleep 1000; echo inter$((1 + 1))rupted\r")?;
    std::thread::sleep(Duration::from_secs(1));
    shell.press("\x03")?;
    shell.press("echo still$((2 + 2))here\r")?;
    shell.expect("still4here", SOON)?;
    shell.press("exit 7\r")?;
    shell.expect_code(7, SOON)
}

/// scp and sftp, there and back.
fn copies(admin: &Wherry, bridge: &Bridge, directory: &Path) -> Result<(), Failure> {
    let tree = directory.join("tree");
    std::fs::create_dir_all(tree.join("below")).map_err(Failure::file("make", &tree))?;
    let large: Vec<u8> = (0..LARGE_BYTES).map(|index| (index % 251) as u8).collect();
    for (name, bytes) in [("large", large.as_slice()), ("below/small one", b"small"), ("below/empty", b"")] {
        std::fs::write(tree.join(name), bytes).map_err(Failure::file("write", &tree))?;
    }
    let dir = directory.display();
    bridge
        .script(
            admin,
            &format!(
                "$scp -r -p {dir}/tree bridge.wherry:/tmp/\n\
             $ssh bridge.wherry 'cd /tmp/tree && sha256sum large && cat \"below/small one\"'\n\
             $scp -r bridge.wherry:/tmp/tree {dir}/back\n\
             diff -r {dir}/tree {dir}/back && echo same"
            ),
        )?
        .expect_code(0)?
        .expect_stdout("same\n")?;
    let batch = directory.join("batch");
    let mut lines = String::new();
    for line in [
        "cd /tmp",
        "mkdir made",
        "put tree/large made/copy",
        "rename made/copy made/renamed",
        "symlink renamed made/link",
        "chmod 600 made/renamed",
        "ls -l made",
        "get made/link got",
        "-get /proc/1/mem refused",
        "rm made/link",
        "rm made/renamed",
        "rmdir made",
        "df /tmp",
    ] {
        writeln!(lines, "{line}").map_err(|error| Failure::Unexpected(error.to_string()))?;
    }
    std::fs::write(&batch, lines).map_err(Failure::file("write", &batch))?;
    let sftp = format!(
        "cd {dir}; sftp -q -F {} -P {} -b batch bridge.wherry && cmp tree/large got",
        bridge.config, bridge.port
    );
    let done = admin.program("sh").run(&["-ec", &sftp])?.expect_code(0)?;
    let listed =
        |word: &str| done.stdout.lines().any(|line| line.contains(word) && line.ends_with("renamed"));
    ensure(listed("-rw-------"), || format!("`ls -l` of sftp: {done:?}"))?;
    bridge.ssh(admin, &[], &["ls /tmp/made"])?;
    let left = bridge.ssh(admin, &[], &["ls /tmp"])?.expect_code(0)?;
    ensure(!left.stdout.contains("made"), || format!("sftp removed nothing: {left:?}"))
}

/// Who may not log in, and what is not to be had.
fn strangers(admin: &Wherry, bridge: &Bridge, directory: &Path) -> Result<(), Failure> {
    let login = |key: &Path, command: &str| {
        let key = key.display().to_string();
        let port = ["-p", &bridge.port, "127.0.0.1", command];
        let trusting =
            ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"];
        let options =
            ["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-i", &key, "-l", "wherry"];
        admin.program("ssh").run(&[&options[..], &trusting, &port].concat())
    };
    let stranger = directory.join("stranger");
    make_key(admin, &stranger)?;
    let refused = login(&stranger, "true")?.expect_code(255)?;
    ensure(refused.stderr.contains("Permission denied (publickey)"), || format!("a stranger: {refused:?}"))?;
    login(&admin.home().join(".ssh/id_ed25519"), "echo mine")?.expect_stdout("mine\n")?;
    let remote = ["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"];
    bridge.ssh(admin, &remote, &["true"])?.expect_code(255)?;
    let agent = bridge.ssh(admin, &["-A"], &["echo agent:$SSH_AUTH_SOCK"])?;
    ensure(agent.stdout == "agent:\n", || format!("an agent is forwarded: {agent:?}"))?;
    let other = bridge.ssh(admin, &["-W", "10.0.0.1:2020"], &[])?.expect_code(255)?;
    ensure(other.stderr.contains("prohibited"), || format!("a port of another machine: {other:?}"))?;
    let subsystem = bridge.ssh(admin, &["-s"], &["netconf"])?;
    ensure(subsystem.code != 0, || format!("an unknown subsystem: {subsystem:?}"))?;
    let port: u16 = bridge.port.parse().unwrap_or_default();
    for garbage in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0xff; 70_000], b"SSH-2.0-x\r\n\xff\xff\xff\xff\xff\xff"]
    {
        let failed = || Failure::io("talk to the bridge");
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(failed())?;
        // It may hang up in the middle.
        stream.write_all(garbage).ok();
        stream.set_read_timeout(Some(SOON)).map_err(failed())?;
        stream.read_to_end(&mut Vec::new()).ok();
    }
    bridge.ssh(admin, &[], &["echo still here"])?.expect_stdout("still here\n").map(drop)
}

/// An image that has no shell: sftp and ports all the same.
fn without_shell(admin: &Wherry, web: &Bridge, directory: &Path) -> Result<(), Failure> {
    let shell = web.ssh(admin, &[], &["true"])?.expect_code(127)?;
    ensure(shell.stderr.contains("web has no shell"), || format!("no shell: {shell:?}"))?;
    let dir = directory.display();
    let script = format!(
        "echo '<html>ours' >{dir}/ours; $scp {dir}/ours bridge.wherry:/tmp/ours; $scp bridge.wherry:/tmp/ours {dir}/again; cmp {dir}/ours {dir}/again"
    );
    web.script(admin, &script)?.expect_code(0)?;
    let port = free_port()?;
    let forward = format!("{port}:localhost:80");
    let mut forwarding =
        admin.program("ssh").start(&["-F", &web.config, "-p", &web.port, "-N", "-L", &forward, HOST])?;
    let page = until("the page through ssh -L", SOON, || {
        get((Ipv4Addr::LOCALHOST, port).into())
            .map_err(|error| format!("{error}; {}", forwarding.stderr()))
            .and_then(|page| if page.contains(" 200 ") { Ok(page) } else { Err(page) })
    })?;
    ensure(page.len() > 50, || format!("the page is {page}"))?;
    forwarding.kill().map(drop)
}

/// Without a bridge that listens: by the name that the written configuration has for each container.
fn by_name(admin: &Wherry) -> Result<(), Failure> {
    let told = admin.run(&["ssh", "--config"])?.expect_code(0)?;
    let path = told.stdout.trim().strip_prefix("Include \"").and_then(|rest| rest.strip_suffix('"'));
    let config = path.ok_or_else(|| told.failure("should have given an Include line"))?;
    let locations = admin.json(&["locations"])?;
    let name = locations[0]["name"].as_str().unwrap_or_default();
    let ssh = admin.program("ssh");
    let host = format!("box.{name}.wherry");
    ssh.run(&["-F", config, &host, "echo by name; exit 3"])?.expect_code(3)?.expect_stdout("by name\n")?;
    let missing = ssh.run(&["-F", config, &format!("nobody.{name}.wherry"), "true"])?.expect_code(255)?;
    ensure(missing.stderr.contains("wherry: ") && missing.stderr.contains("nobody"), || {
        format!("a container that is not there: {missing:?}")
    })
}

/// A session ends with its container, and what comes after it is told why there is none.
fn removed(admin: &Wherry, bridge: Bridge) -> Result<(), Failure> {
    let words = ["-F", &bridge.config, "-p", &bridge.port, HOST, "echo waiting; sleep 1000"];
    let mut session = admin.program("ssh").start(&words)?;
    until("a session", SOON, || match session.stdout() {
        text if text.contains("waiting") => Ok(()),
        _ => Err(session.stderr()),
    })?;
    admin.ok(&["rm", "-f", "box"])?;
    let ended =
        session.wait(SOON)?.ok_or_else(|| Failure::Unexpected("a session outlives its container".into()))?;
    ensure(ended.code == 255, || format!("a session whose container is removed: {ended:?}"))?;
    let late = bridge.ssh(admin, &[], &["true"])?;
    ensure(late.code != 0 && late.stderr.contains("wherry: "), || {
        format!("no container any more: {late:?}")
    })?;
    bridge.background.interrupt()?.expect_code(0).map(drop)
}
