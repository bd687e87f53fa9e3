//! From what the state wants to what the engine serves.
use crate::record::Certificate;
use crate::state::{Web, WebBackend, WebCaller, WebHost, WebRule};
use std::collections::HashMap;
use std::sync::Arc;
use wherry_endpoint::{
    AccessRule, Backend, Caller, CertifiedKey, Cluster, Host, HostName, Method, Route, RulePath,
    StoredCertificate, Table, TableError,
};
use wherry_protocol::ContainerId;

/// Bits of a backend's number that are its port.
const PORT_BITS: u32 = 16;

/// The number of a container's port. Containers are counted from one, and 2^48 of them there will never be.
pub(crate) fn backend_number(container: ContainerId, port: u16) -> u64 {
    container.0 << PORT_BITS | u64::from(port)
}

/// The other way.
pub(crate) fn backend_of(number: u64) -> (ContainerId, u16) {
    (ContainerId(number >> PORT_BITS), (number & u64::from(u16::MAX)) as u16)
}

/// Builds tables. Remembers certificates, which take longer to read than everything else.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    read: HashMap<String, (Arc<Certificate>, Arc<CertifiedKey>)>,
}

impl Tables {
    pub(crate) fn build(&mut self, web: &Web) -> Result<Table, TableError> {
        self.read.retain(|host, _| web.hosts.get(host).is_some_and(|host| host.certificate.is_some()));
        let hosts: Vec<Host> =
            web.hosts.iter().map(|(name, host)| self.host(name, host)).collect::<Result<_, _>>()?;
        Table::new(hosts)
    }

    fn host(&mut self, name: &str, wanted: &WebHost) -> Result<Host, TableError> {
        let certificate = wanted.certificate.as_ref().and_then(|certificate| self.key(name, certificate));
        let mut host = Host::new(HostName::new(name)?, Arc::default());
        host.customer = wanted.account.0.into();
        host.routes = wanted
            .routes
            .iter()
            .map(|route| {
                let backends = route.backends.iter().map(backend).collect();
                Route { prefix: route.prefix.clone(), cluster: Arc::new(Cluster { backends }) }
            })
            .collect();
        host.rewrite_host.clone_from(&wanted.options.rewrite_host);
        host.redirect_to_https = certificate.is_some() && !wanted.options.plain;
        host.hsts = certificate.is_some() && wanted.options.hsts;
        host.sticky = wanted.options.sticky;
        host.certificate = certificate;
        if let Some(bytes) = wanted.options.max_body_bytes {
            host.max_body_bytes = bytes;
        }
        let rules = wanted.rules.as_ref().map(|rules| rules.iter().map(rule).collect::<Result<_, _>>());
        host.rules = rules.transpose()?;
        Ok(host)
    }

    fn key(&mut self, name: &str, certificate: &Arc<Certificate>) -> Option<Arc<CertifiedKey>> {
        if let Some((known, key)) = self.read.get(name)
            && Arc::ptr_eq(known, certificate)
        {
            return Some(Arc::clone(key));
        }
        match StoredCertificate::read(&certificate.chain, &certificate.key) {
            Ok(read) => {
                let key = read.key();
                self.read.insert(name.to_owned(), (Arc::clone(certificate), Arc::clone(&key)));
                Some(key)
            }
            // It was read when it came.
            Err(error) => {
                tracing::error!("{name} is served without TLS: {error}");
                None
            }
        }
    }
}

fn backend(wanted: &WebBackend) -> Backend {
    Backend { id: backend_number(wanted.container, wanted.port), weight: 1, healthy: wanted.healthy }
}

fn rule(wanted: &WebRule) -> Result<AccessRule, TableError> {
    // The state knows what a method looks like.
    let methods = wanted.methods.iter().filter_map(|method| Method::from_bytes(method.as_bytes()).ok());
    let callers = wanted.callers.iter().map(|caller| match caller {
        WebCaller::Anyone => Caller::Anyone,
        WebCaller::Network(network) => Caller::Network(network.address.into(), network.bits),
        WebCaller::Container(id) => Caller::Container(id.0),
    });
    Ok(AccessRule {
        methods: methods.collect(),
        path: RulePath::new(&wanted.path)?,
        callers: callers.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_backends_can_be_read_back() {
        for (container, port) in [(1, 80), (1 << 40, 65_535), (77, 1)] {
            let number = backend_number(ContainerId(container), port);
            assert_eq!(backend_of(number), (ContainerId(container), port));
        }
    }
}
