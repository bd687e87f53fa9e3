//! DHCPv4 client (RFC 2131) on smoltcp's state machine.
//!
//! It runs on a thread of its own with a raw socket that is open only while an answer is awaited: between renewals the
//! board's traffic is not copied to us. Of what arrives, only DHCP answers and ARP replies reach smoltcp, so that it never
//! speaks for the kernel, which has the same address.
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RawSocket, RxToken, TxToken, wait};
use smoltcp::socket::dhcpv4;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    ArpOperation, ArpPacket, DhcpOption, EthernetAddress, EthernetFrame, EthernetProtocol, HardwareAddress,
};
use smoltcp::wire::{IpCidr, IpProtocol, Ipv4Packet, UdpPacket};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use tokio::sync::mpsc;

/// The client's port (RFC 2131 §4.1).
const CLIENT_PORT: u16 = 68;
/// Longest wait in one go: an interface that vanished is noticed within this time.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How long an answer to a renewal is listened for; servers answer within milliseconds, and the next try comes anyway.
const ANSWER_WINDOW: Duration = Duration::from_secs(10);
/// Largest answer that is read: what fits an Ethernet frame.
const ANSWER_BYTES: usize = 1500;
/// Subnet mask, router, name servers, time servers (RFC 2132 §3.3, §3.5, §3.8, §8.3).
const ASKED_FOR: [u8; 4] = [1, 3, 6, NTP_SERVERS];
/// Time servers' option.
const NTP_SERVERS: u8 = 42;
/// Pause after the interface could not be used.
const RETRY: std::time::Duration = std::time::Duration::from_secs(2);

/// What a server gave this board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The board's address.
    pub address: Ipv4Addr,
    /// Prefix length of its network.
    pub prefix: u8,
    /// Default route.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Time servers.
    pub ntp: Vec<Ipv4Addr>,
}

/// What happens to an interface's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DhcpEvent {
    /// It has this lease (again).
    Bound(Lease),
    /// It has none any more.
    Lost,
}

/// Starts a client for `interface`; it ends when the receiver is dropped.
///
/// # Errors
/// When no thread can be started.
pub fn start(interface: &str, mac: [u8; 6]) -> std::io::Result<mpsc::Receiver<DhcpEvent>> {
    let (events, receiver) = mpsc::channel(4);
    let interface = interface.to_owned();
    std::thread::Builder::new().name(format!("dhcp-{interface}")).spawn(move || {
        Client::new(interface, mac).run(&events);
    })?;
    Ok(receiver)
}

struct Client {
    interface: String,
    mac: EthernetAddress,
}

impl Client {
    fn new(interface: String, mac: [u8; 6]) -> Self {
        Self { interface, mac: EthernetAddress(mac) }
    }

    fn run(&self, events: &mpsc::Sender<DhcpEvent>) {
        let mut last_problem = String::new();
        while !events.is_closed() {
            if let Err(problem) = self.session(events) {
                let problem = problem.to_string();
                if problem != last_problem {
                    tracing::warn!(interface = %self.interface, "DHCP: {problem}");
                    last_problem = problem;
                }
                std::thread::sleep(RETRY);
            }
        }
    }

    fn session(&self, events: &mpsc::Sender<DhcpEvent>) -> std::io::Result<()> {
        let mut device = Filtered::open(&self.interface)?;
        let config = Config::new(HardwareAddress::Ethernet(self.mac));
        let mut interface = Interface::new(config, &mut device, Instant::now());
        let mut answer = [0; ANSWER_BYTES];
        let mut sockets = SocketSet::new(Vec::new());
        let mut socket = dhcpv4::Socket::new();
        socket.set_parameter_request_list(&ASKED_FOR);
        // Options that smoltcp does not know are read from the whole answer.
        socket.set_receive_packet_buffer(&mut answer);
        let handle = sockets.add(socket);
        loop {
            self.converse(&mut device, &mut interface, &mut sockets, handle, events)?;
            drop(device);
            while let Some(rest) = interface.poll_delay(Instant::now(), &sockets) {
                if events.is_closed() {
                    return Ok(());
                }
                if rest == Duration::ZERO {
                    break;
                }
                std::thread::sleep(rest.min(MAX_WAIT).into());
            }
            device = Filtered::open(&self.interface)?;
        }
    }

