//! The attention probability that SparQ keeps on a text: [`kept_mass`], and that layers keep at the
//! positions of other layers: [`layer_sharing`].
//!
//! Nothing is trained. The model decodes the text densely. Each decode step sums the exact
//! attention probability of the positions that SparQ would have selected. A setting that keeps
//! nearly all of it in every head changes the model's output little.

mod sharing;

pub use sharing::layer_sharing;

use burn::tensor::{FloatDType, Int, Tensor, TensorData, activation::softmax};
use sparq::{KvCache, Method, SparqConfig, SparqError, reference};

use crate::{CausalLm, ModelCache};

/// An error in measuring the kept attention probability.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// The model fails, or a setting does not fit the model or the cache.
    #[error(transparent)]
    Sparq(#[from] SparqError),
    /// The probabilities cannot be computed or copied from the device.
    #[error("attention probabilities: cannot be read from the device: {reason}")]
    Device {
        /// The message of the device.
        reason: String,
    },
}

/// The attention probability that one setting keeps, averaged over the decode steps.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptMass {
    /// The setting.
    pub config: SparqConfig,
    /// The share of each layer and query head, from 0 to 1.
    pub layers: Vec<Vec<f64>>,
}

impl KeptMass {
    /// Returns the mean over layers and heads.
    pub fn mean(&self) -> f64 {
        let heads = self.layers.iter().flatten();
        heads.clone().sum::<f64>() / heads.count().max(1) as f64
    }

    /// Returns the minimum over layers and heads.
    pub fn worst(&self) -> f64 {
        self.layers.iter().flatten().copied().fold(1.0, f64::min)
    }
}

/// Decodes `tokens` densely, one by one, and measures every setting in every decode step.
///
/// `cache` holds the preceding text of one sequence and was made for the sketch of `configs`, which
/// is the same in all of them. `on_step` is called after each token.
///
/// ```
/// use burn::tensor::{Device, FloatDType, Int, Tensor};
/// use sparq::{Method, SparqConfig};
/// use sparq_models::{CausalLm, Decoder, DecoderConfig, calibration::kept_mass, embedded};
///
/// let (device, checkpoint) = (Device::default(), embedded::checkpoint()?);
/// let config = DecoderConfig::from_checkpoint(&checkpoint)?;
/// let model = Decoder::load(&checkpoint, &config, FloatDType::F32, &device)?;
/// let configs = [SparqConfig::new(8, 8), SparqConfig::new(8, 64)];
/// let mut cache = model.new_cache(1, 128, FloatDType::F32, &Method::from(configs[0]))?;
/// let text: Vec<i64> = (0..100).map(|index| 97 + index % 26).collect();
/// let text = Tensor::<1, Int>::from_ints(text.as_slice(), &device).unsqueeze();
/// model.prefill(text, &mut cache, 1)?;
///
/// let kept = kept_mass(&model, &mut cache, &[97, 98], &configs, &mut || ())?;
/// assert!(kept[0].mean() < kept[1].mean() && kept[1].mean() <= 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// If the model fails, a setting does not fit the model or the cache, or the device fails.
pub fn kept_mass(
    model: &dyn CausalLm,
    cache: &mut ModelCache,
    tokens: &[u32],
    configs: &[SparqConfig],
    on_step: &mut dyn FnMut(),
) -> Result<Vec<KeptMass>, CalibrationError> {
    let mut kept: Vec<KeptMass> = configs
        .iter()
        .map(|&config| KeptMass {
            config,
            layers: vec![Vec::new(); cache.layers.len()],
        })
        .collect();
    let mut measure = |index: usize, probabilities: &[f32], q: &Tensor<4>, layer: &mut KvCache| {
        for kept in &mut kept {
            let masses = selected_mass(probabilities, q, layer, &kept.config)?;
            add(&mut kept.layers[index], &masses);
        }
        Ok(())
    };
    decode_densely(model, cache, tokens, &mut measure, on_step)?;
    let heads = kept.iter_mut().flat_map(|kept| kept.layers.iter_mut());
    for mass in heads.flatten() {
        *mass /= tokens.len() as f64;
    }
    Ok(kept)
}

