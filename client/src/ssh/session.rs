//! One session channel: what it asks for before it begins, then a process of the container and its streams.
use super::bridge::{Served, SshEvent};
use super::command;
use super::inbound::{Backlog, Inbound};
use crate::error::ClientError;
use crate::process::{Input, Output, Process};
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelId, ChannelMsg, ChannelWriteHalf};
use wherry_protocol::message::{Channel as Stream, CopySpec, ExecSpec, ExitStatus, Frame};

/// Variables that a client may set for one process, and the length of each, in bytes. The node bounds all of them together.
pub(super) const MAX_VARIABLES: usize = 64;
const MAX_VARIABLE_BYTES: usize = 4096;
/// The subsystem that there is.
pub(super) const SFTP: &str = "sftp";
/// Standard error (RFC 4254, section 5.2).
const STDERR: u32 = 1;
/// What ssh(1) ends with when it is not the process that failed.
const FAILED: u32 = 255;
/// A command that cannot be run, as shells have it.
const NOT_FOUND: u32 = 127;

/// Whether a process can have it.
pub(super) fn is_variable(name: &str, value: &str) -> bool {
    !name.is_empty()
        && !name.contains(['=', '\0'])
        && !value.contains('\0')
        && name.len() + value.len() <= MAX_VARIABLE_BYTES
}

/// What is to be run.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Shell(Option<String>),
    Sftp,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Setup {
    env: Vec<(String, String)>,
    tty: Option<(u16, u16)>,
}

/// Rows and columns; some clients have none.
fn size(rows: u32, columns: u32) -> (u16, u16) {
    let side = |length: u32, usual: u16| match u16::try_from(length).unwrap_or(u16::MAX) {
        0 => usual,
        length => length,
    };
    (side(rows, 24), side(columns, 80))
}

impl Setup {
    /// Takes in one message; gives what is to be run as soon as that is known.
    fn hear(&mut self, message: ChannelMsg) -> Option<Result<Wish, String>> {
        match message {
            ChannelMsg::RequestPty { term, col_width, row_height, .. } => {
                self.tty = Some(size(row_height, col_width));
                if is_variable("TERM", &term) && !term.is_empty() {
                    self.env.push(("TERM".into(), term));
                }
                None
            }
            ChannelMsg::SetEnv { variable_name, variable_value, .. } => {
                if is_variable(&variable_name, &variable_value) && self.env.len() <= MAX_VARIABLES {
                    self.env.push((variable_name, variable_value));
                }
                None
            }
            ChannelMsg::WindowChange { col_width, row_height, .. } => {
                self.tty = self.tty.map(|_| size(row_height, col_width));
                None
            }
            ChannelMsg::RequestShell { .. } => Some(Ok(Wish::Shell(None))),
            ChannelMsg::Exec { command, .. } => Some(match String::from_utf8(command) {
                Ok(command) if command.contains('\0') => Err("a command cannot contain a NUL byte".into()),
                Ok(command) => Ok(Wish::Shell(Some(command))),
                Err(_) => Err("a command must be UTF-8".into()),
            }),
            ChannelMsg::RequestSubsystem { name, .. } if name == SFTP => Some(Ok(Wish::Sftp)),
            // Answered already, or of no consequence before there is a process.
            _ => None,
        }
    }
}

/// Serves a channel to its end.
pub(super) async fn serve(
    served: &Served,
    user: Option<String>,
    channel: Channel<Msg>,
    backlog: Backlog,
    handle: Handle,
) {
    let id = channel.id();
    let (reader, writer) = channel.split();
    let mut inbound = Inbound::new(reader, backlog);
    let mut setup = Setup::default();
    let wish = loop {
        let Some(message) = inbound.next().await else { return };
        if matches!(message, ChannelMsg::Close) {
            return;
        }
        if let Some(wish) = setup.hear(message) {
            break wish;
        }
    };
    let ended = match wish {
        Ok(wish) => match start(served, user, setup, wish).await {
            Ok(process) => converse(process, &mut inbound, &writer).await,
            Err(error) => Ended::Failed(error.to_string(), FAILED),
        },
        Err(reason) => Ended::Failed(reason, NOT_FOUND),
    };
    // If the client has gone there is nobody to tell.
    finish(served, ended, id, &writer, &handle).await.ok();
}

async fn start(
    served: &Served,
    user: Option<String>,
    setup: Setup,
    wish: Wish,
) -> Result<Process, ClientError> {
    match wish {
        Wish::Sftp => served.container.copy(CopySpec::Sftp { user }).await,
        Wish::Shell(command) => {
            let command = command::in_shell(command);
            let spec = ExecSpec { command, env: setup.env, workdir: None, user, tty: setup.tty, stdin: true };
            served.container.exec(spec).await
        }
    }
}

/// How a process went.
enum Ended {
    Exited(ExitStatus),
    /// Why, and the exit code that tells.
    Failed(String, u32),
    /// The client closed the channel.
    Left,
}

async fn converse(process: Process, inbound: &mut Inbound, writer: &ChannelWriteHalf<Msg>) -> Ended {
    let Process { input, output } = process;
    let abandoned = inbound.abandoned();
    tokio::select! {
        ended = speak(output, writer) => ended,
        () = listen(input, inbound) => Ended::Left,
        () = abandoned => Ended::Left,
    }
}

