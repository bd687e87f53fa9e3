//! `join`, `locations`, `status`.
use crate::context::{CliError, Context};
use crate::{output, view};
use clap::{Args, Subcommand};
use std::io::{BufRead as _, Read as _};
use wherry_client::{Address, JoinOptions};
use wherry_protocol::{Name, Token};

/// More than any token takes.
const MAX_TOKEN_BYTES: u64 = 4096;

/// `wherry join`
#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The token, as `wherry token create` printed it; - reads it from standard input.
    token: String,
    /// Where the broker is, instead of where the token says.
    #[arg(long, value_name = "HOST[:PORT]")]
    address: Option<Address>,
    /// What to call the location here; the cluster's own name otherwise.
    #[arg(long)]
    name: Option<Name>,
    /// What to call your account there; your user and computer name otherwise.
    #[arg(long)]
    label: Option<Name>,
}

pub(crate) async fn join(context: &Context, args: Join) -> Result<u8, CliError> {
    let text = if args.token == "-" { read_token()? } else { args.token };
    let token: Token = text.parse().map_err(|error| CliError::Other(format!("{error}")))?;
    let label = args.label.or_else(default_label).ok_or_else(|| {
        CliError::Usage("cannot make an account name of user and computer: add --label <name>".into())
    })?;
    let options = JoinOptions { address: args.address, name: args.name, label };
    let joined = wherry_client::join(&context.config, &token, &options).await?;
    let default = context.config.default_name()?.as_ref() == Some(&joined.name);
    if context.json {
        output::json(&view::Location::of(&joined, default))?;
    } else {
        let note = if default { "; it is the default location" } else { "" };
        output::line(&format!(
            "joined {} at {} as {} ({}){note}",
            joined.name, joined.address, joined.label, joined.role
        ))?;
    }
    Ok(0)
}

/// The first line of standard input: there a token stays out of the shell's history.
fn read_token() -> Result<String, CliError> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(MAX_TOKEN_BYTES)
        .read_line(&mut text)
        .map_err(|error| CliError::Other(format!("cannot read the token: {error}")))?;
    Ok(text)
}

pub(crate) fn default_label() -> Option<Name> {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    wherry_client::join::label(&user, &host)
}

/// `wherry locations`
#[derive(Debug, Args)]
pub(crate) struct Locations {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List them (also without a subcommand).
    #[command(alias = "ls")]
    List,
    /// Make one the default.
    Use {
        /// Which.
        name: Name,
    },
    /// Forget one, and its key: only a new token leads back.
    Rm {
        /// Which.
        name: Name,
    },
}

pub(crate) fn locations(context: &Context, args: Locations) -> Result<u8, CliError> {
    match args.action.unwrap_or(Action::List) {
        Action::List => list(context)?,
        Action::Use { name } => {
            context.config.set_default(&name)?;
            done(context, "default", &name)?;
        }
        Action::Rm { name } => {
            context.config.remove(&name)?;
            done(context, "removed", &name)?;
        }
    }
    Ok(0)
}

fn done(context: &Context, what: &str, name: &Name) -> Result<(), CliError> {
    match context.json {
        true => output::json(&serde_json::json!({ what: name })),
        false => output::line(name.as_str()),
    }
}

fn list(context: &Context) -> Result<(), CliError> {
    let default = context.config.default_name()?;
    let mut stored = Vec::new();
    for name in context.config.names()? {
        stored.push(context.config.load(&name)?);
    }
    let is_default = |name: &Name| default.as_ref() == Some(name) || stored.len() == 1;
    if context.json {
        let views: Vec<_> = stored.iter().map(|one| view::Location::of(one, is_default(&one.name))).collect();
        return output::json(&views);
    }
    let row = |one: &wherry_client::StoredLocation| {
        let mark = if is_default(&one.name) { "*" } else { "" };
        vec![
            mark.into(),
            one.name.to_string(),
            one.address.to_string(),
            one.role.to_string(),
            one.label.to_string(),
            one.broker.short(),
        ]
    };
    let rows: Vec<Vec<String>> = stored.iter().map(row).collect();
    output::table(&["DEFAULT", "NAME", "ADDRESS", "ROLE", "ACCOUNT", "BROKER"], &rows)
}

pub(crate) async fn status(context: &Context) -> Result<u8, CliError> {
    let location = context.location()?;
    let started = std::time::Instant::now();
    let status = location.status().await?;
    let connected = started.elapsed();
    let asked = std::time::Instant::now();
    location.ping().await?;
    let round_trip = asked.elapsed();
    if context.json {
        output::json(&view::Status::of(&status, location.info()))?;
        return Ok(0);
    }
    let account = &status.account;
    let lines = [
        ("location", status.location.to_string()),
        ("broker", format!("{}, key {}", location.info().address, location.info().broker.short())),
        ("software", status.software.clone()),
        ("up", output::span(status.uptime_seconds)),
        (
            "account",
            format!("{} {} ({}), key {}", account.id, account.label, account.role, account.key.short()),
        ),
        (
            "session",
            format!(
                "ready in {:.1} ms, round trip {:.2} ms",
                connected.as_secs_f64() * 1e3,
                round_trip.as_secs_f64() * 1e3
            ),
        ),
    ];
    for (what, value) in lines {
        output::line(&format!("{what:<9} {}", output::printable(&value)))?;
    }
    Ok(0)
}
