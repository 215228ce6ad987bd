//! Models by their name on the Hugging Face hub.
//!
//! [`fetch`] brings the files that a model needs into the cache that other tools of the hub share (the layout of `hf-hub`), all of them from
//! one commit, and returns the folder that [`Checkpoint::open`](crate::checkpoint::Checkpoint::open) opens. What is in the cache is used
//! without asking the network. [`resolve_model`] takes what a user typed: a folder, or a name on the hub.
//!
//! The environment decides as it does for the hub's own tools: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE`;
//! see [`HubOptions::from_env`].

mod cache;
mod download;
mod error;
mod model_id;
mod options;

use std::path::{Path, PathBuf};

pub use error::HubError;
pub use model_id::ModelId;
pub use options::HubOptions;

use crate::checkpoint::gguf::Gguf;
use cache::{CachedModel, Missing};

/// The folder of the model `model_id` (`org/name` or `org/name@revision`), downloaded if it is not in the cache. `revision` is a branch, a
/// tag or a commit, and goes before one in the id; without either it is `main`.
///
/// # Errors
///
/// If the id is not of that form, if the hub does not know the model or does not let this user have it, if it has no weights in safetensors or for PyTorch,
/// if the download fails, or if the model is not in the cache and `options` forbid to ask the network.
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
        // Not every model has what is missing here, and offline there is no asking.
        Err(Missing {
            usable: Some(dir), ..
        }) => return Ok(dir),
        Err(Missing { files, .. }) => {
            return Err(HubError::Offline {
                id,
                cache_dir: options.cache_dir.clone(),
                missing: files.join(", "),
            });
        }
    };
    match (download::download(&id, &cached, options), usable) {
        (Err(error), Some(dir)) if error.is_connection() => {
            tracing::warn!("{error}; going on with what is in {}", dir.display());
            Ok(dir)
        }
        (result, _) => result,
    }
}

/// The folder or GGUF file that `spec` means: an existing one, or else a model on the hub under the options of the environment.
///
/// # Errors
///
/// If it is neither; the error says why for both.
pub fn resolve_model(spec: &str) -> Result<PathBuf, HubError> {
    resolve(spec, |spec| fetch(spec, None, &HubOptions::from_env()?))
}

/// As [`resolve_model`], under `options` instead of those of the environment.
///
/// # Errors
///
/// As [`resolve_model`].
pub fn resolve_model_with(spec: &str, options: &HubOptions) -> Result<PathBuf, HubError> {
    resolve(spec, |spec| fetch(spec, None, options))
}

fn resolve(
    spec: &str,
    fetch: impl FnOnce(&str) -> Result<PathBuf, HubError>,
) -> Result<PathBuf, HubError> {
    let path = Path::new(spec);
    if path.is_dir() || Gguf::locate(path).is_some() {
        return Ok(path.into());
    }
    let folder = if path.exists() {
        "a file, not a folder"
    } else {
        "no such folder"
    };
    fetch(spec).map_err(|hub| HubError::Unresolved {
        spec: spec.into(),
        folder,
        hub: Box::new(hub),
    })
}
