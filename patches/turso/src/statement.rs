//! The statements of cubecl-environment 0.11.3.

use crate::entry::Entry;
use crate::folder::Folder;
use crate::{Error, Result, Value};

/// A statement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Statement {
    /// `CREATE TABLE`: folders are made when they are written.
    Create,
    /// Deletes all entries.
    Drop,
    /// Reads a row of `meta`.
    MetaGet,
    /// Writes a row of `meta`.
    MetaSet,
    /// Stores an entry unless one is there; a local one (origin 0) replaces an imported one (1).
    Insert,
    /// Stores an entry.
    Replace,
    /// Reads one value.
    Select,
    /// Reads the entries of a namespace.
    Scan,
    /// Deletes a namespace.
    Purge,
    /// Deletes one entry.
    PurgeKey,
    /// Counts the entries of every namespace.
    Summary,
}

/// The statements by their text, with one space between words.
const STATEMENTS: [(&str, Statement); 12] = [
    (
        "CREATE TABLE IF NOT EXISTS meta ( k TEXT PRIMARY KEY, v TEXT NOT NULL )",
        Statement::Create,
    ),
    (
        "CREATE TABLE IF NOT EXISTS entries ( namespace TEXT NOT NULL, key BLOB NOT NULL, \
         value BLOB NOT NULL, origin INTEGER NOT NULL, PRIMARY KEY (namespace, key) )",
        Statement::Create,
    ),
    ("DROP TABLE IF EXISTS entries", Statement::Drop),
    ("SELECT v FROM meta WHERE k = ?1", Statement::MetaGet),
    (
        "INSERT INTO meta (k, v) VALUES (?1, ?2) ON CONFLICT(k) DO UPDATE SET v = excluded.v",
        Statement::MetaSet,
    ),
    (
        "INSERT INTO entries (namespace, key, value, origin) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT(namespace, key) DO UPDATE SET value = excluded.value, \
         origin = excluded.origin WHERE entries.origin = 1 AND excluded.origin = 0",
        Statement::Insert,
    ),
    (
        "INSERT INTO entries (namespace, key, value, origin) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT(namespace, key) DO UPDATE SET value = excluded.value, \
         origin = excluded.origin",
        Statement::Replace,
    ),
    (
        "SELECT value FROM entries WHERE namespace = ?1 AND key = ?2",
        Statement::Select,
    ),
    (
        "SELECT key, value, origin FROM entries WHERE namespace = ?1",
        Statement::Scan,
    ),
    ("DELETE FROM entries WHERE namespace = ?1", Statement::Purge),
    (
        "DELETE FROM entries WHERE namespace = ?1 AND key = ?2",
        Statement::PurgeKey,
    ),
    (
        "SELECT namespace, COUNT(*), SUM(length(key) + length(value)) FROM entries \
         GROUP BY namespace ORDER BY namespace",
        Statement::Summary,
    ),
];

impl Statement {
    /// Finds the statement of a text.
    pub fn parse(text: &str) -> Result<Self> {
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let known = STATEMENTS.iter().find(|(text, _)| *text == words);
        known
            .map(|&(_, statement)| statement)
            .ok_or(Error::Unsupported(words))
    }

    /// Runs a statement that changes entries, and returns how many it changed.
    pub fn execute(self, folder: &Folder, params: &[Value]) -> Result<u64> {
        match (self, params) {
            (Self::Create, []) => Ok(0),
            (Self::Drop, []) => folder.clear(),
            (Self::MetaSet, [Value::Text(key), Value::Text(value)]) => folder.set_meta(key, value),
            (
                Self::Insert | Self::Replace,
                [
                    Value::Text(namespace),
                    Value::Blob(key),
                    Value::Blob(value),
                    Value::Integer(origin),
                ],
            ) => {
                let entry = Entry {
                    key: key.clone(),
                    value: value.clone(),
                    origin: *origin,
                };
                folder.write(namespace, &entry, self == Self::Replace)
            }
            (Self::Purge, [Value::Text(namespace)]) => folder.purge(namespace),
            (Self::PurgeKey, [Value::Text(namespace), Value::Blob(key)]) => {
                folder.purge_key(namespace, key)
            }
            _ => Err(Error::Unsupported(format!(
                "{self:?} with {} values",
                params.len()
            ))),
        }
    }

    /// Runs a statement that reads, and returns its rows.
    pub fn query(self, folder: &Folder, params: &[Value]) -> Result<Vec<Vec<Value>>> {
        Ok(match (self, params) {
            (Self::MetaGet, [Value::Text(key)]) => {
                let value = folder.meta(key);
                value.map(|value| vec![value.into()]).into_iter().collect()
            }
            (Self::Select, [Value::Text(namespace), Value::Blob(key)]) => {
                let entry = folder.get(namespace, key);
                entry
                    .map(|entry| vec![entry.value.into()])
                    .into_iter()
                    .collect()
            }
            (Self::Scan, [Value::Text(namespace)]) => {
                let row =
                    |entry: Entry| vec![entry.key.into(), entry.value.into(), entry.origin.into()];
                folder.scan(namespace).into_iter().map(row).collect()
            }
            (Self::Summary, []) => {
                let row = |(namespace, count, bytes): (String, u64, u64)| {
                    vec![
                        namespace.into(),
                        Value::Integer(count as i64),
                        Value::Integer(bytes as i64),
                    ]
                };
                folder.summary().into_iter().map(row).collect()
            }
            _ => {
                return Err(Error::Unsupported(format!(
                    "{self:?} with {} values",
                    params.len()
                )));
            }
        })
    }
}
