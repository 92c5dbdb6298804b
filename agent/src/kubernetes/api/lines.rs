//! In: pieces of a body as they arrive; out: whole lines, none longer than a limit. Knows no JSON.

/// Collects lines.
#[derive(Debug)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// Up to here the buffer was handed out.
    taken: usize,
    /// Up to here there is no end of a line.
    searched: usize,
    most: usize,
}

/// A line is longer than any may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Lines {
    /// Lines of at most `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { buffer: Vec::new(), taken: 0, searched: 0, most }
    }

    /// Adds what has arrived.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.drain(..self.taken);
        self.searched -= self.taken;
        self.taken = 0;
        // One huge object must not be paid for as long as the watch lasts.
        if self.buffer.is_empty() && self.buffer.capacity() > 1 << 16 {
            self.buffer = Vec::new();
        }
        self.buffer.extend_from_slice(piece);
    }

    /// The next whole line, without its end; `None` until more arrives. An unfinished line is never handed out.
    pub fn next(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let Some(length) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') else {
            self.searched = self.buffer.len();
            return if self.buffer.len() - self.taken > self.most { Err(TooLong) } else { Ok(None) };
        };
        let (start, end) = (self.taken, self.searched + length);
        self.taken = end + 1;
        self.searched = self.taken;
        if end - start > self.most { Err(TooLong) } else { Ok(Some(&self.buffer[start..end])) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn long_lines_are_refused_also_unfinished_ones() {
        let mut lines = Lines::new(4);
        lines.push(b"abcd\nabcde");
        assert_eq!(lines.next(), Ok(Some(&b"abcd"[..])));
        assert_eq!(lines.next(), Err(TooLong));
        let mut lines = Lines::new(4);
        lines.push(b"abcde\n");
        assert_eq!(lines.next(), Err(TooLong));
    }

    proptest! {
        /// However the bytes are cut into pieces, the lines are those of the whole.
        #[test]
        fn pieces_do_not_matter(pieces in prop::collection::vec("[ab\n]{0,6}", 0..20)) {
            let whole = pieces.concat();
            let mut expected: Vec<&str> = whole.split('\n').collect();
            // What follows the last end is no line yet.
            expected.pop();
            let mut lines = Lines::new(1000);
            let mut found = Vec::new();
            for piece in &pieces {
                lines.push(piece.as_bytes());
                while let Some(line) = lines.next().unwrap() {
                    found.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
