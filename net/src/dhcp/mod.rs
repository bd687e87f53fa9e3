//! DHCPv4 client (RFC 2131) on smoltcp's state machine.
//!
//! It runs on a thread of its own with a packet socket that is open only while an answer is awaited: between renewals the
//! board's traffic is not copied to us. Of what arrives, only DHCP answers and ARP replies reach smoltcp, so that it never
//! speaks for the kernel, which has the same address.
//!
//! ```text
//! device   the socket
//! gate     which frames are believed, and how often a server that says no is asked
//! held     what the board may use, and until when
//! ```
mod device;
mod gate;
mod held;

use crate::link::{is_gateway_of, is_host};
use device::Filtered;
use gate::Gate;
use held::Held;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::dhcpv4;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{DhcpOption, EthernetAddress, HardwareAddress, IpCidr};
use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use tokio::sync::mpsc;
use wherry_protocol::{OsRandom, Random as _};

/// The client's port (RFC 2131 §4.1).
const CLIENT_PORT: u16 = 68;
/// The servers' port.
const SERVER_PORT: u16 = 67;
/// Longest wait in one go: an interface that vanished is noticed within this time.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Longest wait while an answer is awaited: then it is seen whether there is something new to do.
const ATTENTIVE: Duration = Duration::from_secs(1);
/// How long an answer to a renewal is listened for; servers answer within milliseconds, and the next try comes anyway.
const ANSWER_WINDOW: Duration = Duration::from_secs(10);
/// Largest answer that is read: what fits an Ethernet frame.
const ANSWER_BYTES: usize = 1500;
/// Subnet mask, router, name servers, time servers (RFC 2132 §3.3, §3.5, §3.8, §8.3).
const ASKED_FOR: [u8; 4] = [1, 3, 6, NTP_SERVERS];
/// Time servers' option.
const NTP_SERVERS: u8 = 42;
/// The lease's seconds (RFC 2132 §9.2).
const LEASE_TIME: u8 = 51;
/// A lease of so many seconds has no end (RFC 2131 §3.3).
const FOR_EVER: u32 = u32::MAX;
/// What smoltcp takes an answer without [`LEASE_TIME`] for.
const UNSAID_SECONDS: u32 = 120;
/// Pause after the interface could not be used.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

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

/// Wakes a client: the cable was put in again, perhaps elsewhere.
#[derive(Debug, Clone)]
pub struct Waker(SyncSender<()>);

impl Waker {
    /// Has the client ask whether its lease is still good here. Until it hears otherwise the board keeps its address.
    pub fn confirm(&self) {
        // One that waits to be seen says the same.
        self.0.try_send(()).ok();
    }
}

/// Starts a client for `interface`; it ends when the receiver is dropped.
///
/// # Errors
/// When no thread can be started.
pub fn start(interface: &str, mac: [u8; 6]) -> std::io::Result<(mpsc::Receiver<DhcpEvent>, Waker)> {
    let (events, receiver) = mpsc::channel(4);
    let (waker, woken) = sync_channel(1);
    let interface = interface.to_owned();
    std::thread::Builder::new().name(format!("dhcp-{interface}")).spawn(move || {
        let mac = EthernetAddress(mac);
        Client { interface, mac, events, woken, held: Held::default() }.run();
    })?;
    Ok((receiver, Waker(waker)))
}

struct Client {
    interface: String,
    mac: EthernetAddress,
    events: mpsc::Sender<DhcpEvent>,
    woken: Receiver<()>,
    held: Held,
}

impl Client {
    fn run(&mut self) {
        let mut last_problem = String::new();
        while !self.events.is_closed() {
            // What the board has it keeps, whatever became of the state machine.
            self.held.confirm();
            if let Err(problem) = self.session() {
                let problem = problem.to_string();
                if problem != last_problem {
                    tracing::warn!(interface = %self.interface, "DHCP: {problem}");
                    last_problem = problem;
                }
                self.rest(RETRY);
            }
        }
    }

    fn session(&mut self) -> std::io::Result<()> {
        let mut device = Filtered::open(&self.interface, Gate::default())?;
        let mut config = Config::new(HardwareAddress::Ethernet(self.mac));
        // Who cannot see our questions shall not guess their numbers.
        let mut seed = [0; 8];
        OsRandom.fill(&mut seed);
        config.random_seed = u64::from_ne_bytes(seed);
        let mut interface = Interface::new(config, &mut device, now());
        let mut answer = [0; ANSWER_BYTES];
        let mut sockets = SocketSet::new(Vec::new());
        let mut socket = dhcpv4::Socket::new();
        socket.set_parameter_request_list(&ASKED_FOR);
        // Options that smoltcp does not know are read from the whole answer.
        socket.set_receive_packet_buffer(&mut answer);
        let handle = sockets.add(socket);
        loop {
            self.converse(&mut device, &mut interface, &mut sockets, handle)?;
            let mut gate = device.close();
            while let Some(rest) = interface.poll_delay(now(), &sockets) {
                if self.events.is_closed() {
                    return Ok(());
                }
                if rest == Duration::ZERO {
                    break;
                }
                if self.rest(rest.min(MAX_WAIT).into()) {
                    self.begin_anew(&mut gate, &mut sockets, handle);
                    break;
                }
            }
            device = Filtered::open(&self.interface, gate)?;
        }
    }

