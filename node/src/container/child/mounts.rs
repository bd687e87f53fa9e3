//! The file system part of the plan.
use super::super::copy;
use super::super::plan::{Device, Flags, Mount, Plan, Root, Source, Sysctl};
use super::super::report::{Failure, Step};
use super::ids;
use nix::errno::Errno;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen,
};
use std::ffi::CString;
use std::fs::File;
use std::io::BufReader;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;
use wherry_sys::mount::{
    Attributes, attach, detached_copy, detached_copy_of_target, map_owners, restrict, restrict_tree,
};

pub(crate) const PATH_DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
pub(crate) const PATH_ANY: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
/// Everything in the container is found as if its root were the root, and never through the magic links of /proc.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
const NEW_DIRECTORY: Mode = Mode::from_raw_mode(0o755);
const NEW_FILE: Mode = Mode::from_raw_mode(0o644);
const UMASK: Mode = Mode::from_raw_mode(0o022);
const DEVICE: Mode = Mode::from_raw_mode(0o666);

/// What is attached inside later, opened while the node's files can still be reached.
pub(super) struct Sources {
    /// One per mount of the plan that has one.
    binds: Vec<Option<OwnedFd>>,
    console: Option<OwnedFd>,
    files: Vec<File>,
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

pub(crate) fn at(step: Step, detail: &str) -> impl Fn(rustix::io::Errno) -> Failure + '_ {
    move |error| Failure::new(step, detail, errno(error))
}

pub(crate) fn sys(step: Step, detail: &str) -> impl Fn(wherry_sys::SysError) -> Failure + '_ {
    move |error| Failure::new(step, detail, error.errno())
}

/// Makes the overlay the root directory. The node's files are out of reach afterwards, except for the result.
/// With a user namespace, layers and volumes have their owners mapped.
pub(super) fn change_root(plan: &Plan, user: Option<&OwnedFd>) -> Result<Sources, Failure> {
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(at(Step::Propagation, ""))?;
    super::leave_cgroup_namespace()?;
    if let Some(user) = user {
        map_data(&plan.data, user)?;
    }
    mount_overlay(&plan.root)?;
    let sources = open_sources(plan)?;
    wherry_sys::mount::replace_root(&plan.root.mount_point).map_err(sys(Step::Pivot, ""))?;
    Ok(sources)
}

/// Puts the data directory over itself, with owners as they are inside. Attached, because not every kernel builds overlays on
/// what is not (clone_private_mount in fs/namespace.c).
fn map_data(data: &Path, user: &OwnedFd) -> Result<(), Failure> {
    let detail = data.display().to_string();
    let directory =
        rustix::fs::openat(CWD, data, PATH_DIRECTORY, Mode::empty()).map_err(at(Step::Overlay, &detail))?;
    let fail = sys(Step::Overlay, &detail);
    let copy = detached_copy_of_target(&directory, Path::new(""), false).map_err(&fail)?;
    map_owners(&copy, user).map_err(&fail)?;
    attach(copy, directory).map_err(fail)
}

/// Layers are named by descriptor numbers, relative to /proc/self/fd: 128 digests would not fit into the one page that
/// the kernel reads, and nothing in a path can be taken for a separator.
fn mount_overlay(root: &Root) -> Result<(), Failure> {
    let open = |path: &Path| {
        let detail = path.display().to_string();
        rustix::fs::openat(CWD, path, PATH_DIRECTORY, Mode::empty()).map_err(at(Step::Overlay, &detail))
    };
    // Overlayfs wants the highest layer first.
    let layers = root.layers.iter().rev().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let (upper, work) = (open(&root.upper)?, open(&root.work)?);
    let numbers: Vec<String> = layers.iter().map(|layer| layer.as_raw_fd().to_string()).collect();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", numbers.join(":"), upper.as_raw_fd(), work.as_raw_fd());
    let fail = at(Step::Overlay, "");
    let options = CString::new(options).map_err(|_| fail(rustix::io::Errno::INVAL))?;
    rustix::process::chdir("/proc/self/fd").map_err(&fail)?;
    rustix::mount::mount("overlay", &root.mount_point, "overlay", MountFlags::NODEV, &*options).map_err(fail)
}

