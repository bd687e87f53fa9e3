//! One request of one user: first the right, then the deed.
use super::access::{Reach, authorise};
use super::containers::{Asker, Files};
use super::legal::Action;
use super::waiting::{Until, Waiter};
use super::{Broker, Fresh, RequestId, SessionId, error};
use wherry_protocol::message::{ContainerSelector, Event, Reply, Request, RoutedRequest as Routed};
use wherry_protocol::{ErrorCode, NodeIndex, WireError};

/// `None`: the answer comes later.
pub(super) type Now = Result<Option<Reply>, WireError>;

impl Broker {
    pub(super) fn ask(&mut self, request: RequestId, session: SessionId, body: Request, fresh: Fresh) {
        match self.answer_now(request, session, body, fresh) {
            Ok(Some(reply)) => self.reply(request, reply),
            Ok(None) => {}
            Err(error) => self.reply(request, Reply::Error(error)),
        }
    }

    fn answer_now(&mut self, request: RequestId, session: SessionId, body: Request, fresh: Fresh) -> Now {
        let who = self.session_of(session)?;
        let reach = authorise(who.role, &body)?;
        let asker = Asker { request, session, account: who.account, reach };
        let account = who.account;
        match body {
            Request::Ping | Request::Events => done(),
            Request::Status => self.status(account).map(Some),
            Request::Nodes => Ok(Some(self.nodes(|_| true))),
            Request::MissingBlobs(digests) => self.missing_blobs(account, digests).map(Some),
            Request::PutBlob(blob) => self.put_blob(request, account, &blob).map(Some),
            Request::PutImage { name, architecture, manifest } => {
                self.put_image(account, name, architecture, manifest).map(Some)
            }
            Request::Images => Ok(Some(self.images(account))),
            Request::RemoveImage(name) => self.remove_image(account, &name).map(Some),
            Request::ReadBlob(digest) => self.read_blob(account, digest).map(Some),
            Request::Run(run) => self.run(&asker, *run, fresh).map(Some),
            Request::Containers { all_accounts } => Ok(Some(self.containers(account, all_accounts))),
            Request::Inspect(container) => self.inspect(&asker, &container).map(Some),
            Request::Wait { container, until } => self.wait(&asker, &container, until),
            Request::Stop { container, grace_seconds } => self.stop(&asker, &container, grace_seconds),
            Request::Rename { container, name } => self.rename(&asker, &container, name).map(Some),
            Request::Start(container) => self.start(&asker, &container, Files::Kept).map(Some),
            Request::StartClean(container) => self.start(&asker, &container, Files::Fresh).map(Some),
            Request::Wake(container) => self.wake(&asker, &container),
            Request::LabelNode { node, set, remove } => self.label_node(&node, set, &remove).map(Some),
            Request::Remove { container, force } => self.remove(&asker, &container, force),
            Request::Connect(link) => self.connect(&asker, &link),
            Request::Disconnect(link) => self.disconnect(&asker, &link),
            Request::Connections => Ok(Some(self.connections(account))),
            Request::CreateToken { role, lifetime_seconds } => {
                self.create_token(role, lifetime_seconds, fresh).map(Some)
            }
            Request::Accounts => Ok(Some(self.accounts())),
            Request::RemoveAccount(id) => self.remove_account(id).map(Some),
            Request::PublishEndpoint(spec) => self.publish_endpoint(&asker, *spec).map(Some),
            Request::RemoveEndpoint(host) => self.remove_endpoint(&asker, &host).map(Some),
            Request::Endpoints { all_accounts } => Ok(Some(self.endpoints(account, all_accounts))),
            Request::AccessLog { host, .. } => self.access_log(account, host.as_deref()),
            Request::Domains => Ok(Some(self.domains(account))),
            Request::PrepareDomain(domain) => self.prepare_domain(&asker, &domain, fresh).map(Some),
            Request::ClaimDomain { domain, vouched } => self.claim_domain(&asker, &domain, vouched),
            Request::ShareDomain { domain, shared } => self.share_domain(&asker, &domain, shared).map(Some),
            Request::ReleaseDomain(domain) => self.release_domain(&asker, &domain).map(Some),
            Request::ConfigureAcme(settings) => self.configure_acme(settings.map(|s| *s)).map(Some),
            Request::Signal { .. }
            | Request::Exec { .. }
            | Request::Attach(_)
            | Request::Logs { .. }
            | Request::Tunnel { .. }
            | Request::Stats(_)
            | Request::Processes(_)
            | Request::Copy { .. }
            | Request::Pause { .. }
            | Request::Ready { .. }
            | Request::Changes { .. }
            | Request::CrashNode(_) => self.route(&asker, body),
        }
    }

