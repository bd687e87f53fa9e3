//! Datagrams with descriptors attached (`SCM_RIGHTS`, unix(7)), close-on-exec by construction.
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::io::IoSlice;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

/// Most descriptors in one datagram, far below the kernel's `SCM_MAX_FD` of 253: a peer cannot fill our table faster.
pub const MAX_DESCRIPTORS: usize = 32;

/// Room for one `SCM_RIGHTS` message of [`MAX_DESCRIPTORS`], in words so that it is aligned for `cmsghdr`.
const CONTROL_WORDS: usize = (MAX_DESCRIPTORS * size_of::<RawFd>() + 2 * size_of::<libc::cmsghdr>()) / 8 + 1;

/// One datagram as it arrived.
#[derive(Debug)]
pub struct Received {
    /// Bytes written to the buffer; 0 means that the peer has closed.
    pub len: usize,
    /// Descriptors that came with it, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// The datagram was longer than the buffer, or carried more than [`MAX_DESCRIPTORS`].
    pub truncated: bool,
}

/// Two connected `SOCK_SEQPACKET` sockets, close-on-exec.
///
/// # Errors
/// [`SysError::Socketpair`].
pub fn seqpacket_pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(SysError::Socketpair)
}

/// Sends one datagram, whole or not at all.
///
/// # Errors
/// [`SysError::Sendmsg`]; `EAGAIN` on a full nonblocking socket, `EPIPE` when the peer is gone (no signal is raised),
/// `E2BIG` for more than [`MAX_DESCRIPTORS`].
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(SysError::Sendmsg(Errno::E2BIG));
    }
    let iov = [IoSlice::new(bytes)];
    let mut control = [0_u64; CONTROL_WORDS];
    // SAFETY: msghdr is plain data for which all zeroes is a valid value (no name, no iovec, no control).
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = iov.as_ptr().cast_mut().cast();
    header.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let payload = size_of::<RawFd>() * descriptors.len();
        header.msg_control = control.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE is arithmetic only.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(payload as u32) } as _;
        // SAFETY: msg_control is aligned and at least msg_controllen long (CONTROL_WORDS holds MAX_DESCRIPTORS), so
        // the first header exists and its data has room for `payload` bytes.
        unsafe {
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(payload as u32) as _;
            let data = libc::CMSG_DATA(message).cast::<RawFd>();
            for (index, descriptor) in descriptors.iter().enumerate() {
                data.add(index).write_unaligned(descriptor.as_raw_fd());
            }
        }
    }
    retry(|| {
        // SAFETY: header points to `iov` and `control`, both alive; the kernel only reads them.
        unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) }
    })
    .map(drop)
    .map_err(SysError::Sendmsg)
}

/// Receives one datagram into `buffer`. Every descriptor that arrives is owned by the result, also when it is truncated.
///
/// # Errors
/// [`SysError::Recvmsg`]; `EAGAIN` on an empty nonblocking socket.
pub fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received> {
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = [0_u64; CONTROL_WORDS];
    // SAFETY: as in `send`.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = ptr::addr_of_mut!(iov);
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE is arithmetic only.
    header.msg_controllen = unsafe { libc::CMSG_SPACE((MAX_DESCRIPTORS * size_of::<RawFd>()) as u32) } as _;
    let len = retry(|| {
        // SAFETY: header points to the caller's buffer and to `control` with their true lengths.
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) }
    })
    .map_err(SysError::Recvmsg)?;
    // SAFETY: recvmsg has just filled the header and its control buffer, which is still alive.
    let descriptors = unsafe { take_descriptors(&header) };
    Ok(Received { len, descriptors, truncated: header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 })
}

/// # Safety
/// `header` is as a successful recvmsg left it, its control buffer is alive, and this is called once for it: the
/// descriptors in it become owned.
unsafe fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut taken = Vec::new();
    // SAFETY: the kernel wrote well-formed control messages, and CMSG_NXTHDR stays within msg_controllen.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::SOL_SOCKET && (*message).cmsg_type == libc::SCM_RIGHTS {
                let bytes = ((*message).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                let data = libc::CMSG_DATA(message).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    taken.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    taken
}

/// Repeats a call that a signal interrupted.
fn retry(mut call: impl FnMut() -> libc::ssize_t) -> nix::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(len) => return Ok(len),
            Err(_) if Errno::last() == Errno::EINTR => {}
            Err(_) => return Err(Errno::last()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::os::fd::AsFd as _;

    #[test]
    fn descriptors_arrive_in_order_and_close_on_exec() {
        let (a, b) = seqpacket_pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        send(a.as_fd(), b"two", &[write.as_fd(), read.as_fd()]).unwrap();
        drop((read, write));
        let mut buffer = [0; 8];
        let got = recv(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..got.len], got.truncated, got.descriptors.len()), (&b"two"[..], false, 2));
        for fd in &got.descriptors {
            let flags = FdFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC));
        }
        nix::unistd::write(&got.descriptors[0], b"!").unwrap();
        assert_eq!(nix::unistd::read(&got.descriptors[1], &mut buffer), Ok(1));
    }

    #[test]
    fn a_long_datagram_is_reported_as_truncated() {
        let (a, b) = seqpacket_pair().unwrap();
        send(a.as_fd(), &[7; 100], &[]).unwrap();
        let got = recv(b.as_fd(), &mut [0; 10]).unwrap();
        assert!(got.truncated && got.len == 10);
    }

    #[test]
    fn too_many_descriptors_are_refused_by_the_sender() {
        let (a, b) = seqpacket_pair().unwrap();
        let many = vec![b.as_fd(); MAX_DESCRIPTORS + 1];
        assert_eq!(send(a.as_fd(), b"x", &many), Err(SysError::Sendmsg(Errno::E2BIG)));
        send(a.as_fd(), b"x", &many[1..]).unwrap();
        assert_eq!(recv(b.as_fd(), &mut [0; 4]).unwrap().descriptors.len(), MAX_DESCRIPTORS);
    }

    /// Somebody who does not use our `send` can attach more; nothing may leak.
    #[test]
    fn too_many_descriptors_from_a_stranger_are_truncated_and_closed() {
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        let (a, b) = seqpacket_pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        let many = vec![write.as_raw_fd(); MAX_DESCRIPTORS * 2];
        let rights = [ControlMessage::ScmRights(&many)];
        sendmsg::<()>(a.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None).unwrap();
        let got = recv(b.as_fd(), &mut [0; 4]).unwrap();
        assert!(got.truncated && got.descriptors.len() <= MAX_DESCRIPTORS);
        drop((got, write));
        assert_eq!(nix::unistd::read(&read, &mut [0; 1]), Ok(0), "a copy of the write end leaked");
    }

    #[test]
    fn a_closed_peer_reads_as_zero_and_writes_as_epipe() {
        let (a, b) = seqpacket_pair().unwrap();
        drop(b);
        assert_eq!(recv(a.as_fd(), &mut [0; 4]).unwrap().len, 0);
        assert_eq!(send(a.as_fd(), b"x", &[]), Err(SysError::Sendmsg(Errno::EPIPE)));
    }
}
