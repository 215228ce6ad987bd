//! The part of the interface of the database `turso` that cubecl uses to keep compiled kernels and
//! tuning results, on plain files.
//!
//! cubecl-environment sends about ten fixed statements, over a table `entries` of (namespace, key,
//! value, origin) and a table `meta` of (k, v). This crate has an implementation of each
//! [statement](statement) and returns [`Error::Unsupported`] for any other text. A database is a
//! folder, and an entry is a [file](entry):
//!
//! ```text
//! <database>/meta/<hash of k>
//! <database>/<hash of namespace>/namespace        the namespace as text
//! <database>/<hash of namespace>/<hash of key>    one entry
//! ```
//!
//! Files are written under a temporary name and then linked or renamed, so that processes may share
//! a database: an entry is whole or absent, and of two inserts one wins. A damaged file is an
//! absent one. Opening a database for writing deletes the entries that were not used for longest
//! until it is within [`folder::MOST_BYTES`].

mod entry;
mod folder;
mod statement;

use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use folder::Folder;
use statement::Statement;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation.
#[derive(Clone, Debug)]
pub enum Error {
    /// Another process holds a lock. This implementation has no locks.
    Busy(String),
    /// As [`Error::Busy`].
    BusySnapshot(String),
    /// Reading or writing failed while doing what the text says.
    IoError(io::ErrorKind, &'static str),
    /// The database may not be written.
    Readonly(String),
    /// The statement is none of those that cubecl sends.
    Unsupported(String),
    /// A parameter or column has another type.
    Type(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(what) | Self::BusySnapshot(what) => write!(f, "{what} is locked"),
            Self::IoError(kind, what) => write!(f, "{what}: {kind}"),
            Self::Readonly(what) => write!(f, "{what} is read-only"),
            Self::Unsupported(statement) => write!(f, "unsupported statement: {statement}"),
            Self::Type(expected) => write!(f, "expected a value of type {expected}"),
        }
    }
}

impl std::error::Error for Error {}

/// A value of a parameter or a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An integer.
    Integer(i64),
    /// A text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Blob(value)
    }
}

/// A type that a column is read as.
pub trait FromValue: Sized {
    /// Converts the value.
    ///
    /// # Errors
    /// If it has another type.
    fn from_value(value: &Value) -> Result<Self>;
}

impl FromValue for i64 {
    fn from_value(value: &Value) -> Result<Self> {
        match value {
            Value::Integer(value) => Ok(*value),
            _ => Err(Error::Type("integer")),
        }
    }
}

impl FromValue for String {
    fn from_value(value: &Value) -> Result<Self> {
        match value {
            Value::Text(value) => Ok(value.clone()),
            _ => Err(Error::Type("text")),
        }
    }
}

impl FromValue for Vec<u8> {
    fn from_value(value: &Value) -> Result<Self> {
        match value {
            Value::Blob(value) => Ok(value.clone()),
            _ => Err(Error::Type("blob")),
        }
    }
}

/// The parameters of a statement: a tuple of values.
pub trait IntoParams {
    /// Returns the values.
    fn into_params(self) -> Vec<Value>;
}

impl IntoParams for () {
    fn into_params(self) -> Vec<Value> {
        Vec::new()
    }
}

macro_rules! tuple {
    ($($name:ident),+) => {
        impl<$($name: Into<Value>),+> IntoParams for ($($name,)+) {
            #[allow(non_snake_case)]
            fn into_params(self) -> Vec<Value> {
                let ($($name,)+) = self;
                vec![$($name.into()),+]
            }
        }
    };
}
tuple!(A);
tuple!(A, B);
tuple!(A, B, C);
tuple!(A, B, C, D);

/// One row of a result.
#[derive(Clone, Debug)]
pub struct Row(Vec<Value>);

impl Row {
    /// Returns column `index`.
    ///
    /// # Errors
    /// If there is no such column or it has another type.
    pub fn get<T: FromValue>(&self, index: usize) -> Result<T> {
        T::from_value(self.0.get(index).ok_or(Error::Type("a column"))?)
    }
}

/// The rows of a result.
#[derive(Debug)]
pub struct Rows(std::vec::IntoIter<Row>);

