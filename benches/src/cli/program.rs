//! `sparq-bench program`: a checkpoint as the program `sparq` runs it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use burn::tensor::FloatDType;
use clap::Args;
use sparq::{Sketch, SparqConfig};
use sparq_measure::program::{self, Setup};
use sparq_measure::shape::CacheType;
use sparq_models::checkpoint::Checkpoint;
use sparq_models::text::GenerateOptions;
use sparq_models::{Decoder, DecoderConfig};

use super::args::{DeviceArgs, OutputArgs, at_least_one, model_name, name_of, print};
use crate::baselines::{Baselines, ProgramKey};
use crate::report::{self, Bench, Head, ProgramReport};
use crate::tables::program as tables;

/// Arguments of `sparq-bench program`.
#[derive(Args, Debug)]
pub struct ProgramArgs {
    /// A GGUF file, or the folder of a checkpoint
    model: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// Element type of the cache and of activations
    #[arg(long, value_enum, default_value = "f16")]
    dtype: CacheType,
    /// Lengths of the prompts, in tokens
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "TOKENS",
        default_value = "2048",
        value_parser = at_least_one
    )]
    prompts: Vec<usize>,
    /// Positions in the cache before the decode steps
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "TOKENS",
        default_value = "0,2048,7680"
    )]
    depths: Vec<usize>,
    /// Decode steps at each depth
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = at_least_one)]
    steps: usize,
    /// How often each prompt, and the steps at each depth, are timed; the median is shown
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = at_least_one)]
    samples: usize,
    /// Tokens that the model reads at once [default: as `sparq generate`]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    chunk: Option<usize>,
    /// r [default: a quarter of the head dimension]
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// k
    #[arg(long, default_value_t = 128, value_name = "K")]
    top_k: usize,
    /// Key sketch of SparQ
    #[arg(
        long,
        value_name = "SKETCH",
        default_value = "4bits",
        value_parser = name_of::<Sketch>(["full", "8bits", "4bits"])
    )]
    sketch: Sketch,
    /// Output of benches/baselines/llama_cpp_baseline.py to show beside the times
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `sparq-bench program`.
pub fn program(args: &ProgramArgs, command: String) -> Result<()> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let config = DecoderConfig::from_checkpoint(&checkpoint)?;
    let name = model_name(&args.model);
    let rank = args.rank.unwrap_or((config.head_dim / 4).max(1));
    let settings = SparqConfig::new(rank, args.top_k).with_sketch(args.sketch);
    settings.validate(config.head_dim)?;
    let prompts = args
        .prompts
        .iter()
        .map(|&tokens| ProgramKey::Prompt { tokens });
    let decode = args
        .depths
        .iter()
        .map(|&depth| ProgramKey::Decode { depth });
    let keys: Vec<ProgramKey> = prompts.chain(decode).collect();
    let compare = args.compare.as_deref();
    let baselines = compare
        .map(|path| Baselines::read(path, &keys))
        .transpose()?;
    let output = args.output.create()?;
    let head = Head::now(Bench::Program, command, args.output.commit.clone());
    let choice = &args.device.device;
    let setup = Setup {
        device: choice.clone(),
        dtype: args.dtype,
        chunk: args
            .chunk
            .unwrap_or_else(|| GenerateOptions::prefill_chunk_of(choice.is_gpu())),
        prompts: args.prompts.clone(),
        depths: args.depths.clone(),
        steps: args.steps,
        samples: args.samples,
        config: settings,
    };
    let device = choice.open();
    let model = Decoder::load(&checkpoint, &config, FloatDType::from(args.dtype), &device)?;
    let shown = |line: String| eprintln!("{choice}: {name}, {line}");
    let run = program::run(&setup, (&name, checkpoint.num_bytes()), &model, shown)
        .with_context(|| choice.to_string())?;
    let report = ProgramReport {
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
        tables::rates(&report).text(),
        tables::COLUMNS
    ))
}
