//! As little HTTP as a check needs.
use crate::failure::Failure;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// A port that nobody uses at this moment.
pub fn free_port() -> Result<u16, Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Failure::io("find a free port"))?;
    listener.local_addr().map(|address| address.port()).map_err(Failure::io("find a free port"))
}

/// A web page, headers and all.
pub fn get(address: SocketAddr) -> std::io::Result<String> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    get_on(stream)
}

/// The same of `host`, port 80, through a SOCKS5 proxy (RFC 1928).
pub fn get_through(proxy: SocketAddr, host: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&proxy, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let length = u8::try_from(host.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&[5, 1, 0, 5, 1, 0, 3, length], host.as_bytes(), &[0, 80]].concat())?;
    let mut answers = [0; 12];
    stream.read_exact(&mut answers)?;
    match answers {
        [5, 0, 5, 0, ..] => get_on(stream),
        _ => Err(std::io::Error::other(format!("the proxy refuses: {answers:?}"))),
    }
}

fn get_on(mut stream: TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: web\r\n\r\n")?;
    let mut page = Vec::new();
    stream.take(1 << 20).read_to_end(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}
