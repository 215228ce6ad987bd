//! Times a checkpoint as the program `sparq` runs it: a prompt in chunks, and decode steps at
//! several depths with dense attention and with SparQ, each until the sampled token is on the host.
//!
//! Other programs that read the same file, such as llama.cpp, are timed by the scripts in
//! `benches/baselines`.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sparq::{Method, SparqConfig};
use sparq_device::DeviceChoice;
use sparq_models::text::{Sampler, SamplingConfig};
use sparq_models::{CapturedLm, CausalLm, Decoder, ModelCache};

use crate::attention::sparq_label;
use crate::shape::CacheType;
use crate::stats::Summary;

/// Decode steps before those that are timed.
const WARM_UPS: usize = 4;

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The device.
    pub device: DeviceChoice,
    /// The element type of the cache and of activations.
    pub dtype: CacheType,
    /// Tokens that the model reads at once.
    pub chunk: usize,
    /// Lengths of the prompts, in tokens.
    pub prompts: Vec<usize>,
    /// Positions in the cache before the timed steps.
    pub depths: Vec<usize>,
    /// Timed steps at each depth.
    pub steps: usize,
    /// How often each prompt, and the steps at each depth, are timed.
    pub samples: usize,
    /// SparQ's settings.
    pub config: SparqConfig,
}

/// The results of one checkpoint on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgramRun {
    /// Name of the device on the command line.
    pub device: String,
    /// Name of the GPU, as reported by the driver.
    pub gpu: Option<String>,
    /// The name of the checkpoint's file or folder.
    pub model: String,
    /// Bytes of its weights.
    pub model_bytes: u64,
    /// The element type of the cache and of activations.
    pub dtype: CacheType,
    /// Tokens that the model reads at once.
    pub chunk: usize,
    /// Timed steps at each depth.
    pub steps: usize,
    /// SparQ's settings.
    pub settings: SparqConfig,
    /// The prompts.
    pub prompts: Vec<PromptRow>,
    /// The decode steps.
    pub decode: Vec<DecodeRow>,
}

/// The prefill of one prompt, with the key sketch of SparQ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptRow {
    /// The length of the prompt.
    pub tokens: usize,
    /// The time of the whole prompt.
    pub time: Summary,
}

/// Decode steps at one depth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecodeRow {
    /// Positions in the cache before the steps.
    pub depth: usize,
    /// The time of one step with dense attention.
    pub dense: Summary,
    /// The time of one step with SparQ.
    pub sparq: Summary,
}

impl PromptRow {
    /// Returns the tokens read per second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.time.median_us * 1e6
    }
}

impl ProgramRun {
    /// The label of SparQ's settings.
    pub fn label(&self) -> String {
        sparq_label(&self.settings)
    }
}

/// Times the prompts, then the steps at each depth, in ascending order. Passes a line for each to
/// `progress`.
///
/// # Errors
/// If the device fails, or a depth with its steps does not fit the model's context.
pub fn run(
    setup: &Setup,
    (name, bytes): (&str, u64),
    model: &Decoder,
    mut progress: impl FnMut(String),
) -> Result<ProgramRun> {
    let mut depths = setup.depths.clone();
    depths.sort_unstable();
    let more = WARM_UPS + setup.steps;
    let longest = depths.last().map_or(0, |depth| depth + more);
    let longest = setup.prompts.iter().copied().fold(longest, usize::max);
    let context = model.context_len();
    ensure!(
        longest <= context,
        "expected prompts and depths with {more} steps of at most {context} positions, the model's \
         context, found {longest}"
    );
    let program = Program {
        setup,
        model,
        sparq: setup.config.into(),
    };
    let dtype = FloatDType::from(setup.dtype);
    let mut cache = model.new_cache(1, longest, dtype, &program.sparq)?;
    let mut prompts = Vec::new();
    for &tokens in &setup.prompts {
        let row = program.prompt(&mut cache, tokens)?;
        progress(format!(
            "prompt of {tokens}: {:.1} tokens/s",
            row.tokens_per_second()
        ));
        prompts.push(row);
    }
    cache.clear();
    let mut decode = Vec::new();
    for depth in depths {
        let len = cache.len();
        program.read(&mut cache, len, depth)?;
        cache.finish_prompt();
        let dense = program.steps(&mut cache, Method::DENSE)?;
        let sparq = program.steps(&mut cache, program.sparq)?;
        let rate = |time: &Summary| 1e6 / time.median_us;
        progress(format!(
            "steps at {depth}: dense {:.1}, SparQ {:.1} tokens/s",
            rate(&dense),
            rate(&sparq)
        ));
        decode.push(DecodeRow {
            depth,
            dense,
            sparq,
        });
    }
    Ok(ProgramRun {
        device: setup.device.to_string(),
        gpu: setup.device.gpu_name(),
        model: name.to_owned(),
        model_bytes: bytes,
        dtype: setup.dtype,
        chunk: setup.chunk,
        steps: setup.steps,
        settings: setup.config,
        prompts,
        decode,
    })
}

