//! Times the prefill of whole models: a prompt of random tokens through all layers, in chunks, as
//! the program reads it, until the last logits are on the host.

mod record;

use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use sparq::Method;
use sparq_device::DeviceChoice;
use sparq_models::{CausalLm, Decoder, DecoderConfig, ModelCache};

use crate::calls::check;
use crate::guard::guarded;
use crate::matrix;
use crate::memory::DeviceMemory;
use crate::model::layer_matrices;
use crate::shape::CacheType;
use crate::stats::Summary;
use crate::timing::{Pace, wait};
pub use record::{Flops, PrefillRow, PrefillRun, Split};

/// Chunks that a prompt reads before it is timed, so that kernels are compiled: the first chunk
/// attends to itself, the others to earlier ones too.
const WARM_UP_CHUNKS: usize = 2;

/// The settings that all lengths share.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The device.
    pub device: DeviceChoice,
    /// Its memory.
    pub memory: DeviceMemory,
    /// How long to measure the matrix peak.
    pub pace: Pace,
    /// The element type of weights and caches.
    pub dtype: CacheType,
    /// The number of positions that one pass of the model reads.
    pub chunk: usize,
    /// The number of timed prefills of each length.
    pub samples: usize,
}

/// Measures the matrix peak, then the prefill of a prompt of each length by the model that `build`
/// makes. Passes each row to `progress`. `name` is the name of the model in the results.
///
/// A length that does not fit gives a row with the reason.
///
/// # Errors
/// If the device fails while its matrix peak is measured, or `build` fails.
pub fn run(
    setup: &Setup,
    name: &str,
    config: &DecoderConfig,
    lengths: &[usize],
    build: impl FnOnce(&Device) -> Result<Decoder>,
    mut progress: impl FnMut(&PrefillRow),
) -> Result<PrefillRun> {
    let matrix = matrix::measure(&setup.device, setup.dtype, &setup.pace)?;
    let device = setup.device.open();
    device.memory_cleanup();
    let model = build(&device)?;
    let mut rows = Vec::new();
    for &seq_len in lengths {
        let mut row = PrefillRow::new(config, seq_len, setup.chunk);
        match measure(setup, config, &model, seq_len) {
            Ok(measured) => {
                row.time = Some(measured.time);
                row.split = measured.split;
                row.reserved_bytes = measured.reserved_bytes;
            }
            Err(why) => row.skipped = Some(why),
        }
        progress(&row);
        rows.push(row);
        device.memory_cleanup();
    }
    Ok(PrefillRun {
        device: setup.device.to_string(),
        gpu: setup.device.gpu_name(),
        model: name.to_owned(),
        layers: config.num_hidden_layers,
        dtype: setup.dtype,
        chunk: setup.chunk,
        matrix,
        rows,
    })
}

struct Measured {
    time: Summary,
    split: Option<Split>,
    reserved_bytes: Option<u64>,
}

fn measure(
    setup: &Setup,
    config: &DecoderConfig,
    model: &Decoder,
    seq_len: usize,
) -> Result<Measured, String> {
    let needed = memory_bytes(config, setup, seq_len);
    if needed > setup.memory.available {
        return Err(setup.memory.too_small_for(needed));
    }
    guarded(|| {
        let device = model.device();
        let dtype = FloatDType::from(setup.dtype);
        let mut cache = model.new_cache(1, seq_len, dtype, &Method::DENSE)?;
        let warm_up = seq_len.min(WARM_UP_CHUNKS * setup.chunk);
        prefill(model, &mut cache, warm_up, setup.chunk)?;
        wait(&device)?;
        let samples = (0..setup.samples).map(|_| prefill(model, &mut cache, seq_len, setup.chunk));
        let samples = samples.collect::<Result<Vec<_>>>()?;
        let totals = samples.iter().map(|chunks| chunks.iter().sum()).collect();
        let time = Summary::of(totals, 1).context("expected at least one sample, found none")?;
        Ok(Measured {
            split: split(config, setup.chunk, seq_len, &samples, &time),
            reserved_bytes: device.memory_pool_usage().map(|usage| usage.bytes_reserved),
            time,
        })
    })
}