    /// Requests that a board answers on a stream of its own.
    pub(super) fn route(&mut self, asker: &Asker, body: Request) -> Now {
        // The body goes along whole where the request is asked again when its container has started.
        match body.clone() {
            Request::Signal { container, signal } => {
                let signal = super::spec::check_signal(signal)?;
                self.enter(asker, &container, |container| Routed::Signal { container, signal })
            }
            Request::Exec { container, spec } => {
                super::spec::check_exec(&spec)?;
                self.enter(asker, &container, |container| Routed::Exec { container, spec })
            }
            Request::Tunnel { container, port, transport } => {
                let port = super::spec::check_port(port)?;
                self.enter(asker, &container, |container| Routed::Tunnel { container, port, transport })
            }
            Request::Stats(container) => {
                self.enter(asker, &container, |container| Routed::Stats { container })
            }
            Request::Processes(container) => {
                self.enter(asker, &container, |container| Routed::Processes { container })
            }
            Request::Copy { container, copy } => {
                super::spec::check_copy(&copy)?;
                self.enter(asker, &container, |container| Routed::Copy { container, copy })
            }
            Request::Pause { container, paused } => {
                self.enter(asker, &container, |container| Routed::Pause { container, paused })
            }
            Request::Changes { container, query } => {
                self.watch(asker, &container, &body, |container| Routed::Changes { container, query })
            }
            Request::Ready { container, probe, timeout_ms } => {
                super::spec::check_probe(probe.as_ref())?;
                let ready = |container| Routed::Ready { container, probe, timeout_ms };
                self.watch(asker, &container, &body, ready)
            }
            Request::Attach(container) => {
                self.watch(asker, &container, &body, |container| Routed::Attach { container })
            }
            Request::Logs { container, query } => {
                self.watch(asker, &container, &body, |container| Routed::Logs { container, query })
            }
            Request::CrashNode(index) => self.crash_node(asker, index),
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
            | Request::Containers { .. }
            | Request::Inspect(_)
            | Request::Wait { .. }
            | Request::Stop { .. }
            | Request::Rename { .. }
            | Request::Start(_)
            | Request::StartClean(_)
            | Request::Wake(_)
            | Request::LabelNode { .. }
            | Request::Remove { .. }
            | Request::Connect(_)
            | Request::Disconnect(_)
            | Request::Connections
            | Request::CreateToken { .. }
            | Request::Accounts
            | Request::RemoveAccount(_)
            | Request::PublishEndpoint(_)
            | Request::RemoveEndpoint(_)
            | Request::Endpoints { .. }
            | Request::AccessLog { .. }
            | Request::Domains
            | Request::PrepareDomain(_)
            | Request::ClaimDomain { .. }
            | Request::ShareDomain { .. }
            | Request::ReleaseDomain(_)
            | Request::ConfigureAcme(_)
            | Request::Events => Err(error(ErrorCode::Internal, "this request is not for a board")),
        }
    }

    fn crash_node(&mut self, asker: &Asker, index: NodeIndex) -> Now {
        let session = self.board_session(index)?;
        self.send_route(asker.request, session, asker.account, Routed::Crash);
        Ok(None)
    }

    fn enter(
        &mut self,
        asker: &Asker,
        container: &ContainerSelector,
        routed: impl FnOnce(wherry_protocol::ContainerRef) -> Routed,
    ) -> Now {
        let (id, _) = self.find(asker, container)?;
        self.permitted(id, Action::Enter)?;
        self.route_to(asker, id, routed)
    }

    fn watch(
        &mut self,
        asker: &Asker,
        container: &ContainerSelector,
        body: &Request,
        routed: impl FnOnce(wherry_protocol::ContainerRef) -> Routed,
    ) -> Now {
        let (id, _) = self.find(asker, container)?;
        match self.permitted(id, Action::Watch)? {
            super::containers::Step::Go | super::containers::Step::Already => {
                self.route_to(asker, id, routed)
            }
            super::containers::Step::WhenStarted => {
                let until = Until::Route { session: asker.session, body: Box::new(body.clone()) };
                self.wait_for(asker.request, Waiter::Container { id, until }, None);
                Ok(None)
            }
        }
    }

    fn route_to(
        &mut self,
        asker: &Asker,
        id: wherry_protocol::ContainerId,
        routed: impl FnOnce(wherry_protocol::ContainerRef) -> Routed,
    ) -> Now {
        let (node, container) = self.reference(id)?;
        let session = self.board_session(node)?;
        self.send_route(asker.request, session, asker.account, routed(container));
        Ok(None)
    }

    /// An answer that was put off until the container started.
    pub(super) fn route_later(&mut self, request: RequestId, session: SessionId, body: Request) {
        let result = self.session_of(session).and_then(|who| {
            let asker = Asker { request, session, account: who.account, reach: Reach::Own };
            self.route(&asker, body)
        });
        match result {
            Ok(Some(reply)) => self.reply(request, reply),
            Ok(None) => {}
            Err(error) => self.reply(request, Reply::Error(error)),
        }
    }

    pub(super) fn container_event(&mut self, id: wherry_protocol::ContainerId) {
        if let Some(container) = self.tables.container(id).filter(|c| c.is_present()) {
            let (account, info) = (container.account, self.info(id, container));
            self.event(Some(account), Event::Container(Box::new(info)));
        }
    }
}

fn done() -> Now {
    Ok(Some(Reply::Done))
}
