//! The functions and blocks that transformers adds to jinja2.

use std::{error::Error as _, fmt};

use minijinja::{
    Error, ErrorKind,
    value::{Kwargs, Value},
};

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

/// Implements `tojson(indent=None, ensure_ascii=False)`.
///
/// It is Python's `json.dumps`. Unlike jinja2's own filter, it does not escape HTML.
pub(super) fn tojson(
    value: &Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson: expected ensure_ascii=False, found True",
        ));
    }
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    options.assert_all_used()?;
    let json =
        minijinja::filters::tojson(value, indent, Kwargs::from_iter([] as [(&str, Value); 0]))?;
    Ok(Value::from(without_html_escapes(
        json.as_str().unwrap_or_default(),
    )))
}

/// Restores `<`, `>`, `&` and `'` in JSON.
fn without_html_escapes(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let escapes = [
            ("\\u003c", "<"),
            ("\\u003e", ">"),
            ("\\u0026", "&"),
            ("\\u0027", "'"),
        ];
        let (taken, text) = match escapes.iter().find(|(escape, _)| rest.starts_with(escape)) {
            Some(&(escape, text)) => (escape.len(), text),
            // Skips both characters of another escape: the second of `\\` begins no escape.
            None => {
                let taken = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                (taken, &rest[..taken])
            }
        };
        out.push_str(text);
        rest = &rest[taken..];
    }
    out.push_str(rest);
    out
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
