//! The root file system of the container, mounted and entered.
use super::super::error::OciError;
use super::super::plan::Plan;
use super::super::plan::devices::{Node, NodeKind};
use super::super::plan::mounts::{Mount, Source};
use super::failed;
use crate::container::child::mounts::{
    Cover, PATH_ANY, PATH_DIRECTORY, at, inside, make_directory, make_file, make_link,
    protect as protect_path, split, sys,
};
use crate::container::report::{Failure, Step};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, mount_change,
};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use wherry_sys::mount::{
    Attributes, Change, Propagation, attach, change_tree, detached_copy_of_target, replace_root_with_current,
};

/// Everything below the new root. The result is its directory; the host's is still this process's root.
pub(super) fn mount(plan: &Plan) -> Result<OwnedFd, OciError> {
    // Modes in the plan are meant exactly.
    rustix::process::umask(Mode::empty());
    let shown = plan.root.path.display().to_string();
    if plan.namespaces.own_mounts() {
        separate(plan.root.propagation)?;
    }
    let tree = detached_copy_of_target(CWD, &plan.root.path, true).map_err(sys(Step::Source, &shown))?;
    if plan.root.propagation != Some(Propagation::Slave) {
        let change = Change { propagation: Some(Propagation::Private), ..Change::default() };
        change_tree(&tree, change, true).map_err(sys(Step::Propagation, &shown))?;
    }
    // Over the root where only the container sees it: then nothing of the host's has to change. Absolute paths lead to
    // the host's files as before, because this process's root directory stays what it is.
    let place = if plan.namespaces.own_mounts() { Path::new("/") } else { &plan.root.path };
    let target = rustix::fs::open(place, PATH_DIRECTORY, Mode::empty()).map_err(at(Step::Source, &shown))?;
    attach(&tree, target).map_err(sys(Step::Mount, &shown))?;
    plan.mounts.iter().try_for_each(|mount| place_mount(&tree, mount))?;
    let bound = plan.namespaces.other_users();
    plan.devices.iter().try_for_each(|node| place_node(&tree, node, bound))?;
    plan.links.iter().try_for_each(|(path, target)| place_link(&tree, path, target))?;
    Ok(tree)
}

/// What is mounted here must not be seen on the host; what is mounted on the host may be seen here, if that is asked for.
fn separate(propagation: Option<Propagation>) -> Result<(), Failure> {
    let flags = match propagation {
        // Bind mounts of the host that are to be shared must still be so. pivot_root wants the root itself not to be.
        Some(Propagation::Shared) => MountPropagationFlags::PRIVATE,
        Some(Propagation::Slave) => MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM,
        Some(Propagation::Private | Propagation::Unbindable) | None => {
            MountPropagationFlags::REC | MountPropagationFlags::PRIVATE
        }
    };
    mount_change("/", flags).map_err(at(Step::Propagation, ""))
}

fn place_mount(root: &OwnedFd, mount: &Mount) -> Result<(), Failure> {
    let tree = match &mount.source {
        Source::New { kind, device, options } => {
            let made =
                new_file_system(kind, device, options, mount.change.set.contains(Attributes::READ_ONLY));
            match made {
                // In a user namespace without a cgroup namespace.
                Err(rustix::io::Errno::PERM) if kind == "cgroup2" => bind(Path::new("/sys/fs/cgroup"), true)?,
                made => made.map_err(at(Step::Mount, &mount.target))?,
            }
        }
        Source::Bind { path, recursive, .. } => bind(path, *recursive)?,
    };
    let stat = rustix::fs::fstat(&tree).map_err(at(Step::Mount, &mount.target))?;
    let target = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        make_directory(root, &mount.target)
    } else {
        make_file(root, &mount.target)
    };
    let target = target.map_err(at(Step::Mount, &mount.target))?;
    refuse_links(root, mount)?;
    let fail = sys(Step::Mount, &mount.target);
    let only = |change: Change| Change { propagation: None, ..change };
    change_tree(&tree, only(mount.change_all), true).map_err(&fail)?;
    change_tree(&tree, only(mount.change), false).map_err(&fail)?;
    attach(&tree, target).map_err(&fail)?;
    for (change, all) in [(mount.change_all, true), (mount.change, false)] {
        let change = Change { propagation: change.propagation, ..Change::default() };
        change_tree(&tree, change, all).map_err(&fail)?;
    }
    Ok(())
}

/// A link at /proc or /sys could lead these where masks and read-only paths do not look for them (CVE-2023-27561).
fn refuse_links(root: &OwnedFd, mount: &Mount) -> Result<(), Failure> {
    match &mount.source {
        Source::New { kind, .. } if matches!(kind.as_str(), "proc" | "sysfs") => {
            let strict = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_SYMLINKS);
            let path = mount.target.as_str();
            let opened = rustix::fs::openat2(root, path, PATH_DIRECTORY, Mode::empty(), strict);
            opened.map(drop).map_err(at(Step::Mount, path))
        }
        Source::New { .. } | Source::Bind { .. } => Ok(()),
    }
}

