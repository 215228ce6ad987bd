//! Every method against cases computed by hand, and against what must hold for any input.

mod common;

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use common::{Noise, cache_of, devices, max_difference, values};
use proptest::prelude::*;
use sparq::{
    CacheShape, Directions, FlexGen, GroupScore, H2o, Hybrid, KeyPrecision, KvCache, KvCacheConfig,
    LmInfinite, MeanValue, Method, Oracle, Projection, Quest, RotaryConfig, Sketch,
    SparqAttentionConfig, SparqConfig, SparqError, SparqVariant, Temperature, Transfers,
};

fn tensor(values: &[f32], shape: [usize; 4], device: &Device) -> Tensor<4> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn config(batch: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> KvCacheConfig {
    KvCacheConfig {
        batch,
        kv_heads,
        head_dim,
        capacity: 1,
        dtype: FloatDType::F32,
        sketch: None,
        window,
    }
}

/// A cache of one head with keys of one component whose weights for q = 1 are 4, 1, 2, 1, 8, and the values 1 to 5.
fn five(device: &Device) -> KvCache {
    let keys = [4f32, 1.0, 2.0, 1.0, 8.0].map(f32::ln);
    cache_of(
        &tensor(&keys, [1, 1, 5, 1], device),
        &tensor(&[1.0, 2.0, 3.0, 4.0, 5.0], [1, 1, 5, 1], device),
        FloatDType::F32,
        None,
    )
}

fn outputs(method: impl Into<Method>, queries: &[f32], cache: &mut KvCache) -> Vec<f32> {
    let device = cache.tensors().k.device();
    let q = tensor(queries, [1, queries.len(), 1, 1], &device);
    values(&method.into().decode(q, cache).unwrap())
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
    }
}

#[test]
fn the_first_and_the_latest_positions_are_lm_infinites() {
    for device in devices() {
        let method = LmInfinite { top_k: 3, first: 1 };
        // Positions 0, 3 and 4: (4 1 + 1 4 + 8 5) / 13.
        assert_close(&outputs(method, &[1.0], &mut five(&device)), &[48.0 / 13.0]);
        assert_eq!(LmInfinite::new(128).first, 16);
        assert_eq!(LmInfinite::new(10).first, 5);
    }
}

#[test]
fn flexgen_does_not_renormalise_and_the_oracle_does() {
    for device in devices() {
        // Positions 0 and 4: (4 1 + 8 5) of 16, or of 12.
        let mut cache = five(&device);
        assert_close(&outputs(FlexGen { top_k: 2 }, &[1.0], &mut cache), &[2.75]);
        assert_close(
            &outputs(Oracle { top_k: 2 }, &[1.0], &mut cache),
            &[44.0 / 12.0],
        );
        // With a head of q = -1, whose weights are 1/4, 1, 1/2, 1, 1/8, the sums of probabilities are .34, .41, .30, .41, .54: positions 1, 3 and 4.
        let expected = [(2.0 + 4.0 + 40.0) / 10.0, (2.0 + 4.0 + 0.625) / 2.125];
        assert_close(
            &outputs(Oracle { top_k: 3 }, &[1.0, -1.0], &mut cache),
            &expected,
        );
        let expected = [46.0 / 16.0, 6.625 / 2.875];
        assert_close(
            &outputs(FlexGen { top_k: 3 }, &[1.0, -1.0], &mut cache),
            &expected,
        );
    }
}

