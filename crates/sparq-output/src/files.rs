//! Output files and folders that are complete or absent.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};
use thiserror::Error;

/// An error of writing a file or folder.
#[derive(Debug, Error)]
pub enum OutputError {
    /// The path of a file is a folder.
    #[error("{}: expected a file to write, found a folder", .path.display())]
    Folder {
        /// The path.
        path: PathBuf,
    },
    /// The path of a folder exists already.
    #[error("{}: expected a new or empty folder, found an existing file or folder; \
             remove it or use another name", .path.display())]
    Taken {
        /// The path.
        path: PathBuf,
    },
    /// The parent folder is missing, or the disk refused.
    #[error("{}: cannot be written", .path.display())]
    Write {
        /// The path.
        path: PathBuf,
        /// The system error.
        source: io::Error,
    },
    /// The finished file or folder could not get its name.
    #[error("{}: cannot be replaced", .path.display())]
    Replace {
        /// The path.
        path: PathBuf,
        /// The system error.
        source: io::Error,
    },
}

/// A file that gets its name when it is complete. Dropping it earlier removes it.
#[derive(Debug)]
pub struct OutputFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl OutputFile {
    /// Creates a temporary file in the same folder, so that renaming stays within one file system.
    /// Create it before long work, so that a typing error in the path fails early.
    ///
    /// # Errors
    /// If the parent folder is missing or cannot be written, or `path` is a folder.
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        let path = path.to_owned();
        if path.is_dir() {
            return Err(OutputError::Folder { path });
        }
        let folder = parent(&path);
        let mut builder = tempfile::Builder::new();
        // tempfile makes files that only their owner can read, but results are not secrets.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        builder.prefix(".sparq-").suffix(".part");
        match builder.tempfile_in(folder) {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(OutputError::Write { path, source }),
        }
    }

    /// Returns the file to write to.
    pub fn writer(&mut self) -> &mut std::fs::File {
        self.file.as_file_mut()
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// If the last bytes cannot be written or the file cannot be renamed.
    pub fn finish(mut self) -> Result<(), OutputError> {
        let path = self.path;
        let flushed = self.file.flush();
        if let Err(source) = flushed.and_then(|()| self.file.as_file().sync_all()) {
            return Err(OutputError::Write { path, source });
        }
        match self.file.persist(&path) {
            Ok(_) => Ok(()),
            Err(error) => Err(OutputError::Replace {
                path,
                source: error.error,
            }),
        }
    }

    /// Writes the contents and gives the file its name.
    ///
    /// # Errors
    /// If the bytes cannot be written or the file cannot be renamed.
    pub fn finish_with(mut self, contents: &[u8]) -> Result<(), OutputError> {
        match self.file.write_all(contents) {
            Ok(()) => self.finish(),
            Err(source) => Err(OutputError::Write {
                path: self.path,
                source,
            }),
        }
    }
}

/// A folder that gets its name when it is complete. Dropping it earlier removes it with its
/// contents.
#[derive(Debug)]
pub struct OutputFolder {
    folder: TempDir,
    path: PathBuf,
}

impl OutputFolder {
    /// Creates a temporary folder in the same parent folder; see [`OutputFile::create`].
    ///
    /// # Errors
    /// If the parent folder is missing or cannot be written, or `path` is something else than an
    /// empty folder.
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        let path = path.to_owned();
        let taken = match std::fs::read_dir(&path) {
            Ok(mut entries) => entries.next().is_some(),
            Err(_) => path.symlink_metadata().is_ok(),
        };
        if taken {
            return Err(OutputError::Taken { path });
        }
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        builder.prefix(".sparq-").suffix(".part");
        match builder.tempdir_in(parent(&path)) {
            Ok(folder) => Ok(Self { folder, path }),
            Err(source) => Err(OutputError::Write { path, source }),
        }
    }

    /// Returns the folder to write to.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives the folder its name. The writers of its files have to sync them.
    ///
    /// # Errors
    /// If the disk refuses the folder, or `path` was created meanwhile.
    pub fn finish(self) -> Result<(), OutputError> {
        let path = self.path;
        if let Err(source) = sync_folder(self.folder.path()) {
            return Err(OutputError::Write { path, source });
        }
        // Only Unix can rename a folder to an existing empty one.
        #[cfg(not(unix))]
        let _ = std::fs::remove_dir(&path);
        if let Err(source) = std::fs::rename(self.folder.path(), &path) {
            return Err(OutputError::Replace { path, source });
        }
        // After the renaming there is nothing left to remove.
        let _ = self.folder.keep();
        sync_folder(parent(&path)).map_err(|source| OutputError::Write { path, source })
    }
}

fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Waits until the names in a folder are on disk, if the system supports it.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        std::fs::File::open(path)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_complete_or_absent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result");
        let mut begun = OutputFile::create(&path).unwrap();
        begun.writer().write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(begun);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let begun = OutputFile::create(&path).unwrap();
        begun.finish_with(b"whole").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn invalid_paths_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = OutputFile::create(folder.path()).unwrap_err().to_string();
        assert!(error.contains("found a folder"), "{error}");
        let missing = folder.path().join("missing").join("result");
        let error = OutputFile::create(&missing).unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
        assert!(error.contains("cannot be written"), "{error}");
    }

    #[test]
    fn folder_is_complete_or_absent() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("result");
        let begun = OutputFolder::create(&path).unwrap();
        std::fs::write(begun.path().join("a"), "half").unwrap();
        assert!(!path.exists());
        drop(begun);
        assert_eq!(std::fs::read_dir(above.path()).unwrap().count(), 0);
        // The result replaces an empty folder and nothing else.
        std::fs::create_dir(&path).unwrap();
        let begun = OutputFolder::create(&path).unwrap();
        std::fs::write(begun.path().join("a"), "whole").unwrap();
        begun.finish().unwrap();
        assert_eq!(std::fs::read(path.join("a")).unwrap(), b"whole");
        for (path, part) in [
            (path.clone(), "result: expected a new or empty folder"),
            (path.join("a"), "remove it or use another name"),
        ] {
            let error = OutputFolder::create(&path).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(std::fs::read_dir(above.path()).unwrap().count(), 1);
    }
}
