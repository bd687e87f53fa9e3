//! Connections.
use super::{admitted, open};
use crate::serve::listen::{ACCEPT_PAUSE, watch_peer};
use crate::serve::{Shared, route};
use crate::state::Input;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::compat::FuturesAsyncReadCompatExt;
use wherry_protocol::io::SessionError;
use wherry_protocol::message::PublishedPort;

/// Serves for ever.
pub(super) async fn serve(shared: &Arc<Shared>, listener: &TcpListener, port: &PublishedPort) {
    let places = Arc::new(Semaphore::new(shared.limits.visitors_per_port));
    let mut visitors = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            Some(_) = visitors.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (tcp, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Of those who are there nobody suffers.
                tracing::warn!("cannot accept a connection to the published port {}: {error}", port.port);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        watch_peer(&tcp);
        if !admitted(port, from.ip()) {
            continue;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (shared, port) = (Arc::clone(shared), port.clone());
        visitors.spawn(async move {
            let _place = place;
            if let Err(error) = visit(&shared, tcp, from, &port).await {
                tracing::debug!("a connection to the published port {} came to nothing: {error}", port.port);
            }
        });
    }
}

async fn visit(
    shared: &Shared,
    mut tcp: TcpStream,
    from: SocketAddr,
    port: &PublishedPort,
) -> Result<(), SessionError> {
    let (stream, _place) =
        open(shared, &shared.visits, |request| Input::Visit { request, port: port.key() }).await?;
    let mut stream = stream.compat();
    if port.proxy {
        stream.write_all(&proxy_header(from, tcp.local_addr()?)).await?;
    }
    let hung_up = stream.get_ref().hung_up();
    let copied =
        copy_bidirectional_with_sizes(&mut tcp, &mut stream, route::BUFFER_BYTES, route::BUFFER_BYTES);
    let result = route::until_hung_up(copied, [hung_up]).await;
    if result.is_err() {
        // Cut off is not ended: the visitor must be able to tell.
        tcp.set_zero_linger().ok();
    }
    Ok(result?)
}

/// PROXY protocol, version 2, section 2.2: signature, version and command (PROXY), family and protocol (TCP over IPv4 or IPv6),
/// length, then both addresses and both ports.
fn proxy_header(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    const VERSION_2_PROXY: u8 = 0x21;
    const TCP_OVER_IPV4: u8 = 0x11;
    const TCP_OVER_IPV6: u8 = 0x21;
    let (family, addresses) = match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (TCP_OVER_IPV4, [from.octets(), to.octets()].concat()),
        (from, to) => (TCP_OVER_IPV6, [as_ipv6(from), as_ipv6(to)].concat()),
    };
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let length = (addresses.len() + ports.len()) as u16;
    let head = [VERSION_2_PROXY, family];
    [SIGNATURE, &head, &length.to_be_bytes(), &addresses, &ports].concat()
}

fn as_ipv6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_haproxy_writes_them() {
        let header = |from: &str, to: &str| proxy_header(from.parse().unwrap(), to.parse().unwrap());
        let four = header("192.0.2.1:258", "[::ffff:198.51.100.2]:80");
        assert_eq!(four[..12], [0x0d, 0x0a, 0x0d, 0x0a, 0, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a]);
        assert_eq!(four[12..], [0x21, 0x11, 0, 12, 192, 0, 2, 1, 198, 51, 100, 2, 1, 2, 0, 80]);
        let six = header("[2001:db8::1]:1", "198.51.100.2:2");
        assert_eq!((six[12], six[13], six[15], six.len()), (0x21, 0x21, 36, 52));
    }
}
