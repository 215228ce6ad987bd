//! Rotary position embedding (Su et al., "RoFormer", arXiv 2104.09864).
//!
//! Components are paired in the rotate-half layout of Hugging Face checkpoints.

mod scaling;

use std::sync::{Arc, Mutex, PoisonError};

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};

pub use self::scaling::RotaryScaling;
use crate::SparqError;
use crate::cache::Spans;

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
        let changes = self.scaling.changes_after();
        if let Some(context) = changes {
            self.frequencies_within(context.saturating_add(1))?;
        }
        Ok(Rotary {
            inv_freq: Tensor::from_data(frequencies.as_slice(), (device, DType::F32)),
            factor: self.scaling.attention_factor(),
            by_length: changes.map(|_| self.clone()),
            tables: Tables::default(),
        })
    }

    /// The frequency of each of the `rotary_dim / 2` pairs: `theta^(-2i / rotary_dim)`, scaled.
    ///
    /// Those of a scaling that depends on the length are those of the context in training.
    ///
    /// # Errors
    /// As [`RotaryConfig::init`].
    pub fn frequencies(&self) -> Result<Vec<f32>, SparqError> {
        self.frequencies_within(1)
    }

    /// The frequencies for sequences of `len` positions.
    fn frequencies_within(&self, len: usize) -> Result<Vec<f32>, SparqError> {
        let dim = self.rotary_dim.unwrap_or(self.head_dim);
        if dim == 0 || dim > self.head_dim || !dim.is_multiple_of(2) {
            let expected = format!("an even number from 2 to {} (the head_dim)", self.head_dim);
            let advice = "set an even rotary_dim within the head_dim";
            return Err(SparqError::config("rotary_dim", expected, dim, advice));
        }
        positive("rotary theta", self.theta)?;
        self.scaling.validate(dim / 2)?;
        // In fp32 as in transformers, with which models are trained. At position 100 000 the last
        // bit of a frequency is a hundredth of a full rotation.
        let theta = self.scaling.base(self.theta, dim, len) as f32;
        let unscaled = |pair: usize| 1.0 / theta.powf((2 * pair) as f32 / dim as f32);
        let frequencies: Vec<f32> = (0..dim / 2).map(unscaled).collect();
        let frequencies = self.scaling.scale(frequencies, self.theta, len);
        match frequencies.iter().all(|frequency| frequency.is_finite()) {
            true => Ok(frequencies),
            false => {
                let expected = "settings whose frequencies are finite";
                Err(SparqError::value("rotary scaling", expected, "others"))
            }
        }
    }

    /// The frequencies of each of `len` positions, [`len`, pairs]: those of a sequence that ends
    /// there if they grow with it, else those of a sequence of `len`.
    fn rows(&self, len: usize) -> Vec<f32> {
        let at = |len| {
            self.frequencies_within(len)
                .expect("they were valid when the rotary embedding was made")
        };
        match self.scaling.grows() {
            true => (0..len).flat_map(|row| at(row + 1)).collect(),
            false => at(len).repeat(len),
        }
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
///
/// Some [scalings](RotaryScaling) have other frequencies for sequences longer than in training.
/// Keys in a cache keep the angles they were given. With dynamic NTK, as in transformers, a prefill
/// takes the frequencies of the sequence so far, and a decode step those of the sequence with its
/// token. LongRoPE has two sets. The capacity of the cache decides between them, so that all keys
/// have angles of one set: reserve the positions of the whole sequence first.
#[derive(Module, Debug)]
pub struct Rotary {
    /// Frequencies, [rotary_dim / 2] in fp32. A constant and no parameter: records do not hold it.
    inv_freq: Tensor<1>,
    /// A factor of all cosines and sines.
    #[module(skip)]
    factor: f64,
    /// The configuration, if the frequencies depend on the length of the sequence.
    #[module(skip)]
    by_length: Option<RotaryConfig>,
    #[module(skip)]
    tables: Tables,
}

/// The tables made so far, one per device and set of frequencies. Clones share them: all layers of
/// a model use the same angles.
#[derive(Clone, Debug, Default)]
struct Tables(Arc<Mutex<Vec<Table>>>);

/// A table of angles.
#[derive(Clone, Debug)]
struct Table {
    angles: Tensor<2>,
    /// Whether its frequencies are those of sequences longer than the context in training.
    is_long: bool,
}

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
        let long = self.long(len);
        let same = |table: &Table| {
            table.angles.device() == device && (self.grows() || table.is_long == long.is_some())
        };
        let found = tables.iter().position(same);
        let table = found.map(|found| &tables[found].angles);
        if let Some(table) = table.filter(|table| table.dims()[0] >= len) {
            return table.clone();
        }
        let positions = Tensor::<1, Int>::arange(0..len as i64, (&device, DType::I32));
        let pairs = inv_freq.dims()[0];
        let inv_freq = match long {
            None => inv_freq.unsqueeze(),
            Some(config) => {
                let rows = TensorData::new(config.rows(len), [len, pairs]);
                Tensor::<2>::from_data(rows, (&device, DType::F32))
            }
        };
        let angles = RotaryAngles::new(inv_freq, positions.unsqueeze(), self.factor);
        let RotaryAngles { cos, sin } = angles;
        let flat = |values: Tensor<4>| values.reshape([len, pairs]);
        let angles = Tensor::cat(vec![flat(cos), flat(sin)], 1);
        let table = Table {
            angles: angles.clone(),
            is_long: long.is_some(),
        };
        match found {
            Some(found) => tables[found] = table,
            None => tables.push(table),
        }
        angles
    }

    /// Returns the configuration if sequences of `len` positions have other frequencies than those
    /// of the training.
    fn long(&self, len: usize) -> Option<&RotaryConfig> {
        self.by_length.as_ref().filter(|config| {
            let context = config.scaling.changes_after();
            context.is_some_and(|context| len > context)
        })
    }

    /// Returns whether the frequencies change with every position of a long sequence.
    pub(crate) fn grows(&self) -> bool {
        let config = self.by_length.as_ref();
        config.is_some_and(|config| config.scaling.grows())
    }

    /// Computes the angles of `positions` [B, T] or [1, T], to rotate several tensors by them.
    ///
    /// Frequencies that depend on the length are those of the context in training.
    pub fn angles(&self, positions: Tensor<2, Int>) -> RotaryAngles {
        RotaryAngles::new(self.inv_freq.clone().unsqueeze(), positions, self.factor)
    }

    /// Computes the angles of `positions` in sequences of up to `len` positions, which a cache of
    /// `capacity` positions holds.
    pub(crate) fn angles_within(
        &self,
        positions: Tensor<2, Int>,
        len: usize,
        capacity: usize,
    ) -> RotaryAngles {
        let len = match self.grows() {
            true => len,
            false => len.max(capacity),
        };
        let Some(config) = self.long(len) else {
            return self.angles(positions);
        };
        let frequencies = config.frequencies_within(len);
        let frequencies = frequencies.expect("they were valid when the rotary embedding was made");
        let options = (&self.inv_freq.device(), DType::F32);
        let frequencies = Tensor::<1>::from_data(frequencies.as_slice(), options);
        RotaryAngles::new(frequencies.unsqueeze(), positions, self.factor)
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
    /// The angles are the positions, [B, T] or [1, T], times the frequencies, [T or 1, pairs].
    /// `factor` scales cosines and sines.
    fn new(inv_freq: Tensor<2>, positions: Tensor<2, Int>, factor: f64) -> Self {
        let [batch, len] = positions.dims();
        let [rows, pairs] = inv_freq.dims();
        // Directly to fp32: a device with a 16-bit default type would round positions above 2048.
        let positions: Tensor<2> = positions.cast(FloatDType::F32);
        let angles = positions.reshape([batch, 1, len, 1]) * inv_freq.reshape([1, 1, rows, pairs]);
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        match factor == 1.0 {
            true => Self { cos, sin },
            false => Self {
                cos: cos * factor,
                sin: sin * factor,
            },
        }
    }

    /// Takes the angles of the `len` positions after `spans` from a [`Rotary::table`]. Those in
    /// the left padding have the angles of position 0.
    pub(crate) fn from_table(table: &Tensor<2>, spans: &Spans, len: usize) -> Self {
        let ([_, width], batch) = (table.dims(), spans.batch());
        let row = |sequence: usize, token: usize| {
            (spans.end[sequence] + token).saturating_sub(spans.start[sequence]) as i64
        };
        let rows = (0..batch).flat_map(|sequence| (0..len).map(move |token| row(sequence, token)));
        let rows: Vec<i64> = rows.collect();
        let index = Tensor::<1, Int>::from_ints(rows.as_slice(), &table.device());
        let rows = table.clone().select(0, index);
        let shape = [batch, 1, len, width / 2];
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
