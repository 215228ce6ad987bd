//! The hyper-parameters of SparQ and the search for the pair (r, k) that fits a budget.

use serde::{Deserialize, Serialize};

use crate::{CacheShape, SparqError, Transfers};

/// How the second copy of K, the *key sketch*, is stored. Only the ranking of positions is read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sketch {
    /// A transposed copy of K in the cache's own type, as in the paper. Adds half of the cache's memory.
    Full,
    /// Codes of 8 bits, one range per channel. Adds a quarter of a 16-bit cache's memory.
    #[serde(rename = "8bits")]
    Bits8,
    /// Codes of 4 bits, one range per channel. Adds an eighth of a 16-bit cache's memory.
    #[serde(rename = "4bits")]
    Bits4,
}

impl Sketch {
    /// Bits of one code, or `None` for [`Sketch::Full`], whose width is the cache's.
    pub fn bits(self) -> Option<usize> {
        match self {
            Sketch::Full => None,
            Sketch::Bits8 => Some(8),
            Sketch::Bits4 => Some(4),
        }
    }

    /// The share of the traffic that [`SparqConfig::for_compression`] gives to the scores of step 3; the gathered rows take the rest.
    ///
    /// Half for full and 8-bit sketches, as the paper's authors chose; a quarter for 4 bits, where r = d/4 at 1/8 of dense's bytes was within
    /// the noise of the best split on every text measured.
    fn score_share(self) -> f64 {
        match self {
            Sketch::Full | Sketch::Bits8 => 0.5,
            Sketch::Bits4 => 0.25,
        }
    }
}

/// When the weight that SparQ leaves out is given to the mean of V (step 7, "mean-value reallocation").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeanValue {
    /// In every model.
    Always,
    /// In no model: the kept positions are renormalised.
    Never,
    /// As the paper found best: only where every query head has its own key/value head (g = 1).
    Paper,
}

impl MeanValue {
    /// Whether step 7 is done for `group_size` (g) query heads per key/value head.
    pub fn applies(self, group_size: usize) -> bool {
        match self {
            MeanValue::Always => true,
            MeanValue::Never => false,
            MeanValue::Paper => group_size == 1,
        }
    }
}

/// How the g query heads that share a key/value head agree on the positions to keep (step 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupScore {
    /// The sum of the heads' approximate probabilities: the paper's listing.
    Probabilities,
    /// The sum of the heads' approximate logits: the authors' code. Needs no softmax for the choice.
    Logits,
}

/// How the g query heads that share a key/value head agree on the components to read (step 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Components {
    /// The largest of the sum over the group of |q|: the paper.
    SumAbs,
    /// The largest of |the sum over the group of q|. With [`GroupScore::Logits`] the whole group then scores as one query.
    AbsSum,
}

/// The hyper-parameters of one SparQ decode step (Ribar et al., ICML 2024, Algorithm 1).
///
/// ```
/// use sparq::{GroupScore, Sketch, SparqConfig};
///
/// let config = SparqConfig::new(32, 128).with_sketch(Sketch::Bits4).with_group_score(GroupScore::Logits);
/// assert!(config.validate(128).is_ok());
/// let error = config.validate(16).unwrap_err();
/// assert_eq!(error.to_string(), "rank: expected 1 to 16 (the head_dim), found 32; lower the rank");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparqConfig {
    /// r: how many of the head_dim components of the query are used to approximate the scores.
    pub rank: usize,
    /// k: how many positions are kept in all, the local window and the current token included.
    pub top_k: usize,
    /// l: how many of the latest positions are always kept, the current token included. At most `top_k`.
    pub local_window: usize,
    /// How the copy of K that the scores are read from is stored.
    pub sketch: Sketch,
    /// When the weight left out goes to the mean of V.
    pub mean_value: MeanValue,
    /// How a group of query heads agrees on positions.
    pub group_score: GroupScore,
    /// How a group of query heads agrees on components.
    pub components: Components,
}

impl SparqConfig {
    /// The paper's settings for rank r and top_k k: local window k/4, a full copy of K, mean value where g = 1, summed probabilities, sum of |q|.
    pub fn new(rank: usize, top_k: usize) -> Self {
        Self {
            rank,
            top_k,
            local_window: top_k / 4,
            sketch: Sketch::Full,
            mean_value: MeanValue::Paper,
            group_score: GroupScore::Probabilities,
            components: Components::SumAbs,
        }
    }

    /// Sets the local window l (latest positions that are always kept, current token included).
    pub fn with_local_window(self, local_window: usize) -> Self {
        Self {
            local_window,
            ..self
        }
    }

