//! All records in memory, with the indices that follow from them, and the list of what has to be written.
use crate::record::{
    Account, AcmeAccount, Certificate, Change, Claim, Container, Domain, Endpoint, Hold, Image, Key, Link,
    Member, Meta, Node, PendingToken, Record, Rule, Table,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use wherry_protocol::message::{
    AcmeSettings, ContainerSpec, ContainerState, ImageManifest, ImageName, Setting,
};
use wherry_protocol::{AccountId, ContainerId, Digest, Generation, NodeIndex, PublicKey};

/// Why a set of records is not a broker's state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A key with a record of another kind.
    #[error("the record at {0:?} is of another kind")]
    Kind(Key),
    /// A record refers to one that is not there.
    #[error("the record at {0:?} refers to something that is not there")]
    Dangling(Key),
    /// Two records claim what only one may have.
    #[error("the record at {0:?} claims a key, a name or an address that another record has")]
    Duplicate(Key),
}

/// The durable part of the state.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    meta: Meta,
    meta_touched: bool,
    pub(crate) accounts: Table<AccountId, Account>,
    pub(crate) tokens: Table<Digest, PendingToken>,
    pub(crate) adopted: Table<Digest, ()>,
    pub(crate) nodes: Table<NodeIndex, Node>,
    pub(crate) images: Table<(AccountId, ImageName), Image>,
    pub(crate) holds: Table<(AccountId, Digest), Hold>,
    containers: Table<ContainerId, Container>,
    links: Table<Link, ()>,
    pub(crate) labels: Table<NodeIndex, BTreeMap<String, String>>,
    pub(crate) clean: Table<ContainerId, Generation>,
    pub(crate) rules: Table<Rule, ()>,
    pub(crate) domains: Table<String, Domain>,
    pub(crate) claims: Table<(String, AccountId), Claim>,
    pub(crate) endpoints: Table<String, Endpoint>,
    pub(crate) certificates: Table<String, Arc<Certificate>>,
    // There is one at most of these two.
    pub(crate) acme: Table<(), Arc<AcmeSettings>>,
    pub(crate) acme_account: Table<(), Arc<AcmeAccount>>,
    // Derived from the above.
    keys: BTreeMap<PublicKey, AccountId>,
    on_node: BTreeMap<NodeIndex, BTreeSet<ContainerId>>,
    desired_bytes: BTreeMap<NodeIndex, usize>,
    links_of: BTreeMap<ContainerId, BTreeSet<Link>>,
    /// Links that follow from rules.
    standing: BTreeSet<Link>,
}

impl Tables {
    /// Builds the tables from what the store holds.
    pub(crate) fn load(records: BTreeMap<Key, Record>) -> Result<Self, LoadError> {
        let mut tables = Self::default();
        for (key, record) in records {
            tables.load_one(key, record)?;
        }
        tables.index()?;
        Ok(tables)
    }

    fn load_one(&mut self, key: Key, record: Record) -> Result<(), LoadError> {
        match (key, record) {
            (Key::Meta, Record::Meta(meta)) => self.meta = meta,
            (Key::Account(id), Record::Account(account)) => self.accounts.load(id, account),
            (Key::Token(hash), Record::Token(token)) => self.tokens.load(hash, token),
            (Key::Adopted(hash), Record::Adopted) => self.adopted.load(hash, ()),
            (Key::Node(index), Record::Node(node)) => self.nodes.load(index, *node),
            (Key::Image(account, name), Record::Image(image)) => self.images.load((account, name), image),
            (Key::Hold(account, digest), Record::Hold(hold)) => self.holds.load((account, digest), hold),
            (Key::Container(id), Record::Container(container)) => self.containers.load(id, *container),
            (Key::Link(link), Record::Link) => self.links.load(link, ()),
            (Key::NodeLabels(index), Record::NodeLabels(labels)) => self.labels.load(index, labels),
            (Key::Clean(id), Record::Clean(since)) => self.clean.load(id, since),
            (Key::Rule(rule), Record::Rule) => self.rules.load(*rule, ()),
            (Key::Domain(name), Record::Domain(domain)) => self.domains.load(name, domain),
            (Key::Claim(name, account), Record::Claim(claim)) => self.claims.load((name, account), claim),
            (Key::Endpoint(host), Record::Endpoint(endpoint)) => self.endpoints.load(host, *endpoint),
            (Key::Certificate(host), Record::Certificate(certificate)) => {
                self.certificates.load(host, Arc::new(*certificate));
            }
            (Key::Acme, Record::Acme(settings)) => self.acme.load((), Arc::new(*settings)),
            (Key::AcmeAccount, Record::AcmeAccount(account)) => self.acme_account.load((), Arc::new(account)),
            (key, _) => return Err(LoadError::Kind(key)),
        }
        Ok(())
    }

