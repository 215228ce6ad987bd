//! A database as a folder of files.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::entry::{Entry, file_name};
use crate::{Error, Result};

/// The size in bytes that opening a database for writing cuts it down to.
pub(crate) const MOST_BYTES: u64 = 1 << 30;
/// The prefix of files that are being written.
const TEMPORARY: &str = ".tmp-";
/// The age from which a temporary file has no writer any more.
const ABANDONED: Duration = Duration::from_secs(3600);
/// The age from which a read renews the time of last use.
const USED: Duration = Duration::from_secs(24 * 3600);
/// The file with the text of a namespace.
const NAMESPACE: &str = "namespace";
/// The folder of the table `meta`.
const META: &str = "meta";

/// The folder of a database.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    read_only: bool,
}

impl Folder {
    /// Opens a folder, and creates and bounds it unless `read_only`.
    pub fn open(path: PathBuf, read_only: bool) -> Result<Self> {
        let folder = Self { path, read_only };
        if read_only {
            return match folder.path.is_dir() {
                true => Ok(folder),
                false => Err(Error::IoError(
                    ErrorKind::NotFound,
                    "opening the cache folder",
                )),
            };
        }
        let meta = folder.path.join(META);
        fs::create_dir_all(&meta).map_err(|error| failed(&error, "creating the cache folder"))?;
        folder.bound(MOST_BYTES);
        Ok(folder)
    }

    /// Deletes abandoned temporary files, and the entries that were not used for longest until all
    /// together have at most `most` bytes. A file that cannot be deleted is left alone.
    pub fn bound(&self, most: u64) {
        let mut files = Vec::new();
        for folder in folders(&self.path) {
            for (path, metadata) in children(&folder) {
                let Ok(used) = metadata.modified() else {
                    continue;
                };
                match is_temporary(&path) {
                    true if is_older(used, ABANDONED) => drop(fs::remove_file(path)),
                    true => {}
                    false => files.push((used, metadata.len(), path)),
                }
            }
        }
        let mut bytes: u64 = files.iter().map(|(_, len, _)| len).sum();
        files.sort();
        for (_, len, path) in files {
            if bytes <= most {
                break;
            }
            if is_entry(&path) && fs::remove_file(path).is_ok() {
                bytes -= len;
            }
        }
    }

    fn namespace(&self, namespace: &str) -> PathBuf {
        self.path.join(file_name(namespace.as_bytes()))
    }

    /// Returns an entry; `None` if there is none or its file is damaged.
    pub fn get(&self, namespace: &str, key: &[u8]) -> Option<Entry> {
        let path = self.namespace(namespace).join(file_name(key));
        let entry = read(&path)?;
        if !self.read_only {
            renew(&path);
        }
        (entry.key == key).then_some(entry)
    }

    /// Stores an entry and returns 1. Unless `replace`, an entry that is there stays and 0 is
    /// returned, but a local entry replaces an imported one.
    pub fn write(&self, namespace: &str, entry: &Entry, replace: bool) -> Result<u64> {
        let folder = self.namespace(namespace);
        if !folder.join(NAMESPACE).exists() {
            self.store(&folder, NAMESPACE, namespace.as_bytes(), true)?;
        }
        let name = file_name(&entry.key);
        let bytes = entry.encode();
        if self.store(&folder, &name, &bytes, replace)? {
            return Ok(1);
        }
        let keep = read(&folder.join(&name)).is_some_and(|found| {
            found.key == entry.key && !(found.origin == 1 && entry.origin == 0)
        });
        if keep {
            return Ok(0);
        }
        self.store(&folder, &name, &bytes, true)?;
        Ok(1)
    }

