//! Accounts: enrolment with one-time tokens, and removal with all that belongs to them.
use super::bounds::{MAX_ACCOUNTS, MAX_TOKEN_SECONDS, MAX_TOKENS};
use super::{Broker, Fresh, Output, SessionId, error};
use crate::record::{Account, Node, PendingToken};
use wherry_protocol::message::{EnrolReply, EnrolRequest, Reply};
use wherry_protocol::token::TokenSecret;
use wherry_protocol::{
    AccountId, ContainerId, Digest, ErrorCode, Name, NodeIndex, PublicKey, Role, Token, WireError,
};

impl Broker {
    pub(super) fn enrol(&mut self, key: PublicKey, claim: &EnrolRequest) -> EnrolReply {
        match self.claim(key, claim) {
            Ok((account, role)) => {
                EnrolReply::Enrolled { account, role, location: self.identity.location.clone() }
            }
            Err(error) => EnrolReply::Refused(error),
        }
    }

    fn claim(&mut self, key: PublicKey, claim: &EnrolRequest) -> Result<(AccountId, Role), WireError> {
        let hash = claim.secret.hash();
        if let Some((id, account)) = self.tables.account_of(&key)
            && account.token == hash
            && account.role == claim.role
        {
            return Ok((id, account.role));
        }
        let valid = self
            .tables
            .tokens
            .get(&hash)
            .is_some_and(|token| token.role == claim.role && token.expires_seconds > self.now_seconds());
        if !valid {
            return Err(error(
                ErrorCode::BadToken,
                "the token is wrong, was used already or has expired: ask an admin for a new one",
            ));
        }
        if let Some((id, account)) = self.tables.account_of(&key) {
            let text = format!("this key is enrolled already, as {} {id}: it needs no token", account.role);
            return Err(error(ErrorCode::AlreadyExists, text));
        }
        self.create_account(key, claim, hash)
    }

    fn create_account(
        &mut self,
        key: PublicKey,
        claim: &EnrolRequest,
        token: Digest,
    ) -> Result<(AccountId, Role), WireError> {
        if self.tables.accounts.len() >= MAX_ACCOUNTS {
            return Err(error(
                ErrorCode::NoCapacity,
                format!("there are {MAX_ACCOUNTS} accounts, the limit: remove some"),
            ));
        }
        let node = match claim.role {
            Role::Node => Some(self.free_index()?),
            Role::User | Role::Admin => None,
        };
        let meta = self.tables.edit_meta();
        meta.last_account = meta.last_account.saturating_add(1);
        let id = AccountId(meta.last_account);
        let mut label = claim.label.clone();
        if let Some(index) = node {
            meta.last_node = index.0;
            label = self.board_name(&label, index);
            let record = Node { account: id, name: label.clone(), facts: None, revision: 0 };
            self.tables.nodes.insert(index, record);
        }
        self.tables.tokens.remove(&token);
        let created_seconds = self.now_seconds();
        let account = Account { key, label, role: claim.role, created_seconds, token, node };
        self.tables.insert_account(id, account);
        Ok((id, claim.role))
    }

    /// The next board number after the last one given out, so that a number rests as long as possible.
    fn free_index(&self) -> Result<NodeIndex, WireError> {
        let last = self.tables.meta().last_node;
        (last.saturating_add(1)..=254)
            .chain(1..=last.min(254))
            .map(NodeIndex)
            .find(|index| !self.tables.nodes.contains(index))
            .ok_or_else(|| {
                error(ErrorCode::NoCapacity, "this cluster has 254 boards, the limit: remove one first")
            })
    }

