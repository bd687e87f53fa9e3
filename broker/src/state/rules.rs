//! Standing rules: connections between all containers with a label, those that are there and those that come.
//!
//! The rules are stored; the links that follow from them are not, but are worked out when the broker starts and
//! whenever a rule or a container comes or goes. To boards one link is like another.
use super::ask::Now;
use super::bounds::{MAX_LABEL_BYTES, MAX_LINKS_PER_BOARD, MAX_RULES};
use super::containers::Asker;
use super::waiting::Goal;
use super::{Broker, error};
use crate::record::{Container, Link, Member, Rule};
use std::collections::{BTreeMap, BTreeSet};
use wherry_protocol::message::{ConnectRequest, Party, RuleInfo};
use wherry_protocol::{AccountId, ContainerId, ErrorCode, NodeIndex, WireError};

impl Member {
    pub(super) fn matches(&self, id: ContainerId, container: &Container) -> bool {
        match self {
            Self::Container(only) => *only == id,
            Self::Labelled { key, value } => {
                container.spec.labels.iter().any(|(k, v)| (k, v) == (key, value))
            }
        }
    }
}

impl Broker {
    /// Whether a request is about labels, and so about a rule rather than one connection.
    pub(super) fn is_rule(wanted: &ConnectRequest) -> bool {
        [&wanted.from, &wanted.to].iter().any(|party| matches!(party, Party::Labelled { .. }))
    }

    pub(super) fn rule(&self, asker: &Asker, wanted: &ConnectRequest) -> Result<Rule, WireError> {
        if wanted.port == 0 {
            return Err(error(ErrorCode::Invalid, "a port is 1 to 65535, not 0"));
        }
        let (from, to) = (self.member(asker, &wanted.from)?, self.member(asker, &wanted.to)?);
        Ok(Rule { account: asker.account, from, to, port: wanted.port, transport: wanted.transport })
    }

    pub(super) fn member(&self, asker: &Asker, party: &Party) -> Result<Member, WireError> {
        match party {
            Party::Container(selector) => self.find(asker, selector).map(|(id, _)| Member::Container(id)),
            Party::Labelled { key, value } => {
                if key.is_empty() || key.len() + value.len() > MAX_LABEL_BYTES {
                    let text =
                        format!("a label has a name, and at most {MAX_LABEL_BYTES} bytes with its value");
                    return Err(error(ErrorCode::Invalid, text));
                }
                Ok(Member::Labelled { key: key.clone(), value: value.clone() })
            }
        }
    }

    pub(super) fn add_rule(&mut self, asker: &Asker, wanted: &ConnectRequest) -> Now {
        let rule = self.rule(asker, wanted)?;
        if !self.tables.rules.contains(&rule) {
            let count = self.tables.rules.iter().filter(|(rule, ())| rule.account == asker.account).count();
            if count >= MAX_RULES {
                let text = format!(
                    "{count} rules, the limit is {MAX_RULES}: take some back with `wherry disconnect`"
                );
                return Err(error(ErrorCode::NoCapacity, text));
            }
            self.tables.rules.insert(rule.clone(), ());
        }
        let links = self.links_by(&rule, None);
        self.stand(&links)?;
        let boards = self.boards_of(&links);
        let here = self.connected_among(&boards);
        self.until_applied(asker, &here, Goal::Connect { undo: None })
    }

    pub(super) fn remove_rule(&mut self, asker: &Asker, wanted: &ConnectRequest) -> Now {
        let rule = self.rule(asker, wanted)?;
        if self.tables.rules.remove(&rule).is_none() {
            let text = "there is no such rule: list them with `wherry connections`";
            return Err(error(ErrorCode::NotFound, text));
        }
        let links = self.links_by(&rule, None);
        let boards = self.boards_of(&links);
        self.fall(&links);
        let here = self.connected_among(&boards);
        self.until_applied(asker, &here, Goal::Disconnect { closed: false })
    }

    /// A rule that allows `link`.
    pub(super) fn rule_for(&self, link: &Link) -> Option<&Rule> {
        let (from, to) = (self.tables.container(link.from)?, self.tables.container(link.to)?);
        self.tables.rules.iter().map(|(rule, ())| rule).find(|rule| {
            (rule.port, rule.transport) == (link.port, link.transport)
                && rule.account == from.account
                && rule.account == to.account
                && rule.from.matches(link.from, from)
                && rule.to.matches(link.to, to)
        })
    }

    /// A container has come: what rules say about it holds at once.
    pub(super) fn apply_rules_to(&mut self, id: ContainerId) {
        let rules: Vec<Rule> = self.tables.rules.iter().map(|(rule, ())| rule.clone()).collect();
        let links: BTreeSet<Link> = rules.iter().flat_map(|rule| self.links_by(rule, Some(id))).collect();
        if let Err(error) = self.stand(&links) {
            tracing::warn!(container = %id, "not all of its rules hold: {error}");
        }
    }

    /// When the broker starts: without telling anybody, for nobody is there yet.
    pub(super) fn resume_rules(&mut self) {
        let rules: Vec<Rule> = self.tables.rules.iter().map(|(rule, ())| rule.clone()).collect();
        for rule in &rules {
            let mut counts = BTreeMap::new();
            for link in self.links_by(rule, None) {
                if self.has_room(&link, &mut counts) {
                    self.tables.insert_standing(link);
                }
            }
        }
    }

