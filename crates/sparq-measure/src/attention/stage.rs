//! The time of each stage of a SparQ step: the time of a step that ends after the stage, minus the
//! time of a step that ends before it.

use serde::{Deserialize, Serialize};
use sparq::{Sketch, SparqConfig};

use crate::bandwidth::Bandwidth;
use crate::shape::{CacheType, Shape};
use crate::stats::Summary;

/// A stage of a SparQ step. Results pass through memory from stage to stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Stage 1: selects components of the query and scores every position approximately.
    Score,
    /// Stage 2: selects the top-k positions.
    Select,
    /// Stage 3: exact attention over the selected positions, with alpha and the mean value.
    Attend,
}

/// Bytes of a score in memory, between stages.
const SCORE_BYTES: usize = 4;

impl Stage {
    /// All stages, in order.
    pub const ALL: [Stage; 3] = [Stage::Score, Stage::Select, Stage::Attend];

    /// The name in JSON files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Score => "score",
            Stage::Select => "select",
            Stage::Attend => "attend",
        }
    }

    /// The bytes the stage has to move. With n scores per position over all heads and sequences,
    /// and elements of e bytes:
    ///
    /// - score: per batch head, S r elements of the sketch and 2 d e of the query; S n scores
    ///   written
    /// - select: S n scores read
    /// - attend: per batch head, 2 k d e of K and V and 2 d e of the mean value and the output
    ///
    /// The sum is [`sparq::Transfers::sparq`] plus the scores twice, which a fused step would not
    /// move.
    pub fn bytes(self, shape: &Shape, dtype: CacheType, config: &SparqConfig) -> f64 {
        let step = shape.step(dtype);
        let batch_heads = shape.batch * shape.kv_heads;
        let scores = shape.seq_len * step.scores_per_position(config) * SCORE_BYTES;
        let small = 2 * batch_heads * shape.head_dim * dtype.bytes();
        let width = match config.sketch {
            Sketch::Full => 8 * dtype.bytes(),
            Sketch::Bits8 => 8,
            Sketch::Bits4 => 4,
        };
        let bytes = match self {
            Stage::Score => batch_heads * shape.seq_len * config.rank * width / 8 + small + scores,
            Stage::Select => scores,
            Stage::Attend => {
                2 * batch_heads * config.top_k * shape.head_dim * dtype.bytes() + small
            }
        };
        bytes as f64
    }
}

/// The time of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    /// The stage.
    pub stage: Stage,
    /// Median of the steps that end after the stage, in microseconds.
    pub until_us: f64,
    /// `until_us` minus that of the stage before.
    pub us: f64,
    /// Bytes the stage has to move.
    pub bytes: f64,
    /// Bytes divided by the time. `None` if the difference of times is not above 0.
    pub gb_per_s: Option<f64>,
    /// `gb_per_s` divided by [`Bandwidth::reference_gb_per_s`].
    pub share_of_bandwidth: Option<f64>,
}

/// The times of the stages from those of the steps that end after them. The last stage ends with
/// the whole step.
pub fn times(
    until: &[(Stage, Summary)],
    whole: &Summary,
    bytes: impl Fn(Stage) -> f64,
    bandwidth: &Bandwidth,
) -> Vec<StageTime> {
    let last = Stage::ALL[Stage::ALL.len() - 1];
    let ends = until
        .iter()
        .map(|(stage, time)| (*stage, time.median_us))
        .chain([(last, whole.median_us)]);
    let mut before = 0.0;
    ends.map(|(stage, until_us)| {
        let us = until_us - before;
        before = until_us;
        let bytes = bytes(stage);
        let gb_per_s = (us > 0.0).then(|| bytes / us / 1e3);
        StageTime {
            stage,
            until_us,
            us,
            bytes,
            gb_per_s,
            share_of_bandwidth: gb_per_s.map(|found| found / bandwidth.reference_gb_per_s()),
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparq::Transfers;
    use sparq::methods::{Components, GroupScore};

    fn bytes_of_all(shape: &Shape, dtype: CacheType, config: &SparqConfig) -> f64 {
        Stage::ALL
            .iter()
            .map(|stage| stage.bytes(shape, dtype, config))
            .sum()
    }

    #[test]
    fn stage_bytes_sum_to_transfers_and_scores() {
        for (heads, kv_heads) in [(32, 32), (32, 8)] {
            for sketch in [Sketch::Full, Sketch::Bits8, Sketch::Bits4] {
                let shape = Shape::new(2, heads, kv_heads, 128, 4096);
                let config = SparqConfig::new(32, 128).with_sketch(sketch);
                let all = bytes_of_all(&shape, CacheType::F16, &config);
                let whole = Transfers::sparq(&shape.cache(CacheType::F16), 4096, &config).bytes();
                let scores = (2 * 4 * 2 * heads * 4096) as f64;
                assert_eq!(all, whole + scores);

                let one_query = config
                    .with_group_score(GroupScore::Logits)
                    .with_components(Components::AbsSum);
                let fewer = bytes_of_all(&shape, CacheType::F16, &one_query);
                assert_eq!(fewer, whole + (2 * 4 * 2 * kv_heads * 4096) as f64);
            }
        }
    }

    #[test]
    fn stage_times_are_differences() {
        let bandwidth = Bandwidth {
            copy_gb_per_s: 1000.0,
            read_gb_per_s: None,
            buffer_bytes: 1,
        };
        let until = [
            (Stage::Score, Summary::single(10.0)),
            (Stage::Select, Summary::single(14.0)),
        ];
        let found = times(&until, &Summary::single(13.0), |_| 5e6, &bandwidth);
        let of = |index: usize| (found[index].stage, found[index].us, found[index].gb_per_s);
        assert_eq!(of(0), (Stage::Score, 10.0, Some(500.0)));
        assert_eq!(of(1), (Stage::Select, 4.0, Some(1250.0)));
        assert_eq!(of(2), (Stage::Attend, -1.0, None));
        assert_eq!(found[0].share_of_bandwidth, Some(0.5));
    }
}
