//! Requests of users that the broker routed here, one stream each.
use crate::container::changes;
use crate::container::confined::confined;
use crate::container::execute::Execution;
use crate::container::instance::Instance;
use crate::container::logs::{Attendant, Batch, Entry, Log};
use crate::container::pump::{AsyncDescriptor, unix_ms};
use crate::container::runtime::Runtime;
use crate::container::usage;
use crate::net::Network;
use crate::probe::Prober;
use crate::session::ServeStream;
use futures_util::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::UdpSocket;
use tokio_util::compat::FuturesAsyncReadCompatExt;
use wherry_protocol::io::{self, HungUp, SessionError, Stream};
use wherry_protocol::message::{
    ChangesQuery, Channel, CopySpec, ExecSpec, ExitStatus, Frame, LogQuery, LogSince, Probe, Reply, Routed,
    RoutedRequest, Transport,
};
use wherry_protocol::{ContainerRef, ErrorCode, Limits, WireError};
use wherry_sys::landlock::Kept;

/// Log bytes read at once for one follower.
const BATCH_BYTES: usize = 64 * 1024;
/// Output of an exec'd process read at once, in bytes.
const CHUNK: usize = 16 * 1024;

/// Serves routed streams.
#[derive(Debug)]
pub struct Router {
    runtime: Runtime,
    network: Network,
    prober: Prober,
    /// Whether this image may be told to crash.
    crash_allowed: bool,
}

impl Router {
    /// Serves from these.
    #[must_use]
    pub fn new(runtime: Runtime, network: Network, crash_allowed: bool) -> Self {
        let prober = Prober::new(runtime.clone(), network.clone());
        Self { runtime, network, prober, crash_allowed }
    }

    async fn route(&self, mut stream: Stream) -> Result<(), SessionError> {
        let Some(Routed { account: _, request }) =
            io::recv(&mut stream, Limits::DEFAULT.message_bytes).await?
        else {
            return Ok(());
        };
        let served = match request {
            RoutedRequest::Exec { container, spec } => self.exec(&mut stream, container, spec).await,
            RoutedRequest::Copy { container, copy } => self.copy(&mut stream, container, &copy).await,
            RoutedRequest::Attach { container } => self.attach(&mut stream, container).await,
            RoutedRequest::Logs { container, query } => self.logs(&mut stream, container, query).await,
            RoutedRequest::Tunnel { container, port, transport: Transport::Tcp } => {
                self.tunnel(&mut stream, container, port).await
            }
            RoutedRequest::Tunnel { container, port, transport: Transport::Udp } => {
                self.datagrams(&mut stream, container, port).await
            }
            RoutedRequest::Stats { container } => self.stats(&mut stream, container).await,
            RoutedRequest::Processes { container } => self.processes(&mut stream, container).await,
            RoutedRequest::Signal { container, signal } => self.signal(&mut stream, container, signal).await,
            RoutedRequest::Pause { container, paused } => self.pause(&mut stream, container, paused).await,
            RoutedRequest::Ready { container, probe, timeout_ms } => {
                self.ready(&mut stream, container, probe, timeout_ms).await
            }
            RoutedRequest::Changes { container, query } => self.changes(&mut stream, container, query).await,
            RoutedRequest::Crash => self.crash(&mut stream).await,
        };
        match served {
            Ok(()) => {}
            Err(Failure::Refused(error)) => io::send(&mut stream, &Reply::Error(error)).await?,
            Err(Failure::Session(error)) => return Err(error),
        }
        stream.close().await.map_err(SessionError::Io)
    }

    fn instance(&self, container: ContainerRef) -> Result<Arc<Instance>, Failure> {
        self.runtime.instance(container).ok_or_else(|| not_started(container))
    }

    async fn exec(
        &self,
        stream: &mut Stream,
        container: ContainerRef,
        spec: ExecSpec,
    ) -> Result<(), Failure> {
        let instance = self.instance(container)?;
        let execution = Execution::start(self.runtime.supervisor(), &instance, &spec).await?;
        carry(stream, execution).await
    }

