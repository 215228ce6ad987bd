//! The KV cache: growth, ragged batches, truncation, sketch ranges, memory, and refused arguments.

use burn::tensor::{Device, FloatDType, Int, Tensor};
use sparq::ops::SketchTensors;
use sparq::{KvCache, Method, Sketch, SparqConfig, SparqError};

use crate::common::{
    ALL_SKETCHES, Noise, SKETCHES, cache_config, cache_f32, cache_of, devices, max_difference,
    method_for, new_cache, positions, sequence, values,
};

/// Returns an empty cache of two KV heads with 16 components.
fn empty(batch: usize, capacity: usize, sketch: Option<Sketch>, device: &Device) -> KvCache {
    new_cache(
        &cache_config([batch, 2, 16], sketch).with_capacity(capacity),
        device,
    )
}

/// Returns the codes, zero points and scales of a sketch.
fn codes(cache: &KvCache) -> (Tensor<4, Int>, Tensor<3>, Tensor<3>) {
    match cache.tensors().sketch.clone() {
        SketchTensors::Codes {
            codes,
            zero_point,
            scale,
            ..
        } => (codes, zero_point, scale),
        _ => panic!("the cache must have a sketch of codes"),
    }
}

#[test]
fn appends_in_parts_give_the_same_step() {
    for device in devices() {
        for sketch in ALL_SKETCHES {
            let (q, [k, v]) = Noise(11).problem([2, 2, 150, 16], 6, &device);
            let method = method_for(sketch, 6, 20);
            let mut whole = cache_f32(&k, &v, sketch);
            let want = method.decode(q.clone(), &mut whole).unwrap();
            for cuts in [
                vec![0, 1, 2, 3, 150],
                vec![0, 63, 64, 65, 130, 150],
                vec![0, 150],
            ] {
                let mut cache = empty(2, 1, sketch, &device);
                for pair in cuts.windows(2) {
                    let part = |t| positions(t, pair[0]..pair[1]);
                    cache.append(part(&k), part(&v)).unwrap();
                }
                assert_eq!(cache.len(), 150);
                let got = method.decode(q.clone(), &mut cache).unwrap();
                assert!(max_difference(&got, &want) < 1e-5, "{sketch:?} {cuts:?}");
            }
        }
    }
}

#[test]
fn spans_on_the_device_equal_those_of_the_host() {
    fn check(cache: &KvCache) {
        let spans = cache.spans();
        let counters = std::iter::repeat_n(&0, spans.batch());
        let want: Vec<usize> = (spans.start.iter().chain(&spans.end).chain(counters))
            .copied()
            .collect();
        let found = cache.tensors().spans.clone().into_data();
        let found: Vec<usize> = found.iter::<i64>().map(|at| at as usize).collect();
        assert_eq!(found, want);
    }
    for device in devices() {
        let mut noise = Noise(23);
        let mut cache = empty(3, 4, Some(Sketch::Full), &device);
        let mut append = |cache: &mut KvCache, counts: [usize; 3]| {
            let len = counts.into_iter().max().unwrap();
            let new = noise.tensor([3, 2, len, 16], &device);
            cache.append_ragged(new.clone(), new, &counts).unwrap();
            check(cache);
        };
        check(&cache);
        cache.set_left_padding(&[0, 2, 5]).unwrap();
        check(&cache);
        // Many at once, one by one, with growth, and to some sequences only.
        let (one, some) = ([1; 3], [[0, 1, 1], [3, 0, 2]]);
        for counts in [[7; 3], one, one, [70; 3], some[0], some[1], one] {
            append(&mut cache, counts);
        }
        cache.truncate(9);
        check(&cache);
        append(&mut cache, [1; 3]);
        cache.clear();
        check(&cache);
    }
}

#[test]
fn a_truncated_cache_equals_a_shorter_one() {
    for device in devices() {
        for sketch in ALL_SKETCHES {
            let (q, [k, v]) = Noise(12).problem([1, 2, 200, 16], 4, &device);
            let method = method_for(sketch, 6, 20);
            for len in [199, 130, 64, 3] {
                let mut cache = cache_f32(&k, &v, sketch);
                cache.truncate(len);
                let mut fresh = cache_f32(&positions(&k, 0..len), &positions(&v, 0..len), sketch);
                let [got, want] = [&mut cache, &mut fresh].map(|cache| {
                    // Appending several positions sets new ranges, so both caches have equal codes.
                    let part = |t| positions(t, 10..40);
                    cache.append(part(&k), part(&v)).unwrap();
                    method.decode(q.clone(), cache).unwrap()
                });
                assert!(max_difference(&got, &want) < 1e-5, "{sketch:?} {len}");
            }
        }
    }
}

