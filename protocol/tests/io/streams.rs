//! Streams: many at once, slow ones, half-closed ones, and peers that overdo it.
use crate::{Ends, mux_pair, mux_pair_with_drivers, within};
use futures_util::future::join_all;
use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};
use std::io::ErrorKind;
use std::time::Duration;
use wherry_protocol::Limits;
use wherry_protocol::io::{Incoming, SessionError, Stream};

fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| ((i * 31 + seed * 7) % 251) as u8).collect()
}

/// Sends back all that comes on every stream.
fn echo(mut incoming: Incoming) {
    tokio::spawn(async move {
        while let Some(stream) = incoming.next().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                // A peer that resets its stream ends the copy; that is its right.
                if futures_util::io::copy(&mut reader, &mut writer).await.is_ok() {
                    writer.close().await.unwrap_or_default();
                }
            });
        }
    });
}

async fn exchange(stream: Stream, data: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = stream.split();
    let mut got = Vec::new();
    let write = async {
        writer.write_all(data).await.unwrap();
        writer.close().await.unwrap();
    };
    let (_, read) = futures_util::join!(write, reader.read_to_end(&mut got));
    read.unwrap();
    got
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_streams_at_once() {
    within(async {
        let ((mux, _incoming), (_mux, incoming)) = mux_pair(&Limits::DEFAULT).await;
        echo(incoming);
        let all = (0..300usize).map(|i| {
            let mux = mux.clone();
            async move {
                let data = pattern(i, i * 97);
                let stream = mux.open().await.unwrap();
                let got = exchange(stream, &data).await;
                assert!(got == data, "stream {i}");
            }
        });
        join_all(all).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_change_under_load_and_nobody_notices() {
    within(async {
        let limits = Limits { rekey_records: 128, record_bytes: 1024, ..Limits::DEFAULT };
        let ((mux, _incoming), (_mux, incoming)) = mux_pair(&limits).await;
        echo(incoming);
        let all = (0..4usize).map(|i| {
            let mux = mux.clone();
            async move {
                // Hundreds of records each way: a dozen exchanges, some of them crossing.
                let data = pattern(i, 400_000);
                let got = exchange(mux.open().await.unwrap(), &data).await;
                assert!(got == data, "stream {i}");
            }
        });
        join_all(all).await;
    })
    .await;
}

#[tokio::test]
async fn a_stalled_reader_holds_up_only_its_own_stream_and_bounded_memory() {
    within(async {
        let ((mux, _incoming), (_mux, mut incoming)) = mux_pair(&Limits::DEFAULT).await;
        let mut stalled = mux.open().await.unwrap();
        let mut accepted = 0;
        let block = vec![1; 64 * 1024];
        // The peer never reads from this one: writing must stop, and soon.
        while let Ok(count) = tokio::time::timeout(Duration::from_millis(200), stalled.write(&block)).await {
            accepted += count.unwrap();
            assert!(accepted < 1024 * 1024, "no back-pressure");
        }
        assert!(accepted >= 256 * 1024, "the first window is 256 KiB, not {accepted}");
        let held = incoming.next().await.unwrap();

        let mut lively = mux.open().await.unwrap();
        let data = pattern(1, 4_000_000);
        let expected = data.clone();
        let writer = tokio::spawn(async move {
            lively.write_all(&data).await.unwrap();
            lively.close().await.unwrap();
            lively
        });
        let mut other = incoming.next().await.unwrap();
        let mut got = Vec::new();
        other.read_to_end(&mut got).await.unwrap();
        assert!(got == expected);
        writer.await.unwrap();
        drop(held);
    })
    .await;
}

#[tokio::test]
async fn one_direction_can_end_before_the_other() {
    within(async {
        let ((mux, _incoming), (_mux, mut incoming)) = mux_pair(&Limits::DEFAULT).await;
        let mut a = mux.open().await.unwrap();
        a.write_all(b"question").await.unwrap();
        a.close().await.unwrap();
        a.close().await.unwrap();
        assert_eq!(a.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        let mut b = incoming.next().await.unwrap();
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"question");
        b.write_all(b"answer").await.unwrap();
        b.close().await.unwrap();
        let mut got = Vec::new();
        a.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"answer");
    })
    .await;
}

#[tokio::test]
async fn a_stream_without_a_byte_still_begins_and_ends() {
    within(async {
        let ((mux, _incoming), (_mux, mut incoming)) = mux_pair(&Limits::DEFAULT).await;
        let mut a = mux.open().await.unwrap();
        a.close().await.unwrap();
        let mut b = incoming.next().await.unwrap();
        assert_eq!(b.read(&mut [0; 9]).await.unwrap(), 0);
        // Reading first works too: the peer is told of the stream.
        let mut c = mux.open().await.unwrap();
        let server = async {
            let mut d = incoming.next().await.unwrap();
            d.write_all(b"first").await.unwrap();
            d.close().await.unwrap();
        };
        let mut got = Vec::new();
        let ((), read) = futures_util::join!(server, c.read_to_end(&mut got));
        read.unwrap();
        assert_eq!(got, b"first");
    })
    .await;
}

#[tokio::test]
async fn a_dropped_stream_is_a_reset_not_an_end() {
    within(async {
        let ((mux, _incoming), (_mux, mut incoming)) = mux_pair(&Limits::DEFAULT).await;
        let mut a = mux.open().await.unwrap();
        a.write_all(b"half a mess").await.unwrap();
        drop(a);
        let mut b = incoming.next().await.unwrap();
        let mut got = Vec::new();
        let error = b.read_to_end(&mut got).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(got, b"half a mess");
    })
    .await;
}

#[tokio::test]
async fn a_cut_connection_resets_streams_and_ends_incoming() {
    within(async {
        let (Ends { mux, driver, .. }, mut other) = mux_pair_with_drivers(&Limits::DEFAULT).await;
        let mut a = mux.open().await.unwrap();
        a.write_all(b"x").await.unwrap();
        let mut b = other.incoming.next().await.unwrap();
        // Ours closed: even then a cut is told from an end.
        b.close().await.unwrap();
        b.read_exact(&mut [0]).await.unwrap();
        driver.abort();
        assert_eq!(b.read(&mut [0; 9]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(other.incoming.next().await.is_none());
        assert!(matches!(other.driver.await.unwrap(), Err(SessionError::Closed)));
        assert!(matches!(other.mux.open().await, Err(SessionError::Closed)));
        assert_eq!(a.read(&mut [0; 9]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    })
    .await;
}

#[tokio::test]
async fn closing_sends_what_was_written_and_ends_both_sides_in_order() {
    within(async {
        let (ends, mut other) = mux_pair_with_drivers(&Limits::DEFAULT).await;
        let mut a = ends.mux.open().await.unwrap();
        a.write_all(&[7; 100_000]).await.unwrap();
        a.close().await.unwrap();
        ends.mux.close();
        let mut b = other.incoming.next().await.unwrap();
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), 100_000);
        assert!(other.incoming.next().await.is_none());
        ends.driver.await.unwrap().unwrap();
        other.driver.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_session_nobody_holds_ends_by_itself() {
    within(async {
        let (Ends { mux, incoming, driver }, mut other) = mux_pair_with_drivers(&Limits::DEFAULT).await;
        let mut last = mux.open().await.unwrap();
        drop((mux, incoming));
        last.write_all(b"the last stream keeps it open").await.unwrap();
        last.close().await.unwrap();
        let mut b = other.incoming.next().await.unwrap();
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"the last stream keeps it open");
        drop(last);
        driver.await.unwrap().unwrap();
        assert!(other.incoming.next().await.is_none());
    })
    .await;
}

#[tokio::test]
async fn too_many_own_streams_are_an_error_that_passes() {
    within(async {
        let limits = Limits { streams: 4, ..Limits::DEFAULT };
        let ((mux, _incoming), (_mux, incoming)) = mux_pair(&limits).await;
        echo(incoming);
        for _ in 0..10 {
            let mut streams = Vec::new();
            for _ in 0..4 {
                streams.push(mux.open().await.unwrap());
            }
            assert!(matches!(mux.open().await, Err(SessionError::TooManyStreams { limit: 4 })));
            let data = pattern(3, 1000);
            assert_eq!(exchange(streams.pop().unwrap(), &data).await, data);
        }
    })
    .await;
}

#[tokio::test]
async fn too_many_streams_of_the_peer_are_reset_and_the_session_lives() {
    within(async {
        // The peer believes in more streams than we allow.
        let generous = Limits { streams: 100, ..Limits::DEFAULT };
        let strict = Limits { streams: 4, ..Limits::DEFAULT };
        let ((mux, _incoming), (_mux, mut incoming)) = crate::mux_pair_of(&generous, &strict).await;
        let mut streams = Vec::new();
        for _ in 0..6 {
            let mut stream = mux.open().await.unwrap();
            stream.write_all(b"x").await.unwrap();
            streams.push(stream);
        }
        let mut taken = Vec::new();
        for _ in 0..4 {
            taken.push(incoming.next().await.unwrap());
        }
        for stream in &mut streams[4..] {
            assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        // Room again, and it is used.
        taken.clear();
        streams.clear();
        let mut stream = mux.open().await.unwrap();
        stream.write_all(b"again").await.unwrap();
        let mut b = incoming.next().await.unwrap();
        let mut got = [0; 5];
        b.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"again");
    })
    .await;
}

#[tokio::test]
async fn some_streams_are_kept_for_others_and_the_limit_moves() {
    within(async {
        let limits = Limits { streams: 8, ..Limits::DEFAULT };
        let ((mux, _incoming), (_mux, _others)) = mux_pair(&limits).await;
        mux.limit_streams(4);
        let _first = mux.open_sparing(2).await.unwrap();
        let _second = mux.open_sparing(2).await.unwrap();
        let refused = mux.open_sparing(2).await;
        assert!(matches!(refused, Err(SessionError::TooManyStreams { limit: 4 })), "{refused:?}");
        let _third = mux.open().await.unwrap();
        let _fourth = mux.open().await.unwrap();
        assert!(mux.open().await.is_err());
        // Never more than the session was made for.
        mux.limit_streams(100);
        let mut more = Vec::new();
        while let Ok(stream) = mux.open().await {
            more.push(stream);
        }
        assert_eq!(more.len(), 4);
    })
    .await;
}

#[tokio::test]
async fn a_hang_up_is_noticed_by_those_who_do_not_read() {
    within(async {
        let ((mux, _incoming), (_mux, mut incoming)) = mux_pair(&Limits::DEFAULT).await;
        let mut open = async || {
            let mut mine = mux.open().await.unwrap();
            mine.write_all(b"unread").await.unwrap();
            (mine, incoming.next().await.unwrap())
        };
        let (dropped, theirs) = open().await;
        let gone = theirs.hung_up();
        drop(dropped);
        gone.await;
        // An end in order is none.
        let (mut closed, mut theirs) = open().await;
        let mut gone = theirs.hung_up();
        closed.close().await.unwrap();
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).await.unwrap();
        assert!(futures_util::poll!(&mut gone).is_pending());
        // Nor is it later on, when all of it is gone.
        theirs.close().await.unwrap();
        drop(closed);
        assert!(futures_util::poll!(&mut gone).is_pending());
        // The end of the session is one.
        let (_kept, theirs) = open().await;
        let gone = theirs.hung_up();
        mux.close();
        gone.await;
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_knows_the_keys_but_not_yamux_is_refused() {
    within(async {
        for garbage in [vec![0xff; 5000], vec![0; 5000], pattern(9, 5000)] {
            let (mut dialled, accepted, _) = crate::secure_pair(64 * 1024).await;
            let (_mux, mut incoming, driver) = wherry_protocol::io::multiplex(
                accepted,
                wherry_protocol::io::Side::Accepted,
                &Limits::DEFAULT,
            );
            let driver = tokio::spawn(driver);
            dialled.write_all(&garbage).await.unwrap();
            dialled.close().await.unwrap();
            // Whatever it is, it ends, without a panic, and no stream comes of it that could be read to an end.
            while let Some(mut stream) = incoming.next().await {
                let mut got = Vec::new();
                drop(stream.read_to_end(&mut got).await);
            }
            drop(driver.await.expect("no panic"));
        }
    })
    .await;
}
