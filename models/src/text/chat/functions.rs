//! The functions and blocks that transformers adds to jinja2.

use std::{error::Error as _, fmt};

use minijinja::{Error, ErrorKind, value::Value};

/// The argument of `raise_exception`, as a cause in the chain of an error.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// Implements `raise_exception(message)`.
pub(super) fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// Returns the message of the `raise_exception` that caused `error`, if one did.
pub(super) fn raised(error: &Error) -> Option<String> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        cause = error.source();
    }
    None
}

/// Replaces `{% generation %}` blocks by `{% if true %}`, which renders the same.
///
/// transformers marks the model's own tokens for training with these blocks. They are a jinja2
/// extension, and minijinja does not support extensions.
pub(super) fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let word = tag[..end].trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        let plain = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&tag[..end].replacen(word, plain, 1));
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}