    fn index(&mut self) -> Result<(), LoadError> {
        for (id, account) in self.accounts.iter() {
            if self.keys.insert(account.key, *id).is_some() {
                return Err(LoadError::Duplicate(Key::Account(*id)));
            }
        }
        let mut addresses = BTreeSet::new();
        for (id, container) in self.containers.iter() {
            if !self.nodes.contains(&container.node) {
                return Err(LoadError::Dangling(Key::Container(*id)));
            }
            if !addresses.insert(container.address) {
                return Err(LoadError::Duplicate(Key::Container(*id)));
            }
            self.on_node.entry(container.node).or_default().insert(*id);
            *self.desired_bytes.entry(container.node).or_default() += desired_bytes(container);
        }
        for (index, _) in self.labels.iter() {
            if !self.nodes.contains(index) {
                return Err(LoadError::Dangling(Key::NodeLabels(*index)));
            }
        }
        for (id, _) in self.clean.iter() {
            if !self.containers.contains(id) {
                return Err(LoadError::Dangling(Key::Clean(*id)));
            }
        }
        for (rule, ()) in self.rules.iter() {
            let there = |member: &Member| match member {
                Member::Container(id) => self.containers.get(id).is_some_and(Container::is_present),
                Member::Labelled { .. } => true,
            };
            if !self.accounts.contains(&rule.account) || !there(&rule.from) || !there(&rule.to) {
                return Err(LoadError::Dangling(Key::Rule(Box::new(rule.clone()))));
            }
        }
        self.check_web()?;
        for (link, ()) in self.links.iter() {
            let present = |id| self.containers.get(id).is_some_and(Container::is_present);
            if !present(&link.from) || !present(&link.to) {
                return Err(LoadError::Dangling(Key::Link(*link)));
            }
            for id in [link.from, link.to] {
                self.links_of.entry(id).or_default().insert(*link);
            }
        }
        Ok(())
    }

