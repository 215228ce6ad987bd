//! Reads the small files of a checkpoint, with a limit on their size.

use std::{fs, io, path::Path};

/// The most bytes of a file other than weights. The largest tokenizers have a third of it, and the
/// index of a model with a million tensors about as much.
const MAX_BYTES: u64 = 100_000_000;

/// Reads a small file.
///
/// # Errors
/// As [`fs::read`], and if `path` is no regular file or too large.
pub(crate) fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    // Checked before the file is opened: opening a pipe without a writer would block forever.
    let metadata = fs::metadata(path)?;
    let found = match metadata.is_file() {
        true if metadata.len() <= MAX_BYTES => {
            let bytes = fs::read(path)?;
            return match is_lfs_pointer(&bytes) {
                true => Err(io::Error::new(io::ErrorKind::InvalidData, LFS_POINTER)),
                false => Ok(bytes),
            };
        }
        true => format!("{} bytes", metadata.len()),
        false => kind_of(&metadata).to_owned(),
    };
    let message = format!("expected a file of at most {MAX_BYTES} bytes, found {found}");
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

/// The message about a pointer of Git LFS.
pub(super) const LFS_POINTER: &str =
    "expected the file itself, found a pointer of Git LFS; fetch the file with git lfs pull";

/// Returns whether a file that begins with `bytes` is a pointer, which Git leaves in place of a
/// file in Git LFS.
pub(super) fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs")
}

/// Returns the kind of a path that is no regular file, in words.
pub(super) fn kind_of(metadata: &fs::Metadata) -> &'static str {
    if metadata.is_dir() {
        "a folder"
    } else {
        "neither a file nor a folder"
    }
}
