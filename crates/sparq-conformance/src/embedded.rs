//! Reference cases embedded in the program.

use crate::{Case, ConformanceError};

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../fixtures/", $name, ".safetensors")).as_slice())),*]
    };
}

/// The smallest files that together cover every feature.
static FILES: [(&str, &[u8]); 20] = files![
    "authors/00_mha_r8",
    "authors/01_mha_r8_norealloc",
    "authors/03_mha_r32_full_rank",
    "authors/06_gqa_r4",
    "authors/10_mqa_r16_local0",
    "authors/11_gqa_S_below_k",
    "authors/12_gqa_S_equals_k_plus_1",
    "authors/13_gqa_S_equals_k_plus_2",
    "authors/14_mha_S1",
    "authors/16_gqa_local_equals_k",
    "authors/17_gqa_local_k_minus_1",
    "authors/18_mha_k1_local0",
    "authors/19_mha_pad_finfo_min",
    "authors/20_gqa_pad_neg_inf",
    "authors/22_gqa_pad_fewer_than_k",
    "authors/23_gqa_opposed_queries",
    "sketch/00_b4_p_h4_kv4_d32_S200",
    "sketch/04_b4_l_h9_kv3_d64_S333",
    "sketch/08_b8_p_h8_kv1_d128_S520",
    "sketch/10_b4_l_h4_kv2_d256_S260",
];

/// Returns the embedded cases: a subset of the files in `fixtures/` that covers every feature.
///
/// ```
/// let cases = sparq_conformance::embedded_cases()?;
/// assert!(cases.iter().any(|case| case.name == "gqa_pad_fewer_than_k"));
/// # Ok::<(), sparq_conformance::ConformanceError>(())
/// ```
///
/// # Errors
/// Those of [`Case::from_bytes`], if the program was built from damaged files.
pub fn embedded_cases() -> Result<Vec<Case>, ConformanceError> {
    let read = |(name, bytes): &(&str, &[u8])| {
        Case::from_bytes(&format!("embedded {name}.safetensors"), bytes)
    };
    FILES.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use sparq::Sketch;
    use sparq::methods::{Components, GroupScore, MeanValue};

    use super::{FILES, embedded_cases};
    use crate::Case;

    #[test]
    fn cases_cover_every_feature() {
        let cases = embedded_cases().unwrap();
        let has = |feature: &str, test: &dyn Fn(&Case) -> bool| {
            assert!(cases.iter().any(test), "no embedded case has {feature}");
        };
        let group = |case: &Case| case.problem.group_size();
        let valid = |case: &Case| case.problem.seq - case.left_padding.iter().max().unwrap();
        has("one query head per KV head", &|c| group(c) == 1);
        has("groups", &|c| group(c) > 1 && c.problem.n_kv_heads > 1);
        has("one KV head", &|c| {
            group(c) > 1 && c.problem.n_kv_heads == 1
        });
        has("several sequences", &|c| c.problem.batch > 1);
        has("the full rank", &|c| c.config.rank == c.problem.head_dim);
        let outside = |case: &Case| case.config.top_k - case.config.local_window;
        has("a local window of 1", &|c| c.config.local_window == 1);
        has("a local window of k positions", &|c| outside(c) == 0);
        has("a local window of k - 1", &|c| outside(c) == 1);
        has("fewer than k positions", &|c| {
            valid(c) < c.config.top_k && valid(c) > 1
        });
        has("k positions", &|c| valid(c) == c.config.top_k);
        has("k + 1 positions", &|c| valid(c) == c.config.top_k + 1);
        has("a single position", &|c| c.problem.seq == 1);
        has("left padding", &|c| c.left_padding.iter().any(|&n| n > 0));
        for mean in [MeanValue::Always, MeanValue::Never] {
            has("each use of the mean", &|c| c.config.mean_value == mean);
        }
        for sketch in [Sketch::Full, Sketch::Bits8, Sketch::Bits4] {
            has("each sketch", &|c| c.config.sketch == sketch);
        }
        for score in [GroupScore::Probabilities, GroupScore::Logits] {
            has("each group score", &|c| c.config.group_score == score);
        }
        for rule in [Components::SumAbs, Components::AbsSum] {
            has("each rule of components", &|c| c.config.components == rule);
        }
        for head_dim in [32, 64, 128, 256] {
            has("each head dim", &|c| c.problem.head_dim == head_dim);
        }
    }

    #[test]
    fn files_stay_small() {
        let bytes: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes < 8_000_000, "{bytes} bytes");
    }
}
