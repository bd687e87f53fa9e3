//! Questions to containers on the command line: the flags of `wait`, and those of `run` about health.
use crate::context::CliError;
use crate::parse;
use clap::Args;
use std::time::Duration;
use wherry_protocol::message::{HealthCheck, OnUnhealthy, Probe, Setting};
use wherry_protocol::policy;

/// When a container counts as ready.
#[derive(Debug, Args)]
pub(crate) struct Readiness {
    /// Until its health check says that it is healthy.
    #[arg(long, group = "ready")]
    healthy: bool,
    /// Until it accepts connections on this port.
    #[arg(long, group = "ready", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    tcp: Option<u16>,
    /// Until it answers a GET with status 200: port, and path.
    #[arg(long, group = "ready", value_name = "PORT[/PATH]", value_parser = parse::http_probe)]
    http: Option<Probe>,
    /// Until this command, started in it, succeeds: words for sh, or a JSON array of arguments.
    #[arg(long, group = "ready", value_name = "COMMAND", value_parser = parse::exec_probe)]
    exec: Option<Probe>,
    /// How long at most, as in 90s; 1 minute otherwise.
    #[arg(long, requires = "ready", value_name = "TIME", value_parser = parse::milliseconds)]
    timeout: Option<u32>,
}

impl Readiness {
    const PATIENCE_MS: u32 = 60_000;

    /// Whether this is about being ready at all, and not about the end.
    pub(crate) fn is_asked(&self) -> bool {
        self.healthy || self.probe().is_some()
    }

    /// The question; the container's own check if there is none.
    pub(crate) fn probe(&self) -> Option<Probe> {
        let tcp = self.tcp.map(|port| Probe::Tcp { port });
        tcp.or_else(|| self.http.clone()).or_else(|| self.exec.clone())
    }

    /// How long to wait.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_millis(u64::from(self.timeout.unwrap_or(Self::PATIENCE_MS)))
    }

    /// As the node would say, without a way to it.
    pub(crate) fn check(&self) -> Result<(), CliError> {
        self.probe()
            .as_ref()
            .map_or(Ok(()), policy::check_probe)
            .map_err(|refused| CliError::Usage(refused.to_string()))
    }
}

/// How it is found out whether a container is well.
#[derive(Debug, Args)]
pub(crate) struct Health {
    /// Check its health with this command: words for sh, or a JSON array of arguments.
    #[arg(long = "health-cmd", group = "health-probe", value_name = "COMMAND", value_parser = parse::exec_probe)]
    command: Option<Probe>,
    /// Check its health by connecting to this port.
    #[arg(long = "health-tcp", group = "health-probe", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    tcp: Option<u16>,
    /// Check its health by a GET that must be answered with status 200: port, and path.
    #[arg(long = "health-http", group = "health-probe", value_name = "PORT[/PATH]", value_parser = parse::http_probe)]
    http: Option<Probe>,
    /// From one check to the next, as in 10s; the image's otherwise, or 30s.
    #[arg(long = "health-interval", value_name = "TIME", value_parser = parse::milliseconds)]
    interval: Option<u32>,
    /// How long one check may take; the image's otherwise, or 30s.
    #[arg(long = "health-timeout", value_name = "TIME", value_parser = parse::milliseconds)]
    timeout: Option<u32>,
    /// Failures in a row that make it unhealthy; the image's otherwise, or 3.
    #[arg(long = "health-retries", value_name = "NUMBER")]
    retries: Option<u32>,
    /// Time after its start during which failures do not count; the image's otherwise, or none.
    #[arg(long = "health-start-period", value_name = "TIME", value_parser = parse::milliseconds)]
    start_period: Option<u32>,
    /// From one check to the next during that time; the image's otherwise, or 5s.
    #[arg(long = "health-start-interval", value_name = "TIME", value_parser = parse::milliseconds)]
    start_interval: Option<u32>,
    /// What becomes of it when it is unhealthy: none, or kill, after which its restart policy may start it again.
    #[arg(long = "health-on-failure", value_name = "ACTION", value_parser = parse::on_unhealthy)]
    on_failure: Option<OnUnhealthy>,
    /// Do not check its health, whatever the image says.
    #[arg(long, conflicts_with_all = ["health-probe", "interval", "timeout", "retries", "start_period", "start_interval", "on_failure"])]
    no_healthcheck: bool,
}

impl Health {
    /// The setting that these flags make, if there are any.
    pub(crate) fn setting(&self) -> Option<Setting> {
        if self.no_healthcheck {
            return Some(Setting::NoHealth);
        }
        let tcp = self.tcp.map(|port| Probe::Tcp { port });
        let check = HealthCheck {
            probe: tcp.or_else(|| self.command.clone()).or_else(|| self.http.clone()),
            interval_ms: self.interval,
            timeout_ms: self.timeout,
            retries: self.retries,
            start_period_ms: self.start_period,
            start_interval_ms: self.start_interval,
            on_failure: self.on_failure.unwrap_or_default(),
        };
        let times = [check.interval_ms, check.timeout_ms, check.start_period_ms, check.start_interval_ms];
        let any = check.probe.is_some()
            || check.retries.is_some()
            || self.on_failure.is_some()
            || times.iter().any(Option::is_some);
        any.then_some(Setting::Health(check))
    }
}
