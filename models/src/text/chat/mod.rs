//! Conversations as the text that a chat checkpoint was trained on.
//!
//! A checkpoint brings its format as a Jinja template written for Python's jinja2 in the set-up of Hugging Face transformers. The
//! templates are run as they are, by minijinja with the same set-up, instead of being recognized and re-implemented one by
//! one: what a template says about roles, dates and errors then holds here too.

mod error;
mod files;
mod functions;
mod message;
mod strftime;
mod template;

pub use error::ChatTemplateError;
pub use message::ChatMessage;
pub use template::ChatTemplate;
