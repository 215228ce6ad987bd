//! Exit codes. `--help` documents them.

use std::process::ExitCode;

use crate::interrupt;

/// The outcome of a command that ran without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command finished.
    Done,
    /// `check` found a case that fails.
    CheckFailed,
    /// Ctrl-C ended the command early. Partial results are written.
    Interrupted,
}

/// The section of `--help` on exit codes.
pub const HELP: &str = "\
Exit codes:
  0    success; a wrong answer in the demo is a result, not an error
  1    `check` found a case that fails
  2    usage error or bad input; the message names the expected and the found value
  130  interrupted by Ctrl-C";

/// Returns the exit code of an outcome.
pub fn code(outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::CheckFailed => ExitCode::from(1),
        Outcome::Interrupted => ExitCode::from(interrupt::EXIT_CODE),
    }
}

/// Returns the exit code of every error.
pub fn error_code() -> ExitCode {
    ExitCode::from(2)
}
