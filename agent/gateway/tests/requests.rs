//! A client's request at one gateway: who may ask, what crosses, how it ends.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};

use support::client::{
    ClientBody, invoke, open, post, send, send_h2, send_on, send_on_h2, tls, tls_to, whole,
};
use support::replica::{Replica, listen, text};
use support::{Authority, Node, NodeOptions, TOKEN, entity, eventually, replica_id, routes};

const INVOKE: &str = "/serving-endpoints/iris/invocations";

async fn node_with_echo(limit: u32) -> (Node, Replica) {
    let node = Node::start(&Authority::new(), "n1").await;
    let replica = Replica::echo(node.run_dir(), 1, "iris-1");
    node.apply(&routes(
        1,
        vec![entity("iris-1", 100, limit, &[(1, "n1")])],
        vec![],
    ));
    (node, replica)
}

/// A body whose pieces a test sends.
fn streamed() -> (mpsc::Sender<Bytes>, ClientBody) {
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((Ok(Frame::data(piece)), receiver))
    });
    (sender, StreamBody::new(pieces).boxed_unsync())
}

#[tokio::test]
async fn a_prediction_comes_back_with_the_entity_and_the_request_id() {
    let (node, _replica) = node_with_echo(4).await;
    let mut request = invoke("{\"inputs\":[1]}");
    request
        .headers_mut()
        .insert("x-request-id", "abc-1".parse().expect("value"));
    let reply = send(&node, request).await;
    assert_eq!(
        (reply.status, reply.text().as_str()),
        (StatusCode::OK, "{\"inputs\":[1]}")
    );
    assert_eq!(reply.headers["served-model-name"], "iris-1");
    assert_eq!(reply.headers["x-request-id"], "abc-1");
}

#[tokio::test]
async fn http2_works_the_same() {
    let (node, _replica) = node_with_echo(4).await;
    let reply = send_h2(&node, INVOKE, whole("over h2")).await;
    assert_eq!(
        (reply.status, reply.text().as_str()),
        (StatusCode::OK, "over h2")
    );
    assert_eq!(reply.headers["x-request-id"].len(), 32);
}

#[tokio::test]
async fn the_replica_sees_the_request_id_and_the_trace_but_no_credential() {
    let node = Node::start(&Authority::new(), "n1").await;
    let _replica = Replica::start(node.run_dir(), 1, "iris-1", |request, _| {
        let seen = format!(
            "{} {} {:?} {:?} {:?}",
            request.method(),
            request.uri(),
            request.headers().get("x-request-id"),
            request.headers().get("traceparent"),
            request.headers().get("authorization"),
        );
        async move { text(200, &seen) }.boxed()
    });
    node.apply(&routes(
        1,
        vec![entity("iris-1", 100, 4, &[(1, "n1")])],
        vec![],
    ));
    let mut request = post(&format!("{INVOKE}?o=123"), whole("{}"));
    request
        .headers_mut()
        .insert("x-request-id", "r1".parse().expect("value"));
    request
        .headers_mut()
        .insert("traceparent", "00-1-2-01".parse().expect("value"));
    let reply = send(&node, request).await;
    assert_eq!(
        reply.text(),
        "POST /invocations Some(\"r1\") Some(\"00-1-2-01\") None"
    );
}

