//! `pause`, `unpause`, `wake`, `diff`, `commit`: containers as they are now.
use crate::containers::{Done, each};
use crate::context::{CliError, Context};
use crate::{output, view};
use clap::Args;
use wherry_client::{Container, SnapshotNotes};
use wherry_protocol::message::{ChangesQuery, ContainerInfo, ContainerState, ImageName};

/// Longest path with its letter, in bytes: PATH_MAX and some.
const MAX_CHANGE_BYTES: usize = 8192;

/// `wherry pause`, `wherry unpause`, `wherry wake`
#[derive(Debug, Args)]
pub(crate) struct Several {
    /// Names or ids.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// `wherry diff`
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// Name or id.
    container: String,
}

/// `wherry commit`
#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// A sentence for the image's history.
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Who made it, for the image's history.
    #[arg(short, long, value_name = "TEXT")]
    author: Option<String>,
    /// Let the container go on meanwhile: files that it is writing may be caught half-way.
    #[arg(long)]
    no_pause: bool,
    /// Name or id.
    container: String,
    /// Name of the image.
    image: ImageName,
}

/// Freezes containers, or lets them go on.
pub(crate) async fn pause(context: &Context, args: Several, paused: bool) -> Result<u8, CliError> {
    each(context, &args.containers, |container| async move {
        container.pause(paused).await?;
        Ok(Done(if paused { "paused" } else { "unpaused" }))
    })
    .await
}

/// Starts the programs of containers that are asleep.
pub(crate) async fn wake(context: &Context, args: Several) -> Result<u8, CliError> {
    each(context, &args.containers, |container| async move { Ok(container.wake().await?) }).await
}

/// Prints what a container has changed in its files.
pub(crate) async fn diff(context: &Context, args: &Diff) -> Result<u8, CliError> {
    let mut changes = context.container(&args.container)?.changes(ChangesQuery::Names).await?;
    let (mut pending, mut all) = (Vec::new(), Vec::new());
    while let Some(bytes) = changes.next().await? {
        pending.extend_from_slice(&bytes);
        for change in take_changes(&mut pending)? {
            match context.json {
                true => all.push(change),
                false => print(&change)?,
            }
        }
    }
    if context.json {
        output::json(&all)?;
    }
    Ok(0)
}

fn print(change: &view::Change) -> Result<(), CliError> {
    let letter = match change.change {
        view::ChangeKind::Added => 'A',
        view::ChangeKind::Changed => 'C',
        view::ChangeKind::Deleted => 'D',
    };
    output::line(&format!("{letter} {}", output::printable(&change.path)))
}

/// Takes what is complete out of `bytes`: a letter, a path and a NUL each.
fn take_changes(bytes: &mut Vec<u8>) -> Result<Vec<view::Change>, CliError> {
    let nonsense = || CliError::Other("the node sent something else than names of files".into());
    let Some(end) = bytes.iter().rposition(|&byte| byte == 0) else {
        return if bytes.len() > MAX_CHANGE_BYTES { Err(nonsense()) } else { Ok(Vec::new()) };
    };
    let rest = bytes.split_off(end + 1);
    let complete = std::mem::replace(bytes, rest);
    let lines = complete.split(|&byte| byte == 0).filter(|line| !line.is_empty());
    let parse = |line: &[u8]| {
        let (letter, path) = line.split_first().ok_or_else(nonsense)?;
        let change = match letter {
            b'A' => view::ChangeKind::Added,
            b'C' => view::ChangeKind::Changed,
            b'D' => view::ChangeKind::Deleted,
            _ => return Err(nonsense()),
        };
        Ok(view::Change { change, path: String::from_utf8_lossy(path).into_owned() })
    };
    lines.map(parse).collect()
}

/// Makes an image of a container.
pub(crate) async fn commit(context: &Context, args: Commit) -> Result<u8, CliError> {
    let container = context.container(&args.container)?;
    let notes = SnapshotNotes { comment: args.message, author: args.author };
    let held = !args.no_pause && hold(&container).await?;
    let made = container.snapshot(&args.image, &notes).await;
    if held && let Err(error) = container.pause(false).await {
        eprintln!("wherry: {} is still paused: {error}; `wherry unpause {0}` lets it go on", args.container);
    }
    let info = made?;
    match context.json {
        true => output::json(&view::Image::of(&info))?,
        false => output::line(&format!("{} {}", info.name, info.id))?,
    }
    Ok(0)
}

/// Pauses a container that runs; whether it was this that paused it.
async fn hold(container: &Container) -> Result<bool, CliError> {
    let info: ContainerInfo = container.inspect().await?;
    let running = matches!(info.state, ContainerState::Running { .. });
    if !running || info.condition.paused || info.condition.asleep {
        return Ok(false);
    }
    container.pause(true).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_in_pieces() {
        let mut bytes = b"A/new\0C/etc\0D/o".to_vec();
        let found = take_changes(&mut bytes).unwrap();
        let shown: Vec<_> = found.iter().map(|change| (change.change, change.path.as_str())).collect();
        assert_eq!(shown, [(view::ChangeKind::Added, "/new"), (view::ChangeKind::Changed, "/etc")]);
        assert_eq!(bytes, b"D/o");
        bytes.extend(b"ld\0");
        assert_eq!(take_changes(&mut bytes).unwrap()[0].path, "/old");
        assert!(bytes.is_empty() && take_changes(&mut bytes).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_change_is_refused() {
        assert!(take_changes(&mut b"X/new\0".to_vec()).is_err());
        assert!(take_changes(&mut vec![b'A'; MAX_CHANGE_BYTES + 1]).is_err());
    }
}