/// A model to time.
struct Program<'a> {
    setup: &'a Setup,
    model: &'a Decoder,
    sparq: Method,
}

impl Program<'_> {
    /// Reads a prompt into the empty cache, several times.
    fn prompt(&self, cache: &mut ModelCache, tokens: usize) -> Result<PromptRow> {
        let mut sample = || -> Result<f64> {
            cache.clear();
            let start = Instant::now();
            self.read(cache, 0, tokens)?;
            cache.finish_prompt();
            Ok(start.elapsed().as_secs_f64())
        };
        sample()?;
        let samples = (0..self.setup.samples).map(|_| sample());
        let samples = samples.collect::<Result<_>>()?;
        let time = Summary::of(samples, 1).context("expected at least one sample, found none")?;
        Ok(PromptRow { tokens, time })
    }

    /// Reads tokens at the positions `from..to`, in chunks.
    fn read(&self, cache: &mut ModelCache, from: usize, to: usize) -> Result<()> {
        for first in (from..to).step_by(self.setup.chunk) {
            let tokens = first..to.min(first + self.setup.chunk);
            // The stride is a prime, so that neighbours differ and all tokens occur.
            let token = |at: usize| (at * 7919 % self.model.vocab_size()) as i64;
            let tokens: Vec<i64> = tokens.map(token).collect();
            let logits = self
                .model
                .prefill(upload(tokens, &self.model.device()), cache, 1)?;
            // The program downloads the logits of every chunk too.
            download(logits)?;
        }
        Ok(())
    }

    /// Times steps from the cache's length on, several times, and removes their positions again.
    fn steps(&self, cache: &mut ModelCache, method: Method) -> Result<Summary> {
        let depth = cache.len();
        let mut sampler = Sampler::new(SamplingConfig::default())?;
        let mut seconds = Vec::new();
        for _ in 0..self.setup.samples {
            let mut token = 0;
            let mut decode = CapturedLm::new(self.model, cache, method);
            let mut steps = |count: usize| -> Result<f64> {
                let start = Instant::now();
                for _ in 0..count {
                    let input = upload(vec![i64::from(token)], &self.model.device());
                    let mut logits = download(decode.step(input)?)?;
                    token = sampler.sample(&mut logits, &[])?;
                }
                Ok(start.elapsed().as_secs_f64())
            };
            steps(WARM_UPS)?;
            seconds.push(steps(self.setup.steps)? / self.setup.steps as f64);
            drop(decode);
            cache.truncate(depth);
        }
        Summary::of(seconds, self.setup.steps).context("expected at least one sample, found none")
    }
}

/// Copies the tokens of one sequence to the device, [1, T].
fn upload(tokens: Vec<i64>, device: &Device) -> Tensor<2, Int> {
    let shape = [1, tokens.len()];
    Tensor::from_data(TensorData::new(tokens, shape), device)
}

/// Copies logits from the device.
fn download(logits: Tensor<3>) -> Result<Vec<f32>> {
    let logits = logits.try_into_vec_as::<f32>();
    logits.map_err(|error| anyhow::anyhow!("the logits cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelName;

    fn setup(depths: &[usize]) -> Setup {
        Setup {
            device: sparq_device::available()[0].clone(),
            dtype: CacheType::F32,
            chunk: 16,
            prompts: vec![8, 40],
            depths: depths.to_vec(),
            steps: 3,
            samples: 2,
            config: SparqConfig::new(4, 12),
        }
    }

    #[test]
    fn program_is_timed_at_every_depth() {
        let setup = setup(&[30, 0]);
        let model = ModelName::Tiny
            .build(CacheType::F32, None, &setup.device.open())
            .unwrap();
        let mut lines = Vec::new();
        let run = run(&setup, ("tiny", 7), &model, |line| lines.push(line)).unwrap();
        assert_eq!(lines.len(), 4);
        let depths: Vec<usize> = run.decode.iter().map(|row| row.depth).collect();
        assert_eq!(depths, [0, 30]);
        assert!(run.prompts.iter().all(|row| row.tokens_per_second() > 0.0));
        assert!(run.decode.iter().all(|row| row.dense.samples == 2));
        assert_eq!((run.model.as_str(), run.model_bytes), ("tiny", 7));
    }

    #[test]
    fn program_beyond_the_context_is_refused() {
        let setup = setup(&[1 << 30]);
        let model = ModelName::Tiny
            .build(CacheType::F32, None, &setup.device.open())
            .unwrap();
        let error = run(&setup, ("tiny", 7), &model, |_| ()).unwrap_err();
        assert!(error.to_string().contains("context"), "{error}");
    }
}