fn bind(path: &Path, recursive: bool) -> Result<OwnedFd, Failure> {
    let shown = path.display().to_string();
    detached_copy_of_target(CWD, path, recursive).map_err(sys(Step::Source, &shown))
}

fn new_file_system(
    kind: &str,
    device: &str,
    options: &[(String, Option<String>)],
    read_only: bool,
) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if !device.is_empty() {
        fsconfig_set_string(context.as_fd(), "source", device)?;
    }
    // A device that cannot be written to cannot be mounted otherwise.
    if read_only && device.starts_with('/') {
        fsconfig_set_flag(context.as_fd(), "ro")?;
    }
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str())?,
            None => fsconfig_set_flag(context.as_fd(), key.as_str())?,
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Made, or if there is no right to (in a user namespace) bound from the host.
fn place_node(root: &OwnedFd, node: &Node, bound: bool) -> Result<(), Failure> {
    let fail = at(Step::Device, &node.path);
    let (parent, name) = split(&node.path).map_err(&fail)?;
    let directory = make_directory(root, parent).map_err(&fail)?;
    match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_same(&stat, node.kind) => return Ok(()),
        // config-linux.md: one that does not match is an error.
        Ok(_) => return Err(fail(rustix::io::Errno::EXIST)),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(fail(error)),
    }
    if bound && node.kind != NodeKind::Fifo {
        return bind_node(root, node);
    }
    let (kind, device) = match node.kind {
        NodeKind::Character(major, minor) => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
        NodeKind::Block(major, minor) => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
        NodeKind::Fifo => (FileType::Fifo, 0),
    };
    rustix::fs::mknodat(&directory, name, kind, Mode::from_raw_mode(node.mode), device).map_err(&fail)?;
    let (uid, gid) = (rustix::fs::Uid::from_raw(node.uid), rustix::fs::Gid::from_raw(node.gid));
    rustix::fs::chownat(&directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)
}

fn is_same(stat: &rustix::fs::Stat, kind: NodeKind) -> bool {
    let (wanted, numbers) = match kind {
        NodeKind::Character(major, minor) => (FileType::CharacterDevice, Some((major, minor))),
        NodeKind::Block(major, minor) => (FileType::BlockDevice, Some((major, minor))),
        NodeKind::Fifo => (FileType::Fifo, None),
    };
    let device = rustix::fs::makedev;
    FileType::from_raw_mode(stat.st_mode) == wanted
        && numbers.is_none_or(|(major, minor)| stat.st_rdev == device(major, minor))
}

fn bind_node(root: &OwnedFd, node: &Node) -> Result<(), Failure> {
    let fail = at(Step::Device, &node.path);
    let copy = bind(Path::new(&node.path), false)?;
    let stat = rustix::fs::fstat(&copy).map_err(&fail)?;
    if !is_same(&stat, node.kind) {
        return Err(fail(rustix::io::Errno::NXIO));
    }
    let target = make_file(root, &node.path).map_err(&fail)?;
    attach(copy, target).map_err(sys(Step::Device, &node.path))
}

/// What the image has there already is left.
fn place_link(root: &OwnedFd, path: &str, target: &str) -> Result<(), Failure> {
    match make_link(root, path, target) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(at(Step::Device, path)(error)),
    }
}

/// Makes `tree` the root directory.
pub(super) fn enter(plan: &Plan, tree: &OwnedFd, no_pivot: bool) -> Result<(), OciError> {
    rustix::process::fchdir(tree).map_err(at(Step::Pivot, ""))?;
    if plan.namespaces.own_mounts() && !no_pivot {
        return replace_root_with_current().map_err(|error| sys(Step::Pivot, "")(error).into());
    }
    nix::unistd::chroot(".").map_err(failed("changing the root"))?;
    nix::unistd::chdir("/").map_err(failed("changing the root"))
}

/// What is hidden or read-only, and last the root itself.
pub(super) fn protect(plan: &Plan, tree: &OwnedFd) -> Result<(), Failure> {
    let root = rustix::fs::open("/", PATH_DIRECTORY, Mode::empty()).map_err(at(Step::Pivot, "/"))?;
    let mut cover = Cover::default();
    plan.masked.iter().try_for_each(|path| cover.mask(&root, path))?;
    plan.protected.iter().try_for_each(|path| protect_path(&root, path))?;
    let set = if plan.root.read_only { Attributes::READ_ONLY } else { Attributes::NOTHING };
    let change = Change { set, propagation: plan.root.propagation, ..Change::default() };
    change_tree(tree, change, false).map_err(sys(Step::ReadOnly, "/"))
}

/// Opens a path of the container for its descriptor alone.
pub(super) fn open_path(path: &str) -> Result<OwnedFd, rustix::io::Errno> {
    let root = rustix::fs::open("/", PATH_DIRECTORY, Mode::empty())?;
    inside(&root, path, PATH_ANY.union(OFlags::CLOEXEC), Mode::empty())
}
