//! Names for containers that were given none: an adjective and a noun, easy to say and to type.
use wherry_protocol::{ContainerId, Name};

const ADJECTIVES: [&str; 32] = [
    "able", "amber", "brave", "brisk", "calm", "clear", "clever", "coral", "deep", "eager", "early", "fair",
    "fast", "firm", "fresh", "gentle", "glad", "golden", "green", "keen", "light", "lucky", "merry", "noble",
    "proud", "quick", "quiet", "silver", "steady", "sunny", "swift", "warm",
];

const NOUNS: [&str; 32] = [
    "anchor", "barge", "beacon", "bow", "buoy", "cable", "canal", "cutter", "deck", "dinghy", "ferry",
    "gull", "harbor", "heron", "hull", "jetty", "keel", "lock", "mast", "mole", "oar", "otter", "pier",
    "quay", "raft", "reef", "rope", "rudder", "sail", "skiff", "tide", "wharf",
];

/// A name made of `fresh` bytes that is not `taken`; the container's id when the pairs tried are all taken.
pub(crate) fn choose(fresh: &[u8], id: ContainerId, taken: impl Fn(&Name) -> bool) -> Name {
    let pairs = fresh.chunks_exact(2).map(|pair| {
        let adjective = ADJECTIVES[usize::from(pair[0]) % ADJECTIVES.len()];
        let noun = NOUNS[usize::from(pair[1]) % NOUNS.len()];
        format!("{adjective}-{noun}")
    });
    // The id itself is free unless somebody chose it as a name; then a number behind it is.
    let fallbacks = (0_u32..).map(|n| if n == 0 { id.to_string() } else { format!("{id}-{n}") });
    let mut names = pairs.chain(fallbacks).filter_map(|text| text.parse::<Name>().ok());
    loop {
        if let Some(name) = names.next().filter(|name| !taken(name)) {
            return name;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_a_valid_name() {
        for adjective in ADJECTIVES {
            for noun in NOUNS {
                assert!(format!("{adjective}-{noun}").parse::<Name>().is_ok());
            }
        }
    }

    #[test]
    fn taken_names_are_passed_over() {
        let id = ContainerId(12);
        assert_eq!(choose(&[0, 0, 1, 1], id, |_| false).as_str(), "able-anchor");
        assert_eq!(choose(&[0, 0, 1, 1], id, |name| name.as_str() == "able-anchor").as_str(), "amber-barge");
        assert_eq!(choose(&[0, 0], id, |name| name.as_str() == "able-anchor").as_str(), "c12");
        assert_eq!(choose(&[], id, |name| name.as_str() == "c12").as_str(), "c12-1");
    }
}
