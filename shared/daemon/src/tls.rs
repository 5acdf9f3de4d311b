//! TLS settings: 1.3 and a certificate on both sides between machines, 1.2 or 1.3 towards clients.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};

use crate::ca;
use crate::credentials::{Credentials, Holder};
use crate::identity::{common_name_of, moment, validity_of};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {}: {problem}", path.display())]
    Pem { path: PathBuf, problem: String },
    #[error("certificate and key do not make a TLS identity")]
    Identity(#[source] Error),
    #[error("certificate authority is not usable: {0}")]
    Authority(String),
}

/// Makes ring the process's provider, before anything asks for a default. Repeating it is harmless.
pub fn install_crypto_provider() {
    // An error means that one is installed already.
    let _ = ring::default_provider().install_default();
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(authorities: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots
            .add(authority.clone())
            .map_err(|e| TlsError::Authority(e.to_string()))?;
    }
    Ok(Arc::new(roots))
}

pub(crate) fn server_verifier(
    authorities: &[CertificateDer<'static>],
) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let built = WebPkiServerVerifier::builder_with_provider(roots(authorities)?, provider());
    match built.build() {
        Ok(verifier) => Ok(verifier),
        Err(e) => Err(TlsError::Authority(e.to_string())),
    }
}

pub(crate) fn client_verifier(
    authorities: &[CertificateDer<'static>],
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    WebPkiClientVerifier::builder_with_provider(roots(authorities)?, provider())
        .build()
        .map_err(|e| TlsError::Authority(e.to_string()))
}

/// Which of `authorities` signed a certificate with this name, also one that has expired.
pub fn issuer_of<'a>(
    certificate: &CertificateDer<'static>,
    name: &str,
    authorities: &'a [CertificateDer<'static>],
) -> Option<&'a CertificateDer<'static>> {
    let name = ServerName::try_from(name.to_owned()).ok()?;
    let until = validity_of(certificate).ok()?.not_after;
    let then = Duration::from_secs(u64::try_from(until).ok()?.saturating_sub(1));
    let then = UnixTime::since_unix_epoch(then);
    authorities.iter().find(|authority| {
        server_verifier(std::slice::from_ref(*authority)).is_ok_and(|verifier| {
            let verified = verifier.verify_server_cert(certificate, &[], &name, &[], then);
            verified.is_ok()
        })
    })
}

