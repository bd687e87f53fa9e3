//! Domains: who may serve names in them, and how that is proven.
//!
//! Whoever controls a domain can put a TXT record into it. The token is the account's own and holds for six hours; several
//! accounts may have one for the same domain, and who proves it first has it. The lookup itself is the shell's.
use super::access::Reach;
use super::ask::Now;
use super::bounds::{CLAIM_SECONDS, MAX_CLAIMS, MAX_DOMAINS};
use super::containers::Asker;
use super::{Answer, Broker, Fresh, RequestId, SessionId, error};
use crate::record::{Claim, Domain};
use wherry_endpoint::HostName;
use wherry_protocol::message::{DomainInfo, DomainState, Reply};
use wherry_protocol::{AccountId, ErrorCode, WireError};

/// What a TXT record says before the token: it says what it is for, and no other service takes it for its own.
const TOKEN_PREFIX: &str = "wherry-";

/// The name of the TXT record for a domain: an underscored one, which is no host's (RFC 8552).
#[must_use]
pub fn record_name(domain: &str) -> String {
    format!("_wherry.{domain}")
}

impl Broker {
    pub(super) fn prepare_domain(
        &mut self,
        asker: &Asker,
        domain: &str,
        fresh: Fresh,
    ) -> Result<Reply, WireError> {
        let domain = domain_name(domain)?;
        self.check_claimable(asker.account, &domain)?;
        let now = self.now_seconds();
        self.sweep_claims();
        let key = (domain.clone(), asker.account);
        // The same again while it holds: a record that was published already stays good.
        if !self.tables.claims.contains(&key) {
            let pending = self.tables.claims.iter().filter(|((_, account), _)| *account == asker.account);
            if pending.count() >= MAX_CLAIMS {
                let text = format!(
                    "{MAX_CLAIMS} domains wait for their proof, the limit: claim one, or wait until one expires"
                );
                return Err(error(ErrorCode::NoCapacity, text));
            }
            let claim = Claim { token: fresh, expires_seconds: now.saturating_add(CLAIM_SECONDS) };
            self.tables.claims.insert(key, claim);
        }
        self.domain_reply(asker.account, &domain)
    }

    /// The answer comes when the shell has looked, see [`Broker::looked_up`].
    pub(super) fn claim_domain(&mut self, asker: &Asker, domain: &str, vouched: bool) -> Now {
        let domain = domain_name(domain)?;
        if self.owner_of(&domain) == Some(asker.account) {
            return self.domain_reply(asker.account, &domain).map(Some);
        }
        self.check_claimable(asker.account, &domain)?;
        if vouched {
            return self.take_domain(asker.account, &domain, true).map(Some);
        }
        self.pending(asker.account, &domain)?;
        self.answer(asker.request, Answer::Lookup(domain));
        Ok(None)
    }

    /// What the TXT records of a domain that is to be claimed say.
    pub(super) fn looked_up(
        &mut self,
        request: RequestId,
        session: SessionId,
        domain: &str,
        found: &Result<Vec<Vec<u8>>, String>,
    ) {
        let result = self.prove(session, domain, found);
        self.reply_result(request, result);
    }

    fn prove(
        &mut self,
        session: SessionId,
        domain: &str,
        found: &Result<Vec<Vec<u8>>, String>,
    ) -> Result<Reply, WireError> {
        let account = self.session_of(session)?.account;
        // Somebody else may have been quicker.
        self.check_claimable(account, domain)?;
        let token = token_text(&self.pending(account, domain)?.token);
        let name = record_name(domain);
        let refused = |why: String| {
            let text = format!(
                "{why}: publish the TXT record {name} with the value {token}, wait until it can be seen, and claim again"
            );
            Err(error(ErrorCode::WrongState, text))
        };
        match found {
            Err(problem) => refused(format!("the name servers did not say what {name} holds ({problem})")),
            Ok(texts) if texts.iter().any(|text| text == token.as_bytes()) => {
                self.take_domain(account, domain, false)
            }
            Ok(texts) if texts.is_empty() => refused(format!("there is no TXT record {name}")),
            Ok(_) => refused(format!("the TXT record {name} says something else")),
        }
    }

