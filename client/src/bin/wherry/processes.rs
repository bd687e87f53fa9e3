//! `run`, `exec`, `attach`: commands that give this terminal to a process and end with its exit code.
use crate::boot_files;
use crate::context::{CliError, Context};
use crate::pump::{self, End, Wiring};
use crate::run_flags::{Environment, Run};
use crate::{output, terminal, view};
use clap::Args;
use std::time::Duration;
use wherry_client::{ClientError, Container};
use wherry_protocol::message::{
    ContainerInfo, ContainerState, ExecSpec, ExitStatus, LogQuery, Media, Setting,
};
use wherry_protocol::{ErrorCode, WireError};

/// Exit codes of `run` and `exec` for failures that are not the process's own, as docker has them.
const FAILED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// How long the broker may take to hear of an end that we know of.
const SETTLING: Duration = Duration::from_secs(5);

/// `wherry exec`
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Send standard input to it.
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal.
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    environment: Environment,
    /// Working directory; the container's otherwise.
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
    /// User, and group; the container's otherwise.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Container (name or id), then the command and its arguments, with or without -- between.
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, allow_hyphen_values = true,
          value_names = ["CONTAINER", "COMMAND"])]
    container_and_command: Vec<String>,
}

/// `wherry attach`
#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Do not send standard input.
    #[arg(long)]
    no_stdin: bool,
    /// Name or id.
    container: String,
}

/// The exit code for a process that could not be started. The node's message names the step and the system's error.
fn start_code(error: &WireError) -> u8 {
    let text = error.message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    match error.code {
        ErrorCode::StartFailed if says(&["no such program"]) => NOT_FOUND,
        ErrorCode::StartFailed
            if says(&["is not executable", "is not a program for", "interpreter or loader"]) =>
        {
            NOT_EXECUTABLE
        }
        _ => FAILED,
    }
}

fn process_error(error: CliError) -> CliError {
    let code = match &error {
        CliError::Client(ClientError::Refused(error)) => start_code(error),
        _ => FAILED,
    };
    error.with_code(code)
}

fn needs_terminal(interactive: bool, tty: bool) -> Result<(), CliError> {
    match interactive && tty && !terminal::is_interactive() {
        true => Err(CliError::Other(
            "-it needs a terminal, but standard input is none: leave out -t to send it a file or pipe".into(),
        )),
        false => Ok(()),
    }
}

/// Creates a container and, unless detached, stays with it to its end.
pub(crate) async fn run(context: &Context, args: Run) -> Result<u8, CliError> {
    let image = args.image()?;
    let files = boot_files::pack(&args.files).map_err(|error| error.with_code(FAILED))?;
    let result = async {
        if !args.detach {
            needs_terminal(args.interactive, args.tty)?;
        }
        let location = context.location()?;
        let mut request = args.request(location.image_name(&image).await?)?;
        if !args.files.is_empty() {
            let archive = location.put_bytes(files, Media::LayerTar).await?;
            request.spec.settings.push(Setting::Files(archive));
        }
        let (container, _) = location.run(request).await?;
        let started = container.wait_started().await?;
        if let ContainerState::Failed(error) = &started.state {
            let error = CliError::Client(ClientError::Refused(error.clone()));
            discard(&container, &args).await;
            return Err(error);
        }
        if args.detach {
            print_started(context, &started)?;
            return Ok(0);
        }
        let wiring = Wiring { stdin: args.interactive, tty: args.tty, json: context.json };
        let end = stay(&container, &started, wiring).await;
        if !matches!(end, Ok(End::Detached)) {
            discard(&container, &args).await;
        }
        finish(end?, &started)
    };
    result.await.map_err(process_error)
}

fn print_started(context: &Context, started: &ContainerInfo) -> Result<(), CliError> {
    match context.json {
        true => output::json(&view::Container::of(started)),
        false => output::line(&started.id.to_string()),
    }
}

/// With --rm in the foreground: gone once it has ended. That it may have gone by itself is no failure.
async fn discard(container: &Container, args: &Run) {
    if args.rm && !args.detach {
        match container.remove(true).await {
            Err(error) if error.code() != Some(ErrorCode::NotFound) => {
                eprintln!("wherry: the container could not be removed: {error}");
            }
            _ => {}
        }
    }
}

/// Attaches until the end. What ended before we came has left its output in the log.
async fn stay(container: &Container, started: &ContainerInfo, wiring: Wiring) -> Result<End, CliError> {
    if !started.state.is_finished() {
        match container.attach().await {
            Ok(process) => {
                let end = pump::connect(process, wiring).await?;
                return match end {
                    End::Closed => ended(container).await,
                    End::Exited(_) => {
                        // The node told us first; whoever looks after us must not see it running. It may be gone by now.
                        tokio::time::timeout(SETTLING, container.wait_ended()).await.ok();
                        Ok(end)
                    }
                    End::Detached | End::Interrupted(_) => Ok(end),
                };
            }
            Err(error) if error.code() == Some(ErrorCode::WrongState) => {}
            Err(error) => return Err(error.into()),
        }
    }
    pump::print(container.logs(LogQuery::default()).await?, wiring.json).await?;
    ended(container).await
}

