//! Asks containers how they are: once for whoever waits, again and again for their health.
use crate::container::execute::Execution;
use crate::container::health::{Course, HealthPlan};
use crate::container::instance::{Ended, Instance};
use crate::container::runtime::Runtime;
use crate::net::Network;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use wherry_protocol::message::{ExecSpec, ExitStatus, Health, HealthReport, Probe};
use wherry_protocol::{ContainerRef, ErrorCode, WireError};

/// Pauses between questions of somebody who waits: short at first, because most containers are ready at once.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long one answer to somebody who waits may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Most bytes of an HTTP answer's first line that are read.
const MAX_STATUS_BYTES: u64 = 1024;
/// Of what a check prints so many bytes are kept, and the rest is read and forgotten.
const KEPT_OUTPUT: usize = HealthReport::MAX_OUTPUT_BYTES;
const SIGKILL: u8 = 9;

/// Reaches into containers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Prober {
    runtime: Runtime,
    network: Network,
}

impl Prober {
    /// Asks containers of `runtime`, whose ports `network` reaches.
    #[must_use]
    pub fn new(runtime: Runtime, network: Network) -> Self {
        Self { runtime, network }
    }

    /// Waits until the answer is yes.
    ///
    /// # Errors
    /// One sentence when the time is over, or the container has ended.
    pub async fn ready(
        &self,
        container: ContainerRef,
        probe: Option<Probe>,
        patience: Duration,
    ) -> Result<(), WireError> {
        let instance = self.runtime.running(container)?;
        let mut last = String::from("it has not answered");
        let answered = async {
            match &probe {
                Some(probe) => self.ask_until_ready(&instance, probe, &mut last).await,
                None => wait_until_healthy(&instance, &mut last).await,
            }
        };
        tokio::select! {
            answered = tokio::time::timeout(patience, answered) => match answered {
                Ok(result) => result,
                Err(_) => Err(late(container, patience, &last)),
            },
            ended = instance.wait() => Err(gone(container, ended)),
        }
    }

    async fn ask_until_ready(
        &self,
        instance: &Instance,
        probe: &Probe,
        last: &mut String,
    ) -> Result<(), WireError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.ask(instance, probe, ANSWER).await {
                Ok(()) => return Ok(()),
                Err(words) => *last = words,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Asks once.
    ///
    /// # Errors
    /// In a few words, why the answer is no.
    pub async fn ask(&self, instance: &Instance, probe: &Probe, timeout: Duration) -> Result<(), String> {
        let answer = async {
            match probe {
                Probe::Exec(command) => self.execute(instance, command, timeout).await,
                Probe::Tcp { port } => self.connect(instance, *port).await.map(drop),
                Probe::Http { port, path } => self.get(instance, *port, path).await,
            }
        };
        // The command keeps its own time, because it must be ended then.
        let patience = timeout + Duration::from_secs(1);
        tokio::time::timeout(patience, answer).await.unwrap_or_else(|_| Err(no_answer(timeout)))
    }

    async fn connect(&self, instance: &Instance, port: u16) -> Result<tokio::net::TcpStream, String> {
        let connected = self.network.connect(instance.container.id, port).await;
        connected.map_err(|error| format!("port {port}: {error}"))
    }

    async fn get(&self, instance: &Instance, port: u16, path: &str) -> Result<(), String> {
        let mut stream = self.connect(instance, port).await?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: wherry-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        let broken = |error: std::io::Error| format!("port {port}: {error}");
        stream.write_all(request.as_bytes()).await.map_err(broken)?;
        let mut line = Vec::new();
        let mut reader = tokio::io::BufReader::new(stream.take(MAX_STATUS_BYTES));
        tokio::io::AsyncBufReadExt::read_until(&mut reader, b'\n', &mut line).await.map_err(broken)?;
        match status_of(&line) {
            Some(200) => Ok(()),
            Some(other) => Err(format!("status {other} of {path}")),
            None => Err(format!("port {port} does not answer in HTTP")),
        }
    }

    async fn execute(
        &self,
        instance: &Instance,
        command: &[String],
        timeout: Duration,
    ) -> Result<(), String> {
        let spec = ExecSpec { command: command.to_vec(), ..ExecSpec::default() };
        let execution = Execution::start(self.runtime.supervisor(), instance, &spec)
            .await
            .map_err(|error| error.message)?;
        let answer = tokio::time::timeout(timeout, outcome(&execution)).await;
        execution.release().await;
        answer.unwrap_or_else(|_| Err(no_answer(timeout)))
    }

    /// Looks after the health of one life of a container, if that is wished.
    pub fn watch(&self, instance: Arc<Instance>) {
        if let Some(plan) = instance.health.clone() {
            let prober = self.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = prober.check(&instance, plan) => {}
                    _ = instance.wait() => {}
                }
            });
        }
    }

    async fn check(&self, instance: &Instance, plan: HealthPlan) {
        let since = Instant::now();
        let mut course = Course::new(plan.clone());
        instance.change(|condition| condition.health = Some(course.report().clone()));
        loop {
            tokio::time::sleep(course.pause(since.elapsed())).await;
            let resting = {
                let condition = instance.condition();
                let condition = condition.borrow();
                condition.paused || condition.asleep
            };
            if resting {
                continue;
            }
            let timeout = Duration::from_millis(u64::from(plan.timeout_ms));
            let answer = self.ask(instance, &plan.probe, timeout).await;
            if course.take(since.elapsed(), answer.map_err(|words| HealthReport::kept(&words))) {
                let report = course.report().clone();
                tracing::info!(container = %instance.container, "{}: {}", report.health, report.output);
                let kill = plan.kill && report.health == Health::Unhealthy;
                instance.change(|condition| condition.health = Some(report));
                if kill {
                    self.runtime.signal(instance.container, SIGKILL).await.ok();
                }
            }
        }
    }
}

