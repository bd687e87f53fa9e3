//! QEMU's machine protocol (docs/interop/qmp-spec.txt of QEMU), as little of it as we use, over any byte pipe.
use crate::patience;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

/// Longest line accepted from QEMU, in bytes; its answers to our commands are below 1 KiB, its greeting as well.
const MAX_LINE_BYTES: u64 = 256 * 1024;
/// How long QEMU may take to answer: it does so from its main loop, at once unless the host is overloaded.
const ANSWER: Duration = Duration::from_secs(10);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU is gone, or its pipe broke.
    #[error("lost the control connection to QEMU")]
    Io(#[from] std::io::Error),
    /// QEMU closed the connection.
    #[error("QEMU closed its control connection")]
    Closed,
    /// Something that is not QMP came.
    #[error("QEMU sent what is not QMP: {0}")]
    Garbage(String),
    /// QEMU refused.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's words.
        reason: String,
    },
    /// No answer came.
    #[error("QEMU did not answer {0} in time")]
    Timeout(&'static str),
}

/// What the virtual machine is doing (`RunState` of qapi/run-state.json).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// The CPUs run.
    Running,
    /// Stopped by [`Qmp::stop`].
    Paused,
    /// The guest has powered off or panicked and QEMU waits.
    Shutdown,
    /// Another state, in QEMU's word.
    Other(String),
}

impl From<&str> for Status {
    fn from(word: &str) -> Self {
        match word {
            "running" => Self::Running,
            "paused" => Self::Paused,
            "shutdown" => Self::Shutdown,
            other => Self::Other(other.into()),
        }
    }
}

/// One message from QEMU; all but the first word in it decides.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

/// A client. One command at a time; events are passed over.
#[derive(Debug)]
pub struct Qmp<R, W> {
    reader: BufReader<R>,
    writer: W,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Qmp<R, W> {
    /// Reads the greeting and leaves negotiation mode.
    pub async fn handshake(reader: R, writer: W) -> Result<Self, QmpError> {
        let mut qmp = Self { reader: BufReader::new(reader), writer };
        let greeting = within("the greeting", qmp.read()).await?;
        if greeting.greeting.is_none() {
            return Err(QmpError::Garbage("no greeting".into()));
        }
        qmp.execute("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// What the machine is doing.
    pub async fn query_status(&mut self) -> Result<Status, QmpError> {
        let value = self.execute("query-status").await?;
        let word = value.get("status").and_then(Value::as_str);
        word.map(Status::from).ok_or_else(|| QmpError::Garbage(shorten(&value.to_string())))
    }

    /// Halts the CPUs.
    pub async fn stop(&mut self) -> Result<(), QmpError> {
        self.execute("stop").await.map(drop)
    }

    /// Lets the CPUs run on.
    pub async fn cont(&mut self) -> Result<(), QmpError> {
        self.execute("cont").await.map(drop)
    }

    /// Presses the reset button. A machine started with `-no-reboot` ends instead.
    pub async fn system_reset(&mut self) -> Result<(), QmpError> {
        self.execute("system_reset").await.map(drop)
    }

    /// Presses the power button; what the guest makes of it is its business.
    pub async fn system_powerdown(&mut self) -> Result<(), QmpError> {
        self.execute("system_powerdown").await.map(drop)
    }

    /// Ends QEMU, which writes out its disks first. QEMU may be gone before it has answered.
    pub async fn quit(&mut self) -> Result<(), QmpError> {
        match self.execute("quit").await {
            Ok(_) | Err(QmpError::Closed | QmpError::Io(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn execute(&mut self, command: &'static str) -> Result<Value, QmpError> {
        let line = format!("{}\n", json!({ "execute": command }));
        within(command, async {
            self.writer.write_all(line.as_bytes()).await?;
            self.writer.flush().await?;
            loop {
                let message = self.read().await?;
                match (message.value, message.error, message.event) {
                    (Some(value), _, _) => return Ok(value),
                    (None, Some(refusal), _) => {
                        return Err(QmpError::Refused { command, reason: shorten(&refusal.desc) });
                    }
                    (None, None, Some(event)) => tracing::debug!(event, "qmp event"),
                    (None, None, None) => return Err(QmpError::Garbage("neither answer nor event".into())),
                }
            }
        })
        .await
    }

    async fn read(&mut self) -> Result<Message, QmpError> {
        let mut line = Vec::new();
        (&mut self.reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Err(QmpError::Closed);
        }
        serde_json::from_slice(&line).map_err(|_| QmpError::Garbage(shorten(&String::from_utf8_lossy(&line))))
    }
}

async fn within<T>(
    what: &'static str,
    work: impl Future<Output = Result<T, QmpError>>,
) -> Result<T, QmpError> {
    tokio::time::timeout(patience(ANSWER), work).await.unwrap_or(Err(QmpError::Timeout(what)))
}

fn shorten(text: &str) -> String {
    text.trim().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str =
        r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}"#;

    /// Plays QEMU: sends `lines`, and returns what the client wrote.
    async fn against(lines: &[&str], ask: &str) -> (Result<String, QmpError>, String) {
        let script = lines.join("\n") + "\n";
        let mut written = Vec::new();
        let result = async {
            let mut qmp = Qmp::handshake(script.as_bytes(), &mut written).await?;
            Ok(match ask {
                "status" => format!("{:?}", qmp.query_status().await?),
                "quit" => format!("{:?}", qmp.quit().await?),
                other => unreachable!("{other}"),
            })
        }
        .await;
        (result, String::from_utf8(written).unwrap())
    }

    #[tokio::test]
    async fn status_with_events_between() {
        let lines = [
            GREETING,
            r#"{"return": {}}"#,
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESUME"}"#,
            r#"{"return": {"status": "running", "singlestep": false, "running": true}}"#,
        ];
        let (result, written) = against(&lines, "status").await;
        assert_eq!(result.unwrap(), "Running");
        assert_eq!(written, "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n");
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_its_words() {
        let refusal = r#"{"error": {"class": "GenericError", "desc": "not now"}}"#;
        let (result, _) = against(&[GREETING, r#"{"return": {}}"#, refusal], "status").await;
        assert_eq!(result.unwrap_err().to_string(), "QEMU refused query-status: not now");
    }

    #[tokio::test]
    async fn quit_does_not_mind_that_nobody_answers() {
        let (result, _) = against(&[GREETING, r#"{"return": {}}"#], "quit").await;
        assert!(result.is_ok(), "{result:?}");
    }

    #[tokio::test]
    async fn garbage_is_refused() {
        for lines in [&["hello"][..], &[r#"{"return": {}}"#], &[GREETING, "[1,2]"], &[GREETING, "{}"]] {
            let (result, _) = against(lines, "status").await;
            assert!(matches!(result, Err(QmpError::Garbage(_))), "{lines:?}: {result:?}");
        }
        let (result, _) = against(&[""], "status").await;
        assert!(result.is_err());
    }
}
