//! Pushes a folder into the scheduler's store: hash it, ask which chunks are missing, send those,
//! then the manifest. Models and images take the same way.
//!
//! What always holds: a chunk is hashed again while it is read for the upload, so what is stored is
//! what the manifest names even when somebody writes to the folder meanwhile. A push that is
//! interrupted leaves chunks behind that the next one finds.

mod upload;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use model::oci::Layout;
use shared::manifest::{Description, Kind, Manifest, ManifestId};
use shared::units::Bytes;

use crate::output::Output;
use crate::output::format::count;
pub(crate) use upload::send;

/// A folder and the manifest that was made of it.
pub(crate) struct Source {
    folder: PathBuf,
    manifest: Manifest,
    id: ManifestId,
}

/// What a push moved.
pub(crate) struct Sent {
    files: usize,
    size_bytes: u64,
    chunks: usize,
    sent_chunks: usize,
    sent_bytes: u64,
    manifest: ManifestId,
}

impl Sent {
    /// Chunks and bytes that were not in the store yet.
    pub(crate) fn moved(&self) -> (usize, u64) {
        (self.sent_chunks, self.sent_bytes)
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {}",
            count(self.files, "file"),
            Bytes(self.size_bytes)
        )?;
        if self.sent_chunks == 0 {
            write!(f, ", all in the store already")?;
        } else {
            write!(
                f,
                ", {} sent ({} of {})",
                Bytes(self.sent_bytes),
                self.sent_chunks,
                count(self.chunks, "chunk")
            )?;
        }
        write!(f, ", manifest {}", self.manifest.0.short())
    }
}

impl Source {
    pub(crate) async fn model(folder: PathBuf, output: &Output) -> anyhow::Result<Self> {
        Self::hash(folder, Kind::Model, output).await
    }

    /// The folder is an OCI layout.
    pub(crate) async fn image(folder: PathBuf, output: &Output) -> anyhow::Result<Self> {
        Self::hash(folder, Kind::Image, output).await
    }

    pub(crate) fn id(&self) -> ManifestId {
        self.id
    }

    async fn hash(folder: PathBuf, kind: Kind, output: &Output) -> anyhow::Result<Self> {
        let shown = folder.clone();
        let files = blocking({
            let folder = folder.clone();
            move || {
                Ok(model::scan::scan(
                    &folder,
                    model::scan::ScanOptions::default(),
                )?)
            }
        })
        .await?;
        let total = files.iter().map(|file| file.size_bytes).sum();
        let progress = output.bytes_progress("hashing", Some(total));
        let manifest = blocking(move || {
            let description = match kind {
                Kind::Model => model::describe::describe(&folder, &files)?,
                Kind::Image => Description {
                    kind,
                    ..Description::default()
                },
            };
            let entries = model::hash::hash_tree(&folder, &files, &|bytes| progress.at(bytes))?;
            Ok(Manifest::new(entries, description)?)
        })
        .await
        .with_context(|| format!("push {}", shown.display()))?;
        Ok(Self {
            folder: shown,
            id: manifest.id(),
            manifest,
        })
    }
}

/// Takes an OCI archive apart.
pub(crate) async fn unpack(archive: &Path, into: &Path, output: &Output) -> anyhow::Result<Layout> {
    let progress = output.spinner();
    progress.status(format!("unpacking {}", archive.display()));
    let (tar, into) = (archive.to_owned(), into.to_owned());
    blocking(move || Ok(model::oci::unpack_archive(&tar, &into)?))
        .await
        .with_context(|| format!("unpack {}", archive.display()))
}

/// Files and hashes on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("a thread of this program ended")?
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::digest::Digest;

    #[test]
    fn a_push_says_what_moved() {
        let mut sent = Sent {
            files: 12,
            size_bytes: 34 << 20,
            chunks: 12,
            sent_chunks: 3,
            sent_bytes: 5 << 20,
            manifest: ManifestId(Digest::from_bytes([0xab; 32])),
        };
        assert_eq!(
            sent.to_string(),
            "12 files, 34 MiB, 5 MiB sent (3 of 12 chunks), manifest abababababab"
        );
        sent.sent_chunks = 0;
        assert_eq!(
            sent.to_string(),
            "12 files, 34 MiB, all in the store already, manifest abababababab"
        );
    }
}
