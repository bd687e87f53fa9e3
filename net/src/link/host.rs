//! Which addresses a host can have: neither nobody's nor everybody's.
use std::net::Ipv4Addr;
use wherry_protocol::Prefix;

/// Whether it can be some host's address.
#[must_use]
pub fn is_host(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first != 0 && first < 224 && !address.is_loopback()
}

/// Whether it can be a host's in a network with this prefix length, at most 32.
#[must_use]
pub fn is_host_of(address: Ipv4Addr, prefix: u8) -> bool {
    let network = Prefix::new(address, prefix).network();
    // A point-to-point link has neither (RFC 3021).
    let of_all = prefix < 31 && (address == network.address || address == network.broadcast());
    is_host(address) && !of_all
}

/// Whether `gateway` can be reached by the host `address` of a network with this prefix length, at most 32.
#[must_use]
pub fn is_gateway_of(gateway: Ipv4Addr, address: Ipv4Addr, prefix: u8) -> bool {
    gateway != address && Prefix::new(address, prefix).network().contains(gateway) && is_host(gateway)
}
