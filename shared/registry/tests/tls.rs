//! Certificates, as `hosts.toml` gives them: a registry of the test's own whose authority nobody knows.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use registry::{Access, Client, PullError};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use shared::ids::ImageRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const MANIFEST: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("certificate").pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    /// Certificate and key, PEM.
    fn issue(&self, purpose: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("params");
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

/// Answers everything with one manifest; `clients`: whom it asks for a certificate of.
async fn serve(authority: &Authority, clients: Option<&Authority>) -> u16 {
    let (certificate, key) = authority.issue(ExtendedKeyUsagePurpose::ServerAuth);
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
    let builder = rustls::ServerConfig::builder();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            let root = CertificateDer::from_pem_slice(clients.pem.as_bytes()).expect("PEM");
            roots.add(root).expect("an authority");
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
            builder.with_client_cert_verifier(verifier.expect("verifier"))
        }
    };
    let config = builder.with_single_cert(chain, key).expect("identity");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{MANIFEST}",
                    MANIFEST.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    port
}

async fn ask(hosts_dir: &Path, port: u16) -> Result<(), PullError> {
    let image = ImageRef::parse(&format!("localhost:{port}/a:1")).expect("a reference");
    let access = Access::load(hosts_dir, Path::new("/nonexistent"), &image)?;
    Client::new(access)?.manifest().await.map(drop)
}

/// The folder of `hosts.toml` for the registry, with these files beside it.
fn hosts(port: u16, text: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("folder");
    let folder = root.path().join(format!("localhost_{port}_"));
    std::fs::create_dir(&folder).expect("folder");
    let server = format!("server = \"https://localhost:{port}\"\n{text}");
    std::fs::write(folder.join("hosts.toml"), server).expect("file");
    for (name, text) in files {
        std::fs::write(folder.join(name), text).expect("file");
    }
    root
}

#[tokio::test]
async fn a_private_authority_is_believed_where_hosts_toml_names_it_and_only_there() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authority = Authority::new();
    let port = serve(&authority, None).await;

    let unknown = hosts(port, "", &[]);
    let error = ask(unknown.path(), port).await.expect_err("unknown");
    let text = error.to_string().to_lowercase();
    assert!(
        text.contains("certificate") && text.contains("hosts.toml"),
        "{text}"
    );

    let files = [("ca.crt", authority.pem.as_str())];
    let known = hosts(port, "ca = \"ca.crt\"\n", &files);
    ask(known.path(), port).await.expect("believed");

    let careless = hosts(port, "skip_verify = true\n", &[]);
    ask(careless.path(), port).await.expect("not looked at");

    let broken = hosts(port, "ca = \"ca.crt\"\n", &[("ca.crt", "no PEM at all")]);
    let error = ask(broken.path(), port).await.expect_err("no authority");
    assert!(matches!(error, PullError::Unusable { .. }), "{error}");
}

#[tokio::test]
async fn a_registry_that_knows_its_clients_by_certificates_is_shown_one() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (authority, clients) = (Authority::new(), Authority::new());
    let port = serve(&authority, Some(&clients)).await;
    let (certificate, key) = clients.issue(ExtendedKeyUsagePurpose::ClientAuth);
    let files = [
        ("ca.crt", authority.pem.as_str()),
        ("client.cert", certificate.as_str()),
        ("client.key", key.as_str()),
    ];
    let without = hosts(port, "ca = \"ca.crt\"\n", &files);
    ask(without.path(), port).await.expect_err("a stranger");
    let text = "ca = \"ca.crt\"\nclient = [[\"client.cert\", \"client.key\"]]\n";
    let with = hosts(port, text, &files);
    ask(with.path(), port).await.expect("known");
}
