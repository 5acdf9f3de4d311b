//! Sends what the store lacks, several chunks at once.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Method;
use shared::api::{ManifestStored, MissingChunks};
use shared::digest::{ChunkPlace, Digest, chunk_digest};
use shared::manifest::{ChunkRef, FileEntry, Manifest};

use model::scan::Change;

use super::{PushError, Sent, Source, blocking};
use crate::client::{Backoff, Call, Client, LONG_CALL};
use crate::output::Output;

/// Chunks in flight: at most 4 x 32 MiB of memory, and enough to fill a link with 100 ms of delay.
const PARALLEL: usize = 4;

/// The most that the server takes in one question.
const QUESTION: usize = 4096;

/// Long enough for 32 MiB over a slow uplink (1 Mbit/s).
const CHUNK_TIMEOUT: Duration = Duration::from_secs(300);

/// A chunk's PUT is idempotent: it is repeated over some half a minute, a scheduler's restart.
const CHUNK_RETRIES: Backoff = Backoff {
    first: Duration::from_millis(250),
    longest: Duration::from_secs(8),
    retries: 7,
};

/// A chunk and the first file that holds it.
struct Piece<'a> {
    file: &'a FileEntry,
    chunk: ChunkRef,
}

pub(crate) async fn send(
    source: &Source,
    client: &Client,
    output: &Output,
) -> anyhow::Result<Sent> {
    let pieces = pieces(&source.manifest);
    let chunks = pieces.len();
    let missing = missing(pieces, client).await?;
    let (sent_chunks, sent_bytes) = (
        missing.len(),
        missing.iter().map(|piece| piece.chunk.len_bytes).sum(),
    );
    let progress = output.bytes_progress("uploading", Some(sent_bytes));
    stream::iter(missing)
        .map(Ok::<_, anyhow::Error>)
        .try_for_each_concurrent(PARALLEL, |piece| {
            let progress = &progress;
            async move {
                put(&source.folder, &piece, client).await?;
                progress.advance(piece.chunk.len_bytes);
                Ok(())
            }
        })
        .await?;
    drop(progress);
    source.unchanged().await?;
    let call = Call::new(Method::POST, "/api/stokehold/v1/manifests")
        .octets(source.manifest.encode().into())
        .timeout(Some(LONG_CALL));
    let stored: ManifestStored = client.call(call).await.context("store the manifest")?;
    anyhow::ensure!(
        stored.id == source.id,
        "the server stored manifest {} in place of {}: is something between here and there?",
        stored.id,
        source.id
    );
    Ok(Sent {
        files: source.manifest.files.len(),
        size_bytes: source.manifest.size_bytes(),
        chunks,
        sent_chunks,
        sent_bytes,
        manifest: source.id,
    })
}

/// Every distinct chunk once, in the order of the files, which a disk reads fastest.
fn pieces(manifest: &Manifest) -> Vec<Piece<'_>> {
    let mut seen = std::collections::BTreeSet::new();
    manifest
        .files
        .iter()
        .flat_map(|file| file.chunk_refs().map(move |chunk| Piece { file, chunk }))
        .filter(|piece| seen.insert(piece.chunk.digest))
        .collect()
}

async fn missing<'a>(pieces: Vec<Piece<'a>>, client: &Client) -> anyhow::Result<Vec<Piece<'a>>> {
    let mut lacking = std::collections::BTreeSet::<Digest>::new();
    for batch in pieces.chunks(QUESTION) {
        let digests = batch.iter().map(|piece| piece.chunk.digest).collect();
        let call = Call::new(Method::POST, "/api/stokehold/v1/chunks/missing")
            .json(&MissingChunks { digests });
        let answer: MissingChunks = client
            .call(call)
            .await
            .context("ask which chunks the store lacks")?;
        lacking.extend(answer.digests);
    }
    Ok(pieces
        .into_iter()
        .filter(|piece| lacking.contains(&piece.chunk.digest))
        .collect())
}

