//! Who may ask for what: one exhaustive table, so that a new request cannot be forgotten.
use wherry_protocol::message::Request;
use wherry_protocol::{ErrorCode, Role, WireError};

/// Whose things a request may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Only those of the asking account.
    Own,
    /// Those of every account.
    Any,
}

/// What the two human roles may do.
struct Rule {
    user: Option<Reach>,
    admin: Reach,
}

const OWN: Rule = Rule { user: Some(Reach::Own), admin: Reach::Own };
const ADMIN_ANY: Rule = Rule { user: Some(Reach::Own), admin: Reach::Any };
const ADMIN_ONLY: Rule = Rule { user: None, admin: Reach::Any };

/// An admin sees, stops and removes everything, but does not enter what is not their own: no exec, no output, no
/// tunnel into another account's container.
fn rule(request: &Request) -> Rule {
    match request {
        Request::Ping
        | Request::Status
        | Request::Nodes
        | Request::MissingBlobs(_)
        | Request::PutBlob(_)
        | Request::PutImage { .. }
        | Request::Images
        | Request::RemoveImage(_)
        | Request::ReadBlob(_)
        | Request::Run(_)
        | Request::Containers { all_accounts: false }
        | Request::Start(_)
        | Request::StartClean(_)
        | Request::Wake(_)
        | Request::Changes { .. }
        | Request::Ready { .. }
        | Request::Rename { .. }
        | Request::Processes(_)
        | Request::Copy { .. }
        | Request::Signal { .. }
        | Request::Connect(_)
        | Request::Disconnect(_)
        | Request::Connections
        | Request::Exec { .. }
        | Request::Attach(_)
        | Request::Logs { .. }
        | Request::Tunnel { .. }
        | Request::PublishEndpoint(_)
        | Request::Endpoints { all_accounts: false }
        | Request::AccessLog { .. }
        | Request::Domains
        | Request::PrepareDomain(_)
        | Request::ClaimDomain { vouched: false, .. }
        | Request::ShareDomain { .. } => OWN,
        Request::Inspect(_)
        | Request::Wait { .. }
        | Request::Stop { .. }
        | Request::Pause { .. }
        | Request::Stats(_)
        | Request::Remove { .. }
        | Request::RemoveEndpoint(_)
        | Request::ReleaseDomain(_)
        | Request::Events => ADMIN_ANY,
        Request::Containers { all_accounts: true }
        | Request::Endpoints { all_accounts: true }
        | Request::ClaimDomain { vouched: true, .. }
        | Request::ConfigureAcme(_)
        | Request::CreateToken { .. }
        | Request::Accounts
        | Request::RemoveAccount(_)
        | Request::LabelNode { .. }
        | Request::CrashNode(_) => ADMIN_ONLY,
    }
}

/// Decides whether `role` may make `request`, and on whose things.
///
/// # Errors
/// [`ErrorCode::Forbidden`] with the sentence for the asker.
pub fn authorise(role: Role, request: &Request) -> Result<Reach, WireError> {
    let rule = rule(request);
    match role {
        Role::User => rule
            .user
            .ok_or_else(|| forbidden("only an admin may do this: ask one, or enrol with an admin token")),
        Role::Admin => Ok(rule.admin),
        Role::Node => Err(forbidden("this key is a board's: enrol with a user token to use the cluster")),
    }
}

fn forbidden(message: &str) -> WireError {
    WireError::new(ErrorCode::Forbidden, message)
}