    /// Sleeps; tells whether it was woken.
    fn rest(&mut self, time: std::time::Duration) -> bool {
        let woken = match self.woken.recv_timeout(time) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                // Nobody can wake us any more; the time has to pass all the same.
                std::thread::sleep(time);
                false
            }
        };
        self.expire();
        woken
    }

    fn expire(&mut self) {
        let expired = self.held.expired(std::time::Instant::now());
        self.say(expired);
    }

    fn say(&self, event: Option<DhcpEvent>) {
        if let Some(event) = event {
            self.events.blocking_send(event).ok();
        }
    }

    fn begin_anew(&mut self, gate: &mut Gate, sockets: &mut SocketSet<'_>, handle: SocketHandle) {
        self.held.confirm();
        gate.begin_anew();
        sockets.get_mut::<dhcpv4::Socket<'_>>(handle).reset();
    }

    /// Talks and listens until there is a lease and nothing more to hear before its renewal is due.
    fn converse(
        &mut self,
        device: &mut Filtered,
        interface: &mut Interface,
        sockets: &mut SocketSet<'_>,
        handle: SocketHandle,
    ) -> std::io::Result<()> {
        let opened = now();
        loop {
            if self.woken.try_recv().is_ok() {
                self.begin_anew(device.gate(), sockets, handle);
            }
            interface.poll(now(), device, sockets);
            device.check()?;
            let news = self.report(interface, sockets, handle);
            self.expire();
            let delay = interface.poll_delay(now(), sockets).unwrap_or(MAX_WAIT);
            let delay = delay.max(device.gate().pause(now()));
            let bound = !interface.ip_addrs().is_empty();
            let heard = news || now() - opened > ANSWER_WINDOW;
            if self.events.is_closed() || (bound && heard && delay > ATTENTIVE) {
                return Ok(());
            }
            device.wait(delay.min(ATTENTIVE))?;
        }
    }

    /// Passes on what the state machine learnt; tells whether there is a new lease.
    fn report(
        &mut self,
        interface: &mut Interface,
        sockets: &mut SocketSet<'_>,
        handle: SocketHandle,
    ) -> bool {
        match sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            None => false,
            Some(dhcpv4::Event::Configured(config)) => {
                let options = || config.packet.as_ref().map(|packet| packet.options()).into_iter().flatten();
                let (address, prefix) = (config.address.address(), config.address.prefix_len());
                let lease = Lease {
                    address,
                    prefix,
                    gateway: config.router.filter(|router| is_gateway_of(*router, address, prefix)),
                    dns: config.dns_servers.iter().copied().filter(|server| is_host(*server)).collect(),
                    ntp: time_servers(options()),
                };
                let until = end(options(), std::time::Instant::now());
                interface.update_ip_addrs(|addresses| {
                    addresses.clear();
                    // Room for one is always there: it was just cleared.
                    addresses.push(IpCidr::Ipv4(config.address)).ok();
                });
                let bound = self.held.bound(&lease, until);
                self.say(Some(bound));
                true
            }
            Some(dhcpv4::Event::Deconfigured) => {
                interface.update_ip_addrs(|addresses| addresses.clear());
                let lost = self.held.unconfigured();
                self.say(lost);
                false
            }
        }
    }
}

/// The time for the state machine: of a clock that nobody sets, so that a lease is not over when the board learns what time it is.
fn now() -> Instant {
    std::time::Instant::now().into()
}

/// Addresses one after the other (RFC 2132 §8.3).
fn time_servers<'a>(mut options: impl Iterator<Item = DhcpOption<'a>>) -> Vec<Ipv4Addr> {
    let option = options.find(|option| option.kind == NTP_SERVERS);
    let addresses = option.map(|option| option.data.chunks_exact(4)).into_iter().flatten();
    let addresses = addresses.filter_map(|octets| <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from));
    addresses.filter(|server| is_host(*server)).collect()
}

/// When the lease is over; `None` for never.
fn end<'a>(
    mut options: impl Iterator<Item = DhcpOption<'a>>,
    now: std::time::Instant,
) -> Option<std::time::Instant> {
    let option = options.find(|option| option.kind == LEASE_TIME);
    let told = option.and_then(|option| <[u8; 4]>::try_from(option.data).ok()).map(u32::from_be_bytes);
    match told.unwrap_or(UNSAID_SECONDS) {
        FOR_EVER => None,
        seconds => now.checked_add(std::time::Duration::from_secs(u64::from(seconds))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_when_the_server_says() {
        let now = std::time::Instant::now();
        let end_of = |data: &[u8]| end([DhcpOption { kind: LEASE_TIME, data }].into_iter(), now);
        let after = |seconds| Some(now + std::time::Duration::from_secs(seconds));
        assert_eq!(end_of(&[0, 0, 0, 10]), after(10));
        assert_eq!(end_of(&[255; 4]), None);
        assert_eq!(end_of(&[1, 2]), after(120), "nonsense");
        assert_eq!(end(std::iter::empty(), now), after(120));
    }
}