#[test]
fn quest_keeps_the_pages_with_the_best_bounds() {
    for device in devices() {
        // Three pages of two positions. For q = (1, -1) the bounds of the first are 3 + 1, though its positions score 3 - 2 and 0 + 1; of the second, 1 + 1, where a
        // position has both. The last one is current.
        let keys = [3.0, 2.0, 0.0, -1.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0];
        let ones = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 5.0, 5.0];
        let k = tensor(&keys, [1, 1, 5, 2], &device);
        let v = tensor(&ones, [1, 1, 5, 2], &device);
        let mut cache = cache_of(&k, &v, FloatDType::F32, None);
        let q = tensor(&[1.0, -1.0], [1, 1, 1, 2], &device);
        for group_score in [GroupScore::Probabilities, GroupScore::Logits] {
            let quest = Quest {
                page_size: 2,
                top_k: 4,
                group_score,
            };
            let found = Method::from(quest).decode(q.clone(), &mut cache).unwrap();
            // Scores 1, 1, 0 over sqrt(2) for the values 1, 2, 5.
            let e = (1.0f32 / 2.0f32.sqrt()).exp();
            let expected = (3.0 * e + 5.0) / (2.0 * e + 1.0);
            assert_close(&values(&found), &[expected, expected]);
        }
        // One component alone, the first (of equal ones, whichever: the two queries differ). Its bounds are 3, 1, 0; with all 4 of two pages as candidates, the
        // best two positions and the current one are 0, 1 and 4.
        let q = tensor(&[1.0, -0.5], [1, 1, 1, 2], &device);
        let hybrid = Hybrid {
            rank: 1,
            page_size: 2,
            candidates: 4,
            top_k: 3,
            local_window: 1,
        };
        let found = Method::from(hybrid).decode(q, &mut cache).unwrap();
        // Exact scores 3 - 1, 0 + 0.5 and 0.
        let [a, b] = [2.0f32, 0.5].map(|score| (score / 2.0f32.sqrt()).exp());
        let expected = (a + 2.0 * b + 5.0) / (a + b + 1.0);
        assert_close(&values(&found), &[expected, expected]);
    }
}

/// What H2O does, in loops: the weights of each step for one head of one component, and what positions have received.
struct H2oByHand {
    received: Vec<f32>,
    alive: Vec<bool>,
}

impl H2oByHand {
    fn step(&mut self, queries: &[f32], keys: &[f32], values: &[f32], method: &H2o) -> Vec<f32> {
        let len = keys.len();
        self.received.resize(len, 0.0);
        self.alive.resize(len, true);
        let mut order: Vec<usize> = (0..len - method.local_window.min(len)).collect();
        order.retain(|&at| self.alive[at]);
        order.sort_by(|&a, &b| self.received[b].total_cmp(&self.received[a]));
        for &at in order.iter().skip(method.top_k - method.local_window) {
            self.alive[at] = false;
        }
        let weights = queries.iter().map(|q| {
            let weight = |at: usize| {
                if self.alive[at] {
                    (q * keys[at]).exp()
                } else {
                    0.0
                }
            };
            let weights: Vec<f32> = (0..len).map(weight).collect();
            let sum: f32 = weights.iter().sum();
            weights.into_iter().map(|weight| weight / sum).collect()
        });
        let weights: Vec<Vec<f32>> = weights.collect();
        for at in 0..len {
            let sum: f32 = weights.iter().map(|weights| weights[at]).sum();
            self.received[at] += sum / queries.len() as f32;
        }
        let mix = |weights: &Vec<f32>| weights.iter().zip(values).map(|(w, v)| w * v).sum();
        weights.iter().map(mix).collect()
    }
}

