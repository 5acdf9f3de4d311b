//! What a model (or an image) is: a list of files, each file's chunks, and a description.
//!
//! The canonical form is JSON without white space, keys in the order of the structs below, files
//! sorted by path; its BLAKE3 hash is the [`ManifestId`]. The format carries a version.
//!
//! What always holds of a [`Manifest`]: its paths are relative, stay inside the folder, name no file
//! twice and no file as another's folder; each file has exactly the chunks that its size asks for;
//! its root follows from its chunks. `Manifest::decode` refuses everything else.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::{ChunkPlace, Digest, file_digest};
use crate::ids::InvalidName;
use crate::units::Bytes;

/// The version of the manifest format that this code writes.
pub const MANIFEST_VERSION: u32 = 1;

/// Manifests above this are refused: 8,000 chunks (256 GiB) take 0.6 MiB.
pub const MAX_MANIFEST_BYTES: usize = 16 << 20;

/// At most this many files; a Hugging Face tree has tens, a Python environment tens of thousands.
pub const MAX_FILES: usize = 100_000;

/// A manifest's BLAKE3 hash: the id of a model's or an image's contents.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct ManifestId(pub Digest);

impl fmt::Display for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ManifestId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        text.parse().map(ManifestId)
    }
}

/// The chunk size for a file of this size (a power of two): small enough to fetch again, large
/// enough that a request and a hash are noise beside it.
pub fn chunk_size_bytes(file_size_bytes: u64) -> u64 {
    match file_size_bytes {
        0..0x1000_0000 => 4 * Bytes::MIB,
        0x1000_0000..0x10_0000_0000 => 16 * Bytes::MIB,
        _ => 32 * Bytes::MIB,
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub version: u32,
    pub files: Vec<FileEntry>,
    pub description: Description,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Relative, `/` between parts.
    pub path: String,
    pub size_bytes: u64,
    /// Whether the file may be executed; no other bit of its mode travels.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
    /// The file's BLAKE3 hash.
    pub root: Digest,
    pub chunk_size_bytes: u64,
    /// In order; none for an empty file.
    pub chunks: Vec<Digest>,
}

/// One chunk with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    pub digest: Digest,
    pub offset_bytes: u64,
    pub len_bytes: u64,
    pub place: ChunkPlace,
}

impl FileEntry {
    /// The file's chunks in order.
    pub fn chunk_refs(&self) -> impl Iterator<Item = ChunkRef> + '_ {
        let single = self.chunks.len() == 1;
        self.chunks.iter().enumerate().map(move |(i, &digest)| {
            let offset_bytes = i as u64 * self.chunk_size_bytes;
            ChunkRef {
                digest,
                offset_bytes,
                len_bytes: self.chunk_size_bytes.min(self.size_bytes - offset_bytes),
                place: if single {
                    ChunkPlace::Whole
                } else {
                    ChunkPlace::At { offset_bytes }
                },
            }
        })
    }
}

/// What the files say about themselves. Read once, by whoever makes the manifest (never by root).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Description {
    #[serde(default)]
    pub kind: Kind,
    /// MLflow flavors by name, with the version that wrote them where known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub flavors: BTreeMap<String, String>,
    /// `llm/v1/chat` and the like, from MLflow's metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Python requirements, one pip line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requirements: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python_version: Option<String>,
    /// `LlamaForCausalLM` and the like, from a Hugging Face `config.json`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// Sum of the sizes of weight files (safetensors, onnx, bin), zero where there are none.
    #[serde(default)]
    pub weight_bytes: u64,
    /// MLflow's signature, as its JSON texts (inputs, outputs, params).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// The folder holds `NAME/config.pbtxt` with numeric version folders.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub triton_repository: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Model,
    /// An OCI image layout: `blobs/sha256/...`, `index.json`, `oci-layout`.
    Image,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<String>,
}