fn open_sources(plan: &Plan) -> Result<Sources, Failure> {
    let binds = plan.mounts.iter().map(open_source).collect::<Result<_, _>>()?;
    let console = if plan.process.tty { Some(open_console()?) } else { None };
    let files = plan.files.iter().map(|path| open_files(path)).collect::<Result<_, _>>()?;
    Ok(Sources { binds, console, files })
}

fn open_source(mount: &Mount) -> Result<Option<OwnedFd>, Failure> {
    let path = match &mount.source {
        Source::FileSystem(..) | Source::Text(_) => return Ok(None),
        Source::Directory(path) => path,
    };
    let detail = path.display().to_string();
    let copy = detached_copy(CWD, path).map_err(sys(Step::Source, &detail))?;
    restrict_tree(&copy, attributes(mount.flags), true).map_err(sys(Step::Source, &detail))?;
    Ok(Some(copy))
}

fn open_files(path: &Path) -> Result<File, Failure> {
    let fail = |error: std::io::Error| {
        Failure::new(Step::Source, path.display().to_string(), wherry_sys::fd::errno_of(&error))
    };
    File::open(path).map_err(fail)
}

/// Unpacks archives as long as there is nothing but the overlay: no link of the image leads anywhere else.
pub(super) fn unpack(sources: &mut Sources) -> Result<(), Failure> {
    rustix::process::umask(UMASK);
    let fail = |error: std::io::Error| {
        Failure::new(Step::Files, error.to_string(), wherry_sys::fd::errno_of(&error))
    };
    sources
        .files
        .drain(..)
        .try_for_each(|file| copy::receive(Path::new("/"), BufReader::new(file)).map_err(fail))
}

/// The terminal comes from the node's devpts; inside it is found as /dev/console, like with other runtimes.
fn open_console() -> Result<OwnedFd, Failure> {
    let stdin = std::io::stdin();
    let fail = at(Step::Terminal, "");
    let name = rustix::termios::ttyname(&stdin, Vec::new()).map_err(&fail)?;
    let path = name.to_str().map_err(|_| fail(rustix::io::Errno::INVAL))?;
    let copy = detached_copy(CWD, Path::new(path)).map_err(sys(Step::Terminal, path))?;
    let (a, b) = (rustix::fs::fstat(&stdin).map_err(&fail)?, rustix::fs::fstat(&copy).map_err(&fail)?);
    if a.st_rdev == b.st_rdev { Ok(copy) } else { Err(fail(rustix::io::Errno::NOTTY)) }
}

fn attributes(flags: Flags) -> Attributes {
    let all = [
        (flags.read_only, Attributes::READ_ONLY),
        (flags.no_suid, Attributes::NO_SUID),
        (flags.no_devices, Attributes::NO_DEVICES),
        (flags.no_exec, Attributes::NO_EXEC),
    ];
    all.iter().filter(|(set, _)| *set).fold(Attributes::default(), |sum, (_, one)| sum.and(*one))
}

