//! TCP connections and UDP sockets from inside a container's network namespace.
use super::namespace::within;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::BorrowedFd;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

/// Connects to `to` from within `namespace` (a pidfd or a namespace's file).
///
/// Only the socket is made in there, on a thread of its own; it keeps its namespace and is then used like any other.
///
/// # Errors
/// As setns(2), socket(2) and connect(2).
pub async fn connect(namespace: BorrowedFd<'_>, to: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = within(namespace, || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        io::Result::Ok(socket)
    })
    .map_err(io::Error::from)??;
    TcpSocket::from_std_stream(socket.into()).connect(SocketAddr::V4(to)).await
}

/// A UDP socket within `namespace` that sends to `to` and hears only from there.
///
/// # Errors
/// As setns(2), socket(2) and connect(2).
pub async fn connect_udp(namespace: BorrowedFd<'_>, to: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = within(namespace, || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SocketAddr::V4(to).into())?;
        io::Result::Ok(socket)
    })
    .map_err(io::Error::from)??;
    UdpSocket::from_std(socket.into())
}
