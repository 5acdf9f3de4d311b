//! How a node becomes a member: one HTTPS call with a one-time token, to a scheduler whose CA the
//! token pins. The key is made here and never leaves.

use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use shared::api::{JoinReply, JoinRequest};
use shared::ids::{NodeName, Role};
use shared::token::{InvalidJoinToken, JoinToken};

use crate::files;
use crate::identity::{Identity, IdentityError, new_request};
use crate::scheduler_call::{self, CallError};
use crate::tls;

const PATH: &str = "/api/stokehold/v1/join";
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
    #[error(transparent)]
    Call(#[from] CallError),
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
    let made_here = !pki_dir.exists();
    // The token is good for one time: what cannot be kept must not be asked for.
    files::probe_private_dir(pki_dir).map_err(|source| {
        JoinError::Save(IdentityError::Write {
            path: pki_dir.to_owned(),
            source,
        })
    })?;
    let request = new_request();
    let body = JoinRequest {
        token_id: token.id.clone(),
        secret: token.secret.clone(),
        role,
        node: node.clone(),
        csr_pem: request.csr_pem,
        names: names.to_vec(),
    };
    let reply = match send(token, &body).await {
        Ok(reply) => reply,
        Err(error) => {
            if made_here {
                // Nothing is left of a refusal; a folder that somebody else has used meanwhile stays.
                let _ = std::fs::remove_dir(pki_dir);
            }
            return Err(error);
        }
    };
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
        rest: reply.rest.clone(),
    };
    let json = serde_json::to_vec_pretty(&addresses).expect("texts serialise");
    files::write_atomic(&path, &json, 0o644).map_err(|source| JoinError::SaveAddress {
        path: path.display().to_string(),
        source,
    })?;
    Ok(reply)
}

/// Tries each address; that nothing answers at one says nothing of the others.
async fn send(token: &JoinToken, body: &JoinRequest) -> Result<JoinReply, JoinError> {
    let mut failed = None;
    for address in &token.addresses {
        let tls = tls::pinned_client(&token.ca_sha256);
        match scheduler_call::post(address, PATH, tls, body).await {
            Ok(reply) => return Ok(reply),
            Err(error) if error.is_unreachable() => failed = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(failed.map_or(JoinError::Token(InvalidJoinToken), JoinError::Call))
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct SchedulerAddresses {
    /// Of the QUIC listener.
    addresses: Vec<String>,
    /// Of the REST API.
    #[serde(default)]
    rest: Vec<String>,
}

/// Where the scheduler is, as [`join`] learned it; none before a join.
pub fn scheduler_addresses(pki_dir: &Path) -> io::Result<Vec<String>> {
    Ok(read_addresses(pki_dir)?.addresses)
}

/// Where its REST API is: as [`join`] learned it, unless the configuration names other addresses
/// (`configured`). One that joined before this was told takes the other addresses: by default both
/// listeners have one port.
pub fn rest_addresses(pki_dir: &Path, configured: &[String]) -> io::Result<Vec<String>> {
    if !configured.is_empty() {
        return Ok(configured.to_vec());
    }
    let known = read_addresses(pki_dir)?;
    Ok(if known.rest.is_empty() {
        known.addresses
    } else {
        known.rest
    })
}

fn read_addresses(pki_dir: &Path) -> io::Result<SchedulerAddresses> {
    match std::fs::read(pki_dir.join(SCHEDULER_FILE)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(SchedulerAddresses::default()),
        Err(e) => Err(e),
    }
}
