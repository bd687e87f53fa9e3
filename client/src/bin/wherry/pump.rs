//! Between this computer's standard streams and a process far away.
use crate::context::CliError;
use crate::terminal::{self, RawMode};
use crate::{output, signals};
use serde::Serialize;
use std::io::Write as _;
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use wherry_client::{ClientError, Input, Output, Process};
use wherry_protocol::message::{Channel, ExitStatus, Frame};

/// Read from standard input at once, in bytes.
const CHUNK_BYTES: usize = 32 * 1024;
/// Commands on their way to the process.
const QUEUE: usize = 16;
/// Presses of ctrl-C after which we give up on a process that does not end.
const PATIENCE: u32 = 3;
/// What leaves a terminal without ending the process, as docker has it: ctrl-P, ctrl-Q.
const DETACH_KEYS: [u8; 2] = [0x10, 0x11];

/// How a stream is connected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wiring {
    /// Send standard input.
    pub(crate) stdin: bool,
    /// The process has a terminal.
    pub(crate) tty: bool,
    /// Print JSON lines instead of the bytes.
    pub(crate) json: bool,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The process ended.
    Exited(ExitStatus),
    /// The stream ended without a word about the process.
    Closed,
    /// The user left with the detach keys.
    Detached,
    /// The user lost patience, or this program was told to end.
    Interrupted(u8),
}

enum ToProcess {
    Stdin(Vec<u8>),
    EndStdin,
    Resize((u16, u16)),
    Signal(u8),
}

/// Connects until the process or the user ends it.
pub(crate) async fn connect(process: Process, wiring: Wiring) -> Result<End, CliError> {
    let raw = if wiring.tty && wiring.stdin { RawMode::enter() } else { None };
    let (commands, queue) = mpsc::channel(QUEUE);
    let (leave, mut left) = mpsc::channel(1);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(send(process.input, queue));
    if wiring.stdin {
        tasks.spawn(read_stdin(commands.clone(), leave.clone(), raw.is_some()));
    }
    tasks.spawn(watch_signals(commands, leave.clone(), wiring.tty)?);
    let mut sink = Sink::new(wiring.json);
    let result = tokio::select! {
        result = receive(process.output, &mut sink) => result,
        Some(end) = left.recv() => Ok(end),
    };
    // Aborts the tasks and gives the terminal back before anything else is printed.
    drop(tasks);
    drop(raw);
    drop(leave);
    if let (true, Ok(End::Exited(status))) = (wiring.json, &result) {
        output::json_line(&ExitLine { exit_code: status.shell_code() })?;
    }
    result
}

/// Prints a log to its end.
pub(crate) async fn print(log: Output, json: bool) -> Result<End, CliError> {
    receive(log, &mut Sink::new(json)).await
}

async fn receive(mut from: Output, sink: &mut Sink) -> Result<End, CliError> {
    while let Some(frame) = from.next().await? {
        match frame {
            Frame::Data { channel, bytes } => sink.data(channel, &bytes)?,
            Frame::Exit(status) => return Ok(End::Exited(status)),
            Frame::Error(error) => return Err(ClientError::Refused(error).into()),
            Frame::Dropped { bytes } => sink.dropped(bytes)?,
            Frame::Time(ms) => sink.time_ms = Some(ms),
            // Only sent towards the process, or of no consequence here.
            Frame::End(_) | Frame::Resize { .. } | Frame::Signal(_) => {}
        }
    }
    Ok(End::Closed)
}

/// A failure to send is not reported: the receiving side learns of it too, and knows more.
async fn send(mut input: Input, mut queue: mpsc::Receiver<ToProcess>) {
    while let Some(command) = queue.recv().await {
        let sent = match command {
            ToProcess::Stdin(bytes) => input.stdin(&bytes).await,
            ToProcess::EndStdin => input.end_stdin().await,
            ToProcess::Resize((rows, columns)) => input.resize(rows, columns).await,
            ToProcess::Signal(signal) => input.signal(signal).await,
        };
        if sent.is_err() {
            break;
        }
    }
    // Keeps our half of the stream open: closing it would tell the other side that we have gone.
    std::future::pending().await
}

