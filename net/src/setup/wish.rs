//! `[network]` of `wherry.toml`, the same for broker and node.
use crate::link::{is_gateway_of, is_host, is_host_of};
use serde::Deserialize;
use std::fmt;
use std::net::Ipv4Addr;
use wherry_protocol::{Overlay, OverlayError, Prefix};

/// Name servers that are asked: more help nobody (resolv.conf(5) knows three).
const MOST_NAME_SERVERS: usize = 4;
/// VLAN numbers (IEEE 802.1Q): 0 and 4095 are no networks.
const VLANS: std::ops::RangeInclusive<u16> = 1..=4094;
/// Bytes of an interface's name (IFNAMSIZ less the end).
const NAME_BYTES: usize = 15;

/// As it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawNetwork {
    interface: Option<String>,
    vlan: Option<u16>,
    address: Option<String>,
    gateway: Option<Ipv4Addr>,
    #[serde(default)]
    dns: Vec<Ipv4Addr>,
}

/// How a board comes onto its network. By default: DHCP on every Ethernet, and the cluster is where the first address is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Which Ethernet leads to the cluster; none but this will do.
    pub interface: Option<Which>,
    /// Not itself, but this VLAN on it.
    pub vlan: Option<u16>,
    /// A fixed address; DHCP if absent.
    pub fixed: Option<Fixed>,
    /// Name servers; those that DHCP names if empty.
    pub dns: Vec<Ipv4Addr>,
}

/// One Ethernet of a board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// As the kernel calls it.
    Name(String),
    /// By its hardware address, which stays when interfaces are found in another order.
    Mac([u8; 6]),
}

/// An address that does not come by DHCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fixed {
    /// The board's address.
    pub address: Ipv4Addr,
    /// Prefix length of its network.
    pub prefix: u8,
    /// Default route.
    pub gateway: Option<Ipv4Addr>,
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Mac([a, b, c, d, e, g]) => write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"),
        }
    }
}

impl Fixed {
    /// Refuses containers' addresses that are among the network's. `whose` it is goes into the sentence.
    ///
    /// # Errors
    /// With an overlay that could be chosen instead.
    pub fn check_apart(&self, overlay: Overlay, whose: &'static str) -> Result<(), OverlayError> {
        overlay.check_apart(whose, Prefix::new(self.address, self.prefix))
    }
}

impl Wish {
    /// Whether one network was named that leads to the cluster, so that no other will do.
    #[must_use]
    pub fn is_particular(&self) -> bool {
        self.interface.is_some() || self.vlan.is_some() || self.fixed.is_some()
    }

    /// Checks what was written.
    ///
    /// # Errors
    /// One sentence for people.
    pub fn check(raw: RawNetwork) -> Result<Self, String> {
        let RawNetwork { interface, vlan, address, gateway, dns } = raw;
        let interface = interface.as_deref().map(which).transpose()?;
        if let Some(number) = vlan
            && !VLANS.contains(&number)
        {
            return Err(format!("network.vlan: {number} is no VLAN, use 1 to 4094"));
        }
        let fixed = match (address, gateway) {
            (Some(address), gateway) => Some(fixed(&address, gateway)?),
            (None, None) => None,
            (None, Some(gateway)) => {
                return Err(format!(
                    "network.gateway: {gateway} is of use only with network.address; leave both to DHCP or set both"
                ));
            }
        };
        if dns.len() > MOST_NAME_SERVERS {
            return Err(format!("network.dns names {} servers, use at most {MOST_NAME_SERVERS}", dns.len()));
        }
        if let Some(server) = dns.iter().find(|server| !is_host(**server)) {
            return Err(format!("network.dns: {server} is no host's address"));
        }
        Ok(Self { interface, vlan, fixed, dns })
    }
}

fn which(text: &str) -> Result<Which, String> {
    let octets: Vec<_> = text.split(':').map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
    if text.contains(':') {
        let wrong = || {
            format!(
                "network.interface: '{text}' is no hardware address, as in dc:a6:32:01:02:03, and no name"
            )
        };
        let octets = octets.into_iter().collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
        return octets.try_into().map(Which::Mac).map_err(|_| wrong());
    }
    // Names that the kernel would not give (dev_valid_name).
    let bad = |byte: u8| byte == b'/' || byte.is_ascii_whitespace() || !byte.is_ascii_graphic();
    if text.is_empty() || text.len() > NAME_BYTES || text == "." || text == ".." || text.bytes().any(bad) {
        return Err(format!(
            "network.interface: '{text}' is no interface's name, as in eth0, and no hardware address"
        ));
    }
    Ok(Which::Name(text.to_owned()))
}

