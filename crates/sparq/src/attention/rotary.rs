//! Rotary position embedding (Su et al., "RoFormer", arXiv 2104.09864) in the rotate-half layout of Hugging Face checkpoints.

use std::f64::consts::TAU;
use std::sync::{Arc, Mutex, PoisonError};

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{DType, Device, FloatDType, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::SparqError;

/// How the frequencies are changed for contexts longer than those of the training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum RotaryScaling {
    /// Not at all.
    #[default]
    None,
    /// Every frequency divided by one factor (position interpolation, Chen et al., arXiv 2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by a factor, high ones kept, and a linear blend of both between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Waves longer than `original_max_position_embeddings / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Waves shorter than `original_max_position_embeddings / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// The context of the training.
        original_max_position_embeddings: usize,
    },
}

impl RotaryScaling {
    fn validate(&self) -> Result<(), SparqError> {
        let positive = |what, value: f64| {
            check(
                value > 0.0 && value.is_finite(),
                what,
                "a positive number",
                value,
            )
        };
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
                let what = "rotary scaling high_freq_factor";
                check(
                    high_freq_factor > low_freq_factor && high_freq_factor.is_finite(),
                    what,
                    "more than low_freq_factor",
                    high_freq_factor,
                )?;
                let what = "rotary scaling original_max_position_embeddings";
                check(
                    original_max_position_embeddings > 0,
                    what,
                    "at least 1",
                    original_max_position_embeddings,
                )
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
                // Waves that fit into the context of the training.
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
    /// How many of the first components turn; all if `None`. The others pass unchanged (partial rotary, as in GPT-NeoX).
    #[config(default = "None")]
    pub rotary_dim: Option<usize>,
    /// The base of the frequencies.
    #[config(default = 10000.0)]
    pub theta: f64,
    /// How the frequencies are changed for longer contexts.
    #[config(default = "RotaryScaling::None")]
    pub scaling: RotaryScaling,
}

impl RotaryConfig {
    /// The embedding, with its frequencies on `device`.
    ///
    /// # Errors
    /// [`SparqError`] where `rotary_dim` is odd, 0 or larger than `head_dim`, or `theta` or a factor of the scaling is not positive.
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
            let (expected, advice) = (
                format!("an even number from 2 to {} (the head_dim)", self.head_dim),
                "change the part that turns",
            );
            return Err(SparqError::Config {
                field: "rotary_dim",
                expected,
                found: dim,
                advice,
            });
        }
        check(
            self.theta > 0.0 && self.theta.is_finite(),
            "rotary theta",
            "a positive number",
            self.theta,
        )?;
        self.scaling.validate()?;
        let frequency = |pair: usize| {
            // In fp32 like transformers: at position 100 000 the last bit of a frequency is a hundredth of a turn, and models are trained with it.
            let unscaled = 1.0 / (self.theta as f32).powf((2 * pair) as f32 / dim as f32);
            self.scaling.scale(unscaled.into()) as f32
        };
        Ok((0..dim / 2).map(frequency).collect())
    }
}

/// Turns queries and keys by an angle that grows with their position, so that their products depend on distances only.
///
/// With `n = rotary_dim / 2` and `a_i = position * inv_freq_i`, component i is paired with component i + n:
/// ```text
/// y_i     = x_i cos(a_i) - x_{i+n} sin(a_i)
/// y_{i+n} = x_{i+n} cos(a_i) + x_i sin(a_i)
/// ```
#[derive(Module, Debug)]
pub struct Rotary {
    /// Frequencies, [rotary_dim / 2] in fp32. A constant, not a parameter: records don't hold it.
    inv_freq: Tensor<1>,
    #[module(skip)]
    tables: Tables,
}

/// The tables made so far, one for each device, shared by all clones: the layers of a model turn by the same angles.
#[derive(Clone, Debug, Default)]
struct Tables(Arc<Mutex<Vec<Tensor<2>>>>);

