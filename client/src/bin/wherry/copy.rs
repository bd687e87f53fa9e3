//! `cp`: files out of a running container and into it, as tar archives that this program reads and writes, or passes on.
use crate::context::{CliError, Context};
use clap::Args;
use futures_util::future::{Either, select};
use std::io::{self, IsTerminal as _, Read, Write};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;
use wherry_client::{Input, Output};
use wherry_protocol::message::{Channel, CopySpec, ExitStatus, Frame};

/// Pieces of an archive between its thread and the network.
const PIECES: usize = 8;
/// Bytes of one piece.
const PIECE_BYTES: usize = 32 * 1024;
/// What a container says about a failure is told up to here, in bytes.
const MAX_WORDS: usize = 4096;

/// `wherry cp`
#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// A path here, CONTAINER:PATH, or - for a tar archive on standard input.
    from: String,
    /// The other one; - writes a tar archive to standard output. An existing directory takes what is copied into it;
    /// otherwise it is the new name.
    to: String,
}

/// Which way.
#[derive(Debug, PartialEq, Eq)]
enum Way<'a> {
    Out { container: &'a str, path: &'a str, to: &'a Path },
    In { from: &'a Path, container: &'a str, path: &'a str },
}

/// `web:/srv/index.html`; what begins like a path, or has a slash before the colon, is a path here.
fn remote(text: &str) -> Option<(&str, &str)> {
    let (container, path) = text.split_once(':')?;
    let plain = !container.is_empty() && !container.contains('/') && !container.starts_with('.');
    plain.then_some((container, path))
}

fn way(args: &Cp) -> Result<Way<'_>, CliError> {
    let usage = |text: String| Err(CliError::Usage(text));
    let way = match (remote(&args.from), remote(&args.to)) {
        (Some((container, path)), None) => Way::Out { container, path, to: Path::new(&args.to) },
        (None, Some((container, path))) => Way::In { from: Path::new(&args.from), container, path },
        (Some(_), Some(_)) => {
            return usage("between two containers nothing can be copied at once: copy it here first".into());
        }
        (None, None) => return usage("one of the two must be in a container, as in web:/srv".into()),
    };
    let (Way::Out { path, .. } | Way::In { path, .. }) = &way;
    if !path.starts_with('/') {
        return usage(format!("'{path}' is not an absolute path in the container"));
    }
    match &way {
        Way::Out { to, .. } if is_stream(to) && io::stdout().is_terminal() => {
            usage("an archive is not for a terminal: redirect standard output".into())
        }
        Way::In { from, .. } if is_stream(from) && io::stdin().is_terminal() => {
            usage("no archive comes from a terminal: redirect standard input".into())
        }
        Way::Out { .. } | Way::In { .. } => Ok(way),
    }
}

/// Whether a path here stands for standard input or output.
fn is_stream(path: &Path) -> bool {
    path == Path::new("-")
}

/// Copies files.
pub(crate) async fn cp(context: &Context, args: &Cp) -> Result<u8, CliError> {
    match way(args)? {
        Way::Out { container, path, to } => copy_out(context, container, path, to).await,
        Way::In { from, container, path } => copy_in(context, from, container, path).await,
    }
}

fn shown(path: &Path, error: &io::Error) -> CliError {
    let path = if is_stream(path) { "the archive".into() } else { path.display().to_string() };
    CliError::Other(format!("{path}: {error}"))
}

async fn copy_out(context: &Context, container: &str, path: &str, to: &Path) -> Result<u8, CliError> {
    let spec = CopySpec::Out { path: path.to_owned() };
    let process = context.container(container)?.copy(spec).await?;
    let (pieces, reader) = channel();
    let into = to.to_owned();
    let unpacking = tokio::task::spawn_blocking(move || {
        if is_stream(&into) { pass(reader, io::stdout().lock()) } else { unpack(reader, &into) }
    });
    let heard = listen(process.output, Some(pieces)).await?;
    let unpacked = unpacking.await.map_err(|error| CliError::Other(error.to_string()))?;
    // An archive that was cut off is no use to anybody; why it was says the container.
    heard.finish()?;
    unpacked.map(|()| 0).map_err(|error| shown(to, &error))
}

