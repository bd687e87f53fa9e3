//! The output of one container: a bounded ring in a memory file.
//!
//! The supervisor keeps the file's descriptor, so a restarted service finds every byte again; nothing is written to disk.
//! Old output gives way to new; how much was lost is counted.
//!
//! ```text
//! 0..40   magic, capacity, start, end, dropped    (u64 each, little endian)
//! 40..    entries, circular: length u32 ‖ channel u8 ‖ time u64 ‖ bytes
//! ```
//! `start` and `end` count bytes since the beginning and never wrap; a position in the file is that modulo `capacity`.
//! Eviction moves `start` before its bytes are overwritten, and an entry is written before `end` covers it, so a crash
//! between two writes loses at most the entry under way.
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use wherry_protocol::message::Channel;

/// Output held for one container, in bytes: some 3000 lines, and small enough for hundreds of containers on a board.
pub const DEFAULT_CAPACITY: u64 = 256 * 1024;
/// Bytes of one entry; longer writes become several.
const MAX_ENTRY: usize = 8 * 1024;
const HEADER: u64 = 40;
const ENTRY_HEADER: u64 = 13;
const MAGIC: u64 = u64::from_le_bytes(*b"WHRYLOG1");

/// One piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it was written.
    pub channel: Channel,
    /// When it was read from the container, Unix milliseconds.
    pub time_ms: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// What a reader gets at once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Bytes of output (entry headers included) that were overwritten before this reader came to them.
    pub dropped: u64,
    /// Output, oldest first.
    pub entries: Vec<Entry>,
    /// Where to go on.
    pub next: u64,
}

/// The ring itself. One writer at a time.
#[derive(Debug)]
pub struct Ring {
    file: File,
    capacity: u64,
    start: u64,
    end: u64,
    dropped: u64,
}

impl Ring {
    /// An empty ring that holds `capacity` bytes.
    ///
    /// # Errors
    /// When the kernel gives no memory file.
    pub fn create(capacity: u64) -> io::Result<Self> {
        let file = File::from(memfd_create(c"wherry-log", MFdFlags::MFD_CLOEXEC)?);
        let capacity = capacity.max(2 * (MAX_ENTRY as u64 + ENTRY_HEADER));
        file.set_len(HEADER + capacity)?;
        let ring = Self { file, capacity, start: 0, end: 0, dropped: 0 };
        ring.write_header()?;
        Ok(ring)
    }

    /// The ring behind a descriptor that was kept for a previous life of this service.
    ///
    /// # Errors
    /// When it holds no ring.
    pub fn open(descriptor: OwnedFd) -> io::Result<Self> {
        let file = File::from(descriptor);
        let mut header = [0; HEADER as usize];
        file.read_exact_at(&mut header, 0)?;
        let field = |index: usize| {
            let bytes = header.get(index * 8..index * 8 + 8).and_then(|bytes| bytes.try_into().ok());
            u64::from_le_bytes(bytes.unwrap_or_default())
        };
        let ring = Self { capacity: field(1), start: field(2), end: field(3), dropped: field(4), file };
        let length = ring.file.metadata()?.len();
        let plausible = field(0) == MAGIC
            && ring.capacity.checked_add(HEADER) == Some(length)
            && ring.end.checked_sub(ring.start).is_some_and(|held| held <= ring.capacity);
        if plausible { Ok(ring) } else { Err(damaged()) }
    }

    /// The memory file, to be kept by the supervisor.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Adds output.
    ///
    /// # Errors
    /// When the memory file cannot be written (out of memory).
    pub fn append(&mut self, channel: Channel, time_ms: u64, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(MAX_ENTRY) {
            self.append_entry(channel, time_ms, piece)?;
        }
        Ok(())
    }

