//! Elements of sets, laid out as the kernel has them. Sets of thousands are made and compared with every change of a
//! connection, so an element is bytes in place and a set is a sorted list of them.
use super::lower::number;
use super::model::{KeyType, Protocol, Value};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Most parts of a key.
const PARTS: usize = 4;
/// Bytes of the longest part: an interface name (IFNAMSIZ) or an IPv6 address.
const LONGEST: usize = 16;
/// Parts of a key that has several are filled up to whole registers of this many bytes.
const REGISTER: usize = 4;

/// One key of a set: its parts one after another. What it means stands in the set's types.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element([u8; PARTS * LONGEST]);

impl Element {
    /// A key of these parts, four at most. Of an interface name the kernel sees 16 bytes.
    #[must_use]
    pub fn new<const N: usize>(parts: [Value; N]) -> Self {
        const { assert!(N <= PARTS, "a key has too many parts") };
        let mut bytes = [0; PARTS * LONGEST];
        let mut rest = bytes.as_mut_slice();
        for part in parts {
            rest = match part {
                Value::Ifname(name) => put(rest, name.as_bytes(), LONGEST),
                Value::Ether(mac) => put(rest, &mac, 6),
                Value::Ipv4(address) => put(rest, &address.octets(), 4),
                Value::Ipv6(address) => put(rest, &address.octets(), 16),
                Value::Protocol(protocol) => put(rest, &[number(protocol)], 1),
                Value::Port(port) => put(rest, &port.to_be_bytes(), 2),
            };
        }
        Self(bytes)
    }

    /// The bytes of a key of these types.
    pub(super) fn bytes(&self, key: &[KeyType]) -> &[u8] {
        self.0.get(..length(key)).unwrap_or(&self.0)
    }

    /// What it says, as a key of these types.
    pub(super) fn values(&self, key: &[KeyType]) -> Vec<Value> {
        let mut rest = self.0.as_slice();
        let mut values = Vec::new();
        for part in key {
            let (value, after) = rest.split_at(register(size(*part)).min(rest.len()));
            values.extend(read(*part, value));
            rest = after;
        }
        values
    }
}

impl fmt::Debug for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Writes a part, and gives what is behind it. The room is there: no part is longer than the longest.
fn put<'a>(into: &'a mut [u8], part: &[u8], size: usize) -> &'a mut [u8] {
    let (own, rest) = into.split_at_mut(register(size).min(into.len()));
    own.iter_mut().zip(part).take(size).for_each(|(to, from)| *to = *from);
    rest
}

const fn register(size: usize) -> usize {
    size.next_multiple_of(REGISTER)
}

/// Bytes of a part.
pub(super) const fn size(part: KeyType) -> usize {
    match part {
        KeyType::Ifname => LONGEST,
        KeyType::Ether => 6,
        KeyType::Ipv4 => 4,
        KeyType::Ipv6 => 16,
        KeyType::Protocol => 1,
        KeyType::Port => 2,
    }
}

/// Bytes of a key. One part alone is not filled up.
pub(super) fn length(key: &[KeyType]) -> usize {
    match key {
        [part] => size(*part),
        parts => parts.iter().map(|part| register(size(*part))).sum(),
    }
}

fn read(part: KeyType, bytes: &[u8]) -> Option<Value> {
    Some(match part {
        KeyType::Ifname => {
            let name = bytes.split(|byte| *byte == 0).next()?;
            Value::Ifname(String::from_utf8_lossy(name).into_owned())
        }
        KeyType::Ether => Value::Ether(*bytes.first_chunk()?),
        KeyType::Ipv4 => Value::Ipv4(Ipv4Addr::from(*bytes.first_chunk::<4>()?)),
        KeyType::Ipv6 => Value::Ipv6(Ipv6Addr::from(*bytes.first_chunk::<16>()?)),
        KeyType::Protocol => {
            Value::Protocol(Protocol::ALL.into_iter().find(|p| bytes.first() == Some(&number(*p)))?)
        }
        KeyType::Port => Value::Port(u16::from_be_bytes(*bytes.first_chunk()?)),
    })
}

/// Elements that leave a set, and such that join it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetChange {
    /// Which set.
    pub set: &'static str,
    /// Those that leave; they are there.
    pub gone: Elements,
    /// Those that join.
    pub new: Elements,
}

/// The elements of a set: sorted, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elements(Vec<Element>);

impl Elements {
    /// In order.
    pub fn iter(&self) -> std::slice::Iter<'_, Element> {
        self.0.iter()
    }

    /// Those that the other set does not have, in order.
    pub(super) fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Element> {
        let mut others = other.iter().peekable();
        self.iter().filter(move |element| {
            while others.next_if(|other| other < element).is_some() {}
            others.peek() != Some(element)
        })
    }

    pub(super) fn insert(&mut self, element: Element) {
        if let Err(place) = self.0.binary_search(&element) {
            self.0.insert(place, element);
        }
    }

    pub(super) fn remove(&mut self, element: &Element) {
        if let Ok(place) = self.0.binary_search(element) {
            self.0.remove(place);
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Element> for Elements {
    fn from_iter<I: IntoIterator<Item = Element>>(elements: I) -> Self {
        let mut elements: Vec<_> = elements.into_iter().collect();
        // Which is quick with what is sorted but for a few, as connections come.
        elements.sort();
        elements.dedup();
        Self(elements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn keys_of_several_parts_fill_whole_registers() {
        let address = Value::Ipv4(Ipv4Addr::new(10, 1, 0, 3));
        let element = Element::new([address, Value::Protocol(Protocol::Tcp), Value::Port(80)]);
        let key = [KeyType::Ipv4, KeyType::Protocol, KeyType::Port];
        assert_eq!(element.bytes(&key), [10, 1, 0, 3, 6, 0, 0, 0, 0, 80, 0, 0]);
    }

    #[test]
    fn a_part_alone_has_its_own_length() {
        let element = Element::new([Value::Ether([1, 2, 3, 4, 5, 6])]);
        assert_eq!(element.bytes(&[KeyType::Ether]), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn what_went_in_can_be_read() {
        let parts = [
            (Value::Ifname("wc12345678".into()), KeyType::Ifname),
            (Value::Ether([2, 0, 10, 1, 0, 3]), KeyType::Ether),
            (Value::Ipv6("fd12::1".parse().unwrap()), KeyType::Ipv6),
            (Value::Protocol(Protocol::Icmpv6), KeyType::Protocol),
        ];
        let (values, key): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        assert_eq!(Element::new::<4>(values.clone().try_into().unwrap()).values(&key), values);
    }

    #[test]
    fn a_name_too_long_stays_within_its_part() {
        let element = Element::new([Value::Ifname("x".repeat(40)), Value::Port(80)]);
        let key = [KeyType::Ifname, KeyType::Port];
        assert_eq!(element.values(&key), [Value::Ifname("x".repeat(16)), Value::Port(80)]);
    }

    fn elements(ports: &BTreeSet<u16>) -> Elements {
        ports.iter().rev().map(|port| Element::new([Value::Port(*port)])).collect()
    }

    proptest! {
        #[test]
        fn a_difference_is_what_sets_say(one: BTreeSet<u16>, other: BTreeSet<u16>) {
            let expected = elements(&one.difference(&other).copied().collect());
            prop_assert_eq!(elements(&one).without(&elements(&other)).copied().collect::<Elements>(), expected);
        }
    }
}
