//! Reads reference cases from a folder.

use std::path::{Path, PathBuf};

use crate::{Case, ConformanceError};

/// Reads all files named `*.safetensors` in a folder and its direct subfolders, in the order of
/// their names. The files may have either format.
///
/// # Errors
/// [`ConformanceError::Io`] if a folder or file cannot be read, [`ConformanceError::EmptyFolder`]
/// if there is no such file, and those of [`Case::from_bytes`]. One bad file is an error: a check
/// that skipped it would seem to pass.
pub fn read_folder(folder: &Path) -> Result<Vec<Case>, ConformanceError> {
    let mut files = Vec::new();
    for path in entries(folder)? {
        if path.is_dir() {
            files.extend(entries(&path)?.into_iter().filter(|path| is_case(path)));
        } else if is_case(&path) {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(ConformanceError::EmptyFolder {
            path: folder.to_path_buf(),
        });
    }
    files.iter().map(|file| Case::from_file(file)).collect()
}

fn is_case(path: &Path) -> bool {
    let named = path
        .extension()
        .is_some_and(|ending| ending == "safetensors");
    named && !path.is_dir()
}

/// Returns the paths in a folder, sorted.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, ConformanceError> {
    let io = |source| ConformanceError::Io {
        path: folder.to_path_buf(),
        source,
    };
    let entries = std::fs::read_dir(folder).map_err(io)?;
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(io)?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::read_folder;
    use crate::ConformanceError;

    const CASE: &[u8] = include_bytes!("../fixtures/authors/14_mha_S1.safetensors");

    #[test]
    fn files_and_direct_subfolders_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let nested = folder.path().join("b/c");
        fs::create_dir_all(&nested).unwrap();
        for name in ["c.safetensors", "b/1.safetensors", "a.safetensors"] {
            fs::write(folder.path().join(name), CASE).unwrap();
        }
        fs::write(folder.path().join("README.md"), "not a case").unwrap();
        fs::write(nested.join("too_deep.safetensors"), "not read").unwrap();
        let cases = read_folder(folder.path()).unwrap();
        assert_eq!(cases.len(), 3);
    }

    #[test]
    fn a_folder_without_cases_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = read_folder(folder.path()).unwrap_err();
        assert!(matches!(error, ConformanceError::EmptyFolder { .. }));
        let path = folder.path().display().to_string();
        assert!(error.to_string().starts_with(&path), "{error}");

        let error = read_folder(&folder.path().join("missing")).unwrap_err();
        assert!(matches!(error, ConformanceError::Io { .. }));
        assert!(error.to_string().contains("missing"), "{error}");
    }

    #[test]
    fn a_bad_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.safetensors"), CASE).unwrap();
        fs::write(folder.path().join("b.safetensors"), &CASE[..100]).unwrap();
        let error = read_folder(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("b.safetensors: expected a safetensors file"),
            "{error}"
        );
    }
}
