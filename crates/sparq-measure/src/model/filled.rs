//! A model with filled caches, and the time of its decode steps.

use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::{DType, Device, Distribution, FloatDType, Int, Tensor};
use sparq::Method;
use sparq_models::{CapturedLm, CausalLm, Decoder, ModelCache};

use super::name::RunShape;
use super::record::Captured;
use crate::shape::CacheType;
use crate::stats::Summary;
use crate::timing::wait;

/// Positions that the steps of a run may append.
pub(super) const SLACK: usize = 512;

/// Steps before the samples: the first compiles and autotunes kernels.
const WARM_UPS: usize = 3;

/// Number of samples. Each is the mean over as many steps as fill `SAMPLE_SECONDS`.
const SAMPLES: usize = 15;
const SAMPLE_SECONDS: f64 = 5e-3;
const STEPS_PER_SAMPLE: usize = 12;

/// A model with its caches.
pub(super) struct FilledModel<'a> {
    pub model: &'a Decoder,
    pub method: Method,
    pub cache: ModelCache,
    token: Tensor<2, Int>,
}

impl<'a> FilledModel<'a> {
    /// Fills the caches with S - 1 random positions, so that the first step attends to S.
    pub fn new(
        model: &'a Decoder,
        run: &RunShape,
        dtype: CacheType,
        method: Method,
    ) -> Result<Self> {
        let device = model.device();
        let config = run.model.config();
        let (kv_heads, head_dim) = (config.num_key_value_heads, config.head_dim);
        let dtype = FloatDType::from(dtype);
        let mut cache = model.new_cache(run.batch, run.seq_len + SLACK, dtype, &method)?;
        let shape = [run.batch, kv_heads, run.seq_len - 1, head_dim];
        if run.seq_len > 1 {
            for layer in &mut cache.layers {
                let random = || {
                    let normal = Distribution::Normal(0.0, 1.0);
                    Tensor::<4>::random(shape, normal, (&device, DType::from(dtype)))
                };
                layer.append(random(), random())?;
                layer.refresh_sketch();
            }
        }
        wait(&device)?;
        Ok(Self {
            token: Tensor::zeros([run.batch, 1], &device),
            model,
            method,
            cache,
        })
    }

    /// Times eager steps, each on the token of the step before.
    pub fn eager(&mut self, device: &Device) -> Result<Summary> {
        sample(device, || {
            let token = self.token.clone();
            self.token = most_probable(self.model.decode(token, &mut self.cache, &self.method)?);
            Ok(())
        })
    }

    /// Times dense passes over `rows` tokens of each sequence that verify a draft, captured where
    /// the device can, and taking them back.
    pub fn verification(&mut self, device: &Device, rows: usize) -> Result<Summary> {
        let batch = self.token.dims()[0];
        let (tokens, none) = (Tensor::zeros([batch, rows], device), vec![0; batch]);
        let mark = self.cache.mark();
        let mut decode = CapturedLm::new(self.model, &mut self.cache, Method::DENSE);
        sample(device, || {
            most_probable(decode.prefill(tokens.clone())?);
            Ok(decode.caches_mut().roll_back(&mark, &none)?)
        })
    }

    /// Times captured steps, each on the token of the step before. Token selection runs outside the
    /// graph.
    pub fn captured(&mut self, device: &Device) -> Result<Captured> {
        wait(device)?;
        let mut decode = CapturedLm::new(self.model, &mut self.cache, self.method);
        let token = &mut self.token;
        let time = sample(device, || {
            *token = most_probable(decode.step(token.clone())?);
            Ok(())
        })?;
        Ok(Captured {
            time,
            hardware_graph: decode.is_captured(),
        })
    }
}

/// Selects the most probable tokens [B, T] from logits [B, T, vocab], on the device.
fn most_probable(logits: Tensor<3>) -> Tensor<2, Int> {
    logits.argmax(2).squeeze_dim::<2>(2)
}

/// Times a bounded number of steps: each appends a position to the caches.
fn sample(device: &Device, mut step: impl FnMut() -> Result<()>) -> Result<Summary> {
    let mut timed = |steps: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..steps {
            step()?;
        }
        wait(device)?;
        Ok(start.elapsed().as_secs_f64() / steps as f64)
    };
    let mut last = 0.0;
    for _ in 0..WARM_UPS {
        last = timed(1)?;
    }
    let steps = ((SAMPLE_SECONDS / last).ceil() as usize).clamp(1, STEPS_PER_SAMPLE);
    let seconds = (0..SAMPLES)
        .map(|_| timed(steps))
        .collect::<Result<Vec<f64>>>()?;
    Summary::of(seconds, steps).context("expected at least one sample, found none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filled_caches_hold_every_step() {
        let once = WARM_UPS + SAMPLES * STEPS_PER_SAMPLE;
        // Eager steps, then captured ones.
        assert!(2 * once <= SLACK);
    }
}
