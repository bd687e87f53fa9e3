//! From plaintext to records. Plaintext is copied once, to where it is sealed in place.
use super::{Kind, LENGTH_BYTES, OVERHEAD_BYTES};
use crate::crypto::Counted;

/// Capacity below which an empty buffer is kept: enough for the small messages of an idle session.
const KEPT_BYTES: usize = 4096;

pub(super) struct Output {
    sealer: Counted,
    record_bytes: usize,
    buffer: Vec<u8>,
    /// Sent up to here.
    start: usize,
    /// Where the record that still takes plaintext begins.
    open: Option<usize>,
}

impl Output {
    pub(super) fn new(sealer: Counted, record_bytes: usize) -> Self {
        Self { sealer, record_bytes, buffer: Vec::new(), start: 0, open: None }
    }

    pub(super) fn count(&self) -> u64 {
        self.sealer.count()
    }

    pub(super) fn replace_key(&mut self, sealer: Counted) {
        self.finish();
        self.sealer = sealer;
    }

    /// Takes what fits into the present record, sealing it when it is full; 0 while two records wait to be sent.
    pub(super) fn append(&mut self, plain: &[u8]) -> usize {
        if self.open.is_none() && self.sealed().len() >= 2 * self.record_bytes {
            return 0;
        }
        let start = self.begin(Kind::Data);
        let room =
            self.record_bytes.saturating_sub(self.buffer.len().saturating_sub(start + LENGTH_BYTES + 1));
        let taken = plain.get(..room).unwrap_or(plain);
        self.buffer.extend_from_slice(taken);
        if taken.len() == room {
            self.finish();
        }
        taken.len()
    }

    /// A record of its own, after all that was written before.
    pub(super) fn control(&mut self, kind: Kind, contents: &[u8]) {
        self.finish();
        self.begin(kind);
        self.buffer.extend_from_slice(contents);
        self.finish();
    }

    fn begin(&mut self, kind: Kind) -> usize {
        *self.open.get_or_insert_with(|| {
            let start = self.buffer.len();
            self.buffer.extend_from_slice(&[0; LENGTH_BYTES]);
            self.buffer.push(kind as u8);
            start
        })
    }

    /// Seals the open record, if there is one.
    pub(super) fn finish(&mut self) {
        let Some(start) = self.open.take() else { return };
        let Some((length, body)) =
            self.buffer.get_mut(start..).and_then(|record| record.split_first_chunk_mut::<LENGTH_BYTES>())
        else {
            return;
        };
        let sealed_bytes = body.len() + OVERHEAD_BYTES - LENGTH_BYTES - 1;
        *length = u16::try_from(sealed_bytes).unwrap_or(u16::MAX).to_le_bytes();
        // The counter lasts for 2^64 records, and keys change long before; without a tag the peer refuses the record.
        if let Some(tag) = self.sealer.seal(length, body) {
            self.buffer.extend_from_slice(&tag);
        }
    }

    pub(super) fn sealed(&self) -> &[u8] {
        let end = self.open.unwrap_or(self.buffer.len());
        self.buffer.get(self.start..end).unwrap_or_default()
    }

    pub(super) fn sent(&mut self, count: usize) {
        self.start += count.min(self.sealed().len());
        match self.open {
            None if self.start == self.buffer.len() => {
                self.buffer.clear();
                self.buffer.shrink_to(KEPT_BYTES);
                self.start = 0;
            }
            Some(open) if self.start == open && open > 0 => {
                self.buffer.drain(..open);
                self.start = 0;
                self.open = Some(0);
            }
            None | Some(_) => {}
        }
    }
}
