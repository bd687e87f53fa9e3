//! The way of this board's containers to the web endpoint: ports 80 and 443 of the board's address on the bridge. What they
//! say goes to the broker as streams of the session, with the name of who says it.
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::compat::FuturesAsyncReadCompatExt;
use wherry_net::join::{Patience, join};
use wherry_protocol::io::{self as session, Mux, SessionError};
use wherry_protocol::message::{NetworkDesired, NodeCall, Reply};
use wherry_protocol::{ContainerId, Limits};

/// Ports of the web.
const PORTS: [(u16, bool); 2] = [(80, false), (443, true)];
/// Time between attempts to listen: the board's address may not be there yet.
const RETRY: Duration = Duration::from_secs(1);
/// How long the broker may think about a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections of one container at once.
const PER_CALLER: usize = 64;

/// Containers that rules of the web endpoint name, by their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Callers(BTreeMap<Ipv4Addr, ContainerId>);

impl Callers {
    /// From what the broker wants of the board. `here` says which container has an address now.
    #[must_use]
    pub fn of(network: &NetworkDesired, here: &BTreeMap<Ipv4Addr, ContainerId>) -> Self {
        let now =
            network.callers.iter().filter(|caller| here.get(&caller.address) == Some(&caller.container));
        Self(now.map(|caller| (caller.address, caller.container)).collect())
    }

    /// Whether nobody may ask.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Serves on the board's `address` for as long as it is polled. Listens while anybody may ask.
pub async fn serve(
    address: Ipv4Addr,
    callers: watch::Receiver<Arc<Callers>>,
    current: watch::Receiver<Option<Mux>>,
) {
    serve_on(address.into(), PORTS, callers, current).await;
}

/// The same on ports of one's own, each with whether it is for TLS.
pub async fn serve_on(
    address: IpAddr,
    ports: [(u16, bool); 2],
    callers: watch::Receiver<Arc<Callers>>,
    current: watch::Receiver<Option<Mux>>,
) {
    let open = Open::default();
    let listen = |(port, tls)| {
        let door = Door { at: SocketAddr::new(address, port), tls, callers: callers.clone() };
        door.keep(current.clone(), open.clone())
    };
    let [plain, encrypted] = ports.map(listen);
    tokio::join!(plain, encrypted);
}

/// Connections by caller.
#[derive(Debug, Clone, Default)]
struct Open(Arc<Mutex<HashMap<ContainerId, usize>>>);

/// One connection's place.
#[derive(Debug)]
struct Place(Open, ContainerId);

impl Open {
    fn enter(&self, caller: ContainerId) -> Option<Place> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(caller).or_default();
        if *count >= PER_CALLER {
            return None;
        }
        *count += 1;
        Some(Place(self.clone(), caller))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.1);
            }
        }
    }
}

/// One of the two ports.
struct Door {
    at: SocketAddr,
    tls: bool,
    callers: watch::Receiver<Arc<Callers>>,
}

impl Door {
    async fn keep(mut self, current: watch::Receiver<Option<Mux>>, open: Open) {
        let mut silent = false;
        loop {
            if self.callers.wait_for(|callers| !callers.is_empty()).await.is_err() {
                return;
            }
            match TcpListener::bind(self.at).await {
                Ok(listener) => {
                    silent = false;
                    let mut callers = self.callers.clone();
                    tokio::select! {
                        _ = callers.wait_for(|callers| callers.is_empty()) => continue,
                        error = self.accept(&listener, &current, &open) => {
                            tracing::warn!("the way to the web endpoint at {}: {error}", self.at);
                        }
                    }
                }
                Err(error) if !silent => {
                    let at = self.at;
                    tracing::warn!("the way to the web endpoint cannot begin at {at}, trying again: {error}");
                    silent = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Until the socket fails.
    async fn accept(
        &self,
        listener: &TcpListener,
        current: &watch::Receiver<Option<Mux>>,
        open: &Open,
    ) -> io::Error {
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if error.raw_os_error().is_none() => continue,
                Err(error) => return error,
            };
            let Some(place) = self.admit(from, open) else { continue };
            // Without a broker there is no endpoint either.
            let Some(mux) = current.borrow().clone() else { continue };
            let tls = self.tls;
            tokio::spawn(async move {
                if let Err(error) = carry(&mux, stream, place.1, tls).await {
                    tracing::debug!(container = %place.1, "to the web endpoint: {error}");
                }
            });
        }
    }

    /// Who is not named hears nothing.
    fn admit(&self, from: SocketAddr, open: &Open) -> Option<Place> {
        let IpAddr::V4(address) = from.ip().to_canonical() else { return None };
        let caller = self.callers.borrow().0.get(&address).copied()?;
        open.enter(caller)
    }
}

async fn carry(mux: &Mux, stream: TcpStream, container: ContainerId, tls: bool) -> Result<(), SessionError> {
    let ask = async {
        let mut broker = mux.open().await?;
        session::send(&mut broker, &NodeCall::Web { container, tls }).await?;
        match session::recv(&mut broker, Limits::DEFAULT.message_bytes).await? {
            Some(Reply::Done) => Ok(broker),
            Some(Reply::Error(error)) => Err(SessionError::Refused(error)),
            Some(_) | None => Err(SessionError::Closed),
        }
    };
    let broker = timeout(PATIENCE, ask).await.map_err(|_| SessionError::Closed)??.compat();
    Ok(join(stream, broker, Patience::WEB).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_protocol::message::WebCaller;

    #[test]
    fn only_who_has_the_address_now_is_a_caller() {
        let caller = |id, last| WebCaller {
            container: ContainerId(id),
            address: Ipv4Addr::new(10, 1, 0, last),
            hosts: vec!["www.example.org".into()],
        };
        let network =
            NetworkDesired { callers: vec![caller(1, 2), caller(2, 3)], ..NetworkDesired::default() };
        let here = BTreeMap::from([
            (Ipv4Addr::new(10, 1, 0, 2), ContainerId(1)),
            (Ipv4Addr::new(10, 1, 0, 3), ContainerId(9)),
        ]);
        let callers = Callers::of(&network, &here);
        assert_eq!(callers.0, BTreeMap::from([(Ipv4Addr::new(10, 1, 0, 2), ContainerId(1))]));
        assert!(Callers::of(&NetworkDesired::default(), &here).is_empty());
    }

    #[test]
    fn one_caller_cannot_have_all_places() {
        let open = Open::default();
        let places: Vec<_> = (0..PER_CALLER).filter_map(|_| open.enter(ContainerId(1))).collect();
        assert_eq!(places.len(), PER_CALLER);
        assert!(open.enter(ContainerId(1)).is_none());
        assert!(open.enter(ContainerId(2)).is_some());
        drop(places);
        assert!(open.enter(ContainerId(1)).is_some());
    }
}
