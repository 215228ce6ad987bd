//! `sparq-bench prefill`: whole prompts through models.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, FloatDType};
use clap::{Args, ValueEnum};
use sparq_measure::memory::DeviceMemory;
use sparq_measure::model::ModelName;
use sparq_measure::prefill::{self, PrefillRow, Setup};
use sparq_measure::shape::CacheType;
use sparq_measure::timing::Pace;
use sparq_models::checkpoint::Checkpoint;
use sparq_models::text::GenerateOptions;
use sparq_models::{Decoder, DecoderConfig};
use sparq_output::numbers::digits;

use super::args::{DeviceArgs, OutputArgs, at_least_one, check_positive, model_name, print};
use crate::baselines::{Baselines, PrefillKey};
use crate::report::{self, Bench, Head, PrefillReport};
use crate::tables::prefill as tables;

/// Arguments of `sparq-bench prefill`.
#[derive(Args, Debug)]
pub struct PrefillArgs {
    /// Published shape, as of `make-model`, with random weights; or the folder of a checkpoint
    #[arg(default_value = "llama3-8b", value_name = "SHAPE|DIR")]
    model: String,
    #[command(flatten)]
    device: DeviceArgs,
    /// Lengths of the prompts, in tokens
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "TOKENS",
        default_value = "4096,8192,32768,131072",
        value_parser = at_least_one
    )]
    lengths: Vec<usize>,
    /// Number of layers of a published shape [default: the published one]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    layers: Option<usize>,
    /// Element type of weights, K and V
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: CacheType,
    /// Tokens that the model reads at once [default: as `sparq generate`]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    chunk: Option<usize>,
    /// Prefills of each length; their median is shown
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = at_least_one)]
    samples: usize,
    /// GiB of memory for weights and caches [default: 76 on a GPU, half of the free memory on a
    /// CPU]
    #[arg(long, value_name = "GIB")]
    memory_gib: Option<f64>,
    /// Output of benches/baselines/prefill_baseline.py to show beside the times
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The model to measure.
enum Source {
    Shape(ModelName),
    Checkpoint(Box<Checkpoint>),
}

/// Runs `sparq-bench prefill`.
pub fn prefill(args: &PrefillArgs, command: String) -> Result<()> {
    check_positive("--memory-gib", args.memory_gib)?;
    let (name, source) = args.source()?;
    let config = args.config(&source)?;
    let context = config.max_position_embeddings;
    if let Some(length) = args.lengths.iter().find(|&&length| length > context) {
        bail!("--lengths: expected at most {context}, the model's context, found {length}");
    }
    let key = |&seq_len: &usize| PrefillKey {
        model: name.clone(),
        layers: config.num_hidden_layers,
        dtype: args.dtype,
        seq_len,
    };
    let keys: Vec<PrefillKey> = args.lengths.iter().map(key).collect();
    let compare = args.compare.as_deref();
    let baselines = compare
        .map(|path| Baselines::read(path, &keys))
        .transpose()?;
    let output = args.output.create()?;
    let head = Head::now(Bench::Prefill, command, args.output.commit.clone());
    let device = &args.device.device;
    let memory_gib = args.memory_gib.or(device.is_gpu().then_some(76.0));
    let setup = Setup {
        device: device.clone(),
        memory: DeviceMemory::estimate(device, memory_gib, None, true),
        pace: Pace::BRIEF,
        dtype: args.dtype,
        chunk: args
            .chunk
            .unwrap_or_else(|| GenerateOptions::prefill_chunk_of(device.is_gpu())),
        samples: args.samples,
    };
    let build = |device: &Device| -> Result<Decoder> {
        let dtype = FloatDType::from(args.dtype);
        Ok(match &source {
            Source::Shape(_) => Decoder::init(&config, dtype, device)?,
            Source::Checkpoint(checkpoint) => Decoder::load(checkpoint, &config, dtype, device)?,
        })
    };
    let shown = |row: &PrefillRow| eprintln!("{device}: {name} {}", progress(row));
    let run = prefill::run(&setup, &name, &config, &args.lengths, build, shown)
        .with_context(|| device.to_string())?;
    let report = PrefillReport {
        head,
        run,
        baselines,
    };
    if let Some(output) = output {
        output.finish_with(&report::to_json(&report)?)?;
    }
    print(&format!(
        "{}\n{}\n{}",
        tables::peak(&report),
        tables::lengths(&report).text(),
        tables::COLUMNS
    ))?;
    for line in tables::skipped(&report.run) {
        print(&format!("{line}\n"))?;
    }
    Ok(())
}

fn progress(row: &PrefillRow) -> String {
    let result = match (row.tokens_per_second(), &row.skipped) {
        (Some(rate), _) => format!("{} tokens/s", digits(rate)),
        (None, why) => format!("not measured: {}", why.as_deref().unwrap_or_default()),
    };
    format!("S={}: {result}", row.seq_len)
}

impl PrefillArgs {
    /// The model and its name in the report.
    fn source(&self) -> Result<(String, Source)> {
        if let Ok(model) = ModelName::from_str(&self.model, false) {
            return Ok((model.name().to_owned(), Source::Shape(model)));
        }
        let path = Path::new(&self.model);
        if !path.exists() {
            let names = ModelName::value_variants().iter();
            let names: Vec<&str> = names.map(|model| model.name()).collect();
            bail!(
                "expected the folder of a checkpoint or one of {}, found {:?}",
                names.join(", "),
                self.model
            );
        }
        let checkpoint = Checkpoint::open(path)?;
        Ok((model_name(path), Source::Checkpoint(Box::new(checkpoint))))
    }

    fn config(&self, source: &Source) -> Result<DecoderConfig> {
        match (source, self.layers) {
            (Source::Shape(model), None) => Ok(model.config()),
            (Source::Shape(model), Some(layers)) => {
                let mut json = model.config_json();
                json["num_hidden_layers"] = layers.into();
                let config = DecoderConfig::from_json(&json, Path::new(model.name()));
                config.context("--layers")
            }
            (Source::Checkpoint(checkpoint), None) => {
                Ok(DecoderConfig::from_checkpoint(checkpoint)?)
            }
            (Source::Checkpoint(_), Some(_)) => {
                bail!("--layers: expected the name of a published shape, found a checkpoint")
            }
        }
    }
}