/// Whether a client that trusts these authorities alone accepts this chain (leaf first) for a name.
pub fn is_accepted(
    chain: &[CertificateDer<'static>],
    name: &str,
    authorities: &[CertificateDer<'static>],
) -> bool {
    let Ok(name) = ServerName::try_from(name.to_owned()) else {
        return false;
    };
    let Some((leaf, rest)) = chain.split_first() else {
        return false;
    };
    server_verifier(authorities).is_ok_and(|verifier| {
        let now = UnixTime::now();
        verifier
            .verify_server_cert(leaf, rest, &name, &[], now)
            .is_ok()
    })
}

fn alpn(protocols: &[&[u8]]) -> Vec<Vec<u8>> {
    protocols.iter().map(|p| p.to_vec()).collect()
}

/// Towards clients that hold bearer tokens: HTTP/2 and HTTP/1.1.
pub fn https_server(holder: &impl Holder) -> Result<Arc<ServerConfig>, TlsError> {
    let live = Live(holder.credentials()?);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(live));
    config.alpn_protocols = alpn(&[b"h2", b"http/1.1"]);
    Ok(Arc::new(config))
}

/// Towards clients, with a certificate of the operator's.
pub fn https_server_from_pem(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |e: rustls::pki_types::pem::Error| TlsError::Pem {
            path,
            problem: e.to_string(),
        }
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(failed(cert))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(failed(key))?;
    https_server_with(chain, key)
}

fn https_server_with(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(TlsError::Identity)?;
    config.alpn_protocols = alpn(&[b"h2", b"http/1.1"]);
    Ok(Arc::new(config))
}

/// Accepts only certificates of the same cluster's authorities.
///
/// No session is resumed: a resumed one would pass by whatever changed since the first handshake.
pub fn mutual_server(
    holder: &impl Holder,
    protocols: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let live = Arc::new(Live(holder.credentials()?));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring speaks TLS 1.3")
        .with_client_cert_verifier(Arc::clone(&live) as _)
        .with_cert_resolver(live);
    config.alpn_protocols = alpn(protocols);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Presents the identity, and accepts only servers of the same cluster's authorities under the name
/// asked for.
pub fn mutual_client(
    holder: &impl Holder,
    protocols: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    Ok(mutual_client_noting(holder, protocols)?.0)
}

/// The same, with where the last refusal of a server's certificate is noted.
pub(crate) fn mutual_client_noting(
    holder: &impl Holder,
    protocols: &[&[u8]],
) -> Result<(Arc<ClientConfig>, LastRefusal), TlsError> {
    let live = Arc::new(Live(holder.credentials()?));
    let noting = Arc::new(Noting {
        live: Arc::clone(&live),
        last: LastRefusal::default(),
    });
    let last = noting.last.clone();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(noting)
        .with_client_cert_resolver(live);
    config.alpn_protocols = alpn(protocols);
    config.resumption = Resumption::disabled();
    Ok((Arc::new(config), last))
}

/// For clients with a bearer token: trusts these authorities and nothing else, ALPN is the HTTP
/// client's.
pub fn https_client(authorities: &[CertificateDer<'static>]) -> Result<ClientConfig, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_root_certificates(roots(authorities)?)
        .with_no_client_auth())
}

/// The same, for the authorities that the holder trusts at each handshake.
pub fn https_client_of(holder: &impl Holder) -> Result<ClientConfig, TlsError> {
    let noting = Noting {
        live: Arc::new(Live(holder.credentials()?)),
        last: LastRefusal::default(),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(noting))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// For joining: trusts whichever CA in the server's chain has this SHA-256, and nothing else.
pub fn pinned_client(ca_sha256_hex: &str) -> ClientConfig {
    let verifier = PinnedCa {
        sha256_hex: ca_sha256_hex.to_owned(),
        provider: provider(),
    };
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth()
}

#[derive(Debug)]
struct PinnedCa {
    sha256_hex: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates
            .iter()
            .find(|certificate| ca::hex_of(certificate) == self.sha256_hex);
        let Some(pinned) = pinned else {
            let authority = intermediates.last().unwrap_or(end_entity);
            let seen = OtherAuthority {
                name: common_name_of(authority),
            };
            let other = OtherError(Arc::new(seen));
            return Err(Error::InvalidCertificate(CertificateError::Other(other)));
        };
        server_verifier(&[pinned.clone().into_owned()])
            .map_err(|e| Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A server whose authority is not the pinned one, and what that one is called.
#[derive(Debug, thiserror::Error)]
#[error("the server's authority is {}, not the one that is expected", name.as_deref().unwrap_or("nameless"))]
pub(crate) struct OtherAuthority {
    pub(crate) name: Option<String>,
}

/// Credentials as rustls asks for them: looked up at each handshake.
#[derive(Debug)]
struct Live(Credentials);

impl ResolvesServerCert for Live {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.material().certified))
    }
}

impl ResolvesClientCert for Live {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.material().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Live {
    /// Nodes have one certificate each, so none needs a hint.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let clients = Arc::clone(&self.0.material().clients);
        clients.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let clients = Arc::clone(&self.0.material().clients);
        clients.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let clients = Arc::clone(&self.0.material().clients);
        clients.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.material().clients.supported_verify_schemes()
    }
}

/// Why a server's certificate was last refused; QUIC itself passes on a text only.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastRefusal(Arc<Mutex<Option<Error>>>);

impl LastRefusal {
    pub(crate) fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[derive(Debug)]
struct Noting {
    live: Arc<Live>,
    last: LastRefusal,
}

impl Noting {
    fn servers(&self) -> Arc<dyn ServerCertVerifier> {
        Arc::clone(&self.live.0.material().servers)
    }
}

impl ServerCertVerifier for Noting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let servers = self.servers();
        let verified =
            servers.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.inspect_err(|error| {
            let mut last = self.last.0.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some(error.clone());
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.servers().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.servers().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.servers().supported_verify_schemes()
    }
}

/// What a server's refused certificate means for whoever runs this machine.
pub(crate) fn explain(error: &Error) -> Option<String> {
    let Error::InvalidCertificate(problem) = error else {
        return None;
    };
    let clock = |time: &UnixTime, relation: &str, bound: &UnixTime| {
        let at = |t: &UnixTime| moment(i64::try_from(t.as_secs()).unwrap_or(i64::MAX));
        format!(
            "by this machine's clock it is {}, but the scheduler's certificate is valid {relation} \
             {}: one of the two clocks is wrong; compare `timedatectl` on both machines and turn \
             time synchronisation on (`timedatectl set-ntp true`)",
            at(time),
            at(bound)
        )
    };
    Some(match problem {
        CertificateError::NotValidYetContext { time, not_before } => {
            clock(time, "only from", not_before)
        }
        CertificateError::ExpiredContext { time, not_after } => {
            clock(time, "only until", not_after)
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "what answers there is not this node's scheduler: its certificate is of another \
             authority. Correct the address (`scheduler` in the configuration, or `scheduler.json` \
             beside the certificate), or join this node to that cluster"
                .to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "what answers there is a member of this cluster but not its scheduler: correct the \
             address (`scheduler` in the configuration)"
                .to_owned()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_named_with_both_times_and_the_remedy() {
        let at = |s| UnixTime::since_unix_epoch(Duration::from_secs(s));
        let early = CertificateError::NotValidYetContext {
            time: at(0),
            not_before: at(86_400),
        };
        let text = explain(&Error::InvalidCertificate(early)).expect("explained");
        for part in [
            "1970-01-01T00:00:00Z",
            "1970-01-02T00:00:00Z",
            "timedatectl",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
