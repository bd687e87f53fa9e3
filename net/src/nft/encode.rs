//! A ruleset as one netlink transaction. Numbers are those of include/uapi/linux/netfilter/nf_tables.h.
use super::element::{Element, SetChange, length};
use super::lower::{FIRST, Instruction, Load, program};
use super::model::{Base, Chain, Family, Hook, KeyType, Not, Policy, Ruleset, Set, Table, Verdict};
use crate::netlink::{Attributes, append};

/// NFNL_SUBSYS_NFTABLES: the high byte of message types.
const SUBSYSTEM: u16 = 10;
/// NFNL_MSG_BATCH_BEGIN and NFNL_MSG_BATCH_END.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
pub(super) const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
const DELETE_ELEMENTS: u16 = 14;
pub(super) const NEW_GENERATION: u16 = 15;
const GET_GENERATION: u16 = 16;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// Elements in one message: 256 of the longest keys stay below the 64 KiB an attribute can hold.
const ELEMENTS_PER_MESSAGE: usize = 256;

/// What to send, and the sequence numbers its answers carry.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    /// Of the message that opens the transaction: an error with this number ends it.
    pub(super) first: u32,
    /// Of the last message, the only one that asks for an answer.
    pub(super) last: u32,
}

/// struct nfgenmsg: family, version 0, resource id in network order.
fn head(family: u8, resource: u16) -> Vec<u8> {
    let mut bytes = vec![family, 0];
    bytes.extend(resource.to_be_bytes());
    bytes
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Bridge => 7,
    }
}

/// The transaction that makes the tables of `ruleset` exactly what it says, whatever they were; other tables are not
/// touched. Adding before deleting makes the deletion succeed whether or not the table was there.
pub(super) fn replace(ruleset: &Ruleset, sequence: u32) -> Batch {
    let mut writer = Writer::begin(sequence);
    for table in &ruleset.tables {
        let name = || Attributes::default().text(1, table.name);
        writer.message(table.family, NEW_TABLE, CREATE, &name());
        writer.message(table.family, DELETE_TABLE, 0, &name());
        writer.table(table);
    }
    writer.end()
}

/// What leads from a ruleset that the kernel has to another one.
pub(super) enum Change {
    /// Nothing: they are the same.
    Nothing,
    /// This transaction: elements of sets differ, nothing else. It costs as much as what changes, not as much as what is there,
    /// and counters go on.
    Elements(Batch),
    /// Only all of it.
    Everything,
}

pub(super) fn change(from: &Ruleset, to: &Ruleset, sequence: u32) -> Change {
    let Some(changes) = changed_sets(from, to) else { return Change::Everything };
    if changes.is_empty() {
        return Change::Nothing;
    }
    let mut writer = Writer::begin(sequence);
    for (table, before, after) in &changes {
        let gone: Vec<_> = before.elements.without(&after.elements).collect();
        let new: Vec<_> = after.elements.without(&before.elements).collect();
        writer.elements(table, after, DELETE_ELEMENTS, 0, &gone);
        writer.elements(table, after, NEW_ELEMENTS, CREATE, &new);
    }
    Change::Elements(writer.end())
}

/// The transaction that makes these changes of the sets of `of`, which the kernel has. `None` if there is nothing to do.
pub(super) fn change_sets(of: &Ruleset, changes: &[SetChange], sequence: u32) -> Option<Batch> {
    let mut writer = Writer::begin(sequence);
    let empty = writer.bytes.len();
    for change in changes {
        let sets = of.tables.iter().flat_map(|table| table.sets.iter().map(move |set| (table, set)));
        for (table, set) in sets.filter(|(_, set)| set.name == change.set) {
            let (gone, new): (Vec<_>, Vec<_>) = (change.gone.iter().collect(), change.new.iter().collect());
            writer.elements(table, set, DELETE_ELEMENTS, 0, &gone);
            writer.elements(table, set, NEW_ELEMENTS, CREATE, &new);
        }
    }
    (writer.bytes.len() > empty).then(|| writer.end())
}

