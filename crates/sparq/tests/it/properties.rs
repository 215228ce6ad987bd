//! Properties of SparQ for random shapes and settings.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor};
use proptest::prelude::*;
use sparq::methods::{Anchors, Components, GroupScore, Magnitude, MeanValue};
use sparq::reference::SparqTrace;
use sparq::{Method, RowFormat, Sketch, SparqConfig, reference};

use crate::common::{
    Noise, SKETCHES, cache_config, cache_f32, devices, max_difference, new_cache, sequence, values,
};

/// The shape and the content of a random problem.
#[derive(Clone, Copy, Debug)]
struct Problem {
    batch: usize,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    len: usize,
    seed: u64,
}

impl Problem {
    /// Returns the query, keys and values on a device.
    fn tensors(&self, device: &Device) -> (Tensor<4>, [Tensor<4>; 2]) {
        let shape = [self.batch, self.kv_heads, self.len, self.head_dim];
        Noise(self.seed).problem(shape, self.kv_heads * self.group, device)
    }
}

fn problems() -> impl Strategy<Value = Problem> {
    (
        1..4usize,
        1..4usize,
        1..4usize,
        prop::sample::select(vec![2, 8, 20, 32]),
        1..90usize,
        any::<u64>(),
    )
        .prop_map(|(batch, kv_heads, group, head_dim, len, seed)| Problem {
            batch,
            kv_heads,
            group,
            head_dim,
            len,
            seed,
        })
}

fn settings() -> impl Strategy<Value = SparqConfig> {
    (
        1..33usize,
        1..40usize,
        0..40usize,
        prop::sample::select(SKETCHES.to_vec()),
        prop::sample::select(vec![MeanValue::Always, MeanValue::Never, MeanValue::Paper]),
        prop::sample::select(vec![GroupScore::Probabilities, GroupScore::Logits]),
        prop::sample::select(vec![Components::SumAbs, Components::AbsSum]),
        prop::sample::select(vec![Magnitude::Query, Magnitude::Contribution]),
    )
        .prop_map(
            |(rank, top_k, local, sketch, mean_value, group_score, components, magnitude)| {
                SparqConfig {
                    rank,
                    top_k,
                    local_window: local.min(top_k),
                    sketch,
                    mean_value,
                    group_score,
                    components,
                    magnitude,
                    rows: RowFormat::Float,
                    anchors: Anchors::All,
                }
            },
        )
}

/// Returns the selected positions of each batch head, ascending, without the -1 of sequences that
/// have fewer valid positions than the longest selects.
fn positions(t: &Tensor<3, Int>) -> Vec<Vec<i64>> {
    let k = t.dims()[2];
    let flat: Vec<i64> = t.clone().into_data().iter::<i64>().collect();
    flat.chunks(k)
        .map(|head| {
            let mut head: Vec<i64> = head.iter().copied().filter(|&at| at >= 0).collect();
            head.sort_unstable();
            head
        })
        .collect()
}

