//! The exit codes: what `--help` documents and the tests hold the program to.

use std::process::ExitCode;

use crate::interrupt;

/// How a command that came to its end ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did what was asked.
    Done,
    /// `check` ran and found a case that fails.
    CheckFailed,
    /// Ctrl-C ended it early; what there was has been written.
    Interrupted,
}

/// What `--help` says about exit codes.
pub const HELP: &str = "\
Exit codes:
  0    the command did what was asked (a wrong answer of `demo` is a result, not an error)
  1    `check` found a case that fails
  2    usage error or bad input; the message names what was expected and what was found
  130  interrupted by Ctrl-C";

/// The code of an outcome.
pub fn code(outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::CheckFailed => ExitCode::from(1),
        Outcome::Interrupted => ExitCode::from(interrupt::EXIT_CODE),
    }
}

/// The code of every error.
pub fn error_code() -> ExitCode {
    ExitCode::from(2)
}
