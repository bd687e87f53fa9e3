//! Tar archives as an attacker would write them: whatever names, links and devices, no questions asked.
use wherry_images::disk::Arch;
use wherry_protocol::Digest;

const BLOCK: usize = 512;

/// Builds an archive in the ustar format (POSIX.1-1988).
#[derive(Debug, Default)]
pub struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A regular file.
    #[must_use]
    pub fn file(self, name: &str, body: &[u8]) -> Self {
        self.entry(name, b'0', "", body, (0, 0))
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(name, b'2', target, b"", (0, 0))
    }

    /// A hard link.
    #[must_use]
    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(name, b'1', target, b"", (0, 0))
    }

    /// A block device.
    #[must_use]
    pub fn device(self, name: &str, major: u32, minor: u32) -> Self {
        self.entry(name, b'4', "", b"", (major, minor))
    }

    /// A regular file that is said to have 2^62 bytes and has none (GNU's form of large numbers).
    #[must_use]
    pub fn boast(self, name: &str) -> Self {
        let mut tar = self.entry(name, b'0', "", b"", (0, 0));
        let start = tar.bytes.len() - BLOCK;
        let header = &mut tar.bytes[start..];
        header[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0]);
        seal(header);
        tar
    }

    /// The archive with its end mark.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 2 * BLOCK]);
        self.bytes
    }

    fn entry(mut self, name: &str, kind: u8, target: &str, body: &[u8], device: (u32, u32)) -> Self {
        let mut header = [0_u8; BLOCK];
        let mut put = |at: usize, text: &str| {
            for (slot, byte) in header.iter_mut().skip(at).zip(text.bytes()) {
                *slot = byte;
            }
        };
        put(0, name);
        put(100, "0000755\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", body.len()));
        put(136, "00000000000\0");
        put(156, &char::from(kind).to_string());
        put(157, target);
        put(257, "ustar\x0000");
        put(329, &format!("{:07o}\0", device.0));
        put(337, &format!("{:07o}\0", device.1));
        seal(&mut header);
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self
    }
}

/// Writes a header's checksum, which counts its own place as blanks.
fn seal(header: &mut [u8]) {
    let place = 148..156;
    let others = header.iter().enumerate().filter(|(at, _)| !place.contains(at));
    let sum: u32 = others.map(|(_, byte)| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
    for (slot, byte) in header.iter_mut().skip(place.start).zip(format!("{sum:06o}\0 ").bytes()) {
        *slot = byte;
    }
}

/// An image with one layer, as `docker save` writes it: consistent in itself, whatever the layer holds.
#[must_use]
pub fn docker_archive(name: &str, arch: Arch, layer: &[u8]) -> Vec<u8> {
    let architecture = match arch {
        Arch::X86_64 => "amd64",
        Arch::Aarch64 => "arm64",
    };
    let config = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Cmd": ["/bin/true"] },
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(layer).to_string()] },
    });
    let config = config.to_string();
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let manifest = serde_json::json!([{
        "Config": config_name,
        "RepoTags": [format!("{name}:latest")],
        "Layers": ["layer.tar"],
    }]);
    Tar::new()
        .file(&config_name, config.as_bytes())
        .file("layer.tar", layer)
        .file("manifest.json", manifest.to_string().as_bytes())
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What we write for attackers must be readable, or their tests would test nothing but our mistakes.
    #[test]
    fn tar_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.tar");
        let archive = Tar::new()
            .file("../up", b"body")
            .symlink("link", "/")
            .hard_link("hard", "../up")
            .device("d", 8, 1);
        std::fs::write(&path, archive.finish()).unwrap();
        let listed = std::process::Command::new("tar").arg("-tvPf").arg(&path).output().unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.status.success(), "{text}");
        for part in ["../up", "link -> /", "hard link to ../up", "8,1"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}
