//! Inputs at the edges of arithmetic. The results are those that [`sparq::reference`] documents,
//! and nothing panics or hangs.

use burn::tensor::{Device, Int, Tensor};
use sparq::methods::{Components, GroupScore, Magnitude, MeanValue};
use sparq::ops::{SparqOutput, has_kernels};
use sparq::{Method, Sketch, SparqConfig};

use crate::common::{Noise, SKETCHES, cache_f32, devices, is_finite, max_difference, values};

/// Returns every combination of the settings that change the arithmetic.
fn all_configs(rank: usize, top_k: usize) -> Vec<SparqConfig> {
    let mut all = Vec::new();
    for sketch in SKETCHES {
        for group_score in [GroupScore::Probabilities, GroupScore::Logits] {
            for components in [Components::SumAbs, Components::AbsSum] {
                let config = SparqConfig::new(rank, top_k)
                    .with_sketch(sketch)
                    .with_mean_value(MeanValue::Always)
                    .with_group_score(group_score)
                    .with_components(components);
                all.push(config);
                all.push(config.with_magnitude(Magnitude::Contribution));
            }
        }
    }
    all
}

/// Runs a step on a new cache of the keys and values.
fn decode(config: &SparqConfig, q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>) -> SparqOutput {
    let mut cache = cache_f32(k, v, Some(config.sketch));
    config.decode_traced(q.clone(), &mut cache).unwrap()
}

fn selected(positions: &Tensor<3, Int>) -> Vec<i64> {
    positions.clone().into_data().iter::<i64>().collect()
}

fn is_close(alpha: &Tensor<2>, expected: f32) -> bool {
    values(alpha)
        .iter()
        .all(|alpha| (alpha - expected).abs() < 1e-5)
}

#[test]
fn a_query_of_zeros_gives_the_mean_value() {
    for device in devices() {
        let [k, v] = Noise(1).tensors([1, 1, 40, 8], &device);
        let q = Tensor::<4>::zeros([1, 2, 1, 8], &device);
        let mean = v.clone().mean_dim(2).repeat_dim(1, 2);
        for config in all_configs(4, 40) {
            let step = decode(&config, &q, &k, &v);
            assert!(max_difference(&step.output, &mean) < 1e-5, "{config:?}");
            let few = SparqConfig {
                top_k: 10,
                local_window: 2,
                ..config
            };
            let step = decode(&few, &q, &k, &v);
            assert!(is_finite(&step.output), "{few:?}");
            assert!(
                is_close(&step.alpha, 10.0 / 40.0),
                "{few:?}: uniform weights"
            );
        }
    }
}

#[test]
fn a_head_of_zero_components_scores_uniformly() {
    for device in devices() {
        let [k, v] = Noise(2).tensors([1, 1, 30, 4], &device);
        // The first head makes components 0 and 1 the selected ones. The second is 0 there.
        let q = Tensor::<1>::from_floats([9.0, -9.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0], &device)
            .reshape([1, 2, 1, 4]);
        let step = decode(&SparqConfig::new(2, 6), &q, &k, &v);
        assert!(is_finite(&step.output));
        assert!((values(&step.alpha)[1] - 6.0 / 30.0).abs() < 1e-6);
    }
}

#[test]
fn equal_scores_select_distinct_positions() {
    for device in devices() {
        let k = Tensor::<4>::ones([1, 2, 50, 8], &device);
        let v = Noise(3).tensor([1, 2, 50, 8], &device);
        let q = Tensor::<4>::ones([1, 2, 1, 8], &device);
        for config in all_configs(3, 12) {
            let step = decode(&config, &q, &k, &v);
            for head in selected(&step.positions).chunks_mut(12) {
                head.sort_unstable();
                assert!(
                    head.windows(2).all(|pair| pair[0] < pair[1]) && head.ends_with(&[47, 48, 49]),
                    "{config:?}: {head:?}"
                );
            }
            assert!(is_close(&step.alpha, 12.0 / 50.0));
        }
    }
}

#[test]
fn a_single_position_gives_its_value() {
    for device in devices() {
        let [k, v, q] = Noise(4).tensors([2, 1, 1, 8], &device);
        for config in all_configs(8, 1) {
            assert!(max_difference(&decode(&config, &q, &k, &v).output, &v) < 1e-6);
            let mut cache = cache_f32(&k, &v, Some(config.sketch));
            let dense = Method::DENSE.decode(q.clone(), &mut cache).unwrap();
            assert!(max_difference(&dense, &v) < 1e-6);
        }
    }
}

