//! What every command needs: global options, the location, errors and their exit codes.
use clap::Args;
use wherry_client::{ClientError, Config, Container, Location, StoreError, StoredLocation, selector};
use wherry_protocol::Name;
use wherry_protocol::id::IdError;

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Globals {
    /// Which joined location; the default one otherwise.
    #[arg(long, global = true, env = "WHERRY_LOCATION", value_name = "NAME")]
    location: Option<Name>,
    /// Print JSON: one document, or one line each for what goes on.
    #[arg(long, global = true)]
    json: bool,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Name(#[from] IdError),
    /// The command line makes no sense in a way that clap cannot see.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Other(String),
    /// Whatever failed, with the exit code that `run` and `exec` give it.
    #[error("{error}")]
    WithCode { error: Box<CliError>, code: u8 },
    /// Some of several things failed; each was reported already.
    #[error("")]
    Reported,
    /// Nobody reads our output any more.
    #[error("")]
    OutputClosed,
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        Self::Client(error.into())
    }
}

impl From<std::io::Error> for CliError {
    /// Writing to standard output.
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Other(format!("cannot write the output: {error}")),
        }
    }
}

impl CliError {
    /// Exit code for wrong usage, as clap has it.
    pub(crate) const USAGE: u8 = 2;

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Name(_) => Self::USAGE,
            Self::WithCode { code, .. } => *code,
            Self::Client(_) | Self::Other(_) | Self::Reported | Self::OutputClosed => 1,
        }
    }

    /// One sentence on standard error: what failed and, if a system error is behind it, which.
    pub(crate) fn report(&self) {
        let mut text = self.to_string();
        if text.is_empty() {
            return;
        }
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let more = error.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            cause = error.source();
        }
        eprintln!("wherry: {text}");
    }

    /// The same failure with another exit code.
    pub(crate) fn with_code(self, code: u8) -> Self {
        match self {
            error @ (Self::WithCode { .. } | Self::Usage(_) | Self::Name(_) | Self::OutputClosed) => error,
            error => Self::WithCode { error: Box::new(error), code },
        }
    }
}

/// Options and store of this run.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) json: bool,
    location: Option<Name>,
}

impl Context {
    pub(crate) fn new(globals: Globals) -> Result<Self, CliError> {
        Ok(Self { config: Config::from_env()?, json: globals.json, location: globals.location })
    }

    /// The chosen location. It is dialled at the first request.
    pub(crate) fn location(&self) -> Result<Location, CliError> {
        Ok(Location::stored(self.stored_location()?))
    }

    /// What is kept of the chosen location.
    pub(crate) fn stored_location(&self) -> Result<StoredLocation, CliError> {
        Ok(self.config.choose(self.location.as_ref())?)
    }

    /// A container by what was typed for it.
    pub(crate) fn container(&self, text: &str) -> Result<Container, CliError> {
        Ok(self.location()?.container(selector(text)?))
    }
}

/// Does the same with each of several things; reports each failure and goes on.
pub(crate) async fn for_each<T, F>(things: &[T], mut action: impl FnMut(&T) -> F) -> Result<u8, CliError>
where
    F: Future<Output = Result<(), CliError>>,
{
    let mut failed = None;
    for thing in things {
        if let Err(error) = action(thing).await {
            error.report();
            failed = Some(error);
        }
    }
    match failed {
        None => Ok(0),
        Some(error) => Err(CliError::Reported.with_code(error.exit_code())),
    }
}