async fn read_stdin(commands: mpsc::Sender<ToProcess>, leave: mpsc::Sender<End>, raw: bool) {
    let mut stdin = tokio::io::stdin();
    let mut keys = DetachKeys::default();
    loop {
        let mut buffer = vec![0; CHUNK_BYTES];
        let count = stdin.read(&mut buffer).await.unwrap_or_default();
        buffer.truncate(count);
        let (command, detach) = match (count, raw) {
            (0, _) => (ToProcess::EndStdin, false),
            (_, true) => {
                let detach = keys.feed(&mut buffer);
                (ToProcess::Stdin(buffer), detach)
            }
            (_, false) => (ToProcess::Stdin(buffer), false),
        };
        if commands.send(command).await.is_err() || count == 0 {
            return;
        }
        if detach {
            // The receiver may have ended by itself at this very moment.
            leave.send(End::Detached).await.unwrap_or_default();
            return;
        }
    }
}

/// Looks for the detach keys among what is typed.
#[derive(Debug, Default)]
struct DetachKeys {
    armed: bool,
}

impl DetachKeys {
    /// Cuts `typed` before the keys; true if they were there. A first key alone is held back until the next one.
    fn feed(&mut self, typed: &mut Vec<u8>) -> bool {
        let mut kept = Vec::with_capacity(typed.len() + 1);
        for &byte in typed.iter() {
            match (std::mem::take(&mut self.armed), byte == DETACH_KEYS[0]) {
                (true, _) if byte == DETACH_KEYS[1] => {
                    *typed = kept;
                    return true;
                }
                (true, true) => {
                    kept.push(byte);
                    self.armed = true;
                }
                (false, true) => self.armed = true,
                (true, false) => kept.extend([DETACH_KEYS[0], byte]),
                (false, false) => kept.push(byte),
            }
        }
        *typed = kept;
        false
    }
}

/// Without a terminal, signals to us go to the process. With one, keys do that; only its size is our business.
fn watch_signals(
    commands: mpsc::Sender<ToProcess>,
    leave: mpsc::Sender<End>,
    tty: bool,
) -> Result<impl Future<Output = ()> + Send + 'static, CliError> {
    let listen =
        |kind| signal(kind).map_err(|error| CliError::Other(format!("cannot watch signals: {error}")));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut resize = listen(SignalKind::window_change())?;
    Ok(async move {
        let mut interrupts = 0;
        if tty && commands.send(ToProcess::Resize(terminal::size())).await.is_err() {
            return;
        }
        loop {
            let number = next_signal(&mut interrupt, &mut terminate, &mut hangup, &mut resize).await;
            let command = match number {
                None if tty => ToProcess::Resize(terminal::size()),
                None => continue,
                Some(number) => {
                    interrupts += u32::from(number == signals::INT);
                    if tty || interrupts >= PATIENCE {
                        leave.send(End::Interrupted(number)).await.unwrap_or_default();
                        return;
                    }
                    ToProcess::Signal(number)
                }
            };
            if commands.send(command).await.is_err() {
                return;
            }
        }
    })
}

/// The number of a signal to pass on; `None` if the terminal's size changed.
async fn next_signal(
    interrupt: &mut Signal,
    terminate: &mut Signal,
    hangup: &mut Signal,
    resize: &mut Signal,
) -> Option<u8> {
    tokio::select! {
        _ = interrupt.recv() => Some(signals::INT),
        _ = terminate.recv() => Some(signals::TERM),
        _ = hangup.recv() => Some(signals::HUP),
        _ = resize.recv() => None,
    }
}

#[derive(Serialize)]
struct DataLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    time_ms: Option<u64>,
    channel: Channel,
    data: &'a str,
}

#[derive(Serialize)]
struct DroppedLine {
    dropped_bytes: u64,
}

#[derive(Serialize)]
struct ExitLine {
    exit_code: u8,
}

/// Where output goes.
struct Sink {
    form: Form,
    /// When the next data was read from the container, where that is to be shown.
    time_ms: Option<u64>,
}

enum Form {
    /// Whether standard output and standard error are within a line, which began with its time.
    Plain { within_line: [bool; 2] },
    /// JSON strings hold text: a character cut in two by a frame waits here for its rest.
    Json { held: [Vec<u8>; 2] },
}

/// 1 of standard error, 0 of the others.
fn slot(channel: Channel) -> usize {
    usize::from(channel == Channel::Stderr)
}