    async fn copy(
        &self,
        stream: &mut Stream,
        container: ContainerRef,
        copy: &CopySpec,
    ) -> Result<(), Failure> {
        let instance = self.instance(container)?;
        let execution = Execution::copy(self.runtime.supervisor(), &instance, copy).await?;
        carry(stream, execution).await
    }

    async fn attach(&self, stream: &mut Stream, container: ContainerRef) -> Result<(), Failure> {
        let instance = self.instance(container)?;
        io::send(stream, &Reply::Done).await?;
        let gone = stream.hung_up();
        let (mut reader, mut writer) = stream.split();
        let shown = async {
            let attendant = instance.log.attend();
            let all = LogQuery { follow: true, ..LogQuery::default() };
            show_log(&mut writer, &instance.log, all, attendant.as_ref()).await?;
            let ended = instance.wait().await;
            io::send(&mut writer, &Frame::Exit(ended.status)).await
        };
        let heard = take_input(&mut reader, &self.runtime, &instance);
        Ok(until_hung_up(first_error(shown, heard), gone).await?)
    }

    async fn logs(
        &self,
        stream: &mut Stream,
        container: ContainerRef,
        query: LogQuery,
    ) -> Result<(), Failure> {
        let log = self.runtime.log(container).ok_or_else(|| not_started(container))?;
        io::send(stream, &Reply::Done).await?;
        let gone = stream.hung_up();
        Ok(until_hung_up(show_log(stream, &log, query, None), gone).await?)
    }

    async fn tunnel(&self, stream: &mut Stream, container: ContainerRef, port: u16) -> Result<(), Failure> {
        let id = container.id;
        let mut inside = self.network.connect(id, port).await.map_err(|error| {
            let message = format!("nothing answers on port {port} of container {id}: {error}");
            WireError::new(ErrorCode::WrongState, message)
        })?;
        inside.set_nodelay(true).ok();
        io::send(stream, &Reply::Done).await?;
        let gone = stream.hung_up();
        let mut outside = stream.compat();
        let copied = until_hung_up(
            async {
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await.map_err(SessionError::Io)
            },
            gone,
        );
        if let Err(error) = copied.await {
            // Either side may break off at any time. The other one must be able to tell that from an end.
            inside.set_zero_linger().ok();
            return Err(error.into());
        }
        Ok(())
    }

    async fn datagrams(
        &self,
        stream: &mut Stream,
        container: ContainerRef,
        port: u16,
    ) -> Result<(), Failure> {
        let id = container.id;
        let inside = self.network.connect_udp(id, port).await.map_err(|error| {
            let message = format!("port {port}/udp of container {id} cannot be reached: {error}");
            WireError::new(ErrorCode::WrongState, message)
        })?;
        io::send(stream, &Reply::Done).await?;
        // The asker has had enough, or is gone; neither is a failure of the node.
        carry_datagrams(stream, &inside).await.ok();
        Ok(())
    }

    async fn signal(&self, stream: &mut Stream, container: ContainerRef, signal: u8) -> Result<(), Failure> {
        self.runtime.signal(container, signal).await?;
        Ok(io::send(stream, &Reply::Done).await?)
    }

    async fn stats(&self, stream: &mut Stream, container: ContainerRef) -> Result<(), Failure> {
        let mut stats = usage::stats(&*self.instance(container)?)?;
        stats.dropped = self.network.drops(container.id).await.unwrap_or_else(|error| {
            tracing::warn!(%container, "its firewall's counters cannot be read: {error}");
            None
        });
        Ok(io::send(stream, &Reply::Stats(stats)).await?)
    }

    async fn processes(&self, stream: &mut Stream, container: ContainerRef) -> Result<(), Failure> {
        let instance = self.instance(container)?;
        let found = tokio::task::spawn_blocking(move || usage::processes(&instance)).await;
        let found = found.map_err(|error| WireError::new(ErrorCode::Internal, error.to_string()))??;
        Ok(io::send(stream, &Reply::Processes(found)).await?)
    }

    async fn pause(&self, stream: &mut Stream, container: ContainerRef, paused: bool) -> Result<(), Failure> {
        self.runtime.pause(container, paused).await?;
        Ok(io::send(stream, &Reply::Done).await?)
    }

