//! SparQ attention (Ribar et al., ICML 2024, Algorithm 1): its settings and its decode step.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::settings::{Settings, at_least, words};
use super::{Anchors, Budget, Method, RANK, Strategy, TOP_K};
use crate::cost::CacheShape;
use crate::ops::{self, SparqOutput};
use crate::{KvCache, KvCacheConfig, RowFormat, Sketch, SparqError, Transfers};

/// When the mean of V stands for the positions that were not selected (stage 3 of Algorithm 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeanValue {
    /// In every model.
    Always,
    /// In no model: the weights of the selected positions sum to 1.
    Never,
    /// As the paper recommends: only without grouped queries (g = 1).
    Paper,
}

impl MeanValue {
    /// Returns whether the mean is used with `group_size` (g) query heads per KV head.
    pub fn applies(self, group_size: usize) -> bool {
        match self {
            MeanValue::Always => true,
            MeanValue::Never => false,
            MeanValue::Paper => group_size == 1,
        }
    }
}

/// The score by which the g query heads of a group select positions together (stage 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupScore {
    /// The sum of the heads' approximate scores: the paper's listing.
    Probabilities,
    /// The sum of the heads' approximate logits: the authors' code. Selection needs no softmax.
    Logits,
}

/// The magnitude by which the g query heads of a group select components together (stage 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Components {
    /// The sum over the group of |q|: the paper.
    SumAbs,
    /// |the sum over the group of q|. With [`GroupScore::Logits`] the group then scores as one query.
    AbsSum,
}

/// The magnitude of one component of a query (stage 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Magnitude {
    /// |q|: the paper.
    #[default]
    Query,
    /// |q| times the range of the component over the keys: the most by which it can set two scores
    /// apart. The temperature weighs components alike.
    ///
    /// The range is that of the sketch's codes. With a full sketch, which has none, this is
    /// [`Magnitude::Query`].
    Contribution,
}

impl Magnitude {
    fn is_query(&self) -> bool {
        *self == Magnitude::Query
    }
}

words!(Sketch { Full = "full", Bits8 = "8bits", Bits4 = "4bits" });
words!(RowFormat { Float = "float", Int8 = "int8" } implies Float);
words!(MeanValue { Always = "always", Never = "never", Paper = "paper" });
words!(GroupScore { Probabilities = "probabilities", Logits = "logits" });
words!(Components { SumAbs = "sum-abs", AbsSum = "abs-sum" });
words!(Magnitude { Query = "query", Contribution = "contribution" } implies Query);

/// The hyper-parameters of a SparQ decode step.
///
/// ```
/// use sparq::methods::GroupScore;
/// use sparq::{Sketch, SparqConfig};
///
/// let config = SparqConfig::new(32, 128)
///     .with_sketch(Sketch::Bits4)
///     .with_group_score(GroupScore::Logits);
/// assert!(config.validate(128).is_ok());
/// let error = config.validate(16).unwrap_err();
/// let expected = "rank: expected 1 to 16 (the head_dim), found 32; lower the rank";
/// assert_eq!(error.to_string(), expected);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparqConfig {
    /// r: the number of components of the query that approximate the scores.
    pub rank: usize,
    /// k: the number of positions attended to exactly, local window and current token included.
    pub top_k: usize,
    /// l: the number of most recent positions that are always selected. At most `top_k`.
    pub local_window: usize,
    /// How the key sketch is stored.
    pub sketch: Sketch,
    /// When the mean of V stands for the positions that were not selected.
    pub mean_value: MeanValue,
    /// The score by which a group of query heads selects positions.
    pub group_score: GroupScore,
    /// The magnitude by which a group of query heads selects components.
    pub components: Components,
    /// The magnitude of one component of a query.
    #[serde(default, skip_serializing_if = "Magnitude::is_query")]
    pub magnitude: Magnitude,
    /// How a cache made for this method stores K and V.
    #[serde(default, skip_serializing_if = "RowFormat::is_float")]
    pub rows: RowFormat,
    /// The layers of a model that select positions. A single layer does, whatever the number.
    #[serde(default, skip_serializing_if = "Anchors::is_all")]
    pub anchors: Anchors,
}

impl SparqConfig {
    /// The paper's settings for rank r and top-k k.
    ///
    /// These are a local window of k/4, a full sketch, the mean value where g = 1, summed
    /// probabilities, and summed |q|.
    pub fn new(rank: usize, top_k: usize) -> Self {
        Self {
            rank,
            top_k,
            local_window: top_k / 4,
            sketch: Sketch::Full,
            mean_value: MeanValue::Paper,
            group_score: GroupScore::Probabilities,
            components: Components::SumAbs,
            magnitude: Magnitude::Query,
            rows: RowFormat::Float,
            anchors: Anchors::All,
        }
    }

