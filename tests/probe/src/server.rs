//! The HTTP server: routes, and what each request does on its way to an answer.

use std::io::Write;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use crate::answer::{self, Answer};
use crate::chat::{self, Chat};
use crate::input::{self, Params};
use crate::listener::{Listener, Stream};
use crate::load;
use crate::state::{InFlight, Probe};

const MAX_BODY_BYTES: usize = 64 << 20;
/// Whoever is dropped by a rule gets no answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why [`serve`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was asked to stop, and all requests have been answered.
    Stopped,
    /// A request or the settings asked the program to die with this code. All connections are dropped.
    Died(u8),
}

/// Serves until `stop` resolves, then takes no more connections and finishes what is in flight.
pub async fn serve(probe: Arc<Probe>, listener: Listener, stop: impl Future<Output = ()>) -> End {
    let (graceful, mut connections) = (GracefulShutdown::new(), JoinSet::new());
    let (mut stop, mut exit) = (pin!(stop), pin!(probe.exit_requested()));
    loop {
        tokio::select! {
            code = &mut exit => return End::Died(code),
            () = &mut stop => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok(Stream::Unix(stream)) => connect(&probe, stream, &graceful, &mut connections),
                Ok(Stream::Tcp(stream)) => connect(&probe, stream, &graceful, &mut connections),
                // Out of descriptors, most likely: some will be free soon.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
        }
    }
    drop(listener);
    tokio::select! {
        code = &mut exit => End::Died(code),
        () = async { graceful.shutdown().await } => End::Stopped,
    }
}

fn connect<S>(probe: &Arc<Probe>, stream: S, graceful: &GracefulShutdown, tasks: &mut JoinSet<()>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let probe = probe.clone();
    let service = service_fn(move |request| route(probe.clone(), request));
    let connection = hyper::server::conn::http1::Builder::new()
        .header_read_timeout(None) // idle connections stay: clients keep them alive
        .serve_connection(TokioIo::new(stream), service);
    let connection = graceful.watch(connection);
    tasks.spawn(async move {
        let _ = connection.await; // a client that left, or a request that asked to be dropped
    });
}

/// Dropping the connection is hyper's answer to an error.
#[derive(Debug, thiserror::Error)]
#[error("the request asked for it")]
struct Close;

async fn route(probe: Arc<Probe>, request: Request<Incoming>) -> Result<Answer, Close> {
    let path = request.uri().path();
    let method = match path {
        "/invocations" | "/v1/chat/completions" => Method::POST,
        "/ping" | "/health" | "/version" | "/stats" | "/v1/models" => Method::GET,
        _ => {
            return Ok(answer::error(
                StatusCode::NOT_FOUND,
                &format!("there is no {path} here"),
            ));
        }
    };
    if *request.method() != method {
        let message = format!("{path} takes {method}, not {}", request.method());
        return Ok(answer::error(StatusCode::METHOD_NOT_ALLOWED, &message));
    }
    if path == "/stats" {
        return Ok(answer::json(&json!(probe.stats())));
    }
    if !probe.is_ready() {
        return Ok(answer::error(
            StatusCode::SERVICE_UNAVAILABLE,
            "the probe is starting",
        ));
    }
    match path {
        "/ping" | "/health" => Ok(answer::whole(StatusCode::OK, answer::JSON, "\n")),
        "/version" => Ok(answer::whole(
            StatusCode::OK,
            "text/plain",
            env!("CARGO_PKG_VERSION"),
        )),
        "/v1/models" => {
            let model = json!({"id": chat::MODEL, "object": "model", "created": 0, "owned_by": "stokehold"});
            Ok(answer::json(&json!({"object": "list", "data": [model]})))
        }
        "/v1/chat/completions" => work(probe, request, Api::Chat).await,
        _ => work(probe, request, Api::Mlflow).await,
    }
}

#[derive(Clone, Copy)]
enum Api {
    Mlflow,
    Chat,
}

