//! `endpoint …`, `domain …`.
use crate::context::{CliError, Context};
use crate::signals::Ending;
use crate::{output, parse, web_view};
use clap::{ArgGroup, Args, Subcommand};
use std::path::{Path, PathBuf};
use wherry_client::party;
use wherry_protocol::message::{
    AccessEntry, AccessLine, AcmeSettings, CertificateInfo, CertificateSource, DomainInfo, DomainState,
    EndpointCaller, EndpointInfo, EndpointOptions, EndpointRoute, EndpointRule, EndpointSpec, Transport,
};

/// Longest certificate, key or list of authorities read, in bytes; the broker takes no longer one.
const MAX_PEM_BYTES: u64 = 64 * 1024;
/// Where certificates come from if nobody says otherwise.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// `wherry endpoint`
#[derive(Debug, Subcommand)]
pub(crate) enum EndpointCommand {
    /// Serve a name, or serve it otherwise from now on.
    Publish(Publish),
    /// List the names that are served.
    Ls {
        /// Everybody's (admins only).
        #[arg(long)]
        all: bool,
    },
    /// Everything about names, as JSON.
    Inspect {
        /// The names.
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
    },
    /// No longer serve names.
    Rm {
        /// The names.
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
    },
    /// Requests: the last ones and, with -f, those that come.
    Log {
        /// To this name only.
        #[arg(value_name = "HOST")]
        host: Option<String>,
        /// Go on until ctrl-C.
        #[arg(short, long)]
        follow: bool,
    },
    /// Say whom the broker asks for certificates (admins only).
    Acme(Acme),
}

/// `wherry endpoint publish`
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("certificate").args(["cert", "acme"])))]
pub(crate) struct Publish {
    /// The name: www.example.org, or *.example.org.
    #[arg(value_name = "HOST")]
    host: String,
    /// Where requests go: service:web:80, web:8080, label:tier=front:80, and for paths /api=service:api:80.
    #[arg(value_name = "[/PATH=]TO:PORT", required = true, value_parser = route)]
    routes: Vec<Route>,
    /// File with the certificate and those that vouch for it, as PEM.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// File with its private key, as PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Have the broker get a certificate, and a new one in time.
    #[arg(long)]
    acme: bool,
    /// Also without TLS; otherwise such requests are sent on to https.
    #[arg(long, requires = "certificate")]
    plain: bool,
    /// Keep each client at one container, by a signed cookie.
    #[arg(long)]
    sticky: bool,
    /// Tell clients to come by TLS only, for a year.
    #[arg(long, requires = "certificate", conflicts_with = "plain")]
    hsts: bool,
    /// The Host that containers see.
    #[arg(long, value_name = "HOST[:PORT]")]
    rewrite_host: Option<String>,
    /// Largest request body, as in 10m; 64m otherwise.
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    max_body: Option<u64>,
    /// Who may ask for what: 'GET,HEAD /user/* for service:web,192.168.50.0/24'; what no rule allows is refused.
    #[arg(long, value_name = "[METHODS] PATH for CALLERS", value_parser = rule)]
    allow: Vec<Rule>,
}

/// One route as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    prefix: String,
    to: String,
    port: u16,
}

/// One rule as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    methods: Vec<String>,
    path: String,
    callers: Vec<String>,
}

/// `wherry endpoint acme`
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("wish").args(["agree_terms", "off"]).required(true)))]
pub(crate) struct Acme {
    /// You have read the authority's terms, and agree.
    #[arg(long)]
    agree_terms: bool,
    /// Ask nobody any more.
    #[arg(long, conflicts_with_all = ["directory", "contact", "ca", "external_account"])]
    off: bool,
    /// The authority's directory.
    #[arg(long, value_name = "URL", default_value = LETS_ENCRYPT)]
    directory: String,
    /// Mail address where it may warn; may be repeated.
    #[arg(long, value_name = "MAIL")]
    contact: Vec<String>,
    /// File with authorities, as PEM, to trust when talking to it, for one of your own.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// An account that you have there already: its key identifier and its key in base64url.
    #[arg(long, value_name = "ID:KEY", value_parser = external_account)]
    external_account: Option<(String, String)>,
}