    async fn ready(
        &self,
        stream: &mut Stream,
        container: ContainerRef,
        probe: Option<Probe>,
        timeout_ms: u32,
    ) -> Result<(), Failure> {
        let patience = std::time::Duration::from_millis(u64::from(timeout_ms));
        let gone = stream.hung_up();
        let answered = async {
            let ready = self.prober.ready(container, probe, patience).await;
            io::send(stream, &ready.map_or_else(Reply::Error, |()| Reply::Done)).await
        };
        Ok(until_hung_up(answered, gone).await?)
    }

    async fn changes(
        &self,
        stream: &mut Stream,
        container: ContainerRef,
        query: ChangesQuery,
    ) -> Result<(), Failure> {
        let instance = self.instance(container)?;
        let config = self.runtime.image_config(&instance.image.config)?;
        io::send(stream, &Reply::Base { manifest: instance.image.clone(), config }).await?;
        let gone = stream.hung_up();
        Ok(until_hung_up(show_changes(stream, instance, query), gone).await?)
    }

    async fn crash(&self, stream: &mut Stream) -> Result<(), Failure> {
        if !self.crash_allowed {
            let message = "this node was not flashed with a test image and does not crash on request";
            return Err(WireError::new(ErrorCode::Forbidden, message).into());
        }
        io::send(stream, &Reply::Done).await?;
        stream.close().await.map_err(SessionError::Io)?;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        tracing::error!("crashing on request");
        std::process::abort()
    }
}

impl ServeStream for Router {
    async fn serve(self: Arc<Self>, stream: Stream) {
        if let Err(error) = self.route(stream).await {
            tracing::debug!("a routed stream ended: {error}");
        }
    }
}