type ChangedSet<'a> = (&'a Table, &'a Set, &'a Set);

/// The sets whose elements differ; `None` if anything else does, too.
fn changed_sets<'a>(from: &'a Ruleset, to: &'a Ruleset) -> Option<Vec<ChangedSet<'a>>> {
    let mut changed = Vec::new();
    (from.tables.len() == to.tables.len()).then_some(())?;
    for (before, after) in from.tables.iter().zip(&to.tables) {
        let same = (before.family, before.name, &before.chains) == (after.family, after.name, &after.chains);
        (same && before.sets.len() == after.sets.len()).then_some(())?;
        for (old, new) in before.sets.iter().zip(&after.sets) {
            ((old.name, &old.key) == (new.name, &new.key)).then_some(())?;
            if old.elements != new.elements {
                changed.push((after, old, new));
            }
        }
    }
    Some(changed)
}

/// Asks which generation the namespace's rules are: it changes with every change of any of them.
pub(super) fn get_generation(sequence: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(&mut bytes, SUBSYSTEM << 8 | GET_GENERATION, REQUEST, sequence, &head(0, 0));
    bytes
}

/// Asks for all rules of the table of a family.
pub(super) fn get_rules(family: Family, table: &str, sequence: u32) -> Vec<u8> {
    let mut payload = head(family_number(family), 0);
    payload.extend(Attributes::default().text(1, table).as_slice());
    let mut bytes = Vec::new();
    append(&mut bytes, SUBSYSTEM << 8 | GET_RULE, REQUEST | DUMP, sequence, &payload);
    bytes
}

/// Asks for a table; the answer is the table or ENOENT.
pub(super) fn get_table(family: Family, name: &str, sequence: u32) -> Vec<u8> {
    let mut payload = head(family_number(family), 0);
    payload.extend(Attributes::default().text(1, name).as_slice());
    let mut bytes = Vec::new();
    append(&mut bytes, SUBSYSTEM << 8 | GET_TABLE, REQUEST | ACK, sequence, &payload);
    bytes
}

struct Writer {
    bytes: Vec<u8>,
    /// Number of the message that opens the transaction.
    first: u32,
    /// Where the newest message begins.
    newest: usize,
    newest_flags: u16,
    sequence: u32,
}

impl Writer {
    fn begin(sequence: u32) -> Self {
        let mut writer =
            Self { bytes: Vec::new(), first: sequence.wrapping_add(1), newest: 0, newest_flags: 0, sequence };
        writer.bare(BATCH_BEGIN, SUBSYSTEM);
        writer
    }

    fn end(mut self) -> Batch {
        let last = self.sequence;
        self.ask_for_answer();
        self.bare(BATCH_END, SUBSYSTEM);
        Batch { bytes: self.bytes, first: self.first, last }
    }

    /// Makes the kernel answer the newest message: then all before it went well too.
    fn ask_for_answer(&mut self) {
        if let Some(flags) = self.bytes.get_mut(self.newest + 6..self.newest + 8) {
            flags.copy_from_slice(&(self.newest_flags | ACK).to_ne_bytes());
        }
    }

    fn bare(&mut self, kind: u16, resource: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        append(&mut self.bytes, kind, REQUEST, self.sequence, &head(0, resource));
    }

    fn message(&mut self, family: Family, kind: u16, flags: u16, attributes: &Attributes) {
        self.sequence = self.sequence.wrapping_add(1);
        self.newest = self.bytes.len();
        self.newest_flags = REQUEST | flags;
        let mut payload = head(family_number(family), 0);
        payload.extend(attributes.as_slice());
        append(&mut self.bytes, SUBSYSTEM << 8 | kind, REQUEST | flags, self.sequence, &payload);
    }

