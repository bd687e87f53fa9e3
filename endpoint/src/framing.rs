//! Where requests begin and end on an HTTP/1 connection (RFC 9112), stricter than any server behind us may be.
//!
//! Hyper reads leniently what other servers read otherwise: with both lengths it drops one, equal lengths become one, a bare LF
//! ends a line. Bytes come to hyper only after they passed here, whole heads at a time.
use crate::refusal::Refusal;

/// A chunk's size with its extensions, which nobody needs.
const MAX_CHUNK_LINE: usize = 256;
/// Of a length in decimal, and of a chunk in hexadecimal digits: fits in 64 bits.
const MAX_LENGTH_DIGITS: usize = 18;
const MAX_CHUNK_DIGITS: usize = 15;

/// What the bytes at hand are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many may go on, at least one.
    Pass(usize),
    /// A whole head of so many bytes may go on.
    Head(usize),
    /// So many mean nothing.
    Skip(usize),
    /// More are needed to tell.
    More,
    /// An upgrade was asked for: what follows must wait for the answer.
    Held,
    /// Nothing of it may go on, nor anything after.
    Refuse(Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `seen` bytes have been looked at; lines so far.
    Head {
        seen: usize,
        lines: usize,
    },
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers {
        bytes: usize,
        lines: usize,
    },
    Held,
    Opaque,
    Refused(Refusal),
}

const START: State = State::Head { seen: 0, lines: 0 };

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
    max_bytes: usize,
    max_fields: usize,
}

impl Framing {
    pub(crate) fn new(max_bytes: usize, max_fields: usize) -> Self {
        Self { state: START, max_bytes, max_fields }
    }

    /// Between requests: whether a head is what comes next.
    pub(crate) fn in_head(&self) -> bool {
        matches!(self.state, State::Head { .. })
    }

    /// An upgrade waits for its answer.
    pub(crate) fn held(&self) -> bool {
        self.state == State::Held
    }

    /// So many bytes may be read past us, by [`Self::passed`]: those of a body of known length, or of what is not HTTP.
    pub(crate) fn plain(&self) -> u64 {
        match self.state {
            State::Body(left) | State::Chunk(left) => left,
            State::Opaque => u64::MAX,
            State::Head { .. }
            | State::ChunkSize
            | State::ChunkEnd
            | State::Trailers { .. }
            | State::Held
            | State::Refused(_) => 0,
        }
    }

    /// So many bytes of [`Self::plain`] went by.
    pub(crate) fn passed(&mut self, count: u64) {
        self.state = match self.state {
            State::Body(left) if left <= count => START,
            State::Body(left) => State::Body(left - count),
            State::Chunk(left) if left <= count => State::ChunkEnd,
            State::Chunk(left) => State::Chunk(left - count),
            state @ (State::Head { .. }
            | State::ChunkSize
            | State::ChunkEnd
            | State::Trailers { .. }
            | State::Held
            | State::Opaque
            | State::Refused(_)) => state,
        };
    }

    /// The answer to an upgrade: whether the rest of the connection is not HTTP.
    pub(crate) fn decide(&mut self, opaque: bool) {
        if self.state == State::Held {
            self.state = if opaque { State::Opaque } else { START };
        }
    }

    /// Ends the connection for this reason.
    pub(crate) fn refuse(&mut self, refusal: Refusal) -> Step {
        self.state = State::Refused(refusal);
        Step::Refuse(refusal)
    }