/// Returns a query, keys and values of 40 positions, with `value` in one component of the key at
/// position 5.
fn with_key_component(value: f32, device: &Device) -> [Tensor<4>; 3] {
    let [k, v] = Noise(5).tensors([1, 1, 40, 8], device);
    let component = Tensor::<4>::full([1, 1, 1, 1], value, device);
    let q = Tensor::<4>::ones([1, 1, 1, 8], device);
    [q, k.slice_assign([0..1, 0..1, 5..6, 2..3], component), v]
}

#[test]
fn a_key_with_nan_is_not_selected() {
    for device in devices() {
        let [q, k, v] = with_key_component(f32::NAN, &device);
        let config = SparqConfig::new(8, 30).with_mean_value(MeanValue::Always);
        let step = decode(&config, &q, &k, &v);
        assert!(!selected(&step.positions).contains(&5));
        assert!(is_finite(&step.output));
        let dense = Method::DENSE
            .decode(q, &mut cache_f32(&k, &v, None))
            .unwrap();
        assert!(
            values(&dense).iter().all(|y| y.is_nan()),
            "dense attention must not hide NaN"
        );
    }
}

#[test]
fn infinite_keys_rank_first_or_last() {
    for device in devices() {
        for (value, first) in [(f32::INFINITY, true), (f32::NEG_INFINITY, false)] {
            for sketch in SKETCHES {
                let [q, k, v] = with_key_component(value, &device);
                let step = decode(&SparqConfig::new(8, 10).with_sketch(sketch), &q, &k, &v);
                let found = selected(&step.positions).contains(&5);
                if sketch == Sketch::Full {
                    assert_eq!(found, first);
                }
                assert!(found || is_finite(&step.output), "{sketch:?} {value}");
            }
        }
    }
}

#[test]
fn a_cache_of_nan_gives_nan() {
    for device in devices() {
        let nan = Tensor::<4>::full([1, 1, 40, 8], f32::NAN, &device);
        let q = Tensor::<4>::ones([1, 2, 1, 8], &device);
        for config in all_configs(4, 10) {
            let step = decode(&config, &q, &nan, &nan);
            assert_eq!(selected(&step.positions).len(), 10);
            assert!(values(&step.output).iter().all(|y| y.is_nan()));
        }
    }
}

#[test]
fn truncated_positions_leave_no_nan() {
    for device in devices() {
        let (q, [k, v]) = Noise(6).problem([1, 1, 40, 8], 1, &device);
        for config in all_configs(4, 10) {
            let mut cache = cache_f32(&k, &v, Some(config.sketch));
            let before = config.decode_traced(q.clone(), &mut cache).unwrap();
            let nan = Tensor::<4>::full([1, 1, 3, 8], f32::NAN, &device);
            cache.append(nan.clone(), nan).unwrap();
            cache.truncate(40);
            let after = config.decode_traced(q.clone(), &mut cache).unwrap();
            assert!(
                max_difference(&before.output, &after.output) < 1e-6,
                "{config:?}"
            );
        }
    }
}

#[test]
fn an_infinite_value_in_the_last_v_row_stays() {
    // Kernels on GPUs read the last row again, with a weight of zero, which gives NaN. A condition
    // there doubles the time of dense attention with grouped queries.
    for device in devices().into_iter().filter(|device| !has_kernels(device)) {
        for len in [1, 2, 5, 31, 34] {
            let mut noise = Noise(9);
            let [k, v] = noise.tensors([1, 1, len, 8], &device);
            let infinite = Tensor::<4>::full([1, 1, 1, 1], f32::INFINITY, &device);
            let v = v.slice_assign([0..1, 0..1, len - 1..len, 3..4], infinite);
            let q = noise.tensor([1, 2, 1, 8], &device);
            let mut cache = cache_f32(&k, &v, None);
            let y = values(&Method::DENSE.decode(q, &mut cache).unwrap());
            for (i, y) in y.into_iter().enumerate() {
                match i % 8 {
                    3 => assert_eq!(y, f32::INFINITY, "{len} positions"),
                    _ => assert!(y.is_finite(), "{len} positions: {y}"),
                }
            }
        }
    }
}