#[test]
fn a_cache_can_be_truncated_into_its_padding() {
    for device in devices() {
        let mut cache = empty(2, 1, None, &device);
        cache.set_left_padding(&[5, 6]).unwrap();
        let [k, v] = Noise(2).tensors([2, 2, 10, 16], &device);
        cache.append(k, v).unwrap();
        cache.truncate(3);
        assert_eq!(cache.len(), 3);
        assert!(values(&cache.tensors().v_sum).iter().all(|&sum| sum == 0.0));
    }
}

#[test]
fn a_cleared_cache_keeps_its_buffers() {
    for device in devices() {
        let mut noise = Noise(13);
        let sketch = Some(Sketch::Bits4);
        let k = noise.tensor([2, 2, 100, 16], &device);
        let mut cache = empty(2, 10, sketch, &device);
        cache.set_left_padding(&[3, 0]).unwrap();
        cache.append(k.clone(), k.clone()).unwrap();
        let memory = cache.memory();
        cache.clear();
        assert!(cache.is_empty() && cache.memory() == memory && cache.spans().start == [0, 0]);
        cache.append(k.clone(), k.clone()).unwrap();
        let q = noise.tensor([2, 2, 1, 16], &device);
        let method = method_for(sketch, 4, 10);
        let mut fresh = cache_f32(&k, &k, sketch);
        let want = method.decode(q.clone(), &mut fresh).unwrap();
        assert!(max_difference(&method.decode(q, &mut cache).unwrap(), &want) < 1e-6);
    }
}

#[test]
fn left_padding_changes_nothing() {
    for device in devices() {
        for sketch in ALL_SKETCHES {
            let (q, [k, v]) = Noise(14).problem([1, 2, 90, 16], 2, &device);
            let method = method_for(sketch, 5, 12);
            let mut padded = empty(1, 90, sketch, &device);
            padded.set_left_padding(&[17]).unwrap();
            padded.append(k.clone(), v.clone()).unwrap();
            let mut bare = cache_f32(&positions(&k, 17..90), &positions(&v, 17..90), sketch);
            let got = method.decode(q.clone(), &mut padded).unwrap();
            let want = method.decode(q, &mut bare).unwrap();
            assert!(max_difference(&got, &want) < 1e-5, "{sketch:?}");
        }
    }
}

/// Codes of keys outside the range are clamped until the range is set again.
#[test]
fn ranges_are_reset_when_the_length_has_doubled() {
    for device in devices() {
        let mut noise = Noise(15);
        let k = noise.tensor([1, 2, 16, 16], &device);
        let far = Tensor::<4>::full([1, 2, 1, 16], 100.0, &device);
        let mut cache = cache_f32(&k, &k, Some(Sketch::Bits8));
        let scales = |cache: &mut KvCache| {
            cache.refresh_sketch();
            values(&codes(cache).2)
        };
        let first = scales(&mut cache);
        for added in 1..16 {
            cache.append(far.clone(), far.clone()).unwrap();
            assert_eq!(scales(&mut cache), first, "after {added} appends");
        }
        cache.append(far.clone(), far.clone()).unwrap();
        let doubled = scales(&mut cache);
        let mut pairs = doubled.iter().zip(&first);
        assert!(pairs.all(|(new, old)| *new > 5.0 * old));
        cache.truncate(15);
        let halved = scales(&mut cache);
        let mut pairs = halved.iter().zip(&doubled);
        assert!(pairs.all(|(new, old)| *new < 0.2 * old), "below half of 32");
    }
}

