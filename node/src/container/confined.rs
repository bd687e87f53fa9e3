//! Work on bytes and files of strangers, in threads that can reach nothing else.
//!
//! Archives and directories of containers are read with care: no step leaves its directory. Should a step do so all the
//! same, the kernel stops it (Landlock).
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::oneshot;
use wherry_sys::landlock::{Kept, confine_thread};

/// Does `work` in a thread of its own that reaches only what is `kept`. It begins at once.
///
/// # Errors
/// When there can be no such thread, or it does not come to an end.
pub(crate) fn confined<T: Send + 'static>(
    kept: Kept,
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = io::Result<T>> {
    let (answer, result) = oneshot::channel();
    let started = std::thread::Builder::new().name("wherry-confined".into()).spawn(move || {
        let done = confine_thread(&kept).map(|confined| {
            if !confined {
                warn_once();
            }
            work()
        });
        // Whoever asked may have gone.
        answer.send(done).ok();
    });
    async move {
        started?;
        let done = result.await.map_err(|_| io::Error::other("a thread has ended before its work"))?;
        done.map_err(io::Error::other)
    }
}

fn warn_once() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            "this kernel has no Landlock: what reads images could reach files that are not theirs"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_reaches_what_is_kept_and_nothing_else() {
        let own = tempfile::tempdir().unwrap();
        let path = own.path().to_owned();
        let kept = Kept { write: vec![path.clone()], ..Kept::default() };
        let work = move || (std::fs::write(path.join("file"), "x"), std::fs::read("/etc/passwd"));
        let (inside, outside) = confined(kept, work).await.unwrap();
        inside.unwrap();
        assert_eq!(outside.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        std::fs::read("/etc/passwd").unwrap();
    }

    #[tokio::test]
    async fn work_that_cannot_be_confined_is_not_done() {
        let kept = Kept { write: vec!["/no/such/directory".into()], ..Kept::default() };
        let error = confined(kept, || unreachable!("it is not confined")).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/directory"), "{error}");
    }
}
