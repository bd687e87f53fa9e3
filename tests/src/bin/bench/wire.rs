//! TCP between two network namespaces, measured: one stream, the time to and fro, and new connections.
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use wherry_tests::Failure;

const BLOCK: usize = 64 * 1024;
/// What the first byte of a connection asks of the server.
const STREAM: u8 = b's';
const ECHO: u8 = b'e';
/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Does `work` in another network namespace. Sockets made there stay there.
pub(crate) fn within<T: Send>(
    space: &File,
    work: impl FnOnce() -> std::io::Result<T> + Send,
) -> Result<T, Failure> {
    let entered = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(space, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    entered.map_err(Failure::io("work in another network namespace"))
}

/// A namespace by its file.
pub(crate) fn space(path: &str) -> Result<File, Failure> {
    File::open(path).map_err(Failure::file("open", path.as_ref()))
}

/// Answers in a namespace, for as long as this process lives.
pub(crate) fn serve(space: &File, port: u16) -> Result<(), Failure> {
    let listener = within(space, || TcpListener::bind(("0.0.0.0", port)))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever asked notices when it breaks off.
            std::thread::spawn(move || answer(stream).ok());
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    stream.read_exact(&mut first)?;
    let mut block = vec![0; BLOCK];
    match first[0] {
        STREAM => loop {
            stream.write_all(&block)?;
        },
        _ => loop {
            match stream.read(&mut block)? {
                0 => return Ok(()),
                count => stream.write_all(&block[..count])?,
            }
        },
    }
}

fn dial(space: &File, to: SocketAddr, first: u8) -> Result<TcpStream, Failure> {
    within(space, || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[first])?;
        Ok(stream)
    })
}

/// Bits a second of one stream to here, over so long, after a start of a fifth of that.
pub(crate) fn stream(space: &File, to: SocketAddr, time: Duration) -> Result<f64, Failure> {
    let mut stream = dial(space, to, STREAM)?;
    let mut block = vec![0; BLOCK];
    let mut read = |until: Instant| {
        let mut bytes = 0_u64;
        while Instant::now() < until {
            match stream.read(&mut block).map_err(Failure::io("read a stream"))? {
                0 => return Err(Failure::Unexpected("a stream ended early".into())),
                count => bytes += count as u64,
            }
        }
        Ok(bytes)
    };
    read(Instant::now() + time / 5)?;
    let started = Instant::now();
    let bytes = read(started + time)?;
    Ok(bytes as f64 * 8.0 / started.elapsed().as_secs_f64())
}

/// The times of so many single bytes to there and back, on one connection.
pub(crate) fn echoes(space: &File, to: SocketAddr, count: usize) -> Result<Vec<Duration>, Failure> {
    let mut stream = dial(space, to, ECHO)?;
    (0..count).map(|_| echo(&mut stream)).collect()
}

fn echo(stream: &mut TcpStream) -> Result<Duration, Failure> {
    let started = Instant::now();
    let mut byte = [0];
    stream.write_all(b"x").and_then(|()| stream.read_exact(&mut byte)).map_err(Failure::io("send a byte"))?;
    Ok(started.elapsed())
}

/// The time of a new connection until its first byte has come back.
pub(crate) fn open(space: &File, to: SocketAddr) -> Result<Duration, Failure> {
    let started = Instant::now();
    let mut stream = dial(space, to, ECHO)?;
    echo(&mut stream)?;
    Ok(started.elapsed())
}
