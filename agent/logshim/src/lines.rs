//! Cuts a stream of bytes into lines. Pure, and bounded: a line longer than [`MAX_LINE_BYTES`] leaves in
//! pieces, each but the last one marked as partial.

pub(crate) const MAX_LINE_BYTES: usize = 16 * 1024;

/// The unfinished line of one stream.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// At most `MAX_LINE_BYTES`: a line of just that length is not cut.
    rest: Vec<u8>,
}

/// A line without its newline, or a piece of one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub(crate) bytes: &'a [u8],
    /// More of the same line follows.
    pub(crate) partial: bool,
}

impl Lines {
    pub(crate) fn push(&mut self, mut chunk: &[u8], mut emit: impl FnMut(Piece<'_>)) {
        while let Some(newline) = chunk.iter().position(|byte| *byte == b'\n') {
            let (line, after) = (&chunk[..newline], &chunk[newline + 1..]);
            chunk = after;
            if self.rest.is_empty() && line.len() <= MAX_LINE_BYTES {
                emit(Piece {
                    bytes: line,
                    partial: false,
                });
            } else {
                self.extend(line, &mut emit);
                self.finish(&mut emit, true);
            }
        }
        self.extend(chunk, &mut emit);
    }

    /// The stream has ended: what is left is a line, though no newline came.
    pub(crate) fn end(&mut self, mut emit: impl FnMut(Piece<'_>)) {
        self.finish(&mut emit, false);
    }

    fn extend(&mut self, mut bytes: &[u8], emit: &mut impl FnMut(Piece<'_>)) {
        while self.rest.len() + bytes.len() > MAX_LINE_BYTES {
            let (head, tail) = bytes.split_at(MAX_LINE_BYTES - self.rest.len());
            self.rest.extend_from_slice(head);
            bytes = tail;
            let cut = character_boundary(&self.rest);
            emit(Piece {
                bytes: &self.rest[..cut],
                partial: true,
            });
            self.rest.drain(..cut);
        }
        self.rest.extend_from_slice(bytes);
    }

    fn finish(&mut self, emit: &mut impl FnMut(Piece<'_>), even_if_empty: bool) {
        if even_if_empty || !self.rest.is_empty() {
            emit(Piece {
                bytes: &self.rest,
                partial: false,
            });
        }
        self.rest.clear();
    }
}

/// Where to cut so that a UTF-8 character is not torn in two: before the last one, if it is incomplete.
fn character_boundary(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    let Some(start) = bytes[tail..]
        .iter()
        .rposition(|byte| *byte & 0b1100_0000 == 0b1100_0000)
    else {
        return bytes.len();
    };
    let start = tail + start;
    let width = match bytes[start] {
        0b1111_0000.. => 4,
        0b1110_0000.. => 3,
        _ => 2,
    };
    if start + width > bytes.len() {
        start
    } else {
        bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let (mut lines, mut pieces) = (Lines::default(), Vec::new());
        for chunk in chunks {
            lines.push(chunk, |piece| {
                pieces.push((piece.bytes.to_vec(), piece.partial))
            });
            assert!(lines.rest.len() <= MAX_LINE_BYTES);
        }
        lines.end(|piece| pieces.push((piece.bytes.to_vec(), piece.partial)));
        pieces
    }

    fn whole(line: &[u8]) -> (Vec<u8>, bool) {
        (line.to_vec(), false)
    }

    #[test]
    fn lines_are_put_together_from_chunks_and_an_unfinished_one_ends_with_the_stream() {
        assert_eq!(
            cut(&[b"a\n\nb", b"c", b"\nd"]),
            [whole(b"a"), whole(b""), whole(b"bc"), whole(b"d")]
        );
        assert_eq!(cut(&[b"a\n"]), [whole(b"a")]);
        assert_eq!(cut(&[]), []);
    }

    #[test]
    fn only_a_line_over_the_limit_is_cut() {
        let line = vec![b'x'; MAX_LINE_BYTES];
        assert_eq!(cut(&[&line, b"\n"]), [whole(&line)]);
        assert_eq!(cut(&[&line, b"y\n"]), [(line.clone(), true), whole(b"y")]);
        assert_eq!(cut(&[&[line.as_slice(), b"y\nz\n"].concat()]).len(), 3);
    }

    #[test]
    fn a_character_is_not_torn() {
        let mut line = vec![b'x'; MAX_LINE_BYTES - 1];
        line.extend("é!".as_bytes());
        let pieces = cut(&[&line]);
        assert_eq!(pieces[1], whole("é!".as_bytes()));
        assert_eq!(pieces[0].0.len(), MAX_LINE_BYTES - 1);
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_or_invented_whatever_the_chunks(
            seeds in prop::collection::vec((any::<u8>(), 0usize..40_000), 0..8),
            sizes in prop::collection::vec(1usize..70_000, 1..8),
        ) {
            let mut bytes = Vec::new();
            for (byte, count) in seeds {
                bytes.extend(std::iter::repeat_n(byte, if byte == b'\n' { count % 5 } else { count }));
                bytes.extend("\u{20ac}\n".bytes().take(count % 5));
            }
            let mut chunks = Vec::new();
            let mut left = bytes.as_slice();
            for size in sizes.iter().cycle() {
                if left.is_empty() {
                    break;
                }
                let (head, tail) = left.split_at((*size).min(left.len()));
                chunks.push(head);
                left = tail;
            }
            let mut joined = Vec::new();
            for (piece, partial) in cut(&chunks) {
                prop_assert!(piece.len() <= MAX_LINE_BYTES && !piece.contains(&b'\n'));
                prop_assert!(!partial || piece.len() > MAX_LINE_BYTES - 4);
                joined.extend(piece);
                joined.extend((!partial).then_some(b'\n'));
            }
            if !bytes.is_empty() && bytes.last() != Some(&b'\n') {
                bytes.push(b'\n');
            }
            prop_assert!(joined == bytes);
        }

        #[test]
        fn arbitrary_bytes_survive(chunks in prop::collection::vec(any::<Vec<u8>>(), 0..20)) {
            let mut bytes = chunks.concat();
            let slices: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let mut joined = Vec::new();
            for (piece, _) in cut(&slices) {
                joined.extend(piece);
                joined.push(b'\n');
            }
            if !bytes.is_empty() && bytes.last() != Some(&b'\n') {
                bytes.push(b'\n');
            }
            prop_assert_eq!(joined, bytes);
        }
    }
}
