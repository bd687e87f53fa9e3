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