    fn append_entry(&mut self, channel: Channel, time_ms: u64, bytes: &[u8]) -> io::Result<()> {
        let needed = ENTRY_HEADER + bytes.len() as u64;
        if self.evict(needed)? {
            self.write_header()?;
        }
        let mut entry = Vec::with_capacity(bytes.len() + ENTRY_HEADER as usize);
        entry.extend_from_slice(&u32::try_from(bytes.len()).map_err(|_| damaged())?.to_le_bytes());
        entry.push(code(channel));
        entry.extend_from_slice(&time_ms.to_le_bytes());
        entry.extend_from_slice(bytes);
        self.write_circular(self.end, &entry)?;
        self.end += needed;
        self.write_header()
    }

    /// Whether one more entry of so many bytes leaves everything from `floor` on in its place.
    fn holds(&self, floor: u64, bytes: usize) -> bool {
        let needed = ENTRY_HEADER + bytes as u64;
        self.end.saturating_sub(floor).saturating_add(needed) <= self.capacity
    }

    /// Drops the oldest entries until `needed` bytes fit; tells whether any went.
    fn evict(&mut self, needed: u64) -> io::Result<bool> {
        let before = self.start;
        while self.end - self.start + needed > self.capacity {
            let length = ENTRY_HEADER + u64::from(self.entry_length(self.start)?);
            self.start += length;
            self.dropped += length;
        }
        Ok(self.start != before)
    }

    /// Up to about `max_bytes` of output from `position` on.
    ///
    /// # Errors
    /// When the ring is damaged.
    pub fn read(&self, position: u64, max_bytes: usize) -> io::Result<Batch> {
        // A position from before a crash may lie ahead of what survived.
        let from = position.min(self.end).max(self.start);
        let mut batch = Batch { dropped: from.saturating_sub(position), entries: Vec::new(), next: from };
        let mut bytes = 0;
        while batch.next < self.end && bytes < max_bytes {
            let (entry, next) = self.entry(batch.next)?;
            bytes += entry.bytes.len();
            batch.entries.push(entry);
            batch.next = next;
        }
        Ok(batch)
    }

    /// Where the last `lines` lines begin, as whole entries; the first entry may need its head cut, see [`last_lines`].
    ///
    /// # Errors
    /// When the ring is damaged.
    pub fn tail(&self, lines: u32) -> io::Result<Batch> {
        let mut batch = self.read(self.start, usize::MAX)?;
        batch.entries = last_lines(batch.entries, lines);
        Ok(batch)
    }

    /// Whether nothing was ever written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// The oldest position still held.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes lost since the beginning.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn entry(&self, position: u64) -> io::Result<(Entry, u64)> {
        let mut header = [0; ENTRY_HEADER as usize];
        self.read_circular(position, &mut header)?;
        let [l0, l1, l2, l3, channel, time @ ..] = header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let next = position + ENTRY_HEADER + u64::from(length);
        if next > self.end {
            return Err(damaged());
        }
        let mut bytes = vec![0; length as usize];
        self.read_circular(position + ENTRY_HEADER, &mut bytes)?;
        Ok((Entry { channel: decode(channel)?, time_ms: u64::from_le_bytes(time), bytes }, next))
    }

    fn entry_length(&self, position: u64) -> io::Result<u32> {
        let mut length = [0; 4];
        self.read_circular(position, &mut length)?;
        let length = u32::from_le_bytes(length);
        if length as usize > MAX_ENTRY { Err(damaged()) } else { Ok(length) }
    }

    fn read_circular(&self, position: u64, bytes: &mut [u8]) -> io::Result<()> {
        let (offset, until_end) = self.place(position);
        let (head, rest) = bytes.split_at_mut(bytes.len().min(until_end));
        self.file.read_exact_at(head, offset)?;
        self.file.read_exact_at(rest, HEADER)
    }

    fn write_circular(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let (offset, until_end) = self.place(position);
        let (head, rest) = bytes.split_at(bytes.len().min(until_end));
        self.file.write_all_at(head, offset)?;
        self.file.write_all_at(rest, HEADER)
    }

    /// The offset in the file, and how many bytes follow before the ring begins again.
    fn place(&self, position: u64) -> (u64, usize) {
        let within = position % self.capacity;
        (HEADER + within, usize::try_from(self.capacity - within).unwrap_or(usize::MAX))
    }

    fn write_header(&self) -> io::Result<()> {
        let mut header = Vec::with_capacity(HEADER as usize);
        for field in [MAGIC, self.capacity, self.start, self.end, self.dropped] {
            header.extend_from_slice(&field.to_le_bytes());
        }
        self.file.write_all_at(&header, 0)
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the log ring is damaged")
}