/// Counts the request, reads it, does its work, and answers.
async fn work(probe: Arc<Probe>, request: Request<Incoming>, api: Api) -> Result<Answer, Close> {
    let in_flight = InFlight::begin(probe);
    let (parts, body) = request.into_parts();
    let bytes = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(err) if err.is::<LengthLimitError>() => {
            let message = format!("the body is longer than {MAX_BODY_BYTES} bytes");
            return refuse(in_flight, StatusCode::PAYLOAD_TOO_LARGE, &message);
        }
        Err(_) => return Err(Close), // the client went away: counts as cancelled
    };
    let parsed = input::object(&bytes).and_then(|mut body| Ok((input::params(&mut body)?, body)));
    let (params, body) = match parsed {
        Ok(parsed) => parsed,
        Err(message) => return refuse(in_flight, StatusCode::BAD_REQUEST, &message),
    };
    if let Some(failure) = suffer(&in_flight, &params).await {
        in_flight.answered();
        return failure;
    }
    if let Some(address) = params.connect {
        let answer = json!({"connect": connected(address).await});
        in_flight.answered();
        return Ok(answer::json(&answer));
    }
    if params.echo {
        in_flight.answered();
        let content_type = parts
            .headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        return Ok(answer::whole(
            StatusCode::OK,
            content_type.unwrap_or(answer::JSON),
            bytes,
        ));
    }
    if let Some(len) = params.response_bytes {
        return Ok(answer::filling(len, in_flight));
    }
    match api {
        Api::Mlflow => invocations(&body, &params, in_flight),
        Api::Chat => completions(&body, &params, in_flight),
    }
}

/// `connected`, or why not.
async fn connected(address: SocketAddr) -> String {
    let connecting = tokio::net::TcpStream::connect(address);
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(_)) => "connected".to_owned(),
        Ok(Err(error)) => error.kind().to_string(),
        Err(_) => "no answer".to_owned(),
    }
}

/// What happens to a request before its answer: `Some` if there is to be another one, or none.
async fn suffer(in_flight: &InFlight, params: &Params) -> Option<Result<Answer, Close>> {
    let probe = in_flight.probe();
    let settings = &probe.settings;
    if let Some(text) = &params.log {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
    let memory = load::allocate(params.alloc_mib).await;
    if memory.is_none() {
        let message = format!("no {} MiB of memory", params.alloc_mib);
        return Some(Ok(answer::error(
            StatusCode::INTERNAL_SERVER_ERROR,
            &message,
        )));
    }
    load::burn(Duration::from_millis(
        params.cpu_ms.unwrap_or(settings.cpu_ms),
    ))
    .await;
    let pause = match params.sleep_ms {
        Some(millis) => Duration::from_millis(millis),
        None => load::service_time(settings, in_flight.concurrency),
    };
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    drop(memory);

    if let Some(code) = params.exit {
        probe.exit(code).await;
    }
    if settings.exit_after_requests > 0 && in_flight.number > settings.exit_after_requests {
        probe.exit(1).await;
    }
    if params.hang {
        std::future::pending::<()>().await;
    }
    if params.close {
        return Some(Err(Close));
    }
    let status = params.status?;
    Some(Ok(match StatusCode::from_u16(status) {
        Ok(status) if status.as_u16() >= 200 => answer::error(status, "the request asked for it"),
        _ => answer::error(
            StatusCode::BAD_REQUEST,
            "params: status: must be from 200 to 999",
        ),
    }))
}

fn invocations(
    body: &Map<String, Value>,
    params: &Params,
    in_flight: InFlight,
) -> Result<Answer, Close> {
    if let Some(count) = params.stream_chunks {
        let lines = (0..count).map(|number| Bytes::from(format!("{{\"chunk\":{number}}}\n")));
        let interval = Duration::from_millis(params.stream_interval_ms);
        return Ok(answer::chunks(
            "application/x-ndjson",
            interval,
            lines,
            in_flight,
        ));
    }
    match input::predictions(body) {
        Ok(predictions) => {
            let answer = json!({"predictions": predictions, "probe": about(&in_flight)});
            in_flight.answered();
            Ok(answer::json(&answer))
        }
        Err(message) => refuse(in_flight, StatusCode::BAD_REQUEST, &message),
    }
}

fn completions(
    body: &Map<String, Value>,
    params: &Params,
    in_flight: InFlight,
) -> Result<Answer, Close> {
    let chat = match Chat::parse(body, params, in_flight.number) {
        Ok(chat) => chat,
        Err(message) => return refuse(in_flight, StatusCode::BAD_REQUEST, &message),
    };
    let created = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |age| age.as_secs());
    if chat.stream {
        let interval = Duration::from_millis(params.stream_interval_ms);
        return Ok(answer::chunks(
            "text/event-stream",
            interval,
            chat.events(created),
            in_flight,
        ));
    }
    let mut answer = chat.whole(created);
    answer["probe"] = about(&in_flight);
    in_flight.answered();
    Ok(answer::json(&answer))
}

fn refuse(in_flight: InFlight, status: StatusCode, message: &str) -> Result<Answer, Close> {
    in_flight.answered();
    Ok(answer::error(status, message))
}

fn about(in_flight: &InFlight) -> Value {
    let probe = in_flight.probe();
    let stats = probe.stats();
    json!({
        "pid": std::process::id(),
        "replica": probe.identity.replica,
        "model_version": probe.identity.model_version,
        "in_flight": stats.in_flight,
        "max_in_flight": stats.max_in_flight,
    })
}
