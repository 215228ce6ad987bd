//! What goes wrong with chat templates.

use crate::text::config_file::ConfigFileError;

/// Why a conversation could not be written as text.
#[derive(Debug, thiserror::Error)]
pub enum ChatTemplateError {
    /// A file of the checkpoint is wrong.
    #[error(transparent)]
    Config(#[from] ConfigFileError),
    /// The template is no Jinja, or uses what minijinja does not know.
    #[error("{origin}: cannot be compiled: {error}")]
    Compile {
        /// Where the template came from.
        origin: String,
        /// Where and why.
        error: minijinja::Error,
    },
    /// The template fails on this conversation.
    #[error("{origin}: cannot be rendered: {error}")]
    Render {
        /// Where the template came from.
        origin: String,
        /// Where and why.
        error: minijinja::Error,
    },
    /// The template refuses this conversation (`raise_exception`).
    #[error("{origin}: the template does not allow this conversation: {message}")]
    Refused {
        /// Where the template came from.
        origin: String,
        /// What the template says.
        message: String,
    },
    /// There is no template of that name.
    #[error(
        "{folder}: chat template: expected the name {expected:?}, found {}",
        names(available)
    )]
    UnknownName {
        /// The checkpoint's folder.
        folder: String,
        /// The name that was asked for.
        expected: String,
        /// The names that are there.
        available: Vec<String>,
    },
}

fn names(available: &[String]) -> String {
    match available {
        [] => "no chat template".to_owned(),
        names => names.join(", "),
    }
}
