//! Words to a command, in the ways of runc and crun.
use super::error::OciError;
use lexopt::{Arg, Parser, ValueExt};
use std::ffi::OsString;
use std::path::PathBuf;
use wherry_sys::process::LAST_SIGNAL;

/// Where records are kept unless `--root` says otherwise: gone after a boot, as the containers are.
const DEFAULT_ROOT: &str = "/run/wherry-oci";
/// Longest id: a file name (NAME_MAX).
const MAX_ID_BYTES: usize = 255;
/// Descriptors that can be handed to a container besides 0, 1 and 2.
const MAX_PRESERVED: u32 = 1024;

pub(super) const HELP: &str = "\
usage: wherry-node oci [options] COMMAND

  create [-b DIR] [--console-socket PATH] [--pid-file FILE] [--no-pivot] [--preserve-fds N] ID
  start ID
  run [-d] [the options of create] ID
  state ID
  kill [-s SIGNAL] [-a] ID [SIGNAL]
  delete [-f] ID
  list [-q] [-f table|json]
  features

options:
  --root DIR                       where states are kept (/run/wherry-oci)
  --log FILE                       write errors and warnings there too
  --log-format text|json           how
  --cgroup-manager cgroupfs|disabled
  --version, --help
";

/// A whole command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invocation {
    pub(super) global: Global,
    pub(super) command: Command,
}

/// What holds for every command.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Global {
    pub(super) root: PathBuf,
    pub(super) log: Option<PathBuf>,
    pub(super) log_as_json: bool,
    pub(super) cgroups: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Create(Create),
    Run { create: Create, detach: bool },
    Start(Id),
    State(Id),
    Kill { id: Id, signal: i32, all: bool },
    Delete { id: Id, force: bool },
    List { only_ids: bool, json: bool },
    Features,
    Version,
    Help,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Create {
    pub(super) id: Id,
    pub(super) bundle: PathBuf,
    pub(super) console_socket: Option<PathBuf>,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) no_pivot: bool,
    pub(super) preserve: u32,
}

/// A container's name, which is the name of a directory and of a cgroup too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(String);

