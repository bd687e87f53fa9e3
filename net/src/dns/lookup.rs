//! What the DNS holds for a name.
use super::upstream::{Transport, Upstream};
use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::rdata::ParseRecordData;
use domain::base::{Message, MessageBuilder, Name};
use domain::rdata::{A, Txt};
use std::net::Ipv4Addr;

/// Records taken from one answer.
const MAX_RECORDS: usize = 32;

/// Why nothing is known about a name; that it has no such records is no error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No name of the DNS.
    #[error("'{0}' is no name")]
    Name(String),
    /// No server answered.
    #[error("no name server answers")]
    Silence,
    /// The server could not find out.
    #[error("the name server answers {0}")]
    Refused(Rcode),
    /// Its answer is no message.
    #[error("the name server's answer cannot be read")]
    Garbage,
}

/// IPv4 addresses of `name`.
///
/// # Errors
/// When nothing is known.
pub async fn addresses(servers: &Upstream, name: &str) -> Result<Vec<Ipv4Addr>, LookupError> {
    let answer = ask(servers, name, Rtype::A).await?;
    Ok(records::<A>(&answer)?.iter().map(|record| record.addr()).collect())
}

/// The TXT records of `name`, each with its strings put together (RFC 7208 §3.3 reads them so too).
///
/// # Errors
/// When nothing is known.
pub async fn texts(servers: &Upstream, name: &str) -> Result<Vec<Vec<u8>>, LookupError> {
    let answer = ask(servers, name, Rtype::TXT).await?;
    Ok(records::<Txt<_>>(&answer)?.iter().map(|record| record.text::<Vec<u8>>()).collect())
}

async fn ask(servers: &Upstream, name: &str, kind: Rtype) -> Result<Message<Vec<u8>>, LookupError> {
    let question = question(name, kind)?;
    let heard = |answer: Option<Vec<u8>>| {
        Message::from_octets(answer.ok_or(LookupError::Silence)?).map_err(|_| LookupError::Garbage)
    };
    let answer = heard(servers.ask(&question, Transport::Udp).await)?;
    let answer =
        if answer.header().tc() { heard(servers.ask(&question, Transport::Tcp).await)? } else { answer };
    match answer.header().rcode() {
        Rcode::NOERROR | Rcode::NXDOMAIN => Ok(answer),
        other => Err(LookupError::Refused(other)),
    }
}

/// Its number does not matter: every question is sent with one of its own.
fn question(name: &str, kind: Rtype) -> Result<Vec<u8>, LookupError> {
    let refused = || LookupError::Name(name.to_owned());
    let name: Name<Vec<u8>> = name.parse().map_err(|_| refused())?;
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((&name, kind)).map_err(|_| refused())?;
    Ok(builder.into_message().into_octets())
}

/// Those of the answer that are of the wanted kind: what names a CNAME leads to holds counts as the name's own.
fn records<'a, R>(answer: &'a Message<Vec<u8>>) -> Result<Vec<R>, LookupError>
where
    R: ParseRecordData<'a, Vec<u8>>,
{
    let section = answer.answer().map_err(|_| LookupError::Garbage)?;
    let records = section.limit_to_in::<R>().take(MAX_RECORDS);
    records
        .filter(|record| record.as_ref().map_or(true, |record| record.class() == Class::IN))
        .map(|record| record.map(|record| record.into_data()).map_err(|_| LookupError::Garbage))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::base::Ttl;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UdpSocket};

    /// What the test's server says to a question, over UDP and over TCP.
    type Say = fn(&Message<&[u8]>, Transport) -> Vec<u8>;

    /// A name server on a port of UDP and the same of TCP.
    async fn server(say: Say) -> Upstream {
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = tcp.local_addr().expect("an address");
        let udp = UdpSocket::bind(address).await.expect("the same port");
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, asker)) = udp.recv_from(&mut buffer).await {
                let asked = Message::from_octets(&buffer[..length]).expect("a message");
                drop(udp.send_to(&say(&asked, Transport::Udp), asker).await);
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let length = stream.read_u16().await.expect("a length");
                let mut bytes = vec![0; usize::from(length)];
                stream.read_exact(&mut bytes).await.expect("a question");
                let answer = say(&Message::from_octets(&bytes[..]).expect("a message"), Transport::Tcp);
                let length = u16::try_from(answer.len()).expect("short");
                drop(stream.write_all(&[&length.to_be_bytes(), &answer[..]].concat()).await);
            }
        });
        Upstream::at(vec![address])
    }

    fn answer(asked: &Message<&[u8]>, rcode: Rcode, texts: &[&[u8]]) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec().start_answer(asked, rcode).expect("room");
        let name = asked.first_question().expect("a question").into_qname();
        for text in texts {
            let text: Txt<Vec<u8>> = Txt::build_from_slice(text).expect("a text");
            builder.push((&name, Class::IN, Ttl::from_secs(60), text)).expect("room");
        }
        builder.finish()
    }

    async fn asked(say: Say) -> Result<Vec<Vec<u8>>, LookupError> {
        texts(&server(say).await, "_wherry.example.org").await
    }

    #[tokio::test]
    async fn texts_are_read_whole() {
        assert_eq!(
            asked(|q, _| answer(q, Rcode::NOERROR, &[b"one", b"two"])).await.unwrap(),
            [b"one", b"two"]
        );
        // In strings of 255 bytes each, which belong together.
        let long = asked(|q, _| answer(q, Rcode::NOERROR, &[&[b'x'; 300]])).await;
        assert_eq!(long.unwrap(), [[b'x'; 300]]);
        assert_eq!(asked(|q, _| answer(q, Rcode::NOERROR, &[])).await.unwrap(), [] as [&[u8]; 0]);
        assert_eq!(asked(|q, _| answer(q, Rcode::NXDOMAIN, &[])).await.unwrap(), [] as [&[u8]; 0]);
    }

    #[tokio::test]
    async fn what_udp_cannot_hold_comes_over_tcp() {
        let cut: Say = |asked, transport| match transport {
            Transport::Tcp => answer(asked, Rcode::NOERROR, &[b"whole"]),
            Transport::Udp => {
                let mut cut = answer(asked, Rcode::NOERROR, &[]);
                // TC (RFC 1035 §4.1.1).
                cut[2] |= 2;
                cut
            }
        };
        assert_eq!(asked(cut).await.unwrap(), [b"whole"]);
    }

    #[tokio::test]
    async fn what_cannot_be_found_out_is_an_error_and_not_an_absence() {
        let refused = asked(|q, _| answer(q, Rcode::SERVFAIL, &[])).await.unwrap_err();
        assert_eq!(refused, LookupError::Refused(Rcode::SERVFAIL));
        // An answer that says it has more than there is.
        let short = asked(|q, _| {
            let mut bytes = answer(q, Rcode::NOERROR, &[b"one"]);
            bytes[7] = 9;
            bytes
        });
        assert_eq!(short.await.unwrap_err(), LookupError::Garbage);
        for wrong in ["a..b", "", &"x".repeat(64)] {
            let nobody = Upstream::default();
            let error = texts(&nobody, wrong).await.unwrap_err();
            assert!(matches!(error, LookupError::Name(_)), "{wrong:?}: {error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_answers() {
        let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let silent = Upstream::at(vec![gone.local_addr().unwrap(), SocketAddr::from(([127, 0, 0, 1], 1))]);
        assert_eq!(texts(&silent, "example.org").await.unwrap_err(), LookupError::Silence);
        assert_eq!(texts(&Upstream::default(), "example.org").await.unwrap_err(), LookupError::Silence);
    }
}
