//! The server in process, as other crates' tests use it.

#![allow(clippy::unwrap_used)] // helpers of tests, too, may panic

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use probe::{End, Identity, Listener, Probe, Settings, serve};
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Server {
    probe: Arc<Probe>,
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    end: JoinHandle<End>,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("http.sock");
        let identity = Identity {
            replica: Some("r1".to_owned()),
            model_version: None,
        };
        let (probe, listener) = (
            Probe::new(settings, identity),
            Listener::unix(&socket).unwrap(),
        );
        let (stop, stopped) = oneshot::channel();
        let end = tokio::spawn(serve(probe.clone(), listener, async {
            let _ = stopped.await;
        }));
        Self {
            probe,
            socket,
            stop: Some(stop),
            end,
            _dir: dir,
        }
    }

    async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Bytes) {
        let body = Bytes::from(body.to_string());
        read(
            self.connect()
                .await
                .send_request(request(path, body))
                .await
                .unwrap(),
        )
        .await
    }

    async fn eventually(&self, what: &str, condition: impl Fn(probe::Stats) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition(self.probe.stats()) {
            assert!(
                Instant::now() < deadline,
                "{what}: {:?}",
                self.probe.stats()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn request(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let body = body.into();
    let method = if body.is_empty() { "GET" } else { "POST" };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "probe");
    request.body(Full::new(body)).unwrap()
}

async fn read(response: Response<hyper::body::Incoming>) -> (StatusCode, Bytes) {
    let status = response.status();
    (
        status,
        response.into_body().collect().await.unwrap().to_bytes(),
    )
}

fn value(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

#[tokio::test]
async fn predictions_come_with_who_made_them() {
    let server = Server::start(Settings::default());
    let body = json!({"inputs": [[1, 2], [3]]});
    let (status, answer) = server.post("/invocations", &body).await;
    let about = json!({"pid": std::process::id(), "replica": "r1", "model_version": null,
        "in_flight": 1, "max_in_flight": 1});
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        value(&answer),
        json!({"predictions": [3.0, 3.0], "probe": about})
    );

    let mut sender = server.connect().await; // several requests on one connection
    for (path, want) in [
        ("/ping", "\n"),
        ("/health", "\n"),
        ("/version", env!("CARGO_PKG_VERSION")),
    ] {
        let (status, body) = read(sender.send_request(request(path, "")).await.unwrap()).await;
        assert_eq!((status, body.as_ref()), (StatusCode::OK, want.as_bytes()));
    }
    let (_, stats) = read(sender.send_request(request("/stats", "")).await.unwrap()).await;
    let want = json!({"requests": 1, "in_flight": 0, "max_in_flight": 1, "cancelled": 0});
    assert_eq!(value(&stats), want);
}

#[tokio::test]
async fn a_free_tcp_port_serves_as_well() {
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = listener.tcp_addr().unwrap();
    let probe = Probe::new(Settings::default(), Identity::default());
    tokio::spawn(serve(probe, listener, std::future::pending()));
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (status, body) = read(
        sender
            .send_request(request("/v1/models", ""))
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(
        (status, &value(&body)["data"][0]["id"]),
        (StatusCode::OK, &json!("probe"))
    );
}

#[tokio::test]
async fn wrong_requests_get_mlflow_errors() {
    let server = Server::start(Settings::default());
    let mut sender = server.connect().await;
    for (path, body, status, code) in [
        ("/invocations", "{", 400, "BAD_REQUEST"),
        ("/invocations", "{\"rows\":[]}", 400, "BAD_REQUEST"),
        (
            "/invocations",
            "{\"params\":{\"nap_ms\":1}}",
            400,
            "BAD_REQUEST",
        ),
        (
            "/invocations",
            "{\"params\":{\"status\":503}}",
            503,
            "TEMPORARILY_UNAVAILABLE",
        ),
        (
            "/invocations",
            "{\"params\":{\"status\":500}}",
            500,
            "INTERNAL_ERROR",
        ),
        ("/v1/chat/completions", "{}", 400, "BAD_REQUEST"),
        ("/invocations", "", 405, "BAD_REQUEST"),
        ("/nowhere", "", 404, "ENDPOINT_NOT_FOUND"),
    ] {
        let answer = sender.send_request(request(path, body)).await.unwrap();
        let (got, answer) = read(answer).await;
        let answer = value(&answer);
        assert_eq!(
            (got.as_u16(), &answer["error_code"]),
            (status, &json!(code)),
            "{path} {body}"
        );
        assert!(
            answer["message"]
                .as_str()
                .is_some_and(|message| !message.is_empty())
        );
    }
    assert_eq!(server.probe.stats().cancelled, 0);
}

#[tokio::test]
async fn a_client_that_leaves_is_counted() {
    let server = Server::start(Settings::default());
    let hang = json!({"params": {"hang": true}}).to_string();
    let mut sender = server.connect().await;
    let waiting =
        tokio::spawn(async move { sender.send_request(request("/invocations", hang)).await });
    server
        .eventually("in flight", |stats| stats.in_flight == 1)
        .await;
    waiting.abort();
    server
        .eventually("cancelled", |stats| {
            (stats.cancelled, stats.in_flight) == (1, 0)
        })
        .await;

    // As is one that leaves amid a stream.
    let stream = json!({"params": {"stream_chunks": 1000, "stream_interval_ms": 20}}).to_string();
    let mut sender = server.connect().await;
    let answer = sender
        .send_request(request("/invocations", stream))
        .await
        .unwrap();
    let first = answer.into_body().frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "{\"chunk\":0}\n");
    drop(sender);
    server
        .eventually("cancelled", |stats| {
            (stats.cancelled, stats.in_flight) == (2, 0)
        })
        .await;
}

#[tokio::test]
async fn a_connection_can_be_dropped_without_an_answer() {
    let server = Server::start(Settings::default());
    let mut sender = server.connect().await;
    let close = json!({"params": {"close": true}}).to_string();
    let err = sender
        .send_request(request("/invocations", close))
        .await
        .unwrap_err();
    assert!(err.is_incomplete_message(), "{err:?}");
}

#[tokio::test]
async fn dying_drops_every_request_and_gives_the_code() {
    let server = Server::start(Settings {
        exit_after_requests: 2,
        ..Settings::default()
    });
    let mut sender = server.connect().await;
    let hang = json!({"params": {"hang": true}}).to_string();
    let waiting =
        tokio::spawn(async move { sender.send_request(request("/invocations", hang)).await });
    server
        .eventually("in flight", |stats| stats.in_flight == 1)
        .await;
    assert_eq!(
        server.post("/invocations", &json!({"inputs": []})).await.0,
        StatusCode::OK
    );
    let mut sender = server.connect().await;
    let third = json!({"inputs": []}).to_string();
    assert!(
        sender
            .send_request(request("/invocations", third))
            .await
            .is_err()
    );
    assert!(waiting.await.unwrap().is_err());
    assert_eq!(server.end.await.unwrap(), End::Died(1));
}

#[tokio::test]
async fn stopping_finishes_what_is_in_flight_and_takes_nothing_new() {
    let mut server = Server::start(Settings {
        service_ms: 200,
        ..Settings::default()
    });
    let mut sender = server.connect().await;
    let body = json!({"inputs": [1]}).to_string();
    let waiting =
        tokio::spawn(async move { sender.send_request(request("/invocations", body)).await });
    let _idle = server.connect().await;
    server
        .eventually("in flight", |stats| stats.in_flight == 1)
        .await;
    server.stop.take();
    assert_eq!(server.end.await.unwrap(), End::Stopped);
    assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
    assert!(UnixStream::connect(&server.socket).await.is_err());
}

#[tokio::test]
async fn bodies_go_both_ways_whole() {
    let server = Server::start(Settings::default());
    let body = json!({"pad": "y".repeat(5 << 20), "params": {"echo": true}});
    let (_, echoed) = server.post("/invocations", &body).await;
    assert!(echoed == body.to_string());
    let (_, filling) = server
        .post(
            "/invocations",
            &json!({"params": {"response_bytes": 200_000}}),
        )
        .await;
    assert_eq!(filling.len(), 200_000);
    assert_eq!(server.probe.stats().cancelled, 0);
}

#[tokio::test]
async fn a_probe_is_not_ready_before_its_delay_and_perhaps_never() {
    let server = Server::start(Settings {
        start_delay_ms: 300,
        ..Settings::default()
    });
    let ping = async |server: &Server| {
        read(
            server
                .connect()
                .await
                .send_request(request("/ping", ""))
                .await
                .unwrap(),
        )
        .await
        .0
    };
    assert_eq!(ping(&server).await, StatusCode::SERVICE_UNAVAILABLE);
    let deadline = Instant::now() + Duration::from_secs(20);
    while ping(&server).await != StatusCode::OK {
        assert!(Instant::now() < deadline);
    }
    let server = Server::start(Settings {
        never_healthy: true,
        ..Settings::default()
    });
    assert_eq!(ping(&server).await, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn chat_answers_whole_and_streamed() {
    let server = Server::start(Settings::default());
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "one two"}]});
    let (status, answer) = server.post("/v1/chat/completions", &body).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        value(&answer)["choices"][0]["message"]["content"],
        "one two"
    );
    body["stream"] = json!(true);
    let (_, answer) = server.post("/v1/chat/completions", &body).await;
    let text = String::from_utf8(answer.to_vec()).unwrap();
    let content: String = text
        .split_terminator("\n\n")
        .map(|event| event.strip_prefix("data: ").unwrap())
        .filter(|data| *data != "[DONE]")
        .filter_map(|data| {
            Some(
                value(data.as_bytes())["choices"][0]["delta"]["content"]
                    .as_str()?
                    .to_owned(),
            )
        })
        .collect();
    assert_eq!(content, "one two");
    assert!(text.ends_with("data: [DONE]\n\n"));
    server
        .eventually("answered", |stats| {
            (stats.in_flight, stats.cancelled) == (0, 0)
        })
        .await;
}
