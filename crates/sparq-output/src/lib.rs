//! Output of the programs: tables, numbers, SVG charts, and files that are complete or absent.
#![deny(missing_docs)]

pub mod charts;
pub mod files;
pub mod numbers;
pub mod table;

use std::error::Error;
use std::io;

/// Returns whether an error says that the reader of standard output is gone, as in
/// `sparq inspect | head -1`. Programs treat it as success.
pub fn is_closed_pipe(error: &(dyn Error + 'static)) -> bool {
    let is_closed = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    let mut next = Some(error);
    while let Some(cause) = next {
        if cause.downcast_ref::<io::Error>().is_some_and(is_closed) {
            return true;
        }
        next = cause.source();
    }
    false
}
