//! Output files that are there whole or not at all.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
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
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
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
}