/// `wherry domain`
#[derive(Debug, Subcommand)]
pub(crate) enum DomainCommand {
    /// List your domains, and those that everybody may use.
    Ls,
    /// Begin to claim a domain: tells what to put into its DNS.
    Prepare {
        /// The domain.
        domain: String,
    },
    /// Claim a domain that says in its DNS that it is yours.
    Claim {
        /// The domain.
        domain: String,
        /// Without looking, on your word: for networks without a DNS of their own (admins only).
        #[arg(long)]
        vouch: bool,
    },
    /// Let everybody serve names in a domain.
    Share {
        /// The domain.
        domain: String,
    },
    /// Let nobody else serve names in a domain.
    Unshare {
        /// The domain.
        domain: String,
    },
    /// Give a domain back.
    Release {
        /// The domain.
        domain: String,
    },
}

fn route(text: &str) -> Result<Route, String> {
    let error = || {
        format!("'{text}' is not a route: use [/path=]to:port, as in service:web:80 or /api=service:api:80")
    };
    let (prefix, target) = match text.strip_prefix('/') {
        Some(_) => text.split_once('=').ok_or_else(error)?,
        None => ("/", text),
    };
    let (to, port, transport) = parse::target(target).map_err(|_| error())?;
    match transport {
        Transport::Tcp if !to.starts_with('=') => Ok(Route { prefix: prefix.to_owned(), to, port }),
        Transport::Tcp | Transport::Udp => Err(error()),
    }
}

