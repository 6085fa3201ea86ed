//! Cuts a byte stream into lines, in bounded memory.

/// One line, without the line break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    Whole(Vec<u8>),
    /// Longer than allowed; its bytes were dropped.
    TooLong {
        bytes: u64,
    },
}

/// Splits bytes into lines.
#[derive(Debug)]
pub(super) struct Lines {
    max: usize,
    open: Vec<u8>,
    dropped: u64,
}

impl Lines {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            open: Vec::new(),
            dropped: 0,
        }
    }

    /// Adds bytes and returns the lines that they complete.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.extend(&bytes[..end]);
            bytes = &bytes[end + 1..];
            lines.extend(self.take());
        }
        self.extend(bytes);
        lines
    }

    /// The last line, when it has no end.
    pub(super) fn finish(&mut self) -> Option<Line> {
        self.take().filter(|line| *line != Line::Whole(Vec::new()))
    }

    fn extend(&mut self, bytes: &[u8]) {
        if self.dropped > 0 || self.open.len() + bytes.len() > self.max {
            self.dropped += (self.open.len() + bytes.len()) as u64;
            self.open = Vec::new();
        } else {
            self.open.extend_from_slice(bytes);
        }
    }

    fn take(&mut self) -> Option<Line> {
        let bytes = std::mem::take(&mut self.dropped);
        let mut open = std::mem::take(&mut self.open);
        if bytes > 0 {
            return Some(Line::TooLong { bytes });
        }
        if open.last() == Some(&b'\r') {
            open.pop();
        }
        Some(Line::Whole(open))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_in_any_slicing() {
        let text = b"one\n\ntwo\r\nmuch too long\nlast";
        for step in 1..text.len() {
            let mut lines = Lines::new(6);
            let mut all: Vec<Line> = text.chunks(step).flat_map(|chunk| lines.push(chunk)).collect();
            all.extend(lines.finish());
            let whole = |text: &str| Line::Whole(text.as_bytes().to_vec());
            assert_eq!(
                all,
                [
                    whole("one"),
                    whole(""),
                    whole("two"),
                    Line::TooLong { bytes: 13 },
                    whole("last")
                ],
                "{step}"
            );
        }
    }
}
