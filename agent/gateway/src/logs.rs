//! Serves replicas' logs to the scheduler, which passes them to whoever asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use daemon::quic::write_frame;
use daemon::telemetry::Chain;
use quinn::SendStream;
use shared::ids::ReplicaId;
use shared::wire::{ReadLog, StreamReply};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::debug;

use crate::log_tail::LogTail;

const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);
/// Each costs a file or two and a look five times a second.
const MAX_STREAMS: usize = 64;

pub(crate) struct Logs {
    log_dir: PathBuf,
    permits: Arc<Semaphore>,
    /// Ended with the session's task.
    streams: JoinSet<()>,
}

impl Logs {
    pub(crate) fn new(log_dir: PathBuf) -> Self {
        Self {
            log_dir,
            permits: Arc::new(Semaphore::new(MAX_STREAMS)),
            streams: JoinSet::new(),
        }
    }

    /// Answers a request on its stream, in a task of its own.
    pub(crate) fn serve(&mut self, request: ReadLog, mut send: SendStream) {
        while self.streams.try_join_next().is_some() {}
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        let log_dir = self.log_dir.clone();
        self.streams.spawn(async move {
            let served = match permit {
                Ok(_permit) => stream(&log_dir, &request, &mut send).await,
                Err(_) => {
                    refuse(
                        &mut send,
                        "too many logs are being read on this node",
                        false,
                    )
                    .await
                }
            };
            if let Err(reason) = served {
                debug!(replica = request.replica, reason, "log stream ended");
            }
        });
    }
}

async fn stream(log_dir: &Path, request: &ReadLog, send: &mut SendStream) -> Result<(), String> {
    let replica = match request.replica() {
        Ok(replica) => replica,
        Err(error) => return refuse(send, &error.to_string(), false).await,
    };
    let (tail, text) = match open(log_dir, &replica, request.tail_bytes).await {
        Ok(Some(opened)) => opened,
        Ok(None) => {
            let message = format!("replica {replica} has no log on this node");
            return refuse(send, &message, true).await;
        }
        Err(error) => {
            return refuse(send, &format!("log of replica {replica}: {error}"), false).await;
        }
    };
    let reply = StreamReply {
        error: String::new(),
        not_found: false,
        size_bytes: (!request.follow).then_some(text.len() as u64),
    };
    write_frame(send, &reply)
        .await
        .map_err(|e| Chain(&e).to_string())?;
    send.write_all(&text).await.map_err(|e| e.to_string())?;
    drop(text);
    if request.follow {
        follow(log_dir, &replica, tail, send).await?;
    }
    // Fails only when the other end has stopped the stream.
    let _ = send.finish();
    Ok(())
}

async fn refuse(send: &mut SendStream, message: &str, not_found: bool) -> Result<(), String> {
    let reply = StreamReply {
        error: message.to_owned(),
        not_found,
        size_bytes: None,
    };
    write_frame(send, &reply)
        .await
        .map_err(|e| Chain(&e).to_string())?;
    let _ = send.finish();
    Ok(())
}

type Opened = Option<(LogTail, Vec<u8>)>;

async fn open(log_dir: &Path, replica: &ReplicaId, tail_bytes: u64) -> Result<Opened, String> {
    let (log_dir, replica) = (log_dir.to_owned(), replica.clone());
    let opened = tokio::task::spawn_blocking(move || {
        let Some(mut tail) = LogTail::open(&log_dir, &replica)? else {
            return Ok(None);
        };
        let text = tail.tail(tail_bytes)?;
        Ok(Some((tail, text)))
    });
    opened
        .await
        .map_err(|e| e.to_string())?
        .map_err(|e: std::io::Error| e.to_string())
}

/// Sends what is written, until the asker stops or the log is removed.
async fn follow(
    log_dir: &Path,
    replica: &ReplicaId,
    mut tail: LogTail,
    send: &mut SendStream,
) -> Result<(), String> {
    let folder = log_dir.join(replica.as_str());
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let text = tail.more()?;
            Ok::<_, std::io::Error>((tail, text))
        });
        let (next, text) = read
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())?;
        tail = next;
        if !text.is_empty() {
            send.write_all(&text).await.map_err(|e| e.to_string())?;
            continue;
        }
        if !tokio::fs::try_exists(&folder).await.unwrap_or(true) {
            return Ok(());
        }
        tokio::select! {
            _ = send.stopped() => return Ok(()),
            () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
        }
    }
}
