//! The rules of one namespace as the kernel has them, and connections that change them.
use wherry_net::firewall;
use wherry_net::nft::{NftError, NftSocket, RulesGeneration, Ruleset, SetChange};
use wherry_protocol::ContainerId;
use wherry_protocol::message::{Connection, Drops};

/// Rules of one namespace: a socket to it, and what was last said through it.
#[derive(Debug)]
pub(super) struct Rules {
    nft: NftSocket,
    told: Option<(Ruleset, RulesGeneration)>,
    /// Dropped by rules that have been replaced, whose counters went with them.
    before: Drops,
}

impl Rules {
    /// Rules that nothing is known of.
    pub(super) fn of(nft: NftSocket) -> Self {
        Self { nft, told: None, before: Drops::default() }
    }

    /// Rules that were just set.
    pub(super) fn told(mut nft: NftSocket, rules: Ruleset) -> Result<Self, NftError> {
        let generation = nft.generation()?;
        Ok(Self { nft, told: Some((rules, generation)), before: Drops::default() })
    }

    /// Makes the rules `wanted`. If nobody has changed anything since they were last told, only the difference is sent.
    pub(super) fn ensure(&mut self, wanted: Ruleset) -> Result<(), NftError> {
        let generation = self.nft.generation()?;
        let done = match self.told.take().filter(|(_, told)| *told == generation) {
            Some((told, _)) => self.nft.change(&told, &wanted)?,
            None => false,
        };
        if !done {
            let counted = self.nft.drops(firewall::TABLE)?;
            self.nft.replace(&wanted)?;
            self.before = self.before.plus(&counted);
        }
        self.told = Some((wanted, self.nft.generation()?));
        Ok(())
    }

    /// Makes only these changes, if nobody has changed anything since the rules were last told, and says whether it did.
    pub(super) fn change(&mut self, changes: &[SetChange]) -> Result<bool, NftError> {
        let generation = self.nft.generation()?;
        let Some((mut told, _)) = self.told.take().filter(|(_, told)| *told == generation) else {
            return Ok(false);
        };
        let changed = self.nft.change_sets(&mut told, changes)?;
        if changed {
            self.told = Some((told, self.nft.generation()?));
        }
        Ok(changed)
    }

    /// Packets dropped so far.
    pub(super) fn drops(&mut self) -> Result<Drops, NftError> {
        Ok(self.nft.drops(firewall::TABLE)?.plus(&self.before))
    }
}

/// Connections of one difference at most; more are no slower made anew.
const FEW: usize = 64;

/// Connections that go and such that come.
#[derive(Debug)]
pub(super) struct Difference {
    pub(super) gone: Vec<Connection>,
    pub(super) new: Vec<Connection>,
}

impl Difference {
    /// If there is one, and it is small. Both sorted.
    pub(super) fn between(before: &[Connection], after: &[Connection]) -> Option<Self> {
        let (gone, new) = (without(before, after), without(after, before));
        // Nothing at all is a wish to have everything looked at.
        (1..=FEW).contains(&(gone.len() + new.len())).then_some(Self { gone, new })
    }

    /// Whether a container is an end of any of them.
    pub(super) fn is_about(&self, id: ContainerId) -> bool {
        self.gone.iter().chain(&self.new).any(|c| c.from == id || c.to == id)
    }
}

/// Those of `these` that are not among `others`; both sorted.
fn without(these: &[Connection], others: &[Connection]) -> Vec<Connection> {
    let mut others = others.iter().peekable();
    let missing = these.iter().filter(|connection| {
        while others.next_if(|other| other < connection).is_some() {}
        others.peek() != Some(connection)
    });
    missing.copied().collect()
}