async fn put(folder: &Path, piece: &Piece<'_>, client: &Client) -> anyhow::Result<()> {
    let bytes = {
        let (path, size_bytes) = (folder.join(&piece.file.path), piece.file.size_bytes);
        let chunk = piece.chunk;
        blocking(move || read_chunk(&path, size_bytes, &chunk)).await?
    };
    let mut tries = 0;
    loop {
        let error = match client.done(call(&piece.chunk, bytes.clone())).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match CHUNK_RETRIES.wait(tries, &mut rand::rng()) {
            Some(wait) if error.is_passing() => tokio::time::sleep(wait).await,
            Some(_) | None => {
                return Err(anyhow::Error::from(error)
                    .context(format!("upload a chunk of {}", piece.file.path)));
            }
        }
        tries += 1;
    }
}

fn call(chunk: &ChunkRef, bytes: Bytes) -> Call<'static> {
    let path = format!("/api/stokehold/v1/chunks/{}", chunk.digest);
    let call = Call::new(Method::PUT, path)
        .octets(bytes)
        .timeout(Some(CHUNK_TIMEOUT));
    match chunk.place {
        ChunkPlace::Whole => call.query("whole", true),
        ChunkPlace::At { offset_bytes } => call.query("offset", offset_bytes),
    }
}

/// Reads a chunk again and hashes it again: the file, which had `size_bytes`, may have been written
/// to since.
fn read_chunk(path: &Path, size_bytes: u64, chunk: &ChunkRef) -> anyhow::Result<Bytes> {
    let changed = |change| {
        let path = path.to_owned();
        Err(PushError::Changed { path, change }.into())
    };
    let read = || format!("read {}", path.display());
    let len = usize::try_from(chunk.len_bytes).expect("a chunk is at most 32 MiB");
    let mut bytes = vec![0; len];
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return changed(Change::Removed),
        other => other.with_context(read)?,
    };
    match file.read_exact_at(&mut bytes, chunk.offset_bytes) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            let to = file.metadata().with_context(read)?.len();
            return changed(Change::Shrank {
                from: size_bytes,
                to,
            });
        }
        other => other.with_context(read)?,
    }
    if chunk_digest(chunk.place, &bytes) != chunk.digest {
        return changed(Change::Written);
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::manifest::{Description, chunk_size_bytes};

    fn entry(path: &str, bytes: &[u8]) -> FileEntry {
        let root = Digest::of(bytes);
        FileEntry {
            path: path.into(),
            size_bytes: bytes.len() as u64,
            executable: false,
            root,
            chunk_size_bytes: chunk_size_bytes(bytes.len() as u64),
            chunks: if bytes.is_empty() { vec![] } else { vec![root] },
        }
    }

    #[test]
    fn equal_files_are_one_chunk_and_empty_ones_none() {
        let files = vec![entry("a", b"same"), entry("b", b"same"), entry("c", b"")];
        let manifest = Manifest::new(files, Description::default()).expect("manifest");
        let pieces = pieces(&manifest);
        assert_eq!(pieces.len(), 1);
        assert_eq!(pieces[0].file.path, "a");
    }

    #[test]
    fn a_file_that_changed_shrank_or_went_stops_the_push_and_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("weights.bin");
        let entry = entry("weights.bin", b"0123456789");
        let chunk = entry.chunk_refs().next().expect("a chunk");
        std::fs::write(&path, b"0123456789").expect("write");
        assert!(read_chunk(&path, 10, &chunk).is_ok());
        let refused = |what: &str| {
            let error = read_chunk(&path, 10, &chunk).expect_err(what);
            assert_eq!(
                error.to_string(),
                format!("{path:?} {what} during the push")
            );
        };
        std::fs::write(&path, b"0123456780").expect("write");
        refused("was written to");
        std::fs::write(&path, b"01234").expect("write");
        refused("shrank from 10 to 5 bytes");
        std::fs::remove_file(&path).expect("remove");
        refused("was removed");
    }

    #[test]
    fn a_chunks_place_travels_with_it() {
        let digest = Digest::of(b"x");
        let chunk = |place| ChunkRef {
            digest,
            offset_bytes: 0,
            len_bytes: 1,
            place,
        };
        let whole = call(&chunk(ChunkPlace::Whole), Bytes::new());
        assert_eq!(whole.query, [("whole", "true".to_owned())]);
        let at = ChunkPlace::At {
            offset_bytes: 4 << 20,
        };
        let at = call(&chunk(at), Bytes::new());
        assert_eq!(at.query, [("offset", "4194304".to_owned())]);
    }
}
