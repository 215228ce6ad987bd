//! Filters of jinja2 that minijinja lacks or that have other parameters there.

use minijinja::{
    Environment, Error, State,
    value::{Rest, Value, ValueOrKwargs},
};

use super::{bind, charge_copies, integer, invalid, text};

/// The arguments behind the value of a filter.
type Args = Rest<ValueOrKwargs>;

pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter("center", center);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("forceescape", minijinja::filters::escape);
    environment.add_filter("indent", indent);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("striptags", striptags);
    environment.add_filter("truncate", truncate);
    environment.add_filter("wordcount", wordcount);
}

/// `center(width=80)`.
fn center(state: &State<'_, '_>, value: String, args: Args) -> Result<String, Error> {
    let [width] = bind(&args.into_values(), ["width"])?;
    let width = usize::try_from(integer(width.as_ref())?.unwrap_or(80)).unwrap_or(0);
    let missing = width.saturating_sub(value.chars().count());
    charge_copies(state, missing)?;
    let left = missing / 2 + (missing & width & 1);
    let spaces = |count| " ".repeat(count);
    Ok(format!("{}{value}{}", spaces(left), spaces(missing - left)))
}

/// `default(default_value='', boolean=False)`.
fn default(value: &Value, args: Args) -> Result<Value, Error> {
    // `bind` would take the default None for a missing one.
    let args = args.into_values();
    let given_none = args.first().is_some_and(Value::is_none);
    let [other, boolean] = bind(&args, ["default_value", "boolean"])?;
    let boolean = boolean.is_some_and(|boolean| boolean.is_true());
    if !value.is_undefined() && (!boolean || value.is_true()) {
        return Ok(value.clone());
    }
    Ok(other.unwrap_or_else(|| match given_none {
        true => Value::from(()),
        false => Value::from(""),
    }))
}

/// `indent(width=4, first=False, blank=False)`.
fn indent(state: &State<'_, '_>, value: String, args: Args) -> Result<String, Error> {
    let [width, first, blank] = bind(&args.into_values(), ["width", "first", "blank"])?;
    let indentation = match &width {
        Some(width) if width.as_str().is_some() => text(Some(width))?.unwrap_or("").to_owned(),
        width => {
            let width = integer(width.as_ref())?.unwrap_or(4);
            let width = usize::try_from(width).unwrap_or(0);
            charge_copies(state, width)?;
            " ".repeat(width)
        }
    };
    let is_set = |option: Option<Value>| option.is_some_and(|value| value.is_true());
    let (first, blank) = (is_set(first), is_set(blank));
    let mut out = String::new();
    for (index, line) in value.split('\n').enumerate() {
        charge_copies(state, indentation.len())?;
        if index > 0 {
            out.push('\n');
        }
        let indents = match index {
            0 => first,
            _ => blank || !line.is_empty(),
        };
        if indents {
            out.push_str(&indentation);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// `int(default=0, base=10)`.
fn int(state: &State<'_, '_>, value: &Value, args: Args) -> Result<Value, Error> {
    let [default, base] = bind(&args.into_values(), ["default", "base"])?;
    let default = default.unwrap_or(Value::from(0));
    let base = integer(base.as_ref())?.unwrap_or(10);
    let base = u32::try_from(base)
        .ok()
        .filter(|base| (2..=36).contains(base));
    let base = base.ok_or_else(|| invalid("int: expected a base from 2 to 36"))?;
    let text = value.as_str().map(|text| text.trim().replace('_', ""));
    let parsed = text.as_deref().map(|text| {
        let prefix = match base {
            2 => "0b",
            8 => "0o",
            16 => "0x",
            _ => "",
        };
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None => ("", text),
        };
        let lower = digits.to_lowercase();
        let digits = lower.strip_prefix(prefix).unwrap_or(&lower);
        let whole = i128::from_str_radix(&format!("{sign}{digits}"), base).ok();
        let number = || text.parse::<f64>().ok().filter(|number| number.is_finite());
        whole.or_else(|| number().map(|number| number as i128))
    });
    match parsed {
        Some(number) => Ok(number.map_or(default, Value::from)),
        None => {
            let no_names = std::iter::empty::<(&str, Value)>().collect();
            minijinja::filters::int(state, value, None, None, no_names).or(Ok(default))
        }
    }
}

/// `float(default=0.0)`.
fn float(value: &Value, args: Args) -> Result<Value, Error> {
    let [default] = bind(&args.into_values(), ["default"])?;
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    };
    let number = number.or_else(|| i128::try_from(value.clone()).ok().map(|whole| whole as f64));
    Ok(number.map_or(default.unwrap_or(Value::from(0.0)), Value::from))
}

/// Removes comments and tags, then joins the words by single spaces.
fn striptags(value: String) -> String {
    let mut text = value;
    for (open, close) in [("<!--", "-->"), ("<", ">")] {
        let mut kept = String::new();
        let mut rest = text.as_str();
        while let Some(start) = rest.find(open) {
            let Some(length) = rest[start..].find(close) else {
                break;
            };
            kept.push_str(&rest[..start]);
            rest = &rest[start + length + close.len()..];
        }
        kept.push_str(rest);
        text = kept;
    }
    let words: Vec<_> = text.split_whitespace().collect();
    // The tags are gone: what is left to do is to resolve entities.
    let escaped = words.join(" ").replace('<', "&lt;");
    minijinja_contrib::filters::striptags(escaped)
}

/// `truncate(length=255, killwords=False, end='...', leeway=5)`.
fn truncate(value: String, args: Args) -> Result<String, Error> {
    let [length, kill_words, end, leeway] = bind(
        &args.into_values(),
        ["length", "killwords", "end", "leeway"],
    )?;
    let size = |value: Option<i64>, default| match value {
        Some(value) => usize::try_from(value).map_err(|_| invalid("truncate: negative number")),
        None => Ok(default),
    };
    let length = size(integer(length.as_ref())?, 255)?;
    let leeway = size(integer(leeway.as_ref())?, 5)?;
    let end = text(end.as_ref())?.unwrap_or("...");
    if value.chars().count() <= length.saturating_add(leeway) {
        return Ok(value);
    }
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        return Err(invalid(
            "truncate: expected a length of at least that of the end",
        ));
    };
    let kept: String = value.chars().take(kept).collect();
    let whole_words = !kill_words.is_some_and(|kill_words| kill_words.is_true());
    let kept = match kept.rsplit_once(' ') {
        Some((words, _)) if whole_words => words,
        _ => &kept,
    };
    Ok(format!("{kept}{end}"))
}

/// Counts runs of letters, digits and underscores.
fn wordcount(value: String) -> usize {
    let words = value.split(|char: char| !(char.is_alphanumeric() || char == '_'));
    words.filter(|word| !word.is_empty()).count()
}
