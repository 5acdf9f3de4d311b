//! The two HTTPS calls that a node makes without a session: joining and renewing. Both check the
//! scheduler by its internal name, whatever its address, and tell apart what can be wrong with that
//! address.

use std::io;
use std::time::Duration;

use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::api::ErrorBody;

use crate::identity::SCHEDULER_NAME;
use crate::tls::{self, OtherAuthority};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Why a scheduler's address did not lead to an answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(
        "the scheduler's address {address} does not resolve: correct it, or the name service of \
         this machine"
    )]
    Resolve {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "nothing answers at the scheduler's address {address} (TCP): is stokehold-scheduler running \
         there, is the address the right one, and does a firewall let it through?"
    )]
    Unreachable {
        address: String,
        #[source]
        source: reqwest::Error,
    },
    #[error(
        "what answers at {address} does not speak TLS, so it is not a Stokehold scheduler: correct \
         the address"
    )]
    NotTls {
        address: String,
        #[source]
        source: reqwest::Error,
    },
    #[error(
        "what answers at {address} does not present the certificate authority that is expected: it \
         is {presented}. Correct the address, or make a new token with `stokehold node token` at the \
         cluster that is meant; if both are right, someone in between answers"
    )]
    OtherAuthority { address: String, presented: String },
    #[error("the scheduler at {address} cannot be trusted: {problem}")]
    Certificate { address: String, problem: String },
    #[error("the scheduler at {address} refused: {message} ({code})")]
    Refused {
        address: String,
        status: u16,
        code: String,
        message: String,
    },
    #[error("the answer of the scheduler at {address} is not readable")]
    Answer {
        address: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("the client for {address} cannot be made")]
    Client {
        address: String,
        #[source]
        source: reqwest::Error,
    },
}

impl CallError {
    /// Whether another address may do better.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Resolve { .. } | Self::Unreachable { .. } | Self::NotTls { .. }
        )
    }
}

/// Posts JSON to the scheduler at `host:port`, and reads the answer.
pub(crate) async fn post<B: Serialize, R: DeserializeOwned>(
    address: &str,
    path: &str,
    tls: ClientConfig,
    body: &B,
) -> Result<R, CallError> {
    let found = tokio::net::lookup_host(address).await;
    let socket = found.and_then(|mut all| {
        all.next()
            .ok_or_else(|| io::Error::other("the name has no address"))
    });
    let at = || address.to_owned();
    let socket = socket.map_err(|source| CallError::Resolve {
        address: at(),
        source,
    })?;
    // The name that the certificate is checked for is the scheduler's role, whatever its address.
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .timeout(TIMEOUT)
        .no_proxy()
        .resolve(SCHEDULER_NAME, socket)
        .build()
        .map_err(|source| CallError::Client {
            address: at(),
            source,
        })?;
    let url = format!("https://{SCHEDULER_NAME}:{}{path}", socket.port());
    let response = match client.post(url).json(body).send().await {
        Ok(response) => response,
        Err(error) => return Err(of_transport(at(), error)),
    };
    let status = response.status();
    if status.is_success() {
        let read = response.json().await;
        return read.map_err(|source| CallError::Answer {
            address: at(),
            source,
        });
    }
    let (code, message) = match response.json::<ErrorBody>().await {
        Ok(body) => (body.error_code, body.message),
        Err(_) => (
            status.as_u16().to_string(),
            "no reason was given".to_owned(),
        ),
    };
    Err(CallError::Refused {
        address: at(),
        status: status.as_u16(),
        code,
        message,
    })
}

fn of_transport(address: String, error: reqwest::Error) -> CallError {
    // The URL holds the internal name, which tells nobody anything.
    let source = error.without_url();
    match tls_error(&source) {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)))
            if other.0.downcast_ref::<OtherAuthority>().is_some() =>
        {
            let seen = other.0.downcast_ref::<OtherAuthority>();
            let name = seen.and_then(|seen| seen.name.as_deref());
            let presented = match name {
                Some(name) if name.starts_with(crate::ca::AUTHORITY_NAME) => {
                    format!(
                        "that of another cluster, or of this one under another authority ({name})"
                    )
                }
                Some(name) => format!("another HTTPS server (certificate of {name:?})"),
                None => "another HTTPS server".to_owned(),
            };
            CallError::OtherAuthority { address, presented }
        }
        Some(error @ rustls::Error::InvalidCertificate(_)) => CallError::Certificate {
            address,
            problem: tls::explain(error).unwrap_or_else(|| error.to_string()),
        },
        Some(rustls::Error::AlertReceived(_) | rustls::Error::PeerIncompatible(_)) => {
            let presented = "another TLS server, which does not talk to this one".to_owned();
            CallError::OtherAuthority { address, presented }
        }
        Some(rustls::Error::InvalidMessage(_)) => CallError::NotTls { address, source },
        _ if source.is_connect() || source.is_timeout() => {
            CallError::Unreachable { address, source }
        }
        _ => CallError::Answer { address, source },
    }
}

/// What TLS said, somewhere below. An `io::Error` hides what it wraps from `source`, hence the
/// detour.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return Some(found);
    }
    let wrapped = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    if let Some(found) = wrapped.and_then(|inner| tls_error(inner)) {
        return Some(found);
    }
    error.source().and_then(tls_error)
}
