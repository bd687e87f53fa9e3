//! Whose ids count: the node's, the container's on the node, the container's own.
use super::super::plan::{Process, TTY};
use super::super::report::{Failure, Step};
use super::become_program::own_streams;
use super::{NETWORK_FD, OWNED_FDS, USER_FD, inherited};
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid, setresgid, setresuid};
use std::os::fd::{AsFd, OwnedFd};
use wherry_sys::capability::{SECUREBITS_NO_SETUID_FIXUP, set_securebits};
use wherry_sys::process::setns;

/// Joins the namespaces that belong to the user namespace, which is returned. From here on what this process makes
/// belongs to the container's root, `first` on the node; it stays as mighty as it is.
pub(super) fn join(first: u32, owns_network: bool) -> Result<OwnedFd, Failure> {
    let fail = |error: wherry_sys::SysError| Failure::new(Step::Join, "", error.errno());
    for (number, kind) in OWNED_FDS.into_iter().chain(owns_network.then_some(NETWORK_FD)) {
        setns(inherited(number)?, kind).map_err(fail)?;
    }
    set_securebits(SECUREBITS_NO_SETUID_FIXUP).map_err(fail)?;
    make_files_as(first)?;
    inherited(USER_FD)
}

/// credentials(7): the ids that count for files.
fn make_files_as(id: u32) -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    setfsgid(gid);
    setfsuid(uid);
    // They tell what they were, not whether they worked.
    if setfsgid(gid) == gid && setfsuid(uid) == uid {
        Ok(())
    } else {
        Err(Failure::new(Step::Join, "", Errno::EPERM))
    }
}

/// Does `work` as the container's root also where the kernel asks for the user himself: kernel parameters of the container's
/// namespaces belong to him.
pub(super) fn as_root_inside<T>(first: u32, work: impl FnOnce() -> T) -> Result<T, Failure> {
    let user = |id| {
        setresuid(Uid::from_raw(u32::MAX), Uid::from_raw(id), Uid::from_raw(u32::MAX))
            .map_err(|errno| Failure::new(Step::Join, "", errno))
    };
    user(first)?;
    let result = work();
    user(0)?;
    make_files_as(first)?;
    Ok(result)
}

/// Enters the user namespace (`user` is its file, or a pidfd of a process in it) as its root, whose id on the node is
/// `first`. What takes the node's root must have been done before.
///
/// # Errors
/// [`Failure`].
pub(in super::super) fn enter_user_namespace(user: impl AsFd, first: u32) -> Result<(), Failure> {
    let fail = |errno| Failure::new(Step::Join, "", errno);
    // Made by the node's root, who is nobody inside.
    own_streams(Uid::from_raw(first), |terminal| {
        Some(Gid::from_raw(if terminal { first + TTY } else { first }))
    });
    setns(user, CloneFlags::CLONE_NEWUSER).map_err(|error| fail(error.errno()))?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).map_err(fail)?;
    setresuid(uid, uid, uid).map_err(fail)?;
    // It has been lost with the change of ids.
    nix::sys::prctl::set_dumpable(false).map_err(fail)
}

/// Ids above those of the container are nobody's.
pub(super) fn check(process: &Process, what: &str, id: u32) -> Result<(), Failure> {
    match process.first_id {
        Some(_) if id >= super::IDS => {
            Err(Failure::new(Step::User, format!("{what} {id}"), Errno::EOVERFLOW))
        }
        Some(_) | None => Ok(()),
    }
}
