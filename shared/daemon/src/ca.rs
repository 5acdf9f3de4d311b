//! The cluster's certificate authority: made by the scheduler at its first start, kept with it.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest as _, Sha256};
use shared::ids::ClusterId;
use time::OffsetDateTime;

use crate::files;
use crate::identity::{INTERNAL_DOMAIN, Subject, server_name, to_pem};

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca-key.pem";
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks of a fleet differ, by an hour where somebody took summer time for universal time: a
/// certificate is valid that long before it was made, and some more.
pub const BACKDATE: Duration = Duration::from_secs(2 * 3600);

pub struct CertificateAuthority {
    cluster: ClusterId,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("read or write the certificate authority in {folder}")]
    Io {
        folder: String,
        #[source]
        source: std::io::Error,
    },
    #[error("certificate authority in {folder} is not readable: {problem}")]
    Invalid { folder: String, problem: String },
    #[error("certificate request is not valid: {0}")]
    Request(String),
    #[error("name {name:?} {problem}")]
    Name { name: String, problem: &'static str },
}

impl CertificateAuthority {
    pub fn create(cluster: &ClusterId) -> Self {
        let key = KeyPair::generate().expect("the system's random generator works");
        let mut params = authority_params(cluster);
        set_validity(&mut params, LIFETIME);
        let certificate = params
            .self_signed(&key)
            .expect("fixed parameters with a fresh key sign");
        let certificate_pem = certificate.pem();
        let key_pem = key.serialize_pem();
        let der = certificate.der().clone();
        Self {
            cluster: cluster.clone(),
            issuer: Issuer::new(params, key),
            certificate: der,
            certificate_pem,
            key_pem,
        }
    }

    pub fn load(folder: &Path, cluster: &ClusterId) -> Result<Self, CaError> {
        let shown = folder.display().to_string();
        let read = |name: &str| {
            std::fs::read_to_string(folder.join(name)).map_err(|source| CaError::Io {
                folder: shown.clone(),
                source,
            })
        };
        let invalid = |problem: String| CaError::Invalid {
            folder: shown.clone(),
            problem,
        };
        files::read_key(&folder.join(KEY)).map_err(|source| CaError::Io {
            folder: folder.join(KEY).display().to_string(),
            source,
        })?;
        let (certificate_pem, key_pem) = (read(CERTIFICATE)?, read(KEY)?);
        Self::from_pem(&certificate_pem, &key_pem, cluster).map_err(invalid)
    }

    /// From the first certificate of a PEM text, and its key.
    pub fn from_pem(certificate: &str, key: &str, cluster: &ClusterId) -> Result<Self, String> {
        let pair = KeyPair::from_pem(key).map_err(|e| e.to_string())?;
        let certificate =
            CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|e| e.to_string())?;
        let issuer = Issuer::from_ca_cert_der(&certificate, pair).map_err(|e| e.to_string())?;
        Ok(Self {
            cluster: cluster.clone(),
            issuer,
            certificate_pem: to_pem([&certificate]),
            certificate,
            key_pem: key.to_owned(),
        })
    }

    pub fn exists(folder: &Path) -> bool {
        folder.join(CERTIFICATE).exists()
    }

    pub fn save(&self, folder: &Path) -> Result<(), CaError> {
        self.save_with(folder, "")
    }

    /// The same, with other trusted authorities (PEM) after this one.
    pub fn save_with(&self, folder: &Path, others_pem: &str) -> Result<(), CaError> {
        let io = |source| CaError::Io {
            folder: folder.display().to_string(),
            source,
        };
        let bundle = format!("{}{others_pem}", self.certificate_pem);
        files::private_dir(folder, 0o700).map_err(io)?;
        files::write_atomic(&folder.join(KEY), self.key_pem.as_bytes(), 0o600).map_err(io)?;
        files::write_atomic(&folder.join(CERTIFICATE), bundle.as_bytes(), 0o644).map_err(io)
    }

    /// This authority's certificate as `older` signs it: whoever trusts only the older one accepts
    /// with it what this one signed. Both have the same name, so it lengthens no path (RFC 5280,
    /// 4.2.1.9).
    pub fn cross_signed_by(&self, older: &Self) -> Result<String, CaError> {
        let mut params = authority_params(&self.cluster);
        set_validity(&mut params, LIFETIME);
        params.use_authority_key_identifier_extension = true;
        let signed = params
            .signed_by(self.issuer.key(), &older.issuer)
            .map_err(|e| CaError::Request(e.to_string()))?;
        Ok(signed.pem())
    }

    /// To be kept as secret as the authority itself.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the certificate, hex: what join tokens pin.
    pub fn sha256_hex(&self) -> String {
        hex_of(&self.certificate)
    }

    /// Signs a request for `subject`. Of the request only its key is used; `names` are the extra
    /// DNS names and IP addresses that clients will use.
    pub fn sign(
        &self,
        csr_pem: &str,
        subject: &Subject,
        names: &[String],
        lifetime: Duration,
    ) -> Result<String, CaError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|e| CaError::Request(e.to_string()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("{} {}", subject.role, subject.node));
        params.subject_alt_names = alternative_names(subject, names)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, lifetime);
        let signed: Certificate = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(|e| CaError::Request(e.to_string()))?;
        Ok(signed.pem())
    }
}

