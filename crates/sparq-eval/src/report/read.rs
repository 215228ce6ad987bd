//! [`read`]: parses results files.

use std::collections::HashSet;
use std::path::PathBuf;

use serde_json::Value;

use super::AttentionRecord;
use crate::lines::whole_lines;
use crate::results::{Key, key};
use crate::{Record, Setup};

/// The contents of results files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    /// The results of examples.
    pub examples: Vec<Record>,
    /// The recorded attention.
    pub attention: Vec<AttentionRecord>,
}

/// An error of reading results.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system error.
        source: std::io::Error,
    },
    /// A line is not a record.
    #[error("{}, line {line}: expected a record of kind \"example\" or \"attention\": {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The reason.
        reason: String,
    },
    /// The files have no records.
    #[error("expected at least one record, found none in {files} files")]
    Empty {
        /// The number of files.
        files: usize,
    },
}

/// Reads the records of all files, plain or compressed with gzip. Ignores an unfinished last line,
/// and records that repeat earlier ones, such as the dense examples that several files share.
///
/// # Errors
/// If a file cannot be read, a line is not a record of a known kind, or there are no records.
pub fn read(files: &[PathBuf]) -> Result<Results, ReportError> {
    let mut results = Results::default();
    let mut known = HashSet::new();
    for path in files {
        let text = whole_lines(path).map_err(|source| ReportError::Read {
            path: path.clone(),
            source,
        })?;
        for (index, line) in text.lines().enumerate() {
            if !line.trim().is_empty() {
                read_line(&mut results, &mut known, line).map_err(|reason| ReportError::Line {
                    path: path.clone(),
                    line: index + 1,
                    reason,
                })?;
            }
        }
    }
    match results.examples.is_empty() && results.attention.is_empty() {
        true => Err(ReportError::Empty { files: files.len() }),
        false => Ok(results),
    }
}

fn read_line(
    results: &mut Results,
    known: &mut HashSet<(Setup, Key)>,
    line: &str,
) -> Result<(), String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let parsed = |error: serde_json::Error| error.to_string();
    match value.get("kind").and_then(Value::as_str) {
        Some("example") => {
            let record: Record = serde_json::from_value(value).map_err(parsed)?;
            if !record.score.is_finite() {
                return Err(format!("score: expected a number, found {}", record.score));
            }
            if known.insert((Setup::of(&record), key(&record))) {
                results.examples.push(record);
            }
        }
        Some("attention") => {
            let record: AttentionRecord = serde_json::from_value(value).map_err(parsed)?;
            record.check()?;
            results.attention.push(record);
        }
        Some(other) => return Err(format!("found kind {other:?}")),
        None => return Err("found no kind".into()),
    }
    Ok(())
}
