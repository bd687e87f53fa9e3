//! One forwarded connection to a port of the container.
use super::bridge::{Served, SshEvent};
use super::inbound::{Backlog, Inbound};
use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::compat::FuturesAsyncReadCompatExt as _;
use tokio_util::sync::CancellationToken;

/// Bytes that are carried at once.
const PIECE_BYTES: usize = 32 * 1024;

/// Carries a connection to a port inside. Only one that is answered is opened.
pub(super) async fn serve(
    served: &Served,
    channel: Channel<Msg>,
    port: u16,
    reply: ChannelOpenHandle,
    backlog: Backlog,
) {
    let stream = match served.container.open_port(port).await {
        Ok(stream) => stream.compat(),
        Err(error) => {
            served.report(SshEvent::Failed { reason: error.to_string(), told: false });
            return reply.reject(ChannelOpenFailure::ConnectFailed).await;
        }
    };
    reply.accept().await;
    let (reader, writer) = channel.split();
    let (from, to) = tokio::io::split(stream);
    carry(Inbound::new(reader, backlog), &writer, from, to).await;
    // If the client has gone there is nobody to tell.
    writer.close().await.ok();
}

/// Both directions, each to its own end. Either side may break off at any time; that ends both.
async fn carry(
    inbound: Inbound,
    writer: &ChannelWriteHalf<Msg>,
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
) {
    let said_all = CancellationToken::new();
    let outwards = async {
        if outwards(from, writer).await.is_ok() {
            said_all.cancelled().await;
        }
    };
    let abandoned = inbound.abandoned();
    tokio::select! {
        _ = inwards(inbound, to, &said_all) => {}
        () = outwards => {}
        () = abandoned => {}
    }
}

/// Goes on after the client has said all, to hear that it is gone.
async fn inwards(
    mut inbound: Inbound,
    mut to: impl AsyncWrite + Unpin,
    said_all: &CancellationToken,
) -> std::io::Result<()> {
    while let Some(message) = inbound.next().await {
        match message {
            ChannelMsg::Data { data } => to.write_all(&data).await?,
            ChannelMsg::Eof => {
                to.shutdown().await?;
                said_all.cancel();
            }
            ChannelMsg::Close => break,
            // Of no consequence here.
            _ => {}
        }
    }
    Ok(())
}

async fn outwards(
    mut from: impl AsyncRead + Unpin,
    writer: &ChannelWriteHalf<Msg>,
) -> Result<(), russh::Error> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = from.read(&mut piece).await?;
        match piece.get(..count).unwrap_or_default() {
            [] => return writer.eof().await,
            bytes => writer.data_bytes(bytes.to_vec()).await?,
        }
    }
}
