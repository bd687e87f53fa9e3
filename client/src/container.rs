//! A container, and the streams that lead into it.
use crate::error::ClientError;
use crate::location::{Location, fitting};
use crate::process::{Output, Process};
use std::time::Duration;
use wherry_protocol::io::{Stream, recv};
use wherry_protocol::message::{
    ChangesQuery, Channel, ConnectRequest, ContainerInfo, ContainerSelector, ContainerStats, CopySpec, Event,
    ExecSpec, ExitStatus, Frame, ImageManifest, LogQuery, Party, Probe, ProcessInfo, Reply, Request,
    SERVICE_LABEL, Transport, WaitUntil,
};
use wherry_protocol::{ContainerId, ErrorCode, Limits, Name, WireError};

/// A container by id or name. Making one asks nothing: whether it exists is learnt at the first call.
#[derive(Debug, Clone)]
pub struct Container {
    location: Location,
    selector: ContainerSelector,
}

/// What people type for a container: `c12` is an id, anything else a name.
pub fn selector(text: &str) -> Result<ContainerSelector, wherry_protocol::id::IdError> {
    match text.parse::<ContainerId>() {
        Ok(id) => Ok(ContainerSelector::Id(id)),
        Err(_) => text.parse::<Name>().map(ContainerSelector::Name),
    }
}

/// Whom `text` means in a connection: `label:KEY=VALUE`, `service:NAME` (the label `service`), or a container's name or id.
///
/// # Errors
/// When it is none of them.
pub fn party(text: &str) -> Result<Party, ClientError> {
    let labelled = |key: &str, value: &str| Party::Labelled { key: key.to_owned(), value: value.to_owned() };
    if let Some(name) = text.strip_prefix("service:") {
        let name: Name = name.parse().map_err(|_| ClientError::Party(text.to_owned()))?;
        return Ok(labelled(SERVICE_LABEL, name.as_str()));
    }
    match text.strip_prefix("label:").map(|label| label.split_once('=')) {
        None => selector(text).map(Party::from).map_err(|_| ClientError::Party(text.to_owned())),
        Some(Some((key, value))) if !key.is_empty() => Ok(labelled(key, value)),
        Some(_) => Err(ClientError::Party(text.to_owned())),
    }
}

impl Container {
    pub(crate) fn new(location: Location, selector: ContainerSelector) -> Self {
        Self { location, selector }
    }

    /// How it is named in requests.
    #[must_use]
    pub fn selector(&self) -> &ContainerSelector {
        &self.selector
    }

    pub(crate) fn lost(&self, error: std::io::Error) -> ClientError {
        self.location.lost(error.into())
    }

    async fn ask_info(&self, request: Request) -> Result<ContainerInfo, ClientError> {
        fitting!("container", self.location.ask(request).await?, Reply::Container(info) => *info)
    }

    async fn ask_done(&self, request: Request) -> Result<(), ClientError> {
        fitting!("container", self.location.ask(request).await?, Reply::Done => ())
    }

    /// What it is now.
    pub async fn inspect(&self) -> Result<ContainerInfo, ClientError> {
        self.ask_info(Request::Inspect(self.selector.clone())).await
    }

    /// Waits until it runs, has ended or has failed to start.
    pub async fn wait_started(&self) -> Result<ContainerInfo, ClientError> {
        self.wait(WaitUntil::Started).await
    }

    /// Waits until it has ended or has failed to start.
    pub async fn wait_ended(&self) -> Result<ContainerInfo, ClientError> {
        self.wait(WaitUntil::Ended).await
    }

    async fn wait(&self, until: WaitUntil) -> Result<ContainerInfo, ClientError> {
        self.ask_info(Request::Wait { container: self.selector.clone(), until }).await
    }

    /// Stops it: its stop signal, then SIGKILL after the grace (its own setting if `None`). Gives its state once it has ended.
    pub async fn stop(&self, grace_seconds: Option<u16>) -> Result<ContainerInfo, ClientError> {
        self.ask_info(Request::Stop { container: self.selector.clone(), grace_seconds }).await
    }

    /// Starts it again.
    pub async fn start(&self) -> Result<ContainerInfo, ClientError> {
        self.ask_info(Request::Start(self.selector.clone())).await
    }

    /// Starts it again with none of what it has written; its volumes and its address stay.
    pub async fn start_clean(&self) -> Result<ContainerInfo, ClientError> {
        self.ask_info(Request::StartClean(self.selector.clone())).await
    }

    /// Starts its program, if it is asleep.
    pub async fn wake(&self) -> Result<ContainerInfo, ClientError> {
        self.ask_info(Request::Wake(self.selector.clone())).await
    }

    /// Freezes its processes, or lets them go on.
    pub async fn pause(&self, paused: bool) -> Result<(), ClientError> {
        self.ask_done(Request::Pause { container: self.selector.clone(), paused }).await
    }

    /// Waits until it answers, or, without a `probe`, until its own health check says that it is healthy; at most
    /// `patience`, 49 days at most.
    pub async fn ready(&self, probe: Option<Probe>, patience: Duration) -> Result<(), ClientError> {
        let timeout_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        self.ask_done(Request::Ready { container: self.selector.clone(), probe, timeout_ms }).await
    }

    /// What it has changed in its files.
    pub async fn changes(&self, query: ChangesQuery) -> Result<Changes, ClientError> {
        let (reply, stream) =
            self.location.open(&Request::Changes { container: self.selector.clone(), query }).await?;
        let output = Process::new(self.location.clone(), stream).output;
        fitting!("changes", reply, Reply::Base { manifest, config } => Changes { manifest, config, output })
    }

