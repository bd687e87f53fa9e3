//! A joined cluster: everything that can be asked of its broker.
use crate::container::{Container, Events};
use crate::error::ClientError;
use crate::image::Image;
use crate::node::Node;
use crate::session::Session;
use crate::store::{Config, StoredLocation};
use futures_util::AsyncReadExt as _;
use std::sync::Arc;
use wherry_protocol::io::{Stream, recv, send};
use wherry_protocol::limits::MAX_READ_BLOB_BYTES;
use wherry_protocol::message::{
    AccountInfo, ConnectRequest, ConnectionInfo, ContainerInfo, ContainerSelector, ImageName, NodeInfo,
    Reply, Request, RuleInfo, RunRequest, StatusInfo,
};
use wherry_protocol::{AccountId, Digest, Limits, Name, NodeIndex, Role};

/// Takes the one reply that fits the request out of all there are.
macro_rules! fitting {
    ($question:literal, $reply:expr, $pattern:pat $(if $guard:expr)? => $value:expr) => {
        match $reply {
            $pattern $(if $guard)? => Ok($value),
            _ => Err(ClientError::Unexpected($question)),
        }
    };
}
pub(crate) use fitting;

/// A cluster, connected. Clones share the session, which is renewed when it breaks.
#[derive(Debug, Clone)]
pub struct Location {
    session: Arc<Session>,
    stored: Arc<StoredLocation>,
}

/// A new token and when it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// `wry1-…@address`, ready for `wherry join` or a board's configuration.
    pub text: String,
    /// Unix seconds.
    pub expires_seconds: u64,
}

impl Location {
    /// Connects to a stored location: the named one, else the default, else the only one.
    pub async fn connect(config: &Config, name: Option<&Name>) -> Result<Self, ClientError> {
        let location = Self::stored(config.choose(name)?);
        location.ping().await?;
        Ok(location)
    }

    /// A location that will be dialled at the first request.
    #[must_use]
    pub fn stored(stored: StoredLocation) -> Self {
        let session = Session::new(stored.address.clone(), stored.secret.clone(), stored.broker);
        Self { session: Arc::new(session), stored: Arc::new(stored) }
    }

    /// What is stored about it here.
    #[must_use]
    pub fn info(&self) -> &StoredLocation {
        &self.stored
    }

    /// Ends the session in order. Using the location again dials anew.
    pub async fn close(&self) {
        self.session.close().await;
    }

    /// Opens a stream, sends `request` and gives the reply and the stream behind it.
    ///
    /// If the stream breaks before the reply, a request that may be repeated is tried once more: on a new session if this one
    /// has ended. The streams of others on a session that lives on are left alone.
    pub(crate) async fn open(&self, request: &Request) -> Result<(Reply, Stream), ClientError> {
        match self.open_once(request).await {
            Err(error) if error.is_lost() && repeatable(request) => self.open_once(request).await,
            result => result,
        }
    }

    async fn open_once(&self, request: &Request) -> Result<(Reply, Stream), ClientError> {
        let mut stream = self.session.open().await?;
        send(&mut stream, request).await.map_err(|error| self.lost(error))?;
        let reply = self.reply(&mut stream).await?;
        Ok((reply, stream))
    }

    /// The next reply on a stream; a refusal becomes an error.
    pub(crate) async fn reply(&self, stream: &mut Stream) -> Result<Reply, ClientError> {
        match recv(stream, Limits::DEFAULT.message_bytes).await {
            Ok(Some(Reply::Error(error))) => Err(ClientError::Refused(error)),
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(self.lost(wherry_protocol::io::SessionError::Closed)),
            Err(error) => Err(self.lost(error)),
        }
    }

    pub(crate) fn lost(&self, error: wherry_protocol::io::SessionError) -> ClientError {
        ClientError::on_session(self.session.address(), error)
    }

    pub(crate) async fn ask(&self, request: Request) -> Result<Reply, ClientError> {
        Ok(self.open(&request).await?.0)
    }