    fn elements(&mut self, table: &Table, set: &Set, kind: u16, flags: u16, elements: &[&Element]) {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.message(table.family, kind, flags, &elements_attributes(table, set, chunk));
        }
    }

    fn table(&mut self, table: &Table) {
        self.message(table.family, NEW_TABLE, CREATE, &Attributes::default().text(1, table.name));
        for (number, set) in (1u32..).zip(&table.sets) {
            self.message(table.family, NEW_SET, CREATE, &set_attributes(table, set, number));
            let elements: Vec<_> = set.elements.iter().collect();
            self.elements(table, set, NEW_ELEMENTS, CREATE, &elements);
        }
        // All chains first: a rule can only jump to a chain that is there.
        for chain in &table.chains {
            self.message(table.family, NEW_CHAIN, CREATE, &chain_attributes(table, chain));
        }
        for chain in &table.chains {
            for rule in &chain.rules {
                let code = program(table.family, rule);
                let attributes = rule_attributes(table, chain, &code);
                self.message(table.family, NEW_RULE, CREATE | APPEND, &attributes);
            }
        }
    }
}

/// Numbers of nft's own types, kept by the kernel so that `nft list` can show keys as they were meant.
fn key_type(part: KeyType) -> u32 {
    match part {
        KeyType::Ifname => 41,
        KeyType::Ether => 9,
        KeyType::Ipv4 => 7,
        KeyType::Ipv6 => 8,
        KeyType::Protocol => 12,
        KeyType::Port => 13,
    }
}

fn set_attributes(table: &Table, set: &Set, number: u32) -> Attributes {
    let joined = set.key.iter().fold(0, |joined, part| joined << 6 | key_type(*part));
    Attributes::default()
        .text(1, table.name)
        .text(2, set.name)
        .be32(3, 0)
        .be32(4, joined)
        .be32(5, length(&set.key) as u32)
        .be32(10, number)
}

fn elements_attributes(table: &Table, set: &Set, elements: &[&Element]) -> Attributes {
    let list = elements.iter().fold(Attributes::default(), |list, element| {
        let value = Attributes::default().bytes(1, element.bytes(&set.key));
        list.nest(1, Attributes::default().nest(1, value))
    });
    Attributes::default().text(1, table.name).text(2, set.name).nest(3, list)
}

fn chain_attributes(table: &Table, chain: &Chain) -> Attributes {
    let attributes = Attributes::default().text(1, table.name).text(3, chain.name);
    match chain.base {
        Some(base) => base_attributes(attributes, base),
        None => attributes,
    }
}

/// Hook numbers (enum nf_inet_hooks, enum nf_br_hooks), priorities (enum nf_ip_hook_priorities, enum
/// nf_br_hook_priorities) and verdicts of a policy (NF_DROP, NF_ACCEPT).
fn base_attributes(attributes: Attributes, base: Base) -> Attributes {
    let (number, priority, kind) = match base.hook {
        Hook::Input => (1, 0, "filter"),
        Hook::Forward => (2, 0, "filter"),
        Hook::Output => (3, 0, "filter"),
        Hook::SourceNat => (4, 100, "nat"),
        Hook::DestinationNat => (0, -100, "nat"),
        Hook::BridgePrerouting => (0, -300i32, "filter"),
    };
    let policy = match base.policy {
        Policy::Drop => 0,
        Policy::Accept => 1,
    };
    let hook = Attributes::default().be32(1, number).bytes(2, &priority.to_be_bytes());
    attributes.nest(4, hook).be32(5, policy).text(7, kind)
}

fn rule_attributes(table: &Table, chain: &Chain, code: &[Instruction]) -> Attributes {
    let list = code.iter().flat_map(expressions).fold(Attributes::default(), |list, step| list.nest(1, step));
    let rule_of = Attributes::default().text(1, table.name).text(2, chain.name).nest(4, list);
    let reason = code.iter().find_map(|step| match step {
        Instruction::Verdict(Verdict::Drop(reason)) => Some(reason.name()),
        _ => None,
    });
    match reason {
        Some(reason) => rule_of.bytes(7, &comment(reason)),
        None => rule_of,
    }
}