async fn wait_until_healthy(instance: &Instance, last: &mut String) -> Result<(), WireError> {
    let container = instance.container;
    if instance.health.is_none() {
        let message = format!("container {} has no health check: say what to ask it", container.id);
        return Err(WireError::new(ErrorCode::Invalid, message));
    }
    let mut conditions = instance.condition();
    loop {
        if let Some(health) = &conditions.borrow_and_update().health {
            match health.health {
                Health::Healthy => return Ok(()),
                Health::Starting | Health::Unhealthy => last.clone_from(&health.output),
            }
        }
        if conditions.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn late(container: ContainerRef, patience: Duration, last: &str) -> WireError {
    let seconds = patience.as_secs_f64();
    let last = if last.is_empty() { "no check has succeeded" } else { last };
    WireError::new(
        ErrorCode::Timeout,
        format!("container {} is not ready after {seconds} s: {last}", container.id),
    )
}

fn gone(container: ContainerRef, ended: Ended) -> WireError {
    let message = format!("container {} ended before it was ready: {}", container.id, ended.status);
    WireError::new(ErrorCode::WrongState, message)
}

fn no_answer(timeout: Duration) -> String {
    format!("no answer within {} s", timeout.as_secs_f64())
}

/// `HTTP/1.1 200 OK` → 200 (RFC 9112 §4).
fn status_of(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line).ok()?;
    let (version, rest) = line.split_once(' ')?;
    let code = rest.get(..3)?;
    let ends = rest.get(3..)?.starts_with([' ', '\r', '\n']);
    let digits = code.bytes().all(|byte| byte.is_ascii_digit());
    (version.starts_with("HTTP/1.") && digits && ends).then(|| code.parse().ok()).flatten()
}

async fn outcome(execution: &Execution) -> Result<(), String> {
    let printed = async {
        let (stdout, stderr) = tokio::join!(last_words(execution, false), last_words(execution, true));
        if stderr.is_empty() { stdout } else { stderr }
    };
    let (status, printed) = tokio::join!(execution.wait(), async {
        tokio::select! {
            printed = printed => printed,
            // What it left running may keep the pipes open.
            () = execution.ended() => String::new(),
        }
    });
    match status {
        Ok(ExitStatus::Code(0)) => Ok(()),
        Ok(status) if printed.is_empty() => Err(status.to_string()),
        Ok(status) => Err(format!("{status}: {printed}")),
        Err(error) => Err(error.message),
    }
}

/// The end of what it prints.
async fn last_words(execution: &Execution, stderr: bool) -> String {
    let source = match (stderr, &execution.stderr) {
        (true, Some(stderr)) => stderr,
        (true, None) => return String::new(),
        (false, _) => &execution.stdout,
    };
    let (mut kept, mut buffer) = (Vec::new(), vec![0; 4096]);
    while let Ok(length @ 1..) = source.read(&mut buffer).await {
        kept.extend_from_slice(buffer.get(..length).unwrap_or_default());
        let surplus = kept.len().saturating_sub(KEPT_OUTPUT);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_are_read_strictly() {
        for (line, status) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], Some(200)),
            (b"HTTP/1.0 503 Service Unavailable\r\n", Some(503)),
            (b"HTTP/1.1 204\r\n", Some(204)),
            (b"HTTP/1.1 2000 OK\r\n", None),
            (b"HTTP/1.1 +20 OK\r\n", None),
            (b"HTTP/2 200 OK\r\n", None),
            (b"SSH-2.0-OpenSSH 200 \r\n", None),
            (b"HTTP/1.1\r\n", None),
            (b"\xff\xfe 200 ", None),
            (b"", None),
        ] {
            assert_eq!(status_of(line), status, "{line:?}");
        }
    }
}
