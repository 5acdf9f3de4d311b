//! What a joining node is told when the scheduler's address, or a clock, is wrong.

use std::net::SocketAddr;
use std::sync::Arc;

use daemon::ca::CertificateAuthority;
use daemon::http::{HttpLimits, serve_tls};
use daemon::identity::{Identity, SCHEDULER_NAME, Subject, new_request};
use daemon::join::join;
use daemon::tls;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use shared::ids::{ClusterId, NodeName, Role, TokenId};
use shared::token::JoinToken;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Joins with a token for `address` that pins `authority`; returns what the error says.
async fn told(address: &str, authority: &str) -> String {
    tls::install_crypto_provider();
    let token = JoinToken {
        addresses: vec![address.to_owned()],
        ca_sha256: authority.to_owned(),
        id: TokenId::from_bits(7),
        secret: "00".repeat(32),
        expires: 0,
    };
    let folder = tempfile::tempdir().expect("folder");
    let pki = folder.path().join("pki");
    let node = NodeName::parse("n1").expect("valid");
    let refused = join(&token, Role::Agent, &node, &[], &pki).await;
    assert!(!pki.exists(), "nothing is left of a refusal");
    let text = refused.expect_err("refused").to_string();
    assert!(text.contains(address), "{text}");
    text
}

async fn https_server(tls: Arc<rustls::ServerConfig>) -> (SocketAddr, tokio_util::sync::DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let cancel = CancellationToken::new();
    let service = |_: &_| {
        hyper::service::service_fn(async |_| {
            Ok::<_, std::io::Error>(hyper::Response::new(String::new()))
        })
    };
    let limits = HttpLimits::default();
    tokio::spawn(serve_tls(listener, tls, limits, service, cancel.clone()));
    (address, cancel.drop_guard())
}

#[tokio::test]
async fn an_address_that_leads_nowhere_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let text = told(&address, &"0".repeat(64)).await;
    assert!(
        text.contains("nothing answers") && text.contains("firewall"),
        "{text}"
    );
    let text = told("no-such-host.invalid:7443", &"0".repeat(64)).await;
    assert!(text.contains("does not resolve"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_no_scheduler_is_told_from_one_of_another_cluster() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let plain = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let mut sink = [0; 512];
        let _ = stream.read(&mut sink).await;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    let text = told(&plain, &"0".repeat(64)).await;
    assert!(text.contains("does not speak TLS"), "{text}");

    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["www.example".to_owned()]).expect("a name");
    params
        .distinguished_name
        .push(DnType::CommonName, "www.example");
    let web = params.self_signed(&key).expect("signed");
    let config = server_config(vec![web.der().clone()], &key);
    let (address, _stop) = https_server(config).await;
    let text = told(&address.to_string(), &"0".repeat(64)).await;
    assert!(
        text.contains("another HTTPS server") && text.contains("www.example"),
        "{text}"
    );

    let other = CertificateAuthority::create(&ClusterId::from_bits(9));
    let config = tls::https_server(&scheduler_of(&other)).expect("TLS");
    let (address, _stop) = https_server(config).await;
    let text = told(&address.to_string(), &"0".repeat(64)).await;
    let cluster = ClusterId::from_bits(9).to_string();
    assert!(
        text.contains("another cluster") && text.contains(&cluster),
        "{text}"
    );
    assert!(text.contains("stokehold node token"), "{text}");
}

#[tokio::test]
async fn a_clock_that_is_a_day_off_is_named_with_both_times() {
    let now = time::OffsetDateTime::now_utc();
    let authority_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let authority = params.self_signed(&authority_key).expect("signed");
    let pin = daemon::ca::hex_of(authority.der());
    let issuer = Issuer::new(params, authority_key);
    // From where the scheduler's clock is, this machine's is a day behind, then a day ahead.
    for (from, to, bound) in [(1, 8, "only from"), (-8, -1, "only until")] {
        let key = KeyPair::generate().expect("a key");
        let mut leaf = CertificateParams::new(vec![SCHEDULER_NAME.to_owned()]).expect("a name");
        leaf.not_before = now + time::Duration::days(from);
        leaf.not_after = now + time::Duration::days(to);
        let leaf = leaf.signed_by(&key, &issuer).expect("signed");
        let chain = vec![leaf.der().clone(), authority.der().clone()];
        let (address, _stop) = https_server(server_config(chain, &key)).await;
        let text = told(&address.to_string(), &pin).await;
        for part in [
            bound,
            "by this machine's clock it is",
            "timedatectl",
            &year(now),
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

fn year(now: time::OffsetDateTime) -> String {
    now.year().to_string()
}

fn server_config(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<rustls::ServerConfig> {
    tls::install_crypto_provider();
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key);
    Arc::new(config.expect("TLS"))
}

fn scheduler_of(ca: &CertificateAuthority) -> Identity {
    let request = new_request();
    let subject = Subject {
        cluster: ca.cluster().clone(),
        role: Role::Scheduler,
        node: NodeName::parse("s1").expect("valid"),
    };
    let day = std::time::Duration::from_secs(86_400);
    let signed = ca.sign(&request.csr_pem, &subject, &[], day);
    let folder = tempfile::tempdir().expect("folder");
    let (cert, ca) = (signed.expect("signed"), ca.certificate_pem());
    Identity::save(folder.path(), &cert, &request.key_pem, ca).expect("saved");
    Identity::load(folder.path()).expect("loaded")
}
