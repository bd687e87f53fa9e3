//! A packet socket that lets in only what a DHCP client may hear, and survives an interface that goes down.
use super::CLIENT_PORT;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind, recv, send, socket,
};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{ArpOperation, ArpPacket, EthernetFrame, EthernetProtocol};
use smoltcp::wire::{IpProtocol, Ipv4Packet, UdpPacket};
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

/// Largest frame that is read or written: Ethernet's header and 1500 bytes.
const FRAME_BYTES: usize = 1514;
/// A flood of other frames must not keep us in one call.
const AT_ONCE: usize = 256;

/// The socket, and the first error that it had.
pub(super) struct Filtered {
    socket: OwnedFd,
    failed: Cell<Option<Errno>>,
}

impl Filtered {
    pub(super) fn open(interface: &str) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        let all = getifaddrs()?;
        let of_link = |address: &nix::ifaddrs::InterfaceAddress| {
            address.address.filter(|address| address.family() == Some(AddressFamily::Packet))
        };
        let link = all.filter(|found| found.interface_name == interface).find_map(|found| of_link(&found));
        let link =
            link.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such interface"))?;
        // Its protocol is zero, which keeps the socket's own (packet(7)).
        bind(socket.as_raw_fd(), &link)?;
        Ok(Self { socket, failed: Cell::new(None) })
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

    fn read(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; FRAME_BYTES];
        match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(length) => {
                frame.truncate(length);
                Some(frame)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            Err(errno) => {
                self.failed.set(Some(errno));
                None
            }
        }
    }

    fn write(&self, frame: &[u8]) {
        match send(self.socket.as_raw_fd(), frame, MsgFlags::empty()) {
            // A full queue: as good as lost on the way, and repeated.
            Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => {}
            Err(errno) => self.failed.set(Some(errno)),
        }
    }
}

/// DHCP answers to us, and ARP replies (never requests: those are the kernel's to answer).
fn wanted(frame: &[u8]) -> bool {
    let Ok(frame) = EthernetFrame::new_checked(frame) else { return false };
    match frame.ethertype() {
        EthernetProtocol::Arp => {
            ArpPacket::new_checked(frame.payload()).is_ok_and(|arp| arp.operation() == ArpOperation::Reply)
        }
        EthernetProtocol::Ipv4 => Ipv4Packet::new_checked(frame.payload()).is_ok_and(|ip| {
            ip.next_header() == IpProtocol::Udp
                && UdpPacket::new_checked(ip.payload()).is_ok_and(|udp| udp.dst_port() == CLIENT_PORT)
        }),
        EthernetProtocol::Ipv6 | EthernetProtocol::Unknown(_) => false,
    }
}

pub(super) struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

pub(super) struct Out<'a>(&'a Filtered);

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

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        for _ in 0..AT_ONCE {
            let frame = self.read()?;
            if wanted(&frame) {
                return Some((Frame(frame), Out(self)));
            }
        }
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        Some(Out(self))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet ‖ IPv4 ‖ UDP to `port`.
    fn udp(port: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        frame.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 67]);
        frame.extend(port.to_be_bytes());
        frame.extend([0, 8, 0, 0]);
        frame
    }

    fn arp(operation: u8) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation]);
        frame.extend([0; 20]);
        frame
    }

    #[test]
    fn only_dhcp_answers_and_arp_replies_come_in() {
        assert!(wanted(&udp(68)));
        assert!(!wanted(&udp(2020)));
        assert!(wanted(&arp(2)));
        assert!(!wanted(&arp(1)));
        let mut tcp = udp(68);
        tcp[23] = 6;
        assert!(!wanted(&tcp));
        for length in 0..udp(68).len() {
            let _ = wanted(&udp(68)[..length]);
        }
    }
}