#[test]
fn memory_follows_from_the_shapes() {
    for device in devices() {
        let memory = |sketch| empty(3, 100, sketch, &device).memory();
        let elements = 3 * 2 * 128 * 16; // The capacity of 100 is rounded up to 128.
        let ranges = 2 * 3 * 2 * 16 * 4;
        let plain = memory(None);
        assert_eq!(
            (plain.keys, plain.values, plain.sketch, plain.sums),
            (elements * 4, elements * 4, 0, 3 * 2 * 16 * 4)
        );
        assert_eq!(memory(Some(Sketch::Full)).sketch, elements * 4);
        assert_eq!(memory(Some(Sketch::Bits8)).sketch, elements + ranges);
        assert_eq!(memory(Some(Sketch::Bits4)).sketch, elements / 2 + ranges);
    }
}

#[test]
fn errors_name_the_expected_and_the_found_value() {
    for device in devices() {
        let mut cache = empty(1, 8, Some(Sketch::Full), &device);
        let zeros = |shape| Tensor::<4>::zeros(shape, &device);
        let refused = [
            (
                cache.append(zeros([1, 2, 3, 8]), zeros([1, 2, 3, 16])),
                "keys: expected shape [1, 2, 3, 16], found [1, 2, 3, 8]",
            ),
            (
                cache.append(zeros([1, 2, 3, 16]), zeros([1, 2, 4, 16])),
                "values: expected shape [1, 2, 3, 16], found [1, 2, 4, 16]",
            ),
            (
                cache.append_ragged(zeros([1, 2, 3, 16]), zeros([1, 2, 3, 16]), &[4]),
                "counts: expected at most the 3 positions given, found 4",
            ),
            (
                Method::DENSE
                    .decode(zeros([1, 2, 1, 16]), &mut cache)
                    .map(drop),
                "cache: expected at least the current token's position, found none",
            ),
        ];
        for (found, expected) in refused {
            assert_eq!(found.unwrap_err().to_string(), expected);
        }
        let three = zeros([1, 2, 3, 16]);
        cache.append(three.clone(), three).unwrap();
        // Three query heads over two KV heads.
        let refused = Method::DENSE.decode(zeros([1, 3, 1, 16]), &mut cache);
        assert!(matches!(refused, Err(SparqError::Shape { .. })));
        let mut message = |config: SparqConfig| {
            let refused = Method::from(config).decode(zeros([1, 2, 1, 16]), &mut cache);
            refused.unwrap_err().to_string()
        };
        let error = message(SparqConfig::new(4, 1).with_sketch(Sketch::Bits4));
        let expected = "the method sparq needs codes of 4 bits as key sketch, but the cache holds a full copy of K";
        assert!(error.contains(expected));
        assert!(message(SparqConfig::new(17, 4)).starts_with("rank: expected 1 to 16"));
        let padded = cache.set_left_padding(&[1]);
        assert!(padded.is_err(), "the cache is not empty");
        assert_eq!(cache.len(), 3, "a refused call must not change the cache");
    }
}

#[cfg(feature = "ndarray")]
#[test]
fn an_unsupported_dtype_is_an_error() {
    #[allow(deprecated)]
    let device = Device::ndarray();
    let config = cache_config([1, 2, 16], None).with_dtype(FloatDType::F16);
    let error = config.init(&device).unwrap_err().to_string();
    assert!(
        error.contains("does not support F16; choose one of F32"),
        "{error}"
    );
}

