//! Output files and folders that are there whole or not at all.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};
use thiserror::Error;

/// Why a file could not be written.
#[derive(Debug, Error)]
pub enum OutputError {
    /// The name is a folder's.
    #[error("{}: expected a file to write, found a folder", .path.display())]
    Folder {
        /// The name given.
        path: PathBuf,
    },
    /// The name of a folder to write is taken.
    #[error("{}: expected no such file or folder, or an empty one, found one; remove it or take another name", .path.display())]
    Taken {
        /// The name given.
        path: PathBuf,
    },
    /// The folder is not there, or the disk refused.
    #[error("{}: cannot be written", .path.display())]
    Write {
        /// The name given.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The finished file could not take its name.
    #[error("{}: cannot be replaced", .path.display())]
    Replace {
        /// The name given.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// A file that takes its name only when it is complete.
#[derive(Debug)]
pub struct OutputFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl OutputFile {
    /// Begins a file beside where it will be, so that the renaming stays within one file system. To be called before long work, which then
    /// isn't lost to a typing error in the path.
    ///
    /// # Errors
    /// When the folder is not there or can't be written, or `path` is a folder.
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        let path = path.to_owned();
        if path.is_dir() {
            return Err(OutputError::Folder { path });
        }
        let folder = parent(&path);
        let mut builder = tempfile::Builder::new();
        // What tempfile makes is for its owner only, which is right for secrets and wrong for results.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder
            .prefix(".sparq-")
            .suffix(".part")
            .tempfile_in(folder);
        match file {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(OutputError::Write { path, source }),
        }
    }

    /// Where to write.
    pub fn writer(&mut self) -> &mut std::fs::File {
        self.file.as_file_mut()
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// When the last bytes can't be written or the name can't be taken.
    pub fn finish(mut self) -> Result<(), OutputError> {
        let path = self.path;
        let written = self
            .file
            .flush()
            .and_then(|()| self.file.as_file().sync_all());
        if let Err(source) = written {
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

    /// Writes the whole contents and gives the file its name.
    ///
    /// # Errors
    /// When the bytes can't be written or the name can't be taken.
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

/// A folder that takes its name only when it is complete. Dropped before, it is removed with all that is in it.
#[derive(Debug)]
pub struct OutputFolder {
    folder: TempDir,
    path: PathBuf,
}

impl OutputFolder {
    /// Begins a folder beside where it will be, as [`OutputFile::create`] does it.
    ///
    /// # Errors
    /// When the folder above is not there or can't be written, or there is something at `path` other than an empty folder.
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
        let folder = builder
            .prefix(".sparq-")
            .suffix(".part")
            .tempdir_in(parent(&path));
        match folder {
            Ok(folder) => Ok(Self { folder, path }),
            Err(source) => Err(OutputError::Write { path, source }),
        }
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives the folder its name. Its files are synced by who wrote them.
    ///
    /// # Errors
    /// When the disk does not take the folder, or the name has been taken meanwhile.
    pub fn finish(self) -> Result<(), OutputError> {
        let path = self.path;
        if let Err(source) = sync_folder(self.folder.path()) {
            return Err(OutputError::Write { path, source });
        }
        // The name of an empty folder can be taken over on Unix only.
        #[cfg(not(unix))]
        let _ = std::fs::remove_dir(&path);
        if let Err(source) = std::fs::rename(self.folder.path(), &path) {
            return Err(OutputError::Replace { path, source });
        }
        // There is nothing left to remove.
        let _ = self.folder.keep();
        sync_folder(parent(&path)).map_err(|source| OutputError::Write { path, source })
    }
}

fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Waits until the disk has the names in a folder, where the system can.
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
    fn a_file_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result");
        let mut begun = OutputFile::create(&path).unwrap();
        begun.writer().write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(begun);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        OutputFile::create(&path)
            .unwrap()
            .finish_with(b"whole")
            .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn a_folder_and_a_missing_folder_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let error = OutputFile::create(folder.path()).unwrap_err().to_string();
        assert!(error.contains("found a folder"), "{error}");
        let missing = folder.path().join("missing").join("result");
        let error = OutputFile::create(&missing).unwrap_err().to_string();
        assert!(
            error.contains("missing") && error.contains("cannot be written"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_is_there_whole_or_not_at_all() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("result");
        let begun = OutputFolder::create(&path).unwrap();
        std::fs::write(begun.path().join("a"), "half").unwrap();
        assert!(!path.exists());
        drop(begun);
        assert_eq!(std::fs::read_dir(above.path()).unwrap().count(), 0);
        // An empty folder gives way, and nothing else does.
        std::fs::create_dir(&path).unwrap();
        let begun = OutputFolder::create(&path).unwrap();
        std::fs::write(begun.path().join("a"), "whole").unwrap();
        begun.finish().unwrap();
        assert_eq!(std::fs::read(path.join("a")).unwrap(), b"whole");
        let error = OutputFolder::create(&path).unwrap_err().to_string();
        assert!(error.contains("result: expected no such"), "{error}");
        let error = OutputFolder::create(&path.join("a"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("remove it or take another name"), "{error}");
        assert_eq!(std::fs::read_dir(above.path()).unwrap().count(), 1);
    }
}
