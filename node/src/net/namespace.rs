//! Work inside a container's network namespace: always on a thread that does nothing else and then ends, never on one
//! that is shared, so nothing can be left in the wrong namespace.
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::resume_unwind;

/// Stack of such a thread. A quarter of the usual, for hundreds of them may run when a board starts.
const STACK_BYTES: usize = 512 * 1024;

/// Runs `work` in the network namespace behind `namespace` (a namespace file, or a pidfd of a process in it) and waits.
///
/// # Errors
/// When the thread cannot be made (EAGAIN) or the namespace cannot be entered.
pub(crate) fn within<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, Errno> {
    std::thread::scope(|scope| {
        let enter = move || {
            // Only the network: other kinds of namespaces cannot be entered through a pidfd by one thread of many.
            setns(namespace, CloneFlags::CLONE_NEWNET).map(|()| work())
        };
        let thread = std::thread::Builder::new().name("wherry-netns".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, enter).map_err(|error| errno(&error))?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw)
}
