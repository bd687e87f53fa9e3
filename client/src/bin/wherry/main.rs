//! The `wherry` command: a thin face over the library `wherry_client`. One file per group of commands.
mod access;
mod boot_files;
mod containers;
mod context;
mod copy;
mod dev;
mod flash;
mod images;
mod live;
mod locations;
mod network;
mod nodes;
mod output;
mod parse;
mod probe_flags;
mod processes;
mod pull;
mod pump;
mod run_flags;
mod signals;
mod ssh;
mod terminal;
mod usage;
mod view;
mod web;
mod web_view;

use clap::{CommandFactory as _, Parser, Subcommand};
use context::{CliError, Context, Globals};
use std::process::ExitCode;

/// Runs containers on a cluster of small boards.
#[derive(Debug, Parser)]
#[command(name = "wherry", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Claim a one-time token and store the cluster as a location.
    Join(locations::Join),
    /// List the joined locations, choose the default, or forget one.
    Locations(locations::Locations),
    /// Who you are at the location, and what its broker is.
    Status,
    /// The boards: architecture, CPUs, memory, load, containers.
    Resources,
    /// Say things about boards, for placement (admins only).
    #[command(subcommand)]
    Node(nodes::NodeCommand),
    /// Push, pull, list, name, inspect and remove images.
    #[command(subcommand)]
    Image(images::ImageCommand),
    /// Send an image: an archive, a layout, or docker:NAME, podman:NAME.
    Push(images::Push),
    /// Get an image from a registry.
    Pull(pull::Pull),
    /// List images.
    Images(images::List),
    /// Give an image one more name.
    Tag(images::Tag),
    /// Remove images.
    Rmi(images::Remove),
    /// Create and start a container.
    Run(Box<run_flags::Run>),
    /// List containers.
    Ps(containers::Ps),
    /// Everything about containers, as JSON.
    Inspect(containers::Inspect),
    /// The output of a container.
    Logs(containers::Logs),
    /// Run a command in a running container.
    Exec(processes::Exec),
    /// Connect this terminal to a running container.
    Attach(processes::Attach),
    /// Copy files out of a running container, or into it.
    Cp(copy::Cp),
    /// Stop containers: their stop signal, then SIGKILL after the grace.
    Stop(containers::Stop),
    /// Start stopped containers again.
    Start(containers::Start),
    /// Stop containers and start them again.
    #[command(visible_alias = "reboot")]
    Restart(containers::Restart),
    /// Freeze all processes of containers.
    Pause(live::Several),
    /// Let paused containers go on.
    Unpause(live::Several),
    /// Start the programs of containers that were run with --asleep.
    Wake(live::Several),
    /// What a container has changed in its files.
    Diff(live::Diff),
    /// Make an image of a container.
    Commit(live::Commit),
    /// Give a container another name.
    Rename(containers::Rename),
    /// What runs in a container.
    Top(usage::Top),
    /// What containers use: CPU, memory, network, processes.
    Stats(usage::Stats),
    /// Send a signal to containers.
    Kill(containers::Kill),
    /// Remove containers.
    Rm(containers::Rm),
    /// Wait until containers end and print their exit codes, or until they are ready.
    Wait(containers::Wait),
    /// Let one container connect to a port of another.
    Connect(network::Connect),
    /// Take back what `connect` allowed.
    Disconnect(network::Connect),
    /// List what may connect to what.
    Connections,
    /// Make a port of a container reachable from this computer.
    Tunnel(network::TunnelArgs),
    /// A SOCKS5 proxy on this computer that leads to containers by name
    Proxy(network::ProxyArgs),
    /// Names that the broker serves on the web, ports 80 and 443.
    #[command(subcommand)]
    Endpoint(Box<web::EndpointCommand>),
    /// Domains in which names may be served.
    #[command(subcommand)]
    Domain(web::DomainCommand),
    /// An SSH server on this computer that leads into a container, for ssh, scp, sftp, rsync and editors.
    Ssh(ssh::Ssh),
    /// Invite people and boards (admins only).
    #[command(subcommand)]
    Token(access::TokenCommand),
    /// List accounts (admins only).
    Accounts,
    /// Remove accounts (admins only).
    #[command(subcommand)]
    Account(access::AccountCommand),
    /// Follow what happens at the location.
    Events,
    /// A cluster of virtual machines on this computer.
    #[command(subcommand)]
    Dev(dev::DevCommand),
    /// Write disks for boards, with keys and tokens on them.
    #[command(subcommand)]
    Flash(flash::FlashCommand),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Drive test images.
    #[command(subcommand, hide = true)]
    Debug(nodes::DebugCommand),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&CliError::Other(format!("cannot start: {error}"))),
    };
    let result = runtime.block_on(dispatch(cli));
    // A thread may still sit in a read of standard input; it must not hold up the end.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => failed(&error),
    }
}

