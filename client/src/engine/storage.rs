//! Images that podman, buildah and skopeo share, through one of their programs.
use super::{EngineError, Spool, words};
use crate::error::ClientError;
use std::io;
use std::process::Stdio;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, Command};

/// Bytes of a program's error messages that are kept: the last ones.
const MAX_WORDS_BYTES: usize = 16 * 1024;
/// Bytes read at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// Writes the image `name` into `spool`. podman is asked first: where it runs in a virtual machine, it alone can reach it.
pub(super) async fn save(name: &str, spool: &mut Spool, progress: impl Fn(u64)) -> Result<(), ClientError> {
    let podman: [&str; 5] = ["save", "--quiet", "--format", "docker-archive", name];
    let source = format!("containers-storage:{name}");
    let skopeo = ["copy", "--quiet", source.as_str(), &destination(name)].map(str::to_owned);
    let podman = podman.map(str::to_owned);
    for (program, arguments) in [("podman", podman.as_slice()), ("skopeo", skopeo.as_slice())] {
        match start(program, arguments) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(program, name, error.to_string().as_bytes()).into()),
            Ok(child) => return copy(program, name, child, spool, progress).await,
        }
    }
    Err(EngineError::NoProgram.into())
}

/// Docker's old archive: layers as they are, unpacked, so that they are the same whichever tool saved them. It can hold a
/// name with a tag, and nothing else.
fn destination(name: &str) -> String {
    let archive = "docker-archive:/dev/stdout";
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.contains(':') {
        _ if name.contains('@') || name.starts_with("sha256:") => archive.into(),
        true => format!("{archive}:{name}"),
        false if last.bytes().all(|b| b.is_ascii_hexdigit()) => archive.into(),
        false => format!("{archive}:{name}:latest"),
    }
}

fn start(program: &str, arguments: &[String]) -> io::Result<Child> {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

async fn copy(
    program: &'static str,
    name: &str,
    mut child: Child,
    spool: &mut Spool,
    progress: impl Fn(u64),
) -> Result<(), ClientError> {
    let broken = |error: io::Error| failed(program, name, error.to_string().as_bytes());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let write = async {
        let Some(mut stdout) = stdout else { return Ok(()) };
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = stdout.read(&mut chunk).await.map_err(broken)?;
            if count == 0 {
                return Ok::<(), ClientError>(());
            }
            spool.write(chunk.get(..count).unwrap_or_default())?;
            progress(count as u64);
        }
    };
    let (text, ()) = tokio::try_join!(async { Ok(last_words(stderr).await) }, write)?;
    match child.wait().await.map_err(broken)?.success() {
        true => Ok(()),
        false => Err(failed(program, name, &text).into()),
    }
}

/// The end of what a program complains. All of it is read, so that the program is not held up.
async fn last_words(stderr: Option<ChildStderr>) -> Vec<u8> {
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    let Some(mut stderr) = stderr else { return text };
    while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
        text.extend_from_slice(chunk.get(..count).unwrap_or_default());
        text.drain(..text.len().saturating_sub(MAX_WORDS_BYTES));
    }
    text
}

fn failed(program: &'static str, name: &str, text: &[u8]) -> EngineError {
    EngineError::Program { program, name: name.to_owned(), message: words(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_carries_the_name_if_it_can() {
        for (name, shown) in [
            ("web", ":web:latest"),
            ("localhost:5000/web", ":localhost:5000/web:latest"),
            ("web:1", ":web:1"),
            ("web@sha256:12", ""),
            ("sha256:12", ""),
            ("0123abcd", ""),
        ] {
            assert_eq!(destination(name), format!("docker-archive:/dev/stdout{shown}"));
        }
    }
}