    /// Looks at the bytes that did not go on yet; those that a step names are not shown again.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Step {
        let step = match self.state {
            State::Held => Ok(Step::Held),
            State::Refused(refusal) => Err(refusal),
            State::Head { seen, lines } => self.head(bytes, seen, lines),
            State::Body(_) | State::Chunk(_) | State::Opaque if bytes.is_empty() => Ok(Step::More),
            State::Body(_) | State::Chunk(_) | State::Opaque => {
                let count = self.plain().min(bytes.len() as u64);
                self.passed(count);
                Ok(Step::Pass(usize::try_from(count).unwrap_or(bytes.len())))
            }
            State::ChunkSize => self.chunk_size(bytes),
            State::ChunkEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    self.state = State::ChunkSize;
                    Ok(Step::Pass(2))
                }
                [] | [b'\r'] => Ok(Step::More),
                _ => Err(Refusal::Malformed),
            },
            State::Trailers { bytes: before, lines } => self.trailer(bytes, before, lines),
        };
        step.unwrap_or_else(|refusal| self.refuse(refusal))
    }

    fn head(&mut self, bytes: &[u8], mut seen: usize, mut lines: usize) -> Result<Step, Refusal> {
        // An empty line before a request is to be ignored (§2.2).
        if bytes.starts_with(b"\r\n") {
            return Ok(Step::Skip(2));
        }
        while let Some(at) = bytes.get(seen..).and_then(|rest| rest.iter().position(|byte| *byte == b'\n')) {
            let end = seen + at;
            let line =
                bytes.get(seen..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(Refusal::Malformed)?;
            seen = end + 1;
            if seen > self.max_bytes {
                break;
            }
            if line.is_empty() {
                let head = bytes.get(..end.saturating_sub(1)).unwrap_or_default();
                self.state = after_head(head)?;
                return Ok(Step::Head(seen));
            }
            lines += 1;
            if lines > self.max_fields + 1 {
                return Err(Refusal::HeadTooLarge);
            }
        }
        if bytes.len() >= self.max_bytes {
            return Err(if lines == 0 { Refusal::TargetTooLong } else { Refusal::HeadTooLarge });
        }
        // A byte that no request begins with need not wait for its line: TLS on the port without, or anything else.
        if bytes.first().is_some_and(|first| !is_token(*first) && *first != b'\r') {
            return Err(Refusal::Malformed);
        }
        self.state = State::Head { seen, lines };
        Ok(Step::More)
    }

    fn chunk_size(&mut self, bytes: &[u8]) -> Result<Step, Refusal> {
        let Some((line, length)) = line(bytes, MAX_CHUNK_LINE)? else { return Ok(Step::More) };
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at_checked(digits).unwrap_or_default();
        if !(1..=MAX_CHUNK_DIGITS).contains(&digits) || !matches!(extension, [] | [b';', ..]) {
            return Err(Refusal::Malformed);
        }
        check_text(extension)?;
        let size = str::from_utf8(size).ok().and_then(|size| u64::from_str_radix(size, 16).ok());
        self.state = match size.ok_or(Refusal::Malformed)? {
            0 => State::Trailers { bytes: 0, lines: 0 },
            size => State::Chunk(size),
        };
        Ok(Step::Pass(length))
    }

    fn trailer(&mut self, bytes: &[u8], before: usize, lines: usize) -> Result<Step, Refusal> {
        let Some((line, length)) = line(bytes, self.max_bytes)? else { return Ok(Step::More) };
        if before + length > self.max_bytes || lines >= self.max_fields {
            return Err(Refusal::HeadTooLarge);
        }
        if line.is_empty() {
            self.state = START;
        } else {
            field(line)?;
            self.state = State::Trailers { bytes: before + length, lines: lines + 1 };
        }
        Ok(Step::Pass(length))
    }
}

/// The first line without its CRLF, and its length with it; `None` when it is not there yet.
fn line(bytes: &[u8], max: usize) -> Result<Option<(&[u8], usize)>, Refusal> {
    let Some(end) = bytes.iter().take(max).position(|byte| *byte == b'\n') else {
        return if bytes.len() >= max { Err(Refusal::Malformed) } else { Ok(None) };
    };
    let line = bytes.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(Refusal::Malformed)?;
    Ok(Some((line, end + 1)))
}

