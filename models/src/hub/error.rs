//! Why a model cannot be had from the hub: [`HubError`].

use std::{io, path::PathBuf};

use hf_hub::api::sync::ApiError;

use super::ModelId;
use crate::checkpoint::CheckpointError;

/// Why a model cannot be had from the hub, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A name is not of the form that the hub uses.
    #[error("expected {expected}, found {found:?}")]
    InvalidId {
        /// The form.
        expected: &'static str,
        /// The name.
        found: String,
    },
    /// The hub does not know the model, its revision or one of its files.
    #[error("{endpoint}: expected {what} of {id}, found nothing (404)")]
    NotFound {
        /// The hub.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// The model.
        id: ModelId,
    },
    /// The hub keeps the model from this user, or does not know it: it does not tell these apart.
    #[error("{endpoint}: expected access to {id}, found {status}: {}", hint(*token_sent))]
    Refused {
        /// The hub.
        endpoint: String,
        /// The model.
        id: ModelId,
        /// The status of HTTP.
        status: u16,
        /// Whether the request carried a token.
        token_sent: bool,
    },
    /// The repository has no weights that can be read.
    #[error(
        "{id}: expected model.safetensors, pytorch_model.bin, the index of either, or one other *.safetensors file, found {found}"
    )]
    NoWeights {
        /// The model.
        id: ModelId,
        /// The files that the repository has.
        found: String,
    },
    /// The model is not in the cache, and the network may not be asked.
    #[error(
        "{id}: expected {missing} in {}, found no such file, and HF_HUB_OFFLINE forbids the download; run once without it, or copy the cache \
         from a machine that has the model",
        cache_dir.display()
    )]
    Offline {
        /// The model.
        id: ModelId,
        /// The cache.
        cache_dir: PathBuf,
        /// The files that are missing.
        missing: String,
    },
    /// A request failed.
    #[error("{endpoint}: expected {what} of {id}, found a failure: {error}")]
    Request {
        /// The hub.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// The model.
        id: ModelId,
        /// What went wrong.
        error: ApiError,
    },
    /// A file came in another length than the hub announced; it was deleted.
    #[error("{id}: {file}: expected {expected} bytes, found {found}; try again")]
    Incomplete {
        /// The model.
        id: ModelId,
        /// The file.
        file: String,
        /// The announced length.
        expected: u64,
        /// The length of what came.
        found: u64,
    },
    /// The hub answers with something that cannot be used.
    #[error("{endpoint}: {id}: expected {expected}, found {found:?}")]
    Answer {
        /// The hub.
        endpoint: String,
        /// The model.
        id: ModelId,
        /// What would have been right.
        expected: &'static str,
        /// What the hub says.
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
        /// What the operating system says.
        error: io::Error,
    },
    /// Nothing says where the cache is.
    #[error(
        "expected HF_HOME, HF_HUB_CACHE or a home folder for the cache of models, found none of them"
    )]
    NoCache,
    /// A name is neither a folder nor a model on the hub.
    #[error("{spec:?}: {folder}; and as a model on the hub: {hub}")]
    Unresolved {
        /// The name.
        spec: String,
        /// Why it is not a folder.
        folder: &'static str,
        /// Why it is not a model on the hub.
        hub: Box<HubError>,
    },
}

impl HubError {
    /// Whether there was no talking to the hub at all.
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
        "the model does not exist, or the account of the token in HF_TOKEN has not been given access on its page"
    } else {
        "the model does not exist, or it needs a token: set HF_TOKEN"
    }
}
