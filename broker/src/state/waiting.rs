//! Answers that come later: what they wait for, and what they say when it does not come.
use super::containers::until_reached;
use super::{Broker, RequestId, SessionId, Timer, error, not_found};
use crate::record::Link;
use std::collections::BTreeMap;
use wherry_protocol::message::{Reply, Request, WaitUntil};
use wherry_protocol::{ContainerId, ErrorCode, NodeIndex, WireError};

/// One question that has no answer yet.
#[derive(Debug, Clone)]
pub(super) enum Waiter {
    /// For a container's state.
    Container { id: ContainerId, until: Until },
    /// For the end of a removal.
    Removed { id: ContainerId },
    /// For a container to be woken, or to have ended.
    Awake { id: ContainerId },
    /// For boards to apply a network revision.
    Network { pending: BTreeMap<NodeIndex, u64>, goal: Goal },
}

/// For which state.
#[derive(Debug, Clone)]
pub(super) enum Until {
    Started,
    Ended,
    /// As `Ended`, because of a stop request: it is told when the board goes away.
    Stopped,
    /// Started, then this is routed to the board.
    Route {
        session: SessionId,
        body: Box<Request>,
    },
}

/// Why boards are to apply a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// To open a connection; taken back on failure if this request made it.
    Connect { undo: Option<Link> },
    /// To close one. One end is enough to close it; whether one has done so already.
    Disconnect { closed: bool },
}

impl Broker {
    pub(super) fn wait_for(&mut self, request: RequestId, waiter: Waiter, deadline_ms: Option<u64>) {
        self.waiters.insert(request, waiter);
        if let Some(delay) = deadline_ms {
            self.set_timer(self.after(delay), Timer::Waiter(request));
        }
    }

    pub(super) fn abandon(&mut self, request: RequestId) {
        self.waiters.remove(&request);
        self.abandon_upload(request);
    }

    pub(super) fn waiter_due(&mut self, request: RequestId, _at: u64) {
        let Some(waiter) = self.waiters.remove(&request) else { return };
        let text = match &waiter {
            Waiter::Container { id, .. } => format!("{id} has not ended in time; it is still being stopped"),
            Waiter::Removed { id } => format!("{id} has not been removed in time; its board goes on with it"),
            Waiter::Awake { id } => format!("{id} has not woken in time; its board goes on with it"),
            Waiter::Network { pending, goal } => {
                let boards: Vec<String> = pending.keys().map(|index| self.node_name(*index)).collect();
                let after = match goal {
                    Goal::Connect { .. } => "the connection was taken back",
                    Goal::Disconnect { .. } => "the connection may still be open",
                };
                format!("{} did not answer in time: {after}, try again", boards.join(" and "))
            }
        };
        if let Waiter::Network { goal, .. } = waiter {
            self.take_back(goal);
        }
        self.reply(request, Reply::Error(error(ErrorCode::Timeout, text)));
    }