#[tokio::test]
async fn a_request_without_a_valid_token_is_refused_and_the_open_routes_need_none() {
    let (node, replica) = node_with_echo(4).await;
    for token in [None, Some("Bearer shk_wrong"), Some("Basic abc")] {
        let mut request = invoke("{}");
        request.headers_mut().remove("authorization");
        if let Some(token) = token {
            request
                .headers_mut()
                .insert("authorization", token.parse().expect("value"));
        }
        let reply = send(&node, request).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
        assert_eq!(reply.error_code(), "UNAUTHENTICATED");
    }
    assert_eq!(replica.load.served(), 0);
    for path in ["/healthz", "/.well-known/databricks-config"] {
        let request = Request::get(path)
            .header("host", "localhost")
            .body(whole(""));
        let reply = send(&node, request.expect("request")).await;
        assert_eq!(reply.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn what_does_not_exist_is_an_error_that_says_so() {
    let (node, _replica) = node_with_echo(4).await;
    for (path, code) in [
        (
            "/serving-endpoints/other/invocations",
            "RESOURCE_DOES_NOT_EXIST",
        ),
        (
            "/serving-endpoints/iris/served-models/other/invocations",
            "RESOURCE_DOES_NOT_EXIST",
        ),
        ("/nothing", "ENDPOINT_NOT_FOUND"),
    ] {
        let reply = send(&node, post(path, whole("{}"))).await;
        assert_eq!(
            (reply.status, reply.error_code().as_str()),
            (StatusCode::NOT_FOUND, code),
            "{path}"
        );
        assert!(reply.headers.contains_key("x-request-id"));
    }
    let get = Request::get(INVOKE)
        .header("host", "localhost")
        .body(whole(""));
    let reply = send(&node, get.expect("request")).await;
    assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(reply.headers["allow"], "POST");
}

#[tokio::test]
async fn traffic_goes_by_percent_and_an_entity_of_zero_is_reached_by_its_own_route() {
    let node = Node::start(&Authority::new(), "n1").await;
    let one = Replica::echo(node.run_dir(), 1, "iris-1");
    let two = Replica::echo(node.run_dir(), 2, "iris-2");
    let entities = vec![
        entity("iris-1", 100, 4, &[(1, "n1")]),
        entity("iris-2", 0, 4, &[(2, "n1")]),
    ];
    node.apply(&routes(1, entities, vec![]));
    for _ in 0..10 {
        assert_eq!(send(&node, invoke("{}")).await.status, StatusCode::OK);
    }
    assert_eq!((one.load.served(), two.load.served()), (10, 0));
    let path = "/serving-endpoints/iris/served-models/iris-2/invocations";
    let reply = send(&node, post(path, whole("{}"))).await;
    assert_eq!(reply.headers["served-model-name"], "iris-2");
}

#[tokio::test]
async fn the_limit_holds_under_load_and_everybody_is_served() {
    let node = Node::start(&Authority::new(), "n1").await;
    let slow = |_: Request<_>, load: Arc<support::replica::Load>| {
        async move {
            let _busy = load.enter();
            tokio::time::sleep(Duration::from_millis(3)).await;
            text(200, "ok")
        }
        .boxed()
    };
    let replicas = [1, 2].map(|n| Replica::start(node.run_dir(), n, "iris-1", slow));
    let mut table = routes(
        1,
        vec![entity("iris-1", 100, 3, &[(1, "n1"), (2, "n1")])],
        vec![],
    );
    table.endpoints[0].limits.queue_capacity = 1_000;
    node.apply(&table);
    let requests = (0..120).map(|_| send(&node, invoke("{}")));
    for reply in futures_util::future::join_all(requests).await {
        assert_eq!(reply.status, StatusCode::OK);
    }
    for replica in &replicas {
        let peak = replica.load.peak.load(Ordering::SeqCst);
        assert!((1..=3).contains(&peak), "{peak}");
    }
    let traffic = &node.gateway.report().traffic[0];
    assert_eq!(
        (traffic.arrivals, traffic.completions, traffic.rejected),
        (120, 120, 0)
    );
    assert!(traffic.active > 0.0 && traffic.queued > 0.0 && traffic.p99_ms.is_some());
}

#[tokio::test]
async fn beyond_the_queue_clients_are_told_to_come_back() {
    let node = Node::start(&Authority::new(), "n1").await;
    let replica = Replica::endless(node.run_dir(), 1, "iris-1");
    let mut table = routes(1, vec![entity("iris-1", 100, 1, &[(1, "n1")])], vec![]);
    table.endpoints[0].limits.queue_capacity = 1;
    node.apply(&table);
    let node = Arc::new(node);
    let occupy = || {
        tokio::spawn({
            let node = Arc::clone(&node);
            async move { send(&node, invoke("{}")).await }
        })
    };
    let first = occupy();
    eventually("the first works", || replica.load.active() == 1).await;
    // The first may have waited too, for its replica to be found: that stretch is over.
    node.gateway.report();
    let second = occupy();
    let waiting = || node.gateway.report().traffic[0].queued > 0.0;
    eventually("the second waits", waiting).await;
    let reply = send(&node, invoke("{}")).await;
    assert_eq!(
        (reply.status, reply.error_code().as_str()),
        (StatusCode::TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED")
    );
    assert_eq!(reply.headers["retry-after"], "1");
    first.abort();
    second.abort();
}

#[tokio::test]
async fn a_request_is_over_at_its_deadline_in_the_queue_and_at_the_replica() {
    let node = Node::start(&Authority::new(), "n1").await;
    let replica = Replica::endless(node.run_dir(), 1, "iris-1");
    node.found(1).await;
    let mut table = routes(1, vec![entity("iris-1", 100, 1, &[(1, "n1")])], vec![]);
    table.endpoints[0].limits.request_timeout_ms = 300;
    node.apply(&table);
    let (one, two) = tokio::join!(send(&node, invoke("{}")), send(&node, invoke("{}")));
    for reply in [one, two] {
        assert_eq!(
            (reply.status, reply.error_code().as_str()),
            (StatusCode::GATEWAY_TIMEOUT, "DEADLINE_EXCEEDED")
        );
    }
    eventually("the slot is free", || replica.load.active() == 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot_and_stops_the_replicas_work() {
    let node = Node::start(&Authority::new(), "n1").await;
    let replica = Replica::endless(node.run_dir(), 1, "iris-1");
    node.apply(&routes(
        1,
        vec![entity("iris-1", 100, 1, &[(1, "n1")])],
        vec![],
    ));
    for _ in 0..3 {
        let mut stream = tls(&node, b"http/1.1").await;
        let head = format!(
            "POST {INVOKE} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 2\r\n\r\n{{}}"
        );
        stream.write_all(head.as_bytes()).await.expect("written");
        eventually("the replica works", || replica.load.active() == 1).await;
        drop(stream);
        eventually("the replica is told", || replica.load.active() == 0).await;
        let free = || {
            node.gateway
                .report()
                .replicas
                .iter()
                .all(|r| r.in_flight == 0)
        };
        eventually("the slot is free", free).await;
    }
    let cancelled = "stokehold_gateway_requests_total{endpoint=\"iris\",outcome=\"cancelled\"}";
    assert_eq!(node.metric(cancelled), Some(3.0));
}

#[tokio::test]
async fn server_sent_events_pass_one_by_one_as_they_are_made() {
    let node = Node::start(&Authority::new(), "n1").await;
    let next = Arc::new(Notify::new());
    let made = Arc::clone(&next);
    let replica = Replica::start(node.run_dir(), 1, "iris-1", move |_, load| {
        let made = Arc::clone(&made);
        let busy = load.enter();
        let events = futures_util::stream::unfold((0, busy), move |(n, busy)| {
            let made = Arc::clone(&made);
            async move {
                if n == 3 {
                    return None;
                }
                if n > 0 {
                    made.notified().await;
                }
                let event = Bytes::from(format!("data: {n}\n\n"));
                Some((Ok(Frame::data(event)), (n + 1, busy)))
            }
        });
        let body = StreamBody::new(events).boxed_unsync();
        let response = http::Response::builder()
            .header("content-type", "text/event-stream")
            .body(body)
            .expect("response");
        async move { response }.boxed()
    });
    node.apply(&routes(
        1,
        vec![entity("iris-1", 100, 1, &[(1, "n1")])],
        vec![],
    ));
    let mut response = open(&node, invoke("{\"stream\":true}"))
        .await
        .expect("answer");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    for n in 0..3 {
        // The replica makes the next event only when this one has arrived.
        let frame = response.frame().await.expect("event").expect("event");
        assert_eq!(frame.into_data().expect("data"), format!("data: {n}\n\n"));
        if n < 2 {
            assert_eq!(node.gateway.report().replicas[0].in_flight, 1);
        }
        next.notify_one();
    }
    assert!(response.frame().await.is_none());
    eventually("the slot is free", || {
        replica.load.active() == 0 && node.gateway.report().replicas[0].in_flight == 0
    })
    .await;
}

#[tokio::test]
async fn a_request_that_a_replica_was_working_on_when_it_died_is_answered_502_with_its_name() {
    let node = Node::start(&Authority::new(), "n1").await;
    let replica = Replica::endless(node.run_dir(), 1, "iris-1");
    node.apply(&routes(
        1,
        vec![entity("iris-1", 100, 1, &[(1, "n1")])],
        vec![],
    ));
    let pending = send(&node, invoke("{}"));
    let death = async {
        eventually("the replica works", || replica.load.active() == 1).await;
        replica.die();
    };
    let (reply, ()) = tokio::join!(pending, death);
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY);
    assert!(
        reply.text().contains(replica_id(1).as_str()),
        "{}",
        reply.text()
    );
}

#[tokio::test]
async fn a_connection_that_the_replica_closed_while_it_idled_costs_no_request() {
    let node = Node::start(&Authority::new(), "n1").await;
    let listener = listen(node.run_dir(), 1, "iris-1");
    // One answer a connection, which it says it would keep; the second request finds it closed, or
    // closing with the request unread.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !seen.windows(4).any(|w| w == b"\r\n\r\n") {
                    if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                let _ = stream.write_all(answer).await;
                if seen.starts_with(b"POST") {
                    // Closes when the next request has come, without reading it.
                    let _ = stream.readable().await;
                }
            });
        }
    });
    node.apply(&routes(
        1,
        vec![entity("iris-1", 100, 1, &[(1, "n1")])],
        vec![],
    ));
    for _ in 0..20 {
        let reply = send(&node, invoke("")).await;
        assert_eq!(
            (reply.status, reply.text().as_str()),
            (StatusCode::OK, "ok")
        );
    }
    assert_eq!(
        node.metric("stokehold_gateway_upstream_errors_total{kind=\"lost\"}"),
        None
    );
}

