//! The session between a node and a scheduler, over real QUIC on loopback.

use std::sync::Arc;
use std::time::Duration;

use daemon::ca::CertificateAuthority;
use daemon::credentials::Credentials;
use daemon::identity::{Identity, Subject, new_request};
use daemon::link::{LinkEvent, LinkHandle, LinkOptions, link};
use daemon::quic;
use shared::ids::{ClusterId, NodeName, Role};
use shared::wire::{
    ClientBody, ClientFrame, Demand, Hello, RequestBody, ServerBody, ServerFrame, StreamReply,
    StreamRequest, Welcome, close,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

fn identity(ca: &CertificateAuthority, role: Role) -> Identity {
    let folder = tempfile::tempdir().expect("folder");
    let request = new_request();
    let subject = Subject {
        cluster: ca.cluster().clone(),
        role,
        node: NodeName::parse("n1").expect("valid"),
    };
    let day = Duration::from_secs(86_400);
    let cert = ca
        .sign(&request.csr_pem, &subject, &["localhost".into()], day)
        .expect("signed");
    Identity::save(folder.path(), &cert, &request.key_pem, ca.certificate_pem()).expect("saved");
    Identity::load(folder.path()).expect("loaded")
}

struct Node {
    handle: LinkHandle,
    events: mpsc::Receiver<LinkEvent>,
    _stop: tokio_util::sync::DropGuard,
}

impl Node {
    fn start(identity: Identity, server: &quinn::Endpoint) -> Self {
        Self::at(identity, server.local_addr().expect("bound"))
    }

    fn at(identity: Identity, address: std::net::SocketAddr) -> Self {
        let cancel = CancellationToken::new();
        let options = LinkOptions {
            addresses: vec![address.to_string()],
            credentials: Credentials::new(identity, None).expect("usable"),
            hello: Arc::new(|| Hello {
                protocol_min: 1,
                protocol_max: 1,
                ..Default::default()
            }),
        };
        let (handle, events, run) = link(options, cancel.clone());
        tokio::spawn(run);
        Self {
            handle,
            events,
            _stop: cancel.drop_guard(),
        }
    }

    async fn next(&mut self) -> LinkEvent {
        tokio::time::timeout(PATIENCE, self.events.recv())
            .await
            .expect("in time")
            .expect("open")
    }

    async fn down(&mut self) -> String {
        match self.next().await {
            LinkEvent::Down { reason } => reason,
            other => panic!("expected Down, got {other:?}"),
        }
    }
}

fn server(ca: &CertificateAuthority) -> quinn::Endpoint {
    let listen = "127.0.0.1:0".parse().expect("address");
    quic::server_endpoint(listen, &identity(ca, Role::Scheduler)).expect("bound")
}

/// Accepts one session and greets it.
async fn welcome(
    server: &quinn::Endpoint,
    cluster: &ClusterId,
) -> (quinn::Connection, quinn::SendStream, quinn::RecvStream) {
    let incoming = server.accept().await.expect("incoming");
    let connection = incoming.await.expect("connected");
    let (mut send, mut receive) = connection.accept_bi().await.expect("session");
    let hello: ClientFrame = quic::read_frame(&mut receive)
        .await
        .expect("read")
        .expect("a frame");
    assert!(matches!(hello.body, Some(ClientBody::Hello(_))));
    let welcome = Welcome {
        protocol: 1,
        cluster: cluster.to_string(),
        ..Default::default()
    };
    let frame = ServerFrame {
        body: Some(ServerBody::Welcome(welcome)),
    };
    quic::write_frame(&mut send, &frame).await.expect("sent");
    (connection, send, receive)
}

#[tokio::test]
async fn frames_and_requests_go_both_ways_and_the_session_comes_back() {
    let ca = CertificateAuthority::create(&ClusterId::from_bits(1));
    let server = server(&ca);
    let mut node = Node::start(identity(&ca, Role::Agent), &server);

    let (connection, _send, mut receive) = welcome(&server, ca.cluster()).await;
    let subject = quic::peer_subject(&connection).expect("subject");
    assert_eq!((subject.role, subject.node.as_str()), (Role::Agent, "n1"));
    assert!(matches!(node.next().await, LinkEvent::Up(_)));

    let demand = Demand {
        endpoint: "iris".into(),
        entity: "iris-1".into(),
        queued: 3,
    };
    node.handle
        .outgoing
        .send(ClientBody::Demand(demand.clone()))
        .await
        .expect("queued");
    let frame: ClientFrame = quic::read_frame(&mut receive)
        .await
        .expect("read")
        .expect("a frame");
    assert_eq!(frame.body, Some(ClientBody::Demand(demand)));

    let asked = {
        let connection = connection.clone();
        tokio::spawn(async move {
            let replica = shared::ids::ReplicaId::from_bits(1);
            let request = StreamRequest::read_log(&replica, 10, false);
            quic::request(&connection, &request, PATIENCE).await
        })
    };
    match node.next().await {
        LinkEvent::Request {
            request: RequestBody::ReadLog(_),
            mut send,
        } => {
            let reply = StreamReply {
                error: "no such log".into(),
                ..Default::default()
            };
            quic::write_frame(&mut send, &reply)
                .await
                .expect("answered");
        }
        other => panic!("expected a request, got {other:?}"),
    }
    let refused = asked.await.expect("joined").expect_err("refused");
    assert_eq!(refused.to_string(), "no such log");

    quic::close(&connection, close::GOING_AWAY, "restarting");
    assert_eq!(node.down().await, "restarting");
    let _session = welcome(&server, ca.cluster()).await;
    assert!(matches!(node.next().await, LinkEvent::Up(_)));
}

#[tokio::test]
async fn a_certificate_of_a_foreign_authority_is_refused_on_both_ends() {
    let ours = CertificateAuthority::create(&ClusterId::from_bits(1));
    let foreign = CertificateAuthority::create(&ClusterId::from_bits(1));

    let server = server(&ours);
    let mut node = Node::start(identity(&foreign, Role::Agent), &server);
    let incoming = server.accept().await.expect("incoming");
    assert!(incoming.await.is_err());
    let reason = node.down().await;
    assert!(
        reason.contains("certificate") || reason.contains("UnknownIssuer"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_refusal_after_the_handshake_reaches_the_node_with_its_reason() {
    let ca = CertificateAuthority::create(&ClusterId::from_bits(1));
    let server = server(&ca);
    let mut node = Node::start(identity(&ca, Role::Agent), &server);
    let connection = server
        .accept()
        .await
        .expect("incoming")
        .await
        .expect("connected");
    quic::close(&connection, close::REVOKED, "node n1 was revoked");
    let reason = node.down().await;
    assert!(reason.contains("node n1 was revoked"), "{reason}");
}

/// Between a node and whichever scheduler is alive: what the dead one still says is dropped.
struct Relay {
    address: std::net::SocketAddr,
    alive: tokio::sync::watch::Sender<std::net::SocketAddr>,
}

impl Relay {
    async fn to(first: std::net::SocketAddr) -> Self {
        let bind = || tokio::net::UdpSocket::bind("127.0.0.1:0");
        let (outside, inside) = (bind().await.expect("bound"), bind().await.expect("bound"));
        let address = outside.local_addr().expect("bound");
        let (alive, target) = tokio::sync::watch::channel(first);
        tokio::spawn(async move {
            let (mut up, mut down) = ([0; 2048], [0; 2048]);
            let mut node = None;
            loop {
                tokio::select! {
                    Ok((len, from)) = outside.recv_from(&mut up) => {
                        node = Some(from);
                        let target = *target.borrow();
                        inside.send_to(&up[..len], target).await.expect("sent");
                    }
                    Ok((len, from)) = inside.recv_from(&mut down) => {
                        if from == *target.borrow()
                            && let Some(node) = node
                        {
                            outside.send_to(&down[..len], node).await.expect("sent");
                        }
                    }
                }
            }
        });
        Self { address, alive }
    }
}

#[tokio::test]
async fn a_scheduler_that_was_killed_and_is_back_tells_its_nodes_that_their_sessions_are_gone() {
    let ca = CertificateAuthority::create(&ClusterId::from_bits(1));
    let scheduler = identity(&ca, Role::Scheduler);
    let listen = || {
        let any = "127.0.0.1:0".parse().expect("address");
        quic::server_endpoint(any, &scheduler).expect("bound")
    };
    let first = listen();
    let relay = Relay::to(first.local_addr().expect("bound")).await;
    let mut node = Node::at(identity(&ca, Role::Agent), relay.address);
    let _first_session = welcome(&first, ca.cluster()).await;
    assert!(matches!(node.next().await, LinkEvent::Up(_)));

    let second = listen();
    relay
        .alive
        .send_replace(second.local_addr().expect("bound"));
    // Not "timed out": its successor answers the next packet with a reset that the node believes.
    assert_eq!(node.down().await, "reset by peer");
    let _session = welcome(&second, ca.cluster()).await;
    assert!(matches!(node.next().await, LinkEvent::Up(_)));
}