impl Id {
    /// # Errors
    /// [`OciError::Id`].
    pub(super) fn parse(text: &str) -> Result<Self, OciError> {
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-+.".contains(&byte));
        if first && rest && text.len() <= MAX_ID_BYTES {
            Ok(Self(text.to_owned()))
        } else {
            Err(OciError::Id(text.chars().take(80).collect::<String>().escape_debug().collect()))
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// # Errors
/// [`OciError::Usage`], [`OciError::Id`].
pub(super) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Invocation, OciError> {
    let mut parser = Parser::from_args(arguments);
    let mut global = Global { root: DEFAULT_ROOT.into(), log: None, log_as_json: false, cgroups: true };
    loop {
        let command = match parser.next().map_err(usage)? {
            Some(Arg::Long("root")) => {
                global.root = path(&mut parser)?;
                continue;
            }
            Some(Arg::Long("log")) => {
                global.log = Some(path(&mut parser)?);
                continue;
            }
            Some(Arg::Long("log-format")) => {
                global.log_as_json = choice(&mut parser, "--log-format", ["text", "json"])? == 1;
                continue;
            }
            Some(Arg::Long("cgroup-manager")) => {
                global.cgroups = choice(&mut parser, "--cgroup-manager", ["cgroupfs", "disabled"])? == 0;
                continue;
            }
            // What is logged is little enough to be there always.
            Some(Arg::Long("debug")) => continue,
            Some(Arg::Long("systemd-cgroup")) => {
                return Err(OciError::Usage(
                    "--systemd-cgroup cannot be had: this runtime makes cgroups itself, leave it out".into(),
                ));
            }
            Some(Arg::Long("version") | Arg::Short('v')) => Command::Version,
            Some(Arg::Long("help") | Arg::Short('h')) => Command::Help,
            Some(Arg::Value(word)) => command(&word.string().map_err(usage)?, &mut parser)?,
            Some(other) => return Err(usage(other.unexpected())),
            None => return Err(OciError::Usage("a command is missing".into())),
        };
        return Ok(Invocation { global, command });
    }
}

fn usage(error: lexopt::Error) -> OciError {
    OciError::Usage(error.to_string())
}

fn path(parser: &mut Parser) -> Result<PathBuf, OciError> {
    parser.value().map(PathBuf::from).map_err(usage)
}

fn choice(parser: &mut Parser, option: &str, names: [&str; 2]) -> Result<usize, OciError> {
    let value = parser.value().and_then(ValueExt::string).map_err(usage)?;
    let [first, second] = names;
    names
        .iter()
        .position(|name| *name == value)
        .ok_or_else(|| OciError::Usage(format!("{option} is {first} or {second}, not '{value}'")))
}

fn command(word: &str, parser: &mut Parser) -> Result<Command, OciError> {
    match word {
        "create" => create(parser).map(|(create, _)| Command::Create(create)),
        "run" => create(parser).map(|(create, detach)| Command::Run { create, detach }),
        "start" => only_id(parser).map(Command::Start),
        "state" => only_id(parser).map(Command::State),
        "kill" => kill(parser),
        "delete" => delete(parser),
        "list" => list(parser),
        "features" => nothing(parser, Command::Features),
        "version" => nothing(parser, Command::Version),
        "help" => nothing(parser, Command::Help),
        other => Err(OciError::Usage(format!("'{}' is no command", other.escape_debug()))),
    }
}

fn create(parser: &mut Parser) -> Result<(Create, bool), OciError> {
    let (mut bundle, mut console_socket, mut pid_file) = (PathBuf::from("."), None, None);
    let (mut no_pivot, mut preserve, mut detach, mut id) = (false, 0, false, None);
    while let Some(argument) = parser.next().map_err(usage)? {
        match argument {
            Arg::Long("bundle") | Arg::Short('b') => bundle = path(parser)?,
            Arg::Long("console-socket") => console_socket = Some(path(parser)?),
            Arg::Long("pid-file") => pid_file = Some(path(parser)?),
            Arg::Long("no-pivot") => no_pivot = true,
            // A new one is made always.
            Arg::Long("no-new-keyring") => {
                return Err(OciError::Usage(
                    "--no-new-keyring cannot be had: a container never gets its caller's keys".into(),
                ));
            }
            Arg::Long("preserve-fds") => preserve = preserved(parser)?,
            Arg::Long("detach") | Arg::Short('d') => detach = true,
            Arg::Value(word) if id.is_none() => id = Some(self::id(word)?),
            other => return Err(usage(other.unexpected())),
        }
    }
    let id = id.ok_or_else(missing_id)?;
    Ok((Create { id, bundle, console_socket, pid_file, no_pivot, preserve }, detach))
}

fn preserved(parser: &mut Parser) -> Result<u32, OciError> {
    let number: u32 = parser.value().and_then(|value| value.parse()).map_err(usage)?;
    if number > MAX_PRESERVED {
        return Err(OciError::Usage(format!("--preserve-fds {number} is more than {MAX_PRESERVED}")));
    }
    Ok(number)
}

fn missing_id() -> OciError {
    OciError::Usage("the container's id is missing".into())
}

fn id(word: OsString) -> Result<Id, OciError> {
    Id::parse(&word.to_string_lossy())
}

fn only_id(parser: &mut Parser) -> Result<Id, OciError> {
    let mut found = None;
    while let Some(argument) = parser.next().map_err(usage)? {
        match argument {
            Arg::Value(word) if found.is_none() => found = Some(id(word)?),
            other => return Err(usage(other.unexpected())),
        }
    }
    found.ok_or_else(missing_id)
}

fn nothing(parser: &mut Parser, command: Command) -> Result<Command, OciError> {
    match parser.next().map_err(usage)? {
        Some(other) => Err(usage(other.unexpected())),
        None => Ok(command),
    }
}

fn kill(parser: &mut Parser) -> Result<Command, OciError> {
    let (mut found, mut signal, mut all) = (None, None, false);
    while let Some(argument) = parser.next().map_err(usage)? {
        match argument {
            Arg::Long("signal") | Arg::Short('s') if signal.is_none() => {
                signal = Some(self::signal(&parser.value().and_then(ValueExt::string).map_err(usage)?)?);
            }
            Arg::Long("all") | Arg::Short('a') => all = true,
            Arg::Value(word) if found.is_none() => found = Some(id(word)?),
            Arg::Value(word) if signal.is_none() => signal = Some(self::signal(&word.to_string_lossy())?),
            other => return Err(usage(other.unexpected())),
        }
    }
    let id = found.ok_or_else(missing_id)?;
    Ok(Command::Kill { id, signal: signal.unwrap_or(nix::libc::SIGTERM), all })
}

/// `TERM`, `SIGTERM`, `15`, `RTMIN+3`.
fn signal(text: &str) -> Result<i32, OciError> {
    let wrong = || OciError::Usage(format!("'{}' is no signal", text.escape_debug()));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=LAST_SIGNAL).contains(&number) { Ok(number) } else { Err(wrong()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: i32 = if offset.is_empty() { 0 } else { offset.parse().map_err(|_| wrong())? };
        let number = nix::libc::SIGRTMIN().saturating_add(offset);
        return if offset >= 0 && number <= LAST_SIGNAL { Ok(number) } else { Err(wrong()) };
    }
    let signal: nix::sys::signal::Signal = format!("SIG{name}").parse().map_err(|_| wrong())?;
    Ok(signal as i32)
}

fn delete(parser: &mut Parser) -> Result<Command, OciError> {
    let (mut found, mut force) = (None, false);
    while let Some(argument) = parser.next().map_err(usage)? {
        match argument {
            Arg::Long("force") | Arg::Short('f') => force = true,
            Arg::Value(word) if found.is_none() => found = Some(id(word)?),
            other => return Err(usage(other.unexpected())),
        }
    }
    Ok(Command::Delete { id: found.ok_or_else(missing_id)?, force })
}

fn list(parser: &mut Parser) -> Result<Command, OciError> {
    let (mut only_ids, mut json) = (false, false);
    while let Some(argument) = parser.next().map_err(usage)? {
        match argument {
            Arg::Long("quiet") | Arg::Short('q') => only_ids = true,
            Arg::Long("format") | Arg::Short('f') => {
                json = choice(parser, "--format", ["table", "json"])? == 1
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    Ok(Command::List { only_ids, json })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &str) -> Result<Command, String> {
        parse(words.split_whitespace().map(OsString::from))
            .map(|invocation| invocation.command)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn commands_are_read_in_the_ways_of_runc_and_crun() {
        let id = || Id::parse("a").unwrap();
        let create = Create {
            id: id(),
            bundle: "/b".into(),
            console_socket: None,
            pid_file: Some("p".into()),
            no_pivot: false,
            preserve: 2,
        };
        let words = "--root /r --log-format json create -b /b --pid-file=p --preserve-fds 2 a";
        let invocation = parse(words.split(' ').map(OsString::from)).unwrap();
        assert_eq!(invocation.command, Command::Create(create));
        assert!(invocation.global.root == *"/r" && invocation.global.log_as_json);
        let kill = |signal| Ok(Command::Kill { id: id(), signal, all: false });
        for (words, signal) in [
            ("kill a", 15),
            ("kill a KILL", 9),
            ("kill --signal SIGUSR1 a", 10),
            ("kill -s 34 a", 34),
            ("kill a rtmin+1", nix::libc::SIGRTMIN() + 1),
        ] {
            assert_eq!(of(words), kill(signal), "{words}");
        }
        assert_eq!(of("delete --force a"), Ok(Command::Delete { id: id(), force: true }));
        assert_eq!(of("list -f json"), Ok(Command::List { only_ids: false, json: true }));
        assert_eq!(of("--version"), Ok(Command::Version));
    }

    #[test]
    fn what_is_no_command_is_told() {
        for (words, says) in [
            ("", "a command is missing"),
            ("fly", "'fly' is no command"),
            ("start", "id is missing"),
            ("state a b", "unexpected argument"),
            ("kill a 65", "'65' is no signal"),
            ("kill a RTMIN+99", "no signal"),
            ("kill a WOOF", "no signal"),
            ("create --fast a", "invalid option"),
            ("create --preserve-fds 9999 a", "more than 1024"),
            ("--systemd-cgroup create a", "leave it out"),
            ("--log-format xml state a", "text or json"),
            ("start ../a", "cannot be used"),
        ] {
            let error = of(words).unwrap_err();
            assert!(error.contains(says), "{words}: {error}");
        }
    }

    #[test]
    fn ids_cannot_lead_anywhere() {
        let long = "a".repeat(256);
        for bad in ["", ".", "..", "a/b", "/a", "../../etc", "-a", ".a", "a b", "a\n", "a\0b", "ä", &long] {
            assert!(matches!(Id::parse(bad), Err(OciError::Id(_))), "{bad:?}");
        }
        for good in ["a", "A_b-c.d+1", "_", "0", &long[1..], "a..b"] {
            assert_eq!(Id::parse(good).unwrap().as_str(), good);
        }
    }
}
