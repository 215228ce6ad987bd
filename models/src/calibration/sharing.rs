//! The attention probability that layers keep at the positions of other layers:
//! [`layer_sharing`].

use burn::tensor::Tensor;
use sparq::{KvCache, SparqError};

use super::{CalibrationError, decode_densely};
use crate::sharing::{LEAST_KEPT, LayerSharing};
use crate::{CausalLm, ModelCache};

/// Decodes `tokens` densely, one by one, and measures for each pair of layers how much of the later
/// layer's attention lies at the positions that the earlier one selects.
///
/// `cache` holds the preceding text of one sequence. In each step, every KV head selects the
/// `top_k` positions with the largest exact probabilities of its group, a quarter of them the most
/// recent ones. `on_step` is called after each token.
///
/// ```
/// use burn::tensor::{Device, FloatDType, Int, Tensor};
/// use sparq::Method;
/// use sparq_models::{CausalLm, Decoder, DecoderConfig, calibration::layer_sharing, embedded};
///
/// let (device, checkpoint) = (Device::default(), embedded::checkpoint()?);
/// let config = DecoderConfig::from_checkpoint(&checkpoint)?;
/// let model = Decoder::load(&checkpoint, &config, FloatDType::F32, &device)?;
/// let mut cache = model.new_cache(1, 128, FloatDType::F32, &Method::DENSE)?;
/// let text: Vec<i64> = (0..100).map(|index| 97 + index % 26).collect();
/// let text = Tensor::<1, Int>::from_ints(text.as_slice(), &device).unsqueeze();
/// model.prefill(text, &mut cache, 1)?;
///
/// let sharing = layer_sharing(&model, &mut cache, &[97, 98], 16, &mut || ())?;
/// let (few, many) = (sharing.plan(2, 0)?, sharing.plan(5, 0)?);
/// assert!(sharing.kept(&few) <= sharing.kept(&many));
/// let model = model.with_sharing(sharing)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// If the model fails, there is no token, a layer has no SparQ attention, or the device fails.
pub fn layer_sharing(
    model: &dyn CausalLm,
    cache: &mut ModelCache,
    tokens: &[u32],
    top_k: usize,
    on_step: &mut dyn FnMut(),
) -> Result<LayerSharing, CalibrationError> {
    let mut sums = Sums::new(cache);
    let mut selections: Vec<Option<Selection>> = vec![None; cache.layers.len()];
    let last = cache.layers.len().saturating_sub(1);
    let mut select = |layer: usize, probabilities: &[f32], _: &Tensor<4>, cache: &mut KvCache| {
        selections[layer] = Some(Selection::new(probabilities, cache, top_k));
        if layer == last {
            sums.add(&selections);
        }
        Ok(())
    };
    decode_densely(model, cache, tokens, &mut select, on_step)?;
    if tokens.is_empty() || selections.iter().any(Option::is_none) {
        let error = SparqError::Value {
            what: "calibration of shared layers",
            expected: "tokens, and SparQ attention in every layer".into(),
            found: "none".into(),
        };
        return Err(error.into());
    }
    Ok(sums.finish(tokens.len(), top_k))
}

/// The probabilities of a layer in a step, and the positions that its KV heads select.
#[derive(Clone)]
struct Selection {
    window: Option<usize>,
    /// Of each query head, [H][S].
    probabilities: Vec<Vec<f32>>,
    /// Query heads of a KV head.
    group: usize,
    /// [H_kv][k].
    positions: Vec<Vec<usize>>,
}

impl Selection {
    /// Selects from the probabilities [H, S] of the positions that a layer attends to.
    fn new(probabilities: &[f32], cache: &KvCache, top_k: usize) -> Self {
        let config = cache.config();
        let len = config.attended(cache.len());
        let group = (probabilities.len() / (len * config.kv_heads).max(1)).max(1);
        let sum = |heads: &[f32]| {
            let mut sum = vec![0.0; len];
            for head in heads.chunks_exact(len) {
                for (sum, probability) in sum.iter_mut().zip(head) {
                    *sum += probability;
                }
            }
            sum
        };
        let groups = probabilities.chunks_exact(group * len);
        Self {
            window: config.window,
            positions: groups.map(|heads| largest(&sum(heads), top_k)).collect(),
            probabilities: probabilities
                .chunks_exact(len)
                .map(<[f32]>::to_vec)
                .collect(),
            group,
        }
    }