fn mount_attributes(flags: Flags) -> MountAttrFlags {
    let all = [
        (flags.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (flags.no_suid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (flags.no_devices, MountAttrFlags::MOUNT_ATTR_NODEV),
        (flags.no_exec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ];
    all.iter().filter(|(set, _)| *set).fold(MountAttrFlags::empty(), |sum, (_, one)| sum | *one)
}

/// Everything below the new root.
pub(super) fn furnish(plan: &Plan, sources: Sources) -> Result<(), Failure> {
    // Modes in the plan are meant exactly.
    rustix::process::umask(Mode::empty());
    let root = rustix::fs::openat(CWD, "/", PATH_DIRECTORY, Mode::empty()).map_err(at(Step::Pivot, "/"))?;
    for (mount, bind) in plan.mounts.iter().zip(sources.binds) {
        place(&root, mount, bind)?;
        // Devices and links belong into /dev before anything is mounted below it that needs them.
        if mount.target == "/dev" {
            fill_dev(&root, plan)?;
        }
    }
    if let Some(console) = sources.console {
        let target = make_file(&root, "/dev/console").map_err(at(Step::Terminal, "/dev/console"))?;
        attach(console, target).map_err(sys(Step::Terminal, "/dev/console"))?;
        wherry_sys::terminal::set_controlling(std::io::stdin()).map_err(sys(Step::Terminal, ""))?;
    }
    set_sysctls(&root, plan)?;
    let mut cover = Cover::default();
    plan.masked.iter().try_for_each(|path| cover.mask(&root, path))?;
    plan.protected.iter().try_for_each(|path| protect(&root, path))?;
    rustix::process::umask(UMASK);
    if plan.root.read_only {
        restrict(Path::new("/"), Attributes::READ_ONLY, false).map_err(sys(Step::ReadOnly, "/"))?;
    }
    Ok(())
}

fn place(root: &OwnedFd, mount: &Mount, bind: Option<OwnedFd>) -> Result<(), Failure> {
    let target = match mount.source {
        Source::FileSystem(..) | Source::Directory(_) => make_directory(root, &mount.target),
        Source::Text(_) => make_file(root, &mount.target),
    }
    .map_err(at(Step::Mount, &mount.target))?;
    let tree = match (&mount.source, bind) {
        (Source::FileSystem(kind, options), _) => {
            new_file_system(kind, options, mount.flags).map_err(at(Step::Mount, &mount.target))?
        }
        (Source::Text(text), _) => new_file(root, text, mount.flags)
            .map_err(|errno| Failure::new(Step::Mount, &mount.target, errno))?,
        (Source::Directory(_), Some(copy)) => copy,
        (Source::Directory(_), None) => {
            return Err(Failure::new(Step::Mount, &mount.target, Errno::EBADF));
        }
    };
    attach(tree, target).map_err(sys(Step::Mount, &mount.target))?;
    match mount.source {
        // A mounted file that has no name any more could not have been mounted.
        Source::Text(_) => remove_name(root).map_err(at(Step::Mount, &mount.target)),
        Source::FileSystem(..) | Source::Directory(_) => Ok(()),
    }
}

/// Where a file is made that is mounted elsewhere: in the container's own memory. It has its name only until then.
const GENERATED: (&str, &str) = ("/dev", ".generated");

/// Takes the name away; the mount keeps the file.
fn remove_name(root: &OwnedFd) -> rustix::io::Result<()> {
    let (directory, name) = GENERATED;
    let directory = inside(root, directory, PATH_DIRECTORY, Mode::empty())?;
    rustix::fs::unlinkat(directory, name, rustix::fs::AtFlags::empty())
}

fn new_file(root: &OwnedFd, text: &str, flags: Flags) -> Result<OwnedFd, Errno> {
    let (directory, name) = GENERATED;
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = inside(root, &format!("{directory}/{name}"), create, NEW_FILE).map_err(errno)?;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest).map_err(errno)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    let copy = detached_copy(&file, Path::new("")).map_err(|error| error.errno())?;
    restrict_tree(&copy, attributes(flags), false).map_err(|error| error.errno())?;
    Ok(copy)
}

fn new_file_system(kind: &str, options: &[(String, String)], flags: Flags) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str())?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, mount_attributes(flags))
}

pub(crate) fn inside(root: &OwnedFd, path: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(root, path, flags, mode, INSIDE)
}

/// Opens a directory of the container, made with those above it if need be.
pub(crate) fn make_directory(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    match inside(root, path, PATH_DIRECTORY, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => {}
        result => return result,
    }
    let (parent, name) = split(path)?;
    let parent = make_directory(root, parent)?;
    match rustix::fs::mkdirat(&parent, name, NEW_DIRECTORY) {
        // A name that leads to nothing: a dangling symbolic link of the image.
        Err(rustix::io::Errno::EXIST) => Err(rustix::io::Errno::NOENT),
        result => result,
    }?;
    inside(root, path, PATH_DIRECTORY, Mode::empty())
}