    fn take_domain(&mut self, account: AccountId, domain: &str, vouched: bool) -> Result<Reply, WireError> {
        let since_seconds = self.now_seconds();
        self.tables
            .domains
            .insert(domain.to_owned(), Domain { account, shared: false, vouched, since_seconds });
        self.tables.claims.remove(&(domain.to_owned(), account));
        self.domain_reply(account, domain)
    }

    pub(super) fn share_domain(
        &mut self,
        asker: &Asker,
        domain: &str,
        shared: bool,
    ) -> Result<Reply, WireError> {
        let domain = self.own_domain(asker, domain)?;
        if !shared && let Some(host) = self.served_by_others(&domain) {
            let text = format!(
                "{host} is served by another account: remove it first with `wherry endpoint rm {host}`, as the owner of {domain} may"
            );
            return Err(error(ErrorCode::InUse, text));
        }
        if let Some(record) = self.tables.domains.edit(&domain) {
            record.shared = shared;
        }
        self.domain_reply(asker.account, &domain)
    }

    pub(super) fn release_domain(&mut self, asker: &Asker, domain: &str) -> Result<Reply, WireError> {
        let name = domain_name(domain)?;
        // A claim that was only begun is simply forgotten.
        if self.tables.claims.remove(&(name.clone(), asker.account)).is_some() {
            return Ok(Reply::Done);
        }
        let domain = self.own_domain(asker, &name)?;
        if let Some(host) = self.served_in(&domain) {
            let text = format!("{host} is served in it: remove it first with `wherry endpoint rm {host}`");
            return Err(error(ErrorCode::InUse, text));
        }
        self.tables.domains.remove(&domain);
        Ok(Reply::Done)
    }

    /// Those of the account, those that it has begun to claim, and those of others that everybody may use.
    pub(super) fn domains(&self, account: AccountId) -> Reply {
        let now = self.now_seconds();
        let claimed = self.tables.domains.iter().filter(|(_, d)| d.shared || d.account == account);
        let pending = self
            .tables
            .claims
            .iter()
            .filter(|((_, who), claim)| *who == account && claim.expires_seconds > now);
        let claimed = claimed
            .filter_map(|(name, domain)| self.domain_info(name, domain.account, claimed_state(domain)));
        let pending =
            pending.filter_map(|((name, who), claim)| self.domain_info(name, *who, prepared_state(claim)));
        Reply::Domains(claimed.chain(pending).collect())
    }

    fn domain_info(&self, domain: &str, account: AccountId, state: DomainState) -> Option<DomainInfo> {
        let owner = self.tables.accounts.get(&account)?.label.clone();
        Some(DomainInfo { domain: domain.to_owned(), account, owner, state })
    }

    fn domain_reply(&self, account: AccountId, domain: &str) -> Result<Reply, WireError> {
        let state = match self.tables.domains.get(&domain.to_owned()) {
            Some(claimed) => Some((claimed.account, claimed_state(claimed))),
            None => {
                let claim = self.tables.claims.get(&(domain.to_owned(), account));
                claim.map(|claim| (account, prepared_state(claim)))
            }
        };
        state
            .and_then(|(owner, state)| self.domain_info(domain, owner, state))
            .map(Reply::Domain)
            .ok_or_else(|| no_domain(domain))
    }

    fn owner_of(&self, domain: &str) -> Option<AccountId> {
        self.tables.domains.get(&domain.to_owned()).map(|domain| domain.account)
    }

    fn check_claimable(&self, account: AccountId, domain: &str) -> Result<(), WireError> {
        match self.owner_of(domain) {
            Some(owner) if owner != account => {
                let text = format!(
                    "{domain} is another account's: its owner, or an admin, would have to release it"
                );
                return Err(error(ErrorCode::AlreadyExists, text));
            }
            Some(_) => {
                return Err(error(ErrorCode::AlreadyExists, format!("{domain} is yours already")));
            }
            None => {}
        }
        let count = self.tables.domains.iter().filter(|(_, domain)| domain.account == account).count();
        if count >= MAX_DOMAINS {
            let text = format!("{count} domains, the limit is {MAX_DOMAINS}: release one");
            return Err(error(ErrorCode::NoCapacity, text));
        }
        Ok(())
    }

