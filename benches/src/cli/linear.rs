//! `sparq-bench linear`: the linear layers of a decode step.

use anyhow::{Context, Result};
use clap::Args;
use sparq::ops::BlockFormat;
use sparq_measure::linear::{self, LayerSizes, Row, Setup, Types};
use sparq_measure::memory::DeviceMemory;
use sparq_measure::shape::CacheType;
use sparq_measure::timing::Pace;

use super::args::{DeviceArgs, OutputArgs, check_positive, parse_format, print};
use crate::report::{self, Bench, Head, LinearReport};
use crate::tables::linear as tables;

/// Arguments of `sparq-bench linear`.
#[derive(Args, Debug)]
pub struct LinearArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Model whose layers are measured
    #[arg(long, value_enum, default_value = "llama3-8b")]
    sizes: LayerSizes,
    /// Element type of activations, and of weights without --weights
    #[arg(long, value_enum, default_value = "f16")]
    dtype: CacheType,
    /// Format of packed weights, such as q8_0 or q4_k
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    weights: Option<BlockFormat>,
    /// Numbers of rows: sequences of a decode step, or tokens of a prompt
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,4,8,16,32",
        value_name = "ROWS",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    rows: Vec<u32>,
    /// Seconds to measure each case
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// GiB of memory for weights [default: 24 on a GPU, half of the free memory on a CPU]
    #[arg(long, value_name = "GIB")]
    memory_gib: Option<f64>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `sparq-bench linear`.
pub fn linear(args: &LinearArgs, command: String) -> Result<()> {
    check_positive("--seconds", args.seconds)?;
    check_positive("--memory-gib", args.memory_gib)?;
    let output = args.output.create()?;
    let head = Head::now(Bench::Linear, command, args.output.commit.clone());
    let device = &args.device.device;
    let setup = Setup {
        device: device.clone(),
        memory: DeviceMemory::estimate(device, args.memory_gib, None, true),
        pace: Pace {
            seconds: args.seconds.unwrap_or(Pace::BRIEF.seconds),
            ..Pace::BRIEF
        },
        types: Types {
            dtype: args.dtype,
            weights: args.weights,
        },
        sizes: args.sizes,
        rows: args.rows.iter().map(|&rows| rows as usize).collect(),
    };
    let run = linear::run(&setup, |row| eprintln!("{device}: {}", progress(row)))
        .with_context(|| device.to_string())?;
    let report = LinearReport { head, run };
    if let Some(output) = output {
        output.finish_with(&report::to_json(&report)?)?;
    }
    print(&tables::operations(&report.run).text())?;
    for row in &report.run.rows {
        if let Some(why) = &row.skipped {
            print(&format!(
                "{}, {} rows: {why}\n",
                row.operation.name, row.rows
            ))?;
        }
    }
    Ok(())
}

fn progress(row: &Row) -> String {
    let result = match (&row.measured, &row.skipped) {
        (Some(measured), _) => format!("{:.1} us", measured.time.median_us),
        (None, why) => format!("not measured: {}", why.as_deref().unwrap_or_default()),
    };
    format!("{}, {} rows: {result}", row.operation.name, row.rows)
}
