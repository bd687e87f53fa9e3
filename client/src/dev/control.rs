//! The process that owns a cluster, and how others talk to it: one JSON line there, one back, over a unix socket in a
//! private directory.
use super::cluster::{Cluster, Report};
use super::error::DevError;
use super::place::{Owner, Place};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use wherry_protocol::Name;
use wherry_qemu::{Faults, patience};

/// Longest line, in bytes: a report of 33 machines has some 10 000.
const MAX_LINE_BYTES: u64 = 256 * 1024;
/// How long a caller may take to say what it wants; the next one waits that long.
const LISTEN: Duration = Duration::from_secs(5);
/// How long the owner may take to do it: booting starts a QEMU, and the trial of KVM before it may take seconds.
const ANSWER: Duration = Duration::from_secs(60);

/// How often the owner looks whether its directory is still there.
const LOOK: Duration = Duration::from_secs(5);

/// What to do with a running cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Tell how it does.
    Status,
    /// Cut a machine's power.
    PowerCut {
        /// Which.
        machine: String,
    },
    /// Switch a machine on.
    Boot {
        /// Which.
        machine: String,
    },
    /// Unplug a machine from the LAN, or plug it in again.
    Plug {
        /// Which.
        machine: String,
        /// Plugged in afterwards.
        connected: bool,
    },
    /// Lose so many of a million frames on the LAN.
    Loss {
        /// How many.
        per_million: u32,
    },
    /// Switch everything off and end.
    Down,
}

/// Runs the cluster in `place` until it is told [`Command::Down`] or gets SIGTERM or SIGINT.
pub async fn run(place: &Place) -> Result<(), DevError> {
    let runtime = Runtime::create()?;
    let mut cluster = Cluster::open(place, &runtime.0.join("lan")).await?;
    let owner = Owner { pid: std::process::id(), runtime: runtime.0.clone() };
    let socket = owner.control_socket();
    let listener = UnixListener::bind(&socket).map_err(DevError::io("listen on", &socket))?;
    cluster.boot_all().await?;
    place.save_owner(&owner)?;
    let served = serve(&listener, &mut cluster).await;
    let stopped = cluster.shut_down().await;
    place.clear_owner();
    served.and(stopped)
}

/// Sockets need a short path, which a state directory may not have. Removed when dropped.
#[derive(Debug)]
struct Runtime(PathBuf);

impl Runtime {
    fn create() -> Result<Self, DevError> {
        let path = std::env::temp_dir().join(format!("wherry-dev-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(DevError::io("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // A leftover directory of dead sockets does no harm.
        drop(fs::remove_dir_all(&self.0));
    }
}

async fn serve(listener: &UnixListener, cluster: &mut Cluster) -> Result<(), DevError> {
    let here = cluster.place().directory().to_owned();
    let io = |source| DevError::io("serve", &here)(source);
    let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
    let mut look = tokio::time::interval(LOOK);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.map_err(io)?.0,
            _ = look.tick() => match cluster.place().exists() {
                true => continue,
                // Somebody has removed the directory: nobody could ever find and stop us any more.
                false => return Ok(()),
            },
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        match converse(stream, cluster).await {
            Ok(Some(Command::Down)) => return Ok(()),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a caller was not understood"),
        }
    }
}

/// Does what one caller wants; says what that was.
async fn converse(stream: UnixStream, cluster: &mut Cluster) -> std::io::Result<Option<Command>> {
    let mut stream = BufReader::new(stream);
    let line =
        tokio::time::timeout(LISTEN, read_line(&mut stream)).await.unwrap_or_else(|_| Ok(Vec::new()))?;
    let command: Command = match serde_json::from_slice(&line) {
        Ok(command) => command,
        Err(error) => {
            answer(&mut stream, &Err(format!("not understood: {error}"))).await?;
            return Ok(None);
        }
    };
    let result = obey(cluster, &command).await.map(|()| cluster.report()).map_err(|error| error.to_string());
    answer(&mut stream, &result).await?;
    Ok(Some(command))
}

async fn obey(cluster: &mut Cluster, command: &Command) -> Result<(), DevError> {
    match command {
        Command::Status | Command::Down => Ok(()),
        Command::PowerCut { machine } => cluster.power_cut(machine).await,
        Command::Boot { machine } => cluster.boot(machine).await,
        Command::Plug { machine, connected } => cluster.set_cut(machine, !connected),
        Command::Loss { per_million } => {
            cluster.set_faults(Faults { loss_per_million: *per_million });
            Ok(())
        }
    }
}

async fn read_line(stream: &mut BufReader<UnixStream>) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    stream.take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await?;
    Ok(line)
}

async fn answer(stream: &mut BufReader<UnixStream>, result: &Result<Report, String>) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(result)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await
}

/// Tells the owner of the cluster in `place`, called `name`, what to do.
pub async fn ask(place: &Place, name: &Name, command: &Command) -> Result<Report, DevError> {
    let owner = place.owner().ok_or_else(|| match place.exists() {
        true => DevError::NotRunning(name.clone()),
        false => DevError::Unknown(name.clone()),
    })?;
    let socket = owner.control_socket();
    let talk = call(&socket, command);
    match tokio::time::timeout(patience(ANSWER), talk).await {
        Ok(Ok(result)) => result.map_err(DevError::Refused),
        Ok(Err(_)) | Err(_) => Err(DevError::NoAnswer(name.clone())),
    }
}

async fn call(socket: &Path, command: &Command) -> std::io::Result<Result<Report, String>> {
    let mut stream = BufReader::new(UnixStream::connect(socket).await?);
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await?;
    Ok(serde_json::from_slice(&read_line(&mut stream).await?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_pinned() {
        for (command, line) in [
            (Command::Status, r#""status""#),
            (Command::PowerCut { machine: "broker".into() }, r#"{"power_cut":{"machine":"broker"}}"#),
            (Command::Loss { per_million: 5 }, r#"{"loss":{"per_million":5}}"#),
        ] {
            assert_eq!(serde_json::to_string(&command).unwrap(), line);
            assert_eq!(serde_json::from_str::<Command>(line).unwrap(), command);
        }
        assert!(serde_json::from_str::<Command>(r#"{"boot":{"machine":"a","more":1}}"#).is_err());
    }

    #[tokio::test]
    async fn asking_for_what_is_not_there_is_one_clear_sentence() {
        let root = tempfile::tempdir().unwrap();
        let name: Name = "gone".parse().unwrap();
        let place = Place::at(root.path().join("gone"));
        let error = ask(&place, &name, &Command::Status).await.unwrap_err();
        assert_eq!(error.to_string(), "there is no cluster 'gone'; start one with `wherry dev up gone`");
    }
}
