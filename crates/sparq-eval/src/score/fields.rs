//! Fields, the score of structured extraction: values of an object in JSON.

/// Returns the share of fields whose value in the output is the expected one. The output is the
/// beginning of a JSON object, which may be incomplete or followed by other text.
///
/// ```
/// use sparq_eval::score::field_match;
///
/// let fields = [("city", "Rome"), ("year", "1987"), ("price", "12.50")];
/// let output = r#"{"city": "Rome", "year": 1987, "price": 99.0} is it."#;
/// assert_eq!(field_match(output, &fields), 2.0 / 3.0);
/// ```
pub fn field_match<S: AsRef<str>>(output: &str, fields: &[(S, S)]) -> f64 {
    let object = &output[..end(output).unwrap_or(output.len())];
    let fields_found = fields.iter().filter(|(key, expected)| {
        let found = value(object, key.as_ref());
        found.is_some_and(|found| found == expected.as_ref())
    });
    fields_found.count() as f64 / fields.len().max(1) as f64
}

/// Returns the place after the object, if it is complete.
pub(super) fn end(output: &str) -> Option<usize> {
    output.find('}').map(|end| end + 1)
}

/// Returns the text of a value, without quotes.
fn value<'a>(object: &'a str, key: &str) -> Option<&'a str> {
    let (_, after) = object.split_once(&format!("\"{key}\""))?;
    let after = after.trim_start().strip_prefix(':')?.trim_start();
    match after.strip_prefix('"') {
        Some(text) => text.split_once('"').map(|(text, _)| text),
        None => after.split([',', '}', '\n']).next().map(str::trim),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_texts_or_numbers() {
        let fields = [("a", "x y"), ("b", "7")];
        for (output, score) in [
            (r#"{"a": "x y", "b": 7}"#, 1.0),
            (r#"{ "b" : "7" , "a":"x y" }"#, 1.0),
            ("{\"a\": \"x y\",\n \"b\": 7\n", 1.0),
            (r#"{"a": "x y", "b": 71}"#, 0.5),
            (r#"{"a": "x"#, 0.0),
            (r#"{"a": 1} {"b": 7}"#, 0.0),
            ("", 0.0),
        ] {
            assert_eq!(field_match(output, &fields), score, "{output}");
        }
    }
}
