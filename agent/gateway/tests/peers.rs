//! Two gateways: a request that comes in at one and is worked on at the other's node.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use rustls::pki_types::ServerName;
use shared::ids::{Role, ServedEntityId};
use shared::routes::Routes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use support::client::{ClientBody, invoke, post, read, send, whole};
use support::replica::{Load, Replica, text};
use support::{Authority, Node, entity, eventually, node_name, replica_id, routes};

const INVOKE: &str = "/serving-endpoints/iris/invocations";

struct Pair {
    authority: Authority,
    entry: Node,
    far: Node,
}

impl Pair {
    async fn start() -> Self {
        let authority = Authority::new();
        let entry = Node::start(&authority, "entry").await;
        let far = Node::start(&authority, "far").await;
        Self {
            authority,
            entry,
            far,
        }
    }

    fn routes(&self, revision: u64, limit: u32, replicas: &[(u64, &str)]) -> Routes {
        let gateways = vec![self.entry.address(), self.far.address()];
        routes(
            revision,
            vec![entity("iris-1", 100, limit, replicas)],
            gateways,
        )
    }

    fn apply(&self, routes: &Routes) {
        self.entry.apply(routes);
        self.far.apply(routes);
    }

    /// Starts a replica on the far node and waits until its gateway has found it.
    async fn far_replica<F>(&self, n: u64, serve: F) -> Replica
    where
        F: Fn(
                Request<hyper::body::Incoming>,
                Arc<Load>,
            ) -> futures_util::future::BoxFuture<'static, support::replica::Answer>
            + Send
            + Sync
            + 'static,
    {
        let replica = Replica::start(self.far.run_dir(), n, "iris-1", serve);
        self.found(n).await;
        replica
    }

    async fn found(&self, n: u64) {
        self.far.found(n).await;
    }
}

#[tokio::test]
async fn a_request_crosses_to_the_replicas_node_and_back() {
    let pair = Pair::start().await;
    let _replica = Replica::echo(pair.far.run_dir(), 1, "iris-1");
    pair.found(1).await;
    pair.apply(&pair.routes(1, 4, &[(1, "far")]));
    let reply = send(&pair.entry, invoke("{\"inputs\":[1]}")).await;
    assert_eq!(
        (reply.status, reply.text().as_str()),
        (StatusCode::OK, "{\"inputs\":[1]}")
    );
    assert_eq!(reply.headers["served-model-name"], "iris-1");
    assert!(
        !reply
            .headers
            .keys()
            .any(|name| name.as_str().starts_with("stokehold-"))
    );
    // Counted once, by the entry.
    assert_eq!(pair.entry.gateway.report().traffic[0].arrivals, 1);
    assert_eq!(pair.far.gateway.report().traffic[0].arrivals, 0);
}

#[tokio::test]
async fn two_entries_together_never_exceed_the_replicas_limit_and_lose_nothing() {
    let pair = Pair::start().await;
    let replica = pair
        .far_replica(1, |_, load| {
            async move {
                let _busy = load.enter();
                tokio::time::sleep(Duration::from_millis(2)).await;
                text(200, "ok")
            }
            .boxed()
        })
        .await;
    let mut table = pair.routes(1, 3, &[(1, "far")]);
    table.endpoints[0].limits.queue_capacity = 1_000;
    pair.apply(&table);
    let requests = (0..80).map(|n| {
        let node = if n % 2 == 0 { &pair.entry } else { &pair.far };
        send(node, invoke("{}"))
    });
    for reply in futures_util::future::join_all(requests).await {
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    }
    let peak = replica.load.peak.load(Ordering::SeqCst);
    assert!((1..=3).contains(&peak), "{peak}");
}

#[tokio::test]
async fn a_far_replicas_load_and_own_limit_are_its_own_gateways_whoever_sends() {
    let pair = Pair::start().await;
    let replica = pair
        .far_replica(1, |_, load| {
            async move {
                let _busy = load.enter();
                tokio::time::sleep(Duration::from_millis(20)).await;
                text(200, "ok")
            }
            .boxed()
        })
        .await;
    let mut table = pair.routes(1, 1, &[(1, "far")]);
    table.endpoints[0].entities[0].replicas[0].target_concurrency = Some(3);
    pair.apply(&table);
    let requests = (0..24).map(|_| send(&pair.entry, invoke("{}")));
    for reply in futures_util::future::join_all(requests).await {
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    }
    assert_eq!(replica.load.peak.load(Ordering::SeqCst), 3);
    eventually("the last slot is free", || replica.load.active() == 0).await;
    let load = pair.far.gateway.report().replicas[0].load.clone();
    let load = load.expect("measured");
    assert_eq!(load.completions, 24);
    assert!(load.active > 0.0 && load.p50_ms.expect("measured") > 18.0);
    assert!(pair.entry.gateway.report().replicas.is_empty());
}

