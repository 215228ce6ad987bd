//! The parameters of a request: [`Fields`].

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::ApiError;

/// The parameters of a request, each of which is taken once. `null` is as good as absent.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
    /// The names that were asked for.
    known: Vec<&'static str>,
}

impl Fields {
    /// Parses the body of a request.
    ///
    /// # Errors
    /// If it is not a JSON object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self {
                map,
                known: Vec::new(),
            }),
            Ok(other) => Err(ApiError::body(format!(
                "body: expected a JSON object, found {}",
                brief(&other)
            ))),
            Err(error) => Err(ApiError::body(format!(
                "body: expected a JSON object, found {} bytes that are none: {error}",
                body.len()
            ))),
        }
    }

    /// Takes a value of any type.
    pub fn value(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a value that must be there.
    ///
    /// # Errors
    /// If it is not.
    pub fn required(&mut self, name: &'static str, expected: &str) -> Result<Value, ApiError> {
        let missing = || ApiError::param(name, format!("expected {expected}, found none"));
        self.value(name).ok_or_else(missing)
    }

    /// Takes a number.
    ///
    /// # Errors
    /// If it is no number or outside `range`.
    pub fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number as f32)),
            None => {
                let (low, high) = (range.start(), range.end());
                Err(wrong(
                    name,
                    &format!("a number from {low} to {high}"),
                    &value,
                ))
            }
        }
    }

    /// Takes a whole number.
    ///
    /// # Errors
    /// If it is none or outside `range`.
    pub fn integer(
        &mut self,
        name: &'static str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, ApiError> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        let number = value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let expected = match (range.start(), range.end()) {
                    (low, &usize::MAX) => format!("a whole number of at least {low}"),
                    (low, high) => format!("a whole number from {low} to {high}"),
                };
                Err(wrong(name, &expected, &value))
            }
        }
    }

    /// Takes `true` or `false`; false if absent.
    ///
    /// # Errors
    /// If it is neither.
    pub fn flag(&mut self, name: &'static str) -> Result<bool, ApiError> {
        match self.value(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    /// Takes a string.
    ///
    /// # Errors
    /// If it is none.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", &other)),
        }
    }

    /// Takes parameters that have no effect on an answer.
    pub fn ignore(&mut self, names: &[&'static str]) {
        for name in names {
            self.value(name);
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// If there are parameters that nobody took.
    pub fn finish(mut self) -> Result<(), ApiError> {
        let Some((name, _)) = self.map.iter().next() else {
            return Ok(());
        };
        self.known.sort_unstable();
        let expected = self.known.join(", ");
        let message = format!("expected one of the parameters {expected}, found {name:?}");
        Err(ApiError {
            code: Some("unknown_parameter"),
            ..ApiError::param(&name.chars().take(64).collect::<String>(), message)
        })
    }
}

/// Returns the error about a value.
pub fn wrong(name: &str, expected: &str, found: &Value) -> ApiError {
    ApiError::param(name, format!("expected {expected}, found {}", brief(found)))
}

/// Describes a value in a few words.
pub fn brief(value: &Value) -> String {
    let text = match value {
        Value::Array(items) => return format!("an array of {}", items.len()),
        Value::Object(map) => return format!("an object of {} keys", map.len()),
        other => other.to_string(),
    };
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<T: std::fmt::Debug>(result: Result<T, ApiError>) -> String {
        result.unwrap_err().message
    }

    #[test]
    fn errors_name_expected_and_found() {
        let body = br#"{"a": 3, "b": "x", "c": null, "d": -1, "e": [1, 2], "odd": 1}"#;
        let mut fields = Fields::parse(body).unwrap();
        let expected = "a: expected a number from 0 to 2, found 3";
        assert_eq!(message(fields.number("a", 0.0..=2.0)), expected);
        assert_eq!(
            message(fields.flag("b")),
            "b: expected true or false, found \"x\""
        );
        assert_eq!(fields.text("c"), Ok(None));
        let expected = "d: expected a whole number of at least 0, found -1";
        assert_eq!(message(fields.integer("d", 0..=usize::MAX)), expected);
        assert_eq!(
            message(fields.text("e")),
            "e: expected a string, found an array of 2"
        );
        let error = fields.finish().unwrap_err();
        let expected = "odd: expected one of the parameters a, b, c, d, e, found \"odd\"";
        assert_eq!((error.message.as_str(), error.status), (expected, 400));
    }

    #[test]
    fn body_must_be_an_object() {
        let found = message(Fields::parse(b"[1]"));
        assert_eq!(found, "body: expected a JSON object, found an array of 1");
        assert!(message(Fields::parse(b"{\"a\": ")).contains("found 6 bytes that are none"));
    }
}
