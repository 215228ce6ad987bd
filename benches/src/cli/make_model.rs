//! `sparq-bench make-model`: a checkpoint with random weights.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use sparq_measure::model::ModelName;
use sparq_measure::shape::CacheType;
use sparq_models::progress::Progress;
use sparq_output::numbers::bytes;

use super::args::at_least_one;
use crate::make_model::{GgufType, Recipe};

/// Arguments of `sparq-bench make-model`.
#[derive(Args, Debug)]
pub struct MakeModelArgs {
    /// Published shape
    model: ModelName,
    /// Folder to write, new or empty; with `--gguf` the file
    out: PathBuf,
    /// Write a GGUF file with matrices of this type, without prompts
    #[arg(long, value_enum, value_name = "TYPE", conflicts_with_all = ["dtype", "prompts"])]
    gguf: Option<GgufType>,
    /// Number of layers [default: the published one]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    layers: Option<usize>,
    /// Element type of the weights
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: CacheType,
    /// Seed of the weights and prompts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Lengths of the prompts to write as p<N>.txt, in tokens
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "TOKENS",
        default_value = "4096,8192,32768,131072",
        value_parser = at_least_one
    )]
    prompts: Vec<usize>,
}

/// Runs `sparq-bench make-model`.
pub fn make_model(args: &MakeModelArgs) -> Result<()> {
    let mut config = args.model.config_json();
    if let Some(layers) = args.layers {
        config["num_hidden_layers"] = json!(layers);
    }
    let recipe = Recipe {
        config,
        dtype: args.dtype,
        seed: args.seed,
        prompts: args.prompts.clone(),
        shard_bytes: Recipe::SHARD_BYTES,
    };
    if let Some(kind) = args.gguf {
        return write_gguf(args, &recipe, kind);
    }
    let start = Instant::now();
    let total = recipe.weight_bytes()?;
    let bar = Progress::bytes(args.model.name(), total);
    let written = recipe.write(&args.out, &|bytes| bar.inc(bytes));
    bar.finish();
    let written = written.with_context(|| format!("cannot make {}", args.model.name()))?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!(
        "{}: {} weights, {}, shards: {}, written in {seconds:.1} s ({:.2} GB/s)",
        args.out.display(),
        written.parameters,
        bytes(written.bytes as f64),
        written.shards,
        written.bytes as f64 / seconds / 1e9
    );
    Ok(())
}

fn write_gguf(args: &MakeModelArgs, recipe: &Recipe, kind: GgufType) -> Result<()> {
    let start = Instant::now();
    let written = recipe.write_gguf(&args.out, kind, &|_| ());
    let written = written.with_context(|| format!("cannot make {}", args.model.name()))?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!(
        "{}: weights of {}, written in {seconds:.1} s",
        args.out.display(),
        bytes(written as f64)
    );
    Ok(())
}
