//! The arguments of `sparq plan`, and the model and machine they name.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::FloatDType;
use clap::Args;
use sparq::SparqConfig;
use sparq::cost::Gpu;
use sparq_device::DeviceChoice;
use sparq_measure::host::Host;
use sparq_measure::machine as measurement;
use sparq_measure::memory::DeviceMemory;
use sparq_measure::shape::CacheType;
use sparq_measure::timing::Pace;
use sparq_models::DecoderConfig;
use sparq_plan::{Machine, ModelShape, Setup};

use super::document::Measured;
use crate::args::{at_least_one, dtype_parser, positive, share};
use crate::method::SparqArgs;
use crate::model::{ModelSource, element_bytes};

const EXAMPLES: &str = "\
Examples:
  sparq plan DIR --machine H100 --context 131072 --batch 8
  sparq plan DIR/config.json --machine H200 --gpus 4 --price 10
  sparq plan DIR --measure --save machine.json
  sparq plan DIR --machine machine.json --eval runs.jsonl --keep 0.99

Times are predictions. docs/planning.md describes their errors and omissions.";

/// The arguments of `sparq plan`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PlanArgs {
    /// Model: a folder, a GGUF file, an ID on the Hugging Face Hub, or a config.json alone. Without
    /// it, the embedded model
    #[arg(value_name = "DIR|config.json|HUB-ID")]
    model: Option<String>,
    /// Machine: part of a GPU's name, or a file written by --save
    #[arg(
        long,
        value_name = "NAME|FILE",
        default_value = "H100",
        conflicts_with = "measure"
    )]
    machine: String,
    /// Measure the --device of this machine first: attention on the model's heads, matrix products
    /// of its width, and a small model
    #[arg(long)]
    measure: bool,
    /// Write the measured machine to a file for --machine
    #[arg(long, value_name = "FILE", requires = "measure")]
    pub save: Option<PathBuf>,
    /// S: number of positions in the cache of each sequence
    #[arg(long, value_parser = at_least_one, default_value = "32768", value_name = "S")]
    pub context: usize,
    /// B: number of sequences decoded together
    #[arg(long, value_parser = at_least_one, default_value = "1", value_name = "B")]
    pub batch: usize,
    /// Type of weights and cache
    #[arg(long, value_parser = dtype_parser(), default_value = "f16", value_name = "TYPE")]
    pub dtype: FloatDType,
    /// Number of GPUs that share the KV heads of each layer
    #[arg(long, value_parser = at_least_one, default_value = "1", value_name = "N")]
    gpus: usize,
    /// Microseconds of an all-reduce between the GPUs. A layer has two [default: not counted]
    #[arg(long, value_name = "US")]
    all_reduce_us: Option<f64>,
    /// Share of drafted tokens that dense attention accepts, to predict lossless decoding
    #[arg(long, value_parser = share, default_value = "0.9", value_name = "SHARE")]
    pub acceptance: f64,
    /// Price of a GPU per hour, in any currency
    #[arg(long, value_parser = positive, value_name = "PRICE")]
    pub price: Option<f64>,
    /// Memory of the machine (of each GPU) in 10^9 bytes [default: that of --machine]
    #[arg(long, value_parser = positive, value_name = "GB")]
    memory_gb: Option<f64>,
    /// Share of the memory for weights and caches
    #[arg(long, value_parser = positive, default_value = "0.9", value_name = "SHARE")]
    memory_share: f64,
    /// Bandwidth of matrix products that read weights, in 10^9 bytes per second [default: the
    /// bandwidth this program reaches]
    #[arg(long, value_parser = positive, value_name = "GB/S")]
    weights_gb_per_s: Option<f64>,
    /// Method to compare with dense attention instead of SparQ, with settings after a colon
    /// (h2o:k=64)
    #[arg(long = "method", value_name = "METHOD")]
    pub methods: Vec<String>,
    /// Give the methods named, or all methods, the settings that move this share of dense
    /// attention's bytes
    #[arg(long, value_parser = crate::args::share, value_name = "SHARE")]
    pub budget: Option<f64>,
    /// The settings of SparQ. By default the full and the 4-bit sketch, r = head_dim / 4, k = 128.
    #[command(flatten)]
    pub sparq: SparqArgs,
    /// Results files of `sparq eval`. Adds their cheapest method and budget that keeps --keep
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub eval: Vec<PathBuf>,
    /// Share of dense attention's score to keep in every task of --eval
    #[arg(long, value_parser = positive, default_value = "0.99", value_name = "SHARE", requires = "eval")]
    pub keep: f64,
}

