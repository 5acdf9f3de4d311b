//! Certificates as identities: a role, a node and a cluster.
//!
//! The certificate carries them twice: as URI `spiffe://CLUSTER/ROLE/NODE` for whoever accepts a
//! connection, and as DNS name `NODE.ROLE.stokehold.internal` for whoever opens one, whose ordinary
//! TLS name check then verifies role and node.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
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

/// A certificate with its key and the authorities that are trusted with it.
#[derive(Clone, Debug)]
pub struct Identity {
    pub subject: Subject,
    /// The certificate, what links its authority to an older one, then the authorities, so that a
    /// joining node can compare them with its token.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Arc<PrivateKeyDer<'static>>,
    /// One, or two while one takes over from the other. Never empty.
    pub authorities: Vec<CertificateDer<'static>>,
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
        // A folder that may not be looked into is not one without an identity.
        let found = std::fs::metadata(folder.join(CERTIFICATE));
        if found.is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return Err(IdentityError::Missing {
                folder: folder.to_owned(),
            });
        }
        let certificates = |name: &str| {
            let path = folder.join(name);
            let pem = read(&path)?;
            certificates_in(&pem).map_err(|problem| IdentityError::Pem { path, problem })
        };
        let issued = certificates(CERTIFICATE)?;
        let authorities = certificates(CA)?;
        let key_path = folder.join(KEY);
        let key_pem = files::read_key(&key_path).map_err(|source| IdentityError::Read {
            path: key_path.clone(),
            source,
        })?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|e| IdentityError::Pem {
            path: key_path,
            problem: e.to_string(),
        })?;
        Self::of(issued, authorities, Arc::new(key))
    }

    /// From a certificate (with what follows it), the trusted authorities, and the key.
    pub fn of(
        issued: Vec<CertificateDer<'static>>,
        authorities: Vec<CertificateDer<'static>>,
        key: Arc<PrivateKeyDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let mut chain = issued;
        let leaf = chain.first();
        let subject = subject_of(leaf.ok_or(IdentityError::NoSubject)?)?;
        for authority in &authorities {
            if !chain.contains(authority) {
                chain.push(authority.clone());
            }
        }
        Ok(Self {
            subject,
            chain,
            key,
            authorities,
        })
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        // Made from at least one.
        &self.chain[0]
    }

    /// The request that has the same key certified again.
    pub fn request_again(&self) -> Result<String, String> {
        let key = KeyPair::try_from(self.key.as_ref()).map_err(|e| e.to_string())?;
        request_of(&key).map_err(|e| e.to_string())
    }

    /// Replaces the certificate and the trusted authorities; the key stays. Each file is whole at
    /// any moment, and whichever of the two is the old one, they fit together.
    pub fn save_renewed(folder: &Path, cert: &str, ca: &str) -> Result<(), IdentityError> {
        Self::save_authorities(folder, ca)?;
        write(folder, CERTIFICATE, cert, 0o644)
    }

    pub fn save_authorities(folder: &Path, ca: &str) -> Result<(), IdentityError> {
        write(folder, CA, ca, 0o644)
    }

    /// Writes the three files; the key is readable by its owner only.
    pub fn save(folder: &Path, cert: &str, key: &str, ca: &str) -> Result<(), IdentityError> {
        files::private_dir(folder, 0o700).map_err(|source| IdentityError::Write {
            path: folder.to_owned(),
            source,
        })?;
        write(folder, CA, ca, 0o644)?;
        write(folder, KEY, key, 0o600)?;
        write(folder, CERTIFICATE, cert, 0o644)
    }
}

fn write(folder: &Path, name: &str, text: &str, mode: u32) -> Result<(), IdentityError> {
    let path = folder.join(name);
    files::write_atomic(&path, text.as_bytes(), mode)
        .map_err(|source| IdentityError::Write { path, source })
}

/// The certificates in a PEM text, at least one.
pub fn certificates_in(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| e.to_string())?;
    if found.is_empty() {
        return Err("no certificate".into());
    }
    Ok(found)
}

/// Certificates as PEM, one after the other.
pub fn to_pem<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    let encode = |der: &CertificateDer<'static>| {
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        for line in body.as_bytes().chunks(64) {
            pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
            pem.push('\n');
        }
        pem + "-----END CERTIFICATE-----\n"
    };
    certificates.into_iter().map(encode).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    std::fs::read(path).map_err(|error| IdentityError::Read {
        path: path.to_owned(),
        source: files::explained(path, error),
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

/// From when until when a certificate is valid, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before: i64,
    pub not_after: i64,
}

pub fn validity_of(certificate: &CertificateDer<'_>) -> Result<Validity, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| IdentityError::Certificate(e.to_string()))?;
    let validity = parsed.validity();
    Ok(Validity {
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
    })
}

/// SHA-256 of a certificate's public key, hex: the same for all certificates of one key, and what
/// [`crate::ca::request_key_hash`] says of a request for them.
pub fn key_hash_of(certificate: &CertificateDer<'_>) -> Result<String, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| IdentityError::Certificate(e.to_string()))?;
    Ok(crate::ca::sha256_hex(parsed.public_key().raw))
}

/// The common name of a certificate's subject, for people.
pub fn common_name_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

/// A moment for people: RFC 3339, UTC.
pub fn moment(unix: i64) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp(unix).ok();
    let text = time.and_then(|t| {
        t.format(&time::format_description::well_known::Rfc3339)
            .ok()
    });
    text.unwrap_or_else(|| format!("{unix} s after 1970"))
}

/// This machine's clock, in Unix seconds; zero before 1970.
pub fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
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
    let csr = request_of(&key).expect("an empty request with a fresh key encodes");
    KeyAndRequest {
        key_pem: key.serialize_pem(),
        csr_pem: csr,
    }
}

fn request_of(key: &KeyPair) -> Result<String, rcgen::Error> {
    CertificateParams::default()
        .serialize_request(key)
        .and_then(|request| request.pem())
}
