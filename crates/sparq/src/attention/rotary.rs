//! Rotary position embedding (Su et al., "RoFormer", arXiv 2104.09864).
//!
//! Components are paired in the rotate-half layout of Hugging Face checkpoints.

use std::f64::consts::TAU;
use std::sync::{Arc, Mutex, PoisonError};

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{DType, Device, FloatDType, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::SparqError;

/// The change of the frequencies for contexts longer than in training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum RotaryScaling {
    /// No change.
    #[default]
    None,
    /// Divides every frequency by a factor (position interpolation, Chen et al., arXiv 2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: divides low frequencies by a factor, keeps high ones, and blends linearly in
    /// between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are low
        /// frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are high
        /// frequencies.
        high_freq_factor: f64,
        /// The context length in training.
        original_max_position_embeddings: usize,
    },
}

impl RotaryScaling {
    fn validate(&self) -> Result<(), SparqError> {
        match *self {
            RotaryScaling::None => Ok(()),
            RotaryScaling::Linear { factor } => positive("rotary scaling factor", factor),
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                positive("rotary scaling factor", factor)?;
                positive("rotary scaling low_freq_factor", low_freq_factor)?;
                if !(high_freq_factor > low_freq_factor && high_freq_factor.is_finite()) {
                    let (what, least) = (
                        "rotary scaling high_freq_factor",
                        "more than low_freq_factor",
                    );
                    return Err(SparqError::value(what, least, high_freq_factor));
                }
                if original_max_position_embeddings == 0 {
                    let what = "rotary scaling original_max_position_embeddings";
                    return Err(SparqError::value(what, "at least 1", 0));
                }
                Ok(())
            }
        }
    }

    fn scale(&self, frequency: f64) -> f64 {
        match *self {
            RotaryScaling::None => frequency,
            RotaryScaling::Linear { factor } => frequency / factor,
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                // The number of wavelengths in the context of the training.
                let waves = original_max_position_embeddings as f64 * frequency / TAU;
                let kept = ((waves - low_freq_factor) / (high_freq_factor - low_freq_factor))
                    .clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
        }
    }
}

/// Configuration of a [`Rotary`].
#[derive(Config, Debug, PartialEq)]
pub struct RotaryConfig {
    /// d: elements of a query or key.
    pub head_dim: usize,
    /// The number of leading components to rotate; all if `None`.
    ///
    /// The others pass unchanged (partial rotary, as in GPT-NeoX).
    #[config(default = "None")]
    pub rotary_dim: Option<usize>,
    /// The base of the frequencies.
    #[config(default = 10000.0)]
    pub theta: f64,
    /// The change of the frequencies for longer contexts.
    #[config(default = "RotaryScaling::None")]
    pub scaling: RotaryScaling,
}

impl RotaryConfig {
    /// Makes the embedding, with its frequencies on `device`.
    ///
    /// # Errors
    /// [`SparqError`] if `rotary_dim` is odd, 0 or larger than `head_dim`, or if `theta` or a
    /// factor of the scaling is not positive.
    pub fn init(&self, device: &Device) -> Result<Rotary, SparqError> {
        let frequencies = self.frequencies()?;
        Ok(Rotary {
            inv_freq: Tensor::from_data(frequencies.as_slice(), (device, DType::F32)),
            tables: Tables::default(),
        })
    }

    /// The frequency of each of the `rotary_dim / 2` pairs: `theta^(-2i / rotary_dim)`, scaled.
    ///
    /// # Errors
    /// As [`RotaryConfig::init`].
    pub fn frequencies(&self) -> Result<Vec<f32>, SparqError> {
        let dim = self.rotary_dim.unwrap_or(self.head_dim);
        if dim == 0 || dim > self.head_dim || !dim.is_multiple_of(2) {
            let expected = format!("an even number from 2 to {} (the head_dim)", self.head_dim);
            let advice = "set an even rotary_dim within the head_dim";
            return Err(SparqError::config("rotary_dim", expected, dim, advice));
        }
        positive("rotary theta", self.theta)?;
        self.scaling.validate()?;
        let frequency = |pair: usize| {
            // In fp32 as in transformers, with which models are trained. At position 100 000 the
            // last bit of a frequency is a hundredth of a full rotation.
            let unscaled = 1.0 / (self.theta as f32).powf((2 * pair) as f32 / dim as f32);
            self.scaling.scale(unscaled.into()) as f32
        };
        Ok((0..dim / 2).map(frequency).collect())
    }
}

/// Rotates queries and keys by angles that grow with the position.
///
/// Their dot products then depend on distances only.
///
/// With `n = rotary_dim / 2` and `a_i = position * inv_freq_i`, component i is paired with
/// component i + n:
/// ```text
/// y_i     = x_i cos(a_i) - x_{i+n} sin(a_i)
/// y_{i+n} = x_{i+n} cos(a_i) + x_i sin(a_i)
/// ```
#[derive(Module, Debug)]
pub struct Rotary {
    /// Frequencies, [rotary_dim / 2] in fp32. A constant and no parameter: records do not hold it.
    inv_freq: Tensor<1>,
    #[module(skip)]
    tables: Tables,
}