/// Why a request was not served to its end.
#[derive(Debug)]
enum Failure {
    /// The user is told.
    Refused(WireError),
    /// Nobody is there to be told.
    Session(SessionError),
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self::Refused(error)
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

/// Until the stream ends.
async fn carry_datagrams(stream: &mut Stream, inside: &UdpSocket) -> Result<(), SessionError> {
    let (mut reader, mut writer) = stream.split();
    let towards = async {
        let mut datagram = Vec::new();
        while io::recv_datagram(&mut reader, &mut datagram).await? {
            // One that could not be delivered is lost, as on any network.
            inside.send(&datagram).await.ok();
        }
        Ok(())
    };
    let back = async {
        let mut buffer = vec![0; io::MAX_DATAGRAM_BYTES];
        loop {
            match inside.recv(&mut buffer).await {
                Ok(length) => {
                    io::send_datagram(&mut writer, buffer.get(..length).unwrap_or_default()).await?;
                }
                // Nobody listened when the last one came; somebody may when the next one does.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(SessionError::Io(error)),
            }
        }
    };
    tokio::select! {
        ended = towards => ended,
        broken = back => broken,
    }
}

/// Carries an added process to its end, and leaves nothing of it.
async fn carry(stream: &mut Stream, execution: Execution) -> Result<(), Failure> {
    let result = converse(stream, &execution).await;
    execution.release().await;
    Ok(result?)
}

async fn converse(stream: &mut Stream, execution: &Execution) -> Result<(), SessionError> {
    io::send(stream, &Reply::Done).await?;
    let gone = stream.hung_up();
    let (mut reader, writer) = stream.split();
    let writer = tokio::sync::Mutex::new(writer);
    let activity = Activity::default();
    let copied = async {
        tokio::try_join!(copy_out(&execution.stdout, Channel::Stdout, &writer, &activity), async {
            match &execution.stderr {
                Some(stderr) => copy_out(stderr, Channel::Stderr, &writer, &activity).await,
                None => Ok(()),
            }
        },)
        .map(|((), ())| ())
    };
    let spoken = async {
        // What it left running may keep the pipes open; its own end counts.
        let (outcome, copied) = tokio::join!(execution.wait(), async {
            tokio::select! {
                result = copied => result,
                () = lingering(execution, &activity) => Ok(()),
            }
        });
        copied?;
        let last = match outcome {
            Ok(status) => Frame::Exit(status),
            Err(error) => Frame::Error(error),
        };
        io::send(&mut *writer.lock().await, &last).await
    };
    until_hung_up(first_error(spoken, feed(&mut reader, execution)), gone).await
}

/// Output on its way to the user.
#[derive(Debug, Default)]
struct Activity {
    /// Pieces read so far.
    pieces: AtomicU64,
    /// Pieces that the user has not taken yet.
    pending: AtomicU64,
}

/// Completes when the process has ended and, for a moment, nothing more came of it: its last output is read however slow
/// the user's line is.
async fn lingering(execution: &Execution, activity: &Activity) {
    const LAST_WORDS: std::time::Duration = std::time::Duration::from_millis(500);
    execution.ended().await;
    loop {
        let before = activity.pieces.load(Ordering::Relaxed);
        tokio::time::sleep(LAST_WORDS).await;
        let quiet = activity.pending.load(Ordering::Relaxed) == 0;
        if quiet && activity.pieces.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

async fn copy_out(
    source: &AsyncDescriptor,
    channel: Channel,
    writer: &tokio::sync::Mutex<impl AsyncWrite + Unpin>,
    activity: &Activity,
) -> Result<(), SessionError> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = source.read(&mut buffer).await.unwrap_or(0);
        if length == 0 {
            return Ok(());
        }
        activity.pieces.fetch_add(1, Ordering::Relaxed);
        activity.pending.fetch_add(1, Ordering::Relaxed);
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        io::send(&mut *writer.lock().await, &Frame::Data { channel, bytes }).await?;
        activity.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Passes the user's side on to an exec'd process.
async fn feed(reader: &mut (impl AsyncRead + Unpin), execution: &Execution) -> Result<(), SessionError> {
    while let Some(frame) = io::recv::<Frame>(reader, Limits::DEFAULT.message_bytes).await? {
        match frame {
            // A process that does not read its input is no reason to end the conversation.
            Frame::Data { channel: Channel::Stdin, bytes } => {
                execution.write(&bytes).await.unwrap_or_default()
            }
            Frame::End(Channel::Stdin) => execution.end_input().await,
            Frame::Resize { rows, columns } => execution.resize(rows, columns),
            Frame::Signal(signal) => execution.signal(signal).await,
            other => return Err(out_of_place(&other)),
        }
    }
    Ok(())
}

/// Passes the user's side on to a container's first process.
async fn take_input(
    reader: &mut (impl AsyncRead + Unpin),
    runtime: &Runtime,
    instance: &Instance,
) -> Result<(), SessionError> {
    while let Some(frame) = io::recv::<Frame>(reader, Limits::DEFAULT.message_bytes).await? {
        match frame {
            Frame::Data { channel: Channel::Stdin, bytes } => {
                instance.input().write(&bytes).await.ok();
            }
            Frame::End(Channel::Stdin) => runtime.end_input(instance).await,
            Frame::Resize { rows, columns } => instance.resize(rows, columns),
            Frame::Signal(signal) => {
                runtime.signal(instance.container, signal).await.ok();
            }
            other => return Err(out_of_place(&other)),
        }
    }
    Ok(())
}

fn out_of_place(frame: &Frame) -> SessionError {
    SessionError::Refused(WireError::new(ErrorCode::Invalid, format!("a user does not send {frame:?}")))
}

fn not_started(container: ContainerRef) -> Failure {
    let message = format!("container {} has not been started on its node", container.id);
    Failure::Refused(WireError::new(ErrorCode::WrongState, message))
}

/// Sends what the log holds and, if asked, what comes, until the container's output has ended.
async fn show_log(
    writer: &mut (impl AsyncWrite + Unpin),
    log: &Log,
    query: LogQuery,
    attendant: Option<&Attendant<'_>>,
) -> Result<(), SessionError> {
    let since_ms = query.since.map_or(0, |since| match since {
        LogSince::Time(time) => time,
        LogSince::Age(age) => unix_ms().saturating_sub(age),
    });
    let shape = Shape { since_ms, times: query.times };
    let mut progress = log.follow();
    let first = match query.tail_lines {
        Some(lines) => log.tail(lines),
        None => log.read(log.start(), BATCH_BYTES),
    };
    let mut position = show(writer, first.map_err(SessionError::Io)?, shape).await?;
    loop {
        let seen = *progress.borrow_and_update();
        let batch = log.read(position, BATCH_BYTES).map_err(SessionError::Io)?;
        if !batch.entries.is_empty() {
            position = show(writer, batch, shape).await?;
            attendant.inspect(|attendant| attendant.has_read(position));
        } else if seen.closed || !query.follow || progress.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// What of the output is shown, and how; decided once, because clocks move.
#[derive(Debug, Clone, Copy)]
struct Shape {
    since_ms: u64,
    times: bool,
}

async fn show(
    writer: &mut (impl AsyncWrite + Unpin),
    batch: Batch,
    shape: Shape,
) -> Result<u64, SessionError> {
    if batch.dropped > 0 {
        io::send(writer, &Frame::Dropped { bytes: batch.dropped }).await?;
    }
    let wanted = |entry: &Entry| entry.time_ms >= shape.since_ms;
    for entry in batch.entries.into_iter().filter(wanted) {
        if shape.times {
            io::send(writer, &Frame::Time(entry.time_ms)).await?;
        }
        io::send(writer, &Frame::Data { channel: entry.channel, bytes: entry.bytes }).await?;
    }
    Ok(batch.next)
}

/// Sends what a container has changed; a thread of its own reads it, no faster than the user takes it.
async fn show_changes(
    writer: &mut (impl AsyncWrite + Unpin),
    instance: Arc<Instance>,
    query: ChangesQuery,
) -> Result<(), SessionError> {
    let (chunks, mut queue) = tokio::sync::mpsc::channel(4);
    let read = std::iter::once(&instance.root.upper).chain(&instance.root.layers).cloned().collect();
    let work = confined(Kept { read, ..Kept::default() }, move || {
        let mut out = std::io::BufWriter::with_capacity(CHUNK, Chunks(chunks));
        match query {
            ChangesQuery::Names => changes::names(&instance.root, &mut out)?,
            ChangesQuery::Layer => changes::layer(&instance.root, &mut out)?,
        }
        std::io::Write::flush(&mut out)
    });
    while let Some(bytes) = queue.recv().await {
        io::send(writer, &Frame::Data { channel: Channel::Stdout, bytes }).await?;
    }
    let last = match work.await.and_then(|written| written) {
        Ok(()) => Frame::Exit(ExitStatus::Code(0)),
        Err(error) => {
            let message = format!("the container's files cannot be read: {error}");
            Frame::Error(WireError::new(ErrorCode::Internal, message))
        }
    };
    io::send(writer, &last).await
}

/// Hands bytes over to the stream.
struct Chunks(tokio::sync::mpsc::Sender<Vec<u8>>);

impl std::io::Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let chunk = bytes.get(..bytes.len().min(CHUNK)).unwrap_or_default().to_vec();
        let length = chunk.len();
        self.0.blocking_send(chunk).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(length)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs both; the first failure of either ends both, and the end of `speaking` is the end.
async fn first_error(
    speaking: impl Future<Output = Result<(), SessionError>>,
    listening: impl Future<Output = Result<(), SessionError>>,
) -> Result<(), SessionError> {
    let listening = async {
        match listening.await {
            // The user has nothing more to say, but may still want to hear.
            Ok(()) => std::future::pending().await,
            Err(error) => Err(error),
        }
    };
    tokio::select! {
        result = speaking => result,
        result = listening => result,
    }
}

/// Runs `speaking` until its end or until the asker hangs up, which is noticed even while nothing of the asker's is read.
async fn until_hung_up<T>(
    speaking: impl Future<Output = Result<T, SessionError>>,
    gone: HungUp,
) -> Result<T, SessionError> {
    tokio::select! {
        biased;
        result = speaking => result,
        () = gone => Err(SessionError::Io(std::io::ErrorKind::ConnectionReset.into())),
    }
}
