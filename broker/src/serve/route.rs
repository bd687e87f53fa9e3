//! Streams that go through the broker to a board: the head is checked and stamped by the state, the rest is bytes.
//!
//! Bytes are only taken from one side when the other has room, so a slow reader slows the writer; what the broker holds
//! per stream is one buffer for each direction and the windows of the two sessions.
use super::Shared;
use super::user::finish;
use crate::state::SessionId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::copy_bidirectional_with_sizes;
use tokio_util::compat::FuturesAsyncReadCompatExt;
use wherry_protocol::io::{HungUp, SessionError, Stream, send};
use wherry_protocol::message::{Reply, Routed};
use wherry_protocol::{AccountId, ErrorCode, WireError};

/// Buffer of one direction, in bytes.
pub(crate) const BUFFER_BYTES: usize = 16 * 1024;

/// Time for what was said before somebody hung up to reach the other end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Counts streams to boards by account.
#[derive(Debug, Clone)]
pub(crate) struct Routes {
    limit: usize,
    /// Streams of a board's session that these leave free.
    spare: usize,
    open: Arc<Mutex<HashMap<AccountId, usize>>>,
}

/// One stream's place; given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    routes: Routes,
    account: AccountId,
}

impl Routes {
    pub(crate) fn new(limit: usize, spare: usize) -> Self {
        Self { limit, spare, open: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AccountId, usize>> {
        // Counters stay usable whatever panicked while they were held.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, account: AccountId) -> Option<Place> {
        let mut open = self.lock();
        let count = open.entry(account).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Place { routes: self.clone(), account })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.routes.lock();
        if let Some(count) = open.get_mut(&self.account) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.account);
            }
        }
    }
}

/// A stream to a board that has been told what is wanted of it.
pub(crate) async fn open(
    shared: &Shared,
    routes: &Routes,
    session: SessionId,
    routed: &Routed,
) -> Result<(Stream, Place), WireError> {
    let gone = || WireError::new(ErrorCode::NodeUnreachable, "the node has just left: try again in a moment");
    let place = routes.enter(routed.account).ok_or_else(|| {
        let text =
            format!("this account has {} streams to containers open, the limit: close some", routes.limit);
        WireError::new(ErrorCode::Busy, text)
    })?;
    let mux = shared.sessions.mux(session).ok_or_else(gone)?;
    let mut stream = mux.open_sparing(routes.spare).await.map_err(|error| match error {
        SessionError::TooManyStreams { .. } => {
            WireError::new(ErrorCode::Busy, "the node has as many streams open as it can: try again later")
        }
        SessionError::Io(_)
        | SessionError::WrongServerKey
        | SessionError::Refused(_)
        | SessionError::Version { .. }
        | SessionError::Garbage { .. }
        | SessionError::Closed
        | SessionError::TooLarge { .. } => gone(),
    })?;
    send(&mut stream, routed).await.map_err(|_| gone())?;
    Ok((stream, place))
}

/// Connects a user's stream to a board; the board's reply is the first thing the user reads.
pub(crate) async fn splice(
    shared: &Shared,
    user: Stream,
    session: SessionId,
    routed: Routed,
) -> Result<(), SessionError> {
    let (board, _place) = match open(shared, &shared.routes, session, &routed).await {
        Ok(opened) => opened,
        Err(error) => return finish(user, Reply::Error(error)).await,
    };
    let hung_up = [user.hung_up(), board.hung_up()];
    let (mut user, mut board) = (user.compat(), board.compat());
    let copied = copy_bidirectional_with_sizes(&mut user, &mut board, BUFFER_BYTES, BUFFER_BYTES);
    until_hung_up(copied, hung_up).await?;
    Ok(())
}

/// Copies until either end hangs up: an end that takes nothing would otherwise hide that the other one has gone. What was said
/// before still has a moment to get through.
pub(crate) async fn until_hung_up<T>(
    copied: impl Future<Output = std::io::Result<T>>,
    hung_up: impl IntoIterator<Item = HungUp>,
) -> std::io::Result<()> {
    let mut copied = std::pin::pin!(copied);
    let gone = futures_util::future::select_all(hung_up);
    tokio::select! {
        result = &mut copied => return result.map(drop),
        _ = gone => {}
    }
    match tokio::time::timeout(LAST_WORDS, copied).await {
        Ok(result) => result.map(drop),
        Err(_) => Err(std::io::ErrorKind::ConnectionReset.into()),
    }
}
