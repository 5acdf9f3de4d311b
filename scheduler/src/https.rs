//! The REST API's certificate: the scheduler's own, or the operator's where one is configured.
//!
//! Nodes that join check the scheduler by the cluster's CA and by its internal name. So that an
//! operator's certificate does not keep them out, whoever asks for that name gets the internal
//! certificate, and everybody else the operator's.

use std::sync::Arc;

use daemon::credentials::Credentials;
use daemon::identity::SCHEDULER_NAME;
use daemon::tls::{self, TlsError};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::config::TlsConfig;

pub(crate) fn config(
    tls: &TlsConfig,
    credentials: &Credentials,
) -> Result<Arc<ServerConfig>, TlsError> {
    let internal = tls::https_server(credentials)?;
    let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) else {
        return Ok(internal);
    };
    let outside = tls::https_server_from_pem(certificate, key)?;
    let mut config = ServerConfig::clone(&outside);
    config.cert_resolver = Arc::new(ByName {
        internal: Arc::clone(&internal.cert_resolver),
        outside: Arc::clone(&outside.cert_resolver),
    });
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct ByName {
    internal: Arc<dyn ResolvesServerCert>,
    outside: Arc<dyn ResolvesServerCert>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello.server_name() == Some(SCHEDULER_NAME) {
            self.internal.resolve(hello)
        } else {
            self.outside.resolve(hello)
        }
    }
}
