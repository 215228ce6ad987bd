//! Converted models: a folder whose weights are mapped into memory in the layout of the layers.
//!
//! - `model.bpk`: the weights as burnpack, by their names in the checkpoint. Matrices are
//!   row-major, [out, in] in linear layers. Those that `sparq.json` calls transposed, which earlier
//!   versions wrote, are column-major.
//! - `sparq.json`: the manifest with the version of the format, checksums, and the settings of
//!   attention. It is written last, so a folder that has it is complete.
//! - `config.json`, `tokenizer.json` and others: copies of the checkpoint's files.
//!
//! A mapped file must not be shortened while a model that was loaded from it exists: the operating
//! system would end the process with a signal. Therefore a conversion always makes a new folder and
//! never writes into an existing one.

mod files;
mod manifest;
mod open;
mod quant;
mod write;

pub use manifest::{Calibration, Manifest};
pub use write::Conversion;

pub(super) use manifest::MANIFEST;
pub(super) use open::{open, verify};

use crc32fast::Hasher;

use super::{formats::StoredType, threads};

/// The file with the weights.
const WEIGHTS: &str = "model.bpk";

/// Bytes that a thread adds to a checksum at a time.
const SUMMED_BYTES: usize = 1 << 20;

/// Returns the checksum of a tensor: of its type, layout, shape and bytes.
fn checksum(dtype: StoredType, transposed: bool, shape: &[usize], bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(format!("{dtype} {transposed} {shape:?}").as_bytes());
    let parts = bytes.chunks(SUMMED_BYTES).enumerate();
    let sum = |(index, part): (usize, &[u8])| {
        let mut hasher = Hasher::new();
        hasher.update(part);
        (index, hasher)
    };
    let count = threads::for_bytes(bytes.len());
    let mut sums = threads::run(count, parts, |parts| parts.map(sum).collect::<Vec<_>>()).concat();
    sums.sort_unstable_by_key(|(index, _)| *index);
    for (_, sum) in sums {
        hasher.combine(&sum);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_does_not_depend_on_its_parts() {
        for size in [0, 1, SUMMED_BYTES, 5 * SUMMED_BYTES / 2] {
            let bytes: Vec<_> = (0..size).map(|at| (at * at / 7) as u8).collect();
            let mut whole = b"F16 true [3, 5]".to_vec();
            whole.extend(&bytes);
            let expected = crc32fast::hash(&whole);
            assert_eq!(checksum(StoredType::F16, true, &[3, 5], &bytes), expected);
        }
    }
}
