//! Errors of chat templates: [`ChatTemplateError`].

use crate::config::ConfigError;

/// An error in loading or rendering a chat template.
#[derive(Debug, thiserror::Error)]
pub enum ChatTemplateError {
    /// A file of the checkpoint is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The template is not valid Jinja, or minijinja does not support it.
    #[error("{origin}: cannot be compiled: {error}")]
    Compile {
        /// The source of the template.
        origin: String,
        /// The position and the reason.
        error: minijinja::Error,
    },
    /// The template fails on this conversation.
    #[error("{origin}: cannot be rendered: {error}")]
    Render {
        /// The source of the template.
        origin: String,
        /// The position and the reason.
        error: minijinja::Error,
    },
    /// The template rejects this conversation with `raise_exception`.
    #[error("{origin}: the template does not allow this conversation: {message}")]
    Refused {
        /// The source of the template.
        origin: String,
        /// The message of the template.
        message: String,
    },
    /// No template has the requested name.
    #[error(
        "{origin}: chat template: expected the name {expected:?}, found {}",
        names(available)
    )]
    UnknownName {
        /// The files with templates, or the folder of a checkpoint without any.
        origin: String,
        /// The requested name.
        expected: String,
        /// The names of the templates in the checkpoint.
        available: Vec<String>,
    },
}

fn names(available: &[String]) -> String {
    match available {
        [] => "no chat template".to_owned(),
        names => names.join(", "),
    }
}