/// A `tchar` (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn check_text(text: &[u8]) -> Result<(), Refusal> {
    let bad = text.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t');
    if bad { Err(Refusal::Malformed) } else { Ok(()) }
}

/// Name and value of a field line: no folding, no space around the name, no controls.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or(Refusal::Malformed)?;
    let (name, value) = line.split_at_checked(colon).ok_or(Refusal::Malformed)?;
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(Refusal::Malformed);
    }
    check_text(value)?;
    Ok((name, value.strip_prefix(b":").unwrap_or_default().trim_ascii()))
}

/// What follows a head, which comes without the empty line at its end.
fn after_head(head: &[u8]) -> Result<State, Refusal> {
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let newer = request_line(lines.next().unwrap_or_default())?;
    let (mut length, mut chunked, mut hosts, mut upgrade) = (None, false, 0, false);
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            if length.replace(content_length(value)?).is_some() {
                return Err(Refusal::AmbiguousLength);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || !newer || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::AmbiguousLength);
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            upgrade = true;
        }
    }
    if hosts != 1 {
        return Err(Refusal::BadHost);
    }
    match (length, chunked) {
        (Some(_), true) => Err(Refusal::AmbiguousLength),
        (None, true) => Ok(State::ChunkSize),
        (Some(length), false) if length > 0 => Ok(State::Body(length)),
        _ if upgrade => Ok(State::Held),
        _ => Ok(START),
    }
}

/// `true` for HTTP/1.1, `false` for HTTP/1.0.
fn request_line(line: &[u8]) -> Result<bool, Refusal> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::Malformed);
    };
    if method.is_empty() || !method.iter().copied().all(is_token) {
        return Err(Refusal::Malformed);
    }
    if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err(Refusal::Malformed);
    }
    // After CONNECT nothing is framed any more.
    if method == b"CONNECT" {
        return Err(Refusal::BadTarget);
    }
    match version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        _ => Err(Refusal::Malformed),
    }
}

fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    let digits = (1..=MAX_LENGTH_DIGITS).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let value = str::from_utf8(value).ok().filter(|_| digits);
    value.and_then(|value| value.parse().ok()).ok_or(Refusal::AmbiguousLength)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All that goes on when the bytes come in pieces of this size, and how it ends.
    fn run(bytes: &[u8], piece: usize) -> (Vec<u8>, Step) {
        let (mut framing, mut passed, mut from, mut to) = (Framing::new(1024, 10), Vec::new(), 0, 0);
        loop {
            match framing.step(&bytes[from..to]) {
                Step::Pass(count) | Step::Head(count) => {
                    passed.extend_from_slice(&bytes[from..from + count]);
                    from += count;
                }
                Step::Skip(count) => from += count,
                Step::More if to < bytes.len() => to = (to + piece).min(bytes.len()),
                end => return (passed, end),
            }
        }
    }

    #[test]
    fn good_requests_pass_unchanged() {
        for good in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nhost:a\r\nX: \t b\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: 1\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            for piece in [1, 2, 7, 1000] {
                assert_eq!(run(good.as_bytes(), piece), (good.as_bytes().to_vec(), Step::More), "{good}");
            }
        }
    }

    #[test]
    fn upgrades_are_held() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n";
        assert_eq!(run(&[head.as_slice(), b"GARBAGE\n"].concat(), 9), (head.to_vec(), Step::Held));
        let mut framing = Framing::new(1024, 10);
        assert_eq!(framing.step(head), Step::Head(head.len()));
        framing.decide(true);
        assert_eq!(framing.step(b"GARBAGE\n"), Step::Pass(8));
    }

    #[test]
    fn sizes() {
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(2000));
        assert_eq!(run(long.as_bytes(), 100).1, Step::Refuse(Refusal::TargetTooLong));
        let wide = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(2000));
        assert_eq!(run(wide.as_bytes(), 5000).1, Step::Refuse(Refusal::HeadTooLarge));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(10));
        assert_eq!(run(many.as_bytes(), 5000).1, Step::Refuse(Refusal::HeadTooLarge));
        let trailers = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{}\r\n",
            "X: 1\r\n".repeat(11)
        );
        assert_eq!(run(trailers.as_bytes(), 5000).1, Step::Refuse(Refusal::HeadTooLarge));
    }

    #[test]
    fn hostile_heads_do_not_pass() {
        let length = Step::Refuse(Refusal::AmbiguousLength);
        let malformed = Step::Refuse(Refusal::Malformed);
        for (fields, end) in [
            ("Content-Length: 3\r\nTransfer-Encoding: chunked", length),
            ("Transfer-Encoding: chunked\r\nContent-Length: 3", length),
            ("Content-Length: 3\r\nContent-Length: 3", length),
            ("Content-Length: 3, 3", length),
            ("Content-Length: +3", length),
            ("Content-Length: 0x3", length),
            ("Content-Length: 9999999999999999999", length),
            ("Content-Length:", length),
            ("Transfer-Encoding: xchunked", length),
            ("Transfer-Encoding: chunked, identity", length),
            ("Transfer-Encoding: gzip, chunked", length),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", length),
            ("Transfer-Encoding: \"chunked\"", length),
            ("Transfer-Encoding: \x0bchunked", malformed),
            ("Transfer-Encoding : chunked", malformed),
            (" Transfer-Encoding: chunked", malformed),
            ("X: 1\r\n\tTransfer-Encoding: chunked", malformed),
            ("X: 1\nTransfer-Encoding: chunked", malformed),
            ("X: 1\rTransfer-Encoding: chunked", malformed),
            ("X: 1\0", malformed),
            ("X\0: 1", malformed),
            ("X", malformed),
            (": 1", malformed),
            ("Host: b", Step::Refuse(Refusal::BadHost)),
        ] {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nabc");
            for piece in [1, 1000] {
                assert_eq!(run(head.as_bytes(), piece), (Vec::new(), end), "{fields:?}");
            }
        }
        for line in [
            "GET /",
            "GET  / HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET / HTTP/2.0",
            "G(T / HTTP/1.1",
            "GET /\x7f HTTP/1.1",
            "\x16\x03",
        ] {
            assert_eq!(run(format!("{line}\r\nHost: a\r\n\r\n").as_bytes(), 1000).1, malformed, "{line:?}");
        }
        assert_eq!(run(b"GET / HTTP/1.1\r\n\r\n", 1000).1, Step::Refuse(Refusal::BadHost));
    }

    #[test]
    fn hostile_chunks_do_not_pass() {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let extension = format!("3;{}\r\nabc", "x".repeat(300));
        for body in [
            "3\nabc",
            "3\r\nabcX\r\n",
            "3\r\nabc\n",
            "3 \r\nabc",
            "0x3\r\nabc",
            "\r\nabc",
            "-1\r\n",
            "3;a\x00\r\nabc",
            "3;\nabc\r\n",
            "fffffffffffffffff\r\n",
            "0\r\nX: 1\n\r\n",
            "0\r\nX : 1\r\n",
            "0\r\n\nGET",
            "3 ;a\r\nabc",
            &extension,
        ] {
            for piece in [1, 1000] {
                let (_, end) = run(format!("{head}{body}").as_bytes(), piece);
                assert_eq!(end, Step::Refuse(Refusal::Malformed), "{body:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            text in "(GET|POST) / HTTP/1.1\r\nHost: a\r\n(Content-Length: [0-9]\r\n|Transfer-Encoding: chunked\r\n|X:[ -~]{0,4}\r?\n){0,2}\r\n[0-3a\r\n]{0,20}",
            piece in 1_usize..40,
        ) {
            prop_assert_eq!(run(text.as_bytes(), piece), run(text.as_bytes(), 10_000));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            run(&bytes, 3);
            run(&[b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", bytes.as_slice()].concat(), 5);
        }
    }
}