    /// A container goes: rules about it alone go with it.
    pub(super) fn forget_rules_of(&mut self, id: ContainerId) {
        let only = Member::Container(id);
        let gone: Vec<Rule> = self
            .tables
            .rules
            .iter()
            .filter(|(rule, ())| rule.from == only || rule.to == only)
            .map(|(rule, ())| rule.clone())
            .collect();
        for rule in gone {
            self.tables.rules.remove(&rule);
        }
    }

    /// An account goes.
    pub(super) fn forget_rules_of_account(&mut self, account: AccountId) {
        let gone: Vec<Rule> = self
            .tables
            .rules
            .iter()
            .filter(|(rule, ())| rule.account == account)
            .map(|(r, ())| r.clone())
            .collect();
        for rule in gone {
            self.tables.rules.remove(&rule);
        }
    }

    /// The links that follow from a rule: all of them, or those of one container.
    fn links_by(&self, rule: &Rule, only: Option<ContainerId>) -> BTreeSet<Link> {
        let present: Vec<(ContainerId, &Container)> =
            self.tables.containers().filter(|(_, c)| c.account == rule.account && c.is_present()).collect();
        let matching = |member: &Member| -> Vec<ContainerId> {
            present.iter().filter(|(id, c)| member.matches(*id, c)).map(|(id, _)| *id).collect()
        };
        let (froms, tos) = (matching(&rule.from), matching(&rule.to));
        let mut links = BTreeSet::new();
        for from in froms {
            let about =
                |to: &&ContainerId| from != **to && only.is_none_or(|only| only == from || only == **to);
            links.extend(tos.iter().filter(about).map(|to| Link {
                from,
                to: *to,
                port: rule.port,
                transport: rule.transport,
            }));
        }
        links
    }

    /// Lets the links hold, as far as the boards have room.
    fn stand(&mut self, links: &BTreeSet<Link>) -> Result<(), WireError> {
        let mut counts = BTreeMap::new();
        let mut left_out = None;
        for link in links {
            if self.tables.has_link(link) || self.has_room(link, &mut counts) {
                self.tables.insert_standing(*link);
            } else {
                left_out = Some(*link);
            }
        }
        self.refresh(&self.boards_of(links));
        match left_out {
            None => Ok(()),
            Some(link) => {
                let boards = self.boards_of(&[link].into());
                let names: Vec<String> = boards.into_iter().map(|board| self.node_name(board)).collect();
                let text = format!(
                    "the rule holds, but not for all: {} cannot take more than {MAX_LINKS_PER_BOARD} connections",
                    names.join(" or ")
                );
                Err(error(ErrorCode::NoCapacity, text))
            }
        }
    }

    /// Takes the links away for which there is no rule any more, unless somebody has allowed them one by one.
    fn fall(&mut self, links: &BTreeSet<Link>) {
        let fallen: Vec<Link> = links.iter().copied().filter(|link| self.rule_for(link).is_none()).collect();
        self.unlink_standing(&fallen);
    }

    fn has_room(&self, link: &Link, counts: &mut BTreeMap<NodeIndex, usize>) -> bool {
        let boards = self.boards_of(&[*link].into());
        let room = boards.iter().all(|board| {
            let count = counts.entry(*board).or_insert_with(|| self.links_on(*board));
            *count < MAX_LINKS_PER_BOARD
        });
        if room {
            boards.iter().filter_map(|board| counts.get_mut(board).map(|count| *count += 1)).for_each(drop);
        }
        room
    }

    fn links_on(&self, board: NodeIndex) -> usize {
        let links: BTreeSet<&Link> =
            self.tables.containers_on(board).flat_map(|(id, _)| self.tables.links_of(id)).collect();
        links.len()
    }

    fn boards_of(&self, links: &BTreeSet<Link>) -> BTreeSet<NodeIndex> {
        let ends = links.iter().flat_map(|link| [link.from, link.to]);
        ends.filter_map(|id| self.tables.container(id).map(|c| c.node)).collect()
    }

    pub(super) fn connected_among(&self, boards: &BTreeSet<NodeIndex>) -> BTreeSet<NodeIndex> {
        boards.iter().copied().filter(|board| self.connected.contains_key(board)).collect()
    }

    pub(super) fn rules(&self, account: AccountId) -> Vec<RuleInfo> {
        let own = self.tables.rules.iter().map(|(rule, ())| rule).filter(|rule| rule.account == account);
        own.map(|rule| RuleInfo {
            from: self.member_text(&rule.from),
            to: self.member_text(&rule.to),
            port: rule.port,
            transport: rule.transport,
            connections: u32::try_from(self.links_by(rule, None).len()).unwrap_or(u32::MAX),
        })
        .collect()
    }

    /// As the command line takes it.
    pub(super) fn member_text(&self, member: &Member) -> String {
        match member {
            Member::Container(id) => self
                .tables
                .container(*id)
                .map_or_else(|| id.to_string(), |container| container.name.to_string()),
            Member::Labelled { key, value } => format!("label:{key}={value}"),
        }
    }
}
