//! Methods of Python's types.

use minijinja::{
    Error, ErrorKind, State,
    value::{Tuple, Value, ValueKind},
};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{bind, charge, charge_copies, float, integer, invalid, text};

/// Calls a method that minijinja does not know.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let known = match value.kind() {
        ValueKind::String => {
            let receiver = value.as_str().unwrap_or_default();
            // Searching a long text costs time without making a longer one.
            charge(state, receiver.len())?;
            match search(receiver, method, args)? {
                None => string(state, receiver, method, args)?,
                found => found,
            }
        }
        ValueKind::Seq => sequence(value, method, args)?,
        ValueKind::Map if method == "copy" => {
            let [] = bind(args, [])?;
            Some(value.clone())
        }
        ValueKind::Number if method == "is_integer" => {
            let [] = bind(args, [])?;
            let number = f64::try_from(value.clone()).ok();
            let whole = number.is_some_and(|number| number.fract() == 0.0);
            Some(Value::from(float(value).is_none() || whole))
        }
        _ => None,
    };
    match known {
        Some(result) => Ok(result),
        None => unknown_method_callback(state, value, method, args),
    }
}

/// The methods that search a string for another: `find(sub, start, end)` and its relatives.
fn search(receiver: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let is_search = matches!(
        method,
        "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith"
    );
    if !is_search {
        return Ok(None);
    }
    let [wanted, start, end] = bind(args, ["sub", "start", "end"])?;
    let wanted = wanted.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    let range = characters(receiver, integer(start.as_ref())?, integer(end.as_ref())?);
    if matches!(method, "startswith" | "endswith") {
        let is_match = |wanted: &Value| -> Result<bool, Error> {
            let wanted = text(Some(wanted))?.unwrap_or_default();
            Ok(range.is_some_and(|(_, part)| match method {
                "startswith" => part.starts_with(wanted),
                _ => part.ends_with(wanted),
            }))
        };
        let found = match wanted.as_str() {
            Some(_) => is_match(&wanted)?,
            None => {
                let results = wanted.try_iter()?.map(|wanted| is_match(&wanted));
                results.collect::<Result<Vec<_>, _>>()?.contains(&true)
            }
        };
        return Ok(Some(Value::from(found)));
    }
    let wanted = text(Some(&wanted))?.unwrap_or_default();
    if method == "count" {
        let count = range.map_or(0, |(_, part)| part.matches(wanted).count());
        return Ok(Some(Value::from(count)));
    }
    let place = range.and_then(|(start, part)| {
        let at = match method.starts_with('r') {
            true => part.rfind(wanted),
            false => part.find(wanted),
        }?;
        Some(start + part[..at].chars().count())
    });
    match place {
        Some(place) => Ok(Some(Value::from(place))),
        None if method.ends_with("find") => Ok(Some(Value::from(-1))),
        None => Err(invalid(format!("{method}: substring not found"))),
    }
}

