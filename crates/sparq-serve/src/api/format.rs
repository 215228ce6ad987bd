//! The form of an answer: [`schema`].

use serde_json::{Map, Value, json};

use super::ApiError;
use super::fields::{Fields, brief, wrong};

const NAME: &str = "response_format";
const KINDS: &str = "{\"type\": \"text\"}, {\"type\": \"json_object\"} or {\"type\": \"json_schema\", \
                     \"json_schema\": {\"name\": ..., \"schema\": ...}}";

/// Takes `response_format`. Returns the JSON schema of the answer, `None` for any text.
///
/// `strict` makes no difference: every answer follows its schema.
///
/// # Errors
/// If it is none of the three kinds. The schema is not looked into.
pub fn schema(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    let Some(value) = fields.value(NAME) else {
        return Ok(None);
    };
    let Value::Object(mut map) = value else {
        return Err(wrong(NAME, KINDS, &value));
    };
    let kind = map.remove("type").unwrap_or_default();
    let schema = match kind.as_str() {
        Some("text") => None,
        Some("json_object") => Some(json!({ "type": "object" })),
        Some("json_schema") => Some(of_named(map.remove("json_schema").unwrap_or_default())?),
        _ => return Err(wrong(&format!("{NAME}.type"), KINDS, &kind)),
    };
    none_left(NAME, &map)?;
    Ok(schema)
}

/// Takes the schema from `json_schema`.
fn of_named(value: Value) -> Result<Value, ApiError> {
    let part = |key: &str| format!("{NAME}.json_schema{key}");
    let Value::Object(mut map) = value else {
        return Err(wrong(&part(""), "an object with name and schema", &value));
    };
    for (key, needed) in [(".name", true), (".description", false)] {
        let found = map.remove(&key[1..]).unwrap_or_default();
        if !(found.is_string() || found.is_null() && !needed) {
            return Err(wrong(&part(key), "a string", &found));
        }
    }
    let strict = map.remove("strict").unwrap_or_default();
    if !(strict.is_boolean() || strict.is_null()) {
        return Err(wrong(&part(".strict"), "true or false", &strict));
    }
    let schema = map.remove("schema").unwrap_or_default();
    if !schema.is_object() {
        return Err(wrong(&part(".schema"), "an object", &schema));
    }
    none_left(&part(""), &map)?;
    Ok(schema)
}

/// Refuses keys that nobody took.
fn none_left(name: &str, map: &Map<String, Value>) -> Result<(), ApiError> {
    let Some((key, value)) = map.iter().next() else {
        return Ok(());
    };
    let key: String = key.chars().take(64).collect();
    let message = format!("expected {KINDS}, found {key:?}: {}", brief(value));
    Err(ApiError::param(name, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(format: &str) -> Result<Option<Value>, ApiError> {
        let body = format!("{{\"response_format\": {format}}}");
        schema(&mut Fields::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn three_kinds_are_known() {
        assert_eq!(of("null"), Ok(None));
        assert_eq!(of(r#"{"type": "text"}"#), Ok(None));
        let object = json!({ "type": "object" });
        assert_eq!(of(r#"{"type": "json_object"}"#), Ok(Some(object)));
        let format = r#"{"type": "json_schema", "json_schema": {"name": "a", "description": "b",
            "schema": {"enum": [1]}, "strict": true}}"#;
        assert_eq!(of(format), Ok(Some(json!({ "enum": [1] }))));
    }

    #[test]
    fn wrong_parts_are_named() {
        for (format, part) in [
            ("1", ""),
            ("{}", ".type"),
            (r#"{"type": "xml"}"#, ".type"),
            (r#"{"type": "text", "schema": {}}"#, ""),
            (r#"{"type": "json_schema"}"#, ".json_schema"),
            (
                r#"{"type": "json_schema", "json_schema": {"schema": {}}}"#,
                ".json_schema.name",
            ),
            (
                r#"{"type": "json_schema", "json_schema": {"name": "a"}}"#,
                ".json_schema.schema",
            ),
            (
                r#"{"type": "json_schema", "json_schema": {"name": "a", "schema": true}}"#,
                ".json_schema.schema",
            ),
            (
                r#"{"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": 1}}"#,
                ".json_schema.strict",
            ),
            (
                r#"{"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "x": 1}}"#,
                ".json_schema",
            ),
        ] {
            let error = of(format).unwrap_err();
            assert_eq!(error.param, Some(format!("{NAME}{part}")), "{format}");
            assert!(error.message.contains("expected") && error.message.contains("found"));
        }
    }
}
