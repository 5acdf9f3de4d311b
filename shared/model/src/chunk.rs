//! Digests of bytes that strangers sent, at places that strangers named. Pure.

use shared::digest::{ChunkPlace, Digest, chunk_digest};
use shared::units::Bytes;

/// No chunk is longer (see `shared::manifest::chunk_size_bytes`).
pub(crate) const MAX_CHUNK_BYTES: u64 = 32 * Bytes::MIB;
/// Chunks start at multiples of the smallest chunk size.
const MIN_CHUNK_BYTES: u64 = 4 * Bytes::MIB;

/// The digest of `bytes` as a chunk at `place`; `None` if no chunk can have that place and length.
/// A subtree of a BLAKE3 hash is bounded by its place, and hashing more than fits there panics.
pub(crate) fn checked_digest(place: ChunkPlace, bytes: &[u8]) -> Option<Digest> {
    let len_bytes = bytes.len() as u64;
    let longest = match place {
        ChunkPlace::Whole | ChunkPlace::At { offset_bytes: 0 } => MAX_CHUNK_BYTES,
        ChunkPlace::At { offset_bytes } if offset_bytes % MIN_CHUNK_BYTES == 0 => {
            MAX_CHUNK_BYTES.min(1 << offset_bytes.trailing_zeros())
        }
        ChunkPlace::At { .. } => return None,
    };
    ((1..=longest).contains(&len_bytes)).then(|| chunk_digest(place, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(offset_bytes: u64) -> ChunkPlace {
        ChunkPlace::At { offset_bytes }
    }

    #[test]
    fn a_place_bounds_the_length() {
        let bytes = vec![0; 8 << 20];
        assert!(checked_digest(at(0), &bytes).is_some());
        assert!(checked_digest(at(8 << 20), &bytes).is_some());
        assert!(checked_digest(at(4 << 20), &bytes).is_none());
        assert!(checked_digest(at(4 << 20), &bytes[..4 << 20]).is_some());
        assert!(checked_digest(at(1 << 20), &bytes[..1 << 20]).is_none());
        assert!(checked_digest(ChunkPlace::Whole, &[]).is_none());
        let long = vec![0; MAX_CHUNK_BYTES as usize + 1];
        assert!(checked_digest(ChunkPlace::Whole, &long).is_none());
    }

    proptest! {
        #[test]
        fn no_place_panics(offset in any::<u64>(), chunk in 0u64..1 << 42, len in 0usize..3000) {
            let bytes = vec![1; len];
            let _ = checked_digest(at(offset), &bytes);
            let _ = checked_digest(at(chunk << 22), &bytes);
        }
    }
}
