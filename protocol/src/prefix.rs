//! Networks in the notation of RFC 4632 §3.1: an address and a length.
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A text that is no `a.b.c.d/n`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a network: expected an address and a length, as in 192.168.50.2/24")]
pub struct PrefixError(String);

/// An IPv4 address with a prefix length: a network, or an interface's address within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Prefix {
    /// The address; host bits may be set when it stands for an interface.
    pub address: Ipv4Addr,
    /// Length, 0 to 32; what comes from elsewhere may say more, which counts as 32.
    pub bits: u8,
}

impl Prefix {
    /// `address`/`bits`; lengths over 32 count as 32.
    #[must_use]
    pub const fn new(address: Ipv4Addr, bits: u8) -> Self {
        Self { address, bits: if bits > 32 { 32 } else { bits } }
    }

    /// One address.
    #[must_use]
    pub const fn host(address: Ipv4Addr) -> Self {
        Self { address, bits: 32 }
    }

    /// The mask as a number.
    #[must_use]
    pub fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.bits.min(32))).unwrap_or(0)
    }

    /// The same network with the host bits cleared.
    #[must_use]
    pub fn network(self) -> Self {
        Self { address: Ipv4Addr::from_bits(self.address.to_bits() & self.mask()), bits: self.bits }
    }

    /// Whether `address` lies within.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & self.mask() == 0
    }

    /// Whether some address lies in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// The highest address, where IPv4 broadcasts go.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.mask())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bits {
            32 => write!(f, "{}", self.address),
            bits => write!(f, "{}/{bits}", self.address),
        }
    }
}

/// An IPv6 address with a prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix6 {
    /// The address; host bits may be set when it stands for an interface.
    pub address: Ipv6Addr,
    /// Length, 0 to 128.
    pub bits: u8,
}

impl Prefix6 {
    /// `address`/`bits`; lengths over 128 count as 128.
    #[must_use]
    pub const fn new(address: Ipv6Addr, bits: u8) -> Self {
        Self { address, bits: if bits > 128 { 128 } else { bits } }
    }

    /// One address.
    #[must_use]
    pub const fn host(address: Ipv6Addr) -> Self {
        Self { address, bits: 128 }
    }

    /// The mask as a number.
    #[must_use]
    pub fn mask(self) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(self.bits.min(128))).unwrap_or(0)
    }

    /// The same network with the host bits cleared.
    #[must_use]
    pub fn network(self) -> Self {
        Self { address: Ipv6Addr::from_bits(self.address.to_bits() & self.mask()), bits: self.bits }
    }

    /// Whether `address` lies within.
    #[must_use]
    pub fn contains(self, address: Ipv6Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & self.mask() == 0
    }
}

impl fmt::Display for Prefix6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bits {
            128 => write!(f, "{}", self.address),
            bits => write!(f, "{}/{bits}", self.address),
        }
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let parsed = || {
            let (address, bits) = text.split_once('/')?;
            let bits = bits.parse().ok().filter(|bits| *bits <= 32)?;
            Some(Self { address: address.parse().ok()?, bits })
        };
        parsed().ok_or_else(|| PrefixError(text.chars().take(40).collect()))
    }
}
