//! The protocol, against a small server of the test's own that plays registry and token service.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use registry::{Access, Client, Kind, PullError};
use sha2::{Digest as _, Sha256};
use shared::digest::OciDigest;
use shared::ids::ImageRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const BLOB: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const MANIFEST: &[u8] = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

#[derive(Clone, Debug, Default)]
struct Request {
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Request {
    fn authorization(&self) -> &str {
        self.headers.get("authorization").map_or("", String::as_str)
    }
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let headers = Vec::new();
        let body = body.into();
        Self {
            status,
            headers,
            body,
        }
    }

    fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// What it was asked, in order.
#[derive(Clone)]
struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    async fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (log, answer) = (Arc::clone(&seen), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                tokio::spawn(async move {
                    let request = read(&mut stream).await;
                    log.lock().expect("log").push(request.clone());
                    let answer = answer(&request);
                    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", answer.status);
                    if answer
                        .headers
                        .iter()
                        .all(|(name, _)| name != "content-length")
                    {
                        head += &format!("content-length: {}\r\n", answer.body.len());
                    }
                    for (name, value) in &answer.headers {
                        head += &format!("{name}: {value}\r\n");
                    }
                    head += "\r\n";
                    let _ = stream.write_all(head.as_bytes()).await;
                    let _ = stream.write_all(&answer.body).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self { port, seen }
    }

    fn seen(&self) -> Vec<Request> {
        self.seen.lock().expect("log").clone()
    }
}

async fn read(stream: &mut tokio::net::TcpStream) -> Request {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return Request::default();
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let path = lines
        .next()
        .unwrap_or("")
        .split(' ')
        .nth(1)
        .unwrap_or("")
        .to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let len: usize = headers
        .get("content-length")
        .map_or(0, |l| l.parse().unwrap_or(0));
    while bytes.len() < end + len {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            break;
        }
    }
    let body = String::from_utf8_lossy(&bytes[end..]).into_owned();
    Request {
        path,
        headers,
        body,
    }
}

fn digest(bytes: &[u8]) -> OciDigest {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    OciDigest::parse(&format!("sha256:{hex}")).expect("a digest")
}

/// A registry's plain answers.
fn plain(request: &Request) -> Answer {
    let path = request.path.split('?').next().unwrap_or("");
    if path == "/v2/a/b/manifests/1" {
        return Answer::new(200, MANIFEST).header("content-type", MANIFEST_TYPE);
    }
    if path != format!("/v2/a/b/blobs/{}", digest(BLOB)) {
        return Answer::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#);
    }
    match request.headers.get("range") {
        None => Answer::new(200, BLOB),
        Some(range) => {
            let from: usize = range["bytes=".len()..range.len() - 1]
                .parse()
                .expect("a number");
            let shown = format!("bytes {from}-{}/{}", BLOB.len() - 1, BLOB.len());
            Answer::new(206, &BLOB[from..]).header("content-range", shown)
        }
    }
}

/// What an operator has written.
struct Setup {
    folder: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().expect("folder");
        std::fs::create_dir(folder.path().join("certs.d")).expect("folder");
        Self { folder }
    }

    fn hosts(self, registry: &str, text: &str) -> Self {
        let folder = self.folder.path().join("certs.d").join(registry);
        std::fs::create_dir(&folder).expect("folder");
        std::fs::write(folder.join("hosts.toml"), text).expect("file");
        self
    }

    fn auth(self, text: &str) -> Self {
        std::fs::write(self.auth_file(), text).expect("file");
        self
    }

    fn auth_file(&self) -> PathBuf {
        self.folder.path().join("auth.json")
    }

    fn client(&self, image: &str) -> Client {
        let image = ImageRef::parse(image).expect("a reference");
        let hosts_dir = self.folder.path().join("certs.d");
        let access = Access::load(&hosts_dir, &self.auth_file(), &image).expect("read");
        Client::new(access).expect("client")
    }
}

