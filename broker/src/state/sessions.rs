//! Sessions, and what depends on them: containers that do not outlive theirs.
use super::bounds::SESSION_GRACE_MS;
use super::{Answer, Broker, RequestId, Session, SessionId, Timer, error};
use wherry_protocol::{AccountId, ContainerId, ErrorCode, PublicKey, Role, WireError};

impl Broker {
    pub(super) fn open(&mut self, request: RequestId, session: SessionId, key: PublicKey) {
        let Some((account, record)) = self.tables.account_of(&key) else {
            return self.answer(request, Answer::Session(Err(unknown_key(key))));
        };
        let role = record.role;
        self.sessions.insert(session, Session { account, role });
        match role {
            Role::User | Role::Admin => self.return_of(account, session),
            Role::Node => {}
        }
        self.answer(request, Answer::Session(Ok((account, role))));
    }

    /// A session of an account whose earlier one was lost: its containers belong to the new one.
    fn return_of(&mut self, account: AccountId, session: SessionId) {
        let orphans: Vec<ContainerId> = self.orphans.keys().copied().collect();
        for id in orphans {
            if self.tables.container(id).is_some_and(|c| c.account == account) {
                self.orphans.remove(&id);
                self.owners.insert(id, session);
            }
        }
    }

    pub(super) fn close(&mut self, session: SessionId) {
        let Some(gone) = self.sessions.remove(&session) else { return };
        match gone.role {
            Role::Node => self.node_session_closed(session),
            Role::User | Role::Admin => {
                let left: Vec<ContainerId> =
                    self.owners.iter().filter(|(_, owner)| **owner == session).map(|(id, _)| *id).collect();
                for id in left {
                    self.owners.remove(&id);
                    self.orphan_if_bound(id);
                }
            }
        }
    }

    /// Starts the clock for a container that does not outlive its session.
    pub(super) fn orphan_if_bound(&mut self, id: ContainerId) {
        if self.tables.container(id).is_some_and(|c| c.is_present() && !c.detached) {
            let at = self.after(SESSION_GRACE_MS);
            self.orphans.insert(id, at);
            self.set_timer(at, Timer::Orphan(id));
        }
    }

    pub(super) fn orphan_due(&mut self, id: ContainerId, at: u64) {
        if self.orphans.get(&id) == Some(&at) {
            self.begin_removal(id);
        }
    }

    pub(super) fn session_of(&self, session: SessionId) -> Result<Session, WireError> {
        self.sessions
            .get(&session)
            .copied()
            .ok_or_else(|| error(ErrorCode::Unauthenticated, "this session has ended: connect again"))
    }

    pub(super) fn sessions_of(&self, account: AccountId) -> u32 {
        let count = self.sessions.values().filter(|session| session.account == account).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

fn unknown_key(key: PublicKey) -> WireError {
    let text = format!(
        "the key {} is not known here: ask an admin for a token and enrol with `wherry join <token>`",
        key.short()
    );
    error(ErrorCode::Unauthenticated, text)
}
