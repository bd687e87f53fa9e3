//! `connect`, `disconnect`, `connections`, `tunnel`, `proxy`.
use crate::context::{CliError, Context};
use crate::signals::Ending;
use crate::{output, parse, view};
use clap::Args;
use std::net::SocketAddr;
use wherry_client::{DatagramTunnel, Proxy, Tunnel, TunnelEvent, party};
use wherry_protocol::message::{ConnectRequest, ConnectionInfo, RuleInfo, Transport};

type Target = (String, u16, Transport);

/// `wherry connect`, `wherry disconnect`
#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// Who may connect: a container, label:KEY=VALUE, or service:NAME.
    #[arg(value_name = "FROM")]
    from: String,
    /// Whom and which port: web:80, dns:53/udp, label:tier=db:5432, service:front:80.
    #[arg(value_name = "TO:PORT[/udp]", value_parser = parse::target)]
    to: Target,
}

/// Which way.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    Allow,
    Forbid,
}

fn transport(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

/// Allows or forbids a connection.
pub(crate) async fn connect(context: &Context, args: &Connect, change: Change) -> Result<u8, CliError> {
    let location = context.location()?;
    let (to, port, kind) = &args.to;
    let request = ConnectRequest { from: party(&args.from)?, to: party(to)?, port: *port, transport: *kind };
    let verb = match change {
        Change::Allow => {
            location.allow(request).await?;
            "may connect to"
        }
        Change::Forbid => {
            location.disallow(request).await?;
            "may no longer connect to"
        }
    };
    if context.json {
        let allowed = matches!(change, Change::Allow);
        let line = serde_json::json!({
            "from": args.from, "to": to, "port": port, "transport": kind, "allowed": allowed,
        });
        output::json(&line)?;
    } else {
        output::line(&format!("{} {verb} {to} port {port}/{}", args.from, transport(*kind)))?;
    }
    Ok(0)
}

/// What may connect to what.
pub(crate) async fn connections(context: &Context) -> Result<u8, CliError> {
    let (connections, rules) = context.location()?.connections().await?;
    if context.json {
        output::json(&view::Connections::of(&connections, &rules))?;
        return Ok(0);
    }
    let row = |info: &ConnectionInfo| {
        vec![
            format!("{} ({})", info.from_name, info.from),
            format!("{} ({})", info.to_name, info.to),
            format!("{}/{}", info.port, transport(info.transport)),
        ]
    };
    output::table(&["FROM", "TO", "PORT"], &connections.iter().map(row).collect::<Vec<_>>())?;
    if !rules.is_empty() {
        let row = |rule: &RuleInfo| {
            let port = format!("{}/{}", rule.port, transport(rule.transport));
            vec![rule.from.clone(), rule.to.clone(), port, rule.connections.to_string()]
        };
        output::line("")?;
        output::table(&["RULE", "TO", "PORT", "CONNECTIONS"], &rules.iter().map(row).collect::<Vec<_>>())?;
    }
    Ok(0)
}

/// `wherry tunnel`
#[derive(Debug, Args)]
pub(crate) struct TunnelArgs {
    /// Port of this computer; on 127.0.0.1 unless an address is given; 0 is any free one.
    #[arg(value_name = "[ADDRESS:]PORT", value_parser = parse::listen)]
    listen: SocketAddr,
    /// Container and port: web:80, dns:53/udp.
    #[arg(value_name = "CONTAINER:PORT[/udp]", value_parser = parse::target)]
    to: Target,
}

/// Carries connections until ctrl-C.
pub(crate) async fn tunnel(context: &Context, args: TunnelArgs) -> Result<u8, CliError> {
    let (name, port, kind) = args.to;
    let container = context.container(&name)?;
    // Whether there is such a container is better learnt now than from the first connection.
    container.inspect().await?;
    let mut ending = Ending::watch()?;
    let json = context.json;
    let tell = |address: SocketAddr| match json {
        true => output::json_line(&serde_json::json!({
            "event": "listening", "address": address.to_string(), "container": name, "port": port, "transport": kind,
        })),
        false => {
            let port = match kind {
                Transport::Tcp => port.to_string(),
                Transport::Udp => format!("{port}/udp"),
            };
            output::line(&format!("listening on {address}, leading to {name} port {port}; ctrl-C ends it"))
        }
    };
    let report = move |event| report(&event, json);
    match kind {
        Transport::Tcp => {
            let tunnel = Tunnel::bind(args.listen, container, port).await?;
            tell(tunnel.address())?;
            until_ended(&mut ending, tunnel.run(report)).await;
        }
        Transport::Udp => {
            let tunnel = DatagramTunnel::bind(args.listen, container, port).await?;
            tell(tunnel.address())?;
            until_ended(&mut ending, tunnel.run(report)).await;
        }
    }
    Ok(0)
}

async fn until_ended(ending: &mut Ending, serving: impl Future<Output = ()>) {
    tokio::select! {
        () = serving => {}
        () = ending.wished() => {}
    }
}

/// `wherry proxy`
#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    /// Port of this computer; on 127.0.0.1 unless an address is given; 0 is any free one.
    #[arg(value_name = "[ADDRESS:]PORT", default_value = "1080", value_parser = parse::listen)]
    listen: SocketAddr,
}

/// Leads programs of this computer to containers until ctrl-C.
pub(crate) async fn proxy(context: &Context, args: ProxyArgs) -> Result<u8, CliError> {
    let location = context.location()?;
    // Whether the broker answers is better learnt now than from the first connection.
    location.status().await?;
    let mut ending = Ending::watch()?;
    let proxy = Proxy::bind(args.listen, location).await?;
    let (address, json) = (proxy.address(), context.json);
    if json {
        output::json_line(&serde_json::json!({ "event": "listening", "address": address.to_string() }))?;
    } else {
        output::line(&format!(
            "SOCKS5 on {address}: socks5h://{address} leads to containers by name; ctrl-C ends it"
        ))?;
    }
    until_ended(&mut ending, proxy.run(move |event| report(&event, json))).await;
    Ok(0)
}

/// People hear only of failures, programs of everything. If nobody reads it the tunnel goes on all the same.
fn report(event: &TunnelEvent, json: bool) {
    let line = match event {
        TunnelEvent::Opened { peer } => serde_json::json!({ "event": "opened", "peer": peer.to_string() }),
        TunnelEvent::Closed { peer, sent, received } => serde_json::json!({
            "event": "closed", "peer": peer.to_string(), "sent": sent, "received": received,
        }),
        TunnelEvent::Failed { peer, error } => {
            if !json {
                eprintln!("wherry: connection from {peer}: {error}");
            }
            serde_json::json!({ "event": "failed", "peer": peer.to_string(), "error": error.to_string() })
        }
    };
    if json {
        output::json_line(&line).unwrap_or_default();
    }
}
