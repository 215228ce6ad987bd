//! `sparq-bench start`: the time to the first token of a fresh process.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use sparq_device::DeviceChoice;
use sparq_measure::shape::CacheType;
use sparq_output::numbers::digits;

use super::args::{OutputArgs, check_positive, model_name, print};
use crate::baselines::Baselines;
use crate::report::{self, Bench, Head, StartReport};
use crate::start::{self, Setup, StartRow};
use crate::tables::start as tables;

/// Arguments of `sparq-bench start`.
#[derive(Args, Debug)]
pub struct StartArgs {
    /// Folder of a checkpoint or GGUF file, as of `sparq generate` [default: the embedded model]
    #[arg(long, value_name = "DIR|FILE.gguf")]
    model: Option<String>,
    /// File with the prompt
    #[arg(long, value_name = "FILE")]
    prompt: PathBuf,
    /// The program `sparq` [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Device, as of `sparq generate`
    #[arg(
        long,
        env = "BURN_DEVICE",
        default_value = "flex",
        value_name = "NAME[:N]"
    )]
    device: String,
    /// Element type of weights and cache [default: as `sparq generate`]
    #[arg(long, value_enum)]
    dtype: Option<CacheType>,
    /// Processes with a filled kernel cache, after the one with an empty cache
    #[arg(long, default_value_t = 2, value_name = "N")]
    warm: usize,
    /// Most seconds of a process
    #[arg(long, default_value_t = 900.0, value_name = "SECONDS")]
    timeout: f64,
    /// Output of benches/baselines/start_baseline.py to show beside the times
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    /// More arguments of `sparq generate`
    #[arg(last = true, value_name = "ARGUMENTS")]
    more: Vec<String>,
}

/// Runs `sparq-bench start`.
pub fn start(args: &StartArgs, command: String) -> Result<()> {
    check_positive("--timeout", Some(args.timeout))?;
    let compare = args.compare.as_deref();
    let baselines = compare.map(Baselines::read_all).transpose()?;
    let output = args.output.create()?;
    let head = Head::now(Bench::Start, command, args.output.commit.clone());
    let setup = Setup {
        program: match &args.program {
            Some(program) => program.clone(),
            None => start::beside_this_program()?,
        },
        device: args.device.clone(),
        name: match &args.model {
            Some(model) => model_name(Path::new(model)),
            None => "embedded".into(),
        },
        model: args.model.clone(),
        prompt: args.prompt.clone(),
        dtype: args.dtype,
        more: args.more.clone(),
        warm: args.warm,
        timeout: Duration::from_secs_f64(args.timeout.min(1e9)),
    };
    let mut run = start::run(&setup, |row| {
        eprintln!("{}: {}", args.device, progress(row))
    })?;
    if let [
        StartRow {
            failed: Some(why), ..
        },
    ] = &run.rows[..]
    {
        bail!("{why}");
    }
    // Opened after the processes, whose device it would share. This build may lack it.
    let device = DeviceChoice::from_str(&args.device).ok();
    run.gpu = device.and_then(|device| device.gpu_name());
    let report = StartReport {
        head,
        run,
        baselines,
    };
    if let Some(output) = output {
        output.finish_with(&report::to_json(&report)?)?;
    }
    print(&format!(
        "{}\n{}\n{}",
        tables::model(&report.run),
        tables::runs(&report).text(),
        tables::COLUMNS
    ))?;
    for line in tables::failed(&report.run) {
        print(&format!("{line}\n"))?;
    }
    Ok(())
}

fn progress(row: &StartRow) -> String {
    let result = match (row.phases, &row.failed) {
        (Some(phases), _) => format!(
            "first token after {} s",
            digits(phases.first_token_us / 1e6)
        ),
        (None, why) => format!("not measured: {}", why.as_deref().unwrap_or_default()),
    };
    format!("{} cache: {result}", row.cache.name())
}
