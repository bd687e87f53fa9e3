//! A way to a registry that breaks again and again.
use crate::failure::Failure;
use std::io::{Read as _, Write as _, copy};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A port of this computer that leads to another one, for so many bytes of every connection. Open for as long as this
/// process lives.
#[derive(Debug)]
pub struct Cutter {
    port: u16,
    cuts: Arc<AtomicUsize>,
}

impl Cutter {
    /// Leads to `port`, and cuts every connection after `bytes` of what comes back.
    pub fn start(port: u16, bytes: u64) -> Result<Self, Failure> {
        let failed = || Failure::io("open a port that cuts connections");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
        let own = listener.local_addr().map_err(failed())?.port();
        let cuts = Arc::<AtomicUsize>::default();
        let counter = Arc::clone(&cuts);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let counter = Arc::clone(&counter);
                // Whoever is at one of the ends notices what fails here.
                std::thread::spawn(move || drop(lead(near, port, bytes, &counter)));
            }
        });
        Ok(Self { port: own, cuts })
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How many connections were cut so far.
    #[must_use]
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }
}

fn lead(near: TcpStream, port: u16, bytes: u64, cuts: &AtomicUsize) -> std::io::Result<()> {
    let far = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let (mut from, mut to) = (near.try_clone()?, far.try_clone()?);
    std::thread::spawn(move || copy(&mut from, &mut to));
    let (mut answer, mut asker) = (far.try_clone()?.take(bytes), near.try_clone()?);
    if copy(&mut answer, &mut asker)? == bytes {
        cuts.fetch_add(1, Ordering::Relaxed);
    }
    asker.flush()?;
    near.shutdown(Shutdown::Both)?;
    far.shutdown(Shutdown::Both)
}
