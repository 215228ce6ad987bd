//! Python's operator `%` after a string literal, as in `'%d of %d' % (1, 2)`.
//!
//! minijinja computes a remainder only. The operator becomes a filter before the template is
//! compiled.

use minijinja::{Error, State, value::Value};

/// The name of the filter, which no template has for another one.
pub(super) const FILTER: &str = "__percent";

/// The deepest nesting of operators that is rewritten, less than the stack allows.
const MAX_DEPTH: usize = 32;

/// Formats `format` with the items of a tuple, with a mapping, or with one value.
pub(super) fn format(
    state: &mut State<'_, '_>,
    format: &Value,
    operand: &Value,
) -> Result<Value, Error> {
    let mut arguments = vec![format.clone()];
    match operand.is_tuple() {
        true => arguments.extend(operand.try_iter()?),
        false => arguments.push(operand.clone()),
    }
    state.apply_filter("format", &arguments)
}

/// Replaces `'text' % operand` by a filter in every expression of a template.
pub(in super::super) fn rewrite(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let length = match tag.get(..2) {
            Some("{#") => tag.find("#}").map(|end| end + 2),
            Some("{%") if is_raw(tag) => tag.find("endraw"),
            Some("{{" | "{%") => {
                let end = if tag.starts_with("{{") { "}}" } else { "%}" };
                let end = find_end(&tag[2..], end);
                out.push_str(&tag[..2]);
                out.push_str(&expression(&tag[2..2 + end], 0));
                rest = &tag[2 + end..];
                continue;
            }
            _ => Some(1),
        };
        let (taken, next) = tag.split_at(length.unwrap_or(tag.len()));
        out.push_str(taken);
        rest = next;
    }
    out.push_str(rest);
    out
}

fn is_raw(tag: &str) -> bool {
    let word = tag[2..].trim_start_matches(['-', '+', ' ', '\t', '\n']);
    word.starts_with("raw") && !word[3..].starts_with(|char: char| char.is_alphanumeric())
}

/// Rewrites the inside of one tag, or an operand inside of `depth` others.
fn expression(text: &str, depth: usize) -> String {
    if depth > MAX_DEPTH {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['\'', '"']) {
        out.push_str(&rest[..at]);
        // A product to the left would come first, but a filter binds tighter.
        let is_factor = out.trim_end().ends_with(['*', '/', '%']);
        let (literal, mut next) = rest[at..].split_at(string_length(&rest[at..]));
        out.push_str(literal);
        while let Some(operand) = operator(next).filter(|_| !is_factor) {
            let (operand, behind) = operand.split_at(operand_length(operand));
            out.push_str(&format!(" | {FILTER}({})", expression(operand, depth + 1)));
            next = behind;
        }
        rest = next;
    }
    out.push_str(rest);
    out
}

/// Returns the text behind the operator `%`, if `text` begins with it.
fn operator(text: &str) -> Option<&str> {
    let operand = text.trim_start().strip_prefix('%')?.trim_start();
    (!operand.is_empty()).then_some(operand)
}

/// Returns the length of a sign, a value, and the attributes, items, calls and filters behind it.
fn operand_length(text: &str) -> usize {
    let is_word = |char: char| char.is_alphanumeric() || char == '_' || char == '.';
    let word = |text: &str| text.find(|char| !is_word(char)).unwrap_or(text.len());
    let mut at = text.len() - text.trim_start_matches(['-', '+', ' ']).len();
    at += match text[at..].chars().next() {
        Some('\'' | '"') => string_length(&text[at..]),
        Some('(' | '[' | '{') => group_length(&text[at..]),
        _ => word(&text[at..]),
    };
    loop {
        let space = text[at..].len() - text[at..].trim_start().len();
        let next = &text[at + space..];
        at += match next.chars().next() {
            Some('(' | '[') => space + group_length(next),
            Some('.') => space + word(next),
            Some('|') => {
                let name = next[1..].trim_start();
                space + next.len() - name.len() + word(name)
            }
            _ => return at,
        };
    }
}

/// Returns the length of the string literal that `text` begins with.
fn string_length(text: &str) -> usize {
    let quote = text.chars().next();
    let mut escaped = false;
    for (at, char) in text.char_indices().skip(1) {
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if Some(char) == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Returns the length of the brackets that `text` begins with, and of the text inside.
fn group_length(text: &str) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(char) = text[at..].chars().next() {
        match char {
            '\'' | '"' => {
                at += string_length(&text[at..]);
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        at += char.len_utf8();
        if depth == 0 {
            break;
        }
    }
    at
}

/// Returns the place of `end` outside of string literals and braces, or the length of `text`.
fn find_end(text: &str, end: &str) -> usize {
    let mut at = 0;
    while let Some(char) = text[at..].chars().next() {
        at += match char {
            _ if text[at..].starts_with(end) => return at,
            '\'' | '"' => string_length(&text[at..]),
            '{' => group_length(&text[at..]),
            _ => char.len_utf8(),
        };
    }
    text.len()
}
