//! The committed inputs and deterministic mutations of them.

use std::path::{Path, PathBuf};

/// Largest input kept in the repository.
pub const FILE_BYTES_MAX: usize = 4096;
/// Most inputs kept for one target.
pub const FILES_PER_TARGET_MAX: usize = 40;

const FLIPS_PER_FILE: u64 = 24;

/// Where a target's inputs are.
pub fn corpus_dir(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// A target's inputs with their file names, in order of name.
///
/// # Errors
/// When the folder or a file cannot be read.
pub fn files(target: &str) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(corpus_dir(target))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        found.push((name, std::fs::read(entry.path())?));
    }
    found.sort();
    Ok(found)
}

/// Inputs near `bytes`: cut short, doubled, with single bytes changed, dropped and repeated. The same every time.
pub fn mutations(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![Vec::new(), [bytes, bytes].concat()];
    if bytes.is_empty() {
        return all;
    }
    for sixteenth in 1..16 {
        all.push(bytes[..bytes.len() * sixteenth / 16].to_vec());
    }
    all.push(bytes[..bytes.len() - 1].to_vec());
    let mut numbers = Numbers(bytes.iter().fold(0x9e37_79b9_7f4a_7c15, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }));
    for round in 0..FLIPS_PER_FILE {
        let place = numbers.below(bytes.len());
        let mut mutant = bytes.to_vec();
        match round % 4 {
            0 => mutant[place] ^= 1 << numbers.below(8),
            1 => mutant[place] = [0, 1, 0x7f, 0x80, 0xff][numbers.below(5)],
            2 => drop(mutant.remove(place)),
            _ => mutant.insert(place, bytes[place]),
        }
        all.push(mutant);
    }
    all
}

/// xorshift64*: not random, only scattered.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 |= 1;
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let scattered = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        usize::try_from(scattered).unwrap_or(0) % bound
    }
}