    /// Settings to begin with for a model's `head_dim`: r = d/4 components by their contribution, a
    /// 4-bit sketch, and k = 256 positions in 8 bits or k = 128 in floats, which move about the
    /// same bytes of a 16-bit cache.
    ///
    /// 8 bits keep more of dense attention at every budget that was measured. `None` takes them
    /// where rows of `head_dim` elements can have them.
    ///
    /// ```
    /// use sparq::{RowFormat, SparqConfig};
    ///
    /// let config = SparqConfig::recommended(128, None);
    /// assert_eq!((config.rank, config.top_k, config.rows), (32, 256, RowFormat::Int8));
    /// let floats = SparqConfig::recommended(128, Some(RowFormat::Float));
    /// assert_eq!((floats.rank, floats.top_k, floats.rows), (32, 128, RowFormat::Float));
    /// ```
    pub fn recommended(head_dim: usize, rows: Option<RowFormat>) -> Self {
        let rows = rows.unwrap_or(match RowFormat::Int8.check(head_dim) {
            Ok(()) => RowFormat::Int8,
            Err(_) => RowFormat::Float,
        });
        let top_k = match rows {
            RowFormat::Float => TOP_K,
            RowFormat::Int8 => 2 * TOP_K,
        };
        Self::new((head_dim / 4).max(1), top_k)
            .with_sketch(Sketch::Bits4)
            .with_magnitude(Magnitude::Contribution)
            .with_rows(rows)
    }

    /// Sets the local window l.
    pub fn with_local_window(self, local_window: usize) -> Self {
        Self {
            local_window,
            ..self
        }
    }

    /// Sets how the key sketch is stored.
    pub fn with_sketch(self, sketch: Sketch) -> Self {
        Self { sketch, ..self }
    }

    /// Sets how a cache made for this method stores K and V.
    pub fn with_rows(self, rows: RowFormat) -> Self {
        Self { rows, ..self }
    }

    /// Sets the layers of a model that select positions.
    pub fn with_anchors(self, anchors: Anchors) -> Self {
        Self { anchors, ..self }
    }

    /// Sets when the mean of V stands for the positions that were not selected.
    pub fn with_mean_value(self, mean_value: MeanValue) -> Self {
        Self { mean_value, ..self }
    }

    /// Sets the score by which a group of query heads selects positions.
    pub fn with_group_score(self, group_score: GroupScore) -> Self {
        Self {
            group_score,
            ..self
        }
    }

    /// Sets the magnitude by which a group of query heads selects components.
    pub fn with_components(self, components: Components) -> Self {
        Self { components, ..self }
    }

    /// Sets the magnitude of one component of a query.
    pub fn with_magnitude(self, magnitude: Magnitude) -> Self {
        Self { magnitude, ..self }
    }

    /// Checks the settings against a model's `head_dim`.
    ///
    /// # Errors
    /// [`SparqError::Config`] for the first setting out of range.
    pub fn validate(&self, head_dim: usize) -> Result<(), SparqError> {
        let (rank, top_k, window) = (self.rank, self.top_k, self.local_window);
        if rank == 0 || rank > head_dim {
            let expected = format!("1 to {head_dim} (the head_dim)");
            let advice = match rank {
                0 => "raise the rank",
                _ => "lower the rank",
            };
            return Err(SparqError::config("rank", expected, rank, advice));
        }
        at_least("top_k", 1, "the current token", top_k)?;
        if window > top_k {
            let expected = format!("at most {top_k} (the top_k, which counts the window)");
            let advice = "lower the local window or raise top_k";
            return Err(SparqError::config("local_window", expected, window, advice));
        }
        at_least("anchors", 1, "the first layer", self.anchors.of(usize::MAX))?;
        self.rows.check(head_dim)
    }

    /// Sets r and k so that a step reads at most `ratio` of the bytes of dense attention.
    ///
    /// Bytes are those of a 16-bit cache with `seq_len` positions. A part of the budget (half, or a
    /// quarter with the 4-bit sketch) goes to the approximate scores, the rest to the selected
    /// positions. The local window becomes k/4. All other settings stay as they are.
    ///
    /// ```
    /// use sparq::cost::CacheShape;
    /// use sparq::{SparqConfig, Transfers};
    ///
    /// let config = SparqConfig::new(1, 1).for_compression(128, 16384, 1.0 / 8.0)?;
    /// let shape = CacheShape { head_dim: 128, kv_heads: 1, layers: 1, element_bytes: 2 };
    /// let sparq = Transfers::sparq(&shape, 16384, &config).bytes();
    /// let share = sparq / Transfers::dense(&shape, 16384).bytes();
    /// assert!(share <= 1.0 / 8.0 && share > 0.95 / 8.0);
    /// assert_eq!(config.rank, 16);
    /// # Ok::<(), sparq::SparqError>(())
    /// ```
    ///
    /// # Errors
    /// [`SparqError::Budget`] if r = 1 and k = 1 already read more, or if `ratio` is not in (0, 1].
    pub fn for_compression(
        self,
        head_dim: usize,
        seq_len: usize,
        ratio: f64,
    ) -> Result<Self, SparqError> {
        self.within(&Budget::new(head_dim, seq_len, ratio)?)
    }