    pub(crate) fn location(&self) -> &Location {
        &self.location
    }

    /// Gives it another name.
    pub async fn rename(&self, name: Name) -> Result<ContainerInfo, ClientError> {
        self.ask_info(Request::Rename { container: self.selector.clone(), name }).await
    }

    /// What it uses now.
    pub async fn stats(&self) -> Result<ContainerStats, ClientError> {
        let reply = self.location.ask(Request::Stats(self.selector.clone())).await?;
        fitting!("statistics", reply, Reply::Stats(stats) => stats)
    }

    /// What runs in it now.
    pub async fn processes(&self) -> Result<Vec<ProcessInfo>, ClientError> {
        let reply = self.location.ask(Request::Processes(self.selector.clone())).await?;
        fitting!("processes", reply, Reply::Processes(processes) => processes)
    }

    /// Removes it; also if it runs, with `force`.
    pub async fn remove(&self, force: bool) -> Result<(), ClientError> {
        self.ask_done(Request::Remove { container: self.selector.clone(), force }).await
    }

    /// Sends a signal (Linux numbers, 1 to 64) to its first process.
    pub async fn signal(&self, signal: u8) -> Result<(), ClientError> {
        self.ask_done(Request::Signal { container: self.selector.clone(), signal }).await
    }

    /// Lets it connect to a port of another container, or of all with a label.
    pub async fn connect_to(
        &self,
        to: impl Into<Party>,
        port: u16,
        transport: Transport,
    ) -> Result<(), ClientError> {
        let from = self.selector.clone();
        self.location.allow(ConnectRequest { from: from.into(), to: to.into(), port, transport }).await
    }

    async fn frames(&self, request: Request) -> Result<Process, ClientError> {
        let (reply, stream) = self.location.open(&request).await?;
        fitting!("stream", reply, Reply::Done => Process::new(self.location.clone(), stream))
    }

    /// Starts a process in it.
    pub async fn exec(&self, spec: ExecSpec) -> Result<Process, ClientError> {
        self.frames(Request::Exec { container: self.selector.clone(), spec }).await
    }

    /// Copies files out of it or into it: an archive as standard output or input of what comes back, see [`CopySpec`].
    pub async fn copy(&self, copy: CopySpec) -> Result<Process, ClientError> {
        self.frames(Request::Copy { container: self.selector.clone(), copy }).await
    }

    /// Its output so far and from now on; input goes to it.
    pub async fn attach(&self) -> Result<Process, ClientError> {
        self.frames(Request::Attach(self.selector.clone())).await
    }

    /// Its output.
    pub async fn logs(&self, query: LogQuery) -> Result<Output, ClientError> {
        let request = Request::Logs { container: self.selector.clone(), query };
        Ok(self.frames(request).await?.output)
    }

    /// A TCP connection to a port inside it: the stream carries raw bytes both ways.
    pub async fn open_port(&self, port: u16) -> Result<Stream, ClientError> {
        self.open_tunnel(port, Transport::Tcp).await
    }

    /// UDP to a port inside it: the stream carries datagrams both ways (`wherry_protocol::io::send_datagram`).
    pub async fn open_datagrams(&self, port: u16) -> Result<Stream, ClientError> {
        self.open_tunnel(port, Transport::Udp).await
    }

    async fn open_tunnel(&self, port: u16, transport: Transport) -> Result<Stream, ClientError> {
        let request = Request::Tunnel { container: self.selector.clone(), port, transport };
        let (reply, stream) = self.location.open(&request).await?;
        fitting!("tunnel", reply, Reply::Done => stream)
    }
}

/// What a container has changed, and against what.
#[derive(Debug)]
pub struct Changes {
    /// What its image consists of.
    pub manifest: ImageManifest,
    /// The image's configuration, JSON (OCI image-spec, config.md).
    pub config: Vec<u8>,
    output: Output,
}

impl Changes {
    /// The next bytes of them; `None` once all of them have come. Must not be cancelled half-way.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        match self.output.next().await? {
            Some(Frame::Data { channel: Channel::Stdout, bytes }) => Ok(Some(bytes)),
            Some(Frame::Exit(ExitStatus::Code(0))) => Ok(None),
            Some(Frame::Error(error)) => Err(ClientError::Refused(error)),
            Some(_) => Err(ClientError::Unexpected("changes")),
            None => Err(incomplete()),
        }
    }
}

fn incomplete() -> ClientError {
    let message = "the container's changes could not be read: the stream ended early";
    ClientError::Refused(WireError::new(ErrorCode::Internal, message))
}

/// What happens in a cluster, as it happens.
#[derive(Debug)]
pub struct Events {
    location: Location,
    stream: Stream,
}

impl Events {
    pub(crate) fn new(location: Location, stream: Stream) -> Self {
        Self { location, stream }
    }

    /// The next event; `None` once the broker has closed the stream. Must not be cancelled half-way.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        recv(&mut self.stream, Limits::DEFAULT.message_bytes).await.map_err(|error| self.location.lost(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_told_apart() {
        assert_eq!(selector("c12").unwrap(), ContainerSelector::Id(ContainerId(12)));
        for name in ["web", "c", "c1x", "12"] {
            assert_eq!(selector(name).unwrap(), ContainerSelector::Name(name.parse().unwrap()));
        }
        assert!(selector("../x").is_err());
    }
}