    fn check_web(&self) -> Result<(), LoadError> {
        let domain = |(name, domain): (&String, &Domain)| (Key::Domain(name.clone()), domain.account);
        let claim =
            |((name, account), _): (&(String, AccountId), _)| (Key::Claim(name.clone(), *account), *account);
        let endpoint = |(host, e): (&String, &Endpoint)| (Key::Endpoint(host.clone()), e.account);
        let owned = self.domains.iter().map(domain).chain(self.claims.iter().map(claim));
        for (key, account) in owned.chain(self.endpoints.iter().map(endpoint)) {
            if !self.accounts.contains(&account) {
                return Err(LoadError::Dangling(key));
            }
        }
        match self.certificates.iter().find(|(host, _)| !self.endpoints.contains(host)) {
            Some((host, _)) => Err(LoadError::Dangling(Key::Certificate(host.clone()))),
            None => Ok(()),
        }
    }

    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }

    pub(crate) fn edit_meta(&mut self) -> &mut Meta {
        self.meta_touched = true;
        &mut self.meta
    }

    pub(crate) fn account_of(&self, key: &PublicKey) -> Option<(AccountId, &Account)> {
        let id = *self.keys.get(key)?;
        self.accounts.get(&id).map(|account| (id, account))
    }

    pub(crate) fn insert_account(&mut self, id: AccountId, account: Account) {
        self.keys.insert(account.key, id);
        self.accounts.insert(id, account);
    }

    pub(crate) fn remove_account(&mut self, id: AccountId) -> Option<Account> {
        let account = self.accounts.remove(&id)?;
        self.keys.remove(&account.key);
        Some(account)
    }

    pub(crate) fn container(&self, id: ContainerId) -> Option<&Container> {
        self.containers.get(&id)
    }

    pub(crate) fn containers(&self) -> impl Iterator<Item = (ContainerId, &Container)> {
        self.containers.iter().map(|(id, container)| (*id, container))
    }

    pub(crate) fn containers_on(&self, node: NodeIndex) -> impl Iterator<Item = (ContainerId, &Container)> {
        let ids = self.on_node.get(&node).into_iter().flatten();
        ids.filter_map(|id| self.containers.get(id).map(|container| (*id, container)))
    }

    /// Bytes that the containers of a board take in its list of what should be.
    pub(crate) fn desired_bytes(&self, node: NodeIndex) -> usize {
        self.desired_bytes.get(&node).copied().unwrap_or(0)
    }

    /// For a container that is not there yet. What it is never changes later, only what it does.
    pub(crate) fn insert_container(&mut self, id: ContainerId, container: Container) {
        *self.desired_bytes.entry(container.node).or_default() += desired_bytes(&container);
        self.on_node.entry(container.node).or_default().insert(id);
        self.containers.insert(id, container);
    }

    pub(crate) fn edit_container(&mut self, id: ContainerId) -> Option<&mut Container> {
        self.containers.edit(&id)
    }

    /// Takes a wish back that holds only until somebody takes it back: to be asleep.
    pub(crate) fn wake(&mut self, id: ContainerId) {
        let Some(container) = self.containers.edit(&id) else { return };
        let before = desired_bytes(container);
        container.spec.settings.retain(|setting| *setting != Setting::Asleep);
        let saved = before.saturating_sub(desired_bytes(container));
        if let Some(bytes) = self.desired_bytes.get_mut(&container.node) {
            *bytes = bytes.saturating_sub(saved);
        }
    }

    /// Sets the state last seen. What is on the way to something else costs no write.
    pub(crate) fn set_state(&mut self, id: ContainerId, state: ContainerState, restarts: u32) {
        let container = match state {
            ContainerState::Preparing | ContainerState::Restarting { .. } => {
                self.containers.edit_in_memory(&id)
            }
            ContainerState::Pending
            | ContainerState::Running { .. }
            | ContainerState::Exited { .. }
            | ContainerState::Failed(_) => self.containers.edit(&id),
        };
        if let Some(container) = container {
            container.state = state;
            container.restarts = restarts;
        }
    }

    pub(crate) fn remove_container(&mut self, id: ContainerId) -> Option<Container> {
        let container = self.containers.remove(&id)?;
        self.clean.remove(&id);
        if let Some(ids) = self.on_node.get_mut(&container.node) {
            ids.remove(&id);
        }
        if let Some(bytes) = self.desired_bytes.get_mut(&container.node) {
            *bytes = bytes.saturating_sub(desired_bytes(&container));
        }
        Some(container)
    }

    pub(crate) fn has_link(&self, link: &Link) -> bool {
        self.links.contains(link) || self.standing.contains(link)
    }

    /// Whether somebody has allowed this one by itself.
    pub(crate) fn has_single_link(&self, link: &Link) -> bool {
        self.links.contains(link)
    }

    pub(crate) fn links(&self) -> impl Iterator<Item = &Link> {
        let single = self.links.iter().map(|(link, ())| link);
        single.chain(self.standing.iter().filter(|link| !self.links.contains(link)))
    }

    pub(crate) fn links_of(&self, id: ContainerId) -> impl Iterator<Item = &Link> {
        self.links_of.get(&id).into_iter().flatten()
    }

    pub(crate) fn insert_link(&mut self, link: Link) {
        self.index_link(link);
        self.links.insert(link, ());
    }

    /// A link that follows from a rule.
    pub(crate) fn insert_standing(&mut self, link: Link) {
        self.index_link(link);
        self.standing.insert(link);
    }

    fn index_link(&mut self, link: Link) {
        for id in [link.from, link.to] {
            self.links_of.entry(id).or_default().insert(link);
        }
    }

    /// Takes a link away for good, whatever it followed from. Whether there was one.
    pub(crate) fn remove_link(&mut self, link: &Link) -> bool {
        let single = self.links.remove(link).is_some();
        let standing = self.standing.remove(link);
        self.unindex(link);
        single || standing
    }

    /// Takes a link away as far as it followed from rules. Whether it is gone now.
    pub(crate) fn remove_standing(&mut self, link: &Link) -> bool {
        let gone = self.standing.remove(link) && !self.links.contains(link);
        if gone {
            self.unindex(link);
        }
        gone
    }

    /// Takes a link away that somebody had allowed by itself, and which follows from a rule all the same.
    pub(crate) fn keep_standing(&mut self, link: &Link) {
        self.links.remove(link);
    }

    fn unindex(&mut self, link: &Link) {
        for id in [link.from, link.to] {
            if let Some(links) = self.links_of.get_mut(&id) {
                links.remove(link);
                if links.is_empty() {
                    self.links_of.remove(&id);
                }
            }
        }
    }

    /// What the store must be told since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        if std::mem::take(&mut self.meta_touched) {
            changes.push(Change::Put(Key::Meta, Record::Meta(self.meta.clone())));
        }
        for key in self.touched_keys() {
            changes.push(match self.record(&key) {
                Some(record) => Change::Put(key, record),
                None => Change::Delete(key),
            });
        }
        changes
    }

    fn touched_keys(&mut self) -> Vec<Key> {
        let mut keys: Vec<Key> = Vec::new();
        keys.extend(self.accounts.take_touched().into_iter().map(Key::Account));
        keys.extend(self.tokens.take_touched().into_iter().map(Key::Token));
        keys.extend(self.adopted.take_touched().into_iter().map(Key::Adopted));
        keys.extend(self.nodes.take_touched().into_iter().map(Key::Node));
        keys.extend(self.images.take_touched().into_iter().map(|(account, name)| Key::Image(account, name)));
        keys.extend(
            self.holds.take_touched().into_iter().map(|(account, digest)| Key::Hold(account, digest)),
        );
        keys.extend(self.containers.take_touched().into_iter().map(Key::Container));
        keys.extend(self.links.take_touched().into_iter().map(Key::Link));
        keys.extend(self.labels.take_touched().into_iter().map(Key::NodeLabels));
        keys.extend(self.clean.take_touched().into_iter().map(Key::Clean));
        keys.extend(self.rules.take_touched().into_iter().map(|rule| Key::Rule(Box::new(rule))));
        keys.extend(self.domains.take_touched().into_iter().map(Key::Domain));
        keys.extend(self.claims.take_touched().into_iter().map(|(name, account)| Key::Claim(name, account)));
        keys.extend(self.endpoints.take_touched().into_iter().map(Key::Endpoint));
        keys.extend(self.certificates.take_touched().into_iter().map(Key::Certificate));
        keys.extend(self.acme.take_touched().into_iter().map(|()| Key::Acme));
        keys.extend(self.acme_account.take_touched().into_iter().map(|()| Key::AcmeAccount));
        keys
    }

    fn record(&self, key: &Key) -> Option<Record> {
        match key {
            Key::Meta => Some(Record::Meta(self.meta.clone())),
            Key::Account(id) => self.accounts.get(id).cloned().map(Record::Account),
            Key::Token(hash) => self.tokens.get(hash).cloned().map(Record::Token),
            Key::Adopted(hash) => self.adopted.get(hash).map(|()| Record::Adopted),
            Key::Node(index) => self.nodes.get(index).cloned().map(Box::new).map(Record::Node),
            Key::Image(account, name) => {
                self.images.get(&(*account, name.clone())).cloned().map(Record::Image)
            }
            Key::Hold(account, digest) => self.holds.get(&(*account, *digest)).copied().map(Record::Hold),
            Key::Container(id) => self.containers.get(id).map(|c| Record::Container(Box::new(durable(c)))),
            Key::Link(link) => self.links.get(link).map(|()| Record::Link),
            Key::NodeLabels(index) => self.labels.get(index).cloned().map(Record::NodeLabels),
            Key::Clean(id) => self.clean.get(id).copied().map(Record::Clean),
            Key::Rule(rule) => self.rules.get(rule).map(|()| Record::Rule),
            Key::Domain(name) => self.domains.get(name).cloned().map(Record::Domain),
            Key::Claim(name, account) => {
                self.claims.get(&(name.clone(), *account)).cloned().map(Record::Claim)
            }
            Key::Endpoint(host) => self.endpoints.get(host).cloned().map(Box::new).map(Record::Endpoint),
            Key::Certificate(host) => {
                self.certificates.get(host).map(|c| Record::Certificate(Box::new(Certificate::clone(c))))
            }
            Key::Acme => self.acme.get(&()).map(|s| Record::Acme(Box::new(AcmeSettings::clone(s)))),
            Key::AcmeAccount => {
                self.acme_account.get(&()).map(|a| Record::AcmeAccount(AcmeAccount::clone(a)))
            }
        }
    }

    /// Everything as the store should hold it.
    pub(crate) fn durable(&self) -> BTreeMap<Key, Record> {
        let mut keys: Vec<Key> = Vec::new();
        if self.meta != Meta::default() {
            keys.push(Key::Meta);
        }
        keys.extend(self.accounts.iter().map(|(id, _)| Key::Account(*id)));
        keys.extend(self.tokens.iter().map(|(hash, _)| Key::Token(*hash)));
        keys.extend(self.adopted.iter().map(|(hash, ())| Key::Adopted(*hash)));
        keys.extend(self.nodes.iter().map(|(index, _)| Key::Node(*index)));
        keys.extend(self.images.iter().map(|((account, name), _)| Key::Image(*account, name.clone())));
        keys.extend(self.holds.iter().map(|((account, digest), _)| Key::Hold(*account, *digest)));
        keys.extend(self.containers.iter().map(|(id, _)| Key::Container(*id)));
        keys.extend(self.links.iter().map(|(link, ())| Key::Link(*link)));
        keys.extend(self.labels.iter().map(|(index, _)| Key::NodeLabels(*index)));
        keys.extend(self.clean.iter().map(|(id, _)| Key::Clean(*id)));
        keys.extend(self.rules.iter().map(|(rule, ())| Key::Rule(Box::new(rule.clone()))));
        keys.extend(self.domains.iter().map(|(name, _)| Key::Domain(name.clone())));
        keys.extend(self.claims.iter().map(|((name, account), _)| Key::Claim(name.clone(), *account)));
        keys.extend(self.endpoints.iter().map(|(host, _)| Key::Endpoint(host.clone())));
        keys.extend(self.certificates.iter().map(|(host, _)| Key::Certificate(host.clone())));
        keys.extend(self.acme.iter().map(|_| Key::Acme));
        keys.extend(self.acme_account.iter().map(|_| Key::AcmeAccount));
        keys.into_iter().filter_map(|key| self.record(&key).map(|record| (key, record))).collect()
    }
}

fn durable(container: &Container) -> Container {
    let mut container = container.clone();
    match container.state {
        ContainerState::Preparing => container.state = ContainerState::Pending,
        ContainerState::Pending
        | ContainerState::Running { .. }
        | ContainerState::Restarting { .. }
        | ContainerState::Exited { .. }
        | ContainerState::Failed(_) => {}
    }
    container
}

fn desired_bytes(container: &Container) -> usize {
    weight(&container.spec, &container.manifest)
}

/// What a container takes in its board's list, in bytes.
pub(crate) fn weight(spec: &ContainerSpec, manifest: &ImageManifest) -> usize {
    /// Id, generation, account, name, address and want.
    const REST_BYTES: usize = 128;
    // Both are plain data; if one could not be measured it could not be sent either.
    postcard::experimental::serialized_size(&(spec, manifest))
        .unwrap_or(usize::MAX / 2)
        .saturating_add(REST_BYTES)
}
