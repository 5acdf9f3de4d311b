//! Blobs in containerd's content store, and the leases that keep them while an import goes on.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_client::services::v1::{
    AbortRequest, AddResourceRequest, CreateRequest, DeleteRequest, Info, Resource, UpdateRequest,
    WriteAction, WriteContentRequest, WriteContentResponse,
};
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::{Request, Streaming};
use futures_util::stream;
use prost_types::FieldMask;
use shared::digest::OciDigest;
use shared::ids::ImageRef;
use shared::plan::OciBlob;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

use super::transfer::Tally;
use super::{CallError, Containerd, QUICK, call, unless_gone};
use crate::pull::{FetchError, Fetching, Puller, Wanted};

/// One message of a write.
const WRITE_BYTES: usize = 1 << 20;
/// Messages read ahead of containerd.
const WRITE_QUEUE: usize = 4;
/// A write that makes no progress for this long is given up; the last answer takes as long as
/// hashing the whole blob again, where a write was cut off before.
const WRITE_STALL: Duration = Duration::from_secs(300);
/// A lease that a killed agent left ends by itself.
const LEASE_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Where a blob's bytes are.
#[derive(Clone, Copy)]
pub enum BlobSource<'a> {
    File(&'a Path),
    Registry(Origin<'a>),
}

/// A registry, as the source of one blob.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    pub puller: &'a Puller,
    pub image: &'a ImageRef,
    pub is_manifest: bool,
    pub tally: &'a Tally,
}

/// A source that was opened at the place to go on at.
enum Opened {
    File(tokio::fs::File, PathBuf),
    Fetching(Fetching),
    /// All was there already, but for the commit.
    Nothing,
}

/// Keeps what is made under it from being collected.
#[derive(Clone, Debug)]
pub struct Lease {
    id: MetadataValue<Ascii>,
}

impl Lease {
    pub(super) fn named(id: &str) -> Self {
        let id = id.parse().expect("lease ids are made of plain characters");
        Self { id }
    }