/// f16 keeps 11 significant bits and bf16 8, so rounding changes each element of K and V by at most
/// u = 2^-11 or 2^-8 of itself.
///
/// A logit q.k / sqrt(d) then changes by at most e = u |q|_1 max|k| / sqrt(d), a softmax weight by
/// a factor within exp(+-2e), and the output by at most (exp(2e) - 1) max|v| + u max|v|. If the
/// same positions are selected, the bound of dense attention also holds for SparQ.
#[cfg(feature = "flex")]
#[test]
fn a_16_bit_cache_differs_by_rounding_only() {
    let device = Device::flex();
    for (dtype, bits) in [(FloatDType::F16, 11), (FloatDType::BF16, 8)] {
        let unit = 2f32.powi(-bits);
        for sketch in SKETCHES {
            let (q, [k, v]) = Noise(16).problem([2, 2, 300, 64], 4, &device);
            let largest = |t: &Tensor<4>| values(t).iter().fold(0f32, |m, x| m.max(x.abs()));
            let l1 = values(&q)
                .chunks(64)
                .map(|head| head.iter().map(|x| x.abs()).sum::<f32>())
                .fold(0.0, f32::max);
            let e = unit * l1 * largest(&k) / 8.0;
            let bound = ((2.0 * e).exp() - 1.0 + unit) * largest(&v);
            let mut exact = cache_f32(&k, &v, Some(sketch));
            let mut rounded = cache_of(&k, &v, dtype, Some(sketch));
            let dense = |cache: &mut KvCache| Method::DENSE.decode(q.clone(), cache).unwrap();
            let difference = max_difference(&dense(&mut exact), &dense(&mut rounded));
            assert!(difference < bound, "{dtype:?}: {difference}");
            // If all positions are selected, the selections agree and the bound holds for SparQ.
            let config = SparqConfig::new(16, 300).with_sketch(sketch);
            let sparq =
                |cache: &mut KvCache| config.decode_traced(q.clone(), cache).unwrap().output;
            let difference = max_difference(&sparq(&mut exact), &sparq(&mut rounded));
            assert!(difference < bound, "{dtype:?}: {difference}");
            // With fewer, nearly equal scores may change places. So the reference is an fp32 cache
            // of the rounded numbers.
            let config = SparqConfig::new(16, 40).with_sketch(sketch);
            let round = |t: &Tensor<4>| t.clone().cast(dtype).cast(FloatDType::F32);
            let mut same = cache_f32(&round(&k), &round(&v), Some(sketch));
            let a = config.decode_traced(q.clone(), &mut rounded).unwrap();
            let b = config.decode_traced(q.clone(), &mut same).unwrap();
            assert_eq!(a.positions.into_data(), b.positions.into_data());
            assert!(
                max_difference(&a.output, &b.output) < 1e-6,
                "sums must be fp32 for every type of cache"
            );
        }
    }
}

#[test]
fn later_appends_write_codes_with_the_given_ranges() {
    for device in devices() {
        let mut noise = Noise(17);
        let k = noise.tensor([2, 2, 130, 16], &device);
        for cuts in [vec![100, 101, 108, 130], vec![100, 130]] {
            let mut cache = empty(2, 1, Some(Sketch::Bits4), &device);
            let append = |cache: &mut KvCache, range| {
                let new = positions(&k, range);
                cache.append(new.clone(), new).unwrap();
                cache.refresh_sketch();
            };
            append(&mut cache, 0..100);
            let (_, zero_point, scale) = codes(&cache);
            for pair in cuts.windows(2) {
                append(&mut cache, pair[0]..pair[1]);
            }
            let after = codes(&cache);
            assert_eq!(values(&zero_point), values(&after.1));
            assert_eq!(values(&scale), values(&after.2));
            let found = sparq::ops::sketch::unpack(after.0, 4).slice_dim(3, 0..130);
            let expected = sparq::ops::sketch::encode(k.clone(), zero_point, scale, 4);
            assert_eq!(found.into_data(), expected.into_data());
        }
    }
}

#[test]
fn ranges_of_one_sequence_leave_the_others_alone() {
    for device in devices() {
        let mut noise = Noise(18);
        let k = noise.tensor([2, 2, 110, 16], &device);
        let q = noise.tensor([2, 2, 1, 16], &device);
        let method = SparqConfig::new(6, 20).with_sketch(Sketch::Bits4);
        let run = |k: Tensor<4>, q: Tensor<4>, counts: &[usize]| {
            let mut cache = empty(counts.len(), 1, Some(Sketch::Bits4), &device);
            let prompt = positions(&k, 0..100);
            cache.append_ragged(prompt.clone(), prompt, counts).unwrap();
            cache.refresh_sketch();
            // The short sequence doubles its length here, the long one does not.
            let new = positions(&k, 100..110);
            cache.append(new.clone(), new).unwrap();
            method.decode_traced(q, &mut cache).unwrap().output
        };
        let counts = [10, 100];
        let together = run(k.clone(), q.clone(), &counts);
        for index in 0..2 {
            let (k, q) = (sequence(&k, index), sequence(&q, index));
            let alone = run(k, q, &counts[index..index + 1]);
            assert!(max_difference(&sequence(&together, index), &alone) < 1e-6);
        }
    }
}
