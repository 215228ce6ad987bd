//! Opening a converted model.

use std::{fs::File, path::Path};

use burn::tensor::{AllocationProperty, Bytes};
use burn_pack::Reader;
use memmap2::Mmap;

use super::super::{
    CheckpointError,
    decode::{Layout, Stored},
    source::Source,
    weight_files::stays_inside,
};
use super::{
    WEIGHTS, checksum, files,
    manifest::{FileSum, Manifest},
    quant::BLOCK,
    stored_type,
};

/// A tensor with where its bytes are.
type Mapped = (String, Stored, Source);

/// Reads the manifest of `folder`, holds the small files against it, and maps the weights. Their bytes are compared when a tensor is read.
pub(crate) fn open(folder: &Path) -> Result<(Manifest, Vec<Mapped>), CheckpointError> {
    let manifest = Manifest::read(folder)?;
    check_files(folder, &manifest)?;
    let path = folder.join(WEIGHTS);
    let error = |what: String, expected: String, found: String| CheckpointError::Packed {
        path: path.clone(),
        what,
        expected,
        found,
    };
    let unreadable = |reason: burn_pack::Error| {
        error(
            "the weights".into(),
            "a whole burnpack file".into(),
            reason.to_string(),
        )
    };
    let pack = Reader::from_bytes(map(&path)?).map_err(unreadable)?;
    let mut tensors = Vec::new();
    for tensor in pack.into_tensors().map_err(unreadable)? {
        let what = || format!("tensor \"{}\"", tensor.name);
        let Some(sum) = manifest.tensors.get(&tensor.name) else {
            return Err(error(
                what(),
                "a checksum in sparq.json".into(),
                "none".into(),
            ));
        };
        let Some(dtype) = stored_type(tensor.dtype) else {
            let found = format!("{:?}", tensor.dtype);
            return Err(error(
                what(),
                "type F32, F16, BF16, Q8 or Q4 of this format".into(),
                found,
            ));
        };
        let mut shape = tensor.shape.to_vec();
        let layout = match (sum.transposed, shape.len()) {
            (false, _) => Layout::Rows,
            (true, 2) => Layout::Columns,
            (true, _) => return Err(error(what(), "a matrix".into(), format!("{shape:?}"))),
        };
        if layout == Layout::Columns {
            shape.reverse();
        }
        let (name, bytes) = (
            tensor.name.clone(),
            tensor.into_bytes().map_err(unreadable)?,
        );
        // Of quantised tensors burnpack does not know it.
        let whole_blocks = match dtype.scale_bytes() {
            0 => true,
            _ => shape
                .last()
                .is_some_and(|columns| columns.is_multiple_of(BLOCK)),
        };
        if !whole_blocks || super::bytes(dtype, &shape) != Some(bytes.len()) {
            let found = format!("{} for {dtype} {shape:?}", bytes.len());
            let expected = "as many bytes as type and shape say";
            return Err(error(format!("tensor \"{name}\""), expected.into(), found));
        }
        let stored = Stored {
            dtype,
            shape,
            offset: 0,
            bytes: bytes.len() as u64,
            layout,
            checksum: Some(sum.crc32),
        };
        tensors.push((name, stored, Source::from_mapped(path.clone(), bytes)));
    }
    if tensors.len() != manifest.tensors.len() {
        let (expected, found) = (manifest.tensors.len(), tensors.len());
        return Err(error(
            "the weights".into(),
            format!("{expected} tensors"),
            found.to_string(),
        ));
    }
    Ok((manifest, tensors))
}

/// Holds the bytes of a mapped tensor against its checksum.
pub(crate) fn verify(source: &Source, stored: &Stored, name: &str) -> Result<(), CheckpointError> {
    let (Some(expected), Some(bytes)) = (stored.checksum, source.mapped()) else {
        return Ok(());
    };
    let transposed = stored.layout == Layout::Columns;
    let found = checksum(stored.dtype, transposed, &stored.shape, bytes);
    match found == expected {
        true => Ok(()),
        false => Err(CheckpointError::Packed {
            path: source.path().into(),
            what: format!("tensor \"{name}\""),
            expected: format!("the checksum {expected:08x}"),
            found: format!("{found:08x}"),
        }),
    }
}

/// Holds the small files against their checksums.
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
            return Err(CheckpointError::Packed {
                path,
                what: "the file".into(),
                expected: text(*expected),
                found: found.map_or("none".into(), text),
            });
        }
    }
    Ok(())
}

fn map(path: &Path) -> Result<Bytes, CheckpointError> {
    let read = |error| CheckpointError::Read {
        path: path.into(),
        error,
    };
    // The check for a regular file, and against a pipe that nobody writes to.
    Source::open(path)?;
    let file = File::open(path).map_err(read)?;
    // SAFETY: nobody changes the file of a converted model: this program only makes new ones. What else is done to it cannot be ruled out; the pages that
    // are read are bytes whatever they hold, and a file that is shortened ends the process, which the documentation of the format says.
    let mapping = unsafe { Mmap::map(&file) }.map_err(read)?;
    Ok(Bytes::from_shared(
        bytes::Bytes::from_owner(mapping),
        AllocationProperty::File,
    ))
}