#[test]
fn h2o_evicts_what_has_received_least_and_forever() {
    for device in devices() {
        for method in [
            H2o {
                top_k: 4,
                local_window: 1,
            },
            H2o {
                top_k: 5,
                local_window: 3,
            },
        ] {
            let mut cache = KvCache::new(&config(1, 1, 1, None), &device).unwrap();
            cache.record_attention().unwrap();
            let mut hand = H2oByHand {
                received: Vec::new(),
                alive: Vec::new(),
            };
            let mut noise = Noise(11);
            let (keys, contents) = (noise.values(30), noise.values(30));
            for len in 1..=30 {
                let new = |all: &[f32]| tensor(&all[len - 1..len], [1, 1, 1, 1], &device);
                cache.append(new(&keys), new(&contents)).unwrap();
                let queries = noise.values(2);
                let expected = hand.step(&queries, &keys[..len], &contents[..len], &method);
                assert_close(&outputs(method, &queries, &mut cache), &expected);
                assert_eq!(
                    hand.alive.iter().filter(|alive| **alive).count(),
                    len.min(method.top_k)
                );
            }
            let found = cache.received_attention().unwrap().into_data();
            for (at, found) in found.iter::<f32>().enumerate() {
                match hand.alive[at] {
                    true => assert!((found - hand.received[at]).abs() < 1e-4),
                    false => assert_eq!(found, f32::NEG_INFINITY),
                }
            }
            // Nobody else can read what is left.
            let error = Method::DENSE.decode(tensor(&[1.0], [1, 1, 1, 1], &device), &mut cache);
            assert!(matches!(error, Err(SparqError::Value { .. })), "{error:?}");
            assert!(cache.for_method(&Method::DENSE).is_err());
        }
    }
}

#[test]
fn a_prefill_records_what_its_tokens_record_one_by_one() {
    for device in devices() {
        for window in [None, Some(7)] {
            let attention = SparqAttentionConfig::new(16, 4, 2, 8)
                .with_rotary(Some(RotaryConfig::new(8)))
                .with_window(window)
                .init(&device)
                .unwrap();
            let method = Method::from(H2o::new(64));
            let new = || {
                let config = attention.cache_config(2, 1, FloatDType::F32, &method);
                let mut cache = KvCache::new(&config, &device).unwrap();
                cache.set_left_padding(&[0, 3]).unwrap();
                cache.record_attention().unwrap();
                cache
            };
            let x = Noise(3).tensor([1, 2, 20, 16], &device).squeeze_dim::<3>(0);
            let (mut whole, mut stepwise) = (new(), new());
            attention
                .forward(x.clone().slice_dim(1, 0..12), Some(&mut whole))
                .unwrap();
            attention
                .forward(x.clone().slice_dim(1, 12..20), Some(&mut whole))
                .unwrap();
            attention
                .forward(x.clone().slice_dim(1, 0..5), Some(&mut stepwise))
                .unwrap();
            for at in 5..20 {
                let token = x.clone().slice_dim(1, at..at + 1);
                // The dense step records for H2O, and H2O for itself.
                let method = if at % 2 == 0 { Method::DENSE } else { method };
                attention.decode(token, &mut stepwise, &method).unwrap();
            }
            let [whole, stepwise] =
                [whole, stepwise].map(|cache| cache.received_attention().unwrap());
            assert!(max_difference(&whole, &stepwise) < 1e-5);
            // Every query gives a weight of 1 in all, and padding none.
            let sums = values(&whole.sum_dim(2));
            assert_close(&sums, &[20.0, 20.0, 17.0, 17.0]);
        }
    }
}

#[test]
fn what_a_method_reads_has_to_be_there() {
    for device in devices() {
        let mut cache = five(&device);
        let q = || tensor(&[1.0], [1, 1, 1, 1], &device);
        let h2o = Method::from(H2o::new(4));
        let error = h2o.decode(q(), &mut cache).unwrap_err();
        assert!(error.to_string().contains("record_attention"), "{error}");
        assert!(matches!(
            cache.for_method(&h2o),
            Err(SparqError::MissingAttention { .. })
        ));
        assert!(cache.record_attention().is_err(), "it is not empty");
        for (method, field) in [
            (
                Method::from(H2o {
                    top_k: 4,
                    local_window: 0,
                }),
                "local_window",
            ),
            (
                H2o {
                    top_k: 2,
                    local_window: 3,
                }
                .into(),
                "top_k",
            ),
            (
                LmInfinite {
                    top_k: 16,
                    first: 16,
                }
                .into(),
                "top_k",
            ),
            (FlexGen { top_k: 0 }.into(), "top_k"),
            (Quest::new(15).into(), "top_k"),
            (
                Hybrid {
                    candidates: 7,
                    ..Hybrid::new(1, 8)
                }
                .into(),
                "candidates",
            ),
            (Projection::new(Directions::Random, 2, 4).into(), "rank"),
            (
                SparqVariant::new(1, 4).with_second_rank(Some(1)).into(),
                "second_rank",
            ),
        ] {
            let error = method.decode(q(), &mut cache).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: expected ")), "{error}");
        }
    }
}

