// SPDX-License-Identifier: GPL-2.0

//! The build-time measurement of a TD (MRTD): SHA-384 over 128-byte blocks.

use sha2::{Digest, Sha384};

/// Bytes of a block that names an operation.
const BLOCK: usize = 128;
/// Where the guest address lies in such a block.
const GPA_OFFSET: usize = 16;

/// The measurement while the TD is built and after.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measurement {
    hash: Sha384,
    result: [u64; 6],
}

impl Measurement {
    /// Measures that an operation was done on a guest address.
    pub(crate) fn operation(&mut self, name: &[u8], gpa: u64) {
        let mut block = [0; BLOCK];
        let parts = [(0, name), (GPA_OFFSET, &gpa.to_le_bytes())];
        for (offset, bytes) in parts {
            for (to, from) in block.iter_mut().skip(offset).zip(bytes) {
                *to = *from;
            }
        }
        self.hash.update(block);
    }

    /// Measures content.
    pub(crate) fn content(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
    }

    /// Closes the measurement.
    pub(crate) fn finish(&mut self) {
        let digest = std::mem::take(&mut self.hash).finalize();
        for (word, bytes) in self.result.iter_mut().zip(digest.chunks(8)) {
            *word = bytes
                .iter()
                .rev()
                .fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
    }

    /// MRTD in words of 64 bits; zero until it is closed.
    pub(crate) fn result(&self) -> [u64; 6] {
        self.result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_zero_until_closed_and_then_the_hash_of_all_that_was_measured() {
        let mut measurement = Measurement::default();
        measurement.content(b"abc");
        assert_eq!(measurement.result(), [0; 6]);
        measurement.finish();
        // The first 8 bytes of SHA-384("abc"): cb 00 75 3f 45 a3 5e 8b.
        assert_eq!(measurement.result()[0], 0x8b5e_a345_3f75_00cb);
    }

    #[test]
    fn an_operation_is_measured_with_its_address() {
        let hash = |gpa| {
            let mut measurement = Measurement::default();
            measurement.operation(b"MEM.PAGE.ADD", gpa);
            measurement.finish();
            measurement.result()
        };
        assert_ne!(hash(0), hash(0x1000));
    }
}
