use super::*;
use std::os::unix::fs::{PermissionsExt as _, symlink};

fn record(id: &str) -> Record {
    Record {
        id: id.into(),
        oci_version: "1.0.2".into(),
        bundle: "/b".into(),
        annotations: BTreeMap::from([("org.x".into(), "y".into())]),
        created: 7,
        phase: Phase::Created,
        first: None,
        startable: true,
        cgroup: None,
        mounted: None,
        poststart: Vec::new(),
        poststop: Vec::new(),
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("deep/root")).unwrap();
    (directory, store)
}

fn id(text: &str) -> Id {
    Id::parse(text).unwrap()
}

#[test]
fn records_come_go_and_are_unique() {
    let (_directory, store) = store();
    let entry = store.create(&id("a"), &record("a")).unwrap();
    assert_eq!(entry.read().unwrap(), record("a"));
    assert!(matches!(store.create(&id("a"), &record("a")), Err(OciError::Exists(_))));
    assert_eq!(store.ids().unwrap(), [id("a")]);
    entry.remove().unwrap();
    assert!(store.ids().unwrap().is_empty());
    assert!(matches!(store.find(&id("a")), Err(OciError::NoSuchContainer(_))));
    assert_eq!(fs::read_dir(&store.root).unwrap().count(), 0);
}

#[test]
fn one_of_many_that_race_gets_the_id() {
    let (_directory, store) = store();
    // Threads share a process id, so each has a store of its own name for what is pending.
    let winners: Vec<bool> = (0..20)
        .map(|_| match store.create(&id("a"), &record("a")) {
            Ok(entry) => {
                drop(entry);
                true
            }
            Err(OciError::Exists(_)) => false,
            Err(other) => panic!("{other}"),
        })
        .collect();
    assert_eq!(winners.iter().filter(|won| **won).count(), 1);
}

#[test]
fn a_locked_container_is_busy_and_a_deleted_one_is_gone() {
    let (_directory, store) = store();
    let entry = store.create(&id("a"), &record("a")).unwrap();
    let other = store.find(&id("a")).unwrap();
    assert!(!other.try_lock().unwrap());
    entry.remove().unwrap();
    drop(entry);
    assert!(matches!(other.lock(), Err(OciError::NoSuchContainer(_))));
}

#[test]
fn what_was_tampered_with_is_reported_and_left_alone() {
    let (_directory, store) = store();
    let path = store.root.join("a").join(RECORD);
    let entry = store.create(&id("a"), &record("a")).unwrap();
    let good = fs::read_to_string(&path).unwrap();
    for (bad, says) in [
        (String::new(), "EOF"),
        ("{}".into(), "version"),
        (good.replace("\"1\"", "\"2\""), "unknown variant"),
        (good.replace("\"created\":7", "\"created\":7,\"more\":1"), "unknown field `more`"),
        (good.replace("\"id\":\"a\"", "\"id\":\"b\""), "that of 'b'"),
        (good[..good.len() - 3].into(), "EOF"),
    ] {
        fs::write(&path, &bad).unwrap();
        let error = entry.read().unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("cannot be trusted"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), bad);
    }
    fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    assert!(matches!(entry.read(), Err(OciError::Corrupt { .. })));
    fs::remove_file(&path).unwrap();
    File::create(&path).unwrap().set_len(MAX_RECORD_BYTES + 1).unwrap();
    assert!(entry.read().unwrap_err().to_string().contains("longer than"));
}

#[test]
fn a_state_directory_of_others_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(directory.path(), open).unwrap();
    assert!(matches!(Store::open(directory.path()), Err(OciError::UnsafeRoot(_))));
    let link = directory.path().join("link");
    symlink("/run", &link).unwrap();
    assert!(matches!(Store::open(&link), Err(OciError::UnsafeRoot(_))));
}

#[test]
fn the_status_follows_the_process() {
    let own = i32::try_from(std::process::id()).unwrap();
    let started = started_at(own).unwrap();
    let with =
        |phase, started| Record { phase, first: Some(FirstProcess { pid: own, started }), ..record("a") };
    assert_eq!(with(Phase::Creating, started).status(), Status::Creating);
    assert_eq!(with(Phase::Created, started).status(), Status::Created);
    assert_eq!(with(Phase::Started, started).status(), Status::Running);
    // The number is another process's by now.
    assert_eq!(with(Phase::Started, started + 1).status(), Status::Stopped);
    assert_eq!(record("a").status(), Status::Stopped);
    let json = with(Phase::Started, started).to_json(Status::Running);
    assert_eq!((&json["status"], &json["pid"]), (&"running".into(), &own.into()));
    assert_eq!((&json["ociVersion"], &json["annotations"]["org.x"]), (&"1.0.2".into(), &"y".into()));
    assert_eq!(started_at(0), None);
}
