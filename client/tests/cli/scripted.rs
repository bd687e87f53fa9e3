//! A small HTTP server that does what a test wants, good or bad, and remembers what it was asked.
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte that a Range header asks for.
    pub(crate) fn from(&self) -> usize {
        let range = self.header("range").and_then(|text| text.strip_prefix("bytes="));
        range.map_or(0, |text| text.trim_end_matches('-').parse().unwrap())
    }
}

/// What comes after the header.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// All of it, with its length.
    Whole(Vec<u8>),
    /// With this length announced, and the connection cut after the bytes.
    Cut(usize, Vec<u8>),
    /// Without a length, up to the end of the connection.
    Unmeasured(Vec<u8>),
    /// Without end.
    Endless,
}

#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) content: Content,
}

impl Answer {
    pub(crate) fn new(status: u16, media: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("Content-Type".into(), media.into())];
        Self { status, headers, content: Content::Whole(bytes.into()) }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::new(status, "application/json", r#"{"errors":[{"code":"X","message":"said by the server"}]}"#)
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::status(307).with("Location", to)
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn content(self, content: Content) -> Self {
        Self { content, ..self }
    }
}

type Handler = Arc<dyn Fn(&Asked) -> Answer + Send + Sync>;

pub(crate) struct Scripted {
    pub(crate) port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Scripted {
    /// On a free port of this computer, without TLS.
    pub(crate) fn start(handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let accept = move || listener.accept().map(|(stream, _)| (stream.try_clone().unwrap(), stream));
        Self { port, asked: accept_all(accept, handler) }
    }

    /// Behind a Unix socket.
    pub(crate) fn behind(path: &Path, handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let accept = move || listener.accept().map(|(stream, _)| (stream.try_clone().unwrap(), stream));
        Self { port: 0, asked: accept_all(accept, handler) }
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// Answers whoever is accepted, each on a thread; the log of what was asked.
fn accept_all<S: Read + Write + Send + 'static>(
    accept: impl Fn() -> std::io::Result<(S, S)> + Send + 'static,
    handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
) -> Arc<Mutex<Vec<Asked>>> {
    let (handler, asked): (Handler, Arc<Mutex<Vec<Asked>>>) = (Arc::new(handler), Arc::default());
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        loop {
            let Ok((reader, writer)) = accept() else { continue };
            let (handler, log) = (Arc::clone(&handler), Arc::clone(&log));
            std::thread::spawn(move || serve(reader, writer, &handler, &log));
        }
    });
    asked
}

fn serve(reader: impl Read, mut writer: impl Write, handler: &Handler, log: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(reader);
    // TLS's first byte: answered as Go's server does.
    if reader.fill_buf().is_ok_and(|bytes| bytes.first() == Some(&0x16)) {
        drop(writer.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nthis is HTTP"));
        return;
    }
    let Some(asked) = read(&mut reader) else { return };
    log.lock().unwrap().push(asked.clone());
    // The client may have heard enough at any time.
    drop(answer(&mut writer, handler(&asked)));
}

fn read(reader: &mut impl std::io::BufRead) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |text: &String| text.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Asked { method, path, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

fn answer(writer: &mut impl Write, answer: Answer) -> std::io::Result<()> {
    write!(writer, "HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status)?;
    for (name, value) in &answer.headers {
        write!(writer, "{name}: {value}\r\n")?;
    }
    match answer.content {
        Content::Whole(bytes) => {
            write!(writer, "Content-Length: {}\r\n\r\n", bytes.len())?;
            writer.write_all(&bytes)
        }
        Content::Cut(announced, bytes) => {
            write!(writer, "Content-Length: {announced}\r\n\r\n")?;
            writer.write_all(&bytes)?;
            writer.flush()?;
            // So that what was written is read before the end is seen.
            std::thread::sleep(Duration::from_millis(50));
            Ok(())
        }
        Content::Unmeasured(bytes) => {
            write!(writer, "\r\n")?;
            writer.write_all(&bytes)
        }
        Content::Endless => {
            write!(writer, "\r\n")?;
            loop {
                writer.write_all(&[b'x'; 65_536])?;
            }
        }
    }
}
