//! What must hold for any input.

use super::*;

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
    let mut cache = config(batch, kv_heads, d, window)
        .init(&k.device())
        .unwrap();
    cache.set_left_padding(padding).unwrap();
    cache.record_attention().unwrap();
    cache.append_ragged(k.clone(), v.clone(), counts).unwrap();
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