    fn pending(&self, account: AccountId, domain: &str) -> Result<&Claim, WireError> {
        let claim = self.tables.claims.get(&(domain.to_owned(), account));
        claim.filter(|claim| claim.expires_seconds > self.now_seconds()).ok_or_else(|| {
            let text = format!(
                "{domain} was not prepared, or more than six hours ago: `wherry domain prepare {domain}`"
            );
            error(ErrorCode::WrongState, text)
        })
    }

    fn own_domain(&self, asker: &Asker, domain: &str) -> Result<String, WireError> {
        let domain = domain_name(domain)?;
        let mine =
            self.owner_of(&domain).is_some_and(|owner| owner == asker.account || asker.reach == Reach::Any);
        if mine { Ok(domain) } else { Err(no_domain(&domain)) }
    }

    /// Expired ones go when the next one comes: by themselves they cost no write.
    fn sweep_claims(&mut self) {
        let now = self.now_seconds();
        let expired = self.tables.claims.iter().filter(|(_, claim)| claim.expires_seconds <= now);
        let expired: Vec<(String, AccountId)> = expired.map(|(key, _)| key.clone()).collect();
        for key in expired {
            self.tables.claims.remove(&key);
        }
    }

    /// The claimed domain that a name is in, the closest one.
    pub(super) fn domain_around(&self, host: &str) -> Option<(&str, &Domain)> {
        let mut name = host.strip_prefix("*.").unwrap_or(host);
        loop {
            if let Some((domain, record)) = self.tables.domains.range(name.to_owned()..).next()
                && domain == name
            {
                return Some((domain.as_str(), record));
            }
            name = name.split_once('.')?.1;
        }
    }

    fn served_in(&self, domain: &str) -> Option<&String> {
        let around = |host: &&String| self.domain_around(host).is_some_and(|(name, _)| name == domain);
        self.tables.endpoints.iter().map(|(host, _)| host).find(around)
    }

    fn served_by_others(&self, domain: &str) -> Option<&String> {
        let owner = self.owner_of(domain)?;
        let around = |host: &String| self.domain_around(host).is_some_and(|(name, _)| name == domain);
        let mut others = self.tables.endpoints.iter().filter(|(_, endpoint)| endpoint.account != owner);
        others.find(|(host, _)| around(host)).map(|(host, _)| host)
    }

    /// An account goes.
    pub(super) fn forget_domains_of(&mut self, account: AccountId) {
        let domains = self.tables.domains.iter().filter(|(_, domain)| domain.account == account);
        for domain in domains.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.tables.domains.remove(&domain);
        }
        let claims = self.tables.claims.iter().filter(|((_, who), _)| *who == account);
        for claim in claims.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.tables.claims.remove(&claim);
        }
    }
}

fn claimed_state(domain: &Domain) -> DomainState {
    let Domain { shared, vouched, since_seconds, .. } = *domain;
    DomainState::Claimed { shared, vouched, since_seconds }
}

fn prepared_state(claim: &Claim) -> DomainState {
    DomainState::Prepared { token: token_text(&claim.token), expires_seconds: claim.expires_seconds }
}

/// The value of the TXT record.
fn token_text(token: &Fresh) -> String {
    let hex: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{TOKEN_PREFIX}{hex}")
}

fn domain_name(text: &str) -> Result<String, WireError> {
    let invalid = |text: String| error(ErrorCode::Invalid, text);
    let name = HostName::new(text.strip_suffix('.').unwrap_or(text)).map_err(|e| invalid(e.to_string()))?;
    if name.as_str().starts_with("*.") {
        return Err(invalid(format!("{name} is more than a domain: claim it without the '*'")));
    }
    Ok(name.as_str().to_owned())
}

fn no_domain(domain: &str) -> WireError {
    super::not_found("domain of yours", domain, "list them with `wherry domain ls`")
}
