//! Reading the small files of a checkpoint, which are small.

use std::{fs, io, path::Path};

/// More than any file beside the weights has; the largest tokenizers have a third of it.
const MAX_BYTES: u64 = 100_000_000;

/// The content of a file.
///
/// # Errors
/// As [`fs::read`], and where `path` is no regular file or far too large for one of its kind.
pub(crate) fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    // Before the file is opened: opening a pipe would wait for a writer for ever.
    let metadata = fs::metadata(path)?;
    let found = match metadata.is_file() {
        true if metadata.len() <= MAX_BYTES => return fs::read(path),
        true => format!("{} bytes", metadata.len()),
        false => super::json::kind_of(&metadata).to_owned(),
    };
    let message = format!("expected a file of at most {MAX_BYTES} bytes, found {found}");
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}
