//! What a ruleset says.
use super::element::{Elements, SetChange};
use crate::address::{Prefix, Prefix6};
use std::net::{Ipv4Addr, Ipv6Addr};
use wherry_protocol::message::{DropReason, Transport};

/// Tables that are replaced together: either all of it holds or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The tables.
    pub tables: Vec<Table>,
}

impl Ruleset {
    /// Makes these changes of sets. No name is that of two sets.
    pub fn change(&mut self, changes: &[SetChange]) {
        for change in changes {
            let sets = self.tables.iter_mut().flat_map(|table| &mut table.sets);
            for set in sets.filter(|set| set.name == change.set) {
                change.gone.iter().for_each(|element| set.elements.remove(element));
                change.new.iter().for_each(|element| set.elements.insert(*element));
            }
        }
    }
}

/// A table, replaced as a whole or changed in its sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Its name.
    pub name: &'static str,
    /// Sets that its rules look things up in.
    pub sets: Vec<Set>,
    /// Chains.
    pub chains: Vec<Chain>,
}

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// Frames passing a bridge.
    Bridge,
}

/// A named set of keys; looking one up takes the same time however many there are (a hash).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// What a key is made of.
    pub key: Vec<KeyType>,
    /// The keys, each with one value per part of that type.
    pub elements: Elements,
}

/// Type of one part of a set's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// Interface name.
    Ifname,
    /// MAC address.
    Ether,
    /// IPv4 address.
    Ipv4,
    /// IPv6 address.
    Ipv6,
    /// Transport protocol.
    Protocol,
    /// Port.
    Port,
}

/// One part of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// Interface name.
    Ifname(String),
    /// MAC address.
    Ether([u8; 6]),
    /// IPv4 address.
    Ipv4(Ipv4Addr),
    /// IPv6 address.
    Ipv6(Ipv6Addr),
    /// Transport protocol.
    Protocol(Protocol),
    /// Port.
    Port(u16),
}

/// Protocols above IP that rules speak of (IANA's numbers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// 1.
    Icmp,
    /// 6.
    Tcp,
    /// 17.
    Udp,
    /// 47.
    Gre,
    /// 58.
    Icmpv6,
}

impl Protocol {
    pub(super) const ALL: [Self; 5] = [Self::Icmp, Self::Tcp, Self::Udp, Self::Gre, Self::Icmpv6];
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
        }
    }
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where packets enter it from the kernel; `None`: only by a jump.
    pub base: Option<Base>,
    /// The rules, in order.
    pub rules: Vec<Rule>,
}

/// How a chain hangs on the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// At which point of a packet's way.
    pub hook: Hook,
    /// What happens to a packet no rule decided about.
    pub policy: Policy,
}

/// Points of a packet's way, each with the type and priority that we use there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// To this machine (type filter, priority filter).
    Input,
    /// From this machine (type filter, priority filter).
    Output,
    /// Through this machine (type filter, priority filter).
    Forward,
    /// Leaving, source translation (type nat, priority srcnat).
    SourceNat,
    /// Arriving, destination translation (type nat, priority dstnat).
    DestinationNat,
    /// A bridge has just received it (type filter, priority dstnat of the bridge family).
    BridgePrerouting,
}

/// What happens to a packet no rule decided about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It is gone.
    Drop,
}

/// A rule: all matches must hold for the statements after them to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule(pub Vec<Statement>);

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// The rule ends here unless this holds.
    Match(Match),
    /// The rule ends here when there were more than this many packets per second (in bursts of 5, nft's default).
    Limit {
        /// Packets per second.
        per_second: u32,
    },
    /// Counts packets and bytes.
    Counter,
    /// Gives the packet the outgoing interface's address.
    Masquerade,
    /// Sends the flow to another address and port.
    Redirect(Ipv4Addr, u16),
    /// Decides.
    Verdict(Verdict),
}

/// A decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The packet goes on.
    Accept,
    /// The packet is gone, for this reason: the rule's comment.
    Drop(DropReason),
    /// On with the rules of this chain, then back.
    Jump(&'static str),
}

/// Whether a comparison is turned round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Not {
    /// It must hold.
    Is,
    /// It must not hold.
    IsNot,
}

/// What a packet can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// Came in through the interface; a final `*` stands for any rest.
    Input(Not, String),
    /// Goes out through the interface; a final `*` stands for any rest.
    Output(Not, String),
    /// IPv4 source.
    Source(Not, Prefix),
    /// IPv4 destination.
    Destination(Not, Prefix),
    /// IPv6 source.
    Source6(Not, Prefix6),
    /// IPv6 destination.
    Destination6(Not, Prefix6),
    /// Is IPv6 (inet family).
    Ipv6,
    /// Is ARP (bridge family).
    Arp,
    /// Is IPv4 (bridge family).
    Ipv4,
    /// Protocol above IP.
    Protocol(Protocol),
    /// Source port of a transport protocol.
    SourcePort(Transport, u16),
    /// Destination port of a transport protocol.
    DestinationPort(Transport, u16),
    /// ICMP of this kind.
    Icmp(Icmp),
    /// Connection tracking's opinion is one of these.
    State(States),
    /// Belongs to a flow that was sent to another address than it came for.
    Redirected,
    /// The parts of the packet, taken together, are in the set.
    Lookup(Not, Vec<Key>, &'static str),
}

