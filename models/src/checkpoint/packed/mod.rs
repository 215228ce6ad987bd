//! Converted models: a folder whose weights are mapped into memory as the layers want them.
//!
//! | file | |
//! |---|---|
//! | `model.bpk` | the weights as burnpack, by their names in the checkpoint; matrices of linear layers lie column behind column, but for those in 8 or 4 bits |
//! | `sparq.json` | the manifest: version of the format, checksums, settings of attention; written last, so that a folder with it is whole |
//! | `config.json`, `tokenizer.json`, ... | as they were |
//!
//! A mapped file must not be shortened while a model that came from it lives: the process would end with a signal. So nothing here ever writes into a
//! folder; a conversion makes a new one.

mod files;
mod manifest;
mod open;
mod quant;
mod write;

pub use manifest::{Calibration, Manifest};
pub use write::{Conversion, WeightType};

pub(super) use manifest::MANIFEST;
pub(super) use open::{open, verify};

use burn::tensor::DType;

use super::stored_type::StoredType;

/// The file with the weights.
const WEIGHTS: &str = "model.bpk";

/// The checksum of a tensor: of what its bytes mean, too.
fn checksum(dtype: StoredType, transposed: bool, shape: &[usize], bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(format!("{dtype} {transposed} {shape:?}").as_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// What burnpack calls a type; `None` for one that is not written.
fn burn_type(dtype: StoredType) -> Option<DType> {
    match dtype {
        StoredType::F32 => Some(DType::F32),
        StoredType::F16 => Some(DType::F16),
        StoredType::BF16 => Some(DType::BF16),
        _ => quant::scheme(dtype).map(DType::QFloat),
    }
}

/// Bytes of a tensor; `None` where they cannot be counted.
fn bytes(dtype: StoredType, shape: &[usize]) -> Option<usize> {
    let count = shape
        .iter()
        .try_fold(1_usize, |count, &size| count.checked_mul(size))?;
    let block = dtype.block()?;
    (count / block.weights).checked_mul(block.bytes)
}

/// The type that burnpack calls so.
fn stored_type(dtype: DType) -> Option<StoredType> {
    let types = [
        StoredType::F32,
        StoredType::F16,
        StoredType::BF16,
        StoredType::Q8,
        StoredType::Q4,
    ];
    types.into_iter().find(|&own| burn_type(own) == Some(dtype))
}
