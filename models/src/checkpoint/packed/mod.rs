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

use super::formats::StoredType;

/// The file with the weights.
const WEIGHTS: &str = "model.bpk";

/// Returns the checksum of a tensor: of its type, layout, shape and bytes.
fn checksum(dtype: StoredType, transposed: bool, shape: &[usize], bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(format!("{dtype} {transposed} {shape:?}").as_bytes());
    hasher.update(bytes);
    hasher.finalize()
}