#[tokio::test]
async fn a_long_body_waits_for_a_slot_untouched_and_then_streams() {
    let pair = Pair::start().await;
    let replica = pair
        .far_replica(1, |request, load| {
            async move {
                let _busy = load.enter();
                if request.headers().contains_key("x-block") {
                    return std::future::pending().await;
                }
                let body = request.into_body().collect().await.expect("body");
                text(200, &body.to_bytes().len().to_string())
            }
            .boxed()
        })
        .await;
    pair.apply(&pair.routes(1, 1, &[(1, "far")]));
    // The far node's own client takes the only slot, which the entry does not know.
    let mut blocking = invoke("{}");
    blocking
        .headers_mut()
        .insert("x-block", "1".parse().expect("value"));
    let blocker = support::client::tls(&pair.far, b"http/1.1").await;
    let blocker = tokio::spawn(support::client::send_on(blocker, blocking));
    eventually("the slot is taken", || replica.load.active() == 1).await;
    let (pieces, body) = streamed();
    let sending = async {
        for _ in 0..4 {
            pieces
                .send(Bytes::from(vec![b'x'; 1 << 20]))
                .await
                .expect("read");
        }
        drop(pieces);
    };
    let full = "stokehold_gateway_upstream_errors_total{kind=\"full\"}";
    let free = async {
        eventually("the entry was told that it is full", || {
            pair.entry.metric(full) >= Some(2.0)
        })
        .await;
        blocker.abort();
    };
    let (reply, (), ()) = tokio::join!(send(&pair.entry, post(INVOKE, body)), sending, free);
    assert_eq!(
        (reply.status, reply.text()),
        (StatusCode::OK, (4 << 20).to_string())
    );
    assert_eq!(replica.load.peak.load(Ordering::SeqCst), 1);
}

fn streamed() -> (mpsc::Sender<Bytes>, ClientBody) {
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((Ok(Frame::data(piece)), receiver))
    });
    (sender, StreamBody::new(pieces).boxed_unsync())
}

#[tokio::test]
async fn a_client_that_leaves_the_entry_frees_the_slot_on_the_far_node() {
    let pair = Pair::start().await;
    let replica = Replica::endless(pair.far.run_dir(), 1, "iris-1");
    pair.found(1).await;
    pair.apply(&pair.routes(1, 1, &[(1, "far")]));
    let stream = support::client::tls(&pair.entry, b"http/1.1").await;
    let client = tokio::spawn(support::client::send_on(stream, invoke("{}")));
    eventually("the replica works", || replica.load.active() == 1).await;
    client.abort();
    eventually("the replica is told", || replica.load.active() == 0).await;
    let free = || pair.far.gateway.report().replicas[0].in_flight == 0;
    eventually("the slot is free", free).await;
}

#[tokio::test]
async fn a_replica_that_dies_at_work_on_another_node_is_named() {
    let pair = Pair::start().await;
    let replica = Replica::endless(pair.far.run_dir(), 1, "iris-1");
    pair.found(1).await;
    pair.apply(&pair.routes(1, 1, &[(1, "far")]));
    let death = async {
        eventually("the replica works", || replica.load.active() == 1).await;
        replica.die();
    };
    let (reply, ()) = tokio::join!(send(&pair.entry, invoke("{}")), death);
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY);
    assert!(
        reply.text().contains(replica_id(1).as_str()),
        "{}",
        reply.text()
    );
}

#[tokio::test]
async fn what_a_far_node_does_not_have_or_cannot_reach_goes_elsewhere() {
    let pair = Pair::start().await;
    let near = Replica::echo(pair.entry.run_dir(), 3, "iris-1");
    drop(support::replica::listen(pair.far.run_dir(), 1, "iris-1"));
    pair.found(1).await;
    // 1 has no listener, 2 has no folder, and nobody knows a gateway of node "gone".
    pair.apply(&pair.routes(1, 8, &[(1, "far"), (2, "far"), (3, "entry"), (4, "gone")]));
    for _ in 0..20 {
        assert_eq!(send(&pair.entry, invoke("{}")).await.status, StatusCode::OK);
    }
    assert_eq!(near.load.served(), 20);
}