    fn take_waiters(&mut self, wanted: impl Fn(&Waiter) -> bool) -> Vec<(RequestId, Waiter)> {
        let ids: Vec<RequestId> =
            self.waiters.iter().filter(|(_, waiter)| wanted(waiter)).map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| self.waiters.remove(&id).map(|waiter| (id, waiter))).collect()
    }

    /// A container's state has changed.
    pub(super) fn waiters_state(&mut self, changed: ContainerId) {
        let Some(state) = self.tables.container(changed).map(|c| c.state.clone()) else { return };
        let reached = self.take_waiters(|waiter| match waiter {
            Waiter::Container { id, until } => *id == changed && until_reached(until.state(), &state),
            Waiter::Removed { .. } | Waiter::Awake { .. } | Waiter::Network { .. } => false,
        });
        for (request, waiter) in reached {
            match waiter {
                Waiter::Container { until: Until::Route { session, body }, .. } => {
                    self.route_later(request, session, *body);
                }
                Waiter::Container { until: Until::Started | Until::Ended | Until::Stopped, id } => {
                    let reply = self.present(id).map(|c| self.container_reply(c, id));
                    self.reply_result(request, reply);
                }
                Waiter::Removed { .. } | Waiter::Awake { .. } | Waiter::Network { .. } => {}
            }
        }
    }

    /// A container is being removed: nobody waits for its state any longer.
    pub(super) fn waiters_lost(&mut self, lost: ContainerId) {
        let waiters = self.take_waiters(|waiter| match waiter {
            Waiter::Container { id, .. } | Waiter::Awake { id } => *id == lost,
            Waiter::Removed { .. } | Waiter::Network { .. } => false,
        });
        for (request, _) in waiters {
            self.reply(request, Reply::Error(not_found("container", lost, "it was removed")));
        }
    }

    /// A container is awake, or has ended.
    pub(super) fn waiters_awake(&mut self, woken: ContainerId) {
        let waiters = self.take_waiters(|waiter| matches!(waiter, Waiter::Awake { id } if *id == woken));
        for (request, _) in waiters {
            let reply = self.present(woken).map(|c| self.container_reply(c, woken));
            self.reply_result(request, reply);
        }
    }

    /// Nothing is left of a container on its board.
    pub(super) fn waiters_removed(&mut self, gone: ContainerId) {
        let waiters = self.take_waiters(|waiter| matches!(waiter, Waiter::Removed { id } if *id == gone));
        for (request, _) in waiters {
            self.reply(request, Reply::Done);
        }
    }

    /// A board has applied all revisions up to this one, or could not.
    pub(super) fn waiters_network(&mut self, index: NodeIndex, revision: u64, failure: Option<&str>) {
        let concerned = |waiter: &Waiter| match waiter {
            Waiter::Network { pending, .. } => pending.get(&index).is_some_and(|wanted| *wanted <= revision),
            Waiter::Container { .. } | Waiter::Removed { .. } | Waiter::Awake { .. } => false,
        };
        for (request, waiter) in self.take_waiters(concerned) {
            let Waiter::Network { mut pending, mut goal } = waiter else { continue };
            match failure {
                Some(reason) => {
                    self.take_back(goal);
                    let reason: String = reason.chars().take(300).collect();
                    let text = format!("{} could not change its network: {reason}", self.node_name(index));
                    self.reply(request, Reply::Error(error(ErrorCode::Internal, text)));
                }
                None => {
                    pending.remove(&index);
                    if let Goal::Disconnect { closed } = &mut goal {
                        *closed = true;
                    }
                    if pending.is_empty() {
                        self.reply(request, Reply::Done);
                    } else {
                        self.waiters.insert(request, Waiter::Network { pending, goal });
                    }
                }
            }
        }
    }

    /// A board has gone.
    pub(super) fn waiters_board(&mut self, index: NodeIndex) {
        let on_board = |id: &ContainerId| self.tables.container(*id).is_none_or(|c| c.node == index);
        let concerned: Vec<RequestId> = self
            .waiters
            .iter()
            .filter(|(_, waiter)| match waiter {
                Waiter::Container { id, until: Until::Stopped | Until::Route { .. } } => on_board(id),
                Waiter::Container { until: Until::Started | Until::Ended, .. } => false,
                Waiter::Removed { id } | Waiter::Awake { id } => on_board(id),
                Waiter::Network { pending, .. } => pending.contains_key(&index),
            })
            .map(|(request, _)| *request)
            .collect();
        for request in concerned {
            if let Some(waiter) = self.waiters.remove(&request) {
                self.board_lost(request, waiter, index);
            }
        }
    }

    fn board_lost(&mut self, request: RequestId, waiter: Waiter, index: NodeIndex) {
        let reply = match waiter {
            // It will be removed when the board returns, as the request's description says.
            Waiter::Removed { .. } => Reply::Done,
            Waiter::Container { .. } | Waiter::Awake { .. } => Reply::Error(self.unreachable(index)),
            Waiter::Network { mut pending, goal } => match goal {
                Goal::Connect { .. } => {
                    self.take_back(goal);
                    Reply::Error(self.unreachable(index))
                }
                Goal::Disconnect { closed } => {
                    pending.remove(&index);
                    if !pending.is_empty() {
                        // The other end closes the connection alone.
                        self.waiters.insert(request, Waiter::Network { pending, goal });
                        return;
                    }
                    if closed { Reply::Done } else { Reply::Error(still_open(&self.node_name(index))) }
                }
            },
        };
        self.reply(request, reply);
    }

    fn take_back(&mut self, goal: Goal) {
        match goal {
            Goal::Connect { undo: Some(link) } => self.take_back_link(&link),
            Goal::Connect { undo: None } | Goal::Disconnect { .. } => {}
        }
    }
}

impl Until {
    fn state(&self) -> WaitUntil {
        match self {
            Self::Started | Self::Route { .. } => WaitUntil::Started,
            Self::Ended | Self::Stopped => WaitUntil::Ended,
        }
    }
}

pub(super) fn still_open(board: &str) -> WireError {
    let text = format!(
        "the connection is withdrawn, but {board} is not connected and closes it only when it returns"
    );
    error(ErrorCode::NodeUnreachable, text)
}
