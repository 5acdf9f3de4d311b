//! Digests: BLAKE3 for what we move ourselves, SHA-256 where OCI prescribes it.
//!
//! A file's [`Digest`] is its standard BLAKE3 hash. A chunk's digest is the chaining value of the
//! subtree that the chunk is within its file (BLAKE3 paper, section 2.4), so that the file's hash
//! follows from its chunks' without reading a byte again; a file of one chunk has the file's own
//! hash as its chunk's. A chunk's digest therefore depends on its place: the same bytes at another
//! offset are another chunk.

use std::fmt;
use std::str::FromStr;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use serde::{Deserialize, Serialize};

use crate::ids::InvalidName;

/// 32 bytes of BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl schemars::JsonSchema for Digest {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Digest".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^[0-9a-f]{64}$",
            "description": "A BLAKE3 hash: 64 lower-case hexadecimal digits.",
        })
    }
}

impl Digest {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The standard BLAKE3 hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Parsing costs nothing worth saving, so hex is made where it is shown.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }

    /// The first 12 hex digits, enough for people.
    pub fn short(self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.short())
    }
}

impl FromStr for Digest {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let mut bytes = [0; 32];
        let lower = text.bytes().all(|b| !b.is_ascii_uppercase());
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if lower => Ok(Self(bytes)),
            _ => Err(InvalidName::by_rule(
                "digest",
                text,
                "64 lower-case hexadecimal digits",
            )),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_hex()
    }
}

/// Where a chunk lies in its file, which its digest depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkPlace {
    /// The file has this one chunk.
    Whole,
    /// One of several chunks, starting at this offset, a multiple of the chunk size.
    At { offset_bytes: u64 },
}

/// The digest of one chunk (see the module's doc).
pub fn chunk_digest(place: ChunkPlace, bytes: &[u8]) -> Digest {
    let mut hasher = ChunkHasher::new(place);
    hasher.update(bytes);
    hasher.finish()
}

/// Hashes one chunk while it arrives.
pub struct ChunkHasher {
    hasher: blake3::Hasher,
    place: ChunkPlace,
}

impl ChunkHasher {
    pub fn new(place: ChunkPlace) -> Self {
        let mut hasher = blake3::Hasher::new();
        if let ChunkPlace::At { offset_bytes } = place {
            hasher.set_input_offset(offset_bytes);
        }
        Self { hasher, place }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    pub fn finish(&self) -> Digest {
        match self.place {
            ChunkPlace::Whole => Digest(*self.hasher.finalize().as_bytes()),
            ChunkPlace::At { .. } => Digest(self.hasher.finalize_non_root()),
        }
    }
}

/// The BLAKE3 hash of a file from its chunks' digests, in order. `chunk_size_bytes` is a power of
/// two of at least 1 KiB and every chunk but the last is that long, so each is a whole subtree.
/// `None` for no chunks: an empty file's hash is [`Digest::of`] nothing.
pub fn file_digest(chunks: &[Digest]) -> Option<Digest> {
    match chunks {
        [] => None,
        [only] => Some(*only),
        _ => {
            let split = left_chunks(chunks.len());
            let left = subtree(&chunks[..split]);
            let right = subtree(&chunks[split..]);
            Some(Digest(
                *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes(),
            ))
        }
    }
}

fn subtree(chunks: &[Digest]) -> ChainingValue {
    if let [only] = chunks {
        return only.0;
    }
    let split = left_chunks(chunks.len());
    merge_subtrees_non_root(
        &subtree(&chunks[..split]),
        &subtree(&chunks[split..]),
        Mode::Hash,
    )
}

/// BLAKE3's left subtree holds the largest power of two below the whole.
fn left_chunks(chunks: usize) -> usize {
    chunks.next_power_of_two() / 2
}

/// An OCI content digest, `sha256:` and 64 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OciDigest(String);

impl OciDigest {
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let valid = text.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64
                && hex
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::by_rule(
                "OCI digest",
                text,
                "sha256: and 64 lower-case hexadecimal digits",
            ))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hex digits.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl fmt::Display for OciDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for OciDigest {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::parse(&text)
    }
}

impl From<OciDigest> for String {
    fn from(digest: OciDigest) -> String {
        digest.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunks_of(bytes: &[u8], chunk_size: usize) -> Vec<Digest> {
        let whole = bytes.len() <= chunk_size;
        bytes
            .chunks(chunk_size)
            .enumerate()
            .map(|(i, chunk)| {
                let place = if whole {
                    ChunkPlace::Whole
                } else {
                    ChunkPlace::At {
                        offset_bytes: (i * chunk_size) as u64,
                    }
                };
                chunk_digest(place, chunk)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn the_file_hash_from_chunks_is_the_standard_blake3_hash(
            len in 1usize..20_000, seed in any::<u8>(),
        ) {
            let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
            prop_assert_eq!(file_digest(&chunks_of(&bytes, 1024)), Some(Digest::of(&bytes)));
            prop_assert_eq!(file_digest(&chunks_of(&bytes, 4096)), Some(Digest::of(&bytes)));
        }
    }

    #[test]
    fn the_same_bytes_at_another_place_are_another_chunk() {
        let bytes = [7; 1024];
        let first = chunk_digest(ChunkPlace::At { offset_bytes: 0 }, &bytes);
        let second = chunk_digest(ChunkPlace::At { offset_bytes: 1024 }, &bytes);
        assert_ne!(first, second);
    }
}
