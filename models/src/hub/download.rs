//! Downloads a model into the cache.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};

use super::{
    HubError, HubOptions, ModelId,
    cache::{CachedModel, is_gguf},
    model_id::is_part,
};
use crate::{
    checkpoint::{WeightFiles, read_index},
    progress::Progress,
};

/// The files beside the weights. Only the first is in every repository.
const SMALL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// Downloads the files of a model that the cache lacks, and returns its folder or GGUF file.
///
/// All files come from the current commit of the revision. The cache records that commit last, so
/// an interrupted download is never used as a model.
pub(super) fn download(
    id: &ModelId,
    cached: &CachedModel,
    options: &HubOptions,
) -> Result<PathBuf, HubError> {
    let request = |what: &str, error| request_error(id, options, what, error);
    let api = ApiBuilder::from_cache(cached.cache().clone())
        .with_endpoint(options.endpoint.clone())
        .with_token(options.token.clone())
        .with_progress(false)
        .build()
        .map_err(|error| request("a connection", error))?;
    let info = with_retries(options.retries, || {
        api.repo(cached.repo(id.revision())).info()
    })
    .map_err(|error| request("the list of files", error))?;
    // Checked because it becomes the name of a folder.
    if !is_part(&info.sha) {
        return Err(HubError::Answer {
            endpoint: options.endpoint.clone(),
            id: id.clone(),
            expected: "a commit",
            found: info.sha,
        });
    }
    let names: Vec<_> = info.siblings.iter().map(|file| &*file.rfilename).collect();
    // Folders inside a repository have other variants of the model.
    let top = names.iter().copied().filter(|name| is_part(name));
    let weights = match id.quantization() {
        None => WeightFiles::choose(top),
        Some(_) => None,
    };
    let download = Download {
        id,
        options,
        repo: api.repo(cached.repo(&info.sha)),
        api,
        cached,
        dir: cached.snapshot(&info.sha),
    };
    let Some(weights) = weights else {
        let path = download.gguf(&names)?;
        cached.set_commit(&info.sha)?;
        return Ok(path);
    };
    for file in SMALL_FILES {
        if file == "config.json" || names.contains(&file) {
            download.file(file)?;
        }
    }
    match weights {
        WeightFiles::Single(file) => download.file(&file)?,
        WeightFiles::Sharded(index) => {
            download.file(&index)?;
            let mut shards: Vec<_> = read_index(&download.dir.join(index))?
                .into_values()
                .collect();
            shards.sort();
            shards.dedup();
            for shard in shards {
                download.file(&shard)?;
            }
        }
    }
    cached.set_commit(&info.sha)?;
    Ok(download.dir)
}

/// The download of one commit of a model.
struct Download<'a> {
    id: &'a ModelId,
    options: &'a HubOptions,
    api: Api,
    repo: ApiRepo,
    cached: &'a CachedModel,
    /// The folder of its files.
    dir: PathBuf,
}