fn code(channel: Channel) -> u8 {
    match channel {
        Channel::Stdin => 0,
        Channel::Stdout => 1,
        Channel::Stderr => 2,
    }
}

fn decode(code: u8) -> io::Result<Channel> {
    match code {
        0 => Ok(Channel::Stdin),
        1 => Ok(Channel::Stdout),
        2 => Ok(Channel::Stderr),
        _ => Err(damaged()),
    }
}

/// Keeps the last `lines` lines; an unfinished last line counts as one.
fn last_lines(mut entries: Vec<Entry>, lines: u32) -> Vec<Entry> {
    let mut wanted = u64::from(lines);
    if wanted == 0 {
        return Vec::new();
    }
    // The newline that ends the very last line does not separate it from another.
    let unfinished = entries.last().is_some_and(|entry| entry.bytes.last() != Some(&b'\n'));
    if !unfinished {
        wanted += 1;
    }
    for index in (0..entries.len()).rev() {
        let Some(entry) = entries.get_mut(index) else { break };
        for position in (0..entry.bytes.len()).rev() {
            if entry.bytes.get(position) == Some(&b'\n') {
                wanted -= 1;
                if wanted == 0 {
                    entry.bytes.drain(..=position);
                    return entries.split_off(index).into_iter().filter(|e| !e.bytes.is_empty()).collect();
                }
            }
        }
    }
    entries
}

/// A ring that many may follow.
#[derive(Debug)]
pub struct Log {
    ring: Mutex<Ring>,
    progress: watch::Sender<Progress>,
    attendance: watch::Sender<Attendance>,
}

/// Whether somebody wants all of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attendance {
    /// Nobody does, or not any more.
    Nobody,
    /// Somebody will come and read from this position on.
    Awaited(u64),
    /// Somebody has read up to this position.
    Reading(u64),
}

/// How long whoever wants all of the output is awaited: a laptop attaches within milliseconds of the start.
const ATTENDANT_COMES: Duration = Duration::from_secs(10);

/// Whoever wants all of the output of a container, as long as this lives.
#[derive(Debug)]
pub struct Attendant<'a>(&'a Log);

impl Attendant<'_> {
    /// Everything before `position` has been read.
    pub fn has_read(&self, position: u64) {
        self.0.attendance.send_replace(Attendance::Reading(position));
    }
}

impl Drop for Attendant<'_> {
    fn drop(&mut self) {
        self.0.attendance.send_replace(Attendance::Nobody);
    }
}

/// How far a log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Where the next output goes.
    pub end: u64,
    /// No more will come.
    pub closed: bool,
}

impl Log {
    /// Makes `ring` followable.
    #[must_use]
    pub fn new(ring: Ring) -> Self {
        let (progress, _) = watch::channel(Progress { end: ring.end, closed: false });
        let (attendance, _) = watch::channel(Attendance::Nobody);
        Self { ring: Mutex::new(ring), progress, attendance }
    }

    /// Somebody is about to come who wants all that is written from now on.
    #[must_use]
    pub fn attended(self) -> Self {
        let from = self.lock().end;
        self.attendance.send_replace(Attendance::Awaited(from));
        self
    }

