//! Rulesets to the kernel.
use super::element::SetChange;
use super::encode::{
    Batch, Change, NEW_GENERATION, NEW_RULE, change, change_sets, get_generation, get_rules, get_table,
    replace,
};
use super::model::{Family, Ruleset};
use crate::netlink::{KIND_DONE, Socket, attribute, attributes, messages};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use wherry_protocol::message::{DropReason, Drops};

/// Why the kernel did not take a ruleset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NftError {
    /// No netlink socket for nf_tables.
    #[error("no access to nf_tables ({0}): the kernel needs CONFIG_NF_TABLES and the process CAP_NET_ADMIN")]
    Open(Errno),
    /// The kernel did not answer, or the question did not get through.
    #[error("nf_tables did not answer ({0})")]
    Answer(Errno),
    /// The kernel refused the transaction; nothing of it holds.
    #[error("the kernel refused message {message} of the firewall's transaction ({errno})")]
    Refused {
        /// Which message, counted from the beginning of the transaction.
        message: u32,
        /// Why.
        errno: Errno,
    },
}

/// A socket to nf_tables of one network namespace.
#[derive(Debug)]
pub struct NftSocket(Socket);

/// Which state of all rules of a namespace: any change of them, by anybody, gives a new number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RulesGeneration(u32);

impl NftSocket {
    /// A socket for the calling thread's network namespace; it keeps speaking to that one.
    pub fn open() -> Result<Self, NftError> {
        Socket::open(SockProtocol::NetlinkNetFilter).map(Self).map_err(NftError::Open)
    }

    /// Makes the tables of `ruleset` exactly what it says, in one transaction: a packet sees all of the old rules or all
    /// of the new ones.
    pub fn replace(&mut self, ruleset: &Ruleset) -> Result<(), NftError> {
        let batch = replace(ruleset, self.0.next_sequence());
        self.transact(&batch)
    }

    /// The same for tables that were made `from` before, and changed by nobody since. Where only elements of sets differ,
    /// only those are sent: a connection more among thousands costs the same as the first, and counters go on. Where more
    /// differs, or somebody has changed them all the same, nothing happens and the answer is false.
    pub fn change(&mut self, from: &Ruleset, to: &Ruleset) -> Result<bool, NftError> {
        match change(from, to, self.0.next_sequence()) {
            Change::Nothing => Ok(true),
            Change::Everything => Ok(false),
            Change::Elements(batch) => match self.transact(&batch) {
                Ok(()) => Ok(true),
                Err(NftError::Refused { .. }) => Ok(false),
                Err(error) => Err(error),
            },
        }
    }

