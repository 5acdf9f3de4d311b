//! The identity that a daemon uses now. It is renewed while connections go on: every TLS setting made
//! from [`Credentials`] looks the certificate and the trusted authorities up at each handshake.
//!
//! What always holds: what is in use is on disk, where there is a folder; certificate and key fit.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::ca;
use crate::identity::{
    Identity, IdentityError, Validity, certificates_in, key_hash_of, names_of, server_name, to_pem,
    unix_now, validity_of,
};
use crate::tls::{self, TlsError};

#[derive(Clone, Debug)]
pub struct Credentials(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Where a renewed certificate is kept; `None` in tests.
    folder: Option<PathBuf>,
    current: ArcSwap<Material>,
    changes: watch::Sender<u64>,
    /// SHA-256 of the authority that signs now, as the scheduler last said.
    signer: watch::Sender<Option<String>>,
}

/// One state of the credentials.
#[derive(Debug)]
pub(crate) struct Material {
    pub(crate) identity: Identity,
    pub(crate) certified: Arc<CertifiedKey>,
    pub(crate) servers: Arc<dyn ServerCertVerifier>,
    pub(crate) clients: Arc<dyn ClientCertVerifier>,
    validity: Validity,
    /// SHA-256 of the authority that signed the certificate, if that is a trusted one.
    issuer: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("authorities are not readable: {0}")]
    Authorities(String),
    #[error("the certificate is that of {got}, not of {expected}")]
    OtherSubject { got: String, expected: String },
}

/// Who has an identity to use: one that stays as it is, or one that is renewed.
pub trait Holder {
    fn credentials(&self) -> Result<Credentials, TlsError>;
}

impl Holder for Identity {
    fn credentials(&self) -> Result<Credentials, TlsError> {
        Credentials::new(self.clone(), None)
    }
}

impl Holder for Credentials {
    fn credentials(&self) -> Result<Credentials, TlsError> {
        Ok(self.clone())
    }
}

impl Credentials {
    /// Renewed certificates are kept in `folder`, where there is one.
    pub fn new(identity: Identity, folder: Option<PathBuf>) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(Inner {
            folder,
            current: ArcSwap::from_pointee(Material::new(identity)?),
            changes: watch::channel(0).0,
            signer: watch::channel(None).0,
        })))
    }

    pub fn identity(&self) -> Identity {
        self.0.current.load().identity.clone()
    }

    pub(crate) fn material(&self) -> Arc<Material> {
        self.0.current.load_full()
    }

    pub fn validity(&self) -> Validity {
        self.0.current.load().validity
    }

    pub fn is_expired(&self) -> bool {
        unix_now() > self.validity().not_after
    }

    /// Counts replacements of certificate or authorities.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// SHA-256 (hex) of each trusted authority.
    pub fn authorities(&self) -> Vec<String> {
        let current = self.0.current.load();
        current
            .identity
            .authorities
            .iter()
            .map(ca::hex_of)
            .collect()
    }

    /// SHA-256 (hex) of the authority that signed the certificate; `None` where that is trusted no
    /// longer.
    pub fn issuer(&self) -> Option<String> {
        self.0.current.load().issuer.clone()
    }

    pub fn key_hash(&self) -> Result<String, IdentityError> {
        key_hash_of(self.0.current.load().identity.certificate())
    }

    /// The names, beyond the identity's own, that the certificate is valid for.
    pub fn names(&self) -> Result<Vec<String>, IdentityError> {
        extra_names(self.0.current.load().identity.certificate())
    }

    /// The certificate as PEM, without what follows it.
    pub fn certificate_pem(&self) -> String {
        to_pem([self.0.current.load().identity.certificate()])
    }

    /// Uses a renewed certificate for the same key, and keeps it first.
    pub fn renewed(&self, certificate_pem: &str, ca_pem: &str) -> Result<(), CredentialsError> {
        let held = self.identity();
        let parse =
            |pem: &str| certificates_in(pem.as_bytes()).map_err(CredentialsError::Authorities);
        let identity = Identity::of(parse(certificate_pem)?, parse(ca_pem)?, held.key)?;
        if identity.subject != held.subject {
            return Err(CredentialsError::OtherSubject {
                got: identity.subject.uri(),
                expected: held.subject.uri(),
            });
        }
        let material = Material::new(identity)?;
        if let Some(folder) = &self.0.folder {
            Identity::save_renewed(folder, certificate_pem, ca_pem)?;
        }
        self.take(material);
        Ok(())
    }

    /// Trusts these authorities from now on, as the scheduler says it over a session, and learns
    /// which of them signs.
    pub fn trust(&self, ca_pem: &str, signer: &str) -> Result<(), CredentialsError> {
        let authorities =
            certificates_in(ca_pem.as_bytes()).map_err(CredentialsError::Authorities)?;
        let held = self.identity();
        if held.authorities != authorities {
            let issued = held.chain.iter();
            let issued = issued.filter(|it| !held.authorities.contains(it)).cloned();
            let identity = Identity::of(issued.collect(), authorities, held.key)?;
            let material = Material::new(identity)?;
            if let Some(folder) = &self.0.folder {
                Identity::save_authorities(folder, ca_pem)?;
            }
            self.take(material);
        }
        let signer = Some(signer.to_owned()).filter(|it| !it.is_empty());
        self.0.signer.send_if_modified(|known| {
            let new = *known != signer;
            *known = signer;
            new
        });
        Ok(())
    }

    /// Whether another authority signs now than the one that signed this certificate.
    pub fn is_of_older_authority(&self) -> bool {
        let signer = self.0.signer.borrow();
        signer.is_some() && *signer != self.issuer()
    }

    pub(crate) fn signer_changes(&self) -> watch::Receiver<Option<String>> {
        self.0.signer.subscribe()
    }

    fn take(&self, material: Material) {
        self.0.current.store(Arc::new(material));
        self.0.changes.send_modify(|count| *count += 1);
    }
}

impl Material {
    fn new(identity: Identity) -> Result<Self, TlsError> {
        let (chain, key) = (identity.chain.clone(), identity.key.clone_key());
        let certified = CertifiedKey::from_der(chain, key, &tls::provider());
        let certificate = identity.certificate();
        let validity = validity_of(certificate).map_err(|e| TlsError::Authority(e.to_string()))?;
        let name = server_name(identity.subject.role, &identity.subject.node);
        let issuer = tls::issuer_of(certificate, &name, &identity.authorities);
        Ok(Self {
            certified: Arc::new(certified.map_err(TlsError::Identity)?),
            servers: tls::server_verifier(&identity.authorities)?,
            clients: tls::client_verifier(&identity.authorities)?,
            validity,
            issuer: issuer.map(ca::hex_of),
            identity,
        })
    }
}

/// The names of a certificate that its holder asked for.
pub fn extra_names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, IdentityError> {
    let names = names_of(certificate)?;
    let own = |name: &String| name.ends_with(crate::identity::INTERNAL_DOMAIN);
    Ok(names.into_iter().filter(|name| !own(name)).collect())
}
