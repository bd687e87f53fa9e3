//! An Ethernet segment between machines, in user space: no root, no bridge, and its faults are ours to choose.
//!
//! Each port is a pair of unix datagram sockets, one Ethernet frame per datagram (QEMU's `-netdev dgram`, since 7.2).
//! A task per port reads; a task per port writes what its bounded queue holds, and a full queue drops frames, as
//! switches do.
mod fabric;
mod lan;
mod pcap;

pub use fabric::{Counters, Faults, Port};
pub use lan::Lan;

use crate::machine::{Mac, Nic};
use fabric::{Fabric, MAX_FRAME_BYTES};
use pcap::Capture;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Frames that wait for a machine to take them. A TCP window of 1.5 MB in full frames: more would only add delay.
const QUEUE_FRAMES: usize = 1024;
/// Longest path of a unix socket, in bytes (`sun_path` of unix(7) without its final NUL; macOS has 103).
const MAX_SOCKET_PATH_BYTES: usize = 103;

/// Why a segment cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// Its directory, a socket or a capture file cannot be made.
    #[error("cannot make {} for the network segment", path.display())]
    Io {
        /// What was to be made.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The kernel takes no unix socket with a path that long.
    #[error("the path {} is too long for a socket; choose a directory with a shorter name", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
}

#[derive(Debug)]
struct Shared {
    fabric: Fabric,
    queues: Vec<mpsc::Sender<Arc<[u8]>>>,
    capture: Option<Capture>,
}

/// A segment. Dropping it pulls all plugs and removes its sockets.
#[derive(Debug)]
pub struct Segment {
    directory: PathBuf,
    shared: Arc<Mutex<Shared>>,
    tasks: JoinSet<()>,
}

impl Segment {
    /// A segment with its sockets in a new private directory with a short name below the system's temporary one.
    /// `seed` decides which frames are lost when some are to be.
    pub fn new(seed: u64) -> Result<Self, SegmentError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wherry-lan-{}-{number}", std::process::id());
        Self::in_directory(&std::env::temp_dir().join(name), seed)
    }

    /// As [`Segment::new`], in `directory`, which is made and must not exist yet.
    pub fn in_directory(directory: &Path, seed: u64) -> Result<Self, SegmentError> {
        // Not recursive and not over an existing one: whoever owned that could listen in.
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(directory)
            .map_err(|source| SegmentError::Io { path: directory.to_owned(), source })?;
        let shared = Shared { fabric: Fabric::new(seed), queues: Vec::new(), capture: None };
        Ok(Self {
            directory: directory.to_owned(),
            shared: Arc::new(Mutex::new(shared)),
            tasks: JoinSet::new(),
        })
    }

    /// Adds a port for a machine's card with this address. The card may come, go and come back.
    pub fn plug(&mut self, mac: Mac) -> Result<(Port, Nic), SegmentError> {
        let (port, queue) = self.new_port();
        let socket = |end: char| self.socket_path(&format!("{end}{}", port.0));
        let (machine_end, our_end) = (socket('m')?, socket('s')?);
        let io = |source| SegmentError::Io { path: our_end.clone(), source };
        let inbound = UnixDatagram::bind(&our_end).map_err(io)?;
        let outbound = UnixDatagram::unbound().map_err(io)?;
        self.tasks.spawn(read_frames(inbound, port, Arc::clone(&self.shared)));
        self.tasks.spawn(write_frames(outbound, machine_end.clone(), queue));
        Ok((port, Nic::Segment { mac, local: machine_end, remote: our_end }))
    }

    /// Adds a DHCP server.
    pub fn serve(&mut self, lan: Lan) -> Port {
        let (port, mut queue) = self.new_port();
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            while let Some(frame) = queue.recv().await {
                if let Some(answer) = lan.answer(&frame) {
                    forward(&shared, port, &answer);
                }
            }
        });
        port
    }

    /// Cuts a port off, or joins it again.
    pub fn set_cut(&self, port: Port, cut: bool) {
        lock(&self.shared).fabric.set_cut(port, cut);
    }

    /// Makes the wire better or worse.
    pub fn set_faults(&self, faults: Faults) {
        lock(&self.shared).fabric.set_faults(faults);
    }

    /// What has been carried so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        lock(&self.shared).fabric.counters
    }

    /// Writes every frame that comes in from now on to `path`, for Wireshark or tcpdump.
    pub fn capture(&self, path: &Path) -> Result<(), SegmentError> {
        let capture =
            Capture::create(path).map_err(|source| SegmentError::Io { path: path.to_owned(), source })?;
        lock(&self.shared).capture = Some(capture);
        Ok(())
    }

    fn new_port(&self) -> (Port, mpsc::Receiver<Arc<[u8]>>) {
        let (sender, receiver) = mpsc::channel(QUEUE_FRAMES);
        let mut shared = lock(&self.shared);
        shared.queues.push(sender);
        (shared.fabric.add_port(), receiver)
    }

    fn socket_path(&self, name: &str) -> Result<PathBuf, SegmentError> {
        let path = self.directory.join(name);
        if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            return Err(SegmentError::PathTooLong { path });
        }
        Ok(path)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.tasks.abort_all();
        if let Some(capture) = &mut lock(&self.shared).capture
            && let Err(error) = capture.flush()
        {
            tracing::warn!(%error, "the end of the capture is lost");
        }
        // Only a leftover directory of sockets remains if this fails.
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

