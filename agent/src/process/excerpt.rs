//! Shortens texts for models and people, and marks where text was left out.

/// The beginning and the end of a byte stream of any length, in bounded memory.
#[derive(Debug, Clone)]
pub(crate) struct HeadTail {
    head: Vec<u8>,
    /// A ring once it is full; `start` is its oldest byte.
    tail: Vec<u8>,
    start: usize,
    total: u64,
    half: usize,
}

impl HeadTail {
    /// Keeps up to `half` bytes of either end.
    #[must_use]
    pub(crate) fn new(half: usize) -> Self {
        Self {
            head: Vec::new(),
            tail: Vec::new(),
            start: 0,
            total: 0,
            half: half.max(1),
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.total = self.total.saturating_add(bytes.len() as u64);
        let (head, rest) = bytes.split_at(bytes.len().min(self.half - self.head.len()));
        self.head.extend_from_slice(head);
        // Of more than fits, only the end can matter.
        let rest = &rest[rest.len().saturating_sub(self.half)..];
        let (fill, ring) = rest.split_at(rest.len().min(self.half - self.tail.len()));
        self.tail.extend_from_slice(fill);
        for byte in ring {
            self.tail[self.start] = *byte;
            self.start = (self.start + 1) % self.half;
        }
    }

    /// The text, with a line in the middle when bytes are left out there.
    #[must_use]
    pub(crate) fn text(&self) -> String {
        let mut bytes = self.head.clone();
        let kept = (self.head.len() + self.tail.len()) as u64;
        if self.total > kept {
            bytes.extend_from_slice(format!("\n[... {} bytes left out ...]\n", self.total - kept).as_bytes());
        }
        bytes.extend_from_slice(&self.tail[self.start..]);
        bytes.extend_from_slice(&self.tail[..self.start]);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The text as one line of at most `max` characters.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    let mut line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(max + 1)
        .collect();
    if line.chars().count() > max {
        line = line.chars().take(max.saturating_sub(1)).collect();
        line.push('…');
    }
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_both_ends_in_any_slicing() {
        let all: Vec<u8> = (0..100_u8).map(|n| b'a' + n % 26).collect();
        for step in [1, 3, 7, 50, 100] {
            let mut kept = HeadTail::new(10);
            all.chunks(step).for_each(|chunk| kept.push(chunk));
            let head = std::str::from_utf8(&all[..10]).unwrap();
            let tail = std::str::from_utf8(&all[90..]).unwrap();
            assert_eq!(
                kept.text(),
                format!("{head}\n[... 80 bytes left out ...]\n{tail}"),
                "{step}"
            );
        }
        let mut whole = HeadTail::new(50);
        all.chunks(9).for_each(|chunk| whole.push(chunk));
        assert_eq!(whole.text().as_bytes(), all);
    }

    #[test]
    fn one_line_is_one_line() {
        assert_eq!(one_line("  a\nb\t c ", 20), "a b  c");
        assert_eq!(one_line("abcdef", 4), "abc…");
        assert_eq!(one_line("ab", 2), "ab");
    }
}