    /// Makes these changes of the sets of `told`, which is what the kernel has, without a look at all the rest. If somebody has
    /// changed them all the same, nothing happens and the answer is false.
    pub fn change_sets(&mut self, told: &mut Ruleset, changes: &[SetChange]) -> Result<bool, NftError> {
        if let Some(batch) = change_sets(told, changes, self.0.next_sequence()) {
            match self.transact(&batch) {
                Ok(()) => {}
                Err(NftError::Refused { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        told.change(changes);
        Ok(true)
    }

    fn transact(&mut self, batch: &Batch) -> Result<(), NftError> {
        for _ in batch.first..=batch.last {
            self.0.next_sequence();
        }
        self.0.send(&batch.bytes).map_err(NftError::Answer)?;
        self.answer(batch.first, batch.last)
    }

    /// Errors come for every message that has one, success only for the last; an error about the first ends it all.
    fn answer(&self, first: u32, last: u32) -> Result<(), NftError> {
        let mut result = Ok(());
        loop {
            let datagram = self.0.receive().map_err(NftError::Answer)?;
            for message in messages(&datagram).filter(|message| (first..=last).contains(&message.sequence)) {
                if let (Some(Err(errno)), Ok(())) = (message.answer(), result) {
                    result = Err(NftError::Refused { message: message.sequence - first, errno });
                }
                let refused_at_once = message.sequence == first && result.is_err();
                if refused_at_once || message.sequence == last {
                    return result;
                }
            }
        }
    }

    /// Whether there is a table of this name.
    pub fn has_table(&mut self, family: Family, name: &str) -> Result<bool, NftError> {
        let sequence = self.0.next_sequence();
        self.0.send(&get_table(family, name, sequence)).map_err(NftError::Answer)?;
        loop {
            let datagram = self.0.receive().map_err(NftError::Answer)?;
            let mut answers = messages(&datagram).filter(|message| message.sequence == sequence);
            match answers.find_map(|message| message.answer()) {
                Some(Ok(())) => return Ok(true),
                Some(Err(Errno::ENOENT)) => return Ok(false),
                Some(Err(errno)) => return Err(NftError::Answer(errno)),
                None => {}
            }
        }
    }

    /// Packets that the rules of our tables have dropped since they were made, by reason. A table that is not there counts
    /// none.
    pub fn drops(&mut self, table: &str) -> Result<Drops, NftError> {
        let mut drops = Drops::default();
        for family in [Family::Inet, Family::Bridge] {
            let sequence = self.0.next_sequence();
            self.0.send(&get_rules(family, table, sequence)).map_err(NftError::Answer)?;
            self.each_answer(sequence, |kind, payload| {
                if let Some((reason, packets)) = parse_drop(kind, payload) {
                    drops.add(reason, packets);
                }
            })?;
        }
        Ok(drops)
    }

    /// Shows `look` every message of an answer that has several.
    fn each_answer(&self, sequence: u32, mut look: impl FnMut(u16, &[u8])) -> Result<(), NftError> {
        loop {
            let datagram = self.0.receive().map_err(NftError::Answer)?;
            for message in messages(&datagram).filter(|message| message.sequence == sequence) {
                match message.answer() {
                    Some(Err(Errno::ENOENT)) | Some(Ok(())) => return Ok(()),
                    Some(Err(errno)) => return Err(NftError::Answer(errno)),
                    None if message.kind == KIND_DONE => return Ok(()),
                    None => look(message.kind, message.payload),
                }
            }
        }
    }

    /// The present generation of the namespace's rules.
    pub fn generation(&mut self) -> Result<RulesGeneration, NftError> {
        let sequence = self.0.next_sequence();
        self.0.send(&get_generation(sequence)).map_err(NftError::Answer)?;
        loop {
            let datagram = self.0.receive().map_err(NftError::Answer)?;
            for message in messages(&datagram).filter(|message| message.sequence == sequence) {
                if let Some(Err(errno)) = message.answer() {
                    return Err(NftError::Answer(errno));
                }
                if let Some(generation) = parse_generation(message.kind, message.payload) {
                    return Ok(generation);
                }
            }
        }
    }
}

/// Reason and packets of a rule that drops: its comment (NFTA_RULE_USERDATA), and the counter among its expressions
/// (NFTA_RULE_EXPRESSIONS), whose data has NFTA_COUNTER_PACKETS. Behind struct nfgenmsg.
fn parse_drop(kind: u16, payload: &[u8]) -> Option<(DropReason, u64)> {
    let rule = payload.get(4..).filter(|_| kind & 0xff == NEW_RULE)?;
    let [_, _, comment @ .., 0] = attribute(rule, 7)? else { return None };
    let reason = DropReason::ALL.into_iter().find(|reason| reason.name().as_bytes() == comment)?;
    let counter = attributes(attribute(rule, 4)?).find_map(|(_, expression)| {
        let is_counter = attribute(expression, 1)? == b"counter\0";
        attribute(expression, 2).filter(|_| is_counter)
    })?;
    let packets = attribute(counter, 2)?.try_into().ok()?;
    Some((reason, u64::from_be_bytes(packets)))
}

/// The number within the answer: behind struct nfgenmsg and the first attribute's header (NFTA_GEN_ID).
fn parse_generation(kind: u16, payload: &[u8]) -> Option<RulesGeneration> {
    let number = payload.get(8..12).filter(|_| kind & 0xff == NEW_GENERATION)?;
    Some(RulesGeneration(u32::from_be_bytes(number.try_into().ok()?)))
}
