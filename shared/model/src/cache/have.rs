//! Which chunks of an object are on disk: the `have` file. Pure.
//!
//! `SHKHAVE1`, the file's root (32 bytes), its size (8, little-endian), the number of chunks (4), one
//! bit per chunk (least significant first), and the BLAKE3 of all that. A file that is cut, garbled
//! or about something else decodes to `None`, which means: no chunk is there.

use shared::digest::Digest;

const MAGIC: &[u8; 8] = b"SHKHAVE1";
const HEADER_BYTES: usize = 8 + 32 + 8 + 4;
const CHECK_BYTES: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Have {
    root: Digest,
    size_bytes: u64,
    count: usize,
    bits: Vec<u8>,
}

impl Have {
    pub(super) fn none(root: Digest, size_bytes: u64, count: usize) -> Self {
        Self {
            root,
            size_bytes,
            count,
            bits: vec![0; count.div_ceil(8)],
        }
    }

    pub(super) fn has(&self, chunk: usize) -> bool {
        chunk < self.count && self.bits[chunk / 8] & (1 << (chunk % 8)) != 0
    }

    pub(super) fn set(&mut self, chunk: usize) {
        assert!(chunk < self.count, "the object checks indices on arrival");
        self.bits[chunk / 8] |= 1 << (chunk % 8);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.count_set() == self.count
    }

    pub(super) fn count_set(&self) -> usize {
        self.bits.iter().map(|b| b.count_ones() as usize).sum()
    }

    /// How long a `have` file of this many chunks is.
    pub(super) fn encoded_len(count: usize) -> usize {
        HEADER_BYTES + count.div_ceil(8) + CHECK_BYTES
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let count = u32::try_from(self.count).expect("a manifest has fewer than 2^32 chunks");
        let mut bytes = Vec::with_capacity(Self::encoded_len(self.count));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(self.root.as_bytes());
        bytes.extend_from_slice(&self.size_bytes.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&self.bits);
        let check = Digest::of(&bytes);
        bytes.extend_from_slice(check.as_bytes());
        bytes
    }

    /// `None` unless the bytes are whole and about this very file.
    pub(super) fn decode(
        bytes: &[u8],
        root: Digest,
        size_bytes: u64,
        count: usize,
    ) -> Option<Self> {
        let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK_BYTES)?)?;
        if bytes.len() != Self::encoded_len(count) || Digest::of(body).as_bytes() != check {
            return None;
        }
        let have = Self {
            bits: body[HEADER_BYTES..].to_vec(),
            ..Self::none(root, size_bytes, count)
        };
        // Magic, root, size, count and unused bits are right exactly if it encodes to the same.
        let unused = have.count_set() - (0..count).filter(|&i| have.has(i)).count();
        (unused == 0 && have.encode() == bytes).then_some(have)
    }
}

/// About one in a hundred of the chunks that are there, at least one, spread over the file: looked at
/// again when a download is taken up after a restart.
pub(super) fn sample(have: &Have, seed: u64) -> Vec<usize> {
    let there: Vec<usize> = (0..have.count).filter(|&i| have.has(i)).collect();
    let step = there.len().min(100);
    if step == 0 {
        return Vec::new();
    }
    let start = usize::try_from(seed % step as u64).expect("below 100");
    there.into_iter().skip(start).step_by(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn have(count: usize, set: &[usize]) -> Have {
        let mut have = Have::none(Digest::of(b"root"), 7, count);
        set.iter()
            .filter(|&&i| i < count)
            .for_each(|&i| have.set(i));
        have
    }

    proptest! {
        #[test]
        fn it_reads_back_as_it_was_written(
            count in 0usize..200, set in proptest::collection::vec(0usize..200, 0..50),
        ) {
            let written = have(count, &set);
            let read = Have::decode(&written.encode(), Digest::of(b"root"), 7, count);
            prop_assert_eq!(read, Some(written));
        }

        #[test]
        fn cut_or_changed_bytes_are_not_believed(
            count in 0usize..200, at in 0usize..200, flip in 1u8.., cut in 0usize..200,
        ) {
            let whole = have(count, &[0, 3]).encode();
            let mut garbled = whole.clone();
            let len = garbled.len();
            garbled[at % len] ^= flip;
            prop_assert_eq!(Have::decode(&garbled, Digest::of(b"root"), 7, count), None);
            let cut = &whole[..cut % len];
            prop_assert_eq!(Have::decode(cut, Digest::of(b"root"), 7, count), None);
        }

        #[test]
        fn a_sample_holds_chunks_that_are_there(
            set in proptest::collection::vec(0usize..2000, 0..2000), seed in any::<u64>(),
        ) {
            let have = have(2000, &set);
            let sample = sample(&have, seed);
            prop_assert!(sample.iter().all(|&i| have.has(i)));
            prop_assert_eq!(sample.is_empty(), have.count_set() == 0);
            prop_assert!(sample.len() <= have.count_set() / 100 + 1);
        }
    }

    #[test]
    fn what_is_about_another_file_is_not_believed() {
        let bytes = have(9, &[1]).encode();
        let root = Digest::of(b"root");
        assert!(Have::decode(&bytes, root, 7, 9).is_some());
        assert_eq!(Have::decode(&bytes, Digest::of(b"other"), 7, 9), None);
        assert_eq!(Have::decode(&bytes, root, 8, 9), None);
        assert_eq!(Have::decode(&bytes, root, 7, 10), None);
        assert_eq!(Have::decode(&[], root, 7, 9), None);
    }
}