#[test]
fn one_prefill_serves_every_method() {
    for device in devices() {
        let mut noise = Noise(8);
        let [k, v] = [(); 2].map(|()| noise.tensor([2, 2, 70, 16], &device));
        let new = |sketch| {
            let config = KvCacheConfig {
                sketch,
                ..config(2, 2, 16, Some(40))
            };
            let mut cache = KvCache::new(&config, &device).unwrap();
            cache
                .append(k.clone().slice_dim(2, 0..60), v.clone().slice_dim(2, 0..60))
                .unwrap();
            cache
        };
        let prefilled = new(None);
        for sketch in [Sketch::Full, Sketch::Bits8, Sketch::Bits4] {
            let base = SparqConfig::new(4, 12).with_mean_value(MeanValue::Always);
            let method = Method::from(base.with_sketch(sketch));
            let (mut own, mut copy) = (new(Some(sketch)), prefilled.for_method(&method).unwrap());
            for at in 60..70 {
                let q = noise.tensor([2, 4, 1, 16], &device);
                let steps = [&mut own, &mut copy].map(|cache| {
                    let new = |t: &Tensor<4>| t.clone().slice_dim(2, at..at + 1);
                    cache.append(new(&k), new(&v)).unwrap();
                    method.decode(q.clone(), cache).unwrap()
                });
                assert!(
                    max_difference(&steps[0], &steps[1]) < 1e-5,
                    "{sketch:?} at {at}"
                );
            }
        }
        assert_eq!(prefilled.len(), 60);
    }
}

/// Methods of every kind with sizes that fit head_dim 8 and more.
fn methods(k: usize) -> Vec<Method> {
    let variant = SparqVariant::new(3, k).with_mean_value(MeanValue::Never);
    let mut methods: Vec<Method> = vec![
        H2o::new(k).into(),
        LmInfinite {
            top_k: k,
            first: k / 2,
        }
        .into(),
        Oracle { top_k: k }.into(),
        Quest {
            page_size: 3.min(k),
            ..Quest::new(k)
        }
        .into(),
        Quest {
            page_size: 2.min(k),
            group_score: GroupScore::Logits,
            top_k: k,
        }
        .into(),
        Hybrid {
            page_size: 4,
            ..Hybrid::new(3, k)
        }
        .into(),
        variant.into(),
        variant
            .with_second_rank(Some(6))
            .with_keys(KeyPrecision::Bits4)
            .into(),
        variant.with_temperature(Temperature::SqrtHeadDim).into(),
        variant.with_temperature(Temperature::SqrtRank).into(),
    ];
    for keys in [
        KeyPrecision::Bits8,
        KeyPrecision::Bits3,
        KeyPrecision::Bits2,
    ] {
        methods.push(variant.with_keys(keys).into());
    }
    methods
}

/// The same, and those whose weights do not sum to 1 over k positions.
fn all_methods(k: usize) -> Vec<Method> {
    let mut methods = methods(k);
    methods.push(FlexGen { top_k: k }.into());
    methods.push(
        SparqVariant::new(3, k)
            .with_mean_value(MeanValue::Always)
            .into(),
    );
    methods.push(Projection::new(Directions::Random, 3, k).into());
    methods.push(Projection::new(Directions::Principal, 3, k).into());
    methods
}

