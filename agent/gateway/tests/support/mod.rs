//! A cluster in one process: certificates, gateways on free ports, replicas that are small hyper
//! servers on real Unix sockets, and a client.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses its own part"
)]

pub mod client;
pub mod replica;

use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon::ca::CertificateAuthority;
use daemon::http::HttpLimits;
use daemon::identity::{Identity, Subject, new_request};
use daemon::tasks::Tasks;
use gateway::{Gateway, Listeners, Options};
use prometheus_client::registry::Registry;
use shared::ids::{
    ClusterId, EndpointId, EndpointName, EntityName, Epoch, NodeName, ReplicaId, Revision, Role,
    ServedEntityId, TokenId,
};
use shared::routes::{
    EndpointLimits, EndpointRoute, EntityRoute, GatewayAddress, ReplicaRoute, Routes, TokenGrant,
};
use shared::spec::TokenRole;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub const TOKEN: &str = "shk_0000000000000001_secret";

pub fn cluster_id() -> ClusterId {
    ClusterId::from_bits(0xc1)
}

pub fn replica_id(n: u64) -> ReplicaId {
    ReplicaId::from_bits(n)
}

pub fn node_name(name: &str) -> NodeName {
    NodeName::parse(name).expect("valid")
}

/// Signs identities of one cluster.
pub struct Authority {
    ca: CertificateAuthority,
    folder: tempfile::TempDir,
}

impl Authority {
    pub fn new() -> Self {
        daemon::tls::install_crypto_provider();
        Self {
            ca: CertificateAuthority::create(&cluster_id()),
            folder: tempfile::tempdir().expect("folder"),
        }
    }

    /// Makes an identity, and the folder that holds it.
    pub fn folder_of(&self, role: Role, node: &str) -> PathBuf {
        let folder = self.folder.path().join(format!("{node}-{role}"));
        let request = new_request();
        let subject = Subject {
            cluster: cluster_id(),
            role,
            node: node_name(node),
        };
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let lifetime = Duration::from_secs(3600);
        let certificate = self
            .ca
            .sign(&request.csr_pem, &subject, &names, lifetime)
            .expect("signed");
        let ca = self.ca.certificate_pem();
        Identity::save(&folder, &certificate, &request.key_pem, ca).expect("saved");
        folder
    }

    pub fn identity(&self, role: Role, node: &str) -> Identity {
        Identity::load(&self.folder_of(role, node)).expect("loaded")
    }
}

/// A gateway of one node.
pub struct Node {
    pub name: NodeName,
    pub gateway: Gateway,
    pub demands: mpsc::Receiver<(ServedEntityId, u32)>,
    pub identity: Identity,
    pub client_port: u16,
    pub peer_port: u16,
    pub run_dir: tempfile::TempDir,
    registry: Registry,
    cancel: CancellationToken,
}

#[derive(Clone)]
pub struct NodeOptions {
    pub hold: Duration,
    pub scheduler: Vec<String>,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(30),
            scheduler: Vec::new(),
        }
    }
}

impl Node {
    pub async fn start(authority: &Authority, name: &str) -> Self {
        Self::start_with(authority, name, NodeOptions::default()).await
    }

    pub async fn start_with(authority: &Authority, name: &str, options: NodeOptions) -> Self {
        let identity = authority.identity(Role::Gateway, name);
        let run_dir = tempfile::tempdir().expect("folder");
        let mut registry = Registry::default();
        let gateway_options = Options {
            credentials: daemon::credentials::Credentials::new(identity.clone(), None)
                .expect("usable"),
            run_dir: run_dir.path().to_owned(),
            scheduler: options.scheduler,
            hold: options.hold,
            body_idle: Duration::from_secs(5),
            body_memory: shared::units::Bytes::mib(64),
        };
        let mut gateway = Gateway::new(&gateway_options, &mut registry).expect("made");
        let client = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let peer = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let client_port = client.local_addr().expect("address").port();
        let peer_port = peer.local_addr().expect("address").port();
        let listeners = Listeners {
            client,
            client_tls: daemon::tls::https_server(&identity).expect("TLS"),
            client_limits: HttpLimits::default(),
            peer,
            peer_limits: HttpLimits::default(),
        };
        let cancel = CancellationToken::new();
        let mut tasks = Tasks::new(cancel.clone());
        gateway
            .spawn(&mut tasks, &identity, listeners, &cancel)
            .expect("started");
        tokio::spawn(async move { tasks.join(Duration::from_secs(5)).await });
        let demands = gateway.take_demands().expect("demands");
        Self {
            name: node_name(name),
            gateway,
            demands,
            identity,
            client_port,
            peer_port,
            run_dir,
            registry,
            cancel,
        }
    }

    pub fn run_dir(&self) -> &Path {
        self.run_dir.path()
    }

    pub fn address(&self) -> GatewayAddress {
        GatewayAddress {
            node: self.name.clone(),
            address: format!("127.0.0.1:{}", self.peer_port),
        }
    }

    pub fn apply(&self, routes: &Routes) {
        self.gateway.apply(routes.clone()).expect("routes accepted");
    }

    /// Value of the metric line that begins with `name`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("encoded");
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until the gateway has found a replica on its node.
    pub async fn found(&self, n: u64) {
        let found = || {
            let report = self.gateway.report();
            report.replicas.iter().any(|r| r.id == replica_id(n))
        };
        eventually("the gateway has found the replica", found).await;
    }

    pub fn stop(&self) {
        self.cancel.cancel();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Routes with one endpoint `iris`, to be changed by a test.
pub fn routes(revision: u64, entities: Vec<EntityRoute>, gateways: Vec<GatewayAddress>) -> Routes {
    Routes {
        cluster: cluster_id(),
        epoch: Epoch(1),
        revision: Revision(revision),
        endpoints: vec![EndpointRoute {
            name: EndpointName::parse("iris").expect("valid"),
            id: EndpointId::from_bits(1),
            entities,
            limits: EndpointLimits {
                request_timeout_ms: 10_000,
                queue_capacity: 100,
                max_body_bytes: 8 << 20,
            },
        }],
        tokens: vec![TokenGrant {
            id: TokenId::from_bits(1),
            hash: shared::token::hash(TOKEN),
            role: TokenRole::Query,
        }],
        gateways,
        revoked_nodes: Vec::new(),
    }
}

pub fn entity(name: &str, percent: u32, limit: u32, replicas: &[(u64, &str)]) -> EntityRoute {
    EntityRoute {
        name: EntityName::parse(name).expect("valid"),
        percent,
        target_concurrency: limit,
        invocations_path: "/invocations".into(),
        replicas: replicas
            .iter()
            .map(|&(n, node)| ReplicaRoute {
                id: replica_id(n),
                node: node_name(node),
                draining: false,
                target_concurrency: None,
            })
            .collect(),
    }
}

/// Waits until a condition holds; fails the test after ten seconds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(
            tokio::time::Instant::now() < limit,
            "never came true: {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
