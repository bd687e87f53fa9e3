//! Giving up files for good: Landlock (landlock(7), Documentation/userspace-api/landlock.rst).
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use std::path::PathBuf;

/// What the rights are called in: all that this version of the kernel's interface knows are given up. Kernels that know
/// fewer, of 5.19 and later, give up those that they know.
const INTERFACE: ABI = ABI::V6;

/// What a thread keeps. Whatever is not below one of these cannot be opened, made, removed or renamed any more; what is
/// open already stays open. Nothing can be mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Files and directories to read. What is below a directory belongs to it.
    pub read: Vec<PathBuf>,
    /// To read, change, make and remove in, but not to execute.
    pub write: Vec<PathBuf>,
    /// Whether it makes connections over TCP. Landlock knows their ports only, not where they lead.
    pub tcp: bool,
}

/// Why a thread still has all that it had.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Something that is to be kept cannot be opened.
    #[error(transparent)]
    Open(#[from] PathFdError),
    /// The kernel has Landlock and refused.
    #[error("landlock: {0}")]
    Refused(#[from] RulesetError),
}

/// Confines the calling thread and those that it will start; there is no way back. Unless that is kept it cannot connect over
/// TCP either (Linux 6.7), nor signal processes outside or connect to their abstract sockets (6.12), and gains no rights by execve
/// (no_new_privs). Threads that exist already are not affected. `false` where the kernel has no Landlock.
///
/// # Errors
/// [`ConfineError`].
pub fn confine_thread(kept: &Kept) -> Result<bool, ConfineError> {
    let all = AccessFs::from_all(INTERFACE);
    let given_up = Ruleset::default().handle_access(all)?;
    let given_up = if kept.tcp { given_up } else { given_up.handle_access(AccessNet::ConnectTcp)? };
    let mut rules = given_up.scope(Scope::from_all(INTERFACE))?.create()?;
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let paths = kept.read.iter().map(|path| (path, reading));
    for (path, access) in paths.chain(kept.write.iter().map(|path| (path, all & !AccessFs::Execute))) {
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(INTERFACE) };
        rules = rules.add_rule(PathBeneath::new(PathFd::new(path)?, access))?;
    }
    Ok(rules.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use landlock::{CompatLevel, Compatible as _};
    use std::fs;
    use std::io::ErrorKind::PermissionDenied;

    /// In a thread that is nobody else's.
    fn confined<T: Send>(kept: &Kept, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                assert!(confine_thread(kept).unwrap(), "the kernel of this machine has no Landlock");
                work()
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn only_what_is_kept_can_be_reached() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name);
        for name in ["own/sub", "seen", "foreign"] {
            fs::create_dir_all(path(name)).unwrap();
            fs::write(path(name).join("file"), name).unwrap();
        }
        let kept = Kept { read: vec![path("seen")], write: vec![path("own")], tcp: false };
        let denied = |result: std::io::Result<()>| result.unwrap_err().kind() == PermissionDenied;
        confined(&kept, || {
            fs::write(path("own/new"), "x").unwrap();
            fs::rename(path("own/new"), path("own/sub/moved")).unwrap();
            fs::hard_link(path("own/sub/moved"), path("own/linked")).unwrap();
            fs::remove_file(path("own/linked")).unwrap();
            assert_eq!(fs::read_to_string(path("seen/file")).unwrap(), "seen");
            assert!(denied(fs::write(path("seen/file"), "x")));
            assert!(denied(fs::remove_file(path("seen/file"))));
            assert!(denied(fs::read(path("foreign/file")).map(drop)));
            assert!(denied(fs::read(path("own/../foreign/file")).map(drop)));
            assert!(denied(fs::write(path("new"), "x")));
            std::os::unix::fs::symlink(path("foreign/file"), path("own/way-out")).unwrap();
            assert!(denied(fs::read(path("own/way-out")).map(drop)));
            assert!(fs::rename(path("foreign/file"), path("own/stolen")).is_err());
            assert!(fs::hard_link(path("foreign/file"), path("own/stolen")).is_err());
            assert!(denied(fs::read("/etc/passwd").map(drop)));
            assert!(denied(std::process::Command::new("/bin/true").status().map(drop)));
            // Started here, confined as this one is.
            let inherited = std::thread::scope(|scope| {
                scope.spawn(|| denied(fs::read(path("foreign/file")).map(drop))).join().unwrap()
            });
            assert!(inherited);
        });
        assert_eq!(fs::read_to_string(path("foreign/file")).unwrap(), "foreign", "other threads go on");
    }

    #[test]
    fn single_files_can_be_kept() {
        let base = tempfile::tempdir().unwrap();
        let (one, other) = (base.path().join("one"), base.path().join("other"));
        fs::write(&one, "1").unwrap();
        fs::write(&other, "2").unwrap();
        let kept = Kept { write: vec![one.clone()], ..Kept::default() };
        confined(&kept, || {
            fs::write(&one, "3").unwrap();
            assert_eq!(fs::read(&other).unwrap_err().kind(), PermissionDenied);
        });
    }

    #[test]
    fn connections_over_tcp_cannot_be_made() {
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let result = confined(&Kept::default(), || std::net::TcpStream::connect(address).map(drop));
        // The kernel of the boards is older.
        let strict = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        match strict.handle_access(AccessNet::ConnectTcp) {
            Ok(_) => assert_eq!(result.unwrap_err().kind(), PermissionDenied),
            Err(_) => result.unwrap(),
        }
        confined(&Kept::default(), || {
            std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap()
        });
        confined(&Kept { tcp: true, ..Kept::default() }, || std::net::TcpStream::connect(address).unwrap());
    }

    #[test]
    fn what_is_not_there_cannot_be_kept() {
        let kept = Kept { read: vec!["/no/such/directory".into()], ..Kept::default() };
        let error = confine_thread(&kept).unwrap_err();
        assert!(error.to_string().contains("/no/such/directory"), "{error}");
        fs::read("/etc/passwd").unwrap();
    }
}
