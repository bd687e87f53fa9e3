//! The handshake over a transport.
use super::error::SessionError;
use super::now_ms;
use super::secure::Secure;
use crate::handshake::{
    self, CookieJar, HEADER_BYTES, HELLO_BYTES, HandshakeError, INITIATE_BYTES, Kind, WELCOME_BYTES,
    check_header,
};
use crate::key::{PublicKey, Random, SecretKey};
use crate::limits::Limits;
use crate::session::Read;
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};

/// What a server needs to accept sessions; one for all connections of a process.
#[derive(Debug)]
pub struct ServerKeys {
    secret: SecretKey,
    public: PublicKey,
    jar: CookieJar,
}

impl ServerKeys {
    /// With the server's long-term key, and fresh keys for cookies.
    pub fn new(secret: SecretKey, random: &mut dyn Random) -> Self {
        let public = secret.public();
        Self { secret, public, jar: CookieJar::new(now_ms(), random) }
    }

    /// The server's identity.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }
}

/// Dials: proves to `transport`'s other end that we hold `me`, and makes sure that it holds the key of `server`.
///
/// Never ends by itself if the peer is silent: bound it with a timeout.
pub async fn connect<T>(
    transport: T,
    me: &SecretKey,
    server: &PublicKey,
    random: &mut dyn Random,
) -> Result<Secure<T>, SessionError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    connect_with(transport, me, server, random, &Limits::DEFAULT).await
}

/// [`connect`] with other limits than the default ones.
pub async fn connect_with<T>(
    mut transport: T,
    me: &SecretKey,
    server: &PublicKey,
    random: &mut dyn Random,
    limits: &Limits,
) -> Result<Secure<T>, SessionError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (state, hello) = handshake::greet(me, server, random)?;
    transport.write_all(&hello).await?;
    transport.flush().await?;
    let welcome = read_message::<WELCOME_BYTES, _>(&mut transport, Kind::Welcome).await?;
    let (mut session, initiate) = state.welcome(&welcome, now_ms(), limits)?;
    transport.write_all(&initiate).await?;
    transport.flush().await?;
    while !session.is_ready() {
        let count = transport.read(session.space()).await?;
        if count == 0 {
            return Err(SessionError::Closed);
        }
        session.received(count);
        match session.read(&mut [], now_ms(), random)? {
            Read::Data(_) | Read::Starved => {}
            Read::End => return Err(SessionError::Closed),
        }
    }
    Ok(Secure::new(transport, session))
}

/// Accepts: proves that we hold the server's key, and learns the peer's key, proven, as [`Secure::peer`]. Whether
/// that key may do anything is for the caller to decide next.
///
/// Never ends by itself if the peer is silent: bound it with a timeout.
pub async fn accept<T>(
    transport: T,
    server: &ServerKeys,
    random: &mut dyn Random,
) -> Result<Secure<T>, SessionError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    accept_with(transport, server, random, &Limits::DEFAULT).await
}

/// [`accept`] with other limits than the default ones.
pub async fn accept_with<T>(
    mut transport: T,
    server: &ServerKeys,
    random: &mut dyn Random,
    limits: &Limits,
) -> Result<Secure<T>, SessionError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    let greeted = match read_message::<HELLO_BYTES, _>(&mut transport, Kind::Hello).await {
        Ok(hello) => handshake::welcome(&hello, &server.secret, &server.jar, now_ms(), random),
        Err(ReadError::Handshake(error)) => Err(error),
        Err(ReadError::Io(error)) => return Err(error.into()),
    };
    let (state, welcome) = match greeted {
        Ok(greeted) => greeted,
        Err(error) => {
            refuse(&mut transport, error).await;
            return Err(error.into());
        }
    };
    transport.write_all(&welcome).await?;
    transport.flush().await?;
    let initiate = read_message::<INITIATE_BYTES, _>(&mut transport, Kind::Initiate).await?;
    let session = state.initiate(&initiate, &server.public, &server.jar, now_ms(), limits)?;
    let mut secure = Secure::new(transport, session);
    secure.flush().await?;
    Ok(secure)
}

/// Turns a connection away before any work is done for it: the peer learns that we are busy.
pub async fn refuse_busy<T>(mut transport: T)
where
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    refuse(&mut transport, HandshakeError::Busy).await;
}

// Tells the peer why, if that helps, and closes. That this may fail is no news: the connection is given up anyway.
async fn refuse<T: AsyncWrite + Unpin>(transport: &mut T, error: HandshakeError) {
    if let Some(notice) = handshake::notice(error) {
        let told = transport.write_all(&notice).await.is_ok() && transport.flush().await.is_ok();
        if !told {
            return;
        }
    }
    transport.close().await.unwrap_or_default();
}

enum ReadError {
    Io(std::io::Error),
    Handshake(HandshakeError),
}

impl From<ReadError> for SessionError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => error.into(),
            ReadError::Handshake(error) => error.into(),
        }
    }
}

// Reads a message of fixed length; refuses it after its first 8 bytes if those are wrong, so that a browser or an
// older peer is not waited for.
async fn read_message<const N: usize, T>(transport: &mut T, kind: Kind) -> Result<[u8; N], ReadError>
where
    T: AsyncRead + Unpin,
{
    let mut message = [0; N];
    let mut filled = 0;
    let mut checked = false;
    while filled < N {
        let place = message.get_mut(filled..).unwrap_or_default();
        let count = transport.read(place).await.map_err(ReadError::Io)?;
        if count == 0 {
            return Err(ReadError::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        filled += count;
        if !checked && filled >= HEADER_BYTES {
            let header = message.first_chunk().ok_or(ReadError::Handshake(HandshakeError::Malformed))?;
            check_header(*header, kind).map_err(ReadError::Handshake)?;
            checked = true;
        }
    }
    Ok(message)
}