#[tokio::test]
async fn a_replica_that_cannot_be_reached_is_passed_over() {
    let node = Node::start(&Authority::new(), "n1").await;
    drop(listen(node.run_dir(), 1, "iris-1"));
    let healthy = Replica::echo(node.run_dir(), 2, "iris-1");
    node.apply(&routes(
        1,
        vec![entity("iris-1", 100, 4, &[(1, "n1"), (2, "n1")])],
        vec![],
    ));
    for _ in 0..20 {
        assert_eq!(send(&node, invoke("{}")).await.status, StatusCode::OK);
    }
    assert_eq!(healthy.load.served(), 20);
}

#[tokio::test]
async fn a_body_over_the_limit_is_read_and_refused_whether_its_length_was_told_or_not() {
    let (node, replica) = node_with_echo(4).await;
    let large = vec![b'x'; (8 << 20) + 1];
    let reply = send(&node, post(INVOKE, whole(large))).await;
    assert_eq!(
        (reply.status, reply.error_code().as_str()),
        (StatusCode::PAYLOAD_TOO_LARGE, "INVALID_PARAMETER_VALUE")
    );
    let (pieces, body) = streamed();
    let sending = async {
        for _ in 0..10 {
            pieces
                .send(Bytes::from(vec![b'x'; 1 << 20]))
                .await
                .expect("still read");
        }
        drop(pieces);
    };
    let (reply, ()) = tokio::join!(send(&node, post(INVOKE, body)), sending);
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    eventually("nothing is left behind", || replica.load.active() == 0).await;
    assert_eq!(send(&node, invoke("{}")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_long_body_streams_through() {
    let (node, _replica) = node_with_echo(4).await;
    let (pieces, body) = streamed();
    let sending = async {
        for n in 0..5u8 {
            pieces
                .send(Bytes::from(vec![n; 1 << 20]))
                .await
                .expect("read");
        }
        drop(pieces);
    };
    let (reply, ()) = tokio::join!(send(&node, post(INVOKE, body)), sending);
    assert_eq!((reply.status, reply.body.len()), (StatusCode::OK, 5 << 20));
    assert!(
        reply
            .body
            .chunks(1 << 20)
            .zip(0..)
            .all(|(chunk, n)| chunk.iter().all(|b| *b == n))
    );
}

#[tokio::test]
async fn a_request_wakes_an_entity_that_has_no_replica_and_is_served_when_one_comes() {
    let mut node = Node::start(&Authority::new(), "n1").await;
    node.apply(&routes(1, vec![entity("iris-1", 100, 4, &[])], vec![]));
    let demand = async {
        let (id, queued) = node.demands.recv().await.expect("demand");
        assert_eq!((id.to_string().as_str(), queued), ("iris/iris-1", 1));
    };
    let gateway = &node.gateway;
    let scheduler = async {
        demand.await;
        let dir = node.run_dir.path();
        let replica = Replica::echo(dir, 1, "iris-1");
        let table = routes(2, vec![entity("iris-1", 100, 4, &[(1, "n1")])], vec![]);
        gateway.apply(table).expect("accepted");
        replica
    };
    let stream = tls_to(node.client_port, &node.identity, b"http/1.1").await;
    let (reply, _replica) = tokio::join!(send_on(stream, invoke("{}")), scheduler);
    assert_eq!(reply.status, StatusCode::OK);
}

#[tokio::test]
async fn a_request_that_no_replica_comes_for_is_given_up_with_a_time_to_come_back() {
    let options = NodeOptions {
        hold: Duration::from_millis(100),
        ..NodeOptions::default()
    };
    let node = Node::start_with(&Authority::new(), "n1", options).await;
    node.apply(&routes(1, vec![entity("iris-1", 100, 4, &[])], vec![]));
    let reply = send(&node, invoke("{}")).await;
    assert_eq!(
        (reply.status, reply.error_code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "TEMPORARILY_UNAVAILABLE")
    );
    assert_eq!(reply.headers["retry-after"], "1");
}

#[tokio::test]
async fn a_request_whose_only_replica_cannot_be_reached_is_held_and_then_told_why() {
    let options = NodeOptions {
        hold: Duration::from_millis(300),
        ..NodeOptions::default()
    };
    let node = Node::start_with(&Authority::new(), "n1", options).await;
    drop(listen(node.run_dir(), 1, "iris-1"));
    node.apply(&routes(
        1,
        vec![entity("iris-1", 100, 4, &[(1, "n1")])],
        vec![],
    ));
    let reply = send(&node, invoke("{}")).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        reply.text().contains(replica_id(1).as_str()),
        "{}",
        reply.text()
    );
}

#[tokio::test]
async fn a_replica_that_swapped_its_socket_for_anothers_gets_no_request_through_it() {
    let options = NodeOptions {
        hold: Duration::from_millis(300),
        ..NodeOptions::default()
    };
    let node = Node::start_with(&Authority::new(), "n1", options).await;
    let other = Replica::echo(node.run_dir(), 2, "iris-2");
    let folder = support::replica::lay_out(node.run_dir(), 1, "iris-1");
    let target = node
        .run_dir()
        .join(replica_id(2).as_str())
        .join("http.sock");
    std::os::unix::fs::symlink(target, folder.join("http.sock")).expect("link");
    node.apply(&routes(
        1,
        vec![entity("iris-1", 100, 4, &[(1, "n1")])],
        vec![],
    ));
    let reply = send(&node, invoke("{}")).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(reply.text().contains("symbolic link"), "{}", reply.text());
    assert_eq!(other.load.served(), 0);
}

#[tokio::test]
async fn a_request_that_waits_for_an_entity_that_leaves_goes_to_its_successor() {
    let node = Node::start(&Authority::new(), "n1").await;
    let _replica = Replica::echo(node.run_dir(), 2, "iris-2");
    node.apply(&routes(1, vec![entity("iris-1", 100, 4, &[])], vec![]));
    let rollout = async {
        eventually("it waits", || node.gateway.report().traffic[0].queued > 0.0).await;
        node.apply(&routes(
            2,
            vec![entity("iris-2", 100, 4, &[(2, "n1")])],
            vec![],
        ));
    };
    let (reply, ()) = tokio::join!(send(&node, invoke("{}")), rollout);
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.headers["served-model-name"], "iris-2");
}

#[tokio::test]
async fn health_is_reported_and_a_draining_replica_is_picked_by_nobody() {
    let (node, replica) = node_with_echo(4).await;
    let healthy = || {
        let report = node.gateway.report();
        report.replicas.first().map(|r| r.health) == Some(shared::report::Health::Healthy)
    };
    eventually("the replica is healthy", healthy).await;
    let other = Replica::echo(node.run_dir(), 2, "iris-1");
    let mut table = routes(
        2,
        vec![entity("iris-1", 100, 4, &[(1, "n1"), (2, "n1")])],
        vec![],
    );
    table.endpoints[0].entities[0].replicas[0].draining = true;
    node.apply(&table);
    for _ in 0..10 {
        assert_eq!(send(&node, invoke("{}")).await.status, StatusCode::OK);
    }
    assert_eq!((replica.load.served(), other.load.served()), (0, 10));
    replica.die();
    let unhealthy =
        || node.gateway.report().replicas[0].health == shared::report::Health::Unhealthy;
    eventually("the dead one is unhealthy", unhealthy).await;
}

#[tokio::test]
async fn a_request_that_stops_half_way_through_its_body_is_the_clients_fault() {
    let (node, replica) = node_with_echo(4).await;
    let (pieces, body) = streamed();
    pieces
        .send(Bytes::from(vec![b'x'; 1 << 20]))
        .await
        .expect("read");
    let pending = tokio::spawn({
        let stream = tls(&node, b"http/1.1").await;
        send_on(stream, post(INVOKE, body))
    });
    eventually("the replica reads", || replica.load.active() == 1).await;
    pending.abort();
    drop(pieces);
    eventually("it is over", || {
        replica.load.active() == 0 && node.gateway.report().replicas[0].in_flight == 0
    })
    .await;
    let whole_again = Full::new(Bytes::from_static(b"{}")).boxed_unsync();
    assert_eq!(
        send(&node, post(INVOKE, whole_again)).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_request_that_waits_for_an_entity_that_only_drains_does_not_wait_for_its_end() {
    let node = Node::start(&Authority::new(), "n1").await;
    let old = Replica::endless(node.run_dir(), 1, "iris-1");
    let new = Replica::echo(node.run_dir(), 2, "iris-2");
    let mut table = routes(1, vec![entity("iris-1", 100, 1, &[(1, "n1")])], vec![]);
    node.apply(&table);
    let works = tokio::spawn(send_on(tls(&node, b"http/1.1").await, invoke("{}")));
    eventually("the old one works", || old.load.active() == 1).await;
    let rollout = async {
        let waiting = || node.gateway.report().traffic[0].queued;
        eventually("all three wait", || waiting() > 2.5).await;
        // The new entity's queue is shorter than what waits: that was let in before.
        table = routes(
            2,
            vec![
                entity("iris-1", 0, 1, &[(1, "n1")]),
                entity("iris-2", 100, 1, &[(2, "n1")]),
            ],
            vec![],
        );
        table.endpoints[0].entities[0].replicas[0].draining = true;
        table.endpoints[0].limits.queue_capacity = 0;
        node.apply(&table);
    };
    let by_name = post(
        "/serving-endpoints/iris/served-models/iris-1/invocations",
        whole("{}"),
    );
    let named = tokio::spawn(send_on(tls(&node, b"http/1.1").await, by_name));
    let (first, second, ()) = tokio::join!(
        send(&node, invoke("{}")),
        send(&node, invoke("{}")),
        rollout
    );
    for reply in [first, second] {
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        assert_eq!(reply.headers["served-model-name"], "iris-2");
    }
    assert_eq!(new.load.served(), 2);
    // Who asked for the old one by name still waits for it.
    assert!(!named.is_finished() && !works.is_finished());
    node.apply(&routes(
        3,
        vec![entity("iris-2", 100, 1, &[(2, "n1")])],
        vec![],
    ));
    assert_eq!(named.await.expect("answered").status, StatusCode::NOT_FOUND);
    works.abort();
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused_and_one_that_says_nothing_is_json() {
    let (node, replica) = node_with_echo(4).await;
    let mut request = invoke("a,b");
    let kind = "text/csv".parse().expect("value");
    request.headers_mut().insert("content-type", kind);
    let reply = send(&node, request).await;
    assert_eq!(
        (reply.status, reply.error_code().as_str()),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, "BAD_REQUEST")
    );
    assert_eq!(replica.load.served(), 0);
    assert_eq!(send(&node, invoke("{}")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_refusal_on_http2_arrives_whether_or_not_the_request_had_a_body() {
    let (node, _replica) = node_with_echo(4).await;
    for body in [Bytes::new(), Bytes::from(vec![b'x'; 1 << 20])] {
        let reply = send_h2(&node, "/serving-endpoints/none/invocations", whole(body)).await;
        assert_eq!(reply.error_code(), "RESOURCE_DOES_NOT_EXIST");
    }
    for path in [INVOKE, "/healthz", "/none"] {
        let head = Request::head(format!("https://localhost{path}"))
            .body(whole(""))
            .expect("request");
        let reply = send_on_h2(&node, head).await;
        assert!(reply.body.is_empty(), "{path}: {}", reply.text());
    }
}

/// Sends all of a large body before it looks for the answer, as simple clients do.
async fn stubborn(node: &Node, head: &str) -> String {
    let mut stream = tls(node, b"http/1.1").await;
    let body = vec![b'x'; 6 << 20];
    let head = format!(
        "{head} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n",
        body.len()
    );
    let token = format!("authorization: Bearer {TOKEN}\r\n");
    let token = if head.contains("iris") { "" } else { &token };
    let head = format!("{head}{token}connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("head");
    stream.write_all(&body).await.expect("the body is read");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test]
async fn a_client_that_sends_all_before_it_listens_hears_why_it_was_refused() {
    let (node, _replica) = node_with_echo(4).await;
    for (head, status) in [
        (format!("POST {INVOKE}"), "401"),
        ("POST /serving-endpoints/none/invocations".to_owned(), "404"),
        (format!("PUT {INVOKE}"), "405"),
    ] {
        let answer = stubborn(&node, &head).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        assert!(answer.contains("error_code"), "{answer}");
    }
}

#[tokio::test]
async fn a_replica_that_asks_for_another_protocol_is_answered_for() {
    let node = Node::start(&Authority::new(), "n1").await;
    let listener = listen(node.run_dir(), 1, "iris-1");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut seen = Vec::new();
            while !seen.windows(4).any(|w| w == b"\r\n\r\n") {
                if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nspoken";
            let _ = stream.write_all(answer).await;
        }
    });
    node.apply(&routes(
        1,
        vec![entity("iris-1", 100, 1, &[(1, "n1")])],
        vec![],
    ));
    let reply = send(&node, invoke("{}")).await;
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "{}", reply.text());
    let free = || node.gateway.report().replicas.first().map(|r| r.in_flight) == Some(0);
    eventually("the slot is free", free).await;
}

#[tokio::test]
async fn what_is_counted_of_an_endpoint_goes_with_it() {
    let (node, _replica) = node_with_echo(4).await;
    assert_eq!(send(&node, invoke("{}")).await.status, StatusCode::OK);
    let requests = || node.metric("stokehold_gateway_requests_total{endpoint=\"iris\"");
    eventually("it was counted", || requests() == Some(1.0)).await;
    let mut none = routes(2, vec![], vec![]);
    none.endpoints.clear();
    node.apply(&none);
    assert_eq!(requests(), None);
    assert_eq!(
        node.metric("stokehold_gateway_request_seconds_count{endpoint=\"iris\""),
        None
    );
}

/// Each request stays for `stay`.
fn slow(node: &Node, n: u64, stay: Duration) -> Replica {
    Replica::start(node.run_dir(), n, "iris-1", move |_, load| {
        async move {
            let _busy = load.enter();
            tokio::time::sleep(stay).await;
            text(200, "ok")
        }
        .boxed()
    })
}

#[tokio::test]
async fn a_replica_with_a_limit_of_its_own_takes_that_many_at_once_and_another_the_entitys() {
    let node = Node::start(&Authority::new(), "n1").await;
    let stay = Duration::from_millis(20);
    let (plain, own) = (slow(&node, 1, stay), slow(&node, 2, stay));
    node.found(2).await;
    let mut entity = entity("iris-1", 100, 2, &[(1, "n1"), (2, "n1")]);
    entity.replicas[1].target_concurrency = Some(5);
    node.apply(&routes(1, vec![entity], vec![]));
    let requests = (0..60).map(|_| send(&node, invoke("{}")));
    for reply in futures_util::future::join_all(requests).await {
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    }
    let peaks = [&plain, &own].map(|replica| replica.load.peak.load(Ordering::SeqCst));
    assert_eq!(peaks, [2, 5]);
}

#[tokio::test]
async fn limits_that_move_under_load_lose_no_request_and_leave_no_slot_taken() {
    let node = Node::start(&Authority::new(), "n1").await;
    let replica = slow(&node, 1, Duration::from_millis(3));
    node.found(1).await;
    let apply = |revision, limit, own| {
        let mut entity = entity("iris-1", 100, limit, &[(1, "n1")]);
        entity.replicas[0].target_concurrency = own;
        let mut table = routes(revision, vec![entity], vec![]);
        table.endpoints[0].limits.queue_capacity = 1_000;
        node.apply(&table);
    };
    apply(1, 8, None);
    let requests = (0..300).map(|_| send(&node, invoke("{}")));
    let moves = async {
        for revision in 2..=40 {
            let own = [None, Some(1), Some(12)][revision as usize % 3];
            apply(revision, 1 + (revision as u32 * 5) % 7, own);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (replies, ()) = tokio::join!(futures_util::future::join_all(requests), moves);
    for reply in replies {
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    }
    eventually("all slots are free", || {
        node.gateway.report().replicas[0].in_flight == 0
    })
    .await;
    // Every slot of the last limit can be had, and no more.
    apply(41, 4, None);
    replica.load.peak.store(0, Ordering::SeqCst);
    let requests = (0..40).map(|_| send(&node, invoke("{}")));
    futures_util::future::join_all(requests).await;
    assert_eq!(replica.load.peak.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_limit_that_grows_lets_in_who_waits_at_once() {
    let node = Node::start(&Authority::new(), "n1").await;
    let replica = Replica::endless(node.run_dir(), 1, "iris-1");
    node.found(1).await;
    let mut entity = entity("iris-1", 100, 1, &[(1, "n1")]);
    node.apply(&routes(1, vec![entity.clone()], vec![]));
    let mut clients = Vec::new();
    for _ in 0..3 {
        let stream = tls(&node, b"http/1.1").await;
        clients.push(tokio::spawn(send_on(stream, invoke("{}"))));
    }
    let waiting = || node.gateway.report().traffic[0].queued > 1.5;
    eventually("two wait", waiting).await;
    entity.replicas[0].target_concurrency = Some(3);
    node.apply(&routes(2, vec![entity], vec![]));
    eventually("all are let in", || replica.load.active() == 3).await;
    for client in clients {
        client.abort();
    }
}

#[tokio::test]
async fn a_report_says_what_each_replica_did_and_a_refused_answer_is_no_completion() {
    let node = Node::start(&Authority::new(), "n1").await;
    let _good = slow(&node, 1, Duration::from_millis(30));
    let _bad = Replica::start(node.run_dir(), 2, "iris-1", |_, _| {
        async { text(503, "no") }.boxed()
    });
    node.found(2).await;
    let loads = || {
        let replicas = node.gateway.report().replicas;
        [0, 1].map(|n| replicas[n].load.clone().expect("measured"))
    };
    let ask_only = async |revision, replica| {
        let entity = entity("iris-1", 100, 4, &[(replica, "n1")]);
        node.apply(&routes(revision, vec![entity], vec![]));
        for _ in 0..5 {
            send(&node, invoke("{}")).await;
        }
    };
    ask_only(1, 1).await;
    let [good, bad] = loads();
    assert_eq!((good.completions, bad.completions), (5, 0));
    assert!(good.active > 0.0 && good.p50_ms.expect("answered") > 25.0);
    assert_eq!((bad.active, bad.p50_ms), (0.0, None));
    ask_only(2, 2).await;
    let [good, bad] = loads();
    assert!(bad.active > 0.0);
    assert_eq!((bad.completions, bad.p95_ms), (0, None));
    assert_eq!((good.completions, good.active), (0, 0.0));
}