/// Why bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest of {len} bytes is over the limit of {MAX_MANIFEST_BYTES}")]
    TooLarge { len: usize },
    #[error("manifest is not valid JSON of version {MANIFEST_VERSION}")]
    Json(#[source] serde_json::Error),
    #[error("manifest has version {found}, this program knows {MANIFEST_VERSION}: upgrade it")]
    Version { found: u32 },
    #[error("manifest is not in its canonical form: write it with Manifest::encode")]
    NotCanonical,
    #[error("manifest has no files")]
    Empty,
    #[error("manifest has {found} files, over the limit of {MAX_FILES}")]
    TooManyFiles { found: usize },
    #[error("path {path:?} {problem}")]
    Path { path: String, problem: &'static str },
    #[error("file {path:?} {problem}")]
    File { path: String, problem: &'static str },
}

impl Manifest {
    /// Sorts the files and checks everything that [`Manifest::decode`] checks.
    pub fn new(mut files: Vec<FileEntry>, description: Description) -> Result<Self, ManifestError> {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let manifest = Self {
            version: MANIFEST_VERSION,
            files,
            description,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// The canonical form.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest holds only text keys and finite numbers")
    }

    pub fn id(&self) -> ManifestId {
        ManifestId(Digest::of(&self.encode()))
    }

    /// Reads a manifest and refuses whatever would be unsafe or ambiguous to use.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge { len: bytes.len() });
        }
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let versioned: Versioned = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        if versioned.version != MANIFEST_VERSION {
            return Err(ManifestError::Version {
                found: versioned.version,
            });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        manifest.check()?;
        if manifest.encode() != bytes {
            return Err(ManifestError::NotCanonical);
        }
        Ok(manifest)
    }

    /// Bytes of all files.
    pub fn size_bytes(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum, file| sum.saturating_add(file.size_bytes))
    }

    /// Every distinct chunk.
    pub fn chunks(&self) -> BTreeMap<Digest, ChunkRef> {
        self.files
            .iter()
            .flat_map(FileEntry::chunk_refs)
            .map(|c| (c.digest, c))
            .collect()
    }

    fn check(&self) -> Result<(), ManifestError> {
        if self.files.is_empty() {
            return Err(ManifestError::Empty);
        }
        if self.files.len() > MAX_FILES {
            return Err(ManifestError::TooManyFiles {
                found: self.files.len(),
            });
        }
        let mut paths = std::collections::BTreeSet::new();
        for file in &self.files {
            check_path(&file.path)?;
            check_file(file)?;
            if !paths.insert(file.path.as_str()) {
                return Err(path_problem(&file.path, "stands twice"));
            }
        }
        if !self.files.is_sorted_by(|a, b| a.path < b.path) {
            return Err(ManifestError::NotCanonical);
        }
        for path in &paths {
            let parents = path.match_indices('/').map(|(i, _)| &path[..i]);
            if parents.into_iter().any(|parent| paths.contains(parent)) {
                return Err(path_problem(path, "lies in a folder that is also a file"));
            }
        }
        Ok(())
    }
}

fn path_problem(path: &str, problem: &'static str) -> ManifestError {
    ManifestError::Path {
        path: path.chars().take(120).collect(),
        problem,
    }
}

/// A path that can only name something inside its folder.
pub fn check_path(path: &str) -> Result<(), ManifestError> {
    let problem = if path.is_empty() {
        "is empty"
    } else if path.len() > 1024 {
        "is longer than 1024 bytes"
    } else if path.starts_with('/') {
        "is absolute"
    } else if path.chars().any(char::is_control) {
        "holds a control character"
    } else if path
        .split('/')
        .any(|part| part.is_empty() || part == "." || part == "..")
    {
        "has an empty part, `.` or `..`"
    } else if path.split('/').any(|part| part.len() > 255) {
        "has a part longer than 255 bytes"
    } else {
        return Ok(());
    };
    Err(path_problem(path, problem))
}

fn check_file(file: &FileEntry) -> Result<(), ManifestError> {
    let fail = |problem| {
        let path = file.path.chars().take(120).collect();
        Err(ManifestError::File { path, problem })
    };
    if file.chunk_size_bytes != chunk_size_bytes(file.size_bytes) {
        return fail("has another chunk size than its size asks for");
    }
    if file.chunks.len() as u64 != file.size_bytes.div_ceil(file.chunk_size_bytes) {
        return fail("has another number of chunks than its size asks for");
    }
    if file_digest(&file.chunks).unwrap_or_else(|| Digest::of(b"")) != file.root {
        return fail("has a root that does not follow from its chunks");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(path: &str, bytes: &[u8]) -> FileEntry {
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
    fn a_manifest_reads_back_as_it_was_written_with_the_same_id() {
        let manifest = Manifest::new(
            vec![file("b/x", b"2"), file("a", b"")],
            Description::default(),
        )
        .expect("valid");
        let read = Manifest::decode(&manifest.encode()).expect("valid");
        assert_eq!(read, manifest);
        assert_eq!(read.id(), manifest.id());
    }

    #[test]
    fn a_path_out_of_the_folder_is_refused() {
        for bad in [
            "../x",
            "/etc/passwd",
            "a//b",
            "a/./b",
            "a/../../b",
            "",
            "a\0b",
            "a/",
        ] {
            let refused = Manifest::new(vec![file(bad, b"1")], Description::default());
            assert!(refused.is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_file_cannot_be_another_files_folder_nor_stand_twice() {
        let nested = vec![file("a", b"1"), file("a/b", b"2")];
        assert!(Manifest::new(nested, Description::default()).is_err());
        let twice = vec![file("a", b"1"), file("a", b"2")];
        assert!(Manifest::new(twice, Description::default()).is_err());
    }

    #[test]
    fn a_root_that_does_not_follow_from_the_chunks_is_refused() {
        let mut wrong = file("a", b"1");
        wrong.root = Digest::of(b"2");
        assert!(Manifest::new(vec![wrong], Description::default()).is_err());
    }

    #[test]
    fn white_space_makes_a_manifest_another_one_and_is_refused() {
        let manifest = Manifest::new(vec![file("a", b"1")], Description::default()).expect("valid");
        let mut spaced = manifest.encode();
        spaced.push(b' ');
        assert!(matches!(
            Manifest::decode(&spaced),
            Err(ManifestError::NotCanonical)
        ));
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::decode(&bytes);
        }
    }
}