    /// Returns the logarithm of the probability of KV head `head` at the positions of each KV head
    /// of `anchor`, averaged over its query heads.
    ///
    /// By query head, because one of a group may be the only one that looks for a position.
    fn log_kept(&self, head: usize, anchor: &Self) -> impl Iterator<Item = f64> {
        let own = &self.probabilities[head * self.group..(head + 1) * self.group];
        let at = move |positions: &Vec<usize>| {
            let log = |own: &Vec<f32>| {
                let kept = positions.iter().map(|&position| own[position]);
                f64::from(kept.sum::<f32>()).clamp(LEAST_KEPT, 1.0).ln()
            };
            own.iter().map(log).sum::<f64>() / own.len() as f64
        };
        anchor.positions.iter().map(at)
    }
}

/// Returns the k positions with the largest probabilities, a quarter of them the last ones.
fn largest(probabilities: &[f32], top_k: usize) -> Vec<usize> {
    let len = probabilities.len();
    if len <= top_k {
        return (0..len).collect();
    }
    let window = len - top_k / 4;
    let mut positions: Vec<usize> = (0..window).collect();
    let count = top_k - top_k / 4;
    if count < window {
        let by_probability = |a: &usize, b: &usize| probabilities[*b].total_cmp(&probabilities[*a]);
        positions.select_nth_unstable_by(count, by_probability);
        positions.truncate(count);
    }
    positions.sort_unstable();
    positions.extend(window..len);
    positions
}

/// The sums over the steps so far.
struct Sums {
    windows: Vec<Option<usize>>,
    kv_heads: usize,
    /// For layers b and a up to b, [H_kv of b, H_kv of a].
    kept: Vec<Vec<Vec<f64>>>,
}

impl Sums {
    fn new(cache: &ModelCache) -> Self {
        let config = |layer: &KvCache| *layer.config();
        let configs: Vec<_> = cache.layers.iter().map(config).collect();
        let kv_heads = configs.first().map_or(0, |config| config.kv_heads);
        let pairs = |b: usize| vec![vec![0.0; kv_heads * kv_heads]; b + 1];
        Self {
            windows: configs.iter().map(|config| config.window).collect(),
            kv_heads,
            kept: (0..configs.len()).map(pairs).collect(),
        }
    }

    /// Adds a step.
    fn add(&mut self, selections: &[Option<Selection>]) {
        for (b, row) in self.kept.iter_mut().enumerate() {
            for (a, sums) in row.iter_mut().enumerate() {
                let (Some(own), Some(anchor)) = (&selections[b], &selections[a]) else {
                    continue;
                };
                if own.window == anchor.window {
                    let heads = sums.chunks_exact_mut(self.kv_heads).enumerate();
                    for (head, sums) in heads {
                        for (sum, kept) in sums.iter_mut().zip(own.log_kept(head, anchor)) {
                            *sum += kept;
                        }
                    }
                }
            }
        }
    }

    fn finish(self, steps: usize, top_k: usize) -> LayerSharing {
        let Self {
            windows, kv_heads, ..
        } = &self;
        let pair = |b: usize, a: usize, sums: &[f64]| {
            if windows[a] != windows[b] {
                return (None, Vec::new());
            }
            let heads = sums.chunks_exact(*kv_heads).enumerate();
            let best = heads.map(|(head, sums)| match a == b {
                // A layer that selects takes the positions of each head for itself.
                true => (head, sums[head]),
                false => {
                    let most = |best: (usize, f64), next: (usize, f64)| match next.1 > best.1 {
                        true => next,
                        false => best,
                    };
                    let sums = sums.iter().copied().enumerate();
                    sums.reduce(most).unwrap_or((head, f64::NEG_INFINITY))
                }
            });
            let (heads, kept): (Vec<u32>, Vec<f64>) =
                best.map(|(head, kept)| (head as u32, kept)).unzip();
            let mean = kept.iter().sum::<f64>() / (kept.len() * steps).max(1) as f64;
            (Some((mean.exp().min(1.0) * 1e4).round() / 1e4), heads)
        };
        let rows = self.kept.iter().enumerate().map(|(b, row)| {
            let pairs = row.iter().enumerate().map(|(a, sums)| pair(b, a, sums));
            let (kept, mut heads): (Vec<_>, Vec<_>) = pairs.unzip();
            heads.truncate(b);
            (kept, heads)
        });
        let (kept, heads) = rows.unzip();
        LayerSharing {
            top_k,
            steps,
            kept,
            heads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_the_largest_and_the_last() {
        let probabilities = [0.1, 0.5, 0.0, 0.4, 0.2, 0.0, 0.0, 0.0];
        assert_eq!(largest(&probabilities, 4), [1, 3, 4, 7]);
        assert_eq!(largest(&probabilities, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(largest(&probabilities, 1), [1]);
        assert_eq!(largest(&probabilities[..3], 7), [0, 1, 2]);
    }
}