    /// Makes sure that the broker answers.
    pub async fn ping(&self) -> Result<(), ClientError> {
        fitting!("ping", self.ask(Request::Ping).await?, Reply::Done => ())
    }

    /// Who we are there, and what the broker is.
    pub async fn status(&self) -> Result<StatusInfo, ClientError> {
        fitting!("status", self.ask(Request::Status).await?, Reply::Status(status) => status)
    }

    /// The boards and their load.
    pub async fn nodes(&self) -> Result<Vec<Node>, ClientError> {
        let nodes = fitting!("nodes", self.ask(Request::Nodes).await?, Reply::Nodes(nodes) => nodes)?;
        Ok(nodes.into_iter().map(|info| Node::new(self.clone(), info)).collect())
    }

    /// One board by name or by number (`n2`).
    pub async fn node(&self, name: &str) -> Result<Option<Node>, ClientError> {
        let is = |info: &NodeInfo| info.name.as_str() == name || info.index.to_string() == name;
        Ok(self.nodes().await?.into_iter().find(|node| is(node.info())))
    }

    /// Says something about a board, for placement (admins only): values of labels by name, and names of labels that go.
    pub async fn label_node(
        &self,
        name: &str,
        set: Vec<(String, String)>,
        remove: Vec<String>,
    ) -> Result<Node, ClientError> {
        let reply = self.ask(Request::LabelNode { node: name.to_owned(), set, remove }).await?;
        let nodes = fitting!("label node", reply, Reply::Nodes(nodes) => nodes)?;
        let node = nodes.into_iter().next().ok_or(ClientError::Unexpected("label node"))?;
        Ok(Node::new(self.clone(), node))
    }

    /// This account's images.
    pub async fn images(&self) -> Result<Vec<Image>, ClientError> {
        let images = fitting!("images", self.ask(Request::Images).await?, Reply::Images(images) => images)?;
        Ok(images.into_iter().map(|info| Image::new(self.clone(), info)).collect())
    }

    /// Forgets an image's name, and the blobs that nothing else needs.
    pub async fn remove_image(&self, name: &ImageName) -> Result<(), ClientError> {
        fitting!("remove image", self.ask(Request::RemoveImage(name.clone())).await?, Reply::Done => ())
    }

    /// A small blob that this account has, such as a configuration; verified.
    pub(crate) async fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, ClientError> {
        let (reply, stream) = self.open(&Request::ReadBlob(*digest)).await?;
        let size = fitting!("read blob", reply, Reply::Blob { size } if size <= MAX_READ_BLOB_BYTES => size)?;
        let mut bytes = Vec::new();
        let read = stream.take(size).read_to_end(&mut bytes).await;
        read.map_err(|error| self.lost(wherry_protocol::io::SessionError::from(error)))?;
        match Digest::of(&bytes) == *digest {
            true => Ok(bytes),
            false => Err(ClientError::WrongBlob(*digest)),
        }
    }

    /// Creates and starts a container. It may still be fetching its image: [`Container::wait_started`].
    pub async fn run(&self, request: RunRequest) -> Result<(Container, ContainerInfo), ClientError> {
        let reply = self.ask(Request::Run(Box::new(request))).await?;
        let info = fitting!("run", reply, Reply::Container(info) => *info)?;
        Ok((self.container(ContainerSelector::Id(info.id)), info))
    }

    /// A handle on a container; nothing is asked yet.
    #[must_use]
    pub fn container(&self, selector: ContainerSelector) -> Container {
        Container::new(self.clone(), selector)
    }

    /// This account's containers; everybody's, if an admin asks for all.
    pub async fn containers(&self, all_accounts: bool) -> Result<Vec<ContainerInfo>, ClientError> {
        let reply = self.ask(Request::Containers { all_accounts }).await?;
        fitting!("containers", reply, Reply::Containers(containers) => containers)
    }

    /// Lets one container connect to another; doing it again changes nothing.
    pub async fn allow(&self, connection: ConnectRequest) -> Result<(), ClientError> {
        fitting!("connect", self.ask(Request::Connect(connection)).await?, Reply::Done => ())
    }

