//! Input at the edges of arithmetic: the results are those that the module `reference` documents, and nothing panics or hangs.

mod common;

use burn::tensor::{FloatDType, Int, Tensor};
use common::{Noise, cache_of, devices, max_difference, values};
use sparq::methods::{Components, GroupScore, MeanValue};
use sparq::{Method, Sketch, SparqConfig};

const SKETCHES: [Sketch; 3] = [Sketch::Full, Sketch::Bits8, Sketch::Bits4];

fn every_choice(rank: usize, top_k: usize) -> Vec<SparqConfig> {
    let mut all = Vec::new();
    for sketch in SKETCHES {
        for group_score in [GroupScore::Probabilities, GroupScore::Logits] {
            for components in [Components::SumAbs, Components::AbsSum] {
                let config = SparqConfig::new(rank, top_k)
                    .with_sketch(sketch)
                    .with_mean_value(MeanValue::Always);
                all.push(
                    config
                        .with_group_score(group_score)
                        .with_components(components),
                );
            }
        }
    }
    all
}

fn kept(positions: &Tensor<3, Int>) -> Vec<i64> {
    positions.clone().into_data().iter::<i64>().collect()
}

#[test]
fn a_query_of_zeros_gives_the_mean_of_the_values() {
    for device in devices() {
        let mut noise = Noise(1);
        let (k, v) = (
            noise.tensor([1, 1, 40, 8], &device),
            noise.tensor([1, 1, 40, 8], &device),
        );
        let q = Tensor::<4>::zeros([1, 2, 1, 8], &device);
        let mean = v.clone().mean_dim(2).repeat_dim(1, 2);
        for config in every_choice(4, 40) {
            let mut cache = cache_of(&k, &v, FloatDType::F32, Some(config.sketch));
            let step = config.decode_traced(q.clone(), &mut cache).unwrap();
            assert!(max_difference(&step.output, &mean) < 1e-5, "{config:?}");
            let few = SparqConfig {
                top_k: 10,
                local_window: 2,
                ..config
            };
            let step = few.decode_traced(q.clone(), &mut cache).unwrap();
            assert!(
                values(&step.output).iter().all(|y| y.is_finite()),
                "{few:?}"
            );
            assert!(
                values(&step.alpha)
                    .iter()
                    .all(|alpha| (alpha - 0.25).abs() < 1e-5),
                "uniform: k / S of the weight is kept"
            );
        }
    }
}

#[test]
fn a_head_without_weight_on_the_chosen_components_scores_every_position_equally() {
    for device in devices() {
        let mut noise = Noise(2);
        let (k, v) = (
            noise.tensor([1, 1, 30, 4], &device),
            noise.tensor([1, 1, 30, 4], &device),
        );
        // The first head's components 0 and 1 win; the second head has nothing there.
        let q = Tensor::<1>::from_floats([9.0, -9.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0], &device)
            .reshape([1, 2, 1, 4]);
        let config = SparqConfig::new(2, 6);
        let step = config
            .decode_traced(
                q,
                &mut cache_of(&k, &v, FloatDType::F32, Some(Sketch::Full)),
            )
            .unwrap();
        assert!(values(&step.output).iter().all(|y| y.is_finite()));
        assert!((values(&step.alpha)[1] - 6.0 / 30.0).abs() < 1e-6);
    }
}

#[test]
fn equal_scores_keep_k_distinct_positions_with_the_window() {
    for device in devices() {
        let k = Tensor::<4>::ones([1, 2, 50, 8], &device);
        let v = Noise(3).tensor([1, 2, 50, 8], &device);
        let q = Tensor::<4>::ones([1, 2, 1, 8], &device);
        for config in every_choice(3, 12) {
            let step = config
                .decode_traced(
                    q.clone(),
                    &mut cache_of(&k, &v, FloatDType::F32, Some(config.sketch)),
                )
                .unwrap();
            for row in kept(&step.positions).chunks_mut(12) {
                row.sort_unstable();
                assert!(
                    row.windows(2).all(|pair| pair[0] < pair[1]) && row.ends_with(&[47, 48, 49]),
                    "{config:?}: {row:?}"
                );
            }
            assert!(
                values(&step.alpha)
                    .iter()
                    .all(|alpha| (alpha - 12.0 / 50.0).abs() < 1e-5)
            );
        }
    }
}

