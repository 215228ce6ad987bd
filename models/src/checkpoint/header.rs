//! The header of a safetensors file: eight bytes with its length, then JSON with the name, type,
//! shape and place of each tensor.

use safetensors::tensor::{Metadata, TensorInfo};

use super::{
    CheckpointError,
    decode::{Layout, Stored},
    source::Source,
};

/// The limit of the reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The bytes of the length before the header.
const LENGTH_BYTES: u64 = 8;

/// Reads the header of `source`, checks it against the size of the file, and returns the tensors.
///
/// The parser of the `safetensors` crate checks that the tensors follow one another without gap or
/// overlap, and that the length of each agrees with its shape and type. It needs the header only.
pub(super) fn read_header(source: &Source) -> Result<Vec<(String, Stored)>, CheckpointError> {
    let malformed = |expected: String, found: String| CheckpointError::Header {
        path: source.path().into(),
        expected,
        found,
    };
    let Some(behind_length) = source.len().checked_sub(LENGTH_BYTES) else {
        return Err(malformed(
            format!("at least {LENGTH_BYTES} bytes"),
            source.len().to_string(),
        ));
    };
    let mut length = [0; LENGTH_BYTES as usize];
    source.read_at(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    // Checked before a buffer of that size is allocated.
    let limit = behind_length.min(MAX_HEADER_BYTES);
    if length > limit {
        return Err(malformed(
            format!("a header of at most {limit} bytes"),
            format!("one of {length}"),
        ));
    }
    let mut json = vec![0; length as usize];
    source.read_at(LENGTH_BYTES, &mut json)?;
    let metadata: Metadata = serde_json::from_slice(&json)
        .map_err(|error| malformed("a valid header".into(), error.to_string()))?;
    drop(json);

    let data_start = LENGTH_BYTES + length;
    let data_bytes = source.len() - data_start;
    if metadata.data_len() as u64 != data_bytes {
        return Err(malformed(
            format!("{} bytes of tensors", metadata.data_len()),
            data_bytes.to_string(),
        ));
    }
    let stored = |info: &TensorInfo| Stored {
        dtype: info.dtype.into(),
        shape: info.shape.clone(),
        offset: data_start + info.data_offsets.0 as u64,
        bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
        layout: Layout::Rows,
        checksum: None,
        within: None,
    };
    let tensors = metadata.tensors().into_iter();
    Ok(tensors.map(|(name, info)| (name, stored(info))).collect())
}