    pub(super) fn cover<T>(&self, request: &mut Request<T>) {
        request
            .metadata_mut()
            .insert("containerd-lease", self.id.clone());
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("read blob {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("blob {} has {actual} bytes, the plan says {expected}", path.display())]
    Size {
        path: PathBuf,
        expected: u64,
        actual: u64,
    },
    #[error("containerd took nothing of blob {digest} for {WRITE_STALL:?}")]
    Stalled { digest: OciDigest },
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("blob {digest} came with other contents than its digest says: {said}")]
    WrongContent { digest: OciDigest, said: String },
    #[error(transparent)]
    Call(#[from] CallError),
}

impl Containerd {
    pub async fn create_lease(&self, id: &str) -> Result<Lease, CallError> {
        let expire = rfc3339(SystemTime::now() + LEASE_LIFETIME);
        let request = self.request(CreateRequest {
            id: id.to_owned(),
            labels: HashMap::from([("containerd.io/gc.expire".to_owned(), expire)]),
        });
        match call("leases.create", QUICK, self.leases().create(request)).await {
            Ok(_) => {}
            // An agent that was killed in the middle left it: it is taken up again.
            Err(error) if error.is_already_there() => {}
            Err(error) => return Err(error),
        }
        Ok(Lease::named(id))
    }

    /// Ends a lease; containerd collects what nothing else holds by then.
    pub async fn end_lease(&self, lease: &Lease) -> Result<(), CallError> {
        let request = self.request(DeleteRequest {
            id: lease.id.to_str().unwrap_or_default().to_owned(),
            sync: false,
        });
        unless_gone(call("leases.delete", QUICK, self.leases().delete(request)).await)
    }

    /// Puts something that is already there under a lease; `false` if it is not there.
    pub(super) async fn hold(
        &self,
        lease: &Lease,
        kind: &str,
        id: &str,
    ) -> Result<bool, CallError> {
        let request = self.request(AddResourceRequest {
            id: lease.id.to_str().unwrap_or_default().to_owned(),
            resource: Some(Resource {
                id: id.to_owned(),
                r#type: kind.to_owned(),
            }),
        });
        let mut client = self.leases();
        match call("leases.add_resource", QUICK, client.add_resource(request)).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Brings one blob into the content store; containerd verifies its digest. A write that was cut off
    /// goes on where it stood, and a blob that is there already stays.
    pub async fn write_blob(
        &self,
        blob: &OciBlob,
        source: BlobSource<'_>,
        labels: &HashMap<String, String>,
        lease: &Lease,
    ) -> Result<(), BlobError> {
        // Another image may be bringing the same blob in; containerd refuses a second writer.
        let _turn = self.imports.take(blob.digest.as_str()).await;
        match self.stream_blob(blob, source, labels, lease).await {
            Err(BlobError::Call(error)) if error.is_already_there() => {
                source.reached(blob, blob.size_bytes);
                Ok(self.label_blob(&blob.digest, labels).await?)
            }
            Err(BlobError::Call(error)) if error.is_refused_content() => {
                // What was written stays otherwise, and the next attempt would go on after it.
                self.abort_blob(&blob.digest).await?;
                source.reached(blob, 0);
                Err(BlobError::WrongContent {
                    digest: blob.digest.clone(),
                    said: error.to_string(),
                })
            }
            other => other,
        }
    }

    /// Forgets what was written of a blob that is not whole.
    pub async fn abort_blob(&self, digest: &OciDigest) -> Result<(), CallError> {
        let request = self.request(AbortRequest {
            r#ref: write_ref(digest),
        });
        unless_gone(call("content.abort", QUICK, self.content().abort(request)).await)
    }

    async fn stream_blob(
        &self,
        blob: &OciBlob,
        source: BlobSource<'_>,
        labels: &HashMap<String, String>,
        lease: &Lease,
    ) -> Result<(), BlobError> {
        let message = |action: WriteAction, offset: i64, data: Vec<u8>| WriteContentRequest {
            action: action.into(),
            r#ref: write_ref(&blob.digest),
            total: total(blob),
            expected: blob.digest.to_string(),
            offset,
            data,
            labels: HashMap::new(),
        };
        let (messages, mut queue) = mpsc::channel(WRITE_QUEUE);
        let outgoing = stream::poll_fn(move |context| queue.poll_recv(context));
        let mut request = self.request(outgoing);
        lease.cover(&mut request);
        // The question where to go on is also what puts a blob that is there under the lease.
        let question = message(WriteAction::Stat, 0, vec![]);
        let closed = |_| stream_ended("a question's answer");
        messages.send(question).await.map_err(closed)?;
        let mut client = self.content();
        let mut answers = call("content.write", QUICK, client.write(request)).await?;
        let start = next_answer(&mut answers, &blob.digest).await?.offset;

        let feed = async {
            // Its end is the end of the call, also where bytes give out before the blob does.
            let messages = messages;
            let mut offset = start;
            source.reached(blob, offset.unsigned_abs());
            let mut opened = source.open(blob, offset).await?;
            loop {
                let mut piece = Vec::with_capacity(WRITE_BYTES);
                let read = opened.read(&mut piece).await;
                let last = piece.is_empty();
                if last {
                    read?;
                    // What came before a break is written, and the next attempt goes on after it.
                } else if let Err(error) = read {
                    let rest = message(WriteAction::Write, offset, piece);
                    let _ = messages.send(rest).await;
                    return Err(error);
                }
                let len = piece.len() as i64;
                let mut next = if last {
                    message(WriteAction::Commit, offset, vec![])
                } else {
                    message(WriteAction::Write, offset, piece)
                };
                if last {
                    next.labels = labels.clone();
                }
                offset += len;
                source.reached(blob, offset.unsigned_abs());
                // A closed queue means that the call has ended; its answer says why.
                if messages.send(next).await.is_err() || last {
                    return Ok(());
                }
            }
        };
        let drain = async {
            loop {
                let answer = next_answer(&mut answers, &blob.digest).await?;
                if answer.action == i32::from(WriteAction::Commit) {
                    return Ok::<(), BlobError>(());
                }
            }
        };
        tokio::pin!(feed, drain);
        tokio::select! {
            fed = &mut feed => match fed {
                Ok(()) => drain.await,
                Err(error) => {
                    // containerd has then taken what was sent; that it got no commit is no news.
                    let _ = drain.await;
                    Err(error)
                }
            },
            drained = &mut drain => drained,
        }
    }

    async fn label_blob(
        &self,
        digest: &OciDigest,
        labels: &HashMap<String, String>,
    ) -> Result<(), CallError> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|name| format!("labels.{name}")).collect();
        let request = self.request(UpdateRequest {
            info: Some(Info {
                digest: digest.to_string(),
                labels: labels.clone(),
                ..Info::default()
            }),
            update_mask: Some(FieldMask { paths }),
        });
        call("content.update", QUICK, self.content().update(request))
            .await
            .map(|_| ())
    }
}

impl BlobSource<'_> {
    async fn open(&self, blob: &OciBlob, offset: i64) -> Result<Opened, BlobError> {
        match self {
            BlobSource::File(path) => {
                let file = open_at(path, blob.size_bytes, offset).await?;
                Ok(Opened::File(file, (*path).to_owned()))
            }
            BlobSource::Registry(_) if offset.unsigned_abs() >= blob.size_bytes => {
                Ok(Opened::Nothing)
            }
            BlobSource::Registry(origin) => {
                let wanted = Wanted {
                    image: origin.image,
                    blob,
                    is_manifest: origin.is_manifest,
                    offset: offset.unsigned_abs(),
                };
                Ok(Opened::Fetching(origin.puller.fetch(wanted)?))
            }
        }
    }