/// SHA-256 of a certificate, hex.
pub fn hex_of(certificate: &CertificateDer<'_>) -> String {
    sha256_hex(certificate)
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

/// All authorities that a cluster ever has bear the same name; their keys tell them apart.
fn authority_params(cluster: &ClusterId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("{AUTHORITY_NAME}{cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Before the cluster's id in an authority's common name.
pub const AUTHORITY_NAME: &str = "Stokehold cluster ";

/// SHA-256 of a request's public key, hex: tells a repeated request from a new one.
pub fn request_key_hash(csr_pem: &str) -> Result<String, CaError> {
    let request = CertificateSigningRequestParams::from_pem(csr_pem)
        .map_err(|e| CaError::Request(e.to_string()))?;
    let key = rcgen::PublicKeyData::subject_public_key_info(&request.public_key);
    Ok(sha256_hex(&key))
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn set_validity(params: &mut CertificateParams, lifetime: Duration) {
    let mut serial: [u8; 16] = rand::random();
    // A positive number; a renewed certificate must have another one.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + lifetime;
}

fn alternative_names(subject: &Subject, names: &[String]) -> Result<Vec<SanType>, CaError> {
    let text = |text: String| {
        text.clone().try_into().map_err(|_| CaError::Name {
            name: text,
            problem: "is not ASCII",
        })
    };
    let mut all = vec![
        SanType::URI(text(subject.uri())?),
        SanType::DnsName(text(server_name(subject.role, &subject.node))?),
    ];
    for name in names {
        if let Ok(address) = name.parse::<IpAddr>() {
            all.push(SanType::IpAddress(address));
            continue;
        }
        let lower = name.to_ascii_lowercase();
        if lower.ends_with(INTERNAL_DOMAIN) || lower == INTERNAL_DOMAIN[1..] {
            return Err(CaError::Name {
                name: name.clone(),
                problem: "is reserved for identities",
            });
        }
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if lower.len() > 253 || !lower.split('.').all(label) {
            return Err(CaError::Name {
                name: name.clone(),
                problem: "is not a host name",
            });
        }
        all.push(SanType::DnsName(text(lower)?));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{key_hash_of, new_request, subject_of, validity_of};
    use shared::ids::{NodeName, Role};

    fn subject() -> Subject {
        Subject {
            cluster: ClusterId::from_bits(7),
            role: Role::Agent,
            node: NodeName::parse("n1").expect("valid"),
        }
    }

    #[test]
    fn a_signed_certificate_carries_role_node_and_cluster() {
        let ca = CertificateAuthority::create(&ClusterId::from_bits(7));
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let day = Duration::from_secs(86_400);
        let pem = ca
            .sign(&new_request().csr_pem, &subject(), &names, day)
            .expect("signed");
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        assert_eq!(subject_of(&der).expect("subject"), subject());
    }

    #[test]
    fn a_certificate_and_its_request_have_the_same_key_hash_and_it_begins_two_hours_ago() {
        let ca = CertificateAuthority::create(&ClusterId::from_bits(7));
        let request = new_request();
        let day = Duration::from_secs(86_400);
        let pem = ca.sign(&request.csr_pem, &subject(), &[], day);
        let der = CertificateDer::from_pem_slice(pem.expect("signed").as_bytes()).expect("PEM");
        let requested = request_key_hash(&request.csr_pem).expect("a request");
        assert_eq!(key_hash_of(&der).expect("a key"), requested);
        let validity = validity_of(&der).expect("valid");
        assert_eq!(validity.not_after - validity.not_before, 86_400 + 7_200);
    }

    #[test]
    fn nobody_can_ask_for_an_identitys_name() {
        let ca = CertificateAuthority::create(&ClusterId::from_bits(7));
        let names = ["scheduler.stokehold.internal".to_owned()];
        let day = Duration::from_secs(86_400);
        let refused = ca.sign(&new_request().csr_pem, &subject(), &names, day);
        assert!(matches!(refused, Err(CaError::Name { .. })));
    }

    #[test]
    fn a_saved_authority_signs_as_the_same_one() {
        let folder = tempfile::tempdir().expect("folder");
        let cluster = ClusterId::from_bits(7);
        let ca = CertificateAuthority::create(&cluster);
        ca.save(folder.path()).expect("saved");
        let loaded = CertificateAuthority::load(folder.path(), &cluster).expect("loaded");
        assert_eq!(loaded.sha256_hex(), ca.sha256_hex());
    }
}