impl Rows {
    /// Returns the next row.
    ///
    /// # Errors
    /// None: rows are read when the statement runs.
    #[allow(clippy::unused_async, reason = "the interface of turso")]
    pub async fn next(&mut self) -> Result<Option<Row>> {
        Ok(self.0.next())
    }
}

/// Opens a database.
#[derive(Debug)]
pub struct Builder {
    path: PathBuf,
    read_only: bool,
}

impl Builder {
    /// A database in the folder `path`.
    pub fn new_local(path: &str) -> Self {
        Self {
            path: path.into(),
            read_only: false,
        }
    }

    /// Does nothing: processes may always share a database.
    pub fn experimental_multiprocess_wal(self, _: bool) -> Self {
        self
    }

    /// Does nothing: there is nothing to compact.
    pub fn experimental_vacuum(self, _: bool) -> Self {
        self
    }

    /// Opens the database without creating or changing it.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Opens the database.
    ///
    /// # Errors
    /// If the folder cannot be created, or read-only if there is none.
    #[allow(clippy::unused_async, reason = "the interface of turso")]
    pub async fn build(self) -> Result<Database> {
        let folder = Folder::open(self.path, self.read_only)?;
        Ok(Database(Arc::new(folder)))
    }
}

/// An open database.
#[derive(Clone, Debug)]
pub struct Database(Arc<Folder>);

impl Database {
    /// Returns a connection.
    ///
    /// # Errors
    /// None.
    pub fn connect(&self) -> Result<Connection> {
        Ok(Connection(self.0.clone()))
    }
}

/// A connection to a database.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Folder>);

impl Connection {
    /// Does nothing: no operation waits for another process.
    ///
    /// # Errors
    /// None.
    pub fn busy_timeout(&self, _: Duration) -> Result<()> {
        Ok(())
    }

    /// Accepts any setting and returns no rows: files need none.
    ///
    /// # Errors
    /// None.
    #[allow(clippy::unused_async, reason = "the interface of turso")]
    pub async fn pragma_query(&self, _: &str, _: impl FnMut(&Row) -> Result<()>) -> Result<()> {
        Ok(())
    }

    /// Runs a statement and returns the number of entries it changed.
    ///
    /// # Errors
    /// If the statement is unknown or a file cannot be written.
    #[allow(clippy::unused_async, reason = "the interface of turso")]
    pub async fn execute(&self, statement: &str, params: impl IntoParams) -> Result<u64> {
        Statement::parse(statement)?.execute(&self.0, &params.into_params())
    }

    /// Runs a query.
    ///
    /// # Errors
    /// If the statement is unknown.
    #[allow(clippy::unused_async, reason = "the interface of turso")]
    pub async fn query(&self, statement: &str, params: impl IntoParams) -> Result<Rows> {
        let rows = Statement::parse(statement)?.query(&self.0, &params.into_params())?;
        let rows: Vec<Row> = rows.into_iter().map(Row).collect();
        Ok(Rows(rows.into_iter()))
    }

    /// Begins a transaction. Each of its statements takes effect at once.
    ///
    /// # Errors
    /// None.
    #[allow(clippy::unused_async, reason = "the interface of turso")]
    pub async fn transaction_with_behavior(
        &mut self,
        _: transaction::TransactionBehavior,
    ) -> Result<transaction::Transaction<'_>> {
        Ok(transaction::Transaction(self))
    }
}

/// Transactions.
pub mod transaction {
    use super::{Connection, Deref, Result};

    /// The time at which a transaction locks the database. Files need no locks.
    #[derive(Clone, Copy, Debug)]
    pub enum TransactionBehavior {
        /// At the first statement.
        Deferred,
        /// At once.
        Immediate,
    }

    /// A series of statements.
    #[derive(Debug)]
    pub struct Transaction<'a>(pub(super) &'a Connection);

    impl Transaction<'_> {
        /// Ends the transaction.
        ///
        /// # Errors
        /// None: each statement reported its own.
        #[allow(clippy::unused_async, reason = "the interface of turso")]
        pub async fn commit(self) -> Result<()> {
            Ok(())
        }
    }

    impl Deref for Transaction<'_> {
        type Target = Connection;

        fn deref(&self) -> &Connection {
            self.0
        }
    }
}

#[cfg(test)]
mod tests;
