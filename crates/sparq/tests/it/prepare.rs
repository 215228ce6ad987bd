//! Preparing tokens (RoPE of queries and keys, append of keys and values) and setting ranges,
//! against tensor operations.

use burn::tensor::{Device, FloatDType, Int, Tensor};
use sparq::ops::sketch::unpack;
use sparq::ops::{CacheTensors, Rotary, RotaryScaling, SketchTensors};
use sparq::{KvCache, Method, RotaryConfig, Sketch, SparqConfig, SparqError, reference};

use crate::common::{ALL_SKETCHES, Noise, cache_config, devices, max_difference, new_cache};

const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 24;

fn rotaries(device: &Device) -> Vec<Option<Rotary>> {
    let whole = RotaryConfig::new(HEAD_DIM);
    let partial = RotaryConfig::new(HEAD_DIM).with_rotary_dim(Some(10));
    let scaling = RotaryScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    };
    let scaled = whole.clone().with_theta(500.0).with_scaling(scaling);
    let made = [whole, partial, scaled].map(|config| Some(config.init(device).unwrap()));
    made.into_iter().chain([None]).collect()
}

fn cache(batch: usize, dtype: FloatDType, sketch: Option<Sketch>, device: &Device) -> KvCache {
    let config = cache_config([batch, KV_HEADS, HEAD_DIM], sketch);
    new_cache(&config.with_capacity(8).with_dtype(dtype), device)
}

/// Asserts that the buffers agree up to rounding: half a unit of 16-bit types, one for codes.
fn assert_alike(found: &CacheTensors, want: &CacheTensors, tolerance: f32, case: &str) {
    for (name, found, want) in [("keys", &found.k, &want.k), ("values", &found.v, &want.v)] {
        let difference = max_difference(&found.floats(), &want.floats());
        assert!(
            difference < tolerance,
            "{case}: {name} differ by {difference}"
        );
    }
    let difference = max_difference(&found.v_sum, &want.v_sum);
    assert!(difference < 1e-5, "{case}: the sums differ by {difference}");
    let spans = |tensors: &CacheTensors| tensors.spans.clone().into_data();
    spans(found).assert_eq(&spans(want), false);
    match (&found.sketch, &want.sketch) {
        (SketchTensors::None, SketchTensors::None) => {}
        (SketchTensors::Full(found), SketchTensors::Full(want)) => {
            assert!(
                max_difference(found, want) < tolerance,
                "{case}: the sketches differ"
            );
        }
        (SketchTensors::Codes { bits, codes, .. }, SketchTensors::Codes { codes: want, .. }) => {
            let codes = unpack(codes.clone(), *bits).into_data();
            let want = unpack(want.clone(), *bits).into_data();
            for (found, want) in codes.iter::<i64>().zip(want.iter::<i64>()) {
                assert!(
                    (found - want).abs() <= 1,
                    "{case}: code {found} instead of {want}"
                );
            }
        }
        (found, want) => panic!("{case}: {found:?} instead of {want:?}"),
    }
}

#[test]
fn buffers_equal_those_of_tensor_operations() {
    for device in devices() {
        for dtype in [FloatDType::F32, FloatDType::F16] {
            if !device.supports_dtype(dtype) {
                continue;
            }
            for (index, rotary) in rotaries(&device).iter().enumerate() {
                for sketch in ALL_SKETCHES {
                    for heads in [KV_HEADS, 3 * KV_HEADS] {
                        let case =
                            format!("{device:?} {dtype:?} rotary {index} {sketch:?} {heads} heads");
                        check_steps(&device, dtype, rotary.as_ref(), sketch, heads, &case);
                    }
                }
            }
        }
    }
}

/// Checks steps after a prompt in which the buffers grow and one sequence is still in its left
/// padding.
fn check_steps(
    device: &Device,
    dtype: FloatDType,
    rotary: Option<&Rotary>,
    sketch: Option<Sketch>,
    heads: usize,
    case: &str,
) {
    let mut noise = Noise(41);
    let mut found = cache(3, dtype, sketch, device);
    found.set_left_padding(&[0, 3, 64]).unwrap();
    let prompt = noise.tensor([3, KV_HEADS, 62, HEAD_DIM], device);
    found.append(prompt.clone(), prompt).unwrap();
    found.refresh_sketch();
    let mut spans = found.spans().clone();
    let mut want = found.tensors().clone();
    let tolerance = if dtype == FloatDType::F32 { 2e-6 } else { 4e-3 };
    for (step, len) in [1, 1, 3, 1, 35].into_iter().enumerate() {
        let mut tokens = |heads| noise.tensor([3, heads, len, HEAD_DIM], device).cast(dtype);
        let (q, k, v) = (tokens(heads), tokens(KV_HEADS), tokens(KV_HEADS));
        let rotated = found
            .prepare(q.clone(), k.clone(), v.clone(), rotary)
            .unwrap();

        want = want.grown(found.capacity());
        let table = rotary.map(|rotary| rotary.table(found.capacity()));
        let encode = sketch.and_then(Sketch::bits).is_some();
        let (want_q, after) =
            reference::append::prepare(want, [q, k, v], table.as_ref(), &spans, encode);
        want = after;
        spans = spans.grown(&[len; 3]);

        let case = format!("{case} step {step}");
        assert_eq!(found.spans(), &spans, "{case}");
        assert_eq!(rotated.dtype(), want_q.dtype(), "{case}");
        let difference = max_difference(&rotated, &want_q);
        assert!(
            difference < tolerance,
            "{case}: the queries differ by {difference}"
        );
        assert_alike(found.tensors(), &want, tolerance, &case);
    }
    assert_eq!(found.capacity(), 128, "{case}: the buffers must grow");
}

