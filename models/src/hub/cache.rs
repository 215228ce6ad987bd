//! The files of a model in the cache: [`CachedModel`].

use std::{
    fs,
    path::{Path, PathBuf},
};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::{HubError, ModelId, model_id::is_part};
use crate::checkpoint::{WeightFiles, read_index};

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

    /// Returns the folder with all files of the model, if it is in the cache.
    pub(super) fn look_up(&self) -> Result<PathBuf, Missing> {
        let dir = self.commit().map(|commit| self.snapshot(&commit));
        let dir = dir.filter(|dir| dir.is_dir());
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

/// Returns the files that an empty cache lacks.
fn nothing() -> Vec<String> {
    vec!["config.json".into(), "model.safetensors".into()]
}

/// Returns the required files that the folder `dir` lacks. A link to an unfinished download counts
/// as missing.
fn missing_files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| dir.join(name).exists())
        .collect();
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
