//! `cargo bench --bench op -- --help`

use std::process::ExitCode;

fn main() -> ExitCode {
    sparq_benches::cli::main(Some("op"))
}
