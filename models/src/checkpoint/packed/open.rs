//! Opens a converted model.

use std::{fs::File, path::Path};

use burn::tensor::{AllocationProperty, Bytes, DType};
use burn_pack::Reader;
use memmap2::Mmap;
use sparq::ops::BlockFormat;

use super::super::{
    CheckpointError,
    decode::{Layout, Stored},
    formats::StoredType,
    source::Source,
    weight_files::stays_inside,
};
use super::{
    WEIGHTS, checksum, files,
    manifest::{FileSum, Manifest},
};

/// A tensor, its layout and its bytes.
type Mapped = (String, Stored, Source);

/// Reads the manifest of `folder`, checks the small files against it, and maps the weights. The
/// bytes of a tensor are checked when it is read.
pub(crate) fn open(folder: &Path) -> Result<(Manifest, Vec<Mapped>), CheckpointError> {
    let manifest = Manifest::read(folder)?;
    check_files(folder, &manifest)?;
    let path = folder.join(WEIGHTS);
    let unreadable = |reason: burn_pack::Error| {
        let expected = "a complete burnpack file".into();
        damaged(&path, "the weights", expected, reason.to_string())
    };
    let pack = Reader::from_bytes(map(&path)?).map_err(unreadable)?;
    let mut tensors = Vec::new();
    for tensor in pack.into_tensors().map_err(unreadable)? {
        let (name, dtype) = (tensor.name.clone(), tensor.dtype);
        let mut shape = tensor.shape.to_vec();
        let bytes = tensor.into_bytes().map_err(unreadable)?;
        let error = |expected: String, found: String| {
            damaged(&path, &format!("tensor \"{name}\""), expected, found)
        };
        let Some(sum) = manifest.tensors.get(&name) else {
            return Err(error("a checksum in sparq.json".into(), "none".into()));
        };
        let blocks = sum.blocks.as_deref();
        let Some(own) = stored_type(dtype, blocks) else {
            let written = |own: StoredType| own.burn_type().is_some();
            let expected = format!("type {} of this format", StoredType::names(written));
            let found = match (blocks, dtype) {
                (Some(blocks), _) => blocks.to_owned(),
                // Printing the scheme of a damaged file panics in cubecl.
                (None, DType::QFloat(_)) => "another quantisation".to_owned(),
                (None, dtype) => format!("{dtype:?}"),
            };
            return Err(error(expected, found));
        };
        let dtype = own;
        if let (Some(format), Some(columns)) = (dtype.packed(), shape.last_mut()) {
            // The file has bytes.
            *columns = *columns / format.bytes() * format.weights();
        }
        let layout = match (sum.transposed, shape.len()) {
            (false, _) => Layout::Rows,
            (true, 2) => Layout::Columns,
            (true, _) => return Err(error("a matrix".into(), format!("{shape:?}"))),
        };
        if layout == Layout::Columns {
            shape.reverse();
        }
        // burnpack does not check the number of bytes of quantised tensors.
        if dtype.bytes(&shape) != Some(bytes.len()) {
            let expected = "the number of bytes of its type and shape".into();
            return Err(error(
                expected,
                format!("{} for {dtype} {shape:?}", bytes.len()),
            ));
        }
        let stored = Stored {
            dtype,
            shape,
            offset: 0,
            bytes: bytes.len() as u64,
            layout,
            checksum: Some(sum.crc32),
            within: None,
        };
        tensors.push((name, stored, Source::from_mapped(path.clone(), bytes)));
    }
    let (expected, found) = (manifest.tensors.len(), tensors.len());
    if found != expected {
        let expected = format!("{expected} tensors");
        return Err(damaged(&path, "the weights", expected, found.to_string()));
    }
    Ok((manifest, tensors))
}

/// Returns the type of a tensor from that in the file and the format of blocks in the manifest.
fn stored_type(dtype: DType, blocks: Option<&str>) -> Option<StoredType> {
    if let Some(name) = blocks {
        let format = BlockFormat::from_name(name).filter(|_| dtype == DType::U8)?;
        return Some(StoredType::from_packed(format));
    }
    let is_it = |own: &StoredType| own.packed().is_none() && own.burn_type() == Some(dtype);
    let mut written = StoredType::written().map(|(_, own)| own);
    written.find(is_it)
}

fn damaged(path: &Path, what: &str, expected: String, found: String) -> CheckpointError {
    CheckpointError::Packed {
        path: path.into(),
        what: what.into(),
        expected,
        found,
    }
}

/// Checks the bytes of a mapped tensor against its checksum.
pub(crate) fn verify(source: &Source, stored: &Stored, name: &str) -> Result<(), CheckpointError> {
    let (Some(expected), Some(bytes)) = (stored.checksum, source.mapped()) else {
        return Ok(());
    };
    let transposed = stored.layout == Layout::Columns;
    let found = checksum(stored.dtype, transposed, &stored.shape, bytes);
    match found == expected {
        true => Ok(()),
        false => Err(damaged(
            source.path(),
            &format!("tensor \"{name}\""),
            format!("the checksum {expected:08x}"),
            format!("{found:08x}"),
        )),
    }
}

/// Checks the small files against their checksums.
fn check_files(folder: &Path, manifest: &Manifest) -> Result<(), CheckpointError> {
    for (name, expected) in &manifest.files {
        let path = folder.join(name);
        let found = match stays_inside(name) {
            true => files::read_file(&path)?,
            false => None,
        };
        let found = found.as_deref().map(FileSum::of);
        if found != Some(*expected) {
            let text =
                |sum: FileSum| format!("{} bytes with the checksum {:08x}", sum.bytes, sum.crc32);
            let found = found.map_or("none".into(), text);
            return Err(damaged(&path, "the file", text(*expected), found));
        }
    }
    Ok(())
}

/// Maps the file `path` into memory.
fn map(path: &Path) -> Result<Bytes, CheckpointError> {
    let read = CheckpointError::read(path);
    // Checks that it is a regular file: opening a pipe without a writer would block.
    Source::open(path)?;
    let file = File::open(path).map_err(&read)?;
    // SAFETY: this program never changes the file of a converted model, it only makes new ones.
    // Other programs may: changed pages are still bytes, and a shortened file ends the process,
    // which the documentation of the format says.
    let mapping = unsafe { Mmap::map(&file) }.map_err(read)?;
    Ok(Bytes::from_shared(
        bytes::Bytes::from_owner(mapping),
        AllocationProperty::File,
    ))
}
