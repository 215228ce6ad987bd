//! `sparq check`: compares a device with the reference cases, or with random ones.

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::FloatDType;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;
use sparq_conformance::{Random, Report, Size, embedded_cases, read_folder, run_all, run_prefills};
use sparq_device::DeviceChoice;

use crate::args::{dtype_name, dtype_parser, whole};
use crate::exit::Outcome;
use crate::output::Output;

/// The arguments of `sparq check`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
A reference case is a decode step or a prefill with its expected output. The check compares the selected \
positions and the numbers, in f16 and bf16 within the rounding of the inputs.

A random case fills a cache in steps and compares each decode step in between, and a prefill, with \
float64 arithmetic. \
Large cases need some GiB of memory on the host, huge ones 30 GiB on the device and 8 GiB on the host.

Examples:
  sparq check
  sparq check --device flex --dtype f16
  sparq check --random 100 --seed 7
  sparq check --fixtures DIR --json")]
pub struct CheckArgs {
    /// Folder of safetensors files with cases. Without it, the embedded reference cases
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,
    /// Type of queries, keys and values [default: f32; for random cases, any type of the device]
    #[arg(long, value_parser = dtype_parser(), value_name = "TYPE")]
    dtype: Option<FloatDType>,
    /// Run this number of random cases instead
    #[arg(long, value_name = "N", conflicts_with = "fixtures", value_parser = whole::<u64>)]
    random: Option<u64>,
    /// Seed of the first random case. Each further case has the next seed
    #[arg(long, value_name = "S", default_value_t = 0, requires = "random", value_parser = whole::<u64>)]
    seed: u64,
    /// Size of random cases: small, medium and large have up to 330, 6000 and 2^20 positions. huge
    /// has a cache of more than 2^32 elements
    #[arg(long, value_parser = size_parser(), default_value = "medium", value_name = "SIZE", requires = "random")]
    size: Size,
}

const SIZES: [(&str, Size); 4] = [
    ("small", Size::Small),
    ("medium", Size::Medium),
    ("large", Size::Large),
    ("huge", Size::Huge),
];

fn size_parser() -> impl TypedValueParser<Value = Size> {
    let size = |name: String| {
        SIZES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|row| row.1)
    };
    PossibleValuesParser::new(SIZES.map(|(name, _)| name))
        .map(move |name| size(name).unwrap_or(Size::Medium))
}

#[derive(Serialize)]
struct Document<'a> {
    /// The name on the command line. The report has the name of the backend.
    device: String,
    dtype: &'static str,
    passed: usize,
    failed: usize,
    outcomes: &'a [sparq_conformance::Outcome],
}

/// Runs the cases.
pub fn run(args: &CheckArgs, device: &DeviceChoice, out: Output) -> Result<Outcome> {
    let done = |outcome: &sparq_conformance::Outcome| {
        let result = outcome.reason.as_deref().unwrap_or("pass");
        tracing::info!("{} ({}): {result}", outcome.name, outcome.shape);
    };
    let report = match args.random {
        Some(count) => {
            let random = Random {
                size: args.size,
                dtype: args.dtype,
            };
            let report = random.run_all(args.seed, count, &device.open(), done);
            print_random(args, device, &report, out)?;
            report
        }
        None => {
            let (device, dtype) = (device.open(), args.dtype.unwrap_or(FloatDType::F32));
            let report = match &args.fixtures {
                Some(folder) => run_all(&read_folder(folder)?, &device, dtype, done),
                None => run_all(&embedded_cases()?, &device, dtype, done)
                    .and(run_prefills(&device, dtype, done)),
            };
            out.line(&report.to_string())?;
            report
        }
    };
    out.document(&Document {
        device: device.to_string(),
        dtype: match (args.random, args.dtype) {
            (Some(_), None) => "mixed",
            (_, dtype) => dtype_name(dtype.unwrap_or(FloatDType::F32)),
        },
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

/// Prints the failures, each with the command that repeats it, and the counts.
fn print_random(
    args: &CheckArgs,
    device: &DeviceChoice,
    report: &Report,
    out: Output,
) -> Result<()> {
    let size = SIZES.iter().find(|(_, size)| *size == args.size);
    let size = size.map_or("medium", |(name, _)| name);
    let dtype = args
        .dtype
        .map(|dtype| format!(" --dtype {}", dtype_name(dtype)));
    let dtype = dtype.unwrap_or_default();
    out.line(&format!("device {}, random cases", report.device))?;
    for outcome in report.outcomes.iter().filter(|outcome| !outcome.passed) {
        let reason = outcome.reason.as_deref().unwrap_or_default();
        let (seed, shape) = (&outcome.name, &outcome.shape);
        out.line(&format!("FAIL seed {seed}: {shape}: {reason}"))?;
        out.line(&format!(
            "  repeat with: sparq check --device {device} --random 1 --seed {seed} --size {size}{dtype}"
        ))?;
    }
    out.line(&format!(
        "{} passed, {} failed",
        report.passed, report.failed
    ))?;
    Ok(())
}
