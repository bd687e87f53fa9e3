//! Netlink sockets, blocking and small: used only from threads that do nothing else, because a netlink socket speaks
//! to the network namespace its thread was in when it was opened, and keeps doing so.
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::os::fd::{AsRawFd, OwnedFd};

/// Netlink's header, in bytes (struct nlmsghdr).
pub const HEADER_BYTES: usize = 16;
/// Attributes and messages begin at multiples of this (NLMSG_ALIGNTO, NLA_ALIGNTO).
const ALIGN_BYTES: usize = 4;
/// Longest the kernel may take to answer. It answers at once; this only turns a lost answer into an error.
const ANSWER_SECONDS: i64 = 10;
/// Room for sending a whole ruleset in one message: 1000 containers with a dozen connections each take about 2 MiB.
const SEND_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// Room for one datagram of answers; the kernel fills at most 32 KiB when dumping (NLMSG_GOODSIZE and rtnetlink's own).
const ANSWER_BYTES: usize = 64 * 1024;

/// A netlink socket of one network namespace.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// A socket in the calling thread's network namespace.
    pub fn open(protocol: SockProtocol) -> Result<Self, Errno> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
        // Without CAP_NET_ADMIN this fails, and so will everything else: the kernel says it better then.
        setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER_BYTES).or_else(ignore(Errno::EPERM))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// A number that no earlier message of this socket has.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends `bytes`, one or more whole messages, to the kernel.
    pub fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        sendto(self.fd.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map(|_| ())
    }

    /// The next datagram of answers.
    pub fn receive(&self) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0; ANSWER_BYTES];
        let length = loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT),
                other => break other?,
            }
        };
        buffer.truncate(length);
        Ok(buffer)
    }
}

fn ignore(expected: Errno) -> impl Fn(Errno) -> Result<(), Errno> {
    move |errno| if errno == expected { Ok(()) } else { Err(errno) }
}

/// A netlink message as it came: its type, its sequence number and what follows the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Type: whose number space depends on the protocol.
    pub kind: u16,
    /// Number of the question that it answers.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// NLMSG_DONE: the end of an answer of several messages.
pub const KIND_DONE: u16 = 3;
/// NLMSG_ERROR: an answer; its first four bytes are 0 or a negated errno.
pub const KIND_ERROR: u16 = 2;

impl Message<'_> {
    /// What the message answers, if it is an answer: the kernel's 0 is success.
    pub fn answer(&self) -> Option<Result<(), Errno>> {
        let code = self.payload.first_chunk::<4>().filter(|_| self.kind == KIND_ERROR)?;
        match i32::from_ne_bytes(*code) {
            0 => Some(Ok(())),
            code => Some(Err(Errno::from_raw(code.saturating_neg()))),
        }
    }
}

/// The messages of one datagram; a damaged rest is left out.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<HEADER_BYTES>()?;
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let payload = rest.get(HEADER_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(ALIGN_BYTES)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload,
        })
    })
}

/// The attributes within `bytes`, with their kinds; a damaged rest is left out.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *rest.first_chunk::<ATTRIBUTE_HEADER_BYTES>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(ATTRIBUTE_HEADER_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(ALIGN_BYTES)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & !(NESTED | NETWORK_ORDER), value))
    })
}

/// The first attribute of this kind.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// Attributes (struct nlattr) one after another, nested where needed.
#[derive(Debug, Default)]
pub struct Attributes(Vec<u8>);

/// The attribute holds attributes (NLA_F_NESTED).
const NESTED: u16 = 1 << 15;
/// Its number has its highest byte first (NLA_F_NET_BYTEORDER).
const NETWORK_ORDER: u16 = 1 << 14;
/// struct nlattr, in bytes.
const ATTRIBUTE_HEADER_BYTES: usize = 4;

impl Attributes {
    /// Bytes as they are. Values over 64 KiB do not fit the format; callers keep theirs far below.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        debug_assert!(
            value.len() <= usize::from(u16::MAX) - ATTRIBUTE_HEADER_BYTES,
            "attribute {kind} too long"
        );
        let length = (ATTRIBUTE_HEADER_BYTES + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGN_BYTES), 0);
        self
    }

    /// A text with its terminating zero.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// A number, highest byte first, as nf_tables wants them.
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A long number, highest byte first.
    pub fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Attributes within an attribute.
    pub fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// The bytes of all of them.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

/// Appends a message to `batch`: header, then `payload`.
pub fn append(batch: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, payload: &[u8]) {
    let length = (HEADER_BYTES + payload.len()) as u32;
    batch.extend(length.to_ne_bytes());
    batch.extend(kind.to_ne_bytes());
    batch.extend(flags.to_ne_bytes());
    batch.extend(sequence.to_ne_bytes());
    batch.extend(0u32.to_ne_bytes());
    batch.extend(payload);
    batch.resize(batch.len().next_multiple_of(ALIGN_BYTES), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_come_back_out() {
        let mut batch = Vec::new();
        append(&mut batch, 7, 0, 1, b"abc");
        append(&mut batch, KIND_ERROR, 0, 2, &(-17i32).to_ne_bytes());
        let all: Vec<_> = messages(&batch).collect();
        assert_eq!(all[0], Message { kind: 7, sequence: 1, payload: b"abc" });
        assert_eq!(all[0].answer(), None);
        assert_eq!(all[1].answer(), Some(Err(Errno::EEXIST)));
    }

    #[test]
    fn attributes_are_aligned_and_nest() {
        let inner = Attributes::default().text(1, "abc");
        let outer = Attributes::default().nest(2, inner).be32(3, 5);
        assert_eq!(outer.as_slice().len(), 4 + 8 + 8);
        assert_eq!(outer.as_slice()[..4], [12, 0, 2, 0x80]);
        let inner = attribute(outer.as_slice(), 2).unwrap();
        assert_eq!(attribute(inner, 1), Some(&b"abc\0"[..]));
        assert_eq!(attributes(outer.as_slice()).count(), 2);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = message.answer();
            }
            let _ = attributes(&bytes).count();
        }
    }
}
