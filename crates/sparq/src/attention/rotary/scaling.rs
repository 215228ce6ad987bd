//! The scaling of RoPE's frequencies for long contexts: [`RotaryScaling`].

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

use super::positive;
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
    /// Dynamic NTK: a larger base for sequences longer than in training.
    Dynamic {
        /// The growth of the base with the length.
        factor: f64,
        /// The context length in training.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al., arXiv 2309.00071): as Llama 3.1, with pairs between two numbers of
    /// rotations blended by their index, and larger logits.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// Pairs with more rotations than this in the context of the training keep their
        /// frequency.
        beta_fast: f64,
        /// Pairs with fewer rotations are divided by the factor.
        beta_slow: f64,
        /// Whether the blended pairs begin and end at whole indices.
        truncate: bool,
        /// The context length in training.
        original_max_position_embeddings: usize,
        /// A factor of queries and of keys.
        attention_factor: f64,
    },
    /// LongRoPE (Ding et al., arXiv 2402.13753): a divisor for each frequency, one list for
    /// sequences up to the context in training and one for longer ones.
    LongRope {
        /// The divisors up to the context in training.
        short_factor: Vec<f64>,
        /// The divisors of longer sequences.
        long_factor: Vec<f64>,
        /// The context length in training.
        original_max_position_embeddings: usize,
        /// A factor of queries and of keys.
        attention_factor: f64,
    },
}

impl RotaryScaling {
    /// Checks the settings, for `pairs` pairs of components.
    pub(super) fn validate(&self, pairs: usize) -> Result<(), SparqError> {
        match self {
            Self::None => {}
            Self::Linear { factor } => positive("rotary scaling factor", *factor)?,
            Self::Dynamic { factor, .. } => {
                if !(*factor >= 1.0 && factor.is_finite()) {
                    let what = "factor of dynamic rotary scaling";
                    return Err(SparqError::value(what, "at least 1", factor));
                }
            }
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                ..
            } => {
                positive("rotary scaling factor", *factor)?;
                positive("rotary scaling low_freq_factor", *low_freq_factor)?;
                if !(high_freq_factor > low_freq_factor && high_freq_factor.is_finite()) {
                    let (what, least) = (
                        "rotary scaling high_freq_factor",
                        "more than low_freq_factor",
                    );
                    return Err(SparqError::value(what, least, high_freq_factor));
                }
            }
            Self::Yarn {
                factor,
                beta_fast,
                beta_slow,
                attention_factor,
                ..
            } => {
                positive("rotary scaling factor", *factor)?;
                positive("rotary scaling beta_fast", *beta_fast)?;
                positive("rotary scaling beta_slow", *beta_slow)?;
                positive("rotary scaling attention_factor", *attention_factor)?;
            }
            Self::LongRope {
                short_factor,
                long_factor,
                attention_factor,
                ..
            } => {
                positive("rotary scaling attention_factor", *attention_factor)?;
                for (what, factors) in [
                    ("rotary scaling short_factor", short_factor),
                    ("rotary scaling long_factor", long_factor),
                ] {
                    if factors.len() != pairs {
                        let expected = format!("{pairs} numbers (one per pair)");
                        return Err(SparqError::value(what, expected, factors.len()));
                    }
                    factors
                        .iter()
                        .try_for_each(|&factor| positive(what, factor))?;
                }
            }
        }
        if self.context() == Some(0) {
            let what = "rotary scaling original_max_position_embeddings";
            return Err(SparqError::value(what, "at least 1", 0));
        }
        Ok(())
    }

    /// The context length in training, if the scaling depends on it.
    fn context(&self) -> Option<usize> {
        match *self {
            Self::None | Self::Linear { .. } => None,
            Self::Llama3 {
                original_max_position_embeddings,
                ..
            }
            | Self::Dynamic {
                original_max_position_embeddings,
                ..
            }
            | Self::Yarn {
                original_max_position_embeddings,
                ..
            }
            | Self::LongRope {
                original_max_position_embeddings,
                ..
            } => Some(original_max_position_embeddings),
        }
    }

    /// The longest sequence with the frequencies of the training, if longer ones have others.
    pub fn changes_after(&self) -> Option<usize> {
        match self {
            Self::Dynamic { .. } | Self::LongRope { .. } => self.context(),
            _ => None,
        }
    }

    /// Returns whether the frequencies change with every position after the context in training.
    pub(super) fn grows(&self) -> bool {
        matches!(self, Self::Dynamic { .. })
    }

    /// The factor of queries and of keys.
    pub fn attention_factor(&self) -> f64 {
        match *self {
            Self::Yarn {
                attention_factor, ..
            }
            | Self::LongRope {
                attention_factor, ..
            } => attention_factor,
            _ => 1.0,
        }
    }

    /// The base of the frequencies of `dim` components, for sequences of `len` positions.
    pub(super) fn base(&self, theta: f64, dim: usize, len: usize) -> f64 {
        match *self {
            Self::Dynamic {
                factor,
                original_max_position_embeddings: context,
            } if len > context => {
                let growth = factor * len as f64 / context as f64 - (factor - 1.0);
                theta * growth.powf(dim as f64 / (dim as f64 - 2.0))
            }
            _ => theta,
        }
    }

    /// Scales the frequencies with the base `theta`, for sequences of `len` positions.
    pub(super) fn scale(&self, frequencies: Vec<f32>, theta: f64, len: usize) -> Vec<f32> {
        let pairs = frequencies.len();
        let each = |scale: &dyn Fn(usize, f64) -> f64| {
            let pairs = frequencies.iter().enumerate();
            let scaled = pairs.map(|(pair, &frequency)| scale(pair, frequency.into()) as f32);
            scaled.collect()
        };
        match self {
            Self::None | Self::Dynamic { .. } => frequencies,
            Self::Linear { factor } => each(&|_, frequency| frequency / factor),
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: context,
            } => each(&|_, frequency| {
                // The number of wavelengths in the context of the training.
                let waves = *context as f64 * frequency / TAU;
                let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }),
            Self::Yarn {
                factor,
                beta_fast,
                beta_slow,
                truncate,
                original_max_position_embeddings: context,
                ..
            } => {
                // The index of the pair, as a fraction, that rotates so often in the context.
                let index = |rotations: f64| {
                    let ratio = *context as f64 / (rotations * TAU);
                    pairs as f64 * ratio.ln() / theta.ln()
                };
                let (mut low, mut high) = (index(*beta_fast), index(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min((2 * pairs - 1) as f64));
                if low == high {
                    high += 0.001;
                }
                each(&|pair, frequency| {
                    let divided = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    divided * frequency / factor + (1.0 - divided) * frequency
                })
            }
            Self::LongRope {
                short_factor,
                long_factor,
                original_max_position_embeddings: context,
                ..
            } => {
                let factors = match len > *context {
                    true => long_factor,
                    false => short_factor,
                };
                each(&|pair, frequency| frequency / factors[pair])
            }
        }
    }
}
