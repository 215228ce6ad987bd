//! What must hold for any shape and setting, on every CPU backend.

mod common;

use burn::tensor::{FloatDType, Int, Tensor};
use common::{Noise, cache_of, devices, max_difference, values};
use proptest::prelude::*;
use sparq::methods::{Components, GroupScore, MeanValue};
use sparq::reference::SparqTrace;
use sparq::{Method, Sketch, SparqConfig, reference};

/// (batch, kv_heads, group, head_dim, seq_len, seed)
fn shapes() -> impl Strategy<Value = (usize, usize, usize, usize, usize, u64)> {
    (
        1..4usize,
        1..4usize,
        1..4usize,
        prop::sample::select(vec![2, 8, 20, 32]),
        1..90usize,
        any::<u64>(),
    )
}

fn settings() -> impl Strategy<Value = SparqConfig> {
    (
        1..33usize,
        1..40usize,
        0..40usize,
        prop::sample::select(vec![Sketch::Full, Sketch::Bits8, Sketch::Bits4]),
        prop::sample::select(vec![MeanValue::Always, MeanValue::Never, MeanValue::Paper]),
        prop::sample::select(vec![GroupScore::Probabilities, GroupScore::Logits]),
        prop::sample::select(vec![Components::SumAbs, Components::AbsSum]),
    )
        .prop_map(
            |(rank, top_k, local, sketch, mean_value, group_score, components)| SparqConfig {
                rank,
                top_k,
                local_window: local.min(top_k),
                sketch,
                mean_value,
                group_score,
                components,
            },
        )
}

fn positions(t: &Tensor<3, Int>) -> Vec<Vec<i64>> {
    let k = t.dims()[2];
    let flat: Vec<i64> = t.clone().into_data().iter::<i64>().collect();
    flat.chunks(k)
        .map(|row| {
            // -1 fills up where a sequence has fewer valid positions than the longest of the batch keeps.
            let mut row: Vec<i64> = row.iter().copied().filter(|&at| at >= 0).collect();
            row.sort_unstable();
            row
        })
        .collect()
}

/// The group score of every position as the trace has it, one list per key/value head of a batch of one; what is not valid scores nothing.
fn group_scores(
    trace: &SparqTrace,
    config: &SparqConfig,
    valid: std::ops::Range<usize>,
) -> Vec<Vec<f32>> {
    let [_, _, g, s] = trace.logits.dims();
    let logits: Vec<f32> = trace.logits.clone().into_data().iter::<f32>().collect();
    let head = |logits: &[f32]| -> Vec<f32> {
        if config.group_score == GroupScore::Logits {
            return logits.to_vec();
        }
        let largest = logits[valid.clone()]
            .iter()
            .copied()
            .fold(f32::MIN, f32::max);
        let weights: Vec<f32> = logits.iter().map(|x| (x - largest).exp()).collect();
        let sum: f32 = weights[valid.clone()].iter().sum();
        weights.iter().map(|w| w / sum).collect()
    };
    logits
        .chunks(g * s)
        .map(|group| {
            let heads: Vec<Vec<f32>> = group.chunks(s).map(head).collect();
            (0..s).map(|at| heads.iter().map(|h| h[at]).sum()).collect()
        })
        .collect()
}

