//! Properties of every method for random inputs.

use super::*;

/// Returns methods of every kind whose weights over k positions sum to 1. They need a head_dim of
/// at least 8.
fn methods(k: usize) -> Vec<Method> {
    let parsed = |text: &str| format!("{text},k={k}").parse().unwrap();
    let (first, three, two) = (k / 2, 3.min(k), 2.min(k));
    let variant = |settings| parsed(&format!("sparq-variant:r=3,mean=never,{settings}"));
    vec![
        H2o::new(k).into(),
        parsed(&format!("lm-infinite:first={first}")),
        Oracle { top_k: k }.into(),
        parsed(&format!("quest:page={three}")),
        parsed(&format!("quest:page={two},score=logits")),
        parsed(&format!("quest:page={three},bound=deviations")),
        parsed(&format!("hybrid:r=3,page=4,m={}", (4 * k).max(8))),
        variant("keys=full"),
        variant("then=6,keys=4bits"),
        variant("temperature=sqrt-d"),
        variant("temperature=sqrt-r"),
        variant("keys=8bits"),
        variant("keys=3bits"),
        variant("keys=2bits"),
    ]
}

/// Returns the same methods and those whose weights do not sum to 1.
fn all_methods(k: usize) -> Vec<Method> {
    let mut methods = methods(k);
    let others = [
        "flexgen:",
        "sparq-variant:r=3,mean=always,",
        "random-projection:r=3,",
        "low-rank:r=3,",
    ];
    methods.extend(others.map(|text| format!("{text}k={k}").parse::<Method>().unwrap()));
    methods
}

/// Returns a ragged cache that every method can read.
fn filled(
    k: &Tensor<4>,
    v: &Tensor<4>,
    padding: &[usize],
    counts: &[usize],
    window: Option<usize>,
) -> KvCache {
    let [batch, kv_heads, _, d] = k.dims();
    let mut cache = new_cache(&config([batch, kv_heads, d], window), &k.device());
    cache.set_left_padding(padding).unwrap();
    cache.record_attention().unwrap();
    cache.append_ragged(k.clone(), v.clone(), counts).unwrap();
    cache
}