/// Reads a prompt of `seq_len` tokens into an empty cache. Returns the seconds of each chunk.
fn prefill(
    model: &Decoder,
    cache: &mut ModelCache,
    seq_len: usize,
    chunk: usize,
) -> Result<Vec<f64>> {
    cache.clear();
    let mut seconds = Vec::new();
    for from in (0..seq_len).step_by(chunk) {
        let start = Instant::now();
        let tokens = tokens(model, from, seq_len.min(from + chunk));
        let logits = model.prefill(tokens, cache, 1)?;
        // The program downloads the logits of every chunk too.
        check(logits.unsqueeze::<4>())?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// Tokens of the positions `from..to`, spread over the vocabulary.
fn tokens(model: &Decoder, from: usize, to: usize) -> Tensor<2, Int> {
    // The stride is a prime, so that neighbours differ and all tokens occur.
    let token = |at: usize| (at * 7919 % model.vocab_size()) as i64;
    let ids: Vec<i64> = (from..to).map(token).collect();
    Tensor::from_data(TensorData::new(ids, [1, to - from]), &model.device())
}

/// The parts of a prefill, from the shortest time of each whole chunk.
fn split(
    config: &DecoderConfig,
    chunk: usize,
    seq_len: usize,
    samples: &[Vec<f64>],
    time: &Summary,
) -> Option<Split> {
    let chunks = (0..seq_len / chunk).filter_map(|index| {
        let times = samples.iter().map(|seconds| seconds[index]);
        let shortest = times.min_by(f64::total_cmp)?;
        let pairs = record::pairs(config, index * chunk, (index + 1) * chunk);
        Some((pairs, 1e6 * shortest))
    });
    let chunks: Vec<(f64, f64)> = chunks.collect();
    Split::of(&chunks, record::pairs(config, 0, seq_len), time.median_us)
}

/// Bytes of weights, K, V and the activations of a chunk.
fn memory_bytes(config: &DecoderConfig, setup: &Setup, seq_len: usize) -> f64 {
    let element = setup.dtype.bytes();
    let tables = if config.tie_word_embeddings { 1 } else { 2 };
    let weights = layer_matrices(config) + tables * config.vocab_size * config.hidden_size;
    let heads = config.num_hidden_layers * config.num_key_value_heads;
    let cache = 2 * heads * config.head_dim * seq_len;
    // The residual stream, q, k, v and their rotated copies, gate, up and their product.
    let width = 4 * config.hidden_size
        + 6 * config.num_attention_heads * config.head_dim
        + 3 * config.intermediate_size;
    (element * (weights + cache + width * setup.chunk.min(seq_len))) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelName;

    #[test]
    fn prefill_of_a_small_model_is_measured() {
        let device = sparq_device::available()[0].clone();
        let setup = Setup {
            memory: DeviceMemory::estimate(&device, None, None, false),
            device,
            pace: Pace::QUICK,
            dtype: CacheType::F32,
            chunk: 16,
            samples: 2,
        };
        let config = ModelName::Tiny.config();
        let build = |device: &Device| ModelName::Tiny.build(CacheType::F32, None, device);
        let mut seen = Vec::new();
        let run = run(&setup, "tiny", &config, &[8, 50], build, |row| {
            seen.push(row.seq_len);
        })
        .unwrap();
        assert_eq!(seen, [8, 50]);
        for row in &run.rows {
            assert_eq!(row.skipped, None);
            assert_eq!(row.time.unwrap().samples, 2);
            assert!(row.tokens_per_second().unwrap() > 0.0 && row.tflops().unwrap() > 0.0);
        }
        assert!(run.rows[1].flops.total() > run.rows[0].flops.total());
    }

    #[test]
    fn prefill_too_large_names_the_memory() {
        let device = sparq_device::available()[0].clone();
        let setup = Setup {
            memory: DeviceMemory::estimate(&device, Some(1e-6), None, false),
            device,
            pace: Pace::QUICK,
            dtype: CacheType::F32,
            chunk: 16,
            samples: 1,
        };
        let config = ModelName::Tiny.config();
        let build = |device: &Device| ModelName::Tiny.build(CacheType::F32, None, device);
        let run = run(&setup, "tiny", &config, &[8], build, |_| ()).unwrap();
        let why = run.rows[0].skipped.as_deref().unwrap();
        assert!(why.contains("--memory-gib"), "{why}");
    }
}