/// The parts of a model that planning needs.
pub struct Model {
    /// The source.
    pub source: ModelSource,
    /// The sizes.
    pub shape: ModelShape,
    /// The settings of SparQ stored with a converted model.
    pub attention: Option<SparqConfig>,
}

impl PlanArgs {
    /// Reads the model. A `config.json` needs no other file.
    pub fn model(&self) -> Result<Model> {
        let name = self.model.as_deref();
        if let Some(path) = name.map(Path::new).filter(|path| is_config(path)) {
            let named = || path.display().to_string();
            let text = std::fs::read_to_string(path).with_context(named)?;
            let value = serde_json::from_str(&text)
                .with_context(|| format!("{}: expected JSON", path.display()))?;
            let config = DecoderConfig::from_json(&value, path)?;
            return Ok(Model {
                source: ModelSource::at(path, named()),
                shape: ModelShape::of(&config),
                attention: None,
            });
        }
        let source = ModelSource::find(name)?;
        let checkpoint = source.checkpoint()?;
        let config = DecoderConfig::from_checkpoint(&checkpoint)?;
        Ok(Model {
            shape: ModelShape::of(&config),
            attention: checkpoint.attention(),
            source,
        })
    }

    /// Finds or measures the machine, and applies the options that override its figures.
    pub fn machine(
        &self,
        model: &ModelShape,
        device: &DeviceChoice,
    ) -> Result<(Machine, Option<Measured>)> {
        let (mut machine, measured) = match self.measure {
            false => (Machine::find(&self.machine).context("--machine")?, None),
            true => {
                let (machine, measured) = self.measured(model, device)?;
                (machine, Some(measured))
            }
        };
        machine.memory_gb = self.memory_gb.unwrap_or(machine.memory_gb);
        if let Some(rate) = self.weights_gb_per_s {
            (machine.weights_gb_per_s, machine.many_weights_gb_per_s) = (rate, None);
        }
        Ok((machine, measured))
    }

    fn measured(&self, model: &ModelShape, device: &DeviceChoice) -> Result<(Machine, Measured)> {
        let known = device.gpu_name();
        let known = known.as_deref().and_then(Gpu::named);
        let host = match device.is_gpu() {
            false => Host::this().memory_bytes,
            true => None,
        };
        let memory_gb = self
            .memory_gb
            .or(known.map(|gpu| gpu.memory_gb))
            .or(host.map(|bytes| bytes as f64 / 1e9));
        let Some(memory_gb) = memory_gb else {
            bail!("--measure: the memory of {device} is unknown; set it with --memory-gb");
        };
        let dtype = match self.dtype {
            FloatDType::F16 => CacheType::F16,
            FloatDType::BF16 => CacheType::Bf16,
            _ => CacheType::F32,
        };
        let setup = measurement::Setup {
            device: device.clone(),
            memory: DeviceMemory::estimate(device, None, None, true),
            pace: Pace::BRIEF,
            dtype,
            memory_gb,
            tflops: known.map(|gpu| gpu.tflops),
        };
        let progress = |stage: &str| eprintln!("measuring {stage} on {device} ...");
        let found = measurement::measure(&setup, model, progress).context("--measure")?;
        let measured = Measured {
            attention_steps: found.fit.errors.count(),
            mean_error: found.fit.errors.mean(),
            worst_error: found.fit.errors.worst(),
        };
        Ok((found.machine, measured))
    }

    /// Returns the model on the machine, after checking that they fit.
    pub fn setup(&self, model: ModelShape, machine: Machine) -> Result<Setup> {
        let setup = Setup {
            gpus: self.gpus,
            all_reduce_us: self.all_reduce_us.unwrap_or(0.0),
            memory_share: self.memory_share,
            ..Setup::new(model, machine, element_bytes(self.dtype))
        };
        setup.validate()?;
        Ok(setup)
    }
}

/// Returns whether a path is a configuration alone.
fn is_config(path: &Path) -> bool {
    path.is_file()
        && path
            .extension()
            .is_some_and(|extension| extension == "json")
}