impl Rotary {
    /// Turns x [B, H, T, d] at `positions` [B, T] (or [1, T] for all sequences): [B, H, T, d] in the type of x. Differentiable in x.
    ///
    /// # Panics
    /// If the shapes don't match.
    pub fn apply(&self, x: Tensor<4>, positions: Tensor<2, Int>) -> Tensor<4> {
        self.angles(positions).turn(x)
    }

    /// How many of the first components turn.
    pub fn dim(&self) -> usize {
        2 * self.inv_freq.dims()[0]
    }

    /// The angles of the positions from 0 on, at least `len` of them, outside autodiff: a row for each with its `n = rotary_dim / 2` cosines and then its sines,
    /// [`len` or more, 2 n] in fp32.
    ///
    /// Made once and kept: later calls, on this embedding or a clone of it, upload and compute nothing until they ask for more.
    pub fn table(&self, len: usize) -> Tensor<2> {
        let inv_freq = self.inv_freq.clone().inner();
        let device = inv_freq.device();
        let mut tables = self.tables.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = tables.iter().position(|table| table.device() == device);
        if let Some(table) = found
            .map(|found| &tables[found])
            .filter(|table| table.dims()[0] >= len)
        {
            return table.clone();
        }
        let positions = Tensor::<1, Int>::arange(0..len as i64, (&device, DType::I32));
        let RotaryAngles { cos, sin } = RotaryAngles::new(&inv_freq, positions.unsqueeze());
        let pairs = inv_freq.dims()[0];
        let rows = |values: Tensor<4>| values.reshape([len, pairs]);
        let table = Tensor::cat(vec![rows(cos), rows(sin)], 1);
        match found {
            Some(found) => tables[found] = table.clone(),
            None => tables.push(table.clone()),
        }
        table
    }

    /// The angles of `positions` [B, T] or [1, T], for several tensors at the same positions.
    pub fn angles(&self, positions: Tensor<2, Int>) -> RotaryAngles {
        RotaryAngles::new(&self.inv_freq, positions)
    }
}

/// Cosine and sine of every angle at some positions; see [`Rotary::angles`].
#[derive(Clone, Debug)]
pub struct RotaryAngles {
    /// [B or 1, 1, T, rotary_dim / 2] in fp32.
    cos: Tensor<4>,
    /// As `cos`.
    sin: Tensor<4>,
}

impl RotaryAngles {
    /// Positions [B, T] or [1, T] times the frequencies.
    fn new(inv_freq: &Tensor<1>, positions: Tensor<2, Int>) -> Self {
        let [batch, len] = positions.dims();
        let [pairs] = inv_freq.dims();
        // Straight to fp32: a device whose default is a 16-bit type would round positions beyond 2048.
        let positions: Tensor<2> = positions.cast(FloatDType::F32);
        let angles =
            positions.reshape([batch, 1, len, 1]) * inv_freq.clone().reshape([1, 1, 1, pairs]);
        Self {
            cos: angles.clone().cos(),
            sin: angles.sin(),
        }
    }

    /// The angles of one position per sequence from a [`Rotary::table`].
    pub(crate) fn from_table(table: &Tensor<2>, positions: &[usize]) -> Self {
        let [_, width] = table.dims();
        let index: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
        let index = Tensor::<1, Int>::from_ints(index.as_slice(), &table.device());
        let rows = table.clone().select(0, index);
        let part = |part: std::ops::Range<usize>| {
            rows.clone()
                .slice_dim(1, part)
                .reshape([positions.len(), 1, 1, width / 2])
        };
        Self {
            cos: part(0..width / 2),
            sin: part(width / 2..width),
        }
    }

    /// Turns x [B, H, T, d]: [B, H, T, d] in the type of x.
    ///
    /// # Panics
    /// If the shapes don't match.
    pub fn turn(&self, x: Tensor<4>) -> Tensor<4> {
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

fn check(
    right: bool,
    what: &'static str,
    expected: &str,
    found: impl ToString,
) -> Result<(), SparqError> {
    if right {
        Ok(())
    } else {
        Err(SparqError::Value {
            what,
            expected: expected.into(),
            found: found.to_string(),
        })
    }
}

#[cfg(test)]
mod tests;