    /// [`SparqConfig::for_compression`] for a budget of all layers of a model.
    ///
    /// # Errors
    /// [`SparqError::Budget`] if r = 1 and k = 1 already read more.
    pub fn within(self, given: &Budget) -> Result<Self, SparqError> {
        let (head_dim, seq_len) = (given.head_dim, given.seq_len);
        let budget = given.ratio * given.dense_bytes();
        let bytes = |rank, top_k| {
            given.bytes(&Self {
                rank,
                top_k,
                ..self
            })
        };
        let per_component = bytes(2, 1) - bytes(1, 1);
        let per_position = bytes(1, 2) - bytes(1, 1);
        let largest_rank = ((budget - bytes(1, 1)) / per_component).floor() + 1.0;
        if largest_rank < 1.0 {
            return Err(given.missed());
        }
        let wanted = (score_share(self.sketch) * budget / per_component).round();
        let rank = wanted.clamp(1.0, largest_rank.min(head_dim as f64)) as usize;
        let top_k = 1 + ((budget - bytes(rank, 1)) / per_position).max(0.0).floor() as usize;
        let top_k = top_k.min(seq_len);
        Ok(Self {
            rank,
            top_k,
            local_window: top_k / 4,
            ..self
        })
    }

    /// Takes one decode step that also returns the selected positions and alpha.
    ///
    /// Unlike [`Method::decode`] it selects at any length, also where k positions are all there
    /// are.
    ///
    /// # Errors
    /// If q does not fit the cache, the settings do not fit its head_dim, or it lacks the sketch.
    pub fn decode_traced(
        &self,
        q: Tensor<4>,
        cache: &mut KvCache,
    ) -> Result<SparqOutput, SparqError> {
        Method::from(*self).check(cache)?;
        cache.check_query(&q, 1)?;
        cache.check_not_empty()?;
        cache.refresh_sketch();
        let q = q.inner();
        let (tensors, spans) = cache.view(&q, Some(self))?;
        Ok(ops::sparq_decode_traced(q, tensors, &spans, self))
    }
}

/// The share of a budget that goes to the approximate scores.
///
/// Half for full and 8-bit sketches, as in the paper. A quarter for 4 bits: there r = d/4 at 1/8 of
/// dense attention's bytes was within the noise of the optimal split on every text measured.
fn score_share(sketch: Sketch) -> f64 {
    match sketch {
        Sketch::Full | Sketch::Bits8 => 0.5,
        Sketch::Bits4 => 0.25,
    }
}

impl Strategy for SparqConfig {
    fn presets() -> Vec<(&'static str, Self)> {
        let paper = Self::new(RANK, TOP_K);
        vec![
            ("sparq", paper),
            ("sparq-8bit", paper.with_sketch(Sketch::Bits8)),
            ("sparq-4bit", paper.with_sketch(Sketch::Bits4)),
        ]
    }

    fn name(&self) -> &'static str {
        "sparq"
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![
            ("r", &mut self.rank),
            ("k", &mut self.top_k),
            ("l", &mut self.local_window),
            ("sketch", &mut self.sketch),
            ("mean", &mut self.mean_value),
            ("score", &mut self.group_score),
            ("components", &mut self.components),
            ("magnitude", &mut self.magnitude),
            ("rows", &mut self.rows),
            ("anchors", &mut self.anchors),
        ]
    }

    fn follow_top_k(&mut self) {
        self.local_window = self.top_k / 4;
    }

    fn validate(&self, head_dim: usize) -> Result<(), SparqError> {
        SparqConfig::validate(self, head_dim)
    }

    fn rows(&self) -> RowFormat {
        self.rows
    }

    fn sketch(&self) -> Option<Sketch> {
        Some(self.sketch)
    }

    fn anchors(&self) -> Anchors {
        self.anchors
    }

    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        Transfers::sparq(shape, seq_len, self)
    }

    /// Up to k positions are all selected: the step is dense attention, bit for bit.
    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        self.within(budget).map(Method::from)
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        cache.refresh_sketch();
        let (tensors, spans) = cache.view(&q, Some(self))?;
        if !cache.keeps_selection() {
            return Ok(ops::sparq_decode(q, tensors, &spans, self));
        }
        let (y, positions) = ops::sparq_decode_with_positions(q, tensors, &spans, self);
        cache.note_selection(positions);
        Ok(y)
    }
}