async fn copy_in(context: &Context, from: &Path, container: &str, path: &str) -> Result<u8, CliError> {
    let stream = is_stream(from);
    if !stream {
        // What is not here must not be found out by an empty archive.
        std::fs::symlink_metadata(from).map_err(|error| shown(from, &error))?;
    }
    let spec = CopySpec::In { path: path.to_owned() };
    let process = context.container(container)?.copy(spec).await?;
    let (pieces, mut reader) = channel();
    let source = from.to_owned();
    let packing = tokio::task::spawn_blocking(move || {
        let pieces = Pieces::new(pieces);
        if stream { pass(io::stdin().lock(), pieces) } else { pack(&source, pieces) }
    });
    let mut input = process.input;
    let (heard, all_sent) = {
        let listening = std::pin::pin!(listen(process.output, None));
        let sending = std::pin::pin!(send(&mut input, &mut reader.pieces));
        // What the container says ends it: nobody reads there any more.
        match select(listening, sending).await {
            Either::Left((heard, _)) => (heard, false),
            Either::Right(((), listening)) => (listening.await, true),
        }
    };
    // The thread must not wait for a reader that has gone.
    drop(reader);
    heard?.finish()?;
    if stream && !all_sent {
        // The archive has ended; whoever writes to our standard input need not have.
        return Ok(0);
    }
    let packed = packing.await.map_err(|error| CliError::Other(error.to_string()))?;
    packed.map(|()| 0).map_err(|error| shown(from, &error))
}

/// What the other side said.
struct Heard {
    words: String,
    status: Option<ExitStatus>,
}

impl Heard {
    fn finish(self) -> Result<(), CliError> {
        let words = self.words.trim().replace('\n', "; ");
        let said = crate::output::printable(&words);
        match self.status {
            Some(ExitStatus::Code(0)) => {
                if !said.is_empty() {
                    eprintln!("wherry: {said}");
                }
                Ok(())
            }
            Some(_) if !said.is_empty() => Err(CliError::Other(format!("in the container, {said}"))),
            Some(status) => Err(CliError::Other(format!("copying was ended in the container: {status}"))),
            None => Err(CliError::Other("the stream ended before everything was copied".into())),
        }
    }
}

async fn listen(mut from: Output, archive: Option<mpsc::Sender<Vec<u8>>>) -> Result<Heard, CliError> {
    let mut heard = Heard { words: String::new(), status: None };
    while let Some(frame) = from.next().await? {
        match frame {
            Frame::Data { channel: Channel::Stderr, bytes } if heard.words.len() < MAX_WORDS => {
                heard.words.push_str(&String::from_utf8_lossy(&bytes));
            }
            Frame::Data { channel: Channel::Stdout, bytes } => {
                if let Some(archive) = &archive
                    && archive.send(bytes).await.is_err()
                {
                    // It cannot be unpacked here; the thread says why.
                    heard.status = Some(ExitStatus::Code(0));
                    break;
                }
            }
            Frame::Exit(status) => {
                heard.status = Some(status);
                break;
            }
            Frame::Error(error) => return Err(wherry_client::ClientError::Refused(error).into()),
            Frame::Data { .. }
            | Frame::End(_)
            | Frame::Resize { .. }
            | Frame::Signal(_)
            | Frame::Dropped { .. }
            | Frame::Time(_) => {}
        }
    }
    Ok(heard)
}

/// A failure to send is not reported: the listening side learns of it too, and knows more.
async fn send(input: &mut Input, pieces: &mut mpsc::Receiver<Vec<u8>>) {
    while let Some(piece) = pieces.recv().await {
        if input.stdin(&piece).await.is_err() {
            return;
        }
    }
    input.end_stdin().await.unwrap_or_default();
}

fn channel() -> (mpsc::Sender<Vec<u8>>, Reader) {
    let (sender, pieces) = mpsc::channel(PIECES);
    (sender, Reader { pieces, piece: io::Cursor::new(Vec::new()) })
}

/// An archive that arrives in pieces, for a thread that reads it.
struct Reader {
    pieces: mpsc::Receiver<Vec<u8>>,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.piece.read(buffer)? {
                0 => match self.pieces.blocking_recv() {
                    Some(piece) => self.piece = io::Cursor::new(piece),
                    None => return Ok(0),
                },
                count => return Ok(count),
            }
        }
    }
}

/// An archive that a thread writes.
struct Pieces {
    pieces: mpsc::Sender<Vec<u8>>,
    held: Vec<u8>,
}

impl Pieces {
    fn new(pieces: mpsc::Sender<Vec<u8>>) -> Self {
        Self { pieces, held: Vec::with_capacity(PIECE_BYTES) }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE_BYTES - self.held.len());
        self.held.extend_from_slice(bytes.get(..count).unwrap_or_default());
        if self.held.len() == PIECE_BYTES {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.held, Vec::with_capacity(PIECE_BYTES));
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the container takes no more");
        self.pieces.blocking_send(piece).map_err(gone)
    }
}