fn password(port: u16, user: &str, password: &str) -> String {
    let auth = STANDARD.encode(format!("{user}:{password}"));
    format!(r#"{{"auths": {{"127.0.0.1:{port}": {{"auth": "{auth}"}}}}}}"#)
}

async fn whole(client: &Client, offset: u64) -> Result<Vec<u8>, PullError> {
    let mut blob = client
        .blob(&digest(BLOB), BLOB.len() as u64, offset, false)
        .await?;
    let mut bytes = Vec::new();
    while let Some(piece) = blob.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

#[tokio::test]
async fn a_manifest_and_a_blob_come_whole_and_a_blob_from_anywhere() {
    let server = Server::start(plain).await;
    let client = Setup::new().client(&format!("127.0.0.1:{}/a/b:1", server.port));
    let manifest = client.manifest().await.expect("manifest");
    assert_eq!(manifest.bytes, MANIFEST);
    assert_eq!(manifest.digest, digest(MANIFEST));
    assert_eq!(manifest.media_type, MANIFEST_TYPE);
    let small = client.small(&digest(BLOB), BLOB.len() as u64, false).await;
    assert_eq!(small.expect("blob"), BLOB);
    assert_eq!(whole(&client, 10).await.expect("blob"), &BLOB[10..]);
    assert_eq!(
        server.seen().last().expect("asked").headers["range"],
        "bytes=10-"
    );
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_is_read_from_the_start() {
    let ignoring = |request: &Request| {
        let mut request = request.clone();
        request.headers.remove("range");
        plain(&request)
    };
    let server = Server::start(ignoring).await;
    let client = Setup::new().client(&format!("127.0.0.1:{}/a/b:1", server.port));
    assert_eq!(whole(&client, 10).await.expect("blob"), &BLOB[10..]);
}

#[tokio::test]
async fn a_blob_of_another_size_or_that_ends_early_is_an_error() {
    let longer = Server::start(|_| Answer::new(200, [BLOB, b"more"].concat())).await;
    let client = Setup::new().client(&format!("127.0.0.1:{}/a/b:1", longer.port));
    let error = whole(&client, 0).await.expect_err("too long").to_string();
    assert!(error.contains("40 bytes, the image says 36"), "{error}");

    let len = BLOB.len().to_string();
    let cut =
        move |_: &Request| Answer::new(200, &BLOB[..20]).header("content-length", len.clone());
    let cut = Server::start(cut).await;
    let client = Setup::new().client(&format!("127.0.0.1:{}/a/b:1", cut.port));
    let error = whole(&client, 0).await.expect_err("cut");
    assert!(matches!(error, PullError::BrokenOff { .. }), "{error}");

    let other = Server::start(|_| Answer::new(200, BLOB.to_ascii_uppercase())).await;
    let client = Setup::new().client(&format!("127.0.0.1:{}/a/b:1", other.port));
    let error = client.small(&digest(BLOB), BLOB.len() as u64, false).await;
    assert!(
        error
            .expect_err("other bytes")
            .to_string()
            .contains("digest")
    );
}

/// A registry that wants a token of `service`, and takes `t0ken`.
fn guarded(service: u16) -> impl Fn(&Request) -> Answer + Send + Sync + 'static {
    move |request| {
        if request.authorization() == "Bearer t0ken" {
            return plain(request);
        }
        let challenge = format!(
            r#"Bearer realm="http://127.0.0.1:{service}/token",service="reg",scope="repository:a/b:pull""#
        );
        Answer::new(401, "{}").header("www-authenticate", challenge)
    }
}

#[tokio::test]
async fn a_token_is_fetched_with_the_hosts_password_and_used_for_the_registry_alone() {
    let service = Server::start(|request| {
        if request.authorization() == format!("Basic {}", STANDARD.encode("u:p")) {
            Answer::new(200, r#"{"token": "t0ken"}"#)
        } else {
            Answer::new(401, "{}")
        }
    })
    .await;
    let server = Server::start(guarded(service.port)).await;
    let image = format!("127.0.0.1:{}/a/b:1", server.port);
    let setup = Setup::new().auth(&password(server.port, "u", "p"));
    let client = setup.client(&image);
    client.manifest().await.expect("manifest");
    assert_eq!(whole(&client, 0).await.expect("blob"), BLOB);
    let asked = service.seen();
    assert_eq!(asked.len(), 1, "one token serves both");
    assert_eq!(
        asked[0].path,
        "/token?service=reg&scope=repository%3Aa%2Fb%3Apull"
    );
    assert!(
        server
            .seen()
            .iter()
            .all(|r| !r.authorization().starts_with("Basic"))
    );

    let setup = Setup::new().auth(&password(server.port, "u", "wrong"));
    let error = setup.client(&image).manifest().await.expect_err("refused");
    assert!(matches!(error, PullError::LoginRefused { .. }), "{error}");
    let error = Setup::new()
        .client(&image)
        .manifest()
        .await
        .expect_err("refused");
    assert!(matches!(error, PullError::LoginNeeded { .. }), "{error}");
    assert_eq!(error.kind(), Kind::Refused);
}

#[tokio::test]
async fn a_token_may_be_had_by_nobody_in_particular_and_by_an_identity_token() {
    let service = Server::start(|request| {
        let identity = request.body.contains("refresh_token=s3cret")
            && request.body.contains("grant_type=refresh_token");
        if identity || (request.body.is_empty() && request.authorization().is_empty()) {
            Answer::new(200, r#"{"access_token": "t0ken"}"#)
        } else {
            Answer::new(403, "{}")
        }
    })
    .await;
    let server = Server::start(guarded(service.port)).await;
    let image = format!("127.0.0.1:{}/a/b:1", server.port);
    Setup::new()
        .client(&image)
        .manifest()
        .await
        .expect("without a login");
    let identity = format!(
        r#"{{"auths": {{"127.0.0.1:{}": {{"identitytoken": "s3cret"}}}}}}"#,
        server.port
    );
    Setup::new()
        .auth(&identity)
        .client(&image)
        .manifest()
        .await
        .expect("by identity");
    assert_eq!(service.seen().len(), 2);
}

#[tokio::test]
async fn a_password_is_sent_where_basic_is_asked_for_and_only_then() {
    let basic = format!("Basic {}", STANDARD.encode("u:p"));
    let server = Server::start(move |request| {
        if request.authorization() == basic {
            return plain(request);
        }
        Answer::new(401, "{}").header("www-authenticate", "Basic realm=\"x\"")
    })
    .await;
    let image = format!("127.0.0.1:{}/a/b:1", server.port);
    let setup = Setup::new().auth(&password(server.port, "u", "p"));
    setup.client(&image).manifest().await.expect("manifest");
    assert_eq!(server.seen()[0].authorization(), "", "nobody had asked yet");
    let helped = Setup::new().auth(r#"{"credsStore": "pass"}"#);
    let error = helped
        .client(&image)
        .manifest()
        .await
        .expect_err("no password");
    let error = error.to_string();
    assert!(
        error.contains("auth.json") && error.contains("helpers"),
        "{error}"
    );
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let store = Server::start(|request| {
        let mut request = request.clone();
        request.path = format!("/v2/a/b/blobs/{}", digest(BLOB));
        plain(&request)
    })
    .await;
    let at = format!("http://127.0.0.1:{}/bucket/key?signature=x", store.port);
    let basic = format!("Basic {}", STANDARD.encode("u:p"));
    let server = Server::start(move |request| {
        if request.authorization() == basic {
            return Answer::new(307, "").header("location", at.clone());
        }
        Answer::new(401, "{}").header("www-authenticate", "Basic realm=\"x\"")
    })
    .await;
    let registry = format!("127.0.0.1:{}", server.port);
    let text = format!("server = \"http://{registry}\"\n[header]\nx-secret = \"s\"\n");
    let setup = Setup::new()
        .auth(&password(server.port, "u", "p"))
        .hosts(&registry, &text);
    let client = setup.client(&format!("{registry}/a/b:1"));
    assert_eq!(whole(&client, 5).await.expect("blob"), &BLOB[5..]);
    assert_eq!(server.seen()[0].headers["x-secret"], "s");
    let asked = store.seen();
    assert_eq!(asked[0].path, "/bucket/key?signature=x");
    assert_eq!(asked[0].headers["range"], "bytes=5-");
    assert_eq!(asked[0].authorization(), "");
    assert!(!asked[0].headers.contains_key("x-secret"));
}

#[tokio::test]
async fn mirrors_come_first_are_told_the_registry_and_give_way_when_they_cannot() {
    let mirror = Server::start(|request| {
        if request.path.contains("/blobs/") {
            return Answer::new(200, BLOB);
        }
        Answer::new(500, "{}")
    })
    .await;
    let server = Server::start(plain).await;
    let registry = format!("127.0.0.1:{}", server.port);
    let text = format!(
        "server = \"http://{registry}\"\n\
         [host.\"http://127.0.0.1:1\"]\n\
         [host.\"http://127.0.0.1:{}\"]\ncapabilities = [\"pull\"]\n",
        mirror.port
    );
    let setup = Setup::new().hosts("reg.example", &text);
    let client = setup.client("reg.example/a/b:1");
    client.manifest().await.expect("from the server");
    assert!(mirror.seen().is_empty(), "it may not say what a tag means");
    assert_eq!(whole(&client, 0).await.expect("blob"), BLOB);
    let asked = mirror.seen();
    assert!(
        asked[0].path.ends_with("?ns=reg.example"),
        "{}",
        asked[0].path
    );
}

#[tokio::test]
async fn what_is_not_there_and_who_does_not_answer_say_so_with_what_to_do() {
    let server = Server::start(plain).await;
    let missing = format!("127.0.0.1:{}/a/b:2", server.port);
    let error = Setup::new()
        .client(&missing)
        .manifest()
        .await
        .expect_err("none");
    assert_eq!(error.kind(), Kind::Refused);
    let text = error.to_string();
    assert!(
        text.contains(&missing) && text.contains("image import"),
        "{text}"
    );

    // A port that was just free.
    let free = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let error = Setup::new()
        .client(&format!("127.0.0.1:{port}/a:1"))
        .manifest()
        .await;
    let error = error.expect_err("down");
    assert_eq!(error.kind(), Kind::Down);
    let text = error.to_string();
    assert!(
        text.contains("refused") && text.contains("hosts.toml"),
        "{text}"
    );

    let busy = Server::start(|_| {
        Answer::new(
            503,
            r#"{"errors":[{"code":"X","message":"later, please"}]}"#,
        )
    })
    .await;
    let error = Setup::new()
        .client(&format!("127.0.0.1:{}/a:1", busy.port))
        .manifest()
        .await;
    let error = error.expect_err("busy");
    assert_eq!(error.kind(), Kind::Down);
    assert!(error.to_string().contains("503") && error.to_string().contains("later, please"));
}
