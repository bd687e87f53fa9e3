//! One end of the control socket.
use super::MAX_DATAGRAM;
use nix::errno::Errno;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use wherry_sys::{fd, fdpass};

/// Environment variable in which the service finds the number of its end.
pub const CONTROL_FD_ENV: &str = "WHERRY_CONTROL_FD";

/// One end of the control socket. Whether calls wait is the socket's flag, see
/// [`set_nonblocking`](Self::set_nonblocking).
#[derive(Debug)]
pub struct Endpoint(OwnedFd);

/// Why a message could not be sent or received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The other side is gone.
    #[error("the other end of the control socket is closed")]
    Closed,
    /// Nothing to receive, or no room to send, on a nonblocking socket.
    #[error("the control socket is not ready")]
    WouldBlock,
    /// A datagram above [`MAX_DATAGRAM`] or with too many descriptors.
    #[error("a control message exceeds {MAX_DATAGRAM} bytes or {} descriptors", fdpass::MAX_DESCRIPTORS)]
    TooLarge,
    /// The bytes are no message.
    #[error("a control message of {bytes} bytes does not decode")]
    Garbage {
        /// Length of the datagram.
        bytes: usize,
    },
    /// This process was not started by a supervisor.
    #[error("{CONTROL_FD_ENV} does not name a control socket: this command is started by `init`")]
    NotSupervised,
    /// The socket failed.
    #[error("control socket: {0}")]
    Call(#[from] wherry_sys::SysError),
}

impl Endpoint {
    /// Two connected ends, close-on-exec and blocking.
    ///
    /// # Errors
    /// [`ControlError::Call`].
    pub fn pair() -> Result<(Self, Self), ControlError> {
        let (a, b) = fdpass::seqpacket_pair()?;
        Ok((Self(a), Self(b)))
    }

    /// The end that the supervisor left open for this process. Call it once.
    ///
    /// # Errors
    /// [`ControlError::NotSupervised`] if there is none.
    pub fn from_env() -> Result<Self, ControlError> {
        let value = std::env::var(CONTROL_FD_ENV).map_err(|_| ControlError::NotSupervised)?;
        let number: RawFd = value.parse().map_err(|_| ControlError::NotSupervised)?;
        let socket = fd::inherited(number).map_err(|_| ControlError::NotSupervised)?;
        match getsockopt(&socket, sockopt::SockType) {
            Ok(SockType::SeqPacket) => Ok(Self(socket)),
            Ok(_) | Err(_) => Err(ControlError::NotSupervised),
        }
    }

    /// Whether [`send`](Self::send) and [`recv`](Self::recv) return [`ControlError::WouldBlock`] instead of waiting.
    ///
    /// # Errors
    /// [`ControlError::Call`].
    pub fn set_nonblocking(&self, on: bool) -> Result<(), ControlError> {
        Ok(fd::set_nonblocking(&self.0, on)?)
    }

    /// Sends one message with descriptors attached; the sender keeps its own copies.
    ///
    /// # Errors
    /// [`ControlError`]; after `WouldBlock` nothing was sent.
    pub fn send<M: Serialize>(
        &self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ControlError> {
        let mut buffer = [0; MAX_DATAGRAM];
        let bytes = postcard::to_slice(message, &mut buffer).map_err(|_| ControlError::TooLarge)?;
        fdpass::send(self.0.as_fd(), bytes, descriptors).map_err(classify)
    }

    /// Receives one message and the descriptors that came with it, close-on-exec.
    ///
    /// # Errors
    /// [`ControlError`]; after `Garbage` and `TooLarge` that one datagram is gone and its descriptors are closed.
    pub fn recv<M: DeserializeOwned>(&self) -> Result<(M, Vec<OwnedFd>), ControlError> {
        let mut buffer = [0; MAX_DATAGRAM];
        let got = match fdpass::recv(self.0.as_fd(), &mut buffer) {
            // The peer ended without reading everything, which is told once and before its own last messages.
            Err(error) if error.errno() == Errno::ECONNRESET => fdpass::recv(self.0.as_fd(), &mut buffer),
            other => other,
        };
        let got = got.map_err(classify)?;
        if got.truncated {
            return Err(ControlError::TooLarge);
        }
        // A datagram of no bytes is no message either, so reading it as the end is right for both cases.
        if got.len == 0 {
            return Err(ControlError::Closed);
        }
        let bytes = buffer.get(..got.len).ok_or(ControlError::TooLarge)?;
        match postcard::take_from_bytes(bytes) {
            Ok((message, [])) => Ok((message, got.descriptors)),
            Ok(_) | Err(_) => Err(ControlError::Garbage { bytes: got.len }),
        }
    }
}

fn classify(error: wherry_sys::SysError) -> ControlError {
    match error.errno() {
        Errno::EAGAIN => ControlError::WouldBlock,
        Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN => ControlError::Closed,
        Errno::EMSGSIZE | Errno::E2BIG => ControlError::TooLarge,
        _ => ControlError::Call(error),
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Endpoint {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<OwnedFd> for Endpoint {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl From<Endpoint> for OwnedFd {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.0
    }
}
