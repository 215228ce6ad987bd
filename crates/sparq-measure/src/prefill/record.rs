//! The measured rows of a prefill. Their fields are part of the schema of the JSON reports: times
//! in microseconds, sizes in bytes.

use serde::{Deserialize, Serialize};
use sparq_models::DecoderConfig;

use crate::matrix::MatrixRate;
use crate::model::layer_matrices;
use crate::shape::CacheType;
use crate::stats::Summary;

/// The results of one model on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrefillRun {
    /// Name of the device on the command line.
    pub device: String,
    /// Name of the GPU, as reported by the driver.
    pub gpu: Option<String>,
    /// The model: the name of a published shape, or of a folder.
    pub model: String,
    /// Its number of layers.
    pub layers: usize,
    /// The element type of weights, K and V.
    pub dtype: CacheType,
    /// The number of positions that one pass of the model reads.
    pub chunk: usize,
    /// The matrix peak, measured just before the rows.
    pub matrix: MatrixRate,
    /// The rows, one per length.
    pub rows: Vec<PrefillRow>,
}

/// The prefill of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrefillRow {
    /// S: number of tokens of the prompt.
    pub seq_len: usize,
    /// The floating-point operations.
    pub flops: Flops,
    /// The whole prefill, until the last logits are on the host.
    pub time: Option<Summary>,
    /// The parts of the median, estimated from the times of the chunks.
    pub split: Option<Split>,
    /// Memory that the device's allocator held after the prefill.
    pub reserved_bytes: Option<u64>,
    /// The reason why the row was not measured.
    pub skipped: Option<String>,
}

impl PrefillRow {
    /// A row without measurements.
    pub(super) fn new(config: &DecoderConfig, seq_len: usize, chunk: usize) -> Self {
        Self {
            seq_len,
            flops: Flops::of(config, seq_len, chunk),
            time: None,
            split: None,
            reserved_bytes: None,
            skipped: None,
        }
    }

    /// Median time in microseconds.
    pub fn median_us(&self) -> Option<f64> {
        self.time.map(|time| time.median_us)
    }

    /// Tokens per second.
    pub fn tokens_per_second(&self) -> Option<f64> {
        self.median_us().map(|us| self.seq_len as f64 / us * 1e6)
    }

    /// 10^12 floating-point operations per second.
    pub fn tflops(&self) -> Option<f64> {
        self.median_us().map(|us| self.flops.total() / us / 1e6)
    }
}

/// The floating-point operations of a prefill, a multiplication and an addition counted as two.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flops {
    /// Products with the matrices of all layers, 2 per weight and token, and with the head, for
    /// the last token of each chunk.
    pub products: f64,
    /// Products of attention: 4 per layer, query head, component, and pair of a query and a
    /// position it attends to. Causality and sliding windows limit the pairs.
    pub attention: f64,
}

impl Flops {
    /// Counts the operations of a prompt of `seq_len` tokens, read in chunks.
    pub fn of(config: &DecoderConfig, seq_len: usize, chunk: usize) -> Self {
        let layers = layer_matrices(config) as f64 * seq_len as f64;
        let heads = (config.vocab_size * config.hidden_size * seq_len.div_ceil(chunk)) as f64;
        let width = 4 * config.num_attention_heads * config.head_dim;
        Self {
            products: 2.0 * (layers + heads),
            attention: width as f64 * pairs(config, 0, seq_len),
        }
    }

    /// All operations.
    pub fn total(&self) -> f64 {
        self.products + self.attention
    }
}

/// Pairs of a query at one of the positions `from..to` and a position it attends to, summed over
/// the layers.
pub(super) fn pairs(config: &DecoderConfig, from: usize, to: usize) -> f64 {
    // A query at position p sees p + 1 positions, or the window.
    let below = |end: usize, window: usize| {
        let grown = end.min(window) as f64;
        grown * (grown + 1.0) / 2.0 + (end as f64 - grown) * window as f64
    };
    let layers = (0..config.num_hidden_layers).map(|layer| {
        let window = config.window(layer).unwrap_or(usize::MAX);
        below(to, window) - below(from, window)
    });
    layers.sum()
}

/// The parts of a prefill, from a line through the times of the chunks over their pairs of query
/// and position. The time of attention grows with the pairs; that of everything else does not.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// The part that grows with the pairs.
    pub attention_us: f64,
    /// The rest: products with matrices, norms, elementwise operations, launches.
    pub rest_us: f64,
}

impl Split {
    /// The least number of chunks for a line.
    const MIN_CHUNKS: usize = 4;

    /// Estimates the parts of `total_us` from the pairs and the times of whole chunks. `None` with
    /// too few chunks, with equal pairs, as in a sliding window, or if the line has no meaning
    /// because the times vary.
    pub(super) fn of(chunks: &[(f64, f64)], all_pairs: f64, total_us: f64) -> Option<Self> {
        if chunks.len() < Self::MIN_CHUNKS {
            return None;
        }
        let count = chunks.len() as f64;
        let mean = |of: &dyn Fn(&(f64, f64)) -> f64| chunks.iter().map(of).sum::<f64>() / count;
        let (pairs, us) = (mean(&|chunk| chunk.0), mean(&|chunk| chunk.1));
        let variance = mean(&|chunk| (chunk.0 - pairs).powi(2));
        let covariance = mean(&|chunk| (chunk.0 - pairs) * (chunk.1 - us));
        let attention_us = covariance / variance * all_pairs;
        // A comparison with NaN, of equal pairs, is false.
        (attention_us > 0.0 && attention_us < total_us).then_some(Self {
            attention_us,
            rest_us: total_us - attention_us,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelName;

    #[test]
    fn flops_of_a_published_model() {
        // 2 * 6.98e9 weights in layers, 4 * 32 layers * 4096 components * 33.6e6 pairs.
        let config = ModelName::Llama3.config();
        let flops = Flops::of(&config, 8192, 8192);
        assert!((flops.products / 8192.0 / 13.96e9 - 1.0).abs() < 1e-3);
        assert!((flops.attention / 17.59e12 - 1.0).abs() < 1e-3);
    }

    #[test]
    fn pairs_end_at_the_window() {
        let mut config = ModelName::Tiny.config();
        let brute = |window: usize, from: usize, to: usize| {
            let seen: usize = (from..to).map(|at| (at + 1).min(window)).sum();
            (config.num_hidden_layers * seen) as f64
        };
        let expected = [brute(usize::MAX, 3, 9), brute(4, 3, 9), brute(4, 0, 2)];
        assert_eq!(pairs(&config, 3, 9), expected[0]);
        config.windows = vec![Some(4); config.num_hidden_layers];
        assert_eq!(pairs(&config, 3, 9), expected[1]);
        assert_eq!(pairs(&config, 0, 2), expected[2]);
    }

    #[test]
    fn split_separates_what_grows() {
        let chunks: Vec<(f64, f64)> = (1..=5)
            .map(|i| (f64::from(i), 10.0 + f64::from(i)))
            .collect();
        let split = Split::of(&chunks, 15.0, 65.0).unwrap();
        assert!((split.attention_us - 15.0).abs() < 1e-9 && (split.rest_us - 50.0).abs() < 1e-9);
        assert_eq!(Split::of(&chunks[..3], 6.0, 36.0), None);
        assert_eq!(
            Split::of(&[(1.0, 2.0); 5], 5.0, 10.0),
            None,
            "a sliding window"
        );
    }
}