impl Sink {
    fn new(json: bool) -> Self {
        let form = match json {
            true => Form::Json { held: Default::default() },
            false => Form::Plain { within_line: [false; 2] },
        };
        Self { form, time_ms: None }
    }

    fn data(&mut self, channel: Channel, bytes: &[u8]) -> Result<(), CliError> {
        let Self { form, time_ms } = self;
        match form {
            Form::Plain { within_line } => {
                let stamped = time_ms.map(|ms| stamp(bytes, ms, &mut within_line[slot(channel)]));
                write(channel, stamped.as_deref().unwrap_or(bytes))
            }
            Form::Json { held } => {
                let held = &mut held[slot(channel)];
                held.extend_from_slice(bytes);
                let text = take_text(held);
                let line = DataLine { time_ms: *time_ms, channel, data: &text };
                if text.is_empty() { Ok(()) } else { output::json_line(&line) }
            }
        }
    }

    fn dropped(&mut self, bytes: u64) -> Result<(), CliError> {
        match self.form {
            Form::Plain { .. } => {
                eprintln!("wherry: {} of older output were dropped", output::bytes(bytes));
                Ok(())
            }
            Form::Json { .. } => output::json_line(&DroppedLine { dropped_bytes: bytes }),
        }
    }
}

fn write(channel: Channel, bytes: &[u8]) -> Result<(), CliError> {
    match channel {
        Channel::Stderr => {
            let mut err = std::io::stderr().lock();
            err.write_all(bytes)?;
            Ok(err.flush()?)
        }
        Channel::Stdin | Channel::Stdout => output::raw(bytes),
    }
}

/// The bytes with the time before each line that begins in them.
fn stamp(bytes: &[u8], ms: u64, within_line: &mut bool) -> Vec<u8> {
    let time = output::timestamp(ms);
    let mut stamped = Vec::with_capacity(bytes.len() + time.len() + 1);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if !*within_line {
            stamped.extend_from_slice(time.as_bytes());
            stamped.push(b' ');
        }
        stamped.extend_from_slice(line);
        *within_line = line.last() != Some(&b'\n');
    }
    stamped
}

/// All whole characters; up to three bytes of an unfinished one stay.
fn take_text(held: &mut Vec<u8>) -> String {
    let whole = match std::str::from_utf8(held) {
        Ok(_) => held.len(),
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(_) => held.len(),
    };
    let rest = held.split_off(whole);
    let text = String::from_utf8_lossy(held).into_owned();
    *held = rest;
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_found_across_reads() {
        let run = |reads: &[&[u8]]| {
            let mut keys = DetachKeys::default();
            let mut sent = Vec::new();
            for read in reads {
                let mut typed = read.to_vec();
                let detach = keys.feed(&mut typed);
                sent.extend(typed);
                if detach {
                    return (sent, true);
                }
            }
            (sent, false)
        };
        assert_eq!(run(&[b"ls\r"]), (b"ls\r".to_vec(), false));
        assert_eq!(run(&[b"a\x10\x11b"]), (b"a".to_vec(), true));
        assert_eq!(run(&[b"a\x10", b"\x11"]), (b"a".to_vec(), true));
        assert_eq!(run(&[b"\x10", b"x\x11"]), (b"\x10x\x11".to_vec(), false));
        assert_eq!(run(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
    }

    #[test]
    fn every_line_begins_with_its_time_and_only_there() {
        let mut within_line = false;
        let mut text = |bytes: &[u8], ms| String::from_utf8(stamp(bytes, ms, &mut within_line)).unwrap();
        assert_eq!(text(b"a\nb", 0), "1970-01-01T00:00:00.000Z a\n1970-01-01T00:00:00.000Z b");
        assert_eq!(text(b"c\n\n", 1500), "c\n1970-01-01T00:00:01.500Z \n");
        assert_eq!(text(b"d", 1_764_093_600_000), "2025-11-25T18:00:00.000Z d");
    }

    #[test]
    fn characters_cut_in_two_come_out_whole() {
        let mut held = "aü".as_bytes()[..2].to_vec();
        assert_eq!(take_text(&mut held), "a");
        held.extend_from_slice(&"ü".as_bytes()[1..]);
        assert_eq!(take_text(&mut held), "ü");
        let mut binary = vec![b'a', 0xff, b'b'];
        assert_eq!(take_text(&mut binary), "a\u{fffd}b");
        assert!(binary.is_empty());
    }
}
