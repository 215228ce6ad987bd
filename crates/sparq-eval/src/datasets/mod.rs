//! Rows of data sets, read from their published files.

mod columns;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::EvalError;

/// A row of a data set.
pub(crate) trait Row: DeserializeOwned {
    /// The columns to read from a parquet file. A dot leads into a nested column.
    const COLUMNS: &'static [&'static str];

    /// Returns the rows of the JSON document published by the authors of the data set.
    ///
    /// # Errors
    /// A message with the expected and the found content.
    fn from_document(document: Value, path: &Path) -> Result<Vec<Self>, String>;

    /// Drops unused parts of the row to save memory. Returns false if the row is unusable.
    fn trim(&mut self) -> bool {
        true
    }
}

/// Reads the rows of a file: parquet, JSON lines (`jsonl`, `ndjson`) or JSON (an array of rows, or
/// the document of the authors).
///
/// # Errors
/// If the file cannot be read or a row has another form. The message names the row.
pub(crate) fn rows<R: Row>(path: &Path) -> Result<Vec<R>, EvalError> {
    let mut rows = Vec::new();
    let mut add = |mut row: R| {
        if row.trim() {
            rows.push(row);
        }
    };
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("parquet") => columns::read(path, R::COLUMNS, &mut |index, value| {
            add(row(path, format!("row {index}"), value)?);
            Ok(())
        })?,
        Some("jsonl" | "ndjson") => {
            for (index, line) in BufReader::new(open(path)?).lines().enumerate() {
                let line = line.map_err(EvalError::read(path))?;
                if line.trim().is_empty() {
                    continue;
                }
                let place = format!("line {}", index + 1);
                match serde_json::from_str(&line) {
                    Ok(value) => add(row(path, place, value)?),
                    Err(error) => return Err(wrong(path, place, error)),
                }
            }
        }
        Some("json") => {
            let document: Value = serde_json::from_reader(BufReader::new(open(path)?))
                .map_err(|error| wrong(path, "JSON", error))?;
            match document {
                Value::Array(values) => {
                    for (index, value) in values.into_iter().enumerate() {
                        add(row(path, format!("row {index}"), value)?);
                    }
                }
                document => R::from_document(document, path)
                    .map_err(|reason| wrong(path, "document", reason))?
                    .into_iter()
                    .for_each(add),
            }
        }
        _ => {
            let reason = "expected .json, .jsonl, .ndjson or .parquet";
            return Err(wrong(path, "extension", reason));
        }
    }
    Ok(rows)
}

fn row<R: Row>(path: &Path, place: String, value: Value) -> Result<R, EvalError> {
    parse(value).map_err(|reason| wrong(path, place, reason))
}

/// Converts a JSON value.
///
/// # Errors
/// A message with the key, the expected and the found value.
pub(crate) fn parse<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| error.to_string())
}

fn open(path: &Path) -> Result<File, EvalError> {
    File::open(path).map_err(EvalError::read(path))
}

/// Returns the error of a file that has another form than expected.
pub(crate) fn wrong(
    path: &Path,
    place: impl Into<String>,
    reason: impl std::fmt::Display,
) -> EvalError {
    EvalError::Data {
        path: path.to_owned(),
        place: place.into(),
        reason: reason.to_string(),
    }
}
