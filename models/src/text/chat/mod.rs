//! Chat templates: the text format of conversations that a checkpoint was trained on.
//!
//! A checkpoint contains its format as a Jinja template, written for Python's jinja2 as Hugging
//! Face transformers configures it. minijinja renders the template with the same configuration, so
//! its rules for roles, dates and errors apply unchanged.

mod error;
mod files;
mod functions;
mod message;
mod python;
mod strftime;
mod template;

pub use error::ChatTemplateError;
pub use message::ChatMessage;
pub use template::ChatTemplate;
