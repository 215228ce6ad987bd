//! Downloads models from the Hugging Face hub.
//!
//! [`fetch`] downloads the files that a model needs into the cache that other tools of the hub
//! share (the layout of `hf-hub`), all from one commit. It returns the folder for
//! [`Checkpoint::open`](crate::checkpoint::Checkpoint::open). Files in the cache are used without a
//! request. [`resolve_model`] takes the input of a user: a folder, or a name on the hub.
//!
//! The environment variables are those of the hub's own tools, such as `HF_HOME`, `HF_HUB_CACHE`,
//! `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE`; see [`HubOptions::from_env`].

mod cache;
mod download;
mod error;
mod model_id;
mod options;

use std::path::{Path, PathBuf};

pub use error::HubError;
pub use model_id::ModelId;
pub use options::HubOptions;

use cache::{CachedModel, Missing};

/// Returns the folder of the model `model_id` (`org/name` or `org/name@revision`), or its GGUF
/// file. Downloads it if it is not in the cache.
///
/// `org/name:Q4_K_M` is the GGUF model of this quantisation in a repository. A repository with one
/// GGUF model and no other weights needs no quantisation.
///
/// `revision` is a branch, a tag or a commit, and overrides one in the id. The default is `main`.
///
/// # Errors
/// If the id is malformed, the hub does not have the model or denies access to it, the model has no
/// weights in safetensors, for PyTorch or in GGUF, or several in GGUF, the download fails, or the
/// model is not in the cache and `options` forbid network access.
pub fn fetch(
    model_id: &str,
    revision: Option<&str>,
    options: &HubOptions,
) -> Result<PathBuf, HubError> {
    let id = ModelId::parse(model_id, revision)?;
    let cached = CachedModel::new(&options.cache_dir, &id);
    let usable = match cached.look_up() {
        Ok(dir) => return Ok(dir),
        Err(Missing { usable, .. }) if !options.offline => usable,
        // The missing files are optional, and offline nothing can tell whether the model has them.
        Err(Missing {
            usable: Some(dir), ..
        }) => return Ok(dir),
        Err(Missing { files, .. }) => {
            cached.check_gguf()?;
            return Err(HubError::Offline {
                id,
                cache_dir: options.cache_dir.clone(),
                missing: files.join(", "),
            });
        }
    };
    match (download::download(&id, &cached, options), usable) {
        (Err(error), Some(dir)) if error.is_connection() => {
            tracing::warn!("{error}; continuing with the files in {}", dir.display());
            Ok(dir)
        }
        (result, _) => result,
    }
}

/// Returns the folder or file that `spec` stands for: an existing one, or a model on the hub, with
/// the options of the environment.
///
/// # Errors
/// If it is neither. The error has both reasons.
pub fn resolve_model(spec: &str) -> Result<PathBuf, HubError> {
    resolve(spec, |spec| fetch(spec, None, &HubOptions::from_env()?))
}

/// As [`resolve_model`], with `options` instead of those of the environment.
///
/// # Errors
/// As [`resolve_model`].
pub fn resolve_model_with(spec: &str, options: &HubOptions) -> Result<PathBuf, HubError> {
    resolve(spec, |spec| fetch(spec, None, options))
}

fn resolve(
    spec: &str,
    fetch: impl FnOnce(&str) -> Result<PathBuf, HubError>,
) -> Result<PathBuf, HubError> {
    let path = Path::new(spec);
    // Opening the checkpoint reports what is wrong with a file.
    if path.exists() {
        return Ok(path.into());
    }
    fetch(spec).map_err(|hub| HubError::Unresolved {
        spec: spec.into(),
        hub: Box::new(hub),
    })
}
