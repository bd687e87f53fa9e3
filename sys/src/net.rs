//! The little of networking that comes before netlink.
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixCredentials, getsockopt, socket, sockopt};
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd as _};

/// Brings up `lo` of the calling thread's network namespace; the kernel gives it its addresses.
///
/// # Errors
/// [`SysError::Socket`], [`SysError::Ioctl`].
pub fn loopback_up() -> Result<()> {
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    let control = control.map_err(SysError::Socket)?;
    // SAFETY: ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from as libc::c_char;
    }
    let raw = control.as_raw_fd();
    // SAFETY: both ioctls take an ifreq with a terminated name (netdevice(7)); flags are the union's valid member after
    // SIOCGIFFLAGS.
    unsafe {
        Errno::result(libc::ioctl(raw, libc::SIOCGIFFLAGS as _, &raw mut request))
            .map_err(SysError::Ioctl)?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        Errno::result(libc::ioctl(raw, libc::SIOCSIFFLAGS as _, &raw mut request))
            .map_err(SysError::Ioctl)?;
    }
    Ok(())
}

/// Who connected the other end of a unix socket, as the kernel saw it then.
///
/// # Errors
/// [`SysError::PeerCredentials`].
pub fn peer_credentials(unix_socket: impl AsFd) -> Result<UnixCredentials> {
    getsockopt(&unix_socket, sockopt::PeerCredentials).map_err(SysError::PeerCredentials)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn loopback_works_in_a_new_namespace() {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            assert!(TcpStream::connect(address).is_err());
            loopback_up().unwrap();
            loopback_up().unwrap();
            TcpStream::connect(address).unwrap();
        });
        thread.join().unwrap();
    }

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (end, _other) = crate::fdpass::seqpacket_pair().unwrap();
        assert_eq!(peer_credentials(&end).unwrap().pid(), nix::unistd::getpid().as_raw());
        assert!(matches!(peer_credentials(tempfile::tempfile().unwrap()), Err(SysError::PeerCredentials(_))));
    }
}
