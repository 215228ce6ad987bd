//! The program `sparq-bench`: everything is in the library, so that `cargo bench` runs the same.

use std::process::ExitCode;

fn main() -> ExitCode {
    sparq_benches::cli::main(None)
}
