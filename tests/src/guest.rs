//! Minimal guests for tests of machines and networks themselves: a kernel, busybox and a script.
use std::collections::{BTreeMap, BTreeSet};

/// One entry of a cpio archive in the "newc" format that the kernel unpacks
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
fn entry(name: &str, mode: usize, body: &[u8]) -> Vec<u8> {
    let mut header = String::from("070701");
    for field in [0, mode, 0, 0, 1, 0, body.len(), 0, 0, 0, 0, name.len().saturating_add(1), 0] {
        header.push_str(&format!("{field:08x}"));
    }
    let mut bytes = [header.as_bytes(), name.as_bytes(), &[0]].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Called by udhcpc with what it has got.
const LEASE: &str = "#!/bin/busybox sh
[ \"$1\" = bound ] && /bin/busybox ip addr add $ip/$mask dev $interface && echo bound $ip/$mask via $router
true
";

/// Commands and the kernel's file systems.
const PREAMBLE: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
";

/// Tells who it is and gets an address.
const ON_THE_LAN: &str =
    "echo eth0 is $(cat /sys/class/net/eth0/address), vda has $(cat /sys/block/vda/size) sectors
ip link set eth0 up
udhcpc -i eth0 -n -q -t 20 -T 1 -s /lease
";

/// An initial RAM disk with this busybox (static), whose init gets an address by DHCP and then runs `script`.
#[must_use]
pub fn initrd(busybox: &[u8], script: &str) -> Vec<u8> {
    let lease = BTreeMap::from([("lease".to_owned(), LEASE.as_bytes().to_vec())]);
    bare_initrd(busybox, &lease, &format!("{ON_THE_LAN}{script}"))
}

/// An initial RAM disk with this busybox (static) and these programs and libraries by their paths; its init runs
/// `script` and touches no network.
#[must_use]
pub fn bare_initrd(busybox: &[u8], files: &BTreeMap<String, Vec<u8>>, script: &str) -> Vec<u8> {
    let init = format!("{PREAMBLE}{script}");
    let mut all: BTreeMap<&str, &[u8]> =
        files.iter().map(|(path, body)| (path.as_str(), body.as_slice())).collect();
    all.insert("bin/busybox", busybox);
    all.insert("init", init.as_bytes());
    let mut directories: BTreeSet<&str> = ["proc", "sys", "dev", "tmp"].into();
    for path in all.keys() {
        directories.extend(path.match_indices('/').map(|(end, _)| &path[..end]));
    }
    let directories = directories.into_iter().map(|name| entry(name, 0o040_755, b""));
    let files = all.into_iter().map(|(name, body)| entry(name, 0o100_755, body));
    directories.chain(files).chain([entry("TRAILER!!!", 0, b"")]).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_well_formed() {
        let archive = initrd(b"program", "echo hi\n");
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive);
        assert_eq!(text.matches("070701").count(), 9);
        let position = |name: &str| text.find(&format!("{name}\0")).unwrap();
        assert!(position("bin") < position("bin/busybox"), "a directory comes before what is in it");
        assert!(text.contains("bin/busybox\0") && text.ends_with("TRAILER!!!\0\0\0\0"), "{text}");
    }
}
