//! The header of a GGUF file: metadata, then a table of tensors.

use serde_json::{Map, Value};

use super::super::{CheckpointError, formats::StoredType, source::Source};
use super::cursor::Cursor;

/// The first bytes of a file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// The alignment of tensors in a file that has no entry for it.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The names of ggml's types, for messages.
const TYPES: [(u32, &str); 37] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (31, "Q4_0_4_4"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];

/// The entry of one tensor.
#[derive(Debug)]
pub(super) struct TensorInfo {
    /// Its name in llama.cpp.
    pub(super) name: String,
    /// The number of rows first. The format itself has it last.
    pub(super) shape: Vec<usize>,
    pub(super) dtype: StoredType,
    /// From the start of the file.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Reads the header, and checks it against the size of the file.
pub(super) fn read(
    source: &Source,
) -> Result<(Map<String, Value>, Vec<TensorInfo>), CheckpointError> {
    let mut cursor = Cursor::new(source);
    let magic = cursor.u32("the beginning")?.to_le_bytes();
    if &magic != MAGIC {
        let found = format!("\"{}\"", magic.escape_ascii());
        return Err(cursor.error("the beginning", "\"GGUF\"", found));
    }
    let version = cursor.u32("the version")?;
    if !matches!(version, 2 | 3) {
        let expected = "2 or 3, little-endian";
        return Err(cursor.error("the version", expected, version.to_string()));
    }
    let tensor_count = cursor.u64("the number of tensors")?;
    let entry_count = cursor.u64("the number of entries")?;

    let mut metadata = Map::new();
    for _ in 0..entry_count {
        let key = cursor.string("a key of the metadata")?;
        let value = cursor.value(&key)?;
        metadata.insert(key, value);
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(value) => value
            .as_u64()
            .filter(|size| size.is_power_of_two())
            .ok_or_else(|| {
                cursor.error("general.alignment", "a power of two", value.to_string())
            })?,
    };

    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        tensors.push(read_tensor(&mut cursor)?);
    }
    let data_start = cursor.position().checked_next_multiple_of(alignment);
    for tensor in &mut tensors {
        let offset = data_start.and_then(|start| start.checked_add(tensor.offset));
        let end = offset.and_then(|offset| offset.checked_add(tensor.bytes));
        match (offset, end) {
            (Some(offset), Some(end)) if end <= source.len() => tensor.offset = offset,
            _ => {
                return Err(cursor.error(
                    &format!("tensor \"{}\"", tensor.name),
                    format!("{} bytes within the file of {}", tensor.bytes, source.len()),
                    format!("an offset of {}", tensor.offset),
                ));
            }
        }
    }
    Ok((metadata, tensors))
}

/// Reads an entry of the table. Its offset counts from the beginning of the tensors.
fn read_tensor(cursor: &mut Cursor<'_>) -> Result<TensorInfo, CheckpointError> {
    const MAX_DIMS: u32 = 4;
    let name = cursor.string("the name of a tensor")?;
    let what = format!("tensor \"{name}\"");
    let dims = cursor.u32(&what)?;
    if dims > MAX_DIMS {
        let expected = format!("at most {MAX_DIMS} dimensions");
        return Err(cursor.error(&what, expected, dims.to_string()));
    }
    let shape = (0..dims).map(|_| cursor.u64(&what));
    let mut shape = shape.collect::<Result<Vec<_>, _>>()?;
    shape.reverse();
    let number = cursor.u32(&what)?;
    let dtype = StoredType::from_gguf(number).ok_or_else(|| {
        let known = StoredType::names(|dtype| dtype.gguf().is_some());
        let name = TYPES.iter().find(|(own, _)| *own == number);
        let found = match name {
            Some((_, name)) => format!("ggml's type {name}"),
            None => format!("ggml's type {number}"),
        };
        cursor.error(&what, format!("type {known}"), found)
    })?;
    let offset = cursor.u64(&what)?;
    let sizes = shape.iter().map(|&size| usize::try_from(size).ok());
    let sizes = sizes.collect::<Option<Vec<_>>>();
    let sizes = sizes.and_then(|sizes| Some((dtype.bytes(&sizes)? as u64, sizes)));
    let Some((bytes, shape)) = sizes else {
        let expected = format!("rows of whole blocks of {dtype}, and fewer than 2^63 bytes");
        return Err(cursor.error(&what, expected, format!("the shape {shape:?}")));
    };
    Ok(TensorInfo {
        name,
        shape,
        dtype,
        offset,
        bytes,
    })
}
