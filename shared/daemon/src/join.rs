//! How a node becomes a member: one HTTPS call with a one-time token, to a scheduler whose CA the
//! token pins. The key is made here and never leaves.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::api::{ErrorBody, JoinReply, JoinRequest};
use shared::ids::{NodeName, Role};
use shared::token::{InvalidJoinToken, JoinToken};

use crate::files;
use crate::identity::{Identity, IdentityError, SCHEDULER_NAME, new_request};
use crate::tls;

const TIMEOUT: Duration = Duration::from_secs(20);
/// A token is a few hundred bytes.
const MAX_TOKEN_BYTES: u64 = 16 << 10;
/// Beside the identity: where the scheduler is.
const SCHEDULER_FILE: &str = "scheduler.json";

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("read the join token from {from}")]
    ReadToken {
        from: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Token(#[from] InvalidJoinToken),
    #[error("reach the scheduler at {}", addresses.join(", "))]
    Unreachable {
        addresses: Vec<String>,
        #[source]
        source: reqwest::Error,
    },
    #[error(
        "the scheduler at {address} does not present the certificate authority that the token pins: \
         another cluster answers there, or someone in between does; make a new token with \
         `stokehold node token`"
    )]
    OtherAuthority { address: String },
    #[error("the scheduler refused: {message} ({code})")]
    Refused { code: String, message: String },
    #[error("the scheduler's answer is not readable")]
    Answer(#[source] reqwest::Error),
    #[error("keep the new identity")]
    Save(#[source] IdentityError),
    #[error("keep the scheduler's address in {path}")]
    SaveAddress {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Reads a token from a file, or from stdin for `None` and `-`: never from an argument, which every
/// user of the machine could see.
pub fn read_token(file: Option<&Path>) -> Result<JoinToken, JoinError> {
    let mut text = String::new();
    let (from, read) = match file {
        Some(path) if path != Path::new("-") => (
            path.display().to_string(),
            std::fs::File::open(path)
                .and_then(|f| f.take(MAX_TOKEN_BYTES).read_to_string(&mut text)),
        ),
        _ => {
            let stdin = io::stdin().lock();
            (
                "standard input".to_owned(),
                stdin.take(MAX_TOKEN_BYTES).read_to_string(&mut text),
            )
        }
    };
    read.map_err(|source| JoinError::ReadToken { from, source })?;
    Ok(JoinToken::decode(&text)?)
}

/// Joins as `role` of `node` and keeps the identity in `pki_dir`. `names` are the host names and
/// addresses that clients will use, for a gateway's certificate.
pub async fn join(
    token: &JoinToken,
    role: Role,
    node: &NodeName,
    names: &[String],
    pki_dir: &Path,
) -> Result<JoinReply, JoinError> {
    let request = new_request();
    let body = JoinRequest {
        token_id: token.id.clone(),
        secret: token.secret.clone(),
        role,
        node: node.clone(),
        csr_pem: request.csr_pem,
        names: names.to_vec(),
    };
    let reply = send(token, &body).await?;
    Identity::save(
        pki_dir,
        &reply.certificate_pem,
        &request.key_pem,
        &reply.ca_pem,
    )
    .map_err(JoinError::Save)?;
    let path = pki_dir.join(SCHEDULER_FILE);
    let addresses = SchedulerAddresses {
        addresses: reply.scheduler.clone(),
    };
    let json = serde_json::to_vec_pretty(&addresses).expect("texts serialise");
    files::write_atomic(&path, &json, 0o644).map_err(|source| JoinError::SaveAddress {
        path: path.display().to_string(),
        source,
    })?;
    Ok(reply)
}

async fn send(token: &JoinToken, body: &JoinRequest) -> Result<JoinReply, JoinError> {
    let mut unreachable = None;
    for address in &token.addresses {
        match post(address, &token.ca_sha256, body).await {
            Err(error) if error.is_connect() && is_certificate_error(&error) => {
                return Err(JoinError::OtherAuthority {
                    address: address.clone(),
                });
            }
            Err(error) if error.is_connect() || error.is_timeout() => unreachable = Some(error),
            Err(error) => return Err(JoinError::Answer(error)),
            Ok(response) => return read_answer(response).await,
        }
    }
    Err(match unreachable {
        Some(source) => JoinError::Unreachable {
            addresses: token.addresses.clone(),
            source,
        },
        None => JoinError::Token(InvalidJoinToken),
    })
}

async fn post(
    address: &str,
    ca_sha256: &str,
    body: &JoinRequest,
) -> Result<reqwest::Response, reqwest::Error> {
    // The name that the certificate is checked for is the scheduler's role, whatever its address.
    let socket = tokio::net::lookup_host(address)
        .await
        .ok()
        .and_then(|mut found| found.next());
    let port = address.rsplit_once(':').map_or("7443", |(_, port)| port);
    let host = if socket.is_some() {
        SCHEDULER_NAME
    } else {
        address
    };
    let mut client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls::pinned_client(ca_sha256))
        .timeout(TIMEOUT)
        .no_proxy();
    if let Some(socket) = socket {
        client = client.resolve(SCHEDULER_NAME, socket);
    }
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let url = format!("https://{host}:{port}/api/stokehold/v1/join");
    client.build()?.post(url).json(body).send().await
}

/// Whether a refused certificate is somewhere below. An `io::Error` hides what it wraps from
/// `source`, hence the detour.
fn is_certificate_error(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    let wrapped = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    if wrapped.is_some_and(|inner| is_certificate_error(inner)) {
        return true;
    }
    error.source().is_some_and(is_certificate_error)
}

async fn read_answer(response: reqwest::Response) -> Result<JoinReply, JoinError> {
    if response.status().is_success() {
        return response.json().await.map_err(JoinError::Answer);
    }
    let status = response.status();
    Err(match response.json::<ErrorBody>().await {
        Ok(body) => JoinError::Refused {
            code: body.error_code,
            message: body.message,
        },
        Err(_) => JoinError::Refused {
            code: status.as_u16().to_string(),
            message: "no reason was given".to_owned(),
        },
    })
}

#[derive(Debug, Serialize, Deserialize)]
struct SchedulerAddresses {
    addresses: Vec<String>,
}

/// Where the scheduler is, as [`join`] learned it; none before a join.
pub fn scheduler_addresses(pki_dir: &Path) -> io::Result<Vec<String>> {
    match std::fs::read(pki_dir.join(SCHEDULER_FILE)) {
        Ok(bytes) => serde_json::from_slice::<SchedulerAddresses>(&bytes)
            .map(|file| file.addresses)
            .map_err(io::Error::other),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}