/// Whether two choices are the same, head by head. `None` if they differ by more than a tie: few codes make many equal scores, among which
/// any may be kept, and a batch sums them in another order than a single row.
fn same_choice(one: &[Vec<i64>], other: &[Vec<i64>], scores: &[Vec<f32>]) -> Option<Vec<bool>> {
    let tied = |one: &[i64], other: &[i64], scores: &[f32]| {
        let only = |a: &[i64], b: &[i64]| -> Vec<f32> {
            a.iter()
                .filter(|p| !b.contains(p))
                .map(|&p| scores[p as usize])
                .collect()
        };
        let (a, b) = (only(one, other), only(other, one));
        a.len() == b.len()
            && a.iter().all(|x| {
                b.iter()
                    .all(|y| (x - y).abs() <= 1e-5 * x.abs().max(y.abs()).max(1e-3))
            })
    };
    (0..one.len())
        .map(|head| {
            let (a, b) = (&one[head], &other[head]);
            (a == b || tied(a, b, &scores[head])).then_some(a == b)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn at_most_k_positions_equal_dense_attention((b, h_kv, g, d, s, seed) in shapes(), config in settings()) {
        let config = SparqConfig { rank: config.rank.min(d), top_k: config.top_k + s, ..config };
        for device in devices() {
            let mut noise = Noise(seed);
            let (k, v) = (noise.tensor([b, h_kv, s, d], &device), noise.tensor([b, h_kv, s, d], &device));
            let q = noise.tensor([b, h_kv * g, 1, d], &device);
            let mut cache = cache_of(&k, &v, FloatDType::F32, Some(config.sketch));
            let dense = Method::DENSE.decode(q.clone(), &mut cache).unwrap();
            prop_assert_eq!(values(&Method::from(config).decode(q.clone(), &mut cache).unwrap()), values(&dense));
            // The sparse path itself, which a ragged batch takes for its short rows.
            let traced = config.decode_traced(q, &mut cache).unwrap();
            prop_assert!(values(&traced.alpha).iter().all(|&alpha| alpha == 1.0));
            prop_assert!(max_difference(&traced.output, &dense) < 1e-5);
        }
    }

    #[test]
    fn full_rank_with_every_position_kept_equals_dense_attention((b, h_kv, g, d, s, seed) in shapes()) {
        for device in devices() {
            let mut noise = Noise(seed);
            let (k, v) = (noise.tensor([b, h_kv, s, d], &device), noise.tensor([b, h_kv, s, d], &device));
            let q = noise.tensor([b, h_kv * g, 1, d], &device);
            let config = SparqConfig::new(d, s).with_mean_value(MeanValue::Always);
            let mut cache = cache_of(&k, &v, FloatDType::F32, Some(Sketch::Full));
            let dense = Method::DENSE.decode(q.clone(), &mut cache).unwrap();
            let sparq = config.decode_traced(q, &mut cache).unwrap();
            prop_assert!(max_difference(&sparq.output, &dense) < 1e-5);
        }
    }

    #[test]
    fn alpha_is_a_probability_and_the_kept_positions_are_distinct((b, h_kv, g, d, s, seed) in shapes(), config in settings()) {
        let config = SparqConfig { rank: config.rank.min(d), ..config };
        for device in devices() {
            let mut noise = Noise(seed);
            let (k, v) = (noise.tensor([b, h_kv, s, d], &device), noise.tensor([b, h_kv, s, d], &device));
            let q = noise.tensor([b, h_kv * g, 1, d], &device);
            let mut cache = cache_of(&k, &v, FloatDType::F32, Some(config.sketch));
            let step = config.decode_traced(q, &mut cache).unwrap();
            prop_assert!(values(&step.alpha).iter().all(|alpha| (0.0..=1.0).contains(alpha)));
            let kept = config.top_k.min(s);
            for row in positions(&step.positions) {
                prop_assert_eq!(row.len(), kept);
                prop_assert!(row.windows(2).all(|pair| pair[0] < pair[1]) && row[0] >= 0 && row[kept - 1] < s as i64);
                let local = config.local_window.min(s);
                prop_assert!((s - local..s).all(|position| row.contains(&(position as i64))));
            }
        }
    }

    #[test]
    fn permuting_the_cache_permutes_the_choice((b, h_kv, g, d, s, seed) in shapes(), config in settings()) {
        // Without a local window the order of the positions means nothing.
        let config = SparqConfig { rank: config.rank.min(d), local_window: 0, ..config };
        prop_assume!(config.top_k < s);
        for device in devices() {
            let mut noise = Noise(seed);
            let (k, v) = (noise.tensor([b, h_kv, s, d], &device), noise.tensor([b, h_kv, s, d], &device));
            let q = noise.tensor([b, h_kv * g, 1, d], &device);
            let mut order: Vec<i64> = (0..s as i64).collect();
            order.sort_by_key(|&position| (position as u64).wrapping_mul(seed | 1).wrapping_mul(0x9e3779b97f4a7c15));
            let index = Tensor::<1, Int>::from_ints(order.as_slice(), &device);
            let shuffled = |t: &Tensor<4>| t.clone().select(2, index.clone());
            let plain = config.decode_traced(q.clone(), &mut cache_of(&k, &v, FloatDType::F32, Some(config.sketch))).unwrap();
            let moved = config.decode_traced(q, &mut cache_of(&shuffled(&k), &shuffled(&v), FloatDType::F32, Some(config.sketch))).unwrap();
            // Equal codes make equal scores, and a tie may be broken either way; alpha does not change by a tie of probabilities alone.
            if config.sketch == Sketch::Full {
                let back: Vec<Vec<i64>> = positions(&moved.positions).into_iter().map(|row| {
                    let mut row: Vec<i64> = row.into_iter().map(|position| order[position as usize]).collect();
                    row.sort_unstable();
                    row
                }).collect();
                prop_assert_eq!(back, positions(&plain.positions));
                prop_assert!(max_difference(&plain.output, &moved.output) < 1e-4);
            } else if config.group_score == GroupScore::Probabilities && g == 1 {
                prop_assert!(max_difference(&plain.alpha, &moved.alpha) < 1e-5);
            }
        }
    }

    #[test]
    fn the_rows_of_a_batch_are_independent((b, h_kv, g, d, s, seed) in shapes(), config in settings(), ragged in prop::collection::vec((0..8usize, 0..8usize), 4)) {
        let config = SparqConfig { rank: config.rank.min(d), ..config };
        for device in devices() {
            let mut noise = Noise(seed);
            let s = s + 16;
            let (k, v) = (noise.tensor([b, h_kv, s, d], &device), noise.tensor([b, h_kv, s, d], &device));
            let q = noise.tensor([b, h_kv * g, 1, d], &device);
            let counts: Vec<usize> = (0..b).map(|row| s - ragged[row].1).collect();
            let padding: Vec<usize> = (0..b).map(|row| ragged[row].0).collect();
            let make = |rows: std::ops::Range<usize>| {
                let part = |t: &Tensor<4>| t.clone().slice_dim(0, rows.clone());
                let config = sparq::KvCacheConfig::new(rows.len(), h_kv, d).with_capacity(1).with_dtype(FloatDType::F32).with_sketch(Some(config.sketch));
                let mut cache = config.init(&device).unwrap();
                cache.set_left_padding(&padding[rows.clone()]).unwrap();
                cache.append_ragged(part(&k), part(&v), &counts[rows.clone()]).unwrap();
                cache
            };
            let mut together = make(0..b);
            let (all, dense) = (config.decode_traced(q.clone(), &mut together).unwrap(), Method::DENSE.decode(q.clone(), &mut together).unwrap());
            for row in 0..b {
                let one = q.clone().slice_dim(0, row..row + 1);
                let mut alone = make(row..row + 1);
                let step = config.decode_traced(one.clone(), &mut alone).unwrap();
                let spans = padding[row]..counts[row];
                let trace = reference::sparq_decode(one.clone(), alone.tensors(), alone.spans(), &config);
                let together = &positions(&all.positions)[row * h_kv..(row + 1) * h_kv];
                let same = same_choice(&positions(&step.positions), together, &group_scores(&trace, &config, spans));
                prop_assert!(same.is_some(), "what only one of the two kept is not of equal score");
                for (head, same) in same.unwrap().into_iter().enumerate() {
                    let of = |t: &Tensor<4>, row: usize| t.clone().slice([row..row + 1, head * g..(head + 1) * g]);
                    prop_assert!(!same || max_difference(&of(&step.output, 0), &of(&all.output, row)) < 1e-5);
                }
                let exact = Method::DENSE.decode(one, &mut alone).unwrap();
                prop_assert!(max_difference(&exact, &dense.clone().slice_dim(0, row..row + 1)) < 1e-5);
            }
        }
    }
}
