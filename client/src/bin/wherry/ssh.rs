//! `ssh`: an SSH server on this computer in front of one container.
use crate::context::{CliError, Context};
use crate::output;
use crate::signals::Ending;
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wherry_client::ssh::{Bridge, HOST, Served, SshEvent, SshKeys};
use wherry_protocol::Name;

/// `wherry ssh`
#[derive(Debug, Args)]
pub(crate) struct Ssh {
    /// Listen on this port of 127.0.0.1; 0 is any free one.
    #[arg(short, long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// Serve one connection on standard input and output, for ProxyCommand in ssh_config(5).
    #[arg(long, conflicts_with = "port")]
    stdio: bool,
    /// Only write the configuration for OpenSSH, and say how to use it.
    #[arg(long, conflicts_with_all = ["port", "stdio", "container"])]
    config: bool,
    /// Name or id, or its host name of the written configuration: NAME.LOCATION.wherry.
    #[arg(required_unless_present = "config")]
    container: Option<String>,
}

/// Serves until ctrl-C, or to the end of the one connection.
pub(crate) async fn ssh(context: &Context, args: Ssh) -> Result<u8, CliError> {
    let keys = SshKeys::load(&context.config, home().as_deref())?;
    let Some(host) = args.container else {
        let path = write_config(context, &keys)?;
        return show_config(context, &path);
    };
    let stored = context.stored_location()?;
    let name = Served::container_of(&host, &stored.name).to_owned();
    let container = context.container(&name)?;
    let json = context.json;
    if args.stdio {
        // Standard output is the connection's.
        let untold = |event| match event {
            // What `ssh` shows is on the same terminal.
            SshEvent::Failed { told: true, .. } => {}
            event => report(&event, false),
        };
        let served = Served::new(container, keys, untold).await?;
        Arc::new(served).serve(tokio::io::join(tokio::io::stdin(), tokio::io::stdout())).await;
        return Ok(0);
    }
    let mut ending = Ending::watch()?;
    let config = write_config(context, &keys)?;
    let served = Served::new(container, keys, move |event| report(&event, json)).await?;
    let bridge = Bridge::bind(args.port).await?;
    announce(context, &bridge, &name, &config)?;
    tokio::select! {
        () = bridge.run(Arc::new(served)) => {}
        () = ending.wished() => {}
    }
    Ok(0)
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
}

fn write_config(context: &Context, keys: &SshKeys) -> Result<PathBuf, CliError> {
    let program = std::env::current_exe()
        .map_err(|error| CliError::Other(format!("cannot find out where this program is: {error}")))?;
    let locations: Vec<Name> = context.config.names()?;
    Ok(keys.write_config(&program, &locations)?)
}

fn show_config(context: &Context, path: &Path) -> Result<u8, CliError> {
    if context.json {
        output::json(&serde_json::json!({ "config": path.display().to_string() }))?;
        return Ok(0);
    }
    output::line(&format!("Include \"{}\"", path.display()))?;
    eprintln!(
        "put this line at the top of ~/.ssh/config: then ssh, scp, sftp and rsync know every container as \
         NAME.LOCATION.wherry"
    );
    Ok(0)
}

fn announce(context: &Context, bridge: &Bridge, name: &str, config: &Path) -> Result<(), CliError> {
    let (address, port) = (bridge.address(), bridge.address().port());
    if context.json {
        let line = serde_json::json!({
            "event": "listening", "address": address.to_string(), "container": name,
            "config": config.display().to_string(), "host": HOST,
        });
        return output::json_line(&line);
    }
    let config = quoted(&config.display().to_string());
    output::line(&format!("listening on {address}, leading to {name}; ctrl-C ends it"))?;
    output::line(&format!("log in with: ssh -F {config} -p {port} {HOST}"))
}

/// As one word of a shell's command line.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// People hear only of what did not go well, programs of everything. If nobody reads it the bridge goes on all the same.
fn report(event: &SshEvent, json: bool) {
    let line = match event {
        SshEvent::LoggedIn { user } => serde_json::json!({ "event": "logged_in", "user": user }),
        SshEvent::NotLoggedIn => serde_json::json!({ "event": "not_logged_in" }),
        SshEvent::ForwardingRefused { reason } => {
            serde_json::json!({ "event": "forwarding_refused", "error": reason })
        }
        SshEvent::Failed { reason, told: _ } => serde_json::json!({ "event": "failed", "error": reason }),
    };
    if json {
        output::json_line(&line).unwrap_or_default();
    } else if let Some(text) = sentence(event) {
        eprintln!("wherry: {}", output::printable(&text));
    }
}

fn sentence(event: &SshEvent) -> Option<String> {
    match event {
        SshEvent::LoggedIn { .. } => None,
        SshEvent::NotLoggedIn => Some("a connection ended before anybody had logged in".into()),
        SshEvent::ForwardingRefused { reason } | SshEvent::Failed { reason, told: _ } => Some(reason.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_words_for_a_shell() {
        for (path, word) in [
            ("/home/ada/.config/wherry/ssh/config", "/home/ada/.config/wherry/ssh/config"),
            ("/home/ada l/config", "'/home/ada l/config'"),
            ("/it's", r"'/it'\''s'"),
            ("/$HOME", "'/$HOME'"),
        ] {
            assert_eq!(quoted(path), word);
        }
    }
}
