//! Output files and folders that are complete or absent.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
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
///
/// A device, a pipe or another path that is no regular file is not replaced: it receives the
/// contents when they are complete. A symbolic link stays, and its file is replaced.
#[derive(Debug)]
pub struct OutputFile {
    contents: Contents,
    path: PathBuf,
}

/// The temporary file and its destination.
#[derive(Debug)]
enum Contents {
    /// A file in the folder of the destination, to be renamed.
    Renamed {
        file: NamedTempFile,
        /// The destination behind all links.
        target: PathBuf,
    },
    /// A file to be copied into the destination.
    Copied { file: File, destination: File },
}

impl OutputFile {
    /// Creates a temporary file in the same folder, so that renaming stays within one file system.
    /// Create it before long work, so that a typing error in the path fails early.
    ///
    /// A file that is replaced keeps its permissions. The end of a pipe is opened here, which waits
    /// for a reader.
    ///
    /// # Errors
    /// If the parent folder is missing or cannot be written, or `path` is a folder.
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        let path = path.to_owned();
        if path.is_dir() {
            return Err(OutputError::Folder { path });
        }
        match Contents::create(&path) {
            Ok(contents) => Ok(Self { contents, path }),
            Err(source) => Err(OutputError::Write { path, source }),
        }
    }

    /// Returns the file to write to.
    pub fn writer(&mut self) -> &mut File {
        match &mut self.contents {
            Contents::Renamed { file, .. } => file.as_file_mut(),
            Contents::Copied { file, .. } => file,
        }
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// If the last bytes cannot be written or the file cannot be renamed.
    pub fn finish(mut self) -> Result<(), OutputError> {
        let path = self.path.clone();
        if let Err(source) = self.writer().flush() {
            return Err(OutputError::Write { path, source });
        }
        match self.contents {
            Contents::Renamed { file, target } => {
                if let Err(source) = file.as_file().sync_all() {
                    return Err(OutputError::Write { path, source });
                }
                match file.persist(&target) {
                    Ok(_) => Ok(()),
                    Err(error) => Err(OutputError::Replace {
                        path,
                        source: error.error,
                    }),
                }
            }
            Contents::Copied {
                mut file,
                mut destination,
            } => {
                let copied = file
                    .rewind()
                    .and_then(|()| io::copy(&mut file, &mut destination))
                    .and_then(|_| destination.flush());
                copied.map_err(|source| OutputError::Write { path, source })
            }
        }
    }

    /// Writes the contents and gives the file its name.
    ///
    /// # Errors
    /// If the bytes cannot be written or the file cannot be renamed.
    pub fn finish_with(mut self, contents: &[u8]) -> Result<(), OutputError> {
        match self.writer().write_all(contents) {
            Ok(()) => self.finish(),
            Err(source) => Err(OutputError::Write {
                path: self.path,
                source,
            }),
        }
    }
}

impl Contents {
    fn create(path: &Path) -> io::Result<Self> {
        let existing = std::fs::metadata(path).ok();
        let (target, is_stream) = target(path)?;
        if is_stream || existing.as_ref().is_some_and(|file| !file.is_file()) {
            return Ok(Self::Copied {
                destination: OpenOptions::new().append(true).open(path)?,
                file: tempfile::tempfile()?,
            });
        }
        let mut builder = tempfile::Builder::new();
        // tempfile makes files that only their owner can read, but results are not secrets.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        builder.prefix(".sparq-").suffix(".part");
        let file = builder.tempfile_in(existing_parent(&target)?)?;
        if let Some(existing) = existing.filter(|_| cfg!(unix)) {
            file.as_file().set_permissions(existing.permissions())?;
        }
        Ok(Self::Renamed { file, target })
    }
}

/// Returns the path that the links at `path` lead to, which may not exist, and whether a link names
/// an open file of a process, such as /dev/stdout. Replacing the file of a shell's redirection
/// would lose the output.
fn target(path: &Path) -> io::Result<(PathBuf, bool)> {
    const MAX_LINKS: usize = 40;
    let mut target = path.to_owned();
    for _ in 0..MAX_LINKS {
        if ["/dev/fd", "/proc"]
            .iter()
            .any(|folder| target.starts_with(folder))
        {
            return Ok((target, true));
        }
        match std::fs::read_link(&target) {
            Ok(link) => target = parent(&target).join(link),
            Err(_) => return Ok((target, false)),
        }
    }
    Err(io::Error::other("too many symbolic links"))
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
        match existing_parent(&path).and_then(|parent| builder.tempdir_in(parent)) {
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

/// Returns the parent folder, if there is one. The error of creating a temporary file would name
/// that file.
fn existing_parent(path: &Path) -> io::Result<&Path> {
    let folder = parent(path);
    match folder.is_dir() {
        true => Ok(folder),
        false => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{}: no such folder", folder.display()),
        )),
    }
}

/// Waits until the names in a folder are on disk, if the system supports it.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(path)?.sync_all()?;
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

    #[cfg(unix)]
    fn mode(path: &Path) -> u32 {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[cfg(unix)]
    #[test]
    fn replaced_file_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result");
        for bits in [0o600, 0o640, 0o755] {
            std::fs::write(&path, "old").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(bits)).unwrap();
            OutputFile::create(&path)
                .unwrap()
                .finish_with(b"new")
                .unwrap();
            assert_eq!(mode(&path), bits);
            assert_eq!(std::fs::read(&path).unwrap(), b"new");
        }
    }

    #[cfg(unix)]
    #[test]
    fn symbolic_link_stays_a_link() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let link = folder.path().join("link");
        // A relative link to a file that does not exist yet, by way of another link.
        symlink("inner/other", &link).unwrap();
        symlink("result", inner.join("other")).unwrap();
        for contents in ["one", "two"] {
            let file = OutputFile::create(&link).unwrap();
            file.finish_with(contents.as_bytes()).unwrap();
            assert!(link.is_symlink() && inner.join("other").is_symlink());
            let result = inner.join("result");
            assert!(!result.is_symlink());
            assert_eq!(std::fs::read_to_string(result).unwrap(), contents);
        }
        let circle = folder.path().join("circle");
        symlink("circle", &circle).unwrap();
        assert!(OutputFile::create(&circle).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn pipe_receives_the_contents_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let reader = std::thread::spawn({
            let path = path.clone();
            move || std::fs::read(path).unwrap()
        });
        let mut file = OutputFile::create(&path).unwrap();
        file.writer().write_all(b"0123").unwrap();
        // A pipe cannot seek, but the result is written when it is complete.
        file.writer().seek(io::SeekFrom::Start(1)).unwrap();
        file.finish_with(b"x").unwrap();
        assert_eq!(reader.join().unwrap(), b"0x23");
        assert!(!std::fs::metadata(&path).unwrap().is_file());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn device_is_not_replaced() {
        use std::os::unix::fs::FileTypeExt;
        let path = Path::new("/dev/null");
        OutputFile::create(path).unwrap().finish_with(b"x").unwrap();
        let kind = std::fs::symlink_metadata(path).unwrap().file_type();
        assert!(kind.is_char_device());
    }

    #[test]
    fn invalid_paths_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = OutputFile::create(folder.path()).unwrap_err().to_string();
        assert!(error.contains("found a folder"), "{error}");
        let missing = folder.path().join("missing");
        let error = OutputFile::create(&missing.join("result")).unwrap_err();
        assert!(error.to_string().contains("cannot be written"), "{error}");
        let reason = std::error::Error::source(&error).unwrap().to_string();
        let expected = format!("{}: no such folder", missing.display());
        assert_eq!(reason, expected);
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
