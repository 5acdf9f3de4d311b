//! A scheduler in temporary folders, and clients for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon::identity::{Identity, SCHEDULER_NAME};
use daemon::quic;
use quinn::{Connection, RecvStream, SendStream};
use reqwest::{Method, StatusCode};
use scheduler::boot::{self, Running};
use scheduler::config::Config;
use serde_json::{Value, json};
use shared::api::NodeTokenCreated;
use shared::ids::{Epoch, NodeName, Role};
use shared::token::JoinToken;
use shared::wire::{ClientBody, ClientFrame, Hello, ServerBody, ServerFrame};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Cluster {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) http: SocketAddr,
    pub(crate) quic: SocketAddr,
    pub(crate) epoch: Epoch,
    pub(crate) admin: String,
    pub(crate) client: reqwest::Client,
    running: Option<Running>,
    cancel: CancellationToken,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let mut config = config_in(folder.path());
        change(&mut config);
        Self::start_in(folder, config).await
    }

    async fn start_in(folder: tempfile::TempDir, config: Config) -> Self {
        daemon::tls::install_crypto_provider();
        let cancel = CancellationToken::new();
        let running = boot::start(config.clone(), cancel.clone()).await;
        let running = running.expect("starts");
        let token = config.data_dir.join("admin.token");
        let admin = std::fs::read_to_string(token).expect("an admin token");
        let identity = Identity::load(&config.pki_dir).expect("an identity");
        let client = client_of(&identity.authorities);
        Self {
            http: running.http,
            quic: running.quic,
            epoch: running.epoch,
            admin: admin.trim().to_owned(),
            client,
            running: Some(running),
            cancel,
            config,
            folder,
        }
    }

    /// Stops it as SIGTERM would.
    pub(crate) async fn stop(mut self) -> (tempfile::TempDir, Config) {
        self.cancel.cancel();
        let running = self.running.take().expect("runs");
        running.wait().await.expect("stops in time");
        (self.folder, self.config)
    }

    pub(crate) async fn restart(self) -> Self {
        let (folder, config) = self.stop().await;
        Self::start_in(folder, config).await
    }

    /// Waits for the scheduler to end by itself.
    pub(crate) async fn ended(mut self) -> (String, tempfile::TempDir, Config) {
        let running = self.running.take().expect("runs");
        let ended = tokio::time::timeout(PATIENCE, running.wait()).await;
        let error = ended.expect("ends").expect_err("with an error");
        (error.to_string(), self.folder, self.config)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.http.port())
    }

    pub(crate) async fn call(
        &self,
        token: &str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let named = method.as_str().to_lowercase();
        let mut request = self.client.request(method, self.url(path));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("answers");
        assert!(response.headers().contains_key("x-request-id"), "{path}");
        let status = response.status();
        let text = response.text().await.expect("a body");
        let body = serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("{path} answered no JSON ({e}): {text}"));
        if status != StatusCode::METHOD_NOT_ALLOWED {
            let documented = crate::openapi::check(&named, path, status.as_u16(), &body);
            documented.expect("every answer is as the OpenAPI document says");
        }
        (status, body)
    }

    /// A call of the admin's that succeeds.
    pub(crate) async fn done(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.call(&self.admin, method, path, body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        answer
    }

    pub(crate) async fn token(&self, name: &str, role: &str) -> String {
        let body = json!({"name": name, "role": role});
        let created = self.done(Method::POST, "/api/stokehold/v1/tokens", Some(body));
        created.await["token"].as_str().expect("a text").to_owned()
    }

    pub(crate) async fn join_token(&self, body: Value) -> JoinToken {
        let path = "/api/stokehold/v1/node-tokens";
        let created = self.done(Method::POST, path, Some(body)).await;
        let created: NodeTokenCreated = serde_json::from_value(created).expect("a token");
        JoinToken::decode(&created.token).expect("decodes")
    }

    /// A node's identity for a role, in a folder of its own.
    pub(crate) async fn joined(&self, token: &JoinToken, role: Role, node: &str) -> Identity {
        let pki = self.pki_of(role, node);
        let name = NodeName::parse(node).expect("valid");
        let joined = daemon::join::join(token, role, &name, &[], &pki).await;
        joined.expect("joins");
        Identity::load(&pki).expect("an identity")
    }

    pub(crate) fn pki_of(&self, role: Role, node: &str) -> PathBuf {
        self.folder.path().join(format!("{node}-{role}"))
    }

    pub(crate) async fn connect(&self, identity: &Identity) -> Connection {
        let remote = SocketAddr::from(([127, 0, 0, 1], self.quic.port()));
        let endpoint = quic::client_endpoint(identity, remote).expect("an endpoint");
        let connecting = endpoint.connect(remote, SCHEDULER_NAME).expect("a name");
        connecting.await.expect("connects")
    }

    /// A session and the first frame that came down it.
    pub(crate) async fn session(&self, identity: &Identity, hello: Hello) -> Session {
        let connection = self.connect(identity).await;
        let (mut send, receive) = connection.open_bi().await.expect("a stream");
        let hello = ClientFrame {
            body: Some(ClientBody::Hello(hello)),
        };
        quic::write_frame(&mut send, &hello).await.expect("writes");
        Session {
            connection,
            send,
            receive,
        }
    }
}

pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
}

impl Session {
    /// The next frame that is not about authorities: those come whenever they change.
    pub(crate) async fn next(&mut self) -> Result<ServerFrame, String> {
        loop {
            let frame = quic::read_frame::<ServerFrame>(&mut self.receive);
            match tokio::time::timeout(PATIENCE, frame)
                .await
                .expect("in time")
            {
                Ok(Some(ServerFrame {
                    body: Some(ServerBody::Trust(_)),
                })) => {}
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => return Err("the stream ended".to_owned()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    pub(crate) async fn send(&mut self, body: ClientBody) {
        let frame = ClientFrame { body: Some(body) };
        quic::write_frame(&mut self.send, &frame)
            .await
            .expect("writes");
    }

    /// The code and the reason with which the scheduler closed it.
    pub(crate) async fn closed(&self) -> (u64, String) {
        let closed = tokio::time::timeout(PATIENCE, self.connection.closed()).await;
        match closed.expect("is closed") {
            quinn::ConnectionError::ApplicationClosed(close) => (
                close.error_code.into_inner(),
                String::from_utf8_lossy(&close.reason).into_owned(),
            ),
            other => panic!("closed otherwise: {other}"),
        }
    }
}

pub(crate) fn hello() -> Hello {
    Hello {
        protocol_min: 1,
        protocol_max: 1,
        version: "test".into(),
        ..Hello::default()
    }
}

pub(crate) fn config_in(folder: &Path) -> Config {
    let runtimes = folder.join("runtimes");
    std::fs::create_dir_all(&runtimes).expect("folder");
    Config {
        data_dir: folder.join("data"),
        pki_dir: folder.join("pki"),
        listen_http: ([127, 0, 0, 1], 0).into(),
        listen_quic: ([127, 0, 0, 1], 0).into(),
        advertise: vec!["127.0.0.1".into()],
        admin_listen: None,
        runtimes_dirs: vec![runtimes],
        ..Config::default()
    }
}

/// A client that trusts these authorities and nothing else.
pub(crate) fn client_of(
    authorities: &[rustls::pki_types::CertificateDer<'static>],
) -> reqwest::Client {
    let tls = daemon::tls::https_client(authorities).expect("a CA");
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .build()
        .expect("a client")
}