/// Passes an archive on as it is.
fn pass(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    io::copy(&mut from, &mut to)?;
    to.flush()
}

/// Writes what is at `from` as an archive.
fn pack(from: &Path, out: impl Write) -> io::Result<()> {
    let real = if from.file_name().is_some() { from.to_owned() } else { from.canonicalize()? };
    let name = real.file_name().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mut archive = tar::Builder::new(out);
    archive.follow_symlinks(false);
    if std::fs::symlink_metadata(&real)?.is_dir() {
        archive.append_dir_all(&name, &real)?;
    } else {
        archive.append_path_with_name(&real, &name)?;
    }
    archive.into_inner()?.flush()
}

/// Unpacks an archive into the directory `to`, or, if there is none, as `to`. It comes from another machine: nothing of it
/// lands elsewhere.
fn unpack(mut from: impl Read, to: &Path) -> io::Result<()> {
    unpack_archive(&mut from, to)?;
    // What follows the archive's end is of no interest, but whoever sends it must not be cut off before its last words.
    io::copy(&mut from, &mut io::sink()).map(drop)
}

fn unpack_archive(from: impl Read, to: &Path) -> io::Result<()> {
    // Permissions as this person's files have them: no set-id programs of strangers.
    let mut archive = tar::Archive::new(from);
    if to.is_dir() {
        return archive.unpack(to);
    }
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(name) = to.file_name() else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no such directory"));
    };
    // Beside its place, so that giving it its name is one step.
    let waiting = tempfile::Builder::new().prefix(".wherry-").tempdir_in(parent)?;
    archive.unpack(waiting.path())?;
    let mut entries = std::fs::read_dir(waiting.path())?;
    match entries.next().transpose()? {
        Some(only) => std::fs::rename(only.path(), parent.join(name)),
        None => Err(io::Error::other("nothing came")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cp(from: &str, to: &str) -> Cp {
        Cp { from: from.into(), to: to.into() }
    }

    #[test]
    fn one_of_the_two_is_in_a_container() {
        let (out, into) = (cp("web:/srv", "here"), cp("./a:b", "c12:/tmp"));
        assert_eq!(way(&out).unwrap(), Way::Out { container: "web", path: "/srv", to: Path::new("here") });
        assert_eq!(way(&into).unwrap(), Way::In { from: Path::new("./a:b"), container: "c12", path: "/tmp" });
        for (from, to, words) in [
            ("a", "b", "one of the two"),
            ("web:/a", "web:/b", "between two containers"),
            ("web:a", "b", "not an absolute path"),
            ("a", "web:", "not an absolute path"),
            ("/x:/y", "./z", "one of the two"),
        ] {
            assert!(way(&cp(from, to)).unwrap_err().to_string().contains(words), "{from} {to}");
        }
    }

    #[test]
    fn what_is_packed_is_unpacked_under_either_name() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        std::fs::create_dir_all(at("tree/sub")).unwrap();
        std::fs::write(at("tree/sub/file"), "content").unwrap();
        std::os::unix::fs::symlink("/nowhere", at("tree/link")).unwrap();
        let archive = |name: &str| {
            let mut bytes = Vec::new();
            pack(&at(name), &mut bytes).unwrap();
            bytes
        };
        std::fs::create_dir(at("into")).unwrap();
        unpack(archive("tree").as_slice(), &at("into")).unwrap();
        unpack(archive("tree").as_slice(), &at("new")).unwrap();
        unpack(archive("tree/sub/file").as_slice(), &at("single")).unwrap();
        for path in ["into/tree/sub/file", "new/sub/file", "single"] {
            assert_eq!(std::fs::read(at(path)).unwrap(), b"content", "{path}");
        }
        assert_eq!(std::fs::read_link(at("new/link")).unwrap(), Path::new("/nowhere"));
        assert!(unpack(archive("tree").as_slice(), &at("no/such")).is_err());
    }

    #[test]
    fn an_archive_of_a_hostile_board_lands_nowhere_else() {
        let base = tempfile::tempdir().unwrap();
        let into = base.path().join("into");
        std::fs::create_dir(&into).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        archive.append_link(&mut link, "out", base.path()).unwrap();
        let mut file = tar::Header::new_gnu();
        file.set_size(1);
        file.set_mode(0o644);
        archive.append_data(&mut file, "out/escaped", &b"x"[..]).unwrap();
        assert!(unpack(archive.into_inner().unwrap().as_slice(), &into).is_err());
        assert!(!base.path().join("escaped").exists());
    }
}