#[test]
fn a_single_position_gives_its_value() {
    for device in devices() {
        let mut noise = Noise(4);
        let (k, v) = (
            noise.tensor([2, 1, 1, 8], &device),
            noise.tensor([2, 1, 1, 8], &device),
        );
        let q = noise.tensor([2, 1, 1, 8], &device);
        for config in every_choice(8, 1) {
            let mut cache = cache_of(&k, &v, FloatDType::F32, Some(config.sketch));
            assert!(
                max_difference(
                    &config.decode_traced(q.clone(), &mut cache).unwrap().output,
                    &v
                ) < 1e-6
            );
            assert!(
                max_difference(&Method::DENSE.decode(q.clone(), &mut cache).unwrap(), &v) < 1e-6
            );
        }
    }
}

/// A cache of 40 positions with `value` in one component of the key at position 5.
fn keys_with(value: f32, device: &burn::tensor::Device) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
    let mut noise = Noise(5);
    let (k, v) = (
        noise.tensor([1, 1, 40, 8], device),
        noise.tensor([1, 1, 40, 8], device),
    );
    let spoiled = Tensor::<4>::full([1, 1, 1, 1], value, device);
    let q = Tensor::<4>::ones([1, 1, 1, 8], device);
    (q, k.slice_assign([0..1, 0..1, 5..6, 2..3], spoiled), v)
}

#[test]
fn a_key_with_nan_ranks_last_and_is_left_out() {
    for device in devices() {
        let (q, k, v) = keys_with(f32::NAN, &device);
        let config = SparqConfig::new(8, 30).with_mean_value(MeanValue::Always);
        let step = config
            .decode_traced(
                q.clone(),
                &mut cache_of(&k, &v, FloatDType::F32, Some(Sketch::Full)),
            )
            .unwrap();
        assert!(!kept(&step.positions).contains(&5));
        assert!(values(&step.output).iter().all(|y| y.is_finite()));
        let dense = Method::DENSE
            .decode(q, &mut cache_of(&k, &v, FloatDType::F32, None))
            .unwrap();
        assert!(
            values(&dense).iter().all(|y| y.is_nan()),
            "kept NaN is not hidden"
        );
    }
}

#[test]
fn a_key_of_plus_infinity_ranks_first_and_of_minus_infinity_last() {
    for device in devices() {
        for (value, taken) in [(f32::INFINITY, true), (f32::NEG_INFINITY, false)] {
            for sketch in SKETCHES {
                let (q, k, v) = keys_with(value, &device);
                let config = SparqConfig::new(8, 10).with_sketch(sketch);
                let step = config
                    .decode_traced(q, &mut cache_of(&k, &v, FloatDType::F32, Some(sketch)))
                    .unwrap();
                if sketch == Sketch::Full {
                    assert_eq!(kept(&step.positions).contains(&5), taken);
                }
                if !kept(&step.positions).contains(&5) {
                    assert!(
                        values(&step.output).iter().all(|y| y.is_finite()),
                        "{sketch:?} {value}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_cache_of_nan_alone_ends_and_gives_nan() {
    for device in devices() {
        let nan = Tensor::<4>::full([1, 1, 40, 8], f32::NAN, &device);
        let q = Tensor::<4>::ones([1, 2, 1, 8], &device);
        for config in every_choice(4, 10) {
            let step = config
                .decode_traced(
                    q.clone(),
                    &mut cache_of(&nan, &nan, FloatDType::F32, Some(config.sketch)),
                )
                .unwrap();
            assert_eq!(kept(&step.positions).len(), 10);
            assert!(values(&step.output).iter().all(|y| y.is_nan()));
        }
    }
}

#[test]
fn what_was_rolled_back_leaves_no_nan_behind() {
    for device in devices() {
        let mut noise = Noise(6);
        let (k, v) = (
            noise.tensor([1, 1, 40, 8], &device),
            noise.tensor([1, 1, 40, 8], &device),
        );
        let q = noise.tensor([1, 1, 1, 8], &device);
        for config in every_choice(4, 10) {
            let mut cache = cache_of(&k, &v, FloatDType::F32, Some(config.sketch));
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
fn an_infinite_value_in_the_last_row_stays_infinite() {
    for device in devices() {
        for len in [1, 2, 5, 31, 34] {
            let mut noise = Noise(9);
            let [k, v] = [(); 2].map(|()| noise.tensor([1, 1, len, 8], &device));
            let last = Tensor::<4>::full([1, 1, 1, 1], f32::INFINITY, &device);
            let v = v.slice_assign([0..1, 0..1, len - 1..len, 3..4], last);
            let q = noise.tensor([1, 2, 1, 8], &device);
            let mut cache = cache_of(&k, &v, FloatDType::F32, None);
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