impl Download<'_> {
    /// Downloads the GGUF model among the files `names` of the repository, and returns its first
    /// file.
    fn gguf(&self, names: &[&str]) -> Result<PathBuf, HubError> {
        let ggufs: Vec<_> = names.iter().copied().filter(|name| is_gguf(name)).collect();
        let files = self.id.gguf_files(&ggufs)?;
        let Some(first) = files.first() else {
            if names.contains(&"adapter_config.json") {
                return Err(HubError::Adapter {
                    id: self.id.clone(),
                });
            }
            return Err(HubError::NoWeights {
                id: self.id.clone(),
                found: names.join(", "),
            });
        };
        for file in &files {
            self.file(file)?;
        }
        Ok(self.dir.join(first))
    }

    /// Downloads one file into the cache, unless it is there.
    fn file(&self, file: &str) -> Result<(), HubError> {
        let path = self.dir.join(file);
        if path.exists() {
            return Ok(());
        }
        let announced = Cell::new(0);
        let get = || {
            let meter = Meter {
                announced: &announced,
                progress: None,
            };
            self.repo.download_with_progress(file, meter)
        };
        let got = match with_retries(self.options.retries, get) {
            // A partial file with at least the full length cannot be resumed: the download ended
            // just before the file was renamed.
            Err(error) if is_beyond_end(&error) => {
                self.forget_part(file);
                get()
            }
            other => other,
        };
        let got = got.map_err(|error| request_error(self.id, self.options, file, error))?;
        if got != path {
            return Err(HubError::Answer {
                endpoint: self.options.endpoint.clone(),
                id: self.id.clone(),
                expected: "the file at the requested commit",
                found: got.display().to_string(),
            });
        }
        self.check_length(file, &path, announced.get())
    }

    /// Deletes a file whose length differs from the announced one. A proxy can end an answer early,
    /// or ignore the requested range.
    fn check_length(&self, file: &str, path: &Path, expected: u64) -> Result<(), HubError> {
        let cache = |error| HubError::Cache {
            path: path.into(),
            error,
        };
        let found = fs::metadata(path).map_err(cache)?.len();
        if found == expected {
            return Ok(());
        }
        // The path is a link to the content.
        fs::remove_file(fs::canonicalize(path).map_err(cache)?).map_err(cache)?;
        if fs::symlink_metadata(path).is_ok() {
            fs::remove_file(path).map_err(cache)?;
        }
        Err(HubError::Incomplete {
            id: self.id.clone(),
            file: file.into(),
            expected,
            found,
        })
    }

    /// Deletes the partial file of an earlier download. If that fails, the next request fails too.
    fn forget_part(&self, file: &str) {
        if let Ok(metadata) = self.api.metadata(&self.repo.url(file)) {
            let repo = self
                .cached
                .cache()
                .repo(self.cached.repo(metadata.commit_hash()));
            let part = repo.blob_path(metadata.etag()).with_extension("part");
            let _ = fs::remove_file(part);
        }
    }
}

/// Receives the reports of `hf-hub` on a download: the announced length, and each chunk.
struct Meter<'a> {
    announced: &'a Cell<u64>,
    progress: Option<Progress>,
}

impl hf_hub::api::Progress for Meter<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        self.announced.set(size as u64);
        self.progress = Some(Progress::bytes(filename.to_string(), size as u64));
    }

    fn update(&mut self, size: usize) {
        if let Some(progress) = &self.progress {
            progress.inc(size as u64);
        }
    }

    fn finish(&mut self) {
        self.progress = None;
    }
}

/// Calls `attempt`, and again up to `retries` times while it fails for a transient reason.
fn with_retries<T>(
    retries: usize,
    mut attempt: impl FnMut() -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let mut pause = Duration::from_millis(250);
    for _ in 0..retries {
        match attempt() {
            Err(error) if is_transient(&error) => tracing::debug!("{error}; trying again"),
            result => return result,
        }
        thread::sleep(pause);
        pause *= 2;
    }
    attempt()
}

fn is_transient(error: &ApiError) -> bool {
    use ureq::Error::*;
    match error {
        ApiError::IoError(_) => true,
        ApiError::RequestError(error) => matches!(
            **error,
            Io(_) | Timeout(_) | ConnectionFailed | Protocol(_) | StatusCode(429 | 500..=599)
        ),
        _ => false,
    }
}

fn is_beyond_end(error: &ApiError) -> bool {
    match error {
        ApiError::InvalidResume => true,
        ApiError::RequestError(error) => matches!(**error, ureq::Error::StatusCode(416)),
        _ => false,
    }
}

fn request_error(id: &ModelId, options: &HubOptions, what: &str, error: ApiError) -> HubError {
    let endpoint = options.endpoint.clone();
    let (id, what) = (id.clone(), what.to_string());
    let status = match &error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    };
    match status {
        Some(404) => HubError::NotFound { endpoint, what, id },
        Some(status @ (401 | 403)) => HubError::Refused {
            endpoint,
            id,
            status,
            token_sent: options.token.is_some(),
        },
        _ => HubError::Request {
            endpoint,
            what,
            id,
            error,
        },
    }
}
