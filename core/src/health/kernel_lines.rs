//! Cuts what is read of the kernel log into lines: `/dev/kmsg` hands out a record a read, a file that stands in for it whatever there is.

/// A record of `/dev/kmsg` is shorter; a longer line of anything else is not a record, and only its beginning is kept.
pub const LONGEST: usize = 8 * 1024;

/// The line that is being read.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Takes what was read, and hands out each line that is complete with it. Bytes that are no text become `\u{fffd}`.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' {
                each(&String::from_utf8_lossy(&self.0));
                self.0.clear();
            } else if self.0.len() < LONGEST {
                self.0.push(byte);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_read_and_never_grow_without_end() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for part in ["ab", "c\nd\n", "z"] {
            lines.push(part.as_bytes(), |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["abc", "d"]);
        lines.push(&vec![b'x'; 10 * LONGEST], |_| {});
        assert_eq!(lines.0.len(), LONGEST);
    }
}