fn fixed(text: &str, gateway: Option<Ipv4Addr>) -> Result<Fixed, String> {
    let wrong = || format!("network.address: '{text}' is not an address with a prefix, as in 192.168.1.5/24");
    let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
    let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
    let prefix: u8 = bits.parse().map_err(|_| wrong())?;
    if !(1..=32).contains(&prefix) {
        return Err(wrong());
    }
    if !is_host_of(address, prefix) {
        return Err(format!("network.address: '{text}' is no host's address, use another of its network"));
    }
    if let Some(gateway) = gateway
        && !is_gateway_of(gateway, address, prefix)
    {
        return Err(format!("network.gateway: {gateway} is no other host of the network of {text}"));
    }
    Ok(Fixed { address, prefix, gateway })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(text: &str) -> Result<Wish, String> {
        let raw = toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())?;
        Wish::check(raw)
    }

    #[test]
    fn all_that_can_be_wished() {
        assert_eq!(wish(""), Ok(Wish::default()));
        let all = wish(
            "interface = \"DC:a6:32:1:02:ff\"\nvlan = 7\naddress = \"192.168.50.2/24\"\ngateway = \"192.168.50.1\"\n\
             dns = [\"192.168.50.1\", \"9.9.9.9\"]",
        )
        .unwrap();
        assert_eq!(all.interface.as_ref().unwrap().to_string(), "dc:a6:32:01:02:ff");
        assert_eq!((all.vlan, all.dns.len()), (Some(7), 2));
        let address = |text: &str| text.parse().unwrap();
        let gateway = Some(address("192.168.50.1"));
        assert_eq!(all.fixed, Some(Fixed { address: address("192.168.50.2"), prefix: 24, gateway }));
        assert_eq!(wish("interface = \"end0\"").unwrap().interface, Some(Which::Name("end0".into())));
        assert_eq!(wish("vlan = 4094\ndns = [\"1.1.1.1\"]").unwrap().vlan, Some(4094));
        assert!(wish("address = \"192.168.50.0/31\"").is_ok(), "a point-to-point link");
    }

    #[test]
    fn nonsense_is_refused_with_its_value() {
        for (text, word) in [
            ("vlan = 0", "0 is no VLAN"),
            ("vlan = 4095", "4095 is no VLAN"),
            ("vlan = 70000", "70000"),
            ("vlan = -1", "-1"),
            ("gateway = \"192.168.50.1\"", "only with network.address"),
            ("address = \"192.168.50.2\"", "with a prefix"),
            ("address = \"192.168.50.2/33\"", "with a prefix"),
            ("address = \"192.168.50.2/0\"", "with a prefix"),
            ("address = \"192.168.50.0/24\"", "no host's"),
            ("address = \"192.168.50.255/24\"", "no host's"),
            ("address = \"127.0.0.1/8\"", "no host's"),
            ("address = \"224.0.0.5/24\"", "no host's"),
            ("address = \"192.168.50.2/24\"\ngateway = \"192.168.51.1\"", "192.168.51.1 is no other host"),
            ("address = \"192.168.50.2/24\"\ngateway = \"192.168.50.2\"", "no other host"),
            ("dns = [\"0.0.0.0\"]", "0.0.0.0 is no host"),
            ("dns = [\"one\"]", "IPv4"),
            ("dns = [\"1.1.1.1\", \"1.1.1.2\", \"1.1.1.3\", \"1.1.1.4\", \"1.1.1.5\"]", "at most 4"),
            ("interface = \"\"", "no interface's name"),
            ("interface = \"../eth0\"", "no interface's name"),
            ("interface = \"an-interface-too-long\"", "no interface's name"),
            ("interface = \"dc:a6:32:01:02\"", "no hardware address"),
            ("interface = \"dc:a6:32:01:02:zz\"", "no hardware address"),
            ("surprise = 1", "surprise"),
        ] {
            let reason = wish(text).unwrap_err();
            assert!(reason.contains(word), "{text}: {reason}");
        }
    }
}