#[tokio::test]
async fn a_far_gateway_that_goes_away_between_requests_costs_none() {
    let pair = Pair::start().await;
    let _far = Replica::echo(pair.far.run_dir(), 1, "iris-1");
    pair.found(1).await;
    let near = Replica::echo(pair.entry.run_dir(), 2, "iris-1");
    pair.apply(&pair.routes(1, 8, &[(1, "far"), (2, "entry")]));
    for _ in 0..10 {
        assert_eq!(send(&pair.entry, invoke("{}")).await.status, StatusCode::OK);
    }
    pair.far.stop();
    for _ in 0..10 {
        assert_eq!(send(&pair.entry, invoke("{}")).await.status, StatusCode::OK);
    }
    assert!(near.load.served() >= 10);
}

#[tokio::test]
async fn a_request_that_the_far_replica_never_read_goes_elsewhere() {
    let pair = Pair::start().await;
    // Each connection answers once and says that it stays; it closes when the next request has come,
    // without reading it. A connection without a first answer to keep closes at once.
    let listener = support::replica::listen(pair.far.run_dir(), 1, "iris-1");
    let dead = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let dies = Arc::clone(&dead);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let dead = Arc::clone(&dies);
            tokio::spawn(async move {
                if dead.load(Ordering::SeqCst) {
                    let _ = stream.readable().await;
                    return;
                }
                let mut seen = Vec::new();
                while !seen.ends_with(b"{}") {
                    if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nfar";
                let _ = stream.write_all(answer).await;
                let _ = stream.readable().await;
            });
        }
    });
    pair.found(1).await;
    pair.apply(&pair.routes(1, 8, &[(1, "far")]));
    assert_eq!(send(&pair.entry, invoke("{}")).await.text(), "far");
    dead.store(true, Ordering::SeqCst);
    let near = Replica::echo(pair.entry.run_dir(), 2, "iris-1");
    pair.entry.found(2).await;
    pair.apply(&pair.routes(2, 8, &[(1, "far"), (2, "entry")]));
    for _ in 0..20 {
        let reply = send(&pair.entry, invoke("{}")).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    }
    assert_eq!(near.load.served(), 20);
}

/// Calls the far gateway's peer listener as `role` of `node`.
async fn call_peer(pair: &Pair, role: Role, node: &str) -> StatusCode {
    let identity = pair.authority.identity(role, node);
    let tls = daemon::tls::mutual_client(&identity, &[b"stokehold-peer/1"]).expect("TLS");
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", pair.far.peer_port))
        .await
        .expect("connected");
    let name = ServerName::try_from("far.gateway.stokehold.internal").expect("name");
    let stream = TlsConnector::from(tls)
        .connect(name, stream)
        .await
        .expect("TLS");
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .expect("HTTP");
    tokio::spawn(connection);
    let path = format!("/peer/v1/replicas/{}/invoke", replica_id(1));
    let response = sender
        .send_request(post(&path, whole("{}")))
        .await
        .expect("answer");
    read(response).await.status
}

#[tokio::test]
async fn only_gateways_that_were_not_revoked_may_ask_for_replicas() {
    let pair = Pair::start().await;
    let _replica = Replica::echo(pair.far.run_dir(), 1, "iris-1");
    pair.found(1).await;
    let mut table = pair.routes(1, 4, &[(1, "far")]);
    table.revoked_nodes = vec![node_name("stolen")];
    pair.apply(&table);
    assert_eq!(
        call_peer(&pair, Role::Gateway, "third").await,
        StatusCode::OK
    );
    assert_eq!(
        call_peer(&pair, Role::Agent, "third").await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        call_peer(&pair, Role::Gateway, "stolen").await,
        StatusCode::FORBIDDEN
    );
}

#[tokio::test]
async fn a_request_at_an_entry_without_the_replica_tells_demand_for_the_entity() {
    let mut pair = Pair::start().await;
    pair.apply(&pair.routes(1, 4, &[]));
    let stream = support::client::tls(&pair.entry, b"http/1.1").await;
    let waiting = tokio::spawn(support::client::send_on(stream, invoke("{}")));
    let (id, queued) = pair.entry.demands.recv().await.expect("demand");
    let expected = ServedEntityId {
        endpoint: "iris".parse().expect("valid"),
        entity: "iris-1".parse().expect("valid"),
    };
    assert_eq!((id, queued), (expected, 1));
    let _replica = Replica::echo(pair.far.run_dir(), 1, "iris-1");
    pair.apply(&pair.routes(2, 4, &[(1, "far")]));
    assert_eq!(waiting.await.expect("answered").status, StatusCode::OK);
}