/// Decodes from a copy of the cache.
fn decode(method: &Method, q: &Tensor<4>, cache: &KvCache) -> Tensor<4> {
    let mut cache = cache.for_method(method).unwrap();
    method.decode(q.clone(), &mut cache).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn at_most_k_positions_equal_dense_attention(
        g in 1..4usize,
        s in 1..40usize,
        more in 0..5usize,
        seed in any::<u64>(),
    ) {
        for device in devices() {
            let (q, [k, v]) = Noise(seed).problem([2, 2, s, 8], 2 * g, &device);
            let prefilled = filled(&k, &v, &[0, s / 3], &[s, s], None);
            let dense = decode(&Method::DENSE, &q, &prefilled);
            // The smallest k that every method supports is 2.
            for method in all_methods((s + more).max(2)) {
                let found = decode(&method, &q, &prefilled);
                prop_assert!(max_difference(&found, &dense) < 1e-5, "{}", method);
            }
        }
    }

    #[test]
    fn weights_of_k_positions_sum_to_one(
        g in 1..4usize,
        s in 9..33usize,
        k in 2..9usize,
        seed in any::<u64>(),
    ) {
        for device in devices() {
            let mut noise = Noise(seed);
            // The values are rows of the identity matrix, so the output equals the weights.
            let identity: Vec<f32> =
                (0..32 * 32).map(|at| if at / 32 == at % 32 { 1.0 } else { 0.0 }).collect();
            let v = positions(&tensor(&identity, [1, 1, 32, 32], &device), 0..s);
            let keys = noise.tensor([1, 1, s, 32], &device);
            let q = noise.tensor([1, g, 1, 32], &device);
            let prefilled = filled(&keys, &v, &[0], &[s], None);
            for method in methods(k) {
                let weights = values(&decode(&method, &q, &prefilled));
                let selected: Vec<bool> = (0..32)
                    .map(|at| weights.iter().skip(at).step_by(32).any(|&weight| weight > 0.0))
                    .collect();
                let count = selected.iter().filter(|selected| **selected).count();
                // Quest selects whole pages, of which the last may be incomplete.
                let (least, most) = match method {
                    Method::Quest(Quest { page_size, .. }) => {
                        let most = k / page_size * page_size;
                        (most - page_size + (s - 1) % page_size + 1, most)
                    }
                    _ => (k, k),
                };
                prop_assert!(
                    count >= least.min(most) && count <= most,
                    "{}: {} of {}", method, count, most
                );
                // Other methods select the current token for its score or in a local window.
                let always = matches!(method, Method::H2o(_) | Method::LmInfinite(_) | Method::Quest(_));
                let local = always || k >= 4 && !matches!(method, Method::Oracle(_));
                prop_assert!(!local || selected[s - 1], "{} leaves out the current token", method);
                for head in weights.chunks(32) {
                    prop_assert!((head.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{}", method);
                }
            }
        }
    }

    #[test]
    fn sequences_are_independent_of_padding_and_window(
        g in 1..3usize,
        k in 2..7usize,
        padding in 0..5usize,
        short in 0..4usize,
        window in prop::option::of(9..30usize),
        seed in any::<u64>(),
    ) {
        let s = 25;
        for device in devices() {
            let (q, [keys, v]) = Noise(seed).problem([2, 2, s, 8], 2 * g, &device);
            let (padding, counts) = ([0, padding], [s - short, s]);
            let together = filled(&keys, &v, &padding, &counts, window);
            for method in all_methods(k) {
                // Pages are counted from the start of the buffers, which differs here.
                if matches!(method, Method::Quest(_) | Method::Hybrid(_)) {
                    continue;
                }
                let all = decode(&method, &q, &together);
                for index in 0..2 {
                    let end = counts[index];
                    let first = window.map_or(0, |window| end.saturating_sub(window));
                    let first = first.max(padding[index]);
                    let part = |t: &Tensor<4>| positions(&sequence(t, index), first..end);
                    let alone = filled(&part(&keys), &part(&v), &[0], &[end - first], None);
                    let one = decode(&method, &sequence(&q, index), &alone);
                    let same = max_difference(&one, &sequence(&all, index)) < 1e-4;
                    // Codes make many equal scores, of which any may be selected, and a second
                    // stage rescores a quarter of the longest sequence. H2O has no sums yet, so
                    // that all positions outside the local window tie.
                    let coded = matches!(
                        method,
                        Method::SparqVariant(SparqVariant { keys, .. }) if keys != KeyPrecision::Full
                    );
                    let tied = coded || matches!(method, Method::H2o(_));
                    prop_assert!(same || tied, "{}, sequence {}", method, index);
                }
            }
        }
    }

    #[test]
    fn pages_of_ragged_sequences_hold_valid_positions(
        padding in 0..7usize,
        short in 0..7usize,
        k in 4..9usize,
        seed in any::<u64>(),
    ) {
        let s = 25;
        for device in devices() {
            let mut noise = Noise(seed);
            let [mut keys, mut v] = noise.tensors([2, 1, s, 8], &device);
            // Reading an invalid position would spoil the output.
            let invalid = [1..2, 0..1, 0..padding + 1, 0..8];
            let full = |value: f32| Tensor::full([1, 1, padding + 1, 8], value, &device);
            keys = keys.slice_assign(invalid.clone(), full(1e4));
            v = v.slice_assign(invalid, full(f32::NAN));
            let q = noise.tensor([2, 2, 1, 8], &device);
            let cache = filled(&keys, &v, &[0, padding + 1], &[s - short, s], None);
            let quest = Quest { page_size: 4, ..Quest::new(k) };
            let hybrid = Hybrid { page_size: 4, ..Hybrid::new(3, k) };
            for method in [Method::from(quest), hybrid.into()] {
                let found = values(&decode(&method, &q, &cache));
                let bounded = |value: &f32| value.is_finite() && value.abs() < 10.0;
                prop_assert!(found.iter().all(bounded), "{}", method);
            }
        }
    }
}

#[test]
fn variants_with_sparqs_settings_equal_sparq() {
    for device in devices() {
        let (q, [k, v]) = Noise(21).problem([2, 2, 90, 16], 6, &device);
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
                let variant = SparqVariant {
                    keys,
                    mean_value,
                    ..SparqVariant::new(5, 20)
                };
                let mut cache = cache_f32(&k, &v, Some(sketch));
                let expected = Method::from(sparq).decode(q.clone(), &mut cache).unwrap();
                let found = Method::from(variant).decode(q.clone(), &mut cache).unwrap();
                assert!(max_difference(&found, &expected) < 1e-5, "{sketch:?}");
            }
        }
    }
}

#[test]
fn enough_directions_are_exact() {
    for device in devices() {
        let mut noise = Noise(5);
        // The keys span three of eight dimensions, around a mean that cancels in the softmax.
        let inner = noise.tensor([1, 2, 50, 3], &device);
        let outer = noise.tensor([1, 2, 3, 8], &device);
        let k = inner.matmul(outer) + noise.tensor([1, 2, 1, 8], &device);
        let v = noise.tensor([1, 2, 50, 8], &device);
        let q = noise.tensor([1, 4, 1, 8], &device);
        let mut cache = cache_f32(&k, &v, None);
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
