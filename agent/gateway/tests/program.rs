//! The program as it is run: configuration, a scheduler it can lose, signals.

mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use daemon::http::{ConnectionInfo, HttpLimits, serve_tls};
use daemon::quic::{read_frame, request, server_endpoint, write_frame};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use quinn::{Connection, RecvStream, SendStream};
use shared::ids::{Epoch, Revision, Role};
use shared::report::{GatewayReport, Health};
use shared::routes::Routes;
use shared::wire::{
    ClientBody, ClientFrame, Hello, RoutesMessage, ServerBody, ServerFrame, StreamRequest, Welcome,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use support::client::{invoke, send_on, tls_to, whole};
use support::replica::Replica;
use support::{Authority, cluster_id, entity, eventually, replica_id, routes};

const PROGRAM: &str = env!("CARGO_BIN_EXE_stokehold-gateway");

struct Program {
    authority: Authority,
    folder: tempfile::TempDir,
    identity: daemon::identity::Identity,
    pki_dir: PathBuf,
    port: u16,
    admin_port: u16,
    child: Option<Child>,
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    listener.local_addr().expect("address").port()
}

impl Program {
    fn new() -> Self {
        let authority = Authority::new();
        let pki_dir = authority.folder_of(Role::Gateway, "n1");
        let identity = daemon::identity::Identity::load(&pki_dir).expect("loaded");
        let folder = tempfile::tempdir().expect("folder");
        for name in ["run", "logs"] {
            std::fs::create_dir(folder.path().join(name)).expect("folder");
        }
        Self {
            authority,
            folder,
            identity,
            pki_dir,
            port: free_port(),
            admin_port: free_port(),
            child: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&mut self, scheduler: &str) {
        let text = format!(
            "scheduler = [\"{scheduler}\"]\npki_dir = {:?}\nstate_dir = {:?}\nrun_dir = {:?}\nlog_dir = {:?}\n\
             listen = \"127.0.0.1:{}\"\npeer_listen = \"127.0.0.1:0\"\nadvertise = \"127.0.0.1\"\n\
             admin_listen = \"127.0.0.1:{}\"\n",
            self.pki_dir,
            self.path("state"),
            self.path("run"),
            self.path("logs"),
            self.port,
            self.admin_port,
        );
        let config = self.path("gateway.toml");
        std::fs::write(&config, text).expect("written");
        let child = Command::new(PROGRAM).arg("--config").arg(config).spawn();
        self.child = Some(child.expect("started"));
    }

    async fn admin(&self, path: &str) -> Option<(u16, String)> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.admin_port))
            .await
            .ok()?;
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
        tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", "localhost")
            .body(whole(""))
            .ok()?;
        let response = sender.send_request(request).await.ok()?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&body).into_owned()))
    }

    async fn until_ready(&self) {
        for _ in 0..1_000 {
            if self
                .admin("/readyz")
                .await
                .is_some_and(|(status, _)| status == 200)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never ready");
    }

    async fn send(&self, request: Request<support::client::ClientBody>) -> support::client::Reply {
        send_on(
            tls_to(self.port, &self.identity, b"http/1.1").await,
            request,
        )
        .await
    }

    /// SIGTERM, and the exit code.
    async fn stop(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("running");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signalled");
        tokio::task::spawn_blocking(move || child.wait().expect("ended").code())
            .await
            .expect("joined")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The scheduler's end of a session.
struct Session {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    hello: Hello,
}

struct Scheduler {
    endpoint: quinn::Endpoint,
    address: String,
    cancel: CancellationToken,
}

impl Scheduler {
    async fn start(authority: &Authority) -> Self {
        let identity = authority.identity(Role::Scheduler, "s1");
        // The same port for TCP and UDP, as the product has it.
        let (listener, endpoint) = loop {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
            let address = listener.local_addr().expect("address");
            if let Ok(endpoint) = server_endpoint(address, &identity) {
                break (listener, endpoint);
            }
        };
        let address = listener.local_addr().expect("address").to_string();
        let cancel = CancellationToken::new();
        let rest = serve_tls(
            listener,
            daemon::tls::https_server(&identity).expect("TLS"),
            HttpLimits::default(),
            |_: &ConnectionInfo| service_fn(rest),
            cancel.clone(),
        );
        tokio::spawn(rest);
        Self {
            endpoint,
            address,
            cancel,
        }
    }

    async fn accept(&self) -> Session {
        let connection = self
            .endpoint
            .accept()
            .await
            .expect("open")
            .await
            .expect("connected");
        let (mut send, mut receive) = connection.accept_bi().await.expect("session stream");
        let frame: ClientFrame = read_frame(&mut receive)
            .await
            .expect("frame")
            .expect("frame");
        let Some(ClientBody::Hello(hello)) = frame.body else {
            panic!("a greeting comes first");
        };
        let welcome = Welcome {
            protocol: 1,
            cluster: cluster_id().to_string(),
            epoch: 1,
            version: "test".into(),
            report_interval_ms: 1000,
        };
        let body = Some(ServerBody::Welcome(welcome));
        write_frame(&mut send, &ServerFrame { body })
            .await
            .expect("sent");
        Session {
            connection,
            send,
            receive,
            hello,
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Session {
    async fn send_routes(&mut self, routes: &Routes) {
        let body = Some(ServerBody::Routes(RoutesMessage::from(routes)));
        write_frame(&mut self.send, &ServerFrame { body })
            .await
            .expect("sent");
    }

    /// Reads reports until one is as wanted.
    async fn report_that(&mut self, wanted: impl Fn(&GatewayReport) -> bool) -> GatewayReport {
        loop {
            let read = read_frame::<ClientFrame>(&mut self.receive);
            let frame = tokio::time::timeout(Duration::from_secs(10), read)
                .await
                .expect("a report comes in time")
                .expect("frame")
                .expect("frame");
            if let Some(ClientBody::GatewayReport(report)) = frame.body {
                let report = GatewayReport::try_from(report).expect("valid");
                if wanted(&report) {
                    return report;
                }
            }
        }
    }
}

/// A REST API that says what it was asked.
async fn rest(request: Request<Incoming>) -> Result<http::Response<String>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let text = format!(
        "{} {} {:?} {}",
        head.method,
        head.uri,
        head.headers.get("authorization"),
        body.len()
    );
    Ok(http::Response::new(text))
}

#[tokio::test]
async fn a_gateway_works_by_its_schedulers_routes_and_goes_on_without_it() {
    let mut program = Program::new();
    let scheduler = Scheduler::start(&program.authority).await;
    program.start(&scheduler.address);
    let mut session = scheduler.accept().await;
    assert!(session.hello.peer_address.starts_with("127.0.0.1:"));
    assert_eq!(
        session.hello.client_address,
        format!("127.0.0.1:{}", program.port)
    );
    let readiness = program.admin("/readyz").await.expect("answer");
    assert_eq!(readiness.0, 503, "{}", readiness.1);

    let replica = Replica::echo(&program.path("run"), 1, "iris-1");
    let table = routes(7, vec![entity("iris-1", 100, 4, &[(1, "n1")])], vec![]);
    session.send_routes(&table).await;
    let healthy = |report: &GatewayReport| {
        report.routes == Some((Epoch(1), Revision(7)))
            && report
                .replicas
                .iter()
                .any(|r| r.id == replica_id(1) && r.health == Health::Healthy)
    };
    session.report_that(healthy).await;
    program.until_ready().await;
    assert_eq!(program.send(invoke("{}")).await.status, StatusCode::OK);
    let counted = session
        .report_that(|report| report.traffic.iter().any(|t| t.completions == 1))
        .await;
    assert_eq!(counted.traffic[0].arrivals, 1);

    // What is older changes nothing.
    let mut older = table.clone();
    older.revision = Revision(6);
    older.endpoints.clear();
    session.send_routes(&older).await;
    session
        .report_that(|report| report.routes == Some((Epoch(1), Revision(7))))
        .await;
    assert_eq!(program.send(invoke("{}")).await.status, StatusCode::OK);

    let state = program.path("state").join("routes.pb");
    eventually("the routes are on disk", || state.exists()).await;
    drop((session, scheduler));
    assert_eq!(program.send(invoke("{}")).await.status, StatusCode::OK);
    assert_eq!(program.stop().await, Some(0));

    // It starts again with nobody to tell it routes.
    program.start("127.0.0.1:9");
    program.until_ready().await;
    assert_eq!(program.send(invoke("{}")).await.status, StatusCode::OK);
    let (_, metrics) = program.admin("/metrics").await.expect("answer");
    assert!(
        metrics.contains(
            "stokehold_gateway_requests_total{endpoint=\"iris\",outcome=\"completed\"} 1"
        ),
        "{metrics}"
    );
    let unreachable = program
        .send(
            Request::get("/api/2.0/serving-endpoints")
                .header("host", "x")
                .body(whole(""))
                .expect("request"),
        )
        .await;
    assert_eq!(unreachable.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(program.stop().await, Some(0));
    drop(replica);
}

#[tokio::test]
async fn the_rest_api_passes_through_with_its_credential() {
    let mut program = Program::new();
    let scheduler = Scheduler::start(&program.authority).await;
    program.start(&scheduler.address);
    let _session = scheduler.accept().await;
    for _ in 0..3 {
        let request = Request::put("/api/2.0/serving-endpoints/iris/config?x=1")
            .header("host", "public.example")
            .header("authorization", "Bearer shk_any")
            .body(whole(vec![b'x'; 2 << 20]))
            .expect("request");
        let reply = program.send(request).await;
        let expected =
            "PUT /api/2.0/serving-endpoints/iris/config?x=1 Some(\"Bearer shk_any\") 2097152";
        assert_eq!(
            (reply.status, reply.text().as_str()),
            (StatusCode::OK, expected)
        );
    }
}

#[tokio::test]
async fn a_replicas_log_is_read_and_followed_for_the_scheduler() {
    let mut program = Program::new();
    let scheduler = Scheduler::start(&program.authority).await;
    program.start(&scheduler.address);
    let session = scheduler.accept().await;
    let folder = program.path("logs").join(replica_id(1).as_str());
    std::fs::create_dir(&folder).expect("folder");
    let log = folder.join("current.jsonl");
    std::fs::write(&log, "{\"m\":\"one\"}\n").expect("written");
    let wait = Duration::from_secs(10);

    let ask = StreamRequest::read_log(&replica_id(1), 1 << 20, false);
    let (reply, mut receive) = request(&session.connection, &ask, wait)
        .await
        .expect("reply");
    assert_eq!(reply.size_bytes, Some(12));
    assert_eq!(
        receive.read_to_end(100).await.expect("read"),
        b"{\"m\":\"one\"}\n"
    );

    let ask = StreamRequest::read_log(&replica_id(1), 0, true);
    let (_, mut receive) = request(&session.connection, &ask, wait)
        .await
        .expect("reply");
    std::fs::rename(&log, folder.join("current.jsonl.1")).expect("renamed");
    std::fs::write(&log, "{\"m\":\"two\"}\n").expect("written");
    let mut followed = [0; 12];
    receive.read_exact(&mut followed).await.expect("read");
    assert_eq!(&followed, b"{\"m\":\"two\"}\n");
    receive.stop(0u32.into()).expect("stopped");

    let ask = StreamRequest::read_log(&replica_id(2), 1 << 20, false);
    let error = request(&session.connection, &ask, wait)
        .await
        .expect_err("refused");
    assert!(
        matches!(
            error,
            daemon::quic::RequestError::Refused {
                not_found: true,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn requests_under_way_end_well_when_the_gateway_stops() {
    let mut program = Program::new();
    let scheduler = Scheduler::start(&program.authority).await;
    program.start(&scheduler.address);
    let mut session = scheduler.accept().await;
    let go = Arc::new(tokio::sync::Notify::new());
    let waits = Arc::clone(&go);
    let replica = Replica::start(&program.path("run"), 1, "iris-1", move |_, load| {
        let waits = Arc::clone(&waits);
        Box::pin(async move {
            let _busy = load.enter();
            waits.notified().await;
            support::replica::text(200, "done")
        })
    });
    let table = routes(1, vec![entity("iris-1", 100, 4, &[(1, "n1")])], vec![]);
    session.send_routes(&table).await;
    program.until_ready().await;
    let stream = tls_to(program.port, &program.identity, b"http/1.1").await;
    let pending = tokio::spawn(send_on(stream, invoke("{}")));
    eventually("the replica works", || replica.load.active() == 1).await;
    let port = program.port;
    let stopping = program.stop();
    let release = async {
        // Closed to newcomers first, then the work ends.
        while tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_ok()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        go.notify_one();
    };
    let (code, ()) = tokio::join!(stopping, release);
    assert_eq!(code, Some(0));
    let reply = pending.await.expect("answered");
    assert_eq!(
        (reply.status, reply.text().as_str()),
        (StatusCode::OK, "done")
    );
}

#[test]
fn a_configuration_is_checked_without_being_used() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("gateway.toml");
    let check = |text: &str| {
        std::fs::write(&path, text).expect("written");
        let output = Command::new(PROGRAM)
            .args(["--check-config", "--config"])
            .arg(&path)
            .stdin(Stdio::null())
            .output()
            .expect("run");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert_eq!(
        check("listen = \"127.0.0.1:1\"\n"),
        (Some(0), String::new())
    );
    let (code, said) = check("listne = 1\n");
    assert_eq!(code, Some(1));
    assert!(
        said.contains("gateway.toml") && said.contains("listne"),
        "{said}"
    );
}
