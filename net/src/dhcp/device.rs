//! A packet socket that lets in only what a DHCP client may hear, and survives an interface that goes down.
use super::gate::Gate;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send, socket,
};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::{Duration, Instant};
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

/// Largest frame that is read or written: Ethernet's header and 1500 bytes.
const FRAME_BYTES: usize = 1514;
/// A flood of other frames must not keep us in one call.
const AT_ONCE: usize = 256;

/// The socket, what it lets in, and the first error that it had.
pub(super) struct Filtered {
    socket: OwnedFd,
    /// The interface's number.
    index: usize,
    gate: Gate,
    failed: Cell<Option<Errno>>,
}

impl Filtered {
    pub(super) fn open(interface: &str, gate: Gate) -> io::Result<Self> {
        let of_link = |address: &nix::ifaddrs::InterfaceAddress| {
            address.address.as_ref().and_then(|address| address.as_link_addr().copied())
        };
        let mut named = getifaddrs()?.filter(|found| found.interface_name == interface);
        let link = named.find_map(|found| of_link(&found));
        let link =
            link.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such interface"))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Until it is bound it hears every interface; what it hears then is told apart by `index`.
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        // Its protocol is zero, which keeps the socket's own (packet(7)).
        bind(socket.as_raw_fd(), &link)?;
        Ok(Self { socket, index: link.ifindex(), gate, failed: Cell::new(None) })
    }

    /// What it lets in.
    pub(super) fn gate(&mut self) -> &mut Gate {
        &mut self.gate
    }

    /// Closes the socket.
    pub(super) fn close(self) -> Gate {
        self.gate
    }

    /// Waits until there is something to read.
    pub(super) fn wait(&self, at_most: Duration) -> io::Result<()> {
        let milliseconds = at_most.total_millis().saturating_add(1);
        let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What went wrong since the last time: the interface is down or gone.
    pub(super) fn check(&self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), |errno| Err(errno.into()))
    }

    /// The next frame; an empty one if it is another interface's.
    fn read(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; FRAME_BYTES];
        match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut frame) {
            Ok((length, from)) => {
                let is_ours = from.is_some_and(|from| from.ifindex() == self.index);
                frame.truncate(if is_ours { length } else { 0 });
                Some(frame)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            Err(errno) => {
                self.failed.set(Some(errno));
                None
            }
        }
    }

    fn write(&mut self, frame: &[u8]) {
        self.gate.sent(frame);
        match send(self.socket.as_raw_fd(), frame, MsgFlags::empty()) {
            // A full queue: as good as lost on the way, and repeated.
            Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => {}
            Err(errno) => self.failed.set(Some(errno)),
        }
    }
}

pub(super) struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

pub(super) struct Out<'a>(&'a mut Filtered);

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut frame = vec![0; length];
        let result = write(&mut frame);
        self.0.write(&frame);
        result
    }
}

impl Device for Filtered {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        for _ in 0..AT_ONCE {
            let frame = self.read()?;
            if self.gate.lets_in(&frame, now) {
                return Some((Frame(frame), Out(self)));
            }
        }
        None
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        (self.gate.pause(now) == Duration::ZERO).then_some(Out(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES;
        // A server on the same machine, as for virtual boards, leaves the sum to a network card that is not there
        // (packet(7), TP_STATUS_CSUMNOTREADY). On a wire Ethernet has its own.
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}
