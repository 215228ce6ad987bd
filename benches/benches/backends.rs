//! `cargo bench --bench backends -- --help`

use std::process::ExitCode;

fn main() -> ExitCode {
    sparq_benches::cli::main(Some("backends"))
}