fn rule(text: &str) -> Result<Rule, String> {
    let error = || {
        format!(
            "'{text}' is not a rule: use [methods] path for callers, as in 'GET,HEAD /user/* for service:web,anyone'"
        )
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let (methods, path, callers) = match words.as_slice() {
        [path, "for", callers] => ("", *path, *callers),
        [methods, path, "for", callers] => (*methods, *path, *callers),
        _ => return Err(error()),
    };
    let list = |text: &str| -> Vec<String> {
        text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    if !path.starts_with('/') || list(callers).is_empty() {
        return Err(error());
    }
    let methods = list(methods).iter().map(|method| method.to_ascii_uppercase()).collect();
    Ok(Rule { methods, path: path.to_owned(), callers: list(callers) })
}

fn external_account(text: &str) -> Result<(String, String), String> {
    let error = || {
        "an external account is its key identifier and its key, as in kid-1:zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44".to_owned()
    };
    let (id, key) = text.split_once(':').ok_or_else(error)?;
    if id.is_empty() || key.is_empty() { Err(error()) } else { Ok((id.to_owned(), key.to_owned())) }
}

/// Dispatches `wherry endpoint …`.
pub(crate) async fn endpoint(context: &Context, command: EndpointCommand) -> Result<u8, CliError> {
    match command {
        EndpointCommand::Publish(args) => publish(context, args).await,
        EndpointCommand::Ls { all } => list(context, all).await,
        EndpointCommand::Inspect { hosts } => inspect(context, &hosts).await,
        EndpointCommand::Rm { hosts } => remove(context, &hosts).await,
        EndpointCommand::Log { host, follow } => log(context, host.as_deref(), follow).await,
        EndpointCommand::Acme(args) => acme(context, args).await,
    }
}

async fn publish(context: &Context, args: Publish) -> Result<u8, CliError> {
    let info = context.location()?.publish_endpoint(spec(args)?).await?;
    if context.json {
        output::json(&web_view::Endpoint::of(&info))?;
        return Ok(0);
    }
    output::line(&format!("{}://{} is served{}", scheme(&info), info.host, waiting(&info)))?;
    Ok(0)
}

fn scheme(info: &EndpointInfo) -> &'static str {
    match info.certificate {
        CertificateInfo::None => "http",
        CertificateInfo::Awaited { .. } | CertificateInfo::Present { .. } => "https",
    }
}

/// What is still missing.
fn waiting(info: &EndpointInfo) -> String {
    let empty: Vec<&str> = info
        .routes
        .iter()
        .filter(|route| route.backends.iter().all(|backend| !backend.healthy))
        .map(|route| route.to.as_str())
        .collect();
    let certificate = match info.certificate {
        CertificateInfo::Awaited { .. } => " as soon as its certificate is there",
        CertificateInfo::None | CertificateInfo::Present { .. } => "",
    };
    match empty.as_slice() {
        [] => certificate.to_owned(),
        some => format!("{certificate}; no container of {} is well yet", some.join(", ")),
    }
}

fn spec(args: Publish) -> Result<EndpointSpec, CliError> {
    let certificate = match (&args.cert, &args.key) {
        (Some(chain), Some(key)) => CertificateSource::Given { chain: read(chain)?, key: read(key)? },
        _ if args.acme => CertificateSource::Acme,
        _ => CertificateSource::None,
    };
    let routes = args
        .routes
        .into_iter()
        .map(|Route { prefix, to, port }| Ok(EndpointRoute { prefix, to: party(&to)?, port }));
    let rules = args.allow.into_iter().map(|Rule { methods, path, callers }| {
        let callers = callers.iter().map(|text| caller(text)).collect::<Result<_, CliError>>()?;
        Ok(EndpointRule { methods, path, callers })
    });
    let rules: Vec<EndpointRule> = rules.collect::<Result<_, CliError>>()?;
    Ok(EndpointSpec {
        host: args.host,
        routes: routes.collect::<Result<_, CliError>>()?,
        certificate,
        options: EndpointOptions {
            rewrite_host: args.rewrite_host,
            plain: args.plain,
            sticky: args.sticky,
            hsts: args.hsts,
            max_body_bytes: args.max_body,
        },
        rules: Some(rules).filter(|rules| !rules.is_empty()),
    })
}

fn caller(text: &str) -> Result<EndpointCaller, CliError> {
    if text == "anyone" {
        return Ok(EndpointCaller::Anyone);
    }
    // No container's name has a slash.
    if text.contains('/') {
        let network = text.parse().map_err(|error| CliError::Usage(format!("{error}")))?;
        return Ok(EndpointCaller::Network(network));
    }
    Ok(EndpointCaller::Containers(party(text)?))
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    let failed = |error: String| CliError::Other(format!("cannot read {}: {error}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if size > MAX_PEM_BYTES {
        return Err(failed(format!(
            "it has {size} bytes, and no certificate or key has more than {MAX_PEM_BYTES}"
        )));
    }
    std::fs::read(path).map_err(|error| failed(error.to_string()))
}

async fn list(context: &Context, all: bool) -> Result<u8, CliError> {
    let endpoints = context.location()?.endpoints(all).await?;
    if context.json {
        output::json(&endpoints.iter().map(web_view::Endpoint::of).collect::<Vec<_>>())?;
        return Ok(0);
    }
    let mut rows = Vec::new();
    for info in &endpoints {
        for (position, route) in info.routes.iter().enumerate() {
            let first = position == 0;
            let healthy = route.backends.iter().filter(|backend| backend.healthy).count();
            rows.push(vec![
                if first { info.host.clone() } else { String::new() },
                route.prefix.clone(),
                format!("{}:{}", route.to, route.port),
                format!("{healthy}/{}", route.backends.len()),
                if first { certificate(&info.certificate) } else { String::new() },
            ]);
        }
    }
    output::table(&["HOST", "PATH", "TO", "WELL", "CERTIFICATE"], &rows)?;
    Ok(0)
}

fn certificate(info: &CertificateInfo) -> String {
    let now = output::now_seconds();
    match info {
        CertificateInfo::None => "none".to_owned(),
        CertificateInfo::Awaited { problem: None } => "on its way".to_owned(),
        CertificateInfo::Awaited { problem: Some(problem) } => {
            output::printable(&format!("not yet: {problem}"))
        }
        CertificateInfo::Present { not_after, .. } if *not_after <= now => "EXPIRED".to_owned(),
        CertificateInfo::Present { not_after, acme, problem, .. } => {
            let acme = if *acme { ", by ACME" } else { "" };
            let problem = problem.as_ref().map(|text| format!("; not renewed: {text}")).unwrap_or_default();
            output::printable(&format!("good for {}{acme}{problem}", output::span(not_after - now)))
        }
    }
}

async fn inspect(context: &Context, hosts: &[String]) -> Result<u8, CliError> {
    let endpoints = context.location()?.endpoints(false).await?;
    let found = hosts.iter().map(|host| {
        let lower = host.to_ascii_lowercase();
        let info = endpoints.iter().find(|info| info.host == lower);
        info.map(web_view::Endpoint::of).ok_or_else(|| {
            CliError::Other(format!("no name of yours is '{host}': `wherry endpoint ls` lists them"))
        })
    });
    output::json(&found.collect::<Result<Vec<_>, _>>()?)?;
    Ok(0)
}

async fn remove(context: &Context, hosts: &[String]) -> Result<u8, CliError> {
    let location = context.location()?;
    for host in hosts {
        location.remove_endpoint(host).await?;
        if !context.json {
            output::line(host)?;
        }
    }
    if context.json {
        output::json(&serde_json::json!({ "removed": hosts }))?;
    }
    Ok(0)
}

async fn log(context: &Context, host: Option<&str>, follow: bool) -> Result<u8, CliError> {
    let mut log = context.location()?.access_log(host, follow).await?;
    let mut ending = Ending::watch()?;
    loop {
        let line = tokio::select! {
            line = log.next() => line?,
            () = ending.wished() => return Ok(0),
        };
        match line {
            None => return Ok(0),
            Some(line) if context.json => output::json_line(&web_view::AccessLine::of(&line))?,
            Some(AccessLine::Request(entry)) => output::line(&output::printable(&described(&entry)))?,
            Some(AccessLine::Lost(count)) => eprintln!("{count} lines were lost: this reader is too slow"),
        }
    }
}

/// Much like the common log format.
fn described(entry: &AccessEntry) -> String {
    let status = entry.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
    let by = match (&entry.backend, &entry.refusal) {
        (_, Some(refusal)) => format!("refused: {refusal}"),
        (Some(backend), None) => backend.to_string(),
        (None, None) => "-".to_owned(),
    };
    let version = if entry.http2 { "HTTP/2" } else { "HTTP/1.1" };
    let encryption = entry.encryption.as_deref().unwrap_or("plain");
    let cut = if entry.complete { "" } else { " (cut off)" };
    format!(
        "{} {} {} {} {} {version} {encryption} {status} {} bytes in {}.{:03} ms, {by}{cut}",
        output::timestamp(entry.unix_ms),
        entry.client.ip().to_canonical(),
        entry.host,
        entry.method,
        entry.path,
        entry.sent,
        entry.micros / 1000,
        entry.micros % 1000,
    )
}

async fn acme(context: &Context, args: Acme) -> Result<u8, CliError> {
    let settings = if args.off {
        None
    } else {
        let roots = args.ca.as_deref().map(read).transpose()?.unwrap_or_default();
        Some(AcmeSettings {
            directory: args.directory.clone(),
            contacts: args.contact,
            roots,
            external_account: args.external_account,
            terms_agreed: args.agree_terms,
        })
    };
    context.location()?.configure_acme(settings).await?;
    match (context.json, args.off) {
        (true, off) => {
            output::json(&serde_json::json!({ "directory": (!off).then_some(args.directory) }))?;
        }
        (false, true) => output::line("nobody is asked for certificates any more")?,
        (false, false) => output::line(&format!("certificates come from {}", args.directory))?,
    }
    Ok(0)
}

/// Dispatches `wherry domain …`.
pub(crate) async fn domain(context: &Context, command: &DomainCommand) -> Result<u8, CliError> {
    let location = context.location()?;
    let info = match command {
        DomainCommand::Ls => return domains(context).await,
        DomainCommand::Release { domain } => {
            location.release_domain(domain).await?;
            match context.json {
                true => output::json(&serde_json::json!({ "released": domain }))?,
                false => output::line(domain)?,
            }
            return Ok(0);
        }
        DomainCommand::Prepare { domain } => location.prepare_domain(domain).await?,
        DomainCommand::Claim { domain, vouch } => location.claim_domain(domain, *vouch).await?,
        DomainCommand::Share { domain } => location.share_domain(domain, true).await?,
        DomainCommand::Unshare { domain } => location.share_domain(domain, false).await?,
    };
    if context.json {
        output::json(&web_view::Domain::of(&info))?;
        return Ok(0);
    }
    output::line(&match &info.state {
        DomainState::Prepared { token, expires_seconds } => format!(
            "put this TXT record into the DNS within {}, then run `wherry domain claim {}`:\n_wherry.{}  {token}",
            output::span(expires_seconds.saturating_sub(output::now_seconds())),
            info.domain,
            info.domain
        ),
        DomainState::Claimed { shared: true, .. } => format!("everybody may serve names in {}", info.domain),
        DomainState::Claimed { shared: false, .. } => format!("{} is yours", info.domain),
    })?;
    Ok(0)
}

async fn domains(context: &Context) -> Result<u8, CliError> {
    let domains = context.location()?.domains().await?;
    if context.json {
        output::json(&domains.iter().map(web_view::Domain::of).collect::<Vec<_>>())?;
        return Ok(0);
    }
    let row = |info: &DomainInfo| {
        let (state, proof) = match &info.state {
            DomainState::Prepared { token, expires_seconds } => {
                let left = output::span(expires_seconds.saturating_sub(output::now_seconds()));
                (format!("waits {left} for its proof"), format!("_wherry.{} TXT {token}", info.domain))
            }
            DomainState::Claimed { shared, vouched, .. } => (
                if *shared { "for everybody" } else { "private" }.to_owned(),
                if *vouched { "an admin's word" } else { "DNS" }.to_owned(),
            ),
        };
        vec![info.domain.clone(), info.owner.to_string(), state, proof]
    };
    output::table(&["DOMAIN", "OWNER", "STATE", "PROOF"], &domains.iter().map(row).collect::<Vec<_>>())?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_and_rules_are_understood() {
        let parsed = route("/api=label:tier=db:5432").unwrap();
        assert_eq!(
            (parsed.prefix.as_str(), parsed.to.as_str(), parsed.port),
            ("/api", "label:tier=db", 5432)
        );
        assert_eq!(route("service:web:80").unwrap().to, "service:web");
        for bad in ["web", "/api", "/api=web", "web:0", "web:80/udp", "", "=web:80"] {
            assert!(route(bad).unwrap_err().contains("is not a route"), "{bad}");
        }
        let parsed = rule("get,HEAD /user/* for service:web,10.0.0.0/8").unwrap();
        assert_eq!(parsed.methods, ["GET", "HEAD"]);
        assert_eq!(parsed.callers, ["service:web", "10.0.0.0/8"]);
        assert_eq!(rule("/ for anyone").unwrap().methods, [] as [&str; 0]);
        for bad in ["", "GET /", "GET / to x", "GET x for y", "/ for", "/ for ,", "A B /c for d"] {
            assert!(rule(bad).unwrap_err().contains("is not a rule"), "{bad}");
        }
        assert!(caller("10.0.0.0/33").is_err() && caller("nobody/8").is_err());
        assert_eq!(caller("anyone").unwrap(), EndpointCaller::Anyone);
        assert_eq!(external_account("a:b"), Ok(("a".into(), "b".into())));
        assert!(external_account("a").is_err() && external_account(":b").is_err());
    }
}