/// Help and version go to standard output and are a success; wrong usage is one sentence, as every error.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    {
        let printed = error.print().is_ok();
        return ExitCode::from(if error.use_stderr() { CliError::USAGE } else { u8::from(!printed) });
    }
    failed(&CliError::Usage(format!("{}; --help tells more", sentence(&error.to_string()))))
}

/// The first paragraph of clap's report, on one line.
fn sentence(report: &str) -> String {
    let report = report.strip_prefix("error: ").unwrap_or(report);
    let paragraph: Vec<&str> = report.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    paragraph.join(" ")
}

fn failed(error: &CliError) -> ExitCode {
    error.report();
    ExitCode::from(error.exit_code())
}

/// Gives the exit code of the whole program.
async fn dispatch(cli: Cli) -> Result<u8, CliError> {
    let context = Context::new(cli.globals)?;
    match cli.command {
        Command::Join(args) => locations::join(&context, args).await,
        Command::Locations(args) => locations::locations(&context, args),
        Command::Status => locations::status(&context).await,
        Command::Resources => nodes::resources(&context).await,
        Command::Node(args) => nodes::node(&context, args).await,
        Command::Image(args) => images::image(&context, args).await,
        Command::Push(args) => images::push(&context, args).await,
        Command::Pull(args) => pull::pull(&context, args).await,
        Command::Images(args) => images::list(&context, &args).await,
        Command::Tag(args) => images::tag(&context, &args).await,
        Command::Rmi(args) => images::remove(&context, args).await,
        Command::Run(args) => processes::run(&context, *args).await,
        Command::Ps(args) => containers::ps(&context, &args).await,
        Command::Inspect(args) => containers::inspect(&context, args).await,
        Command::Logs(args) => containers::logs(&context, &args).await,
        Command::Exec(args) => processes::exec(&context, args).await,
        Command::Attach(args) => processes::attach(&context, &args).await,
        Command::Cp(args) => copy::cp(&context, &args).await,
        Command::Stop(args) => containers::stop(&context, args).await,
        Command::Start(args) => containers::start(&context, args).await,
        Command::Restart(args) => containers::restart(&context, args).await,
        Command::Pause(args) => live::pause(&context, args, true).await,
        Command::Unpause(args) => live::pause(&context, args, false).await,
        Command::Wake(args) => live::wake(&context, args).await,
        Command::Diff(args) => live::diff(&context, &args).await,
        Command::Commit(args) => live::commit(&context, args).await,
        Command::Rename(args) => containers::rename(&context, args).await,
        Command::Top(args) => usage::top(&context, &args).await,
        Command::Stats(args) => usage::stats(&context, &args).await,
        Command::Kill(args) => containers::kill(&context, args).await,
        Command::Rm(args) => containers::rm(&context, args).await,
        Command::Wait(args) => containers::wait(&context, args).await,
        Command::Connect(args) => network::connect(&context, &args, network::Change::Allow).await,
        Command::Disconnect(args) => network::connect(&context, &args, network::Change::Forbid).await,
        Command::Connections => network::connections(&context).await,
        Command::Tunnel(args) => network::tunnel(&context, args).await,
        Command::Proxy(args) => network::proxy(&context, args).await,
        Command::Endpoint(command) => web::endpoint(&context, *command).await,
        Command::Domain(command) => web::domain(&context, &command).await,
        Command::Ssh(args) => ssh::ssh(&context, args).await,
        Command::Token(args) => access::token(&context, &args).await,
        Command::Accounts => access::accounts(&context).await,
        Command::Account(args) => access::account(&context, &args).await,
        Command::Events => access::events(&context).await,
        Command::Dev(command) => dev::dev(&context, command).await,
        Command::Flash(args) => flash::flash(&context, args).await,
        Command::Completions { shell } => completions(shell),
        Command::Debug(args) => nodes::debug(&context, &args).await,
    }
}

fn completions(shell: clap_complete::Shell) -> Result<u8, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "wherry", &mut script);
    output::raw(&script)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_usage_is_one_sentence() {
        let said = |words: &[&str]| sentence(&Cli::try_parse_from(words).unwrap_err().to_string());
        assert_eq!(
            said(&["wherry", "run"]),
            "the following required arguments were not provided: <IMAGE> [COMMAND]..."
        );
        assert_eq!(said(&["wherry", "frob"]), "unrecognized subcommand 'frob'");
        assert_eq!(
            said(&["wherry", "run", "-m", "x", "web"]),
            "invalid value 'x' for '--memory <SIZE>': 'x' is not a size: use a number with b, k, m or g, as in 64m"
        );
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