    /// Writes a file as a whole. Unless `replace`, returns false if there is one already.
    fn store(&self, folder: &Path, name: &str, bytes: &[u8], replace: bool) -> Result<bool> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        if self.read_only {
            return Err(Error::Readonly(self.path.display().to_string()));
        }
        let target = folder.join(name);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = folder.join(format!("{TEMPORARY}{}-{count}", std::process::id()));
        let write = || -> io::Result<bool> {
            fs::create_dir_all(folder)?;
            File::create(&temporary)?.write_all(bytes)?;
            if replace {
                fs::rename(&temporary, &target)?;
                return Ok(true);
            }
            match fs::hard_link(&temporary, &target) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                // A file system without hard links: two writers at once write the same entry.
                Err(_) if target.exists() => Ok(false),
                Err(_) => fs::rename(&temporary, &target).map(|()| true),
            }
        };
        let written = write();
        // Gone already if it was renamed.
        let _ = fs::remove_file(&temporary);
        written.map_err(|error| failed(&error, "writing to the cache folder"))
    }

    /// Returns the entries of a namespace whose files are whole.
    pub fn scan(&self, namespace: &str) -> Vec<Entry> {
        let files = children(&self.namespace(namespace)).into_iter();
        let entries = files.filter(|(path, _)| is_entry(path));
        entries.filter_map(|(path, _)| read(&path)).collect()
    }

    /// Returns each namespace with its number of entries and their bytes, in alphabetical order.
    pub fn summary(&self) -> Vec<(String, u64, u64)> {
        let mut all = Vec::new();
        for folder in folders(&self.path) {
            let Ok(namespace) = fs::read_to_string(folder.join(NAMESPACE)) else {
                continue;
            };
            let files = children(&folder).into_iter();
            let sizes = files
                .filter(|(path, _)| is_entry(path))
                .map(|(_, metadata)| metadata.len());
            let (count, bytes) = sizes.fold((0, 0), |(count, bytes), len| (count + 1, bytes + len));
            if count > 0 {
                all.push((namespace, count, bytes));
            }
        }
        all.sort();
        all
    }

    /// Deletes all entries of a namespace and returns their number.
    pub fn purge(&self, namespace: &str) -> Result<u64> {
        self.delete(&self.namespace(namespace))
    }

    /// Deletes one entry and returns the number of deleted entries.
    pub fn purge_key(&self, namespace: &str, key: &[u8]) -> Result<u64> {
        if self.read_only {
            return Err(Error::Readonly(self.path.display().to_string()));
        }
        let path = self.namespace(namespace).join(file_name(key));
        match fs::remove_file(path) {
            Ok(()) => Ok(1),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            Err(error) => Err(failed(&error, "deleting from the cache folder")),
        }
    }

    /// Deletes all entries and returns their number.
    pub fn clear(&self) -> Result<u64> {
        let deleted = folders(&self.path)
            .into_iter()
            .map(|folder| self.delete(&folder));
        deleted.sum()
    }

    fn delete(&self, folder: &Path) -> Result<u64> {
        if self.read_only {
            return Err(Error::Readonly(self.path.display().to_string()));
        }
        let mut count = 0;
        for (path, _) in children(folder) {
            if is_entry(&path) {
                match fs::remove_file(path) {
                    Ok(()) => count += 1,
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(&error, "deleting from the cache folder")),
                }
            }
        }
        Ok(count)
    }

    /// Returns a row of `meta`.
    pub fn meta(&self, key: &str) -> Option<String> {
        let entry = read(&self.path.join(META).join(file_name(key.as_bytes())))?;
        String::from_utf8(entry.value).ok()
    }

    /// Writes a row of `meta` and returns 1.
    pub fn set_meta(&self, key: &str, value: &str) -> Result<u64> {
        let entry = Entry {
            key: key.as_bytes().to_vec(),
            value: value.as_bytes().to_vec(),
            origin: 0,
        };
        let name = file_name(&entry.key);
        self.store(&self.path.join(META), &name, &entry.encode(), true)?;
        Ok(1)
    }
}

/// Returns the folders of namespaces.
fn folders(path: &Path) -> Vec<PathBuf> {
    let folders = children(path).into_iter();
    let folders = folders.filter(|(path, metadata)| metadata.is_dir() && is_entry(path));
    folders.map(|(path, _)| path).collect()
}

/// Returns the files and folders in a folder; none if it cannot be read.
fn children(path: &Path) -> Vec<(PathBuf, fs::Metadata)> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let children = entries.map(|entry| (entry.path(), entry.metadata()));
    children
        .filter_map(|(path, metadata)| Some((path, metadata.ok()?)))
        .collect()
}

/// Returns whether a path has the name of an entry or of the folder of a namespace.
fn is_entry(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(TEMPORARY))
}

fn read(path: &Path) -> Option<Entry> {
    Entry::decode(&fs::read(path).ok()?)
}

/// Sets the time of last use to now if it is long ago.
fn renew(path: &Path) {
    let old = |metadata: fs::Metadata| metadata.modified().is_ok_and(|used| is_older(used, USED));
    if fs::metadata(path).is_ok_and(old)
        && let Ok(file) = File::options().append(true).open(path)
    {
        // Only the order of eviction depends on it.
        let _ = file.set_modified(SystemTime::now());
    }
}

fn is_older(time: SystemTime, age: Duration) -> bool {
    time.elapsed().is_ok_and(|elapsed| elapsed > age)
}

fn failed(error: &io::Error, what: &'static str) -> Error {
    Error::IoError(error.kind(), what)
}
