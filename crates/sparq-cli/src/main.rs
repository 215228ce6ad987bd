//! The program `sparq`: generates text with SparQ attention, evaluates, plans and checks it.
//!
//! Imports go one way. [`cli`] is the command line and knows every command. Each command in
//! [`commands`] owns its arguments, its JSON document and its text output. Commands share option
//! groups ([`args`], [`method`], [`memory`]), models ([`model`]) and output ([`output`],
//! [`progress`], [`clock`], [`exit`]), none of which know a command. An error travels up as
//! [`anyhow::Error`] and becomes
//! one message and one exit code here.

mod args;
mod cli;
mod clock;
mod commands;
mod compiling;
mod exit;
mod interrupt;
mod memory;
mod method;
mod model;
mod output;
mod progress;

use std::io;
use std::process::ExitCode;

use serde_json::json;
use sparq_output::is_closed_pipe;
use tracing_subscriber::EnvFilter;

use cli::Cli;
use output::{Output, has_colors};

fn main() -> ExitCode {
    clock::begin();
    // Before the arguments, since parsing --device opens the device.
    // SAFETY: no other thread runs yet.
    #[cfg(feature = "kernel-cache")]
    unsafe {
        sparq_device::kernel_cache::enable();
    }
    let cli = match Cli::from_arguments(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => {
            // clap knows that help and version go to standard output. A failed write is not an
            // error.
            let _ = error.print();
            if !error.use_stderr() {
                return ExitCode::SUCCESS;
            }
            if std::env::args_os().any(|argument| argument == "--json") {
                let _ = Output::new(true).document(&json!({ "error": error.to_string() }));
            }
            return exit::error_code();
        }
    };
    start_log(cli.global.verbose);
    let out = Output::new(cli.global.json);
    match cli.run(out) {
        Ok(outcome) => exit::code(outcome),
        Err(error) if is_closed_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("{error:#}");
            eprintln!("error: {message}");
            // Standard error has the message already, so a failed write here loses nothing.
            let _ = out.document(&json!({ "error": message }));
            exit::error_code()
        }
    }
}

/// Sends the log to standard error, because standard output is for results.
fn start_log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "sparq=info,sparq_eval=info,sparq_models=info,sparq_conformance=info,warn",
        _ => "sparq=debug,sparq_eval=debug,sparq_models=debug,sparq_conformance=debug,info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(has_colors(&io::stderr()))
        .with_target(false)
        .without_time()
        .init();
}