/// Kinds of ICMP message (RFC 792, RFC 4443).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Icmp {
    /// Ping.
    EchoRequest,
    /// The packet was too large and must not be fragmented: what path MTU discovery lives on (RFC 1191).
    FragmentationNeeded,
    /// The same in IPv6 (RFC 4443 §3.2).
    PacketTooBig,
}

/// States of connection tracking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct States {
    /// Packets have been seen both ways.
    pub established: bool,
    /// Belongs to another connection: an ICMP error about it.
    pub related: bool,
    /// The first packet.
    pub new: bool,
}

impl States {
    /// `established`.
    pub const ESTABLISHED: Self = Self { established: true, related: false, new: false };
    /// `established,related`.
    pub const ESTABLISHED_RELATED: Self = Self { established: true, related: true, new: false };
    /// `established,new`: everything but errors and packets that make no sense.
    pub const ESTABLISHED_NEW: Self = Self { established: true, related: false, new: true };
    /// `related`.
    pub const RELATED: Self = Self { established: false, related: true, new: false };
}

/// Parts of a packet that a key is put together from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Interface it came in through.
    Input,
    /// Source MAC address.
    EtherSource,
    /// Sender's MAC address within ARP.
    ArpEther,
    /// Sender's IPv4 address within ARP.
    ArpIp,
    /// IPv4 source.
    Source,
    /// IPv4 destination.
    Destination,
    /// IPv6 source.
    Source6,
    /// IPv6 destination.
    Destination6,
    /// Protocol above IP.
    Protocol,
    /// Source port of any transport protocol.
    SourcePort,
    /// Destination port of any transport protocol.
    DestinationPort,
}

impl Chain {
    /// A chain that only jumps lead to.
    #[must_use]
    pub fn inner(name: &'static str, rules: Vec<Rule>) -> Self {
        Self { name, base: None, rules }
    }

    /// A chain that the kernel sends packets to.
    #[must_use]
    pub fn at(hook: Hook, policy: Policy, name: &'static str, rules: Vec<Rule>) -> Self {
        Self { name, base: Some(Base { hook, policy }), rules }
    }
}

impl Rule {
    /// The rule that has no condition yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn then(mut self, statement: Statement) -> Self {
        self.0.push(statement);
        self
    }

    /// … if this holds too.
    #[must_use]
    pub fn when(self, condition: Match) -> Self {
        self.then(Statement::Match(condition))
    }

    /// … and it came in through `interface`.
    #[must_use]
    pub fn input(self, interface: &str) -> Self {
        self.when(Match::Input(Not::Is, interface.into()))
    }

    /// … and it goes out through `interface`.
    #[must_use]
    pub fn output(self, interface: &str) -> Self {
        self.when(Match::Output(Not::Is, interface.into()))
    }

    /// … and it comes from `network`.
    #[must_use]
    pub fn source(self, network: Prefix) -> Self {
        self.when(Match::Source(Not::Is, network))
    }

    /// … and it goes to `network`.
    #[must_use]
    pub fn destination(self, network: Prefix) -> Self {
        self.when(Match::Destination(Not::Is, network))
    }

    /// … and it goes to this port.
    #[must_use]
    pub fn port(self, transport: Transport, port: u16) -> Self {
        self.when(Match::DestinationPort(transport, port))
    }

    /// … and connection tracking says so.
    #[must_use]
    pub fn state(self, states: States) -> Self {
        self.when(Match::State(states))
    }

    /// … and the parts are in the set.
    #[must_use]
    pub fn lookup(self, key: &[Key], set: &'static str) -> Self {
        self.when(Match::Lookup(Not::Is, key.to_vec(), set))
    }

    /// … at most so often.
    #[must_use]
    pub fn limit(self, per_second: u32) -> Self {
        self.then(Statement::Limit { per_second })
    }

    /// Lets the packet go on.
    #[must_use]
    pub fn accept(self) -> Self {
        self.then(Statement::Verdict(Verdict::Accept))
    }

    /// Counts the packet and drops it.
    #[must_use]
    pub fn drop(self, reason: DropReason) -> Self {
        self.then(Statement::Counter).then(Statement::Verdict(Verdict::Drop(reason)))
    }

    /// Drops the packet without a word: what the kernel says by itself is nobody's attempt.
    #[must_use]
    pub fn ignore(self, reason: DropReason) -> Self {
        self.then(Statement::Verdict(Verdict::Drop(reason)))
    }

    /// On with another chain.
    #[must_use]
    pub fn jump(self, chain: &'static str) -> Self {
        self.then(Statement::Verdict(Verdict::Jump(chain)))
    }

    /// Sends the flow to a container.
    #[must_use]
    pub fn redirect(self, address: Ipv4Addr, port: u16) -> Self {
        self.then(Statement::Redirect(address, port))
    }

    /// Hides the source behind the outgoing interface's address.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.then(Statement::Masquerade)
    }
}
