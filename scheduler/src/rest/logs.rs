//! Replicas' logs: read by the gateways of their nodes, merged here.
//!
//! What cannot be read (a gateway that is away, a log that is gone) becomes a line of its own with
//! the source `shim`, so that a gap is seen and not taken for silence.

use std::pin::pin;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use daemon::quic::{self, RequestError};
use daemon::telemetry::Chain;
use futures_util::stream;
use quinn::{Connection, RecvStream};
use scheduler_core::ApiError;
use serde::Deserialize;
use shared::api::LogLine;
use shared::api::serving::Logs;
use shared::ids::{NodeName, ReplicaId};
use shared::wire::StreamRequest;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::auth::{Caller, Manage};
use super::body::{Json, Named, Params};
use super::error::{Refusal, invalid};
use super::{Api, ndjson};

const DEFAULT_TAIL_BYTES: u64 = 256 << 10;
const MAX_TAIL_BYTES: u64 = 1 << 20;
/// Replicas whose logs one call merges; newest first.
const MAX_REPLICAS: usize = 32;
/// The log shim cuts lines far below this.
const MAX_LINE_BYTES: u64 = 256 << 10;
/// For a gateway to begin its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// For a whole answer that does not follow.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Lines that wait for a slow reader; then the gateways wait.
const LINES: usize = 256;

#[derive(Deserialize)]
pub(super) struct LogParams {
    entity: Option<String>,
    replica: Option<String>,
    tail_bytes: Option<u64>,
    follow: Option<bool>,
}

/// A log that is to be read.
struct Source {
    replica: ReplicaId,
    node: NodeName,
    connection: Option<Connection>,
}

/// `GET /api/stokehold/v1/endpoints/{name}/logs`: JSON lines, oldest first; with `follow=true` also
/// what comes later, until the caller leaves.
pub(super) async fn as_lines(
    _: Caller<Manage>,
    State(api): State<Api>,
    Named(endpoint): Named<String>,
    Params(params): Params<LogParams>,
) -> Result<Response, Refusal> {
    let replica = params.replica.as_deref().map(ReplicaId::parse).transpose();
    let replica = replica.map_err(|e| invalid("replica", e))?;
    let sources = sources(&api, endpoint, params.entity, replica).await?;
    let tail_bytes = params.tail_bytes.unwrap_or(DEFAULT_TAIL_BYTES);
    let tail_bytes = tail_bytes.min(MAX_TAIL_BYTES);
    if params.follow == Some(true) {
        return Ok(ndjson(follow(&api, sources, tail_bytes)));
    }
    let mut text = Vec::new();
    for line in tails(sources, tail_bytes).await {
        text.extend(encode(&line));
    }
    Ok(ndjson(Body::from(text)))
}

/// `GET /api/2.0/serving-endpoints/{name}/served-models/{entity}/logs`.
pub(super) async fn as_text(
    _: Caller<Manage>,
    State(api): State<Api>,
    Named((endpoint, entity)): Named<(String, String)>,
) -> Result<Json<Logs>, Refusal> {
    let sources = sources(&api, endpoint, Some(entity), None).await?;
    let mut logs = String::new();
    for line in tails(sources, DEFAULT_TAIL_BYTES).await {
        logs.push_str(&format!("[{}] {} {}", line.replica, line.t, line.m));
        logs.push('\n');
    }
    Ok(Json(Logs { logs }))
}

async fn sources(
    api: &Api,
    endpoint: String,
    entity: Option<String>,
    replica: Option<ReplicaId>,
) -> Result<Vec<Source>, Refusal> {
    let found = api.control.read(move |core| {
        let found = core.replica_location(&endpoint, entity.as_deref())?;
        Ok::<_, ApiError>((endpoint, found))
    });
    let (endpoint, mut found) = found.await??;
    if let Some(replica) = replica {
        found.retain(|(id, _)| *id == replica);
        if found.is_empty() {
            let problem = format!("endpoint {endpoint} has no replica {replica}");
            return Err(Refusal(ApiError::not_found(problem)));
        }
    }
    found.truncate(MAX_REPLICAS);
    let mut sources = Vec::with_capacity(found.len());
    for (replica, node) in found {
        let connection = api.control.gateway(&node).await?;
        sources.push(Source {
            replica,
            node,
            connection,
        });
    }
    Ok(sources)
}

