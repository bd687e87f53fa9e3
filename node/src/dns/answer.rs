//! From a question to what to do with it. Pure.
use super::directory::{Directory, Finding};
use domain::base::iana::{Class, Opcode, Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name, ToName as _, Ttl};
use domain::rdata::{A, Aaaa, Ptr};
use std::net::{Ipv4Addr, Ipv6Addr};
use wherry_net::dns::Transport;

/// How long an answer about the cluster holds: containers come and go.
const TTL_SECONDS: u32 = 5;
/// Largest answer over UDP to one who says nothing of the kind (RFC 1035 §2.3.4).
const PLAIN_BYTES: usize = 512;
/// Largest over UDP to anybody: what fits a packet of the overlay.
const MOST_BYTES: usize = 1232;

/// What to do with a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Send this back.
    Answer(Vec<u8>),
    /// Ask elsewhere.
    Forward,
    /// Nothing: it is no question.
    Ignore,
}

/// Looks at `question`, a message that `asker` sent. Of several addresses another one comes first with each `turn`.
#[must_use]
pub fn answer(
    directory: &Directory,
    asker: Ipv4Addr,
    question: &[u8],
    over: Transport,
    turn: usize,
) -> Verdict {
    let Ok(message) = Message::from_slice(question) else { return Verdict::Ignore };
    if message.header().qr() {
        return Verdict::Ignore;
    }
    let reply = |rcode| finished(respond(message, rcode, &[], over, turn));
    if message.header().opcode() != Opcode::QUERY {
        return reply(Rcode::NOTIMP);
    }
    let Ok(asked) = message.sole_question() else { return reply(Rcode::FORMERR) };
    if asked.qclass() != Class::IN {
        return reply(Rcode::REFUSED);
    }
    let name = asked.qname().to_name::<Vec<u8>>().to_string().to_ascii_lowercase();
    match (directory.find(asker, name.trim_end_matches('.')), asked.qtype()) {
        (Finding::Addresses(found), kind @ (Rtype::A | Rtype::AAAA | Rtype::ANY)) => {
            let v6 = found.iter().map(|address| Record::Aaaa(directory.address6(*address)));
            let v6 = v6.filter(|_| kind != Rtype::A).collect::<Vec<_>>();
            let v4 = found.into_iter().map(Record::A).filter(|_| kind != Rtype::AAAA);
            let records: Vec<Record> = v4.chain(v6).collect();
            finished(respond(message, Rcode::NOERROR, &records, over, turn))
        }
        (Finding::Board(board), Rtype::A | Rtype::ANY) => {
            finished(respond(message, Rcode::NOERROR, &[Record::A(board)], over, turn))
        }
        (Finding::Name(name), Rtype::PTR | Rtype::ANY) => {
            finished(respond(message, Rcode::NOERROR, &[Record::Ptr(name)], over, turn))
        }
        // It is there, but has nothing of the kind.
        (Finding::Addresses(_) | Finding::Board(_) | Finding::Name(_), _) => reply(Rcode::NOERROR),
        (Finding::Unknown, _) => reply(Rcode::NXDOMAIN),
        (Finding::Refused, _) => reply(Rcode::REFUSED),
        (Finding::Elsewhere, _) => Verdict::Forward,
    }
}

/// That nobody could be asked.
#[must_use]
pub(super) fn failure(question: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_slice(question).ok()?;
    respond(message, Rcode::SERVFAIL, &[], Transport::Udp, 0)
}

enum Record {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Ptr(String),
}

fn finished(message: Option<Vec<u8>>) -> Verdict {
    message.map_or(Verdict::Ignore, Verdict::Answer)
}

/// The message, shortened to what the asker can take. `None` where it cannot be put together: then the question was none.
fn respond(
    asked: &Message<[u8]>,
    rcode: Rcode,
    records: &[Record],
    over: Transport,
    turn: usize,
) -> Option<Vec<u8>> {
    let opt = asked.opt();
    let room = match (over, &opt) {
        (Transport::Tcp, _) => usize::from(u16::MAX),
        (Transport::Udp, None) => PLAIN_BYTES,
        (Transport::Udp, Some(opt)) => usize::from(opt.udp_payload_size()).clamp(PLAIN_BYTES, MOST_BYTES),
    };
    // Room for the OPT record, which has to come last (RFC 6891 §6.1.1).
    const OPT_BYTES: usize = 11;
    let mut builder = MessageBuilder::new_vec();
    builder.set_push_limit(room - OPT_BYTES);
    let mut answer = builder.start_answer(asked, rcode).ok()?;
    answer.header_mut().set_ra(true);
    answer.header_mut().set_aa(rcode == Rcode::NOERROR || rcode == Rcode::NXDOMAIN);
    let owner = asked.sole_question().ok();
    let first = turn.checked_rem(records.len()).unwrap_or(0);
    let (later, earlier) = records.split_at_checked(first)?;
    let mut whole = true;
    for record in earlier.iter().chain(later) {
        let Some(owner) = owner.as_ref().map(|question| question.qname()) else { break };
        let ttl = Ttl::from_secs(TTL_SECONDS);
        let pushed = match record {
            Record::A(address) => answer.push((owner, ttl, A::new(*address))),
            Record::Aaaa(address) => answer.push((owner, ttl, Aaaa::new(*address))),
            Record::Ptr(name) => answer.push((owner, ttl, Ptr::new(name.parse::<Name<Vec<u8>>>().ok()?))),
        };
        whole &= pushed.is_ok();
    }
    if !whole {
        answer.header_mut().set_tc(true);
    }
    let mut last = answer.additional();
    if opt.is_some() {
        last.as_builder_mut().clear_push_limit();
        last.opt(|opt| {
            opt.set_udp_payload_size(MOST_BYTES as u16);
            Ok(())
        })
        .ok()?;
    }
    Some(last.finish())
}
