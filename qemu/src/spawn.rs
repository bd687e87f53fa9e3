//! Starting QEMU so that it does not outlive us.
use std::path::Path;
use std::sync::OnceLock;
use std::sync::mpsc;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

type Job = (Command, Handle, oneshot::Sender<std::io::Result<Child>>);

/// util-linux's wrapper that asks the kernel to kill the program when its parent is gone (prctl(2), PR_SET_PDEATHSIG).
const SETPRIV: &str = "/usr/bin/setpriv";

/// A command that dies with this process where the system can do that (Linux with util-linux), else a plain one.
pub(crate) fn bound_to_us(program: &str) -> Command {
    let mut command = if Path::new(SETPRIV).exists() {
        let mut command = Command::new(SETPRIV);
        command.args(["--pdeathsig", "KILL", "--", program]);
        command
    } else {
        Command::new(program)
    };
    // A process group of its own: ctrl-C in the terminal is for us, and we end the machines in order.
    command.process_group(0).kill_on_drop(true);
    command
}

/// Spawns from one thread that lives as long as the process: PR_SET_PDEATHSIG fires when the *thread* that forked
/// ends, and those of a runtime may.
pub(crate) async fn spawn(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, runtime, answer) in jobs {
                let _inside = runtime.enter();
                // The asker may have given up; then the child is dropped, which kills it.
                drop(answer.send(command.spawn()));
            }
        });
        sender
    });
    let (answer, child) = oneshot::channel();
    let gone = || std::io::Error::other("the spawning thread is gone");
    spawner.send((command, Handle::current(), answer)).map_err(|_| gone())?;
    child.await.map_err(|_| gone())?
}