pub(crate) fn make_file(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let (parent, _) = split(path)?;
    make_directory(root, parent)?;
    match inside(root, path, PATH_ANY, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => {}
        result => return result,
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    inside(root, path, flags, NEW_FILE)?;
    inside(root, path, PATH_ANY, Mode::empty())
}

/// Parent and last name of an absolute path.
pub(crate) fn split(path: &str) -> rustix::io::Result<(&str, &str)> {
    let (parent, name) = path.trim_end_matches('/').rsplit_once('/').ok_or(rustix::io::Errno::INVAL)?;
    if name.is_empty() {
        Err(rustix::io::Errno::INVAL)
    } else {
        Ok((if parent.is_empty() { "/" } else { parent }, name))
    }
}

fn fill_dev(root: &OwnedFd, plan: &Plan) -> Result<(), Failure> {
    for Device { path, major, minor } in &plan.devices {
        make_device(root, path, *major, *minor).map_err(at(Step::Device, path))?;
    }
    for (path, target) in &plan.links {
        make_link(root, path, target).map_err(at(Step::Device, path))?;
    }
    Ok(())
}

fn make_device(root: &OwnedFd, path: &str, major: u32, minor: u32) -> rustix::io::Result<()> {
    let (parent, name) = split(path)?;
    let parent = make_directory(root, parent)?;
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(&parent, name, FileType::CharacterDevice, DEVICE, device)
}

pub(crate) fn make_link(root: &OwnedFd, path: &str, target: &str) -> rustix::io::Result<()> {
    let (parent, name) = split(path)?;
    rustix::fs::symlinkat(target, &make_directory(root, parent)?, name)
}

/// A usual parameter that this kernel does not have needs no value.
fn set_sysctls(root: &OwnedFd, plan: &Plan) -> Result<(), Failure> {
    for Sysctl { file: name, value, required } in &plan.sysctls {
        let path = format!("/proc/sys/{name}");
        let set = || {
            let file = inside(root, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(&file, value.as_bytes())
        };
        let set = match (set(), plan.process.first_id) {
            (Err(rustix::io::Errno::ACCESS), Some(first)) => ids::as_root_inside(first, set)?,
            (result, _) => result,
        };
        match set {
            Err(rustix::io::Errno::NOENT) if !required => {}
            result => result.map(drop).map_err(at(Step::Sysctl, name))?,
        }
    }
    Ok(())
}

/// Opens what is there; most kernels lack some of these paths.
fn existing(root: &OwnedFd, step: Step, path: &str) -> Result<Option<OwnedFd>, Failure> {
    match inside(root, path, PATH_ANY, Mode::empty()) {
        Ok(target) => Ok(Some(target)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(error) => Err(at(step, path)(error)),
    }
}

/// Hides paths: one empty directory for all of them, made for the first, because each file system of its own costs time when
/// it is made and when it goes.
#[derive(Debug, Default)]
pub(crate) struct Cover {
    directory: Option<OwnedFd>,
}

impl Cover {
    /// Puts something empty over what is at `path`, if anything is.
    pub(crate) fn mask(&mut self, root: &OwnedFd, path: &str) -> Result<(), Failure> {
        let Some(target) = existing(root, Step::Mask, path)? else { return Ok(()) };
        let fail = at(Step::Mask, path);
        let stat = rustix::fs::fstat(&target).map_err(&fail)?;
        let cover = if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            &inside(root, "/dev/null", PATH_ANY, Mode::empty()).map_err(&fail)?
        } else if let Some(directory) = &self.directory {
            directory
        } else {
            // Attached itself: what is not attached anywhere cannot be copied.
            let directory = self.directory.insert(empty_directory().map_err(&fail)?);
            return attach(directory, target).map_err(sys(Step::Mask, path));
        };
        let copy = detached_copy(cover, Path::new("")).map_err(sys(Step::Mask, path))?;
        attach(copy, target).map_err(sys(Step::Mask, path))
    }
}

fn empty_directory() -> rustix::io::Result<OwnedFd> {
    let options = [("mode", "555"), ("nr_inodes", "1"), ("size", "4096")];
    let options = options.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let flags = Flags { read_only: true, no_suid: true, no_devices: true, no_exec: true };
    new_file_system("tmpfs", &options, flags)
}

pub(crate) fn protect(root: &OwnedFd, path: &str) -> Result<(), Failure> {
    let Some(target) = existing(root, Step::ReadOnly, path)? else { return Ok(()) };
    let copy = detached_copy(&target, Path::new("")).map_err(sys(Step::ReadOnly, path))?;
    restrict_tree(&copy, Attributes::READ_ONLY, true).map_err(sys(Step::ReadOnly, path))?;
    attach(copy, target).map_err(sys(Step::ReadOnly, path))
}