/// A task that panicked while it held the lock leaves counters and tables that are still good to use.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn forward(shared: &Mutex<Shared>, from: Port, frame: &[u8]) {
    let mut shared = lock(shared);
    let targets = shared.fabric.receive(from, frame);
    if let Some(capture) = &mut shared.capture {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if let Err(error) = capture.frame(now, frame) {
            tracing::warn!(%error, "stopped capturing");
            shared.capture = None;
        }
    }
    let frame: Arc<[u8]> = frame.into();
    for port in targets {
        let taken = shared.queues.get(port.0).is_some_and(|queue| queue.try_send(Arc::clone(&frame)).is_ok());
        let counters = &mut shared.fabric.counters;
        let count = if taken { &mut counters.delivered } else { &mut counters.overflowed };
        *count = count.saturating_add(1);
    }
}

async fn read_frames(socket: UnixDatagram, port: Port, shared: Arc<Mutex<Shared>>) {
    // One byte more than allowed, so that a longer frame is seen to be too long.
    let mut buffer = vec![0; MAX_FRAME_BYTES + 1];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(length) => forward(&shared, port, buffer.get(..length).unwrap_or_default()),
            Err(error) => {
                tracing::warn!(%error, ?port, "cannot read from a machine's card");
                return;
            }
        }
    }
}

/// Frames for a machine that does not run are dropped; each one tries to reach it anew.
async fn write_frames(socket: UnixDatagram, machine_end: PathBuf, mut queue: mpsc::Receiver<Arc<[u8]>>) {
    let mut connected = false;
    while let Some(frame) = queue.recv().await {
        if !connected {
            connected = socket.connect(&machine_end).is_ok();
        }
        if connected && socket.send(&frame).await.is_err() {
            // The machine was restarted, perhaps: its socket is a new one under the old name.
            connected = socket.connect(&machine_end).is_ok() && socket.send(&frame).await.is_ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const A: Mac = Mac::local(1, 1);
    const B: Mac = Mac::local(1, 2);

    /// Plays QEMU's end of a port.
    struct Card {
        socket: UnixDatagram,
        remote: PathBuf,
    }

    impl Card {
        fn new(nic: &Nic) -> Self {
            let Nic::Segment { local, remote, .. } = nic else { unreachable!("plug makes segment cards") };
            drop(std::fs::remove_file(local));
            Self { socket: UnixDatagram::bind(local).unwrap(), remote: remote.clone() }
        }

        async fn send(&self, to: Mac, from: Mac, body: &[u8]) {
            let frame = [&to.0[..], &from.0, &[0x88, 0xb5], body].concat();
            self.socket.send_to(&frame, &self.remote).await.unwrap();
        }

        async fn body(&self) -> Vec<u8> {
            let mut buffer = [0; 2048];
            let receive = self.socket.recv(&mut buffer);
            let length = tokio::time::timeout(Duration::from_secs(5), receive).await.unwrap().unwrap();
            buffer[14..length].to_vec()
        }
    }

    #[tokio::test]
    async fn frames_cross_and_a_restarted_machine_is_found_again() {
        let mut segment = Segment::new(1).unwrap();
        let (_, nic_a) = segment.plug(A).unwrap();
        let (_, nic_b) = segment.plug(B).unwrap();
        let a = Card::new(&nic_a);
        for life in 1..=3_u8 {
            let b = Card::new(&nic_b);
            a.send(B, A, &[life; 50]).await;
            assert_eq!(b.body().await, [life; 50]);
            b.send(A, B, &[life; 60]).await;
            assert_eq!(a.body().await, [life; 60]);
        }
        let directory = segment.directory.clone();
        drop(segment);
        assert!(!directory.exists());
    }

    #[tokio::test]
    async fn a_machine_that_does_not_read_costs_bounded_memory() {
        let mut segment = Segment::new(1).unwrap();
        let (_, nic_a) = segment.plug(A).unwrap();
        let (_, nic_b) = segment.plug(B).unwrap();
        let (a, _b) = (Card::new(&nic_a), Card::new(&nic_b));
        let sent = QUEUE_FRAMES + 500;
        for _ in 0..sent {
            a.send(B, A, &[0; 100]).await;
        }
        let all_seen = async {
            while segment.counters().received < sent as u64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all_seen).await.unwrap();
        assert!(segment.counters().overflowed > 0, "{:?}", segment.counters());
    }

    #[tokio::test]
    async fn a_directory_that_exists_is_not_taken_over_and_long_names_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(Segment::in_directory(directory.path(), 1), Err(SegmentError::Io { .. })));
        let long = directory.path().join("x".repeat(120));
        let mut segment = Segment::in_directory(&long, 1).unwrap();
        assert!(matches!(segment.plug(A), Err(SegmentError::PathTooLong { .. })));
    }
}