/// The tables made so far, one per device. Clones share them: all layers of a model use the same
/// angles.
#[derive(Clone, Debug, Default)]
struct Tables(Arc<Mutex<Vec<Tensor<2>>>>);

impl Rotary {
    /// Rotates x [B, H, T, d] to `positions` [B, T], or [1, T] for all sequences.
    ///
    /// The result has the shape and type of x and is differentiable in x.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn apply(&self, x: Tensor<4>, positions: Tensor<2, Int>) -> Tensor<4> {
        self.angles(positions).rotate(x)
    }

    /// The number of leading components that are rotated.
    pub fn dim(&self) -> usize {
        2 * self.inv_freq.dims()[0]
    }

    /// The angles of at least `len` positions from 0 on, [`len` or more, 2 n] in fp32, outside
    /// autodiff.
    ///
    /// A row holds the n = `rotary_dim / 2` cosines of a position, then its sines. The table is
    /// kept: later calls, also on clones, upload and compute nothing unless they need more
    /// positions.
    pub fn table(&self, len: usize) -> Tensor<2> {
        let inv_freq = self.inv_freq.clone().inner();
        let device = inv_freq.device();
        let mut tables = self.tables.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = tables.iter().position(|table| table.device() == device);
        let table = found.map(|found| &tables[found]);
        if let Some(table) = table.filter(|table| table.dims()[0] >= len) {
            return table.clone();
        }
        let positions = Tensor::<1, Int>::arange(0..len as i64, (&device, DType::I32));
        let RotaryAngles { cos, sin } = RotaryAngles::new(&inv_freq, positions.unsqueeze());
        let pairs = inv_freq.dims()[0];
        let flat = |values: Tensor<4>| values.reshape([len, pairs]);
        let table = Tensor::cat(vec![flat(cos), flat(sin)], 1);
        match found {
            Some(found) => tables[found] = table.clone(),
            None => tables.push(table.clone()),
        }
        table
    }

    /// Computes the angles of `positions` [B, T] or [1, T], to rotate several tensors by them.
    pub fn angles(&self, positions: Tensor<2, Int>) -> RotaryAngles {
        RotaryAngles::new(&self.inv_freq, positions)
    }
}

/// The cosines and sines of all angles at some positions; see [`Rotary::angles`].
#[derive(Clone, Debug)]
pub struct RotaryAngles {
    /// [B or 1, 1, T, rotary_dim / 2] in fp32.
    cos: Tensor<4>,
    /// The same shape.
    sin: Tensor<4>,
}

impl RotaryAngles {
    /// The angles are the positions, [B, T] or [1, T], times the frequencies.
    fn new(inv_freq: &Tensor<1>, positions: Tensor<2, Int>) -> Self {
        let [batch, len] = positions.dims();
        let [pairs] = inv_freq.dims();
        // Directly to fp32: a device with a 16-bit default type would round positions above 2048.
        let positions: Tensor<2> = positions.cast(FloatDType::F32);
        let angles =
            positions.reshape([batch, 1, len, 1]) * inv_freq.clone().reshape([1, 1, 1, pairs]);
        Self {
            cos: angles.clone().cos(),
            sin: angles.sin(),
        }
    }

    /// Takes the angles of `len` positions per sequence from a [`Rotary::table`].
    pub(crate) fn from_table(table: &Tensor<2>, positions: &[usize], len: usize) -> Self {
        let [_, width] = table.dims();
        let index: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
        let index = Tensor::<1, Int>::from_ints(index.as_slice(), &table.device());
        let rows = table.clone().select(0, index);
        let shape = [positions.len() / len, 1, len, width / 2];
        let part = |part: std::ops::Range<usize>| rows.clone().slice_dim(1, part).reshape(shape);
        Self {
            cos: part(0..width / 2),
            sin: part(width / 2..width),
        }
    }

    /// Rotates x [B, H, T, d]. The result has the shape and type of x.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let ([_, _, _, d], dtype) = (x.dims(), FloatDType::from(x.dtype()));
        let pairs = self.cos.dims()[3];
        let x = x.cast(FloatDType::F32);
        let first = x.clone().slice_dim(3, 0..pairs);
        let second = x.clone().slice_dim(3, pairs..2 * pairs);
        let mut parts = vec![
            first.clone() * self.cos.clone() - second.clone() * self.sin.clone(),
            second * self.cos.clone() + first * self.sin.clone(),
        ];
        if 2 * pairs < d {
            parts.push(x.slice_dim(3, 2 * pairs..d));
        }
        Tensor::cat(parts, 3).cast(dtype)
    }
}

/// Checks a number that must be positive and finite.
fn positive(what: &'static str, value: f64) -> Result<(), SparqError> {
    match value > 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(SparqError::value(what, "a positive number", value)),
    }
}

#[cfg(test)]
mod tests;
