//! Python's `json.dumps` as the filter `tojson`.

use std::fmt::Write as _;

use minijinja::{
    Error, State,
    value::{Rest, Value, ValueKind, ValueOrKwargs},
};

use super::{bind, charge, charge_copies, float, integer, invalid, text};

/// The deepest nesting, less than the stack allows.
const MAX_DEPTH: usize = 200;

/// Implements `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, the
/// filter of transformers. Unlike the one of jinja2, it does not escape HTML.
pub(super) fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    args: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [mut ensure_ascii, mut indent, separators, sort_keys] = bind(&args.into_values(), names)?;
    // The first parameter of jinja2's own filter is the indentation.
    let is_number = |value: &Value| value.kind() == ValueKind::Number;
    if indent.is_none() && ensure_ascii.as_ref().is_some_and(is_number) {
        indent = ensure_ascii.take();
    }
    let indent = match &indent {
        Some(indent) if indent.as_str().is_some() => text(Some(indent))?.map(str::to_owned),
        indent => match integer(indent.as_ref())? {
            Some(width) => {
                let width = usize::try_from(width).unwrap_or(0);
                charge_copies(state, width)?;
                Some(" ".repeat(width))
            }
            None => None,
        },
    };
    let (item, key) = match separators {
        Some(pair) => {
            let pair: Vec<Value> = pair.try_iter()?.collect();
            let part = |at: usize| -> Result<String, Error> {
                let part = text(pair.get(at))?;
                part.map(str::to_owned)
                    .ok_or_else(|| invalid("tojson: separators: expected two strings"))
            };
            (part(0)?, part(1)?)
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let is_set = |option: Option<Value>| option.is_some_and(|value| value.is_true());
    let mut writer = Writer {
        state,
        out: String::new(),
        ensure_ascii: is_set(ensure_ascii),
        sort_keys: is_set(sort_keys),
        indent,
        item,
        key,
    };
    writer.value(value, 0)?;
    Ok(Value::from(writer.out))
}

struct Writer<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    out: String,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    /// The separator of items.
    item: String,
    /// The separator of a key and its value.
    key: String,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!(
                "tojson: expected at most {MAX_DEPTH} levels"
            )));
        }
        match value.kind() {
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => match scalar(value) {
                Some(text) => self.out.push_str(&text),
                None => return Err(unexpected(value)),
            },
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item)).collect();
                self.container(['[', ']'], items, depth)?;
            }
            ValueKind::Map => {
                let pairs = value
                    .as_object()
                    .and_then(|object| object.try_iter_pairs())
                    .ok_or_else(|| unexpected(value))?;
                let mut pairs: Vec<_> = pairs.map(|(key, value)| (Some(key), value)).collect();
                if self.sort_keys {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.container(['{', '}'], pairs, depth)?;
            }
            _ => return Err(unexpected(value)),
        }
        Ok(())
    }

    /// Writes the items of a list, or the pairs of a mapping.
    fn container(
        &mut self,
        [open, close]: [char; 2],
        items: Vec<(Option<Value>, Value)>,
        depth: usize,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (index, (key, value)) in items.iter().enumerate() {
            // A list may hold itself many times, so the result is paid for while it grows.
            charge(self.state, 64 + self.item.len() + self.key.len())?;
            if index > 0 {
                self.out.push_str(&self.item);
            }
            self.line(depth + 1)?;
            if let Some(key) = key {
                let text = match key.as_str() {
                    Some(key) => key.to_owned(),
                    None => scalar(key).ok_or_else(|| unexpected(key))?,
                };
                self.string(&text);
                self.out.push_str(&self.key);
            }
            self.value(value, depth + 1)?;
        }
        if !items.is_empty() {
            self.line(depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    /// Begins a line of the indentation `depth`.
    fn line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            charge_copies(self.state, depth.saturating_mul(indent.len()))?;
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for char in text.chars() {
            match char {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                ' '..='~' => self.out.push(char),
                '\0'..' ' => self.escape(char),
                _ if self.ensure_ascii => self.escape(char),
                _ => self.out.push(char),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, char: char) {
        for unit in char.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            let _ = write!(self.out, "\\u{unit:04x}");
        }
    }
}

/// Returns the JSON of a value without items; `None` for others.
fn scalar(value: &Value) -> Option<String> {
    match value.kind() {
        ValueKind::None => Some("null".into()),
        ValueKind::Bool => Some(if value.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => Some(match float(value).as_deref() {
            Some("nan") => "NaN".into(),
            Some("inf") => "Infinity".into(),
            Some("-inf") => "-Infinity".into(),
            Some(number) => number.into(),
            None => value.to_string(),
        }),
        _ => None,
    }
}

fn unexpected(value: &Value) -> Error {
    invalid(format!("tojson: {} has no form in JSON", value.kind()))
}