async fn ended(container: &Container) -> Result<End, CliError> {
    match container.wait_ended().await?.state {
        ContainerState::Exited { status, .. } => Ok(End::Exited(status)),
        ContainerState::Failed(error) => Err(ClientError::Refused(error).into()),
        ContainerState::Pending
        | ContainerState::Preparing
        | ContainerState::Running { .. }
        | ContainerState::Restarting { .. } => Ok(End::Closed),
    }
}

/// The program's exit code for an end.
fn finish(end: End, info: &ContainerInfo) -> Result<u8, CliError> {
    match end {
        End::Exited(status) => {
            if status == ExitStatus::OutOfMemory {
                eprintln!("wherry: {} was killed: it reached its memory limit", info.name);
            }
            Ok(status.shell_code())
        }
        End::Closed => {
            Err(CliError::Other(format!("the stream of {} ended without an exit code", info.name)))
        }
        End::Detached => {
            eprintln!("wherry: detached from {}; `wherry attach {}` returns to it", info.name, info.name);
            Ok(0)
        }
        End::Interrupted(signal) => Ok(signal.saturating_add(128)),
    }
}

/// Runs a process in a running container.
pub(crate) async fn exec(context: &Context, args: Exec) -> Result<u8, CliError> {
    let result = async {
        let (name, command) = split(&args.container_and_command)?;
        needs_terminal(args.interactive, args.tty)?;
        let container = context.container(name)?;
        let spec = ExecSpec {
            command,
            env: args.environment.variables()?,
            workdir: args.workdir.clone(),
            user: args.user.clone(),
            tty: args.tty.then(terminal::size),
            stdin: args.interactive,
        };
        let process = container.exec(spec).await?;
        let wiring = Wiring { stdin: args.interactive, tty: args.tty, json: context.json };
        match pump::connect(process, wiring).await? {
            End::Exited(status) => Ok(status.shell_code()),
            End::Interrupted(signal) => Ok(signal.saturating_add(128)),
            End::Detached => Ok(0),
            End::Closed => Err(CliError::Other(format!("the stream of {name} ended without an exit code"))),
        }
    };
    result.await.map_err(process_error)
}

fn split(words: &[String]) -> Result<(&str, Vec<String>), CliError> {
    let missing = || CliError::Usage("no command: use wherry exec CONTAINER COMMAND".into());
    let (name, command) = words.split_first().ok_or_else(missing)?;
    let command = match command.split_first() {
        Some((dashes, rest)) if dashes == "--" => rest,
        _ => command,
    };
    if command.is_empty() { Err(missing()) } else { Ok((name, command.to_vec())) }
}

/// Connects this terminal to a running container.
pub(crate) async fn attach(context: &Context, args: &Attach) -> Result<u8, CliError> {
    let container = context.container(&args.container)?;
    let info = container.inspect().await?;
    let process = container.attach().await?;
    let stdin = info.spec.stdin_open && !args.no_stdin;
    let wiring = Wiring { stdin, tty: info.spec.tty, json: context.json };
    let end = match pump::connect(process, wiring).await? {
        End::Closed => ended(&container).await?,
        end => end,
    };
    finish(end, &info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_to_start_have_docker_s_codes() {
        for (code, text, expected) in [
            (
                ErrorCode::StartFailed,
                "could not start: no such program 'x' in the image, check the command",
                127,
            ),
            (
                ErrorCode::StartFailed,
                "could not start: '/etc/passwd' is not executable, check the command",
                126,
            ),
            (ErrorCode::StartFailed, "could not start: '/x' is not a program for this node's processor", 126),
            (ErrorCode::StartFailed, "could not start: entering /x failed: No such file or directory", 125),
            (ErrorCode::StartFailed, "cannot mount /proc", 125),
            (ErrorCode::NotFound, "no image is called web: not found", 125),
        ] {
            assert_eq!(start_code(&WireError::new(code, text)), expected, "{text}");
        }
    }

    #[test]
    fn exec_words_split_with_and_without_dashes() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for text in ["web ls -l", "web -- ls -l"] {
            let words = words(text);
            assert_eq!(split(&words).unwrap(), ("web", vec!["ls".to_owned(), "-l".to_owned()]));
        }
        assert!(split(&words("web --")).is_err());
        assert!(split(&words("web")).is_err());
    }
}
