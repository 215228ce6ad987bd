//! The parts of Python and jinja2 that templates use and minijinja lacks.

mod filters;
mod json;
mod methods;
mod percent;

use minijinja::{
    Environment, Error, ErrorKind, State,
    value::{Kwargs, Rest, Value, ValueKind},
};

pub(super) use percent::rewrite as without_percent_operators;

/// Adds methods, filters, tests and functions to `environment`.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(methods::call);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter(percent::FILTER, percent::format);
    filters::install(environment);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_function("cycler", |items: Rest<Value>| {
        minijinja_contrib::globals::cycler(items.0)
    });
    // As in jinja2: whatever has a length and items, strings and mappings included.
    environment.add_test("sequence", |value: &Value| match value.kind() {
        ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined => true,
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    });
    // minijinja iterates over none, as over nothing.
    environment.add_test("iterable", |value: &Value| {
        !value.is_none() && value.try_iter().is_ok()
    });
    environment.set_formatter(|out, state, value| match float(value) {
        Some(number) => out.write_str(&number).map_err(Error::from),
        None => minijinja::escape_formatter(out, state, value),
    });
}

/// Returns the arguments of a Python function with the parameters `names`, given by position or by
/// name. Python's None counts as missing.
fn bind<const N: usize>(args: &[Value], names: [&str; N]) -> Result<[Option<Value>; N], Error> {
    let (named, values) = match args.split_last() {
        Some((last, values)) if last.is_kwargs() => (Kwargs::try_from(last.clone())?, values),
        _ => (std::iter::empty::<(&str, Value)>().collect(), args),
    };
    if values.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut values = values.iter().cloned();
    let mut bound = [const { None }; N];
    for (slot, name) in bound.iter_mut().zip(names) {
        let value = match values.next() {
            Some(value) => Some(value),
            None => named.get::<Option<Value>>(name)?,
        };
        *slot = value.filter(|value| !value.is_none());
    }
    named.assert_all_used()?;
    Ok(bound)
}

/// Returns a string argument.
fn text(value: Option<&Value>) -> Result<Option<&str>, Error> {
    match value.map(|value| (value.as_str(), value.kind())) {
        Some((None, kind)) => Err(invalid(format!("expected a string, found {kind}"))),
        Some((text, _)) => Ok(text),
        None => Ok(None),
    }
}

/// Returns an integer argument.
fn integer(value: Option<&Value>) -> Result<Option<i64>, Error> {
    let convert = |value: &Value| {
        let unexpected = || invalid(format!("expected an integer, found {}", value.kind()));
        i64::try_from(value.clone()).map_err(|_| unexpected())
    };
    value.map(convert).transpose()
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Pays for text of `bytes` bytes before it is made, since a short template can ask for any length.
fn charge(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 64)
}

/// As [`charge`] for text that is made in one piece and copied before it is a value.
fn charge_copies(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    charge(state, bytes.saturating_mul(4))
}

/// Returns a float as Python prints it; `None` for other values.
fn float(value: &Value) -> Option<String> {
    if value.kind() != ValueKind::Number || value.is_integer() {
        return None;
    }
    let number = f64::try_from(value.clone()).ok()?;
    let size = number.abs();
    Some(match number {
        _ if number.is_nan() => "nan".into(),
        _ if number.is_infinite() => if number > 0.0 { "inf" } else { "-inf" }.into(),
        _ if size != 0.0 && !(1e-4..1e16).contains(&size) => {
            // Rust writes 1e-7, and Python 1e-07.
            let text = format!("{number:e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let sign = if exponent.starts_with('-') { '-' } else { '+' };
            format!("{digits}e{sign}{:0>2}", exponent.trim_start_matches('-'))
        }
        _ => format!("{number:?}"),
    })
}
