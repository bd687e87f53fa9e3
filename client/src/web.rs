//! The web endpoint of a location: names, the domains they are in, who asked for what.
use crate::error::ClientError;
use crate::location::{Location, fitting};
use wherry_protocol::Limits;
use wherry_protocol::io::{Stream, recv};
use wherry_protocol::message::{
    AccessLine, AcmeSettings, DomainInfo, EndpointInfo, EndpointSpec, Reply, Request,
};

impl Location {
    /// Serves a name on the web endpoint, or serves it otherwise from now on.
    pub async fn publish_endpoint(&self, spec: EndpointSpec) -> Result<EndpointInfo, ClientError> {
        let reply = self.ask(Request::PublishEndpoint(Box::new(spec))).await?;
        fitting!("publish endpoint", reply, Reply::Endpoint(info) => *info)
    }

    /// No longer serves a name.
    pub async fn remove_endpoint(&self, host: &str) -> Result<(), ClientError> {
        let reply = self.ask(Request::RemoveEndpoint(host.to_owned())).await?;
        fitting!("remove endpoint", reply, Reply::Done => ())
    }

    /// This account's names; everybody's, if an admin asks for all.
    pub async fn endpoints(&self, all_accounts: bool) -> Result<Vec<EndpointInfo>, ClientError> {
        let reply = self.ask(Request::Endpoints { all_accounts }).await?;
        fitting!("endpoints", reply, Reply::Endpoints(endpoints) => endpoints)
    }

    /// Requests to this account's names, or to one of them: the last ones and, if `follow`, those that come.
    pub async fn access_log(&self, host: Option<&str>, follow: bool) -> Result<AccessLog, ClientError> {
        let request = Request::AccessLog { host: host.map(str::to_owned), follow };
        let (reply, stream) = self.open(&request).await?;
        fitting!("access log", reply, Reply::Done => AccessLog { location: self.clone(), stream })
    }

    /// Domains that this account has, has begun to claim, or may use.
    pub async fn domains(&self) -> Result<Vec<DomainInfo>, ClientError> {
        fitting!("domains", self.ask(Request::Domains).await?, Reply::Domains(domains) => domains)
    }

    /// Begins to claim a domain: what its TXT record must say.
    pub async fn prepare_domain(&self, domain: &str) -> Result<DomainInfo, ClientError> {
        self.domain(Request::PrepareDomain(domain.to_owned())).await
    }

    /// Claims a domain by its TXT record, or `vouched` for without one (admins only).
    pub async fn claim_domain(&self, domain: &str, vouched: bool) -> Result<DomainInfo, ClientError> {
        self.domain(Request::ClaimDomain { domain: domain.to_owned(), vouched }).await
    }

    /// Lets everybody serve names in a domain, or nobody else.
    pub async fn share_domain(&self, domain: &str, shared: bool) -> Result<DomainInfo, ClientError> {
        self.domain(Request::ShareDomain { domain: domain.to_owned(), shared }).await
    }

    async fn domain(&self, request: Request) -> Result<DomainInfo, ClientError> {
        fitting!("domain", self.ask(request).await?, Reply::Domain(info) => info)
    }

    /// Gives a domain back.
    pub async fn release_domain(&self, domain: &str) -> Result<(), ClientError> {
        let reply = self.ask(Request::ReleaseDomain(domain.to_owned())).await?;
        fitting!("release domain", reply, Reply::Done => ())
    }

    /// Says whom the broker asks for certificates, or that it asks nobody (admins only).
    pub async fn configure_acme(&self, settings: Option<AcmeSettings>) -> Result<(), ClientError> {
        let reply = self.ask(Request::ConfigureAcme(settings.map(Box::new))).await?;
        fitting!("configure acme", reply, Reply::Done => ())
    }
}

/// Lines of the access log.
#[derive(Debug)]
pub struct AccessLog {
    location: Location,
    stream: Stream,
}

impl AccessLog {
    /// The next line; `None` after the last one. Must not be cancelled half-way.
    pub async fn next(&mut self) -> Result<Option<AccessLine>, ClientError> {
        recv(&mut self.stream, Limits::DEFAULT.message_bytes).await.map_err(|error| self.location.lost(error))
    }
}
