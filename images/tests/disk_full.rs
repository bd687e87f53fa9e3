//! A full disk, on a file system of 1 MiB. Needs root, as all tests that mount do.
#![cfg(target_os = "linux")]
use std::path::Path;
use std::process::Command;
use wherry_images::store::{BlobStore, StoreError};
use wherry_protocol::Digest;

/// A small tmpfs, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "wherry-test"])
            .arg(dir.path())
            .status()
            .expect("mount(8) is there");
        assert!(status.success(), "mounting a tmpfs failed: this test needs root");
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}

#[test]
fn a_full_disk_is_reported_and_leaves_nothing() {
    let disk = SmallDisk::mount();
    let store = BlobStore::open(disk.path()).unwrap();
    let small = vec![1; 100_000];
    store.put(Digest::of(&small), &small).unwrap();
    let large = vec![2; 2_000_000];
    let error = store.put(Digest::of(&large), &large).unwrap_err();
    assert!(error.is_disk_full(), "{error}");
    assert!(matches!(error, StoreError::DiskFull { .. }));
    assert_eq!(std::fs::read_dir(disk.path().join("partial")).unwrap().count(), 0);
    store.verify(&Digest::of(&small), 100_000).unwrap();
    store.put(Digest::of(&small[..50_000]), &small[..50_000]).unwrap();
}
