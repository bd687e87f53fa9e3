//! Names of time servers: one question each to the network's own name servers, over UDP.
use domain::base::iana::{Class, Rtype};
use domain::base::{Message, MessageBuilder, Name};
use domain::rdata::A;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// How long one name server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Largest answer that is read (RFC 1035 §2.3.4).
const ANSWER_BYTES: usize = 512;
/// Addresses taken from one answer.
const MAX_ADDRESSES: usize = 4;

/// IPv4 addresses of `name`; none if nobody knows it.
pub(super) async fn addresses(name: &str, servers: &[SocketAddr]) -> Vec<Ipv4Addr> {
    for server in servers {
        match timeout(PATIENCE, ask(name, *server)).await {
            Ok(Some(found)) if !found.is_empty() => return found,
            Ok(_) | Err(_) => tracing::debug!(%server, "does not know {name}"),
        }
    }
    Vec::new()
}

async fn ask(name: &str, server: SocketAddr) -> Option<Vec<Ipv4Addr>> {
    let name: Name<Vec<u8>> = name.parse().ok()?;
    let mut number = [0; 2];
    getrandom::fill(&mut number).ok()?;
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(u16::from_be_bytes(number));
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((&name, Rtype::A)).ok()?;
    let question = builder.into_message();
    // Connected: datagrams of others do not come in.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(question.as_slice()).await.ok()?;
    let mut buffer = [0; ANSWER_BYTES];
    loop {
        let length = socket.recv(&mut buffer).await.ok()?;
        let Ok(answer) = Message::from_octets(buffer.get(..length)?) else { continue };
        if answer.is_answer(&question) {
            let records = answer.answer().ok()?.limit_to_in::<A>();
            let found = records.filter_map(|record| record.ok().filter(|record| record.class() == Class::IN));
            return Some(found.map(|record| record.data().addr()).take(MAX_ADDRESSES).collect());
        }
    }
}
