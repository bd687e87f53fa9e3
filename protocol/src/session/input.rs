//! From bytes to records. Records are opened in place; plaintext is copied once, to whoever reads it.
use super::{Kind, LENGTH_BYTES, OVERHEAD_BYTES, RecordError};
use crate::crypto::{Counted, KEY_BYTES, TAG_BYTES};
use std::ops::Range;

/// Size of the buffer while little comes: it grows only as far as records demand.
const SMALL_BYTES: usize = 2048;

pub(super) struct Input {
    opener: Counted,
    record_bytes: usize,
    buffer: Vec<u8>,
    /// Received but not yet opened.
    raw: Range<usize>,
    /// Opened but not yet read; lies before `raw`.
    plain: Range<usize>,
    /// How much came last.
    last: usize,
}

impl Input {
    pub(super) fn new(opener: Counted, record_bytes: usize) -> Self {
        Self { opener, record_bytes, buffer: Vec::new(), raw: 0..0, plain: 0..0, last: 0 }
    }

    pub(super) fn opened(&self) -> u64 {
        self.opener.count()
    }

    pub(super) fn replace_key(&mut self, opener: Counted) {
        self.opener = opener;
    }

    pub(super) fn has_plain(&self) -> bool {
        !self.plain.is_empty()
    }

    /// Room for bytes from the transport: the rest of the record that has begun, and what else fits.
    pub(super) fn space(&mut self) -> &mut [u8] {
        let wanted = self.announced().map_or(SMALL_BYTES, |bytes| bytes.max(SMALL_BYTES));
        let filled = self.raw.end == self.buffer.len();
        if self.plain.is_empty() && self.raw.start > 0 {
            self.buffer.copy_within(self.raw.clone(), 0);
            (self.raw, self.plain) = (0..self.raw.len(), 0..0);
        }
        // A buffer that was filled to its end may grow; so much comes that two records at once save system calls.
        let grown = if filled { self.buffer.len() * 2 } else { 0 };
        let size = grown
            .min(2 * (self.record_bytes + OVERHEAD_BYTES))
            .max(self.raw.start + wanted)
            .max(self.raw.end + 1);
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
        self.buffer.get_mut(self.raw.end..).unwrap_or_default()
    }

    pub(super) fn received(&mut self, count: usize) {
        self.raw.end = (self.raw.end + count).min(self.buffer.len());
        self.last = count;
    }

    /// Nothing more has come for now: gives a large buffer back unless it is in use.
    pub(super) fn rest(&mut self) {
        if self.plain.is_empty()
            && self.raw.is_empty()
            && self.last < SMALL_BYTES
            && self.buffer.len() > SMALL_BYTES
        {
            (self.raw, self.plain, self.buffer) = (0..0, 0..0, Vec::new());
        }
    }

    // Length of the record that has begun, with its length field, as far as it is known and allowed.
    fn announced(&self) -> Option<usize> {
        let length = self.buffer.get(self.raw.clone())?.first_chunk::<LENGTH_BYTES>()?;
        let bytes = usize::from(u16::from_le_bytes(*length));
        (bytes <= self.record_bytes + 1 + TAG_BYTES).then_some(LENGTH_BYTES + bytes)
    }

    /// Opens the next record, whose contents are then [`Input::plain`]; `None` if it is not all there yet.
    pub(super) fn next(&mut self) -> Result<Option<Kind>, RecordError> {
        let number = self.opener.count();
        let raw = self.buffer.get_mut(self.raw.clone()).unwrap_or_default();
        let Some((length, rest)) = raw.split_first_chunk_mut::<LENGTH_BYTES>() else { return Ok(None) };
        let bytes = usize::from(u16::from_le_bytes(*length));
        let limit = self.record_bytes + 1 + TAG_BYTES;
        if bytes > limit {
            return Err(RecordError::TooLarge { bytes, limit });
        }
        if bytes <= TAG_BYTES {
            return Err(RecordError::Malformed);
        }
        let Some(sealed) = rest.get_mut(..bytes) else { return Ok(None) };
        let Some((body, tag)) = sealed.split_last_chunk_mut::<TAG_BYTES>() else { return Ok(None) };
        self.opener.open(length, body, *tag).ok_or(RecordError::Forged { number })?;
        let kind = body.first().copied().and_then(Kind::read).ok_or(RecordError::Malformed)?;
        let start = self.raw.start + LENGTH_BYTES + 1;
        self.plain = start..start + body.len() - 1;
        self.raw.start += LENGTH_BYTES + bytes;
        Ok(Some(kind))
    }

    /// Moves plaintext to `buffer`.
    pub(super) fn take(&mut self, buffer: &mut [u8]) -> usize {
        let plain = self.buffer.get(self.plain.clone()).unwrap_or_default();
        let count = plain.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), plain.get(..count)) {
            to.copy_from_slice(from);
        }
        self.plain.start += count;
        count
    }

    /// The contents of a record that must hold a key.
    pub(super) fn take_contents(&mut self) -> Result<[u8; KEY_BYTES], RecordError> {
        let mut key = [0; KEY_BYTES];
        let exact = self.plain.len() == KEY_BYTES;
        self.take(&mut key);
        if exact { Ok(key) } else { Err(RecordError::Malformed) }
    }

    /// Refuses contents where there must be none.
    pub(super) fn expect_empty(&self) -> Result<(), RecordError> {
        if self.plain.is_empty() { Ok(()) } else { Err(RecordError::Malformed) }
    }
}