    /// Takes that back, established flows included.
    pub async fn disallow(&self, connection: ConnectRequest) -> Result<(), ClientError> {
        fitting!("disconnect", self.ask(Request::Disconnect(connection)).await?, Reply::Done => ())
    }

    /// This account's connections.
    pub async fn connections(&self) -> Result<(Vec<ConnectionInfo>, Vec<RuleInfo>), ClientError> {
        let reply = self.ask(Request::Connections).await?;
        fitting!("connections", reply, Reply::Connections { connections, rules } => (connections, rules))
    }

    /// Makes a one-time token (admins only), with the address that this location uses.
    pub async fn create_token(&self, role: Role, lifetime_seconds: u32) -> Result<NewToken, ClientError> {
        let reply = self.ask(Request::CreateToken { role, lifetime_seconds }).await?;
        let (text, expires_seconds) = fitting!("create token", reply,
            Reply::Token { text, expires_seconds } => (text, expires_seconds))?;
        Ok(NewToken { text: format!("{text}@{}", self.stored.address), expires_seconds })
    }

    /// Accounts (admins only).
    pub async fn accounts(&self) -> Result<Vec<AccountInfo>, ClientError> {
        fitting!("accounts", self.ask(Request::Accounts).await?, Reply::Accounts(accounts) => accounts)
    }

    /// Removes an account or a node with all it has (admins only).
    pub async fn remove_account(&self, account: AccountId) -> Result<(), ClientError> {
        fitting!("remove account", self.ask(Request::RemoveAccount(account)).await?, Reply::Done => ())
    }

    /// Makes a node's service abort; only test images obey (admins only).
    pub async fn crash_node(&self, node: NodeIndex) -> Result<(), ClientError> {
        fitting!("crash node", self.ask(Request::CrashNode(node)).await?, Reply::Done => ())
    }

    /// What happens from now on.
    pub async fn events(&self) -> Result<Events, ClientError> {
        let (reply, stream) = self.open(&Request::Events).await?;
        fitting!("events", reply, Reply::Done => Events::new(self.clone(), stream))
    }
}

/// Whether asking twice is the same as asking once, so that a request may be sent again when nobody knows whether the
/// first one arrived.
fn repeatable(request: &Request) -> bool {
    match request {
        Request::Ping
        | Request::Status
        | Request::Nodes
        | Request::MissingBlobs(_)
        | Request::PutBlob(_)
        | Request::PutImage { .. }
        | Request::Images
        | Request::ReadBlob(_)
        | Request::Containers { .. }
        | Request::Inspect(_)
        | Request::Wait { .. }
        | Request::Connect(_)
        | Request::Disconnect(_)
        | Request::Connections
        | Request::Attach(_)
        | Request::Logs { .. }
        | Request::Tunnel { .. }
        | Request::Rename { .. }
        | Request::Stats(_)
        | Request::Processes(_)
        | Request::Accounts
        | Request::Pause { .. }
        | Request::Ready { .. }
        | Request::Wake(_)
        | Request::Changes { .. }
        | Request::LabelNode { .. }
        | Request::PublishEndpoint(_)
        | Request::Endpoints { .. }
        | Request::AccessLog { .. }
        | Request::Domains
        | Request::PrepareDomain(_)
        | Request::ClaimDomain { .. }
        | Request::ShareDomain { .. }
        | Request::ConfigureAcme(_)
        | Request::Events => true,
        Request::RemoveImage(_)
        | Request::Run(_)
        | Request::Stop { .. }
        | Request::Start(_)
        | Request::Remove { .. }
        | Request::Signal { .. }
        | Request::Exec { .. }
        | Request::Copy { .. }
        | Request::CreateToken { .. }
        | Request::RemoveAccount(_)
        | Request::StartClean(_)
        | Request::RemoveEndpoint(_)
        | Request::ReleaseDomain(_)
        | Request::CrashNode(_) => false,
    }
}
