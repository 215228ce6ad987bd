//! Compiled kernels and tuning results on disk, for programs.
//!
//! cubecl keeps them per device, driver, compiler and version in a folder of files. The CUDA driver
//! assembles what cubecl keeps (PTX) to machine code (a cubin) and keeps that in a folder of its
//! own. Both lie in [`folder`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The folder of cubecl's environments in the cache folder.
const KERNELS: &str = "kernels";
/// The folder of the CUDA driver in the cache folder.
const DRIVER: &str = "cuda";
/// The name of the CUDA driver's files.
const DRIVER_NAME: &str = "CUDA driver";
/// The size in bytes that the CUDA driver cuts its folder down to.
#[cfg(feature = "kernel-cache")]
const DRIVER_BYTES: u64 = 1 << 30;

/// Returns the cache folder of the user.
///
/// It is `SPARQ_CACHE_DIR` if that is set, otherwise `sparq` in `XDG_CACHE_HOME` or in `.cache` of
/// the home folder. `None` without a home folder.
pub fn folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = set("SPARQ_CACHE_DIR") {
        return Some(folder.into());
    }
    let caches = match set("XDG_CACHE_HOME") {
        Some(caches) => PathBuf::from(caches),
        None => std::env::home_dir()?.join(".cache"),
    };
    Some(caches.join("sparq"))
}

/// Keeps compiled kernels and tuning results in [`folder`] from now on.
///
/// Does nothing without a home folder, or if cubecl has been configured or used before. A folder
/// that cannot be written costs time and is no error. Settings in a `cubecl.toml` of the working
/// directory stay, but for the place and the switch of these caches.
///
/// # Safety
/// It sets environment variables (for the CUDA driver), so no other thread may run.
#[cfg(feature = "kernel-cache")]
pub unsafe fn enable() {
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};
    use cubecl::records::RecordLevel;

    let Some(folder) = folder() else {
        return;
    };
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    config.compilation.cache = true;
    config.environment.path = CacheConfig::Directory(folder.join(KERNELS));
    config.environment.records.level = RecordLevel::Off;
    if CubeClRuntimeConfig::try_set(config) && std::env::var_os("CUDA_CACHE_PATH").is_none() {
        // SAFETY: by the contract of this function no other thread reads the environment.
        unsafe {
            std::env::set_var("CUDA_CACHE_PATH", folder.join(DRIVER));
            std::env::set_var("CUDA_CACHE_MAXSIZE", DRIVER_BYTES.to_string());
        }
    }
}

/// One kind of entries in the cache folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The name: cubecl's namespace, or `CUDA driver`.
    pub name: String,
    /// The number of files.
    pub files: u64,
    /// Their size in bytes.
    pub bytes: u64,
}

impl Kind {
    /// Returns whether each file is a compiled kernel, rather than a tuning result, a measurement,
    /// an index of other files or a copy by the driver.
    pub fn is_kernels(&self) -> bool {
        let scope = self.name.split('/').next().unwrap_or_default();
        !matches!(scope, "autotune" | "throughput" | DRIVER_NAME)
            && !scope.ends_with("-second-line")
    }
}

/// Returns what a cache folder holds, in alphabetical order. Empty if there is no such folder.
///
/// # Errors
/// If a folder cannot be read.
pub fn contents(folder: &Path) -> io::Result<Vec<Kind>> {
    let mut kinds = Vec::new();
    for environment in children(&folder.join(KERNELS))? {
        for namespace in children(&environment)? {
            if let Ok(name) = fs::read_to_string(namespace.join("namespace")) {
                // The file with the name is none of the entries.
                let (files, bytes) = size(&namespace)?;
                let bytes = bytes - name.len() as u64;
                kinds.push(Kind {
                    name,
                    files: files - 1,
                    bytes,
                });
            }
        }
    }
    let (files, bytes) = size(&folder.join(DRIVER))?;
    kinds.push(Kind {
        name: DRIVER_NAME.to_owned(),
        files,
        bytes,
    });
    kinds.retain(|kind| kind.files > 0);
    kinds.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(kinds)
}

/// Deletes all that this module keeps in a cache folder, and nothing else there.
///
/// # Errors
/// If a file cannot be deleted.
pub fn clear(folder: &Path) -> io::Result<()> {
    for kept in [KERNELS, DRIVER] {
        match fs::remove_dir_all(folder.join(kept)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Returns the number of files below a folder and their bytes.
fn size(folder: &Path) -> io::Result<(u64, u64)> {
    let mut total = (0, 0);
    for path in children(folder)? {
        // A file that another process deletes meanwhile does not count.
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        let (files, bytes) = match metadata.is_dir() {
            true => size(&path)?,
            false => (1, metadata.len()),
        };
        total = (total.0 + files, total.1 + bytes);
    }
    Ok(total)
}

/// Returns the paths in a folder; none if it is missing or no folder.
fn children(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(Vec::new()),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_counted_and_cleared() {
        let folder = std::env::temp_dir().join(format!("sparq-cache-{}", std::process::id()));
        let namespace = folder.join(KERNELS).join("default.db").join("0123");
        fs::create_dir_all(&namespace).unwrap();
        fs::create_dir_all(folder.join(DRIVER).join("a")).unwrap();
        assert_eq!(contents(&folder.join("missing")).unwrap(), []);
        fs::write(namespace.join("namespace"), "cuda/0.11.3/sm_90").unwrap();
        fs::write(namespace.join("one"), [0; 10]).unwrap();
        fs::write(namespace.join("two"), [0; 20]).unwrap();
        fs::write(folder.join(DRIVER).join("a").join("index"), [0; 7]).unwrap();
        fs::write(folder.join("other"), [0; 3]).unwrap();
        let kind = |name: &str, files, bytes| Kind {
            name: name.to_owned(),
            files,
            bytes,
        };
        let expected = [kind(DRIVER_NAME, 1, 7), kind("cuda/0.11.3/sm_90", 2, 30)];
        assert_eq!(contents(&folder).unwrap(), expected);
        assert_eq!(expected.map(|kind| kind.is_kernels()), [false, true]);
        for name in ["autotune/0.11.3/0/matmul", "cuda-second-line/0.11.3/sm_90"] {
            assert!(!kind(name, 1, 1).is_kernels());
        }
        clear(&folder).unwrap();
        clear(&folder).unwrap();
        assert_eq!(contents(&folder).unwrap(), []);
        assert!(folder.join("other").exists());
        fs::remove_dir_all(folder).unwrap();
    }
}