#[test]
fn ranges_equal_those_of_tensor_operations() {
    for device in devices() {
        for dtype in [FloatDType::F32, FloatDType::F16] {
            if !device.supports_dtype(dtype) {
                continue;
            }
            for sketch in [Sketch::Bits8, Sketch::Bits4] {
                for len in [1, 37, 700] {
                    let mut noise = Noise(53);
                    let mut cache = cache(3, dtype, Some(sketch), &device);
                    cache.set_left_padding(&[0, 3, 64]).unwrap();
                    let k = noise.tensor([3, KV_HEADS, len, HEAD_DIM], &device);
                    let v = k.clone();
                    // Neither of these enters a range, and a channel of one value has no width.
                    let [inf, nan] = [f32::INFINITY, f32::NAN];
                    let k = k
                        .slice_fill([0..3, 0..KV_HEADS, len / 2..len / 2 + 1, 0..1], inf)
                        .slice_fill([0..3, 0..KV_HEADS, len / 3..len / 3 + 1, 1..2], nan)
                        .slice_fill([0..3, 0..KV_HEADS, 0..len, 2..3], 0.5);
                    cache.append(k, v).unwrap();
                    for sequence in 0..3 {
                        let case = format!("{device:?} {dtype:?} {sketch:?} {len} {sequence}");
                        let (tensors, spans) = (cache.tensors(), cache.spans());
                        let found = sparq::ops::range_sketch(tensors.clone(), spans, sequence);
                        let want =
                            reference::append::range_sketch(tensors.clone(), spans, sequence);
                        let [found, want] = [found, want].map(ranges_and_codes);
                        assert!(max_difference(&found.0, &want.0) < 1e-6, "{case}");
                        for (found, want) in found.1.into_iter().zip(want.1) {
                            assert!((found - want).abs() <= 1, "{case}: {found}, not {want}");
                        }
                    }
                }
            }
        }
    }
}

/// Returns the zero points and scales, and all codes.
fn ranges_and_codes(tensors: CacheTensors) -> (Tensor<3>, Vec<i64>) {
    match tensors.sketch {
        SketchTensors::Codes {
            bits,
            codes,
            zero_point,
            scale,
        } => {
            let codes = unpack(codes, bits).into_data();
            let codes = codes.iter::<i64>().collect();
            (Tensor::cat(vec![zero_point, scale], 0), codes)
        }
        other => panic!("expected codes, found {other:?}"),
    }
}

#[test]
fn decode_equals_one_with_separate_rope() {
    for device in devices() {
        let mut noise = Noise(43);
        let rotary = RotaryConfig::new(HEAD_DIM).init(&device).unwrap();
        let method = Method::from(SparqConfig::new(6, 12));
        let mut prepared = cache(1, FloatDType::F32, method.sketch(), &device);
        let mut rotated = cache(1, FloatDType::F32, method.sketch(), &device);
        for position in 0..40 {
            let mut token = |heads| noise.tensor([1, heads, 1, HEAD_DIM], &device);
            let (q, k, v) = (token(4), token(KV_HEADS), token(KV_HEADS));
            let at = Tensor::<2, Int>::from_ints([[position]], &device);
            let by_hand = rotary.apply(q.clone(), at.clone());
            rotated
                .append(rotary.apply(k.clone(), at), v.clone())
                .unwrap();
            let q = prepared.prepare(q, k, v, Some(&rotary)).unwrap();
            assert!(max_difference(&q, &by_hand) < 2e-6, "{device:?} {position}");
            let found = method.decode(q, &mut prepared).unwrap();
            let want = method.decode(by_hand, &mut rotated).unwrap();
            assert!(
                max_difference(&found, &want) < 1e-5,
                "{device:?} {position}"
            );
        }
    }
}

#[test]
fn refused_inputs_leave_the_cache_empty() {
    for device in devices() {
        let mut noise = Noise(47);
        let mut cache = cache(1, FloatDType::F32, None, &device);
        let mut token = |heads, len| noise.tensor([1, heads, len, HEAD_DIM], &device);
        let (q, k) = (token(4, 1), token(KV_HEADS, 1));
        let two = token(KV_HEADS, 2);
        let wide = RotaryConfig::new(HEAD_DIM + 2).init(&device).unwrap();
        let refused = [
            cache.prepare(token(3, 1), k.clone(), k.clone(), None),
            cache.prepare(q.clone(), two.clone(), two, None),
            cache.prepare(q.clone(), k.clone(), q.clone(), None),
            cache.prepare(q, k.clone(), k, Some(&wide)),
        ];
        for (index, refused) in refused.into_iter().enumerate() {
            let error = refused.unwrap_err();
            match index {
                3 => assert_eq!(
                    error.to_string(),
                    "rotary_dim: expected at most 24 (the head_dim), found 26"
                ),
                _ => assert!(matches!(error, SparqError::Shape { .. }), "{error}"),
            }
        }
        assert!(cache.is_empty());
    }
}