    /// `label`, unless another board has it or it looks like a board's number: then with the number behind it.
    fn board_name(&self, label: &Name, index: NodeIndex) -> Name {
        let taken = |name: &Name| self.tables.nodes.iter().any(|(_, node)| node.name == *name);
        if !taken(label) && number_of(label.as_str()).is_none() {
            return label.clone();
        }
        let stem: String = label.as_str().chars().take(Name::MAX_BYTES - 8).collect();
        (0_u32..)
            .map(|n| if n == 0 { format!("{stem}-{}", index.0) } else { format!("{stem}-{}-{n}", index.0) })
            .filter_map(|text| text.parse::<Name>().ok())
            .find(|name| !taken(name))
            .unwrap_or_else(|| label.clone())
    }

    pub(super) fn create_token(
        &mut self,
        role: Role,
        seconds: u32,
        fresh: Fresh,
    ) -> Result<Reply, WireError> {
        if seconds == 0 || seconds > MAX_TOKEN_SECONDS {
            let text = format!("a token lives 1 to {MAX_TOKEN_SECONDS} seconds (30 days), not {seconds}");
            return Err(error(ErrorCode::Invalid, text));
        }
        self.sweep_tokens();
        if self.tables.tokens.len() >= MAX_TOKENS {
            let text = format!("{MAX_TOKENS} tokens wait to be claimed, the limit: wait until some expire");
            return Err(error(ErrorCode::Busy, text));
        }
        let secret = TokenSecret(fresh);
        let expires_seconds = self.now_seconds().saturating_add(u64::from(seconds));
        self.tables.tokens.insert(secret.hash(), PendingToken { role, expires_seconds });
        let token = Token { role, broker: self.identity.key, secret, address: None };
        Ok(Reply::Token { text: token.to_string(), expires_seconds })
    }

    /// Expired tokens go when the next one is made: by themselves they cost no write.
    fn sweep_tokens(&mut self) {
        let now = self.now_seconds();
        let expired: Vec<Digest> = self
            .tables
            .tokens
            .iter()
            .filter(|(_, t)| t.expires_seconds <= now)
            .map(|(hash, _)| *hash)
            .collect();
        for hash in expired {
            self.tables.tokens.remove(&hash);
        }
    }

    pub(super) fn adopt_token(&mut self, hash: Digest, role: Role, expires_seconds: u64) {
        if self.tables.adopted.contains(&hash) {
            return;
        }
        self.tables.adopted.insert(hash, ());
        self.tables.tokens.insert(hash, PendingToken { role, expires_seconds });
    }

    pub(super) fn remove_account(&mut self, id: AccountId) -> Result<Reply, WireError> {
        let account = self
            .tables
            .accounts
            .get(&id)
            .cloned()
            .ok_or_else(|| super::not_found("account", id, "list them with `wherry accounts`"))?;
        let admins = self.tables.accounts.iter().filter(|(_, a)| a.role == Role::Admin).count();
        if account.role == Role::Admin && admins == 1 {
            let text = format!("{id} is the last admin: enrol another one first");
            return Err(error(ErrorCode::WrongState, text));
        }
        self.end_sessions(id);
        if let Some(index) = account.node {
            self.remove_node(index);
        }
        self.remove_belongings(id);
        self.tables.remove_account(id);
        Ok(Reply::Done)
    }

    fn end_sessions(&mut self, id: AccountId) {
        let sessions: Vec<SessionId> =
            self.sessions.iter().filter(|(_, s)| s.account == id).map(|(session, _)| *session).collect();
        for session in sessions {
            self.close(session);
            self.out.push(Output::Close(session));
        }
    }

    fn remove_belongings(&mut self, id: AccountId) {
        self.forget_rules_of_account(id);
        self.forget_endpoints_of(id);
        self.forget_domains_of(id);
        let containers: Vec<ContainerId> = self
            .tables
            .containers()
            .filter(|(_, c)| c.account == id && c.is_present())
            .map(|(container, _)| container)
            .collect();
        for container in containers {
            self.begin_removal(container);
        }
        self.forget_images(id);
    }
}

/// The number in `n2`.
pub(super) fn number_of(text: &str) -> Option<NodeIndex> {
    let digits = text.strip_prefix('n').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok().map(NodeIndex)
}
