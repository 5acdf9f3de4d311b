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
use model::hash::WAIT_FOR_WRITER;
use model::oci::Layout;
use model::scan::{Change, ScannedFile};
use shared::manifest::{Description, Kind, MAX_MANIFEST_BYTES, Manifest, ManifestId};
use shared::units::Bytes;

use crate::output::Output;
use crate::output::format::count;
pub(crate) use upload::send;

/// A folder and the manifest that was made of it.
pub(crate) struct Source {
    folder: PathBuf,
    /// As they were when they were hashed.
    files: Vec<ScannedFile>,
    manifest: Manifest,
    id: ManifestId,
}

/// Why a folder was not pushed, beside what scanning, describing and hashing find.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PushError {
    #[error("{path:?} {change} during the push")]
    Changed { path: PathBuf, change: Change },
    #[error(
        "the list of the {files} files of {folder:?} takes {size}, over the limit of {}",
        Bytes(MAX_MANIFEST_BYTES as u64)
    )]
    LongList {
        folder: PathBuf,
        files: usize,
        size: Bytes,
    },
}

impl PushError {
    /// How to mend it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Changed { .. } => WAIT_FOR_WRITER,
            Self::LongList { .. } => "pack the small files into one archive",
        }
    }
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
    /// What keeps it from being deployed without more ado is a warning: other runtimes than MLflow's
    /// may know what to do with it.
    pub(crate) async fn model(folder: PathBuf, output: &Output) -> anyhow::Result<Self> {
        let source = Self::hash(folder, Kind::Model, output).await?;
        if let Some(gap) = model::describe::gap(&source.manifest.description) {
            output.warn(format!(
                "{}: {gap}: it is pushed as it is, and can be deployed only with --runtime NAME; an \
                 MLflow model is the folder that mlflow.FLAVOR.save_model wrote",
                source.folder.display()
            ));
        }
        Ok(source)
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
        let (manifest, files) = blocking(move || {
            let description = match kind {
                Kind::Model => model::describe::describe(&folder, &files)?,
                Kind::Image => Description {
                    kind,
                    ..Description::default()
                },
            };
            let entries = model::hash::hash_tree(&folder, &files, &|bytes| progress.at(bytes))?;
            let manifest = Manifest::new(entries, description)?;
            check_length(&folder, &manifest)?;
            Ok((manifest, files))
        })
        .await
        .with_context(|| format!("push {}", shown.display()))?;
        Ok(Self {
            folder: shown,
            files,
            id: manifest.id(),
            manifest,
        })
    }

    /// Refuses what is no longer what was hashed: a model that is registered is the folder as it is,
    /// not as it was for a moment.
    async fn unchanged(&self) -> anyhow::Result<()> {
        let folder = self.folder.clone();
        let now = blocking(move || {
            let options = model::scan::ScanOptions::default();
            Ok(model::scan::scan(&folder, options)?)
        });
        match model::scan::changed(&self.files, &now.await?) {
            None => Ok(()),
            Some((path, change)) => {
                let path = self.folder.join(path);
                Err(PushError::Changed { path, change }.into())
            }
        }
    }
}

/// Before anything travels, and not by the server's refusal afterwards.
fn check_length(folder: &Path, manifest: &Manifest) -> Result<(), PushError> {
    let len = manifest.encode().len();
    if len <= MAX_MANIFEST_BYTES {
        return Ok(());
    }
    Err(PushError::LongList {
        folder: folder.to_owned(),
        files: manifest.files.len(),
        size: Bytes(len as u64),
    })
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
    fn a_list_of_files_that_no_server_takes_is_refused_before_anything_travels() {
        let entry = |n: usize| shared::manifest::FileEntry {
            path: format!("{}/{n}", "d".repeat(200)),
            size_bytes: 0,
            executable: false,
            root: Digest::of(b""),
            chunk_size_bytes: shared::manifest::chunk_size_bytes(0),
            chunks: Vec::new(),
        };
        let manifest = |files: usize| {
            Manifest::new((0..files).map(entry).collect(), Description::default()).expect("valid")
        };
        assert!(check_length(Path::new("m"), &manifest(100)).is_ok());
        let refused = check_length(Path::new("m"), &manifest(60_000)).expect_err("too long");
        assert_eq!(
            refused.to_string(),
            "the list of the 60000 files of \"m\" takes 19.8 MiB, over the limit of 16 MiB"
        );
    }

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