/// Returns the group scores of every position from the trace, one list per KV head of a single
/// sequence. Scores of invalid positions are meaningless.
fn group_scores(trace: &SparqTrace, config: &SparqConfig, valid: Range<usize>) -> Vec<Vec<f32>> {
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

/// Returns whether two selections are equal, head by head, or `None` if they differ by more than a
/// tie.
///
/// Codes make many equal scores, of which any may be selected, and a batch adds in another order
/// than a single sequence.
fn same_selection(one: &[Vec<i64>], other: &[Vec<i64>], scores: &[Vec<f32>]) -> Option<Vec<bool>> {
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
    fn top_k_of_all_positions_equals_dense(problem in problems(), config in settings()) {
        let config = SparqConfig {
            rank: config.rank.min(problem.head_dim),
            top_k: config.top_k + problem.len,
            ..config
        };
        for device in devices() {
            let (q, [k, v]) = problem.tensors(&device);
            let mut cache = cache_f32(&k, &v, Some(config.sketch));
            let dense = Method::DENSE.decode(q.clone(), &mut cache).unwrap();
            let sparq = Method::from(config).decode(q.clone(), &mut cache).unwrap();
            prop_assert_eq!(values(&sparq), values(&dense));
            // The sparse path itself, which a ragged batch takes for its short sequences.
            let traced = config.decode_traced(q, &mut cache).unwrap();
            prop_assert!(values(&traced.alpha).iter().all(|&alpha| alpha == 1.0));
            prop_assert!(max_difference(&traced.output, &dense) < 1e-5);
        }
    }

    #[test]
    fn full_rank_and_all_positions_equal_dense(problem in problems()) {
        for device in devices() {
            let (q, [k, v]) = problem.tensors(&device);
            let config = SparqConfig::new(problem.head_dim, problem.len)
                .with_mean_value(MeanValue::Always);
            let mut cache = cache_f32(&k, &v, Some(Sketch::Full));
            let dense = Method::DENSE.decode(q.clone(), &mut cache).unwrap();
            let sparq = config.decode_traced(q, &mut cache).unwrap();
            prop_assert!(max_difference(&sparq.output, &dense) < 1e-5);
        }
    }

    #[test]
    fn alpha_is_a_probability_of_distinct_positions(problem in problems(), config in settings()) {
        let config = SparqConfig { rank: config.rank.min(problem.head_dim), ..config };
        for device in devices() {
            let (q, [k, v]) = problem.tensors(&device);
            let mut cache = cache_f32(&k, &v, Some(config.sketch));
            let step = config.decode_traced(q, &mut cache).unwrap();
            prop_assert!(values(&step.alpha).iter().all(|alpha| (0.0..=1.0).contains(alpha)));
            let count = config.top_k.min(problem.len);
            let len = problem.len as i64;
            let window = len - config.local_window.min(problem.len) as i64;
            for head in positions(&step.positions) {
                prop_assert_eq!(head.len(), count);
                prop_assert!(head.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert!(head[0] >= 0 && head[count - 1] < len);
                prop_assert!((window..len).all(|position| head.contains(&position)));
            }
        }
    }

    #[test]
    fn permuted_positions_permute_the_selection(problem in problems(), config in settings()) {
        // Without a local window, the order of the positions has no meaning.
        let rank = config.rank.min(problem.head_dim);
        let config = SparqConfig { rank, local_window: 0, ..config };
        prop_assume!(config.top_k < problem.len);
        for device in devices() {
            let (q, [k, v]) = problem.tensors(&device);
            let mut order: Vec<i64> = (0..problem.len as i64).collect();
            order.sort_by_key(|&position| {
                (position as u64).wrapping_mul(problem.seed | 1).wrapping_mul(0x9e3779b97f4a7c15)
            });
            let index = Tensor::<1, Int>::from_ints(order.as_slice(), &device);
            let shuffled = |t: &Tensor<4>| t.clone().select(2, index.clone());
            let decode = |k: &Tensor<4>, v: &Tensor<4>| {
                let mut cache = cache_f32(k, v, Some(config.sketch));
                config.decode_traced(q.clone(), &mut cache).unwrap()
            };
            let plain = decode(&k, &v);
            let moved = decode(&shuffled(&k), &shuffled(&v));
            // Equal codes make equal scores, and any of them may be selected. With probabilities,
            // alpha does not depend on that.
            if config.sketch == Sketch::Full {
                let mut back = positions(&moved.positions);
                for head in &mut back {
                    head.iter_mut().for_each(|position| *position = order[*position as usize]);
                    head.sort_unstable();
                }
                prop_assert_eq!(back, positions(&plain.positions));
                prop_assert!(max_difference(&plain.output, &moved.output) < 1e-4);
            } else if config.group_score == GroupScore::Probabilities && problem.group == 1 {
                prop_assert!(max_difference(&plain.alpha, &moved.alpha) < 1e-5);
            }
        }
    }

    #[test]
    fn sequences_of_a_batch_are_independent(
        problem in problems(),
        config in settings(),
        ragged in prop::collection::vec((0..8usize, 0..8usize), 4),
    ) {
        let config = SparqConfig { rank: config.rank.min(problem.head_dim), ..config };
        let problem = Problem { len: problem.len + 16, ..problem };
        let Problem { batch, kv_heads, group, head_dim, len, .. } = problem;
        for device in devices() {
            let (q, [k, v]) = problem.tensors(&device);
            let counts: Vec<usize> = ragged.iter().map(|ragged| len - ragged.1).collect();
            let padding: Vec<usize> = ragged.iter().map(|ragged| ragged.0).collect();
            let make = |batch: Range<usize>| {
                let part = |t: &Tensor<4>| t.clone().slice_dim(0, batch.clone());
                let shape = [batch.len(), kv_heads, head_dim];
                let mut cache = new_cache(&cache_config(shape, Some(config.sketch)), &device);
                cache.set_left_padding(&padding[batch.clone()]).unwrap();
                cache.append_ragged(part(&k), part(&v), &counts[batch.clone()]).unwrap();
                cache
            };
            let mut together = make(0..batch);
            let all = config.decode_traced(q.clone(), &mut together).unwrap();
            let dense = Method::DENSE.decode(q.clone(), &mut together).unwrap();
            let all_positions = positions(&all.positions);
            for index in 0..batch {
                let q = sequence(&q, index);
                let mut alone = make(index..index + 1);
                let step = config.decode_traced(q.clone(), &mut alone).unwrap();
                let trace =
                    reference::sparq_decode(q.clone(), alone.tensors(), alone.spans(), &config);
                let scores = group_scores(&trace, &config, padding[index]..counts[index]);
                let together = &all_positions[index * kv_heads..(index + 1) * kv_heads];
                let same = same_selection(&positions(&step.positions), together, &scores);
                prop_assert!(same.is_some(), "the selections differ in unequal scores");
                for (head, same) in same.unwrap().into_iter().enumerate() {
                    let of = |t: &Tensor<4>, index: usize| {
                        t.clone().slice([index..index + 1, head * group..(head + 1) * group])
                    };
                    let difference = max_difference(&of(&step.output, 0), &of(&all.output, index));
                    prop_assert!(!same || difference < 1e-5);
                }
                let exact = Method::DENSE.decode(q, &mut alone).unwrap();
                prop_assert!(max_difference(&exact, &sequence(&dense, index)) < 1e-5);
            }
        }
    }
}