    /// So many bytes of the blob are there.
    fn reached(&self, blob: &OciBlob, bytes: u64) {
        match self {
            BlobSource::File(_) => {}
            BlobSource::Registry(origin) => origin.tally.reached(&blob.digest, bytes),
        }
    }
}

impl Opened {
    /// The next piece; it is empty at the end. With an error, what came before it.
    async fn read(&mut self, piece: &mut Vec<u8>) -> Result<(), BlobError> {
        match self {
            Opened::File(file, path) => file
                .take(WRITE_BYTES as u64)
                .read_to_end(piece)
                .await
                .map(drop)
                .map_err(|source| read_failed(path, source)),
            Opened::Fetching(fetching) => Ok(fetching.read(piece, WRITE_BYTES).await?),
            Opened::Nothing => Ok(()),
        }
    }
}

fn write_ref(digest: &OciDigest) -> String {
    format!("stokehold-{digest}")
}

fn total(blob: &OciBlob) -> i64 {
    i64::try_from(blob.size_bytes).unwrap_or(i64::MAX)
}

fn stream_ended(missing: &'static str) -> BlobError {
    BlobError::Call(CallError::Incomplete {
        call: "content.write",
        missing,
    })
}

fn read_failed(path: &Path, source: io::Error) -> BlobError {
    BlobError::Read {
        path: path.to_owned(),
        source,
    }
}

async fn open_at(path: &Path, size_bytes: u64, offset: i64) -> Result<tokio::fs::File, BlobError> {
    let failed = |source| read_failed(path, source);
    let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
    let actual = file.metadata().await.map_err(failed)?.len();
    if actual != size_bytes {
        return Err(BlobError::Size {
            path: path.to_owned(),
            expected: size_bytes,
            actual,
        });
    }
    let offset = u64::try_from(offset).unwrap_or(0);
    file.seek(io::SeekFrom::Start(offset))
        .await
        .map_err(failed)?;
    Ok(file)
}

async fn next_answer(
    answers: &mut Streaming<WriteContentResponse>,
    digest: &OciDigest,
) -> Result<WriteContentResponse, BlobError> {
    match tokio::time::timeout(WRITE_STALL, answers.message()).await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(Ok(None)) => Err(stream_ended("a commit")),
        Ok(Err(status)) => Err(BlobError::Call(CallError::Refused {
            call: "content.write",
            status: Box::new(status),
        })),
        Err(_) => Err(BlobError::Stalled {
            digest: digest.clone(),
        }),
    }
}

/// A time as leases have it. Pure but for the clock that its caller read.
fn rfc3339(at: SystemTime) -> String {
    let seconds = at
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of the Gregorian calendar, days counted from 1970-01-01: years that begin on
/// 1 March put the leap day last (Hinnant's civil-from-days).
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leases_end_is_written_as_the_calendar_has_it() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(at(1_767_225_599), "2025-12-31T23:59:59Z");
    }
}