/// Decodes `tokens` densely, one by one. After each, calls `on_layer` for every layer with SparQ
/// attention, with its index, exact probabilities [H, S - [`attended_from`]], query and cache, and
/// then `on_step`.
fn decode_densely(
    model: &dyn CausalLm,
    cache: &mut ModelCache,
    tokens: &[u32],
    on_layer: &mut OnLayer<'_>,
    on_step: &mut dyn FnMut(),
) -> Result<(), CalibrationError> {
    for layer in &mut cache.layers {
        layer.keep_query(true);
    }
    for &token in tokens {
        let token = TensorData::new(vec![i64::from(token)], [1, 1]);
        let token = Tensor::<2, Int>::from_data(token, &model.device());
        model.decode(token, cache, &Method::DENSE)?;
        for (index, layer) in cache.layers.iter_mut().enumerate() {
            // A layer without SparQ attention keeps no query.
            let Some(q) = layer.query().cloned() else {
                continue;
            };
            let probabilities = probabilities(q.clone(), layer)?;
            on_layer(index, &probabilities, &q, layer)?;
        }
        on_step();
    }
    for layer in &mut cache.layers {
        layer.keep_query(false);
    }
    Ok(())
}

/// The callback of [`decode_densely`] for each layer.
type OnLayer<'a> =
    dyn FnMut(usize, &[f32], &Tensor<4>, &mut KvCache) -> Result<(), CalibrationError> + 'a;

/// Returns the first position that the last one attends to.
fn attended_from(cache: &KvCache) -> usize {
    let window = cache.config().window.unwrap_or(cache.len());
    cache.len().saturating_sub(window)
}

/// Returns the exact attention probabilities of the last position, [H, S - [`attended_from`]]
/// flattened.
fn probabilities(q: Tensor<4>, cache: &KvCache) -> Result<Vec<f32>, CalibrationError> {
    let [_, _, _, d] = q.dims();
    let q = reference::group(q, cache.config().kv_heads);
    let keys = cache.tensors().k.at(attended_from(cache)..cache.len());
    let mut logits = q.matmul(keys.cast(FloatDType::F32).transpose()) / (d as f32).sqrt();
    if let Some(bound) = cache.config().softcap {
        logits = (logits / bound).tanh() * bound;
    }
    softmax(logits, 3)
        .try_into_vec_as::<f32>()
        .map_err(device_error)
}

/// Returns the probability of each query head on the positions that a setting selects.
fn selected_mass(
    probabilities: &[f32],
    q: &Tensor<4>,
    cache: &mut KvCache,
    config: &SparqConfig,
) -> Result<Vec<f64>, CalibrationError> {
    let heads = q.dims()[1];
    let group = heads / cache.config().kv_heads;
    let positions = config.decode_traced(q.clone(), cache)?.positions;
    let count = positions.dims()[2];
    let positions = positions.try_into_vec_as::<i64>().map_err(device_error)?;
    let first = attended_from(cache);
    let rows = probabilities.chunks_exact(cache.len() - first).enumerate();
    let mass = |(head, row): (usize, &[f32])| {
        let selected = &positions[head / group * count..][..count];
        let valid = selected
            .iter()
            .filter_map(|&position| usize::try_from(position).ok());
        valid.map(|position| f64::from(row[position - first])).sum()
    };
    Ok(rows.map(mass).collect())
}

/// Adds `masses` to `sums`, which are empty before the first decode step.
fn add(sums: &mut Vec<f64>, masses: &[f64]) {
    sums.resize(masses.len(), 0.0);
    for (sum, mass) in sums.iter_mut().zip(masses) {
        *sum += mass;
    }
}

fn device_error(error: impl std::fmt::Display) -> CalibrationError {
    CalibrationError::Device {
        reason: error.to_string(),
    }
}
