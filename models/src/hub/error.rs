//! Errors of the hub: [`HubError`].

use std::{io, path::PathBuf};

use hf_hub::api::sync::ApiError;

use super::ModelId;
use crate::checkpoint::CheckpointError;

/// The reason why a model is not available from the hub, and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A name does not have the form of the hub.
    #[error("expected {expected}, found {found:?}")]
    InvalidId {
        /// The expected form.
        expected: &'static str,
        /// The name.
        found: String,
    },
    /// The hub does not have the model, its revision or one of its files.
    #[error("{endpoint}: expected {what} of {id}, found nothing (404)")]
    NotFound {
        /// The hub.
        endpoint: String,
        /// The requested file or list.
        what: String,
        /// The model.
        id: ModelId,
    },
    /// The hub denies access to the model, or does not have it: its answer is the same for both.
    #[error("{endpoint}: expected access to {id}, found {status}: {}", hint(*token_sent))]
    Refused {
        /// The hub.
        endpoint: String,
        /// The model.
        id: ModelId,
        /// The HTTP status.
        status: u16,
        /// Whether the request carried a token.
        token_sent: bool,
    },
    /// The repository has no weights in a supported format.
    #[error(
        "{id}: expected model.safetensors, pytorch_model.bin, the index of either, \
         one other *.safetensors file, or *.gguf, found {found}"
    )]
    NoWeights {
        /// The model.
        id: ModelId,
        /// The files of the repository.
        found: String,
    },
    /// The id does not determine one of the GGUF models of a repository.
    #[error(
        "{id}: expected the name of one GGUF model, as in {}:Q4_K_M, found {found}",
        id.repo()
    )]
    SeveralGguf {
        /// The id.
        id: ModelId,
        /// The models of the repository.
        found: String,
    },
    /// The repository has an adapter (PEFT) in place of a model.
    #[error("{id}: expected a model, found an adapter (LoRA); merge it with its base model first")]
    Adapter {
        /// The model.
        id: ModelId,
    },
    /// The model is not in the cache, and network access is forbidden.
    #[error(
        "{id}: expected {missing} in {}, found no such file, and HF_HUB_OFFLINE forbids the \
         download; run once without it, or copy the cache from a machine that has the model",
        cache_dir.display()
    )]
    Offline {
        /// The model.
        id: ModelId,
        /// The cache.
        cache_dir: PathBuf,
        /// The missing files.
        missing: String,
    },
    /// A request failed.
    #[error("{endpoint}: expected {what} of {id}, found a failure: {error}")]
    Request {
        /// The hub.
        endpoint: String,
        /// The requested file or list.
        what: String,
        /// The model.
        id: ModelId,
        /// The reason.
        error: ApiError,
    },
    /// The length of a downloaded file differs from the announced one. The file was deleted.
    #[error("{id}: {file}: expected {expected} bytes, found {found}; try again")]
    Incomplete {
        /// The model.
        id: ModelId,
        /// The file.
        file: String,
        /// The announced length.
        expected: u64,
        /// The length of the download.
        found: u64,
    },
    /// The answer of the hub is unusable.
    #[error("{endpoint}: {id}: expected {expected}, found {found:?}")]
    Answer {
        /// The hub.
        endpoint: String,
        /// The model.
        id: ModelId,
        /// The expected answer.
        expected: &'static str,
        /// The answer.
        found: String,
    },
    /// The index of shards is damaged.
    #[error(transparent)]
    Index(#[from] CheckpointError),
    /// A file of the cache cannot be read or written.
    #[error("{}: {error}", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The environment does not determine the folder of the cache.
    #[error(
        "expected HF_HOME, HF_HUB_CACHE, XDG_CACHE_HOME or a home folder for the cache of models, found none of them"
    )]
    NoCache,
    /// A name is neither a file or folder nor a model on the hub.
    #[error("{spec:?}: no such file or folder; and as a model on the hub: {hub}")]
    Unresolved {
        /// The name.
        spec: String,
        /// The reason why it is not a model on the hub.
        hub: Box<HubError>,
    },
}

impl HubError {
    /// Returns whether the hub could not be reached.
    pub(super) fn is_connection(&self) -> bool {
        let Self::Request { error, .. } = self else {
            return false;
        };
        match error {
            ApiError::RequestError(error) => matches!(
                **error,
                ureq::Error::Io(_)
                    | ureq::Error::Timeout(_)
                    | ureq::Error::HostNotFound
                    | ureq::Error::ConnectionFailed
            ),
            _ => false,
        }
    }
}

fn hint(token_sent: bool) -> &'static str {
    if token_sent {
        "the model does not exist, or the account of the token in HF_TOKEN \
         has not been given access on its page"
    } else {
        "the model does not exist, or it needs a token: set HF_TOKEN"
    }
}