/// NFTNL_UDATA_RULE_COMMENT: what `nft` shows as a rule's comment. A type, a length, and the text with its zero.
const COMMENT: u8 = 0;

fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = vec![COMMENT, length];
    bytes.extend(text.bytes().take(usize::from(length) - 1));
    bytes.push(0);
    bytes
}

fn named(name: &str, data: Attributes) -> Attributes {
    Attributes::default().text(1, name).nest(2, data)
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().bytes(1, bytes)
}

/// What one instruction becomes: a redirection first loads where it leads.
fn expressions(step: &Instruction) -> Vec<Attributes> {
    let constant = |register, bytes: &[u8]| {
        named("immediate", Attributes::default().be32(1, register).nest(2, value(bytes)))
    };
    match step {
        Instruction::Redirect { address, port } => {
            vec![constant(FIRST, address), constant(FIRST + 1, port), instruction(step)]
        }
        step => vec![instruction(step)],
    }
}

fn instruction(step: &Instruction) -> Attributes {
    let empty = Attributes::default;
    match step {
        Instruction::Load { from, register } => load(*from, *register),
        Instruction::Mask { mask } => {
            let length = mask.len() as u32;
            let data = empty().be32(1, FIRST).be32(2, FIRST).be32(3, length);
            named("bitwise", data.nest(4, value(mask)).nest(5, value(&vec![0; mask.len()])))
        }
        Instruction::Compare { not, data } => {
            named("cmp", empty().be32(1, FIRST).be32(2, flag(*not)).nest(3, value(data)))
        }
        Instruction::Lookup { not, set } => {
            named("lookup", empty().text(1, set).be32(2, FIRST).be32(5, flag(*not)))
        }
        Instruction::Limit { per_second } => {
            let rate = empty().be64(1, u64::from(*per_second)).be64(2, 1).be32(3, LIMIT_BURST);
            named("limit", rate.be32(4, 0).be32(5, 0))
        }
        Instruction::Counter => named("counter", empty()),
        Instruction::Masquerade => named("masq", empty()),
        // NFT_NAT_DNAT to NFPROTO_IPV4; NF_NAT_RANGE_PROTO_SPECIFIED.
        Instruction::Redirect { .. } => {
            let to = empty().be32(1, 1).be32(2, 2).be32(3, FIRST).be32(5, FIRST + 1);
            named("nat", to.be32(7, 2))
        }
        Instruction::Verdict(verdict) => {
            named("immediate", empty().be32(1, 0).nest(2, empty().nest(2, verdict_attributes(*verdict))))
        }
    }
}

/// Packets that may come at once before a limit bites: nft's own default.
const LIMIT_BURST: u32 = 5;

/// NFT_CMP_EQ / NFT_CMP_NEQ, and NFT_LOOKUP_F_INV.
fn flag(not: Not) -> u32 {
    match not {
        Not::Is => 0,
        Not::IsNot => 1,
    }
}

fn load(from: Load, register: u32) -> Attributes {
    let target = Attributes::default().be32(1, register);
    match from {
        Load::Meta(key) => named("meta", target.be32(2, key as u32)),
        Load::State => named("ct", target.be32(2, 0)),
        Load::Status => named("ct", target.be32(2, 2)),
        Load::Payload { header, offset, bytes } => {
            named("payload", target.be32(2, header as u32).be32(3, offset).be32(4, bytes))
        }
    }
}

/// NF_DROP, NF_ACCEPT and NFT_JUMP.
fn verdict_attributes(verdict: Verdict) -> Attributes {
    let code = |code: i32| Attributes::default().bytes(1, &code.to_be_bytes());
    match verdict {
        Verdict::Drop(_) => code(0),
        Verdict::Accept => code(1),
        Verdict::Jump(chain) => code(-3).text(2, chain),
    }
}