/// The ends of several logs as one, oldest line first.
async fn tails(sources: Vec<Source>, tail_bytes: u64) -> Vec<LogLine> {
    let mut reads = JoinSet::new();
    for source in sources {
        let (sender, mut receiver) = mpsc::channel(LINES);
        reads.spawn(async move {
            let mut lines = Vec::new();
            let reading = read_one(source, tail_bytes, false, sender);
            let collecting = async {
                while let Some(line) = receiver.recv().await {
                    lines.push(line);
                }
            };
            // What came in time is shown.
            let both = async { tokio::join!(reading, collecting) };
            let _ = tokio::time::timeout(READ_TIMEOUT, both).await;
            lines
        });
    }
    let mut lines: Vec<LogLine> = reads.join_all().await.into_iter().flatten().collect();
    // Stable: lines of one replica keep their order where their times are equal.
    lines.sort_by(|a, b| a.t.cmp(&b.t));
    lines
}

/// A body that goes on. Dropping it ends the reads, whose streams the gateways then stop.
fn follow(api: &Api, sources: Vec<Source>, tail_bytes: u64) -> Body {
    let (sender, lines) = mpsc::channel(LINES);
    let mut reads = JoinSet::new();
    for source in sources {
        reads.spawn(read_one(source, tail_bytes, true, sender.clone()));
    }
    let cancel = api.cancel.clone();
    let state = (lines, reads, cancel);
    Body::from_stream(stream::unfold(state, async |(mut lines, reads, cancel)| {
        let line = tokio::select! {
            () = cancel.cancelled() => None,
            line = lines.recv() => line,
        };
        line.map(|line| {
            let bytes = Bytes::from(encode(&line));
            (
                Ok::<_, std::convert::Infallible>(bytes),
                (lines, reads, cancel),
            )
        })
    }))
}

/// Passes on a log's lines, and why there are none or no more.
async fn read_one(source: Source, tail_bytes: u64, follow: bool, lines: mpsc::Sender<LogLine>) {
    let Source {
        replica,
        node,
        connection,
    } = source;
    let read = match connection {
        None => Err(format!("the gateway of node {node} is not connected")),
        Some(connection) => {
            let request = StreamRequest::read_log(&replica, tail_bytes, follow);
            match quic::request(&connection, &request, ANSWER_TIMEOUT).await {
                Ok((_, stream)) => relay(&replica, stream, &lines).await,
                // Ended so long ago that its log was deleted: nothing to see is no failure.
                Err(RequestError::Refused { not_found, .. }) if not_found => Ok(()),
                Err(error) => Err(Chain(&error).to_string()),
            }
        }
    };
    if let Err(problem) = read {
        let now = OffsetDateTime::now_utc().format(&Rfc3339);
        let remark = LogLine {
            replica,
            t: now.unwrap_or_default(),
            s: "shim".into(),
            m: format!("log is not readable: {problem}"),
            partial: false,
        };
        // A reader who has left needs no remark.
        let _ = lines.send(remark).await;
    }
}

/// `Err` says why the log broke off.
async fn relay(
    replica: &ReplicaId,
    stream: RecvStream,
    lines: &mpsc::Sender<LogLine>,
) -> Result<(), String> {
    let mut reader = pin!(BufReader::new(stream));
    let mut text = Vec::new();
    loop {
        text.clear();
        let mut bounded = (&mut reader).take(MAX_LINE_BYTES);
        match bounded.read_until(b'\n', &mut text).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
        if lines.send(line_of(replica, &text)).await.is_err() {
            return Ok(());
        }
    }
}

/// The log shim's form of a line, or whatever else is in the file, as it is.
fn line_of(replica: &ReplicaId, text: &[u8]) -> LogLine {
    #[derive(Deserialize)]
    struct ShimLine {
        t: String,
        s: String,
        m: String,
        #[serde(default)]
        partial: bool,
    }
    let replica = replica.clone();
    match serde_json::from_slice::<ShimLine>(text) {
        Ok(ShimLine { t, s, m, partial }) => LogLine {
            replica,
            t,
            s,
            m,
            partial,
        },
        Err(_) => LogLine {
            replica,
            t: String::new(),
            s: "shim".into(),
            m: String::from_utf8_lossy(text).trim_end().to_owned(),
            partial: false,
        },
    }
}

fn encode(line: &LogLine) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(line).expect("texts serialise");
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_shim_gets_its_replica_and_any_other_text_is_kept() {
        let replica = ReplicaId::from_bits(7);
        let line = line_of(
            &replica,
            br#"{"t":"2026-01-01T00:00:00Z","s":"stdout","m":"hi"}"#,
        );
        assert_eq!((line.s.as_str(), line.m.as_str()), ("stdout", "hi"));
        assert_eq!(line.replica, replica);
        let torn = line_of(&replica, b"{\"t\":\"2026\xff\n");
        assert_eq!(torn.s, "shim");
        assert!(torn.m.starts_with("{\"t\":\"2026"), "{}", torn.m);
    }
}
