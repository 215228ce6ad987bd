//! What the cache has of a model: [`CachedModel`].

use std::{
    fs,
    path::{Path, PathBuf},
};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::{HubError, ModelId, model_id::is_part};
use crate::checkpoint::{WeightFiles, read_index};

/// One model in the cache of the hub: `refs` leads from a revision to a commit, and `snapshots` has a folder of files for each commit.
pub(super) struct CachedModel {
    cache: Cache,
    id: ModelId,
}

/// What a model in the cache lacks.
#[derive(Debug)]
pub(super) struct Missing {
    /// The files.
    pub(super) files: Vec<String>,
    /// The folder, if the model can be loaded from it all the same.
    pub(super) usable: Option<PathBuf>,
}

impl CachedModel {
    pub(super) fn new(cache_dir: &Path, id: &ModelId) -> Self {
        Self {
            cache: Cache::new(cache_dir.into()),
            id: id.clone(),
        }
    }

    /// The model's repository at `revision`.
    pub(super) fn repo(&self, revision: &str) -> Repo {
        let (repo, revision) = (self.id.repo().into(), revision.into());
        Repo::with_revision(repo, RepoType::Model, revision)
    }

    /// The cache's part for the revision that was asked for.
    fn cached(&self) -> CacheRepo {
        self.cache.repo(self.repo(self.id.revision()))
    }

    /// The cache as `hf-hub` knows it.
    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Where the files of `commit` are.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.cached().pointer_path(commit)
    }

    /// Notes that the revision that was asked for is `commit`, whose files are all there.
    pub(super) fn set_commit(&self, commit: &str) -> Result<(), HubError> {
        self.cached()
            .create_ref(commit)
            .map_err(|error| HubError::Cache {
                path: self.refs(),
                error,
            })
    }

    fn refs(&self) -> PathBuf {
        let folder = self.cache.path().join(self.cached_folder());
        folder.join("refs").join(self.id.revision())
    }

    fn cached_folder(&self) -> String {
        self.repo(self.id.revision()).folder_name()
    }

    /// The commit that the revision was when it was last asked for, or the revision itself if it is a commit.
    fn commit(&self) -> Option<String> {
        let noted = fs::read_to_string(self.refs()).ok();
        let noted = noted.map(|commit| commit.trim().to_string());
        let commit = noted.unwrap_or_else(|| self.id.revision().into());
        is_part(&commit).then_some(commit)
    }

    /// The folder with all files of the model, if it is in the cache.
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

/// What is missing where nothing is there.
fn nothing() -> Vec<String> {
    vec!["config.json".into(), "model.safetensors".into()]
}

/// The files without which no model can be loaded from the folder `dir`. A link to a download that was never finished counts as missing.
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
            // It is there and damaged: the checkpoint's error says how.
            Err(_) => needed.push(index),
        },
        None => needed.push("model.safetensors".into()),
    }
    needed.sort();
    needed.dedup();
    needed.retain(|name| !dir.join(name).exists());
    needed
}
