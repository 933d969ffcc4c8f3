//! The inputs that are kept in `fuzz/corpus`, and changes of them: the same at every run.

use std::path::PathBuf;

/// Where the inputs of a target are.
pub fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(target)
}

/// Name and content of each input, in the order of their names.
///
/// # Errors
/// The folder or a file of it cannot be read.
pub fn inputs(target: &str) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut inputs = Vec::new();
    for entry in std::fs::read_dir(folder(target))? {
        let entry = entry?;
        inputs.push((
            entry.file_name().to_string_lossy().into_owned(),
            std::fs::read(entry.path())?,
        ));
    }
    inputs.sort();
    Ok(inputs)
}

/// Random numbers that are the same at every run (xorshift).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// From any seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `end`, which is above 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or(0) % end
    }
}

/// Bytes that parsers trip over.
const TROUBLE: [&[u8]; 12] = [
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"-",
    b" ",
    b"\n",
    b": ",
    b"0x",
    b"18446744073709551615",
    b"\xc3",
    b"&a [*a,*a]",
    b"{{{{[[[[",
];

/// `input` with a few changes: bits turned, pieces cut, doubled, moved, exchanged with those of `other`, or with trouble in them.
pub fn mutated(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = at + random.below((bytes.len() - at).min(64) + 1);
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            3 if !other.is_empty() => {
                let from = random.below(other.len());
                let until = from + random.below((other.len() - from).min(64) + 1);
                bytes.splice(at..end, other[from..until].iter().copied());
            }
            4 => bytes.truncate(at),
            _ => drop(bytes.splice(at..at, TROUBLE[random.below(TROUBLE.len())].iter().copied())),
        }
    }
    bytes
}