    /// The one who was announced, if it is the first who comes.
    #[must_use]
    pub fn attend(&self) -> Option<Attendant<'_>> {
        let came = self.attendance.send_if_modified(|attendance| match *attendance {
            Attendance::Awaited(from) => {
                *attendance = Attendance::Reading(from);
                true
            }
            Attendance::Nobody | Attendance::Reading(_) => false,
        });
        came.then_some(Attendant(self))
    }

    /// Whether an attendant is there.
    #[must_use]
    pub fn is_attended(&self) -> bool {
        matches!(*self.attendance.borrow(), Attendance::Reading(_))
    }

    /// Waits until `bytes` more can be added without losing what an attendant has not read.
    pub async fn room(&self, bytes: usize) {
        let mut attendance = self.attendance.subscribe();
        loop {
            let (floor, patience) = match *attendance.borrow_and_update() {
                Attendance::Nobody => return,
                Attendance::Awaited(floor) => (floor, Some(ATTENDANT_COMES)),
                Attendance::Reading(floor) => (floor, None),
            };
            if self.lock().holds(floor, bytes) {
                return;
            }
            let changed = attendance.changed();
            let in_time = match patience {
                Some(patience) => tokio::time::timeout(patience, changed).await.is_ok(),
                None => changed.await.is_ok(),
            };
            if !in_time {
                // Whoever was announced has not come; the container has waited long enough.
                self.attendance.send_replace(Attendance::Nobody);
            }
        }
    }

    /// Adds output and wakes the readers. Output that cannot be kept (no memory) is dropped: a container must not stall
    /// because nobody can hold its words.
    pub fn append(&self, channel: Channel, time_ms: u64, bytes: &[u8]) {
        let mut ring = self.lock();
        if let Err(error) = ring.append(channel, time_ms, bytes) {
            tracing::warn!("a container's output is lost: {error}");
        }
        let end = ring.end;
        drop(ring);
        self.progress.send_modify(|progress| progress.end = end);
    }

    /// No more output will come.
    pub fn close(&self) {
        self.progress.send_modify(|progress| progress.closed = true);
    }

    /// A reader's view of the progress.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// See [`Ring::read`].
    ///
    /// # Errors
    /// When the ring is damaged.
    pub fn read(&self, position: u64, max_bytes: usize) -> io::Result<Batch> {
        self.lock().read(position, max_bytes)
    }

    /// See [`Ring::tail`].
    ///
    /// # Errors
    /// When the ring is damaged.
    pub fn tail(&self, lines: u32) -> io::Result<Batch> {
        self.lock().tail(lines)
    }

    /// See [`Ring::start`].
    #[must_use]
    pub fn start(&self) -> u64 {
        self.lock().start()
    }

    /// A copy of the memory file's descriptor, to be kept by the supervisor.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.lock().descriptor().try_clone_to_owned()
    }

    // A panic elsewhere cannot leave the ring half changed: its own steps do not panic.
    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn texts(entries: &[Entry]) -> String {
        String::from_utf8(entries.iter().flat_map(|entry| entry.bytes.clone()).collect()).unwrap()
    }

    #[test]
    fn output_survives_the_service() {
        let mut ring = Ring::create(0).unwrap();
        ring.append(Channel::Stdout, 7, b"before\n").unwrap();
        let kept = ring.descriptor().try_clone_to_owned().unwrap();
        drop(ring);
        let mut ring = Ring::open(kept).unwrap();
        ring.append(Channel::Stderr, 8, b"after\n").unwrap();
        let batch = ring.read(0, usize::MAX).unwrap();
        assert_eq!(texts(&batch.entries), "before\nafter\n");
        assert_eq!(batch.entries[0].time_ms, 7);
        assert_eq!(batch.entries[1].channel, Channel::Stderr);
    }

    #[test]
    fn a_file_that_is_no_ring_is_refused() {
        for content in [&b""[..], &[0; 40], &[0xff; 4096]] {
            let file = File::from(memfd_create(c"x", MFdFlags::MFD_CLOEXEC).unwrap());
            file.write_all_at(content, 0).unwrap();
            assert!(Ring::open(file.into()).is_err());
        }
    }

    #[test]
    fn tail_counts_lines() {
        let mut ring = Ring::create(0).unwrap();
        for text in ["one\ntwo\nth", "ree\n", "four"] {
            ring.append(Channel::Stdout, 0, text.as_bytes()).unwrap();
        }
        let tail = |lines| texts(&ring.tail(lines).unwrap().entries);
        assert_eq!(tail(0), "");
        assert_eq!(tail(1), "four");
        assert_eq!(tail(2), "three\nfour");
        assert_eq!(tail(3), "two\nthree\nfour");
        assert_eq!(tail(99), "one\ntwo\nthree\nfour");
    }

    #[tokio::test]
    async fn an_attendant_misses_nothing_and_holds_nobody_up_once_gone() {
        let log = std::sync::Arc::new(Log::new(Ring::create(0).unwrap()).attended());
        let writer = std::sync::Arc::clone(&log);
        let lines = 20_000;
        let task = tokio::spawn(async move {
            for line in 0..lines {
                let text = format!("line {line}\n");
                writer.room(text.len()).await;
                writer.append(Channel::Stdout, 0, text.as_bytes());
            }
            writer.close();
        });
        // It comes late, and reads slowly at first.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let attendant = log.attend().unwrap();
        assert!(log.attend().is_none(), "there is one");
        let (mut position, mut read, mut progress) = (log.start(), String::new(), log.follow());
        while read.lines().count() < lines / 2 {
            let batch = log.read(position, 4096).unwrap();
            assert_eq!(batch.dropped, 0);
            read.push_str(&texts(&batch.entries));
            position = batch.next;
            attendant.has_read(position);
            if batch.entries.is_empty() {
                progress.changed().await.unwrap();
            }
        }
        let expected: String = (0..read.lines().count()).map(|line| format!("line {line}\n")).collect();
        assert_eq!(read, expected);
        drop(attendant);
        progress.wait_for(|progress| progress.closed).await.unwrap();
        task.await.unwrap();
        assert!(log.attend().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_attendant_who_does_not_come_is_not_awaited_for_ever() {
        let log = Log::new(Ring::create(0).unwrap()).attended();
        for _ in 0..100 {
            log.room(MAX_ENTRY).await;
            log.append(Channel::Stdout, 0, &[b'x'; MAX_ENTRY]);
        }
        assert!(log.attend().is_none());
    }

    #[tokio::test]
    async fn a_follower_sees_what_comes_and_the_end() {
        let log = std::sync::Arc::new(Log::new(Ring::create(0).unwrap()));
        let mut progress = log.follow();
        let writer = std::sync::Arc::clone(&log);
        let task = tokio::spawn(async move {
            writer.append(Channel::Stdout, 0, b"hello");
            writer.close();
        });
        progress.wait_for(|progress| progress.closed).await.unwrap();
        task.await.unwrap();
        assert_eq!(texts(&log.read(0, 100).unwrap().entries), "hello");
    }

    proptest! {
        /// The ring holds exactly the newest entries that fit, whatever was written.
        #[test]
        fn behaves_like_a_bounded_queue(writes in proptest::collection::vec((0usize..9000, any::<u8>()), 0..60)) {
            let mut ring = Ring::create(0).unwrap();
            let capacity = ring.capacity;
            let mut model: VecDeque<Vec<u8>> = VecDeque::new();
            let weight = |model: &VecDeque<Vec<u8>>| {
                model.iter().map(|bytes| bytes.len() as u64 + ENTRY_HEADER).sum::<u64>()
            };
            let mut total = 0;
            for (length, byte) in writes {
                let bytes = vec![byte; length];
                ring.append(Channel::Stdout, 0, &bytes).unwrap();
                for piece in bytes.chunks(MAX_ENTRY) {
                    model.push_back(piece.to_vec());
                    total += piece.len() as u64 + ENTRY_HEADER;
                    while weight(&model) > capacity { model.pop_front(); }
                }
            }
            let reopened = Ring::open(ring.descriptor().try_clone_to_owned().unwrap()).unwrap();
            let batch = reopened.read(0, usize::MAX).unwrap();
            let got: VecDeque<Vec<u8>> = batch.entries.into_iter().map(|entry| entry.bytes).collect();
            prop_assert_eq!(&got, &model);
            prop_assert_eq!(batch.dropped, total - weight(&model));
            prop_assert_eq!(reopened.dropped(), batch.dropped);
        }
    }
}