    /// Sets how the second copy of K is stored.
    pub fn with_sketch(self, sketch: Sketch) -> Self {
        Self { sketch, ..self }
    }

    /// Sets when the weight left out goes to the mean of V.
    pub fn with_mean_value(self, mean_value: MeanValue) -> Self {
        Self { mean_value, ..self }
    }

    /// Sets how a group of query heads agrees on positions.
    pub fn with_group_score(self, group_score: GroupScore) -> Self {
        Self {
            group_score,
            ..self
        }
    }

    /// Sets how a group of query heads agrees on components.
    pub fn with_components(self, components: Components) -> Self {
        Self { components, ..self }
    }

    /// Checks the settings against a model's `head_dim`.
    ///
    /// # Errors
    /// [`SparqError::Config`], naming the field, what is allowed, what was found and what to change.
    pub fn validate(&self, head_dim: usize) -> Result<(), SparqError> {
        let fail = |field, expected: String, found, advice| {
            Err(SparqError::Config {
                field,
                expected,
                found,
                advice,
            })
        };
        if self.rank == 0 || self.rank > head_dim {
            let advice = if self.rank == 0 {
                "raise the rank"
            } else {
                "lower the rank"
            };
            return fail(
                "rank",
                format!("1 to {head_dim} (the head_dim)"),
                self.rank,
                advice,
            );
        }
        if self.top_k == 0 {
            return fail(
                "top_k",
                "at least 1 (the current token)".into(),
                0,
                "raise top_k",
            );
        }
        if self.local_window > self.top_k {
            return fail(
                "local_window",
                format!(
                    "at most {} (the top_k, which counts the window)",
                    self.top_k
                ),
                self.local_window,
                "lower the local window or raise top_k",
            );
        }
        Ok(())
    }

    /// The pair (r, k) that reads at most `ratio` of the bytes of dense attention at `seq_len` positions of a 16-bit cache.
    ///
    /// The other settings are kept, except that the local window is set to k/4. A part of the budget (half; a quarter for the 4-bit sketch)
    /// goes to the scores, the rest to gathered rows.
    ///
    /// ```
    /// use sparq::{CacheShape, SparqConfig, Transfers};
    ///
    /// let config = SparqConfig::new(1, 1).for_compression(128, 16384, 1.0 / 8.0)?;
    /// let shape = CacheShape { head_dim: 128, kv_heads: 1, element_bytes: 2 };
    /// let share = Transfers::sparq(&shape, 16384, &config).bytes() / Transfers::dense(&shape, 16384).bytes();
    /// assert!(share <= 1.0 / 8.0 && share > 0.95 / 8.0);
    /// assert_eq!(config.rank, 16);
    /// # Ok::<(), sparq::SparqError>(())
    /// ```
    ///
    /// # Errors
    /// [`SparqError::Budget`] where even r = 1 and k = 1 read more than that, or `ratio` is not within 0 (exclusive) and 1.
    pub fn for_compression(
        self,
        head_dim: usize,
        seq_len: usize,
        ratio: f64,
    ) -> Result<Self, SparqError> {
        let error = || SparqError::Budget {
            head_dim,
            seq_len,
            ratio,
        };
        if !(ratio > 0.0 && ratio <= 1.0) || head_dim == 0 || seq_len == 0 {
            return Err(error());
        }
        let shape = CacheShape {
            head_dim,
            kv_heads: 1,
            element_bytes: 2,
        };
        let budget = ratio * Transfers::dense(&shape, seq_len).bytes();
        let bytes = |rank, top_k| {
            Transfers::sparq(
                &shape,
                seq_len,
                &Self {
                    rank,
                    top_k,
                    ..self
                },
            )
            .bytes()
        };
        let per_component = bytes(2, 1) - bytes(1, 1);
        let per_row = bytes(1, 2) - bytes(1, 1);
        let largest_rank = ((budget - bytes(1, 1)) / per_component).floor() + 1.0;
        let wanted = (self.sketch.score_share() * budget / per_component).round();
        if largest_rank < 1.0 {
            return Err(error());
        }
        let rank = wanted.clamp(1.0, largest_rank.min(head_dim as f64)) as usize;
        let top_k = 1 + ((budget - bytes(rank, 1)) / per_row).max(0.0).floor() as usize;
        let top_k = top_k.min(seq_len);
        Ok(Self {
            rank,
            top_k,
            local_window: top_k / 4,
            ..self
        })
    }
}
