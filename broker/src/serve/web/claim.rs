//! The proof that a domain is somebody's: a TXT record that only its owner can publish.
use super::super::user::{User, finish};
use crate::serve::Shared;
use crate::state::{Answer, Input, RequestId, record_name};
use wherry_net::dns;
use wherry_protocol::io::{SessionError, Stream};
use wherry_protocol::message::{Reply, Request};
use wherry_protocol::{ErrorCode, WireError};

/// Asks the state, then the DNS, then the state again.
pub(crate) async fn claim(
    shared: &Shared,
    user: User,
    request: RequestId,
    stream: Stream,
    body: Request,
) -> Result<(), SessionError> {
    let domain = match shared.core.request(request, user.session, body).await {
        Answer::Lookup(domain) => domain,
        Answer::Reply(reply) => return finish(stream, reply).await,
        Answer::Route { .. } | Answer::Session(_) | Answer::Enrol(_) | Answer::Blob(_) => return Ok(()),
    };
    let Ok(_place) = shared.web.lookups.try_acquire() else {
        let text = "many domains are being looked up just now: try again in a moment";
        return finish(stream, Reply::Error(WireError::new(ErrorCode::Busy, text))).await;
    };
    let servers = shared.web.resolvers.borrow().clone();
    let found = dns::texts(&servers, &record_name(&domain)).await.map_err(|error| error.to_string());
    let session = user.session;
    let looked_up = |request| Input::LookedUp { request, session, domain, found };
    match shared.core.ask_as(request, looked_up).await.unwrap_or_else(crate::core::ending) {
        Answer::Reply(reply) => finish(stream, reply).await,
        Answer::Route { .. }
        | Answer::Session(_)
        | Answer::Enrol(_)
        | Answer::Blob(_)
        | Answer::Lookup(_) => Ok(()),
    }
}
