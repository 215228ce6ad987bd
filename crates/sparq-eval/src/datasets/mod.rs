//! Rows of data sets, from the files that they are published as.

mod columns;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::EvalError;

/// A row of a data set.
pub(crate) trait Row: DeserializeOwned {
    /// The columns that are read of a parquet file, those inside others with a dot.
    const COLUMNS: &'static [&'static str];

    /// The rows of the data set's own JSON document.
    ///
    /// # Errors
    /// What was expected and found.
    fn from_document(document: Value, path: &Path) -> Result<Vec<Self>, String>;

    /// Drops what is not needed, to save memory; false where nothing of the row is.
    fn trim(&mut self) -> bool {
        true
    }
}

/// The rows of a file: parquet, JSON lines (`jsonl`, `ndjson`), or JSON, which is an array of rows or the data set's own document.
///
/// # Errors
/// When the file can't be read or a row is not what it should be; the message names the row.
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
                let line = line.map_err(|source| read(path, source))?;
                if line.trim().is_empty() {
                    continue;
                }
                let place = format!("line {}", index + 1);
                match serde_json::from_str(&line) {
                    Ok(row) => add(row),
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
    serde_json::from_value(value).map_err(|error| wrong(path, place, error))
}

fn open(path: &Path) -> Result<File, EvalError> {
    File::open(path).map_err(|source| read(path, source))
}

fn read(path: &Path, source: std::io::Error) -> EvalError {
    EvalError::Read {
        path: path.to_owned(),
        source,
    }
}

fn wrong(path: &Path, place: impl Into<String>, reason: impl std::fmt::Display) -> EvalError {
    EvalError::Data {
        path: path.to_owned(),
        place: place.into(),
        reason: reason.to_string(),
    }
}
