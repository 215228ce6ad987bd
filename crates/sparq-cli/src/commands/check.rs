//! `sparq check`: holds a device to the reference cases.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use sparq_golden::{embedded_cases, read_folder, run_all};

use crate::args::{DtypeArgs, dtype_name};
use crate::exit::Outcome;
use crate::output::Output;
use sparq_host::device::DeviceChoice;

/// Arguments of `sparq check`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
A case is one decode step with its right result. Compared are the positions kept and the numbers; in f16 and bf16, as far as rounding the input allows.

Examples:
  sparq check
  sparq check --device flex --dtype f16
  sparq check --fixtures DIR --json")]
pub struct CheckArgs {
    /// Folder of safetensors files with cases; without it, the cases inside the program
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,
    #[command(flatten)]
    dtype: DtypeArgs,
}

#[derive(Serialize)]
struct Document<'a> {
    /// As on the command line; the report has the backend's own names.
    device: String,
    dtype: &'static str,
    passed: usize,
    failed: usize,
    outcomes: &'a [sparq_golden::Outcome],
}

/// Runs the cases.
///
/// # Errors
/// When a case can't be read.
pub fn run(args: &CheckArgs, device: &DeviceChoice, out: Output) -> Result<Outcome> {
    let cases = match &args.fixtures {
        Some(folder) => read_folder(folder)?,
        None => embedded_cases()?,
    };
    let dtype = args.dtype.dtype;
    let report = run_all(&cases, &device.open(), dtype, |outcome| {
        tracing::info!(
            "{}: {}",
            outcome.name,
            outcome.reason.as_deref().unwrap_or("pass")
        );
    });
    out.line(&report.to_string())?;
    out.document(&Document {
        device: device.to_string(),
        dtype: dtype_name(dtype),
        passed: report.passed,
        failed: report.failed,
        outcomes: &report.outcomes,
    })?;
    Ok(if report.all_passed() {
        Outcome::Done
    } else {
        Outcome::CheckFailed
    })
}
