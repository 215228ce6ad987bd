//! Output files that are there whole or not at all.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

/// A file that takes its name only when it is complete.
#[derive(Debug)]
pub struct OutputFile<'a> {
    file: NamedTempFile,
    path: &'a Path,
}

impl<'a> OutputFile<'a> {
    /// Begins a file beside where it will be, so that the renaming stays within one file system. To be called before long work, which then
    /// isn't lost to a typing error in the path.
    ///
    /// # Errors
    /// When the folder is not there or can't be written, or `path` is a folder.
    pub fn create(path: &'a Path) -> Result<Self> {
        if path.is_dir() {
            bail!(
                "{}: expected a file to write, found a folder",
                path.display()
            );
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
            .tempfile_in(folder)
            .with_context(|| format!("{}: cannot be written", path.display()))?;
        Ok(Self { file, path })
    }

    /// Where to write.
    pub fn writer(&mut self) -> &mut std::fs::File {
        self.file.as_file_mut()
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// When the last bytes can't be written or the name can't be taken.
    pub fn finish(mut self) -> Result<()> {
        let written = self
            .file
            .flush()
            .and_then(|()| self.file.as_file().sync_all());
        written.with_context(|| format!("{}: cannot be written", self.path.display()))?;
        self.file
            .persist(self.path)
            .with_context(|| format!("{}: cannot be replaced", self.path.display()))?;
        Ok(())
    }
}
