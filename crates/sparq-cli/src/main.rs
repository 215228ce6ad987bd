//! The program `sparq`: a demo of SparQ attention, text generation with it, and the tools to check both.
//!
//! Every command is a file of [`commands`] with its arguments, its JSON document and its human form; what they share lies beside `main.rs`.
//! Errors travel up as [`anyhow::Error`] and become one message and one exit code here.

mod args;
mod commands;
mod exit;
mod interrupt;
mod method;
mod model;
mod output;
mod progress;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use serde_json::json;
use sparq_output::is_closed_pipe;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command, GlobalArgs};
use exit::Outcome;
use output::Output;

fn main() -> ExitCode {
    let cli = match parse(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors and go to standard output; clap knows which is which. A closed pipe is nobody's loss.
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
    start_log(&cli.global);
    let out = Output::new(cli.global.json);
    match run(&cli, out) {
        Ok(outcome) => exit::code(outcome),
        Err(error) if is_closed_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("{error:#}");
            eprintln!("error: {message}");
            // Nothing is left to tell if even this can't be written.
            let _ = out.document(&json!({ "error": message }));
            exit::error_code()
        }
    }
}

/// Parses the arguments; without a command, as if `demo` stood behind them.
fn parse(mut arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    let cli = Cli::try_parse_from(&arguments)?;
    if cli.command.is_some() {
        return Ok(cli);
    }
    arguments.push("demo".into());
    Cli::try_parse_from(&arguments)
}

fn run(cli: &Cli, out: Output) -> Result<Outcome> {
    let device = &cli.global.device;
    match &cli.command {
        None => Ok(Outcome::Done),
        Some(Command::Demo(args)) => commands::demo::run(args, device, out),
        Some(Command::Eval(args)) => commands::eval::run(args, device, out),
        Some(Command::Generate(args)) => commands::generate::run(args, device, out),
        Some(Command::Inspect(args)) => commands::inspect::run(args, out),
        Some(Command::Logits(args)) => commands::logits::run(args, device, out),
        Some(Command::Convert(args)) => commands::convert::run(args, device, out),
        Some(Command::Plan(args)) => commands::plan::run(args, device, out),
        Some(Command::Report(args)) => commands::report::run(args, out),
        Some(Command::Attention(args)) => commands::attention::run(args, device, out),
        Some(Command::Check(args)) => commands::check::run(args, device, out),
        Some(Command::Completions(args)) => commands::completions::run(args, out),
    }
}

/// Sends the log to standard error, which leaves standard output to the results.
fn start_log(global: &GlobalArgs) {
    let level = match global.verbose {
        0 => "warn",
        1 => "sparq=info,sparq_eval=info,sparq_models=info,sparq_conformance=info,warn",
        _ => "sparq=debug,sparq_eval=debug,sparq_models=debug,sparq_conformance=debug,info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .without_time()
        .init();
}
