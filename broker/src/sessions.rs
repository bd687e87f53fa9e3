//! The open sessions, by number: how the state's orders reach them.
use crate::state::SessionId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wherry_protocol::io::Mux;
use wherry_protocol::message::ToNode;

/// Orders that may wait for a board to read them. One that is further behind is cut off: it gets everything anew when
/// it comes back.
const ORDERS: usize = 1024;

#[derive(Debug)]
struct Handle {
    mux: Mux,
    orders: mpsc::Sender<ToNode>,
    end: CancellationToken,
}

/// All open sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<HashMap<SessionId, Handle>>);

/// What the session's own task keeps; the session is forgotten when it is dropped.
#[derive(Debug)]
pub(crate) struct Registered<'a> {
    sessions: &'a Sessions,
    id: SessionId,
    /// Orders for a board.
    pub(crate) orders: mpsc::Receiver<ToNode>,
    /// Cancelled when the session is to end.
    pub(crate) end: CancellationToken,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Handle>> {
        // A panic elsewhere leaves the map as it is: entries only come and go.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn register(&self, id: SessionId, mux: Mux) -> Registered<'_> {
        let (sender, orders) = mpsc::channel(ORDERS);
        let end = CancellationToken::new();
        self.lock().insert(id, Handle { mux, orders: sender, end: end.clone() });
        Registered { sessions: self, id, orders, end }
    }

    pub(crate) fn to_node(&self, id: SessionId, message: ToNode) {
        if let Some(handle) = self.lock().get(&id)
            && handle.orders.try_send(message).is_err()
        {
            tracing::warn!("a board does not read its orders: ending its session");
            handle.end.cancel();
        }
    }

    pub(crate) fn close(&self, id: SessionId) {
        if let Some(handle) = self.lock().get(&id) {
            handle.end.cancel();
        }
    }

    /// To open streams on a board's session.
    pub(crate) fn mux(&self, id: SessionId) -> Option<Mux> {
        self.lock().get(&id).map(|handle| handle.mux.clone())
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.id);
    }
}
