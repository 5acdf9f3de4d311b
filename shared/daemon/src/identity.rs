//! Certificates as identities: a role, a node and a cluster.
//!
//! The certificate carries them twice: as URI `spiffe://CLUSTER/ROLE/NODE` for whoever accepts a
//! connection, and as DNS name `NODE.ROLE.stokehold.internal` for whoever opens one, whose ordinary
//! TLS name check then verifies role and node.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use shared::ids::{ClusterId, NodeName, Role};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::files;

/// Who a certificate says its holder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub cluster: ClusterId,
    pub role: Role,
    pub node: NodeName,
}

impl Subject {
    pub fn uri(&self) -> String {
        format!("spiffe://{}/{}/{}", self.cluster, self.role, self.node)
    }

    fn from_uri(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix("spiffe://")?.splitn(3, '/');
        Some(Self {
            cluster: ClusterId::parse(parts.next()?).ok()?,
            role: parts.next()?.parse().ok()?,
            node: NodeName::parse(parts.next()?).ok()?,
        })
    }
}

/// The DNS name under which a daemon's certificate is checked. There is one scheduler to talk to,
/// whichever node it is on.
pub fn server_name(role: Role, node: &NodeName) -> String {
    match role {
        Role::Scheduler => SCHEDULER_NAME.to_owned(),
        Role::Agent | Role::Gateway => format!("{node}.{role}{INTERNAL_DOMAIN}"),
    }
}

pub const SCHEDULER_NAME: &str = "scheduler.stokehold.internal";
/// No certificate carries a name below it that its holder could choose.
pub const INTERNAL_DOMAIN: &str = ".stokehold.internal";

/// A certificate with its key and the CA that signed it.
#[derive(Clone, Debug)]
pub struct Identity {
    pub subject: Subject,
    /// The certificate, then the CA's, so that a joining node can compare the CA with its token.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Arc<PrivateKeyDer<'static>>,
    pub ca: CertificateDer<'static>,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("no identity in {}: join this node first (`join --token-file FILE`)", folder.display())]
    Missing { folder: PathBuf },
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not valid PEM: {problem}", path.display())]
    Pem { path: PathBuf, problem: String },
    #[error("certificate is not readable: {0}")]
    Certificate(String),
    #[error("certificate carries no Stokehold identity (URI spiffe://CLUSTER/ROLE/NODE)")]
    NoSubject,
}

const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";
const CA: &str = "ca.pem";

impl Identity {
    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        if !folder.join(CERTIFICATE).exists() {
            return Err(IdentityError::Missing {
                folder: folder.to_owned(),
            });
        }
        let certificates = |name: &str| {
            let path = folder.join(name);
            let pem = read(&path)?;
            CertificateDer::pem_slice_iter(&pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| IdentityError::Pem {
                    path: path.clone(),
                    problem: e.to_string(),
                })
                .and_then(|found| match found.first() {
                    Some(_) => Ok(found),
                    None => Err(IdentityError::Pem {
                        path,
                        problem: "no certificate".into(),
                    }),
                })
        };
        let mut chain = certificates(CERTIFICATE)?;
        let ca = certificates(CA)?.remove(0);
        let key_path = folder.join(KEY);
        let key =
            PrivateKeyDer::from_pem_slice(&read(&key_path)?).map_err(|e| IdentityError::Pem {
                path: key_path,
                problem: e.to_string(),
            })?;
        let subject = subject_of(&chain[0])?;
        if !chain.contains(&ca) {
            chain.push(ca.clone());
        }
        Ok(Self {
            subject,
            chain,
            key: Arc::new(key),
            ca,
        })
    }

    /// Writes the three files; the key is readable by its owner only.
    pub fn save(folder: &Path, cert: &str, key: &str, ca: &str) -> Result<(), IdentityError> {
        let write = |name: &str, text: &str, mode| {
            let path = folder.join(name);
            files::write_atomic(&path, text.as_bytes(), mode)
                .map_err(|source| IdentityError::Write { path, source })
        };
        files::private_dir(folder, 0o700).map_err(|source| IdentityError::Write {
            path: folder.to_owned(),
            source,
        })?;
        write(CA, ca, 0o644)?;
        write(KEY, key, 0o600)?;
        write(CERTIFICATE, cert, 0o644)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    std::fs::read(path).map_err(|source| IdentityError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Who a certificate is for. The chain of trust is TLS's to check, not this function's.
pub fn subject_of(certificate: &CertificateDer<'_>) -> Result<Subject, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| IdentityError::Certificate(e.to_string()))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|e| IdentityError::Certificate(e.to_string()))?
        .ok_or(IdentityError::NoSubject)?;
    let uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Subject::from_uri(uri),
            _ => None,
        });
    uris.into_iter().next().ok_or(IdentityError::NoSubject)
}

/// When a certificate stops being valid, in Unix seconds, and its whole lifetime.
pub fn validity_of(certificate: &CertificateDer<'_>) -> Result<(i64, i64), IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| IdentityError::Certificate(e.to_string()))?;
    let validity = parsed.validity();
    let end = validity.not_after.timestamp();
    Ok((end, end - validity.not_before.timestamp()))
}

/// The DNS names and IP addresses that a certificate is valid for, as text.
pub fn names_of(certificate: &CertificateDer<'_>) -> Result<Vec<String>, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| IdentityError::Certificate(e.to_string()))?;
    let Some(names) = parsed
        .subject_alternative_name()
        .map_err(|e| IdentityError::Certificate(e.to_string()))?
    else {
        return Ok(Vec::new());
    };
    let texts = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes)
                    .ok()
                    .map(|b| std::net::Ipv4Addr::from(b).to_string()),
                16 => <[u8; 16]>::try_from(*bytes)
                    .ok()
                    .map(|b| std::net::Ipv6Addr::from(b).to_string()),
                _ => None,
            },
            _ => None,
        });
    Ok(texts.collect())
}

/// A fresh key and the request to have it certified. The names are the signer's to decide.
pub struct KeyAndRequest {
    pub key_pem: String,
    pub csr_pem: String,
}

pub fn new_request() -> KeyAndRequest {
    let key = KeyPair::generate().expect("the system's random generator works");
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .expect("an empty request with a fresh key encodes");
    KeyAndRequest {
        key_pem: key.serialize_pem(),
        csr_pem: csr,
    }
}
