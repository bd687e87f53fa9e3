//! `token create`, `accounts`, `account rm`, `events`.
use crate::context::{CliError, Context};
use crate::{output, parse, view};
use clap::{Args, Subcommand};
use std::io::IsTerminal as _;
use wherry_protocol::message::{AccountInfo, ContainerState, Event};
use wherry_protocol::{AccountId, Role};

/// `wherry token`
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a one-time token.
    Create(CreateToken),
}

/// `wherry token create`
#[derive(Debug, Args)]
pub(crate) struct CreateToken {
    /// For whom: user, node or admin.
    #[arg(long)]
    role: Role,
    /// How long it may be claimed, as in 1h.
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = parse::duration)]
    expires: u32,
}

/// `wherry account`
#[derive(Debug, Subcommand)]
pub(crate) enum AccountCommand {
    /// Remove an account or a node, with all it has.
    Rm {
        /// Its id (a3) or label.
        account: String,
    },
}

/// Dispatches `wherry token …`.
pub(crate) async fn token(context: &Context, command: &TokenCommand) -> Result<u8, CliError> {
    let TokenCommand::Create(args) = command;
    let token = context.location()?.create_token(args.role, args.expires).await?;
    if context.json {
        let line = serde_json::json!({
            "token": token.text, "role": args.role, "expires_seconds": token.expires_seconds,
        });
        output::json(&line)?;
        return Ok(0);
    }
    output::line(&token.text)?;
    if std::io::stdout().is_terminal() {
        let how = match args.role {
            Role::User | Role::Admin => "it is claimed with `wherry join`",
            Role::Node => "it belongs into the board's wherry.toml",
        };
        eprintln!("good once, for {}; {how}", output::span(args.expires.into()));
    }
    Ok(0)
}

/// Who may do what.
pub(crate) async fn accounts(context: &Context) -> Result<u8, CliError> {
    let accounts = context.location()?.accounts().await?;
    if context.json {
        output::json(&accounts.iter().map(view::Account::of).collect::<Vec<_>>())?;
        return Ok(0);
    }
    let row = |info: &AccountInfo| {
        vec![
            info.id.to_string(),
            info.label.to_string(),
            info.role.to_string(),
            info.key.short(),
            info.sessions.to_string(),
            output::ago(info.created_seconds),
        ]
    };
    let rows: Vec<Vec<String>> = accounts.iter().map(row).collect();
    output::table(&["ID", "LABEL", "ROLE", "KEY", "SESSIONS", "ENROLLED"], &rows)?;
    Ok(0)
}

/// Dispatches `wherry account …`.
pub(crate) async fn account(context: &Context, command: &AccountCommand) -> Result<u8, CliError> {
    let AccountCommand::Rm { account } = command;
    let location = context.location()?;
    let accounts = location.accounts().await?;
    let id = find(&accounts, account)?;
    location.remove_account(id).await?;
    match context.json {
        true => output::json(&serde_json::json!({ "removed": id.to_string() }))?,
        false => output::line(account)?,
    }
    Ok(0)
}

fn find(accounts: &[AccountInfo], text: &str) -> Result<AccountId, CliError> {
    let fits = |info: &&AccountInfo| info.label.as_str() == text || info.id.to_string() == text;
    let found: Vec<&AccountInfo> = accounts.iter().filter(fits).collect();
    match found.as_slice() {
        [only] => Ok(only.id),
        [] => Err(CliError::Other(format!("no account is called '{text}': `wherry accounts` lists them"))),
        several => {
            let ids: Vec<String> = several.iter().map(|info| info.id.to_string()).collect();
            Err(CliError::Other(format!("'{text}' could be {}: use the id", ids.join(" or "))))
        }
    }
}

/// Follows what happens.
pub(crate) async fn events(context: &Context) -> Result<u8, CliError> {
    let mut events = context.location()?.events().await?;
    while let Some(event) = events.next().await? {
        if context.json {
            output::json_line(&view::EventLine::of(&event))?;
        } else {
            let line = format!("{} {}", clock(output::now_seconds()), describe(&event));
            output::line(&output::printable(&line))?;
        }
    }
    Ok(0)
}

/// Time of day, UTC.
fn clock(seconds: u64) -> String {
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}Z", seconds % 60)
}

fn describe(event: &Event) -> String {
    match event {
        Event::Container(info) => {
            let state = match &info.state {
                ContainerState::Pending => "pending".into(),
                ContainerState::Preparing => "preparing".into(),
                ContainerState::Running { pid, .. } => format!("running, pid {pid}"),
                ContainerState::Exited { status, .. } => status.to_string(),
                ContainerState::Restarting { status, .. } => format!("{status}, starts again"),
                ContainerState::Failed(error) => format!("failed: {error}"),
            };
            format!("container {} ({}) on {}: {state}", info.name, info.id, info.node_name)
        }
        Event::ContainerRemoved(id) => format!("container {id}: removed"),
        Event::Node { index, connected: true } => format!("node {index}: connected"),
        Event::Node { index, connected: false } => format!("node {index}: away"),
        Event::Lost { count } => format!("{count} events were lost: this reader is too slow"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_protocol::PublicKey;

    #[test]
    fn accounts_are_found_by_id_and_by_a_label_that_is_theirs_alone() {
        let account = |id, label: &str| AccountInfo {
            id: AccountId(id),
            label: label.parse().unwrap(),
            role: Role::User,
            key: PublicKey([0; 32]),
            created_seconds: 0,
            sessions: 0,
        };
        let accounts = [account(1, "ada"), account(2, "bob"), account(3, "bob")];
        assert_eq!(find(&accounts, "ada").unwrap(), AccountId(1));
        assert_eq!(find(&accounts, "a3").unwrap(), AccountId(3));
        assert!(find(&accounts, "bob").unwrap_err().to_string().contains("a2 or a3"));
        assert!(find(&accounts, "eve").unwrap_err().to_string().contains("no account is called"));
        assert_eq!(clock(86_400 + 3_661), "01:01:01Z");
    }
}
