//! A file of weights, on disk, mapped or in memory: [`Source`].

use std::{
    borrow::Cow,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use burn::tensor::AllocationProperty;
use memmap2::Mmap;

use super::{
    CheckpointError,
    small_file::{is_lfs_pointer, kind_of},
};

/// Enough bytes to recognise a pointer of Git LFS.
const LFS_POINTER_BYTES: u64 = 32;

/// The bytes of a file on disk or in memory, or of one tensor of a mapped file.
#[derive(Debug)]
pub(super) struct Source {
    /// The file, or for bytes in memory a name for messages.
    path: PathBuf,
    len: u64,
    bytes: Bytes,
    /// The whole file, from the first call of [`map`](Self::map) on.
    mapping: OnceLock<burn::tensor::Bytes>,
}

#[derive(Debug)]
enum Bytes {
    /// Read by position and without a lock, by several threads at once.
    File(File),
    Memory(Cow<'static, [u8]>),
    /// A tensor of a mapped file.
    Mapped(burn::tensor::Bytes),
    /// Zeros, which take no memory until they are written to.
    Blank(burn::tensor::Bytes),
}

impl Source {
    /// Opens a file on disk.
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let read = CheckpointError::read(path);
        // Checked before the file is opened: opening a pipe without a writer would block forever.
        let metadata = fs::metadata(path).map_err(&read)?;
        if !metadata.is_file() {
            return Err(CheckpointError::Header {
                path: path.into(),
                expected: "a file".into(),
                found: kind_of(&metadata).into(),
            });
        }
        let file = File::open(path).map_err(&read)?;
        let source = Self {
            path: path.into(),
            len: file.metadata().map_err(&read)?.len(),
            bytes: Bytes::File(file),
            mapping: OnceLock::new(),
        };
        let mut begin = vec![0; source.len.min(LFS_POINTER_BYTES) as usize];
        source.read_at(0, &mut begin)?;
        match is_lfs_pointer(&begin) {
            true => Err(CheckpointError::LfsPointer { path: path.into() }),
            false => Ok(source),
        }
    }

    /// Wraps bytes in memory; `name` stands for the file in messages.
    pub(super) fn from_bytes(name: PathBuf, bytes: Cow<'static, [u8]>) -> Self {
        Self {
            path: name,
            len: bytes.len() as u64,
            bytes: Bytes::Memory(bytes),
            mapping: OnceLock::new(),
        }
    }

    /// Wraps one tensor of the mapped file `path`.
    pub(super) fn from_mapped(path: PathBuf, bytes: burn::tensor::Bytes) -> Self {
        Self {
            path,
            len: bytes.len() as u64,
            bytes: Bytes::Mapped(bytes),
            mapping: OnceLock::new(),
        }
    }

    /// Wraps zeros that stand for the file `path`.
    pub(super) fn blank(path: PathBuf, zeros: burn::tensor::Bytes) -> Self {
        Self {
            path,
            len: zeros.len() as u64,
            bytes: Bytes::Blank(zeros),
            mapping: OnceLock::new(),
        }
    }

    /// Returns the zeros of a blank source.
    pub(super) fn zeros(&self) -> Option<&burn::tensor::Bytes> {
        match &self.bytes {
            Bytes::Blank(zeros) => Some(zeros),
            _ => None,
        }
    }

    /// Returns the bytes of a mapped tensor.
    pub(super) fn mapped(&self) -> Option<&burn::tensor::Bytes> {
        match &self.bytes {
            Bytes::Mapped(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Returns `len` bytes from `offset` on without a copy. `None` if there is no file to map.
    pub(super) fn map(
        &self,
        offset: u64,
        len: usize,
    ) -> Result<Option<burn::tensor::Bytes>, CheckpointError> {
        let Ok(start) = usize::try_from(offset) else {
            return Ok(None);
        };
        let (all, start) = match &self.bytes {
            Bytes::File(file) => match self.mapping.get() {
                Some(mapping) => (mapping, start),
                None => {
                    let mapping = map(file).map_err(CheckpointError::read(&self.path))?;
                    (self.mapping.get_or_init(|| mapping), start)
                }
            },
            Bytes::Mapped(bytes) => (bytes, start),
            Bytes::Memory(_) | Bytes::Blank(_) => return Ok(None),
        };
        Ok(all.view(start, start + len).ok())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buffer` with the bytes from `offset` on.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), CheckpointError> {
        let read = self.try_read_at(offset, buffer);
        read.map_err(CheckpointError::read(&self.path))
    }

    /// As [`read_at`](Self::read_at), with the bare error of the operating system.
    pub(super) fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.bytes {
            Bytes::File(file) => read_exact_at(file, offset, buffer),
            Bytes::Memory(bytes) => copy(bytes, offset, buffer),
            Bytes::Mapped(bytes) | Bytes::Blank(bytes) => copy(bytes, offset, buffer),
        }
    }
}

/// Maps a whole file.
fn map(file: &File) -> io::Result<burn::tensor::Bytes> {
    // SAFETY: this program never changes the files of a checkpoint. If another program does, the
    // weights change, and any bytes are valid blocks. If it shortens the file, the system ends this
    // process with a signal, which the documentation of the module says.
    let mapping = unsafe { Mmap::map(file) }?;
    let bytes = bytes::Bytes::from_owner(mapping);
    Ok(burn::tensor::Bytes::from_shared(
        bytes,
        AllocationProperty::File,
    ))
}

#[cfg(unix)]
fn read_exact_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                offset += count as u64;
                buffer = &mut buffer[count..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(not(any(unix, windows)))]
fn read_exact_at(_: &File, _: u64, _: &mut [u8]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn copy(bytes: &[u8], offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let start = usize::try_from(offset).ok();
    let range = start.and_then(|start| Some(start..start.checked_add(buffer.len())?));
    let bytes = range
        .and_then(|range| bytes.get(range))
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    buffer.copy_from_slice(bytes);
    Ok(())
}