    /// Talks and listens until there is a lease and nothing more to hear before its renewal is due.
    fn converse(
        &self,
        device: &mut Filtered,
        interface: &mut Interface,
        sockets: &mut SocketSet<'_>,
        handle: SocketHandle,
        events: &mpsc::Sender<DhcpEvent>,
    ) -> std::io::Result<()> {
        let opened = Instant::now();
        loop {
            interface.poll(Instant::now(), device, sockets);
            let news = report(interface, sockets, handle, events);
            let delay = interface.poll_delay(Instant::now(), sockets).unwrap_or(MAX_WAIT);
            let bound = !interface.ip_addrs().is_empty();
            let heard = news || Instant::now() - opened > ANSWER_WINDOW;
            if events.is_closed() || (bound && heard && delay > Duration::from_secs(1)) {
                return Ok(());
            }
            wait(device.inner.as_raw_fd(), Some(delay.min(ANSWER_WINDOW)))?;
        }
    }
}

/// Passes on what the state machine learnt; tells whether there is a new lease.
fn report(
    interface: &mut Interface,
    sockets: &mut SocketSet<'_>,
    handle: SocketHandle,
    events: &mpsc::Sender<DhcpEvent>,
) -> bool {
    let event = match sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
        None => return false,
        Some(dhcpv4::Event::Configured(config)) => {
            let lease = Lease {
                address: config.address.address(),
                prefix: config.address.prefix_len(),
                gateway: config.router,
                dns: config.dns_servers.iter().copied().collect(),
                ntp: config.packet.map(|packet| time_servers(packet.options())).unwrap_or_default(),
            };
            interface.update_ip_addrs(|addresses| {
                addresses.clear();
                // Room for one is always there: it was just cleared.
                addresses.push(IpCidr::Ipv4(config.address)).ok();
            });
            DhcpEvent::Bound(lease)
        }
        Some(dhcpv4::Event::Deconfigured) => {
            interface.update_ip_addrs(|addresses| addresses.clear());
            DhcpEvent::Lost
        }
    };
    // The start of the state machine counts as "lost" too; nobody needs to hear that twice.
    let bound = matches!(event, DhcpEvent::Bound(_));
    events.blocking_send(event).ok();
    bound
}

/// Addresses one after the other (RFC 2132 §8.3).
fn time_servers<'a>(mut options: impl Iterator<Item = DhcpOption<'a>>) -> Vec<Ipv4Addr> {
    let option = options.find(|option| option.kind == NTP_SERVERS);
    let addresses = option.map(|option| option.data.chunks_exact(4)).into_iter().flatten();
    addresses.filter_map(|octets| <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from)).collect()
}

/// A raw socket that lets in only what a DHCP client may hear.
struct Filtered {
    inner: RawSocket,
}

impl Filtered {
    fn open(interface: &str) -> std::io::Result<Self> {
        RawSocket::new(interface, Medium::Ethernet).map(|inner| Self { inner })
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

struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Out<T>(T);

impl<T: TxToken> TxToken for Out<T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        self.0.consume(length, write)
    }
}

impl Device for Filtered {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Out<<RawSocket as Device>::TxToken<'a>>;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        // A flood of other frames must not keep us here.
        const AT_ONCE: usize = 256;
        let mut found = None;
        for _ in 0..AT_ONCE {
            let (received, _) = self.inner.receive(now)?;
            let frame = received.consume(<[u8]>::to_vec);
            if wanted(&frame) {
                found = Some(Frame(frame));
                break;
            }
        }
        Some((found?, Out(self.inner.transmit(now)?)))
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        self.inner.transmit(now).map(Out)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.inner.capabilities()
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
