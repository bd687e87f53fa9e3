//! Containers that rules of the web endpoint name as callers: they come through their own boards.
use super::bounds::MAX_CALLER_BYTES;
use super::web::{WebCaller, WebHost};
use super::{Broker, RequestId, SessionId, error};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use wherry_protocol::message::{Reply, WebCaller as Told};
use wherry_protocol::{AccountId, ContainerId, ErrorCode, NodeIndex};

/// A container that may ask for some names, through its board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebClient {
    /// Whose it is.
    pub account: AccountId,
    /// Where it is.
    pub node: NodeIndex,
    /// Its address.
    pub address: Ipv4Addr,
    /// Names whose rules name it, in order.
    pub hosts: Vec<String>,
}

impl Broker {
    pub(super) fn web_callers(&self, hosts: &BTreeMap<String, WebHost>) -> BTreeMap<ContainerId, WebClient> {
        let mut callers: BTreeMap<ContainerId, WebClient> = BTreeMap::new();
        for (host, served) in hosts {
            let rules = served.rules.iter().flatten();
            let named: BTreeSet<ContainerId> = rules
                .flat_map(|rule| &rule.callers)
                .filter_map(|caller| match caller {
                    WebCaller::Container(id) => Some(*id),
                    WebCaller::Anyone | WebCaller::Network(_) => None,
                })
                .collect();
            for id in named {
                let Some(container) = self.tables.container(id) else { continue };
                let (account, node, address) = (container.account, container.node, container.address);
                let client = callers.entry(id).or_insert_with(|| WebClient {
                    account,
                    node,
                    address,
                    hosts: Vec::new(),
                });
                client.hosts.push(host.clone());
            }
        }
        callers
    }

    /// What a board has to know of them: as much as fits beside its connections.
    pub(super) fn callers_on(&self, board: NodeIndex) -> Vec<Told> {
        let here = self.web.callers.iter().filter(|(_, client)| client.node == board);
        let mut room = MAX_CALLER_BYTES;
        let mut fits = |client: &WebClient| {
            let bytes = client.hosts.iter().map(|host| host.len() + 16).sum();
            room.checked_sub(bytes).map(|left| room = left).is_some()
        };
        here.filter(|(_, client)| fits(client))
            .map(|(id, client)| Told { container: *id, address: client.address, hosts: client.hosts.clone() })
            .collect()
    }

    /// Tells boards whose containers are named by other rules than before.
    pub(super) fn refresh_callers(&mut self) {
        let named = self.web.callers.values().map(|client| client.node);
        let known = self.networks.iter().filter(|(_, network)| !network.callers.is_empty());
        let boards = named.chain(known.map(|(board, _)| *board)).collect();
        self.refresh(&boards);
    }

    /// A container asks the web endpoint through its board.
    pub(super) fn call_web(&mut self, request: RequestId, session: SessionId, container: ContainerId) {
        let result = self.board_of(session).and_then(|board| {
            match self.web.callers.get(&container).is_some_and(|client| client.node == board) {
                true => Ok(Reply::Done),
                false => Err(error(ErrorCode::Forbidden, "no rule of the web endpoint names this container")),
            }
        });
        self.reply_result(request, result);
    }
}
