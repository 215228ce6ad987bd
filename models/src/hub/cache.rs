//! The files of a model in the cache: [`CachedModel`].

use std::{
    fs,
    path::{Path, PathBuf},
};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::{HubError, ModelId, model_id::is_part};
use crate::checkpoint::{WeightFiles, gguf, read_index};

/// One model in the cache of the hub. Its folder `refs` maps revisions to commits, and `snapshots`
/// has a folder of files for each commit.
pub(super) struct CachedModel {
    cache: Cache,
    id: ModelId,
}

/// The files that a model in the cache lacks.
#[derive(Debug)]
pub(super) struct Missing {
    /// The files.
    pub(super) files: Vec<String>,
    /// The folder, if the model can be loaded without them.
    pub(super) usable: Option<PathBuf>,
}

impl CachedModel {
    pub(super) fn new(cache_dir: &Path, id: &ModelId) -> Self {
        Self {
            cache: Cache::new(cache_dir.into()),
            id: id.clone(),
        }
    }

    /// Returns the repository of the model at `revision`.
    pub(super) fn repo(&self, revision: &str) -> Repo {
        let (repo, revision) = (self.id.repo().into(), revision.into());
        Repo::with_revision(repo, RepoType::Model, revision)
    }

    /// Returns the cache of the requested revision.
    fn cached(&self) -> CacheRepo {
        self.cache.repo(self.repo(self.id.revision()))
    }

    /// Returns the cache as a type of `hf-hub`.
    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Returns the folder with the files of `commit`.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.cached().pointer_path(commit)
    }

    /// Records that the requested revision is `commit`, whose files are complete.
    pub(super) fn set_commit(&self, commit: &str) -> Result<(), HubError> {
        self.cached()
            .create_ref(commit)
            .map_err(|error| HubError::Cache {
                path: self.refs(),
                error,
            })
    }

    fn refs(&self) -> PathBuf {
        let folder = self.repo(self.id.revision()).folder_name();
        let folder = self.cache.path().join(folder);
        folder.join("refs").join(self.id.revision())
    }

    /// Returns the recorded commit of the revision, or the revision itself if it is a commit.
    fn commit(&self) -> Option<String> {
        let noted = fs::read_to_string(self.refs()).ok();
        let noted = noted.map(|commit| commit.trim().to_string());
        let commit = noted.unwrap_or_else(|| self.id.revision().into());
        is_part(&commit).then_some(commit)
    }

    /// Returns the GGUF file of the model in the folder `dir`, the first one of its parts.
    fn gguf(&self, dir: &Path) -> Option<PathBuf> {
        let names = gguf_names(dir);
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let top = names_of(dir);
        let has_weights = WeightFiles::choose(top.iter().map(String::as_str)).is_some();
        if self.id.quantization().is_none() && has_weights {
            return None;
        }
        let files = self.id.gguf_files(&names).ok()?;
        let first = files.first()?;
        (files.len() == gguf::count(first)).then(|| dir.join(first))
    }

    /// Fails if the cache has several GGUF models of the repository and the id names none of them.
    pub(super) fn check_gguf(&self) -> Result<(), HubError> {
        let dir = self.commit().map(|commit| self.snapshot(&commit));
        let dir = dir.filter(|dir| !dir.join("config.json").exists());
        let names = dir.as_deref().map_or_else(Vec::new, gguf_names);
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        match self.id.quantization() {
            None => self.id.gguf_files(&names).map(drop),
            Some(_) => Ok(()),
        }
    }

    /// Returns the folder with all files of the model, or its GGUF file, if it is in the cache.
    pub(super) fn look_up(&self) -> Result<PathBuf, Missing> {
        let dir = self.commit().map(|commit| self.snapshot(&commit));
        let dir = dir.filter(|dir| dir.is_dir());
        if let Some(dir) = &dir
            && let Some(file) = self.gguf(dir)
        {
            // Only the hub knows whether a model without a quantisation in its id has others.
            return match self.id.quantization() {
                Some(_) => Ok(file),
                None => Err(Missing {
                    files: Vec::new(),
                    usable: Some(file),
                }),
            };
        }
        if let Some(quantization) = self.id.quantization() {
            return Err(Missing {
                files: vec![format!("*{quantization}*.gguf")],
                usable: None,
            });
        }
        let files = dir.as_deref().map_or_else(nothing, missing_files);
        match (dir, files.is_empty()) {
            (Some(dir), true) if dir.join("tokenizer.json").exists() => Ok(dir),
            (usable, true) => Err(Missing {
                files: vec!["tokenizer.json".into()],
                usable,
            }),
            (_, false) => Err(Missing {
                files,
                usable: None,
            }),
        }
    }
}

/// Returns whether a file of a repository is a GGUF file, in the repository itself or in a folder
/// of it.
pub(super) fn is_gguf(name: &str) -> bool {
    let parts = || name.split('/');
    name.ends_with(gguf::ENDING) && parts().count() <= 2 && parts().all(is_part)
}

/// Returns the GGUF files of the folder `dir`, as in a repository.
fn gguf_names(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for name in names_of(dir) {
        let inner = dir.join(&name);
        if inner.is_dir() {
            let inner = names_of(&inner).into_iter();
            found.extend(inner.map(|inner| format!("{name}/{inner}")));
        } else {
            found.push(name);
        }
    }
    found.retain(|name| is_gguf(name));
    found.sort();
    found
}

/// Returns the files that an empty cache lacks.
fn nothing() -> Vec<String> {
    vec!["config.json".into(), "model.safetensors".into()]
}

/// Returns the names in the folder `dir`, without links to unfinished downloads.
fn names_of(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| dir.join(name).exists()).collect()
}

/// Returns the required files that the folder `dir` lacks. A link to an unfinished download counts
/// as missing.
fn missing_files(dir: &Path) -> Vec<String> {
    let names = names_of(dir);
    let mut needed = vec!["config.json".into()];
    match WeightFiles::choose(names.iter().map(String::as_str)) {
        Some(WeightFiles::Single(name)) => needed.push(name),
        Some(WeightFiles::Sharded(index)) => match read_index(&dir.join(&index)) {
            Ok(map) => needed.extend(map.into_values()),
            // The index is damaged. Opening the checkpoint reports how.
            Err(_) => needed.push(index),
        },
        None => needed.push("model.safetensors".into()),
    }
    needed.sort();
    needed.dedup();
    needed.retain(|name| !dir.join(name).exists());
    needed
}
