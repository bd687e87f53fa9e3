//! Questions to the servers that the board's own network has named, and their answers.
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one server may take. The next one is asked then.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often all of them are asked.
const ROUNDS: usize = 2;
/// Servers asked: a lease names two or three.
const MAX_SERVERS: usize = 4;
/// Length of a message's header (RFC 1035 §4.1.1).
const HEADER_BYTES: usize = 12;
/// Longest UDP answer (RFC 6891 §6.2.5 leaves it to 64 KiB).
const ANSWER_BYTES: usize = 65_535;

/// How a question goes, and its answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// With a bound on the answer.
    Udp,
    /// Without.
    Tcp,
}

/// The servers to ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upstream(Vec<SocketAddr>);

impl Upstream {
    /// Servers at their usual port (RFC 1035 §4.2).
    #[must_use]
    pub fn of(servers: &[Ipv4Addr]) -> Self {
        Self::at(servers.iter().map(|server| SocketAddr::from((*server, 53))).collect())
    }

    /// Servers at these ports.
    #[must_use]
    pub fn at(mut servers: Vec<SocketAddr>) -> Self {
        servers.truncate(MAX_SERVERS);
        Self(servers)
    }

    /// The first answer that any of them gives to `question`, as it came but for its number. One that says no more than that
    /// it failed or will not answer counts only if no other says more.
    pub async fn ask(&self, question: &[u8], over: Transport) -> Option<Vec<u8>> {
        let mut excuse = None;
        for _ in 0..ROUNDS {
            for server in &self.0 {
                let answered = match over {
                    Transport::Udp => timeout(PATIENCE, ask_udp(*server, question)).await,
                    Transport::Tcp => timeout(PATIENCE, ask_tcp(*server, question)).await,
                };
                match answered {
                    Ok(Ok(answer)) if is_excuse(&answer) => {
                        tracing::debug!(%server, "name server: it failed or refused");
                        excuse.get_or_insert(answer);
                    }
                    Ok(Ok(answer)) => return Some(answer),
                    Ok(Err(error)) => tracing::debug!(%server, "name server: {error}"),
                    Err(_) => tracing::debug!(%server, "name server: no answer"),
                }
            }
            // Each has been heard or is silent; those that answered would say the same again.
            if excuse.is_some() {
                return excuse;
            }
        }
        None
    }
}

/// SERVFAIL or REFUSED (RFC 1035 §4.1.1).
fn is_excuse(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|flags| matches!(flags & 0x0f, 2 | 5))
}

/// With a number and a port of its own for every question, so that nobody can guess what an answer must look like
/// (RFC 5452 §9.2). A socket that is connected takes datagrams of that server only.
async fn ask_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).await?;
    socket.connect(server).await?;
    let (sent, number) = renumbered(question)?;
    socket.send(&sent).await?;
    let mut buffer = vec![0; ANSWER_BYTES];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default();
        if let Some(answer) = answer_to(question, &sent, number, answer) {
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let (sent, number) = renumbered(question)?;
    let length = u16::try_from(sent.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), sent.as_slice()].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    answer_to(question, &sent, number, &answer).ok_or_else(|| io::Error::other("it answered something else"))
}

fn renumbered(question: &[u8]) -> io::Result<(Vec<u8>, [u8; 2])> {
    let mut number = [0; 2];
    getrandom::fill(&mut number).map_err(io::Error::other)?;
    let mut sent = question.to_vec();
    sent.get_mut(..2).ok_or(io::ErrorKind::InvalidData)?.copy_from_slice(&number);
    Ok((sent, number))
}

/// The answer with the asker's number, if it is one to what was sent: the same number, a response, and the same name asked
/// for, letter by letter (servers copy the question, RFC 1035 §4.1.1).
fn answer_to(question: &[u8], sent: &[u8], number: [u8; 2], answer: &[u8]) -> Option<Vec<u8>> {
    let mut whole = answer.to_vec();
    let is_response = answer.get(2)? & 0x80 != 0;
    let end = HEADER_BYTES + question_bytes(sent.get(HEADER_BYTES..)?)?;
    let asked = sent.get(HEADER_BYTES..end)?;
    // A refusal may come without the question.
    let same = answer.get(HEADER_BYTES..end) == Some(asked) || answer.len() == HEADER_BYTES;
    if !is_response || answer.get(..2)? != number || !same {
        return None;
    }
    whole.get_mut(..2)?.copy_from_slice(question.get(..2)?);
    Some(whole)
}

/// Length of the first question: labels up to the empty one, type and class.
fn question_bytes(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match bytes.get(at)? {
            0 => return Some(at + 5),
            length @ 1..=63 => at += 1 + usize::from(*length),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &[u8] =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01";

    #[test]
    fn only_an_answer_to_what_was_asked_counts() {
        let (sent, number) = renumbered(QUESTION).unwrap();
        let mut answer = sent.clone();
        answer[2] |= 0x80;
        let back = answer_to(QUESTION, &sent, number, &answer).unwrap();
        assert_eq!(back[..2], QUESTION[..2]);
        assert_eq!(answer_to(QUESTION, &sent, number, &sent), None, "a question");
        let mut other = answer.clone();
        other[14] ^= 0x20;
        assert_eq!(answer_to(QUESTION, &sent, number, &other), None, "another name");
        let mut numbered = answer.clone();
        numbered[0] ^= 1;
        assert_eq!(answer_to(QUESTION, &sent, number, &numbered), None, "another number");
        for length in 0..HEADER_BYTES {
            assert_eq!(answer_to(QUESTION, &sent, number, &answer[..length]), None);
        }
    }

    #[test]
    fn questions_are_measured_without_following_pointers() {
        assert_eq!(question_bytes(&QUESTION[12..]), Some(QUESTION.len() - 12));
        assert_eq!(question_bytes(b"\xc0\x0c\x00\x01\x00\x01"), None);
        assert_eq!(question_bytes(b"\x07exam"), None);
        assert_eq!(question_bytes(b""), None);
    }
}