/// Returns the part of a string between two positions as in a slice of Python, and its first
/// position. `None` if it begins behind the end.
fn characters(receiver: &str, start: Option<i64>, end: Option<i64>) -> Option<(usize, &str)> {
    let length = receiver.chars().count();
    let place = |at: i64| match at {
        0.. => usize::try_from(at).unwrap_or(usize::MAX),
        _ => length.saturating_sub(usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let start = start.map_or(0, place);
    let end = end.map_or(length, place).min(length);
    let byte = |at: usize| {
        let mut places = receiver.char_indices().map(|(place, _)| place);
        places.nth(at).unwrap_or(receiver.len())
    };
    (start <= end).then(|| (start, &receiver[byte(start)..byte(end)]))
}

/// The other methods of strings.
fn string(
    state: &State<'_, '_>,
    receiver: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    let result = match method {
        "split" | "rsplit" => {
            let [separator, limit] = bind(args, ["sep", "maxsplit"])?;
            let separator = text(separator.as_ref())?;
            if separator == Some("") {
                return Err(invalid(format!("{method}: empty separator")));
            }
            let limit = integer(limit.as_ref())?.unwrap_or(-1);
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            split(receiver, separator, limit, method == "rsplit").collect()
        }
        "splitlines" => {
            let [keep] = bind(args, ["keepends"])?;
            let lines = lines(receiver, keep.is_some_and(|keep| keep.is_true()));
            lines.into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => partition(receiver, method, args)?,
        "removeprefix" | "removesuffix" => {
            let [part] = bind(args, ["part"])?;
            let part = required(text(part.as_ref())?)?;
            let rest = match method {
                "removeprefix" => receiver.strip_prefix(part),
                _ => receiver.strip_suffix(part),
            };
            Value::from(rest.unwrap_or(receiver))
        }
        "zfill" | "ljust" | "rjust" | "center" => pad(state, receiver, method, args)?,
        "expandtabs" => {
            let [size] = bind(args, ["tabsize"])?;
            let size = integer(size.as_ref())?.unwrap_or(8);
            Value::from(expand_tabs(
                state,
                receiver,
                usize::try_from(size).unwrap_or(0),
            )?)
        }
        "swapcase" => {
            let [] = bind(args, [])?;
            let swap = |char: char| match char.is_lowercase() {
                true => char.to_uppercase().collect::<String>(),
                false => char.to_lowercase().collect(),
            };
            Value::from(receiver.chars().map(swap).collect::<String>())
        }
        "title" => {
            let [] = bind(args, [])?;
            let mut inside = false;
            let convert = |char: char| {
                let is_first = !std::mem::replace(&mut inside, char.is_alphabetic());
                match is_first {
                    true => char.to_uppercase().collect::<String>(),
                    false => char.to_lowercase().collect(),
                }
            };
            Value::from(receiver.chars().map(convert).collect::<String>())
        }
        "casefold" => {
            let [] = bind(args, [])?;
            Value::from(receiver.to_lowercase().replace('ß', "ss"))
        }
        "isdecimal" | "istitle" | "isidentifier" | "isprintable" => {
            let [] = bind(args, [])?;
            Value::from(has_property(receiver, method))
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn required<T>(value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::from(ErrorKind::MissingArgument))
}

/// Splits at most `limit` times at a separator, or at runs of white space without one.
fn split<'a>(
    receiver: &'a str,
    separator: Option<&str>,
    limit: usize,
    from_end: bool,
) -> impl Iterator<Item = Value> + use<'a> {
    let mut parts = Vec::new();
    let mut rest = Some(receiver);
    while let Some(text) = rest {
        let text = match (separator, from_end) {
            (Some(_), _) => text,
            (None, false) => text.trim_start(),
            (None, true) => text.trim_end(),
        };
        if separator.is_none() && text.is_empty() {
            break;
        }
        let cut = match (separator, from_end) {
            _ if parts.len() == limit => None,
            (Some(separator), false) => text.split_once(separator),
            (Some(separator), true) => text.rsplit_once(separator).map(|(a, b)| (b, a)),
            (None, false) => text.split_once(char::is_whitespace),
            (None, true) => text.rsplit_once(char::is_whitespace).map(|(a, b)| (b, a)),
        };
        let (part, next) = cut.map_or((text, None), |(part, next)| (part, Some(next)));
        parts.push(part);
        rest = next;
    }
    if from_end {
        parts.reverse();
    }
    parts.into_iter().map(Value::from)
}

/// Splits at the ends of lines that Python knows.
fn lines(receiver: &str, keep_ends: bool) -> Vec<&str> {
    const ENDS: [char; 10] = [
        '\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}',
        '\u{2029}',
    ];
    let mut lines = Vec::new();
    let mut rest = receiver;
    while !rest.is_empty() {
        let (line, end) = match rest.find(ENDS) {
            None => (rest.len(), rest.len()),
            Some(at) if rest[at..].starts_with("\r\n") => (at, at + 2),
            Some(at) => (at, at + rest[at..].chars().next().map_or(0, char::len_utf8)),
        };
        lines.push(&rest[..if keep_ends { end } else { line }]);
        rest = &rest[end..];
    }
    lines
}

fn partition(receiver: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [separator] = bind(args, ["sep"])?;
    let separator = required(text(separator.as_ref())?)?;
    if separator.is_empty() {
        return Err(invalid(format!("{method}: empty separator")));
    }
    let parts = match method {
        "partition" => match receiver.split_once(separator) {
            Some((before, after)) => [before, separator, after],
            None => [receiver, "", ""],
        },
        _ => match receiver.rsplit_once(separator) {
            Some((before, after)) => [before, separator, after],
            None => ["", "", receiver],
        },
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

/// Fills a string up to a width.
fn pad(
    state: &State<'_, '_>,
    receiver: &str,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let [width, fill] = bind(args, ["width", "fillchar"])?;
    let width = usize::try_from(required(integer(width.as_ref())?)?).unwrap_or(0);
    let fill = match (method, text(fill.as_ref())?) {
        ("zfill", None) => "0",
        (_, fill) => fill.unwrap_or(" "),
    };
    if fill.chars().count() != 1 {
        return Err(invalid(format!("{method}: expected one character to fill")));
    }
    let missing = width.saturating_sub(receiver.chars().count());
    charge_copies(state, missing.saturating_mul(fill.len()))?;
    let left = match method {
        "ljust" => 0,
        // Python puts the odd one to the left if the width is odd too.
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let (sign, digits) = match receiver.strip_prefix(['+', '-']) {
        Some(digits) if method == "zfill" => receiver.split_at(receiver.len() - digits.len()),
        _ => ("", receiver),
    };
    let (before, after) = (fill.repeat(left), fill.repeat(missing - left));
    Ok(Value::from(format!("{sign}{before}{digits}{after}")))
}

fn expand_tabs(state: &State<'_, '_>, receiver: &str, size: usize) -> Result<String, Error> {
    let (mut out, mut column) = (String::new(), 0);
    for char in receiver.chars() {
        match char {
            '\t' if size == 0 => {}
            '\t' => {
                let count = size - column % size;
                charge_copies(state, count)?;
                out.push_str(&" ".repeat(count));
                column += count;
            }
            _ => {
                out.push(char);
                column = if matches!(char, '\n' | '\r') {
                    0
                } else {
                    column + 1
                };
            }
        }
    }
    Ok(out)
}

fn has_property(receiver: &str, method: &str) -> bool {
    let all = |test: fn(char) -> bool| receiver.chars().all(test);
    match method {
        "isdecimal" => !receiver.is_empty() && all(|char| char.is_ascii_digit()),
        "isprintable" => all(|char| char == ' ' || !(char.is_control() || char.is_whitespace())),
        "isidentifier" => {
            let begins_well = |char: char| char.is_alphabetic() || char == '_';
            receiver.starts_with(begins_well) && all(|char| char.is_alphanumeric() || char == '_')
        }
        _ => {
            // Upper case begins every word and occurs nowhere else.
            let (mut inside, mut cased) = (false, false);
            for char in receiver.chars() {
                let is_cased = char.is_uppercase() || char.is_lowercase();
                if is_cased && char.is_uppercase() == inside {
                    return false;
                }
                inside = is_cased;
                cased |= is_cased;
            }
            cased
        }
    }
}

/// The methods of lists and tuples.
fn sequence(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "copy" => {
            let [] = bind(args, [])?;
            Ok(Some(value.clone()))
        }
        "index" => {
            let [wanted, start] = bind(args, ["value", "start"])?;
            let start = usize::try_from(integer(start.as_ref())?.unwrap_or(0)).unwrap_or(0);
            // None counts as missing, and may be an item.
            let wanted = wanted.unwrap_or(Value::from(()));
            let mut items = value.try_iter()?.enumerate().skip(start);
            match items.find(|(_, item)| *item == wanted) {
                Some((place, _)) => Ok(Some(Value::from(place))),
                None => Err(invalid(format!("index: {wanted:?} is not in the list"))),
            }
        }
        _ => Ok(None),
    }
}
