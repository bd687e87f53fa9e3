//! Finding our partitions: by the name in the GPT, else (MBR disks have none) by the file system's own label.
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Name in the GPT.
    pub name: &'static str,
    /// Label in the file system.
    pub label: Label,
}

/// Where a file system has its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// ext4: kernel, Documentation/filesystems/ext4/super.rst.
    Ext4(&'static str),
    /// FAT12 and FAT16, FAT32: Microsoft's FAT specification 1.03, section 3.2 and 3.3. Eleven characters at most.
    Fat(&'static str),
}

/// The data partition.
pub const DATA: Wanted = Wanted { name: "wherry-data", label: Label::Ext4("wherry-data") };
/// The configuration partition.
pub const CONFIG: Wanted = Wanted { name: "wherry-config", label: Label::Fat("WHERRY-CONF") };

/// The device of the wanted partition; the first by name if somebody has two.
#[must_use]
pub fn find(wanted: &Wanted) -> Option<PathBuf> {
    find_in(Path::new("/sys/class/block"), Path::new("/dev"), wanted)
}

fn find_in(class: &Path, dev: &Path, wanted: &Wanted) -> Option<PathBuf> {
    let mut devices: Vec<Device> = fs::read_dir(class)
        .ok()?
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("uevent")).ok())
        .filter_map(|text| Device::parse(&text))
        .collect();
    devices.sort_by(|a, b| a.node.cmp(&b.node));
    let by_name = devices.iter().find(|device| device.partition.as_deref() == Some(wanted.name));
    let unnamed = || devices.iter().filter(|device| device.partition.is_none());
    by_name
        .or_else(|| unnamed().find(|device| has_label(&dev.join(&device.node), wanted.label)))
        .map(|device| dev.join(&device.node))
}

/// One block device by its uevent file.
#[derive(Debug, PartialEq, Eq)]
struct Device {
    node: String,
    partition: Option<String>,
}

impl Device {
    fn parse(uevent: &str) -> Option<Self> {
        let value = |key: &str| {
            uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
        };
        let node = value("DEVNAME")?;
        // It becomes a path; the kernel knows names like `mapper/x`, none with dots as components.
        let plain = !node.is_empty() && !node.starts_with('/') && !node.split('/').any(|part| part == "..");
        plain.then(|| Self { node, partition: value("PARTNAME") })
    }
}

fn has_label(device: &Path, label: Label) -> bool {
    let Ok(file) = File::open(device) else { return false };
    match label {
        Label::Ext4(text) => {
            read::<2>(&file, 1024 + 0x38) == Some([0x53, 0xef])
                && read::<16>(&file, 1024 + 0x78).is_some_and(|found| padded(&found, 0) == text.as_bytes())
        }
        Label::Fat(text) => {
            let is = |at| read::<11>(&file, at).is_some_and(|found| padded(&found, b' ') == text.as_bytes());
            read::<2>(&file, 510) == Some([0x55, 0xaa]) && (is(0x2b) || is(0x47))
        }
    }
}

fn read<const N: usize>(file: &File, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
}

fn padded(bytes: &[u8], filler: u8) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != filler).map_or(0, |last| last.saturating_add(1));
    bytes.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World(tempfile::TempDir);

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("class")).unwrap();
            fs::create_dir_all(dir.path().join("dev")).unwrap();
            Self(dir)
        }

        fn device(&self, node: &str, partition: Option<&str>, content: &[(usize, &[u8])]) {
            let place = self.0.path().join("class").join(node);
            fs::create_dir_all(&place).unwrap();
            let name = partition.map(|name| format!("PARTNAME={name}\n")).unwrap_or_default();
            let text = format!("MAJOR=253\nMINOR=3\nDEVNAME={node}\nDEVTYPE=partition\nPARTN=3\n{name}");
            fs::write(place.join("uevent"), text).unwrap();
            let mut bytes = vec![0; 4096];
            for (at, part) in content {
                bytes[*at..at + part.len()].copy_from_slice(part);
            }
            fs::write(self.0.path().join("dev").join(node), bytes).unwrap();
        }

        fn find(&self, wanted: &Wanted) -> Option<String> {
            let found = find_in(&self.0.path().join("class"), &self.0.path().join("dev"), wanted)?;
            Some(found.file_name().unwrap().to_str().unwrap().to_owned())
        }
    }

    #[test]
    fn the_name_in_the_gpt_decides() {
        let world = World::new();
        world.device("vda", None, &[]);
        world.device("vda4", Some("wherry-config"), &[]);
        world.device("vda5", Some("wherry-data"), &[]);
        world.device("vdb1", Some("wherry-data"), &[]);
        assert_eq!(world.find(&DATA).as_deref(), Some("vda5"));
        assert_eq!(world.find(&CONFIG).as_deref(), Some("vda4"));
    }

    #[test]
    fn without_names_the_file_system_decides() {
        let world = World::new();
        world.device("mmcblk0p1", None, &[(510, b"\x55\xaa"), (0x2b, b"WHERRY-CONF")]);
        world.device("mmcblk0p2", None, &[(1024 + 0x38, b"\x53\xef"), (1024 + 0x78, b"wherry-data-x")]);
        world.device("mmcblk0p3", None, &[(1024 + 0x38, b"\x53\xef"), (1024 + 0x78, b"wherry-data")]);
        assert_eq!(world.find(&DATA).as_deref(), Some("mmcblk0p3"));
        assert_eq!(world.find(&CONFIG).as_deref(), Some("mmcblk0p1"));
        let fat32 = World::new();
        fat32.device("sda1", None, &[(510, b"\x55\xaa"), (0x47, b"WHERRY-CONF")]);
        assert_eq!(fat32.find(&CONFIG).as_deref(), Some("sda1"));
    }

    /// A stranger's partition must not become ours because of what is written in it.
    #[test]
    fn a_named_partition_is_not_searched_for_labels() {
        let world = World::new();
        world.device("sdb1", Some("holiday"), &[(1024 + 0x38, b"\x53\xef"), (1024 + 0x78, b"wherry-data")]);
        assert_eq!(world.find(&DATA), None);
    }

    #[test]
    fn odd_devices_are_passed_over() {
        assert_eq!(Device::parse("DEVNAME=../../etc/passwd\nPARTNAME=wherry-data"), None);
        assert_eq!(Device::parse("DEVNAME=/etc/passwd"), None);
        assert_eq!(Device::parse("PARTNAME=wherry-data"), None);
        let world = World::new();
        world.device("short", None, &[]);
        fs::write(world.0.path().join("dev/short"), b"x").unwrap();
        fs::create_dir_all(world.0.path().join("class/empty")).unwrap();
        assert_eq!(world.find(&DATA), None);
        assert_eq!(find_in(Path::new("/nowhere"), Path::new("/dev"), &DATA), None);
    }
}