/// A cache that every method can read, with what `padding` and `counts` leave of its rows.
fn filled(
    k: &Tensor<4>,
    v: &Tensor<4>,
    padding: &[usize],
    counts: &[usize],
    window: Option<usize>,
) -> KvCache {
    let [batch, kv_heads, _, d] = k.dims();
    let mut cache = KvCache::new(&config(batch, kv_heads, d, window), &k.device()).unwrap();
    cache.set_left_padding(padding).unwrap();
    cache.record_attention().unwrap();
    cache.append_rows(k.clone(), v.clone(), counts).unwrap();
    cache
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn at_most_k_positions_are_dense_attention(g in 1..4usize, s in 1..40usize, more in 0..5usize, seed in any::<u64>()) {
        for device in devices() {
            let mut noise = Noise(seed);
            let [k, v] = [(); 2].map(|()| noise.tensor([2, 2, s, 8], &device));
            let q = noise.tensor([2, 2 * g, 1, 8], &device);
            let prefilled = filled(&k, &v, &[0, s / 3], &[s, s], None);
            let dense = Method::DENSE.decode(q.clone(), &mut prefilled.for_method(&Method::DENSE).unwrap()).unwrap();
            // The smallest k that every method can have is 2.
            for method in all_methods((s + more).max(2)) {
                let found = method.decode(q.clone(), &mut prefilled.for_method(&method).unwrap()).unwrap();
                prop_assert!(max_difference(&found, &dense) < 1e-5, "{}", method);
            }
        }
    }

    #[test]
    fn k_positions_have_all_of_the_weight(g in 1..4usize, s in 9..33usize, k in 2..9usize, seed in any::<u64>()) {
        for device in devices() {
            let mut noise = Noise(seed);
            // With the rows of a unit matrix as values, the output is the weights.
            let unit: Vec<f32> = (0..32 * 32).map(|at| if at / 32 == at % 32 { 1.0 } else { 0.0 }).collect();
            let v = tensor(&unit, [1, 1, 32, 32], &device).slice_dim(2, 0..s);
            let keys = noise.tensor([1, 1, s, 32], &device);
            let q = noise.tensor([1, g, 1, 32], &device);
            let prefilled = filled(&keys, &v, &[0], &[s], None);
            for method in methods(k) {
                let weights = values(&method.decode(q.clone(), &mut prefilled.for_method(&method).unwrap()).unwrap());
                let kept = match method {
                    Method::Quest(quest) => k / quest.page_size * quest.page_size,
                    _ => k,
                };
                let chosen: Vec<bool> = (0..32).map(|at| weights.iter().skip(at).step_by(32).any(|&weight| weight > 0.0)).collect();
                let count = chosen.iter().filter(|chosen| **chosen).count();
                // The last page may be a part of one.
                let least = match method {
                    Method::Quest(quest) => kept - quest.page_size + (s - 1) % quest.page_size + 1,
                    _ => kept,
                };
                prop_assert!(count >= least.min(kept) && count <= kept, "{}: {} of {}", method, count, kept);
                // The others keep it if it scores well, or with a local window.
                let local = matches!(method, Method::H2o(_) | Method::LmInfinite(_) | Method::Quest(_)) || k >= 4 && !matches!(method, Method::Oracle(_));
                prop_assert!(!local || chosen[s - 1], "{} leaves out the current token", method);
                for head in weights.chunks(32) {
                    prop_assert!((head.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{}", method);
                }
            }
        }
    }

    #[test]
    fn rows_are_independent_and_padding_and_windows_are_as_if_nothing_else_were_there(
        g in 1..3usize, k in 2..7usize, padding in 0..5usize, short in 0..4usize, window in prop::option::of(9..30usize), seed in any::<u64>()
    ) {
        let s = 25;
        for device in devices() {
            let mut noise = Noise(seed);
            let [keys, v] = [(); 2].map(|()| noise.tensor([2, 2, s, 8], &device));
            let q = noise.tensor([2, 2 * g, 1, 8], &device);
            let (padding, counts) = ([0, padding], [s - short, s]);
            let together = filled(&keys, &v, &padding, &counts, window);
            for method in all_methods(k) {
                // Pages are counted from the start of the buffers, which moves here.
                if matches!(method, Method::Quest(_) | Method::Hybrid(_)) {
                    continue;
                }
                let all = method.decode(q.clone(), &mut together.for_method(&method).unwrap()).unwrap();
                for row in 0..2 {
                    let first = padding[row].max(window.map_or(0, |window| counts[row].saturating_sub(window)));
                    let part = |t: &Tensor<4>| t.clone().slice_dim(0, row..row + 1).slice_dim(2, first..counts[row]);
                    let alone = filled(&part(&keys), &part(&v), &[0], &[counts[row] - first], None);
                    let mut alone = alone.for_method(&method).unwrap();
                    let one = method.decode(q.clone().slice_dim(0, row..row + 1), &mut alone).unwrap();
                    let same = max_difference(&one, &all.clone().slice_dim(0, row..row + 1)) < 1e-4;
                    // Few codes make many equal scores, among which any may be kept.
                    let coded = matches!(method, Method::SparqVariant(SparqVariant { keys, .. }) if keys != KeyPrecision::Full);
                    // H2O has received nothing yet, so that all but the local ones tie; the second stage takes a quarter of the longest row.
                    let tied = coded || matches!(method, Method::H2o(_));
                    prop_assert!(same || tied, "{}, row {}", method, row);
                }
            }
        }
    }

    #[test]
    fn pages_of_ragged_rows_hold_valid_positions_only(padding in 0..7usize, short in 0..7usize, k in 4..9usize, seed in any::<u64>()) {
        let s = 25;
        for device in devices() {
            let mut noise = Noise(seed);
            let [mut keys, mut v] = [(); 2].map(|()| noise.tensor([2, 1, s, 8], &device));
            // What is not valid must not be looked at.
            keys = keys.slice_assign([1..2, 0..1, 0..padding + 1, 0..8], Tensor::full([1, 1, padding + 1, 8], 1e4, &device));
            v = v.slice_assign([1..2, 0..1, 0..padding + 1, 0..8], Tensor::full([1, 1, padding + 1, 8], f32::NAN, &device));
            let q = noise.tensor([2, 2, 1, 8], &device);
            let cache = filled(&keys, &v, &[0, padding + 1], &[s - short, s], None);
            for method in [Method::from(Quest { page_size: 4, ..Quest::new(k) }), Hybrid { page_size: 4, ..Hybrid::new(3, k) }.into()] {
                let found = values(&method.decode(q.clone(), &mut cache.for_method(&method).unwrap()).unwrap());
                prop_assert!(found.iter().all(|value| value.is_finite() && value.abs() < 10.0), "{}", method);
            }
        }
    }
}

#[test]
fn variants_with_the_settings_of_sparq_are_sparq() {
    for device in devices() {
        let mut noise = Noise(21);
        let [k, v] = [(); 2].map(|()| noise.tensor([2, 2, 90, 16], &device));
        let q = noise.tensor([2, 6, 1, 16], &device);
        let sketches = [
            (Sketch::Full, KeyPrecision::Full),
            (Sketch::Bits8, KeyPrecision::Bits8),
            (Sketch::Bits4, KeyPrecision::Bits4),
        ];
        for (sketch, keys) in sketches {
            for mean_value in [MeanValue::Always, MeanValue::Never] {
                let sparq = SparqConfig::new(5, 20)
                    .with_sketch(sketch)
                    .with_mean_value(mean_value);
                let variant = SparqVariant::new(5, 20)
                    .with_keys(keys)
                    .with_mean_value(mean_value);
                let mut cache = cache_of(&k, &v, FloatDType::F32, Some(sketch));
                let expected = Method::from(sparq).decode(q.clone(), &mut cache).unwrap();
                let found = Method::from(variant).decode(q.clone(), &mut cache).unwrap();
                assert!(max_difference(&found, &expected) < 1e-5, "{sketch:?}");
            }
        }
    }
}

#[test]
fn all_directions_are_exact_and_so_are_enough_principal_ones() {
    for device in devices() {
        let mut noise = Noise(5);
        // Keys of three dimensions within eight, around a mean that no score depends on.
        let inner = noise.tensor([1, 2, 50, 3], &device);
        let outer = noise.tensor([1, 2, 3, 8], &device);
        let k = inner.matmul(outer) + noise.tensor([1, 2, 1, 8], &device);
        let v = noise.tensor([1, 2, 50, 8], &device);
        let q = noise.tensor([1, 4, 1, 8], &device);
        let mut cache = cache_of(&k, &v, FloatDType::F32, None);
        let oracle = Method::from(Oracle { top_k: 9 })
            .decode(q.clone(), &mut cache)
            .unwrap();
        for (directions, rank) in [
            (Directions::Random, 8),
            (Directions::Principal, 8),
            (Directions::Principal, 3),
        ] {
            let method = Projection {
                local_window: 0,
                ..Projection::new(directions, rank, 9)
            };
            let found = Method::from(method).decode(q.clone(), &mut cache).unwrap();
            assert!(
                max_difference(&found, &oracle) < 1e-4,
                "{directions:?} {rank}"
            );
        }
    }
}

#[test]
fn each_method_moves_what_its_formula_says() {
    // One head of d = 64 in 16 bits at S = 1000: dense 2 S d + 2 d = 128128 elements.
    let shape = CacheShape {
        head_dim: 64,
        kv_heads: 1,
        element_bytes: 2,
    };
    let elements = |method: Method| method.transfers(&shape, 1000).elements;
    assert_eq!(elements(Method::DENSE), 128_128);
    assert_eq!(elements(H2o::new(100).into()), 2 * 100 * 64 + 128 + 2000);
    assert_eq!(elements(LmInfinite::new(100).into()), 2 * 100 * 64 + 128);
    assert_eq!(elements(Oracle { top_k: 100 }.into()), 2 * 100 * 64 + 128);
    assert_eq!(
        elements(FlexGen { top_k: 100 }.into()),
        1000 * 64 + 100 * 64 + 128
    );
    // 63 pages, 6 of them kept.
    assert_eq!(
        elements(Quest::new(100).into()),
        2 * 63 * 64 + 2 * 96 * 64 + 4 * 64
    );
    let hybrid = Hybrid {
        candidates: 400,
        ..Hybrid::new(16, 100)
    };
    assert_eq!(
        elements(hybrid.into()),
        2 * 125 * 16 + 400 * 16 + 2 * 100 * 64 + 5 * 64
    );
    let projection = Projection::new(Directions::Principal, 16, 100);
    assert_eq!(
        elements(projection.into()),
        1000 * 16 + 2 * 100 * 64 + 3 * 64 + 16 + 64 * 16
    );
    let two_stage = SparqVariant::new(8, 100)
        .with_second_rank(Some(32))
        .with_keys(KeyPrecision::Bits3);
    let (scores, rest) = (1000 * 8 + 250 * 24, 2 * 100 * 64 + 4 * 64);
    let moved = Method::from(two_stage).transfers(&shape, 1000);
    assert_eq!(
        (moved.elements, moved.bits),
        (scores + rest, 3 * scores + 16 * rest)
    );
    let plain = Method::from(SparqVariant::new(8, 100)).transfers(&shape, 1000);
    assert_eq!(
        plain,
        Method::from(SparqConfig::new(8, 100)).transfers(&shape, 1000)
    );
    for name in Method::names() {
        let method: Method = name.parse().unwrap();
        // H2O has its sums to read and write all the same.
        let more = if name == "h2o" { 2 * 128 } else { 0 };
        let dense = Transfers::dense(&shape, 128).elements;
        assert_eq!(
            method.transfers(&shape, 128).elements,
            dense + more,
            "{name}"
        );
    }
}

#[test]
fn a_budget_is_kept_and_nearly_spent() {
    let shape = CacheShape {
        head_dim: 64,
        kv_heads: 1,
        element_bytes: 2,
    };
    for seq_len in [1024, 4096, 16384] {
        let dense = Transfers::dense(&shape, seq_len).bytes();
        for ratio in [0.5, 0.25, 0.125, 0.0625, 0.03125] {
            for name in Method::names() {
                let Ok(method) = Method::for_budget(name, 64, seq_len, ratio) else {
                    // Bounds and a page take 2 S/p + 2 p rows, at least 4 sqrt(S).
                    let rows = 2.0 * seq_len as f64 * ratio;
                    let small = name == "quest" && 4.0 * (seq_len as f64).sqrt() + 4.0 > rows;
                    assert!(
                        small || name == "dense" || name == "flexgen",
                        "{name} at {ratio}"
                    );
                    continue;
                };
                method.validate(64).unwrap();
                let share = method.transfers(&shape, seq_len).bytes() / dense;
                // A page of Quest's is the coarsest step there is.
                let step = if name == "quest" {
                    64.0 / seq_len as f64
                } else {
                    4.0 / seq_len as f64
                };
                assert!(
                    share <= ratio && share > ratio - step - 0.002,
                    "{method}: {share} of {ratio}"
                );
            }
        }
    }
    for ratio in [0.0, -1.0, 1.5, f64::NAN, 1e-9] {
        for name in Method::names() {
            let error = Method::for_budget(name, 64, 4096, ratio).unwrap_err();
            assert!(
                matches!(error, SparqError::Budget { .. }),
                "{name}: {error}"
            );
        }
    }
    assert_eq!(
        Method::for_budget("dense", 64, 4096, 1.0).unwrap(),
        Method::DENSE
    );
}

#[test]
fn methods_are_written_and_read_as_words() {
    for name in Method::names() {
        let method = Method::named(name).unwrap();
        assert_eq!(
            method.to_string().parse::<Method>().unwrap(),
            method,
            "{name}"
        );
        let json = serde_json::to_string(&method).unwrap();
        assert_eq!(
            serde_json::from_str::<Method>(&json).unwrap(),
            method,
            "{json}"
        );
    }
    let parsed = |text: &str| text.parse::<Method>().unwrap();
    assert_eq!(parsed("h2o:k=64"), H2o::new(64).into());
    assert_eq!(parsed("h2o:k=2"), H2o::new(2).into());
    assert_eq!(parsed("lm-infinite:k=9"), LmInfinite::new(9).into());
    assert_eq!(parsed("hybrid:k=64,r=4"), Hybrid::new(4, 64).into());
    assert_eq!(
        parsed("h2o:k=64,l=3"),
        H2o {
            top_k: 64,
            local_window: 3
        }
        .into()
    );
    assert_eq!(
        parsed("sparq-two-stage:then=none").to_string(),
        "sparq-variant:r=16,then=none,k=128,l=32,keys=4bits,temperature=coverage,mean=paper,score=probabilities,components=sum-abs"
    );
    for (text, message) in [
        ("h3o", "method: expected one of dense, sparq, sparq-8bit"),
        ("dense:k=1", "setting of the method: expected none, found k"),
        ("h2o:k", "setting of a method: expected key=value, found k"),
        (
            "h2o:k=many",
            "setting of the method: expected k=a whole number, found many",
        ),
        (
            "sparq:sketch=5bits",
            "setting of the method: expected sketch=one of full, 8bits, 4bits, found 5bits",
        ),
    ] {
        let error = text.parse::<Method>().unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
}