async fn speak(mut output: Output, writer: &ChannelWriteHalf<Msg>) -> Ended {
    loop {
        let sent = match output.next().await {
            Ok(Some(Frame::Data { channel: Stream::Stderr, bytes })) => {
                writer.extended_data_bytes(STDERR, bytes).await
            }
            Ok(Some(Frame::Data { channel: Stream::Stdin | Stream::Stdout, bytes })) => {
                writer.data_bytes(bytes).await
            }
            Ok(Some(Frame::Exit(status))) => return Ended::Exited(status),
            Ok(Some(Frame::Error(error))) => return Ended::Failed(error.to_string(), NOT_FOUND),
            // Of no consequence here.
            Ok(Some(
                Frame::End(_)
                | Frame::Resize { .. }
                | Frame::Signal(_)
                | Frame::Dropped { .. }
                | Frame::Time(_),
            )) => Ok(()),
            Ok(None) => return Ended::Failed("the connection to the container ended".into(), FAILED),
            Err(error) => return Ended::Failed(error.to_string(), FAILED),
        };
        if sent.is_err() {
            return Ended::Left;
        }
    }
}

/// Completes when the client closes the channel. That the process takes no more is learnt from its end.
async fn listen(mut input: Input, inbound: &mut Inbound) {
    while let Some(message) = inbound.next().await {
        let sent = match message {
            ChannelMsg::Data { data } => input.stdin(&data).await,
            ChannelMsg::Eof => input.end_stdin().await,
            ChannelMsg::WindowChange { col_width, row_height, .. } => {
                let (rows, columns) = size(row_height, col_width);
                input.resize(rows, columns).await
            }
            ChannelMsg::Signal { signal } => match command::signal_number(&signal) {
                Some(number) => input.signal(number).await,
                None => Ok(()),
            },
            ChannelMsg::Close => return,
            _ => Ok(()),
        };
        if sent.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn finish(
    served: &Served,
    ended: Ended,
    id: ChannelId,
    writer: &ChannelWriteHalf<Msg>,
    handle: &Handle,
) -> Result<(), russh::Error> {
    match ended {
        Ended::Exited(ExitStatus::Code(code)) => writer.exit_status(code.into()).await?,
        Ended::Exited(ExitStatus::Signal(number)) => signalled(handle, id, number, String::new()).await?,
        Ended::Exited(ExitStatus::OutOfMemory) => {
            signalled(handle, id, 9, "out of memory".into()).await?;
        }
        Ended::Failed(reason, code) => {
            let text = sentence(&reason, &served.info.name);
            served.report(SshEvent::Failed { reason: text.clone(), told: true });
            writer.extended_data_bytes(STDERR, format!("wherry: {text}\r\n").into_bytes()).await?;
            writer.exit_status(code).await?;
        }
        Ended::Left => {}
    }
    writer.eof().await?;
    writer.close().await
}

async fn signalled(handle: &Handle, id: ChannelId, number: u8, text: String) -> Result<(), russh::Error> {
    let sent = handle.exit_signal_request(id, command::signal_name(number), false, text, String::new()).await;
    sent.map_err(|()| russh::Error::SendError)
}

/// A container without a shell is told in words that help.
fn sentence(reason: &str, container: &impl std::fmt::Display) -> String {
    if reason.contains("no such program '/bin/sh'") {
        return format!(
            "{container} has no shell (/bin/sh): sftp and port forwarding work without one, and `wherry exec` runs its programs"
        );
    }
    reason.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_the_start_is_kept() {
        let mut setup = Setup::default();
        let (want_reply, pix_width, pix_height) = (true, 0, 0);
        let pty = ChannelMsg::RequestPty {
            want_reply,
            term: "xterm-256color".into(),
            col_width: 132,
            row_height: 70_000,
            pix_width,
            pix_height,
            terminal_modes: Vec::new(),
        };
        assert_eq!(setup.hear(pty), None);
        let env = |name: &str, value: &str| ChannelMsg::SetEnv {
            want_reply,
            variable_name: name.into(),
            variable_value: value.into(),
        };
        for (name, value) in
            [("LANG", "C"), ("", "x"), ("A=B", "x"), ("A", "\0"), ("HUGE", &"x".repeat(5000))]
        {
            assert_eq!(setup.hear(env(name, value)), None);
        }
        assert_eq!(setup.hear(ChannelMsg::Eof), None);
        let term = ("TERM".to_owned(), "xterm-256color".to_owned());
        assert_eq!(setup, Setup { env: vec![term, ("LANG".into(), "C".into())], tty: Some((u16::MAX, 132)) });
        for number in 0..1000 {
            setup.hear(env(&format!("V{number}"), ""));
        }
        assert!(setup.env.len() <= MAX_VARIABLES + 1);
        let run = |command: &[u8]| ChannelMsg::Exec { want_reply, command: command.to_vec() };
        assert_eq!(setup.hear(run(b"ls -l")), Some(Ok(Wish::Shell(Some("ls -l".into())))));
        assert!(setup.hear(run(b"\xff")).unwrap().is_err());
        assert!(setup.hear(run(b"a\0b")).unwrap().is_err());
        let subsystem = |name: &str| ChannelMsg::RequestSubsystem { want_reply, name: name.into() };
        assert_eq!(setup.hear(subsystem("netconf")), None);
        assert_eq!(setup.hear(subsystem("sftp")), Some(Ok(Wish::Sftp)));
    }

    #[test]
    fn a_missing_shell_is_told_apart() {
        let text =
            sentence("could not start: no such program '/bin/sh' in the image, check the command", &"web");
        assert!(text.starts_with("web has no shell"), "{text}");
        assert_eq!(sentence("something else", &"web"), "something else");
    }
}
