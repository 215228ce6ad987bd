//! The cache: growth, ragged batches, rolling back, ranges of the sketch, memory, and what it refuses.

mod common;

use burn::tensor::{FloatDType, Tensor};
use common::{Noise, cache_of, devices, max_difference, values};
use sparq::cost::CacheShape;
use sparq::methods::MeanValue;
use sparq::ops::SketchTensors;
use sparq::{KvCache, KvCacheConfig, Method, Sketch, SparqConfig, SparqError, Transfers};

const SKETCHES: [Option<Sketch>; 4] = [
    None,
    Some(Sketch::Full),
    Some(Sketch::Bits8),
    Some(Sketch::Bits4),
];

fn config(batch: usize, capacity: usize, sketch: Option<Sketch>) -> KvCacheConfig {
    KvCacheConfig::new(batch, 2, 16)
        .with_capacity(capacity)
        .with_dtype(FloatDType::F32)
        .with_sketch(sketch)
}

fn span(t: &Tensor<4>, from: usize, to: usize) -> Tensor<4> {
    t.clone().slice_dim(2, from..to)
}

#[test]
fn any_cut_of_the_appends_gives_the_same_step() {
    for device in devices() {
        for sketch in SKETCHES {
            let mut noise = Noise(11);
            let (k, v) = (
                noise.tensor([2, 2, 150, 16], &device),
                noise.tensor([2, 2, 150, 16], &device),
            );
            let q = noise.tensor([2, 6, 1, 16], &device);
            let method = sketch.map_or(Method::DENSE, |s| {
                SparqConfig::new(6, 20)
                    .with_sketch(s)
                    .with_mean_value(MeanValue::Always)
                    .into()
            });
            let want = method
                .decode(q.clone(), &mut cache_of(&k, &v, FloatDType::F32, sketch))
                .unwrap();
            for cuts in [
                vec![0, 1, 2, 3, 150],
                vec![0, 63, 64, 65, 130, 150],
                vec![0, 150],
            ] {
                let mut cache = config(2, 1, sketch).init(&device).unwrap();
                for pair in cuts.windows(2) {
                    cache
                        .append(span(&k, pair[0], pair[1]), span(&v, pair[0], pair[1]))
                        .unwrap();
                }
                assert_eq!(cache.len(), 150);
                let got = method.decode(q.clone(), &mut cache).unwrap();
                assert!(max_difference(&got, &want) < 1e-5, "{sketch:?} {cuts:?}");
            }
        }
    }
}

#[test]
fn the_spans_on_the_device_are_those_of_the_host_after_every_operation() {
    fn check(cache: &KvCache) {
        let rows = cache.spans();
        let counters = std::iter::repeat_n(&0, rows.batch());
        let want: Vec<usize> = (rows.start.iter().chain(&rows.end).chain(counters))
            .copied()
            .collect();
        let found = cache.tensors().spans.clone().into_data();
        let found: Vec<usize> = found.iter::<i64>().map(|at| at as usize).collect();
        assert_eq!(found, want);
    }
    for device in devices() {
        let mut noise = Noise(23);
        let mut cache = config(3, 4, Some(Sketch::Full)).init(&device).unwrap();
        let mut append = |cache: &mut KvCache, counts: [usize; 3]| {
            let len = counts.into_iter().max().unwrap();
            let new = noise.tensor([3, 2, len, 16], &device);
            cache.append_ragged(new.clone(), new, &counts).unwrap();
            check(cache);
        };
        check(&cache);
        cache.set_left_padding(&[0, 2, 5]).unwrap();
        check(&cache);
        // Many at once, one by one, growing, and to some sequences only.
        for counts in [
            [7; 3],
            [1; 3],
            [1; 3],
            [70; 3],
            [0, 1, 1],
            [3, 0, 2],
            [1; 3],
        ] {
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
fn a_truncated_cache_goes_on_like_one_that_never_went_further() {
    for device in devices() {
        for sketch in SKETCHES {
            let mut noise = Noise(12);
            let (k, v) = (
                noise.tensor([1, 2, 200, 16], &device),
                noise.tensor([1, 2, 200, 16], &device),
            );
            let q = noise.tensor([1, 4, 1, 16], &device);
            let method = sketch.map_or(Method::DENSE, |s| {
                SparqConfig::new(6, 20)
                    .with_sketch(s)
                    .with_mean_value(MeanValue::Always)
                    .into()
            });
            for len in [199, 130, 64, 3] {
                let mut cache = cache_of(&k, &v, FloatDType::F32, sketch);
                cache.truncate(len);
                // An append of several positions sets new ranges, so that both caches have the same codes.
                cache.append(span(&k, 10, 40), span(&v, 10, 40)).unwrap();
                let mut fresh = cache_of(
                    &span(&k, 0, len),
                    &span(&v, 0, len),
                    FloatDType::F32,
                    sketch,
                );
                fresh.append(span(&k, 10, 40), span(&v, 10, 40)).unwrap();
                let (got, want) = (
                    method.decode(q.clone(), &mut cache).unwrap(),
                    method.decode(q.clone(), &mut fresh).unwrap(),
                );
                assert!(max_difference(&got, &want) < 1e-5, "{sketch:?} {len}");
            }
        }
    }
}

#[test]
fn a_cleared_cache_keeps_its_buffers_and_starts_anew() {
    for device in devices() {
        let mut noise = Noise(13);
        let k = noise.tensor([2, 2, 100, 16], &device);
        let mut cache = config(2, 10, Some(Sketch::Bits4)).init(&device).unwrap();
        cache.set_left_padding(&[3, 0]).unwrap();
        cache.append(k.clone(), k.clone()).unwrap();
        let memory = cache.memory();
        cache.clear();
        assert!(cache.is_empty() && cache.memory() == memory && cache.spans().start == [0, 0]);
        cache.append(k.clone(), k.clone()).unwrap();
        let q = noise.tensor([2, 2, 1, 16], &device);
        let method = Method::from(
            SparqConfig::new(4, 10)
                .with_sketch(Sketch::Bits4)
                .with_mean_value(MeanValue::Always),
        );
        let want = method
            .decode(
                q.clone(),
                &mut cache_of(&k, &k, FloatDType::F32, Some(Sketch::Bits4)),
            )
            .unwrap();
        assert!(max_difference(&method.decode(q, &mut cache).unwrap(), &want) < 1e-6);
    }
}

#[test]
fn left_padding_is_as_if_it_were_not_there() {
    for device in devices() {
        for sketch in SKETCHES {
            let mut noise = Noise(14);
            let (k, v) = (
                noise.tensor([1, 2, 90, 16], &device),
                noise.tensor([1, 2, 90, 16], &device),
            );
            let q = noise.tensor([1, 2, 1, 16], &device);
            let method = sketch.map_or(Method::DENSE, |s| {
                SparqConfig::new(5, 12)
                    .with_sketch(s)
                    .with_mean_value(MeanValue::Always)
                    .into()
            });
            let mut padded = config(1, 90, sketch).init(&device).unwrap();
            padded.set_left_padding(&[17]).unwrap();
            padded.append(k.clone(), v.clone()).unwrap();
            let mut bare = cache_of(
                &span(&k, 17, 90),
                &span(&v, 17, 90),
                FloatDType::F32,
                sketch,
            );
            let (got, want) = (
                method.decode(q.clone(), &mut padded).unwrap(),
                method.decode(q, &mut bare).unwrap(),
            );
            assert!(max_difference(&got, &want) < 1e-5, "{sketch:?}");
        }
    }
}

#[test]
fn ranges_are_set_again_when_the_length_has_doubled_and_codes_clamp_between() {
    for device in devices() {
        let mut noise = Noise(15);
        let k = noise.tensor([1, 2, 16, 16], &device);
        let far = Tensor::<4>::full([1, 2, 1, 16], 100.0, &device);
        let mut cache = cache_of(&k, &k, FloatDType::F32, Some(Sketch::Bits8));
        let step_of = |cache: &mut KvCache| {
            cache.refresh_sketch();
            let SketchTensors::Codes { scale: step, .. } = &cache.tensors().sketch else {
                panic!("a sketch in bits")
            };
            values(step)
        };
        let first = step_of(&mut cache);
        for added in 1..16 {
            cache.append(far.clone(), far.clone()).unwrap();
            assert_eq!(step_of(&mut cache), first, "after {added}");
        }
        cache.append(far.clone(), far.clone()).unwrap();
        let doubled = step_of(&mut cache);
        assert!(
            doubled
                .iter()
                .zip(&first)
                .all(|(new, old)| *new > 5.0 * old)
        );
        cache.truncate(15);
        assert!(
            step_of(&mut cache)
                .iter()
                .zip(&doubled)
                .all(|(new, old)| *new < 0.2 * old),
            "below half of 32"
        );
    }
}

#[test]
fn memory_is_what_the_shapes_say() {
    for device in devices() {
        let memory = |sketch| config(3, 100, sketch).init(&device).unwrap().memory();
        let elements = 3 * 2 * 128 * 16; // 100 positions are rounded up to 128
        assert_eq!(
            (memory(None).keys, memory(None).values, memory(None).sketch),
            (elements * 4, elements * 4, 0)
        );
        assert_eq!(memory(None).sums, 3 * 2 * 16 * 4);
        assert_eq!(memory(Some(Sketch::Full)).sketch, elements * 4);
        assert_eq!(
            memory(Some(Sketch::Bits8)).sketch,
            elements + 2 * 3 * 2 * 16 * 4
        );
        assert_eq!(
            memory(Some(Sketch::Bits4)).sketch,
            elements / 2 + 2 * 3 * 2 * 16 * 4
        );
    }
}

#[test]
fn what_does_not_fit_is_an_error_that_says_why() {
    for device in devices() {
        let mut cache = config(1, 8, Some(Sketch::Full)).init(&device).unwrap();
        let zeros = |shape| Tensor::<4>::zeros(shape, &device);
        let message = |error: SparqError| error.to_string();
        let error = cache
            .append(zeros([1, 2, 3, 8]), zeros([1, 2, 3, 16]))
            .unwrap_err();
        assert_eq!(
            message(error),
            "keys: expected shape [1, 2, 3, 16], found [1, 2, 3, 8]"
        );
        let error = cache
            .append(zeros([1, 2, 3, 16]), zeros([1, 2, 4, 16]))
            .unwrap_err();
        assert_eq!(
            message(error),
            "values: expected shape [1, 2, 3, 16], found [1, 2, 4, 16]"
        );
        let error = cache
            .append_ragged(zeros([1, 2, 3, 16]), zeros([1, 2, 3, 16]), &[4])
            .unwrap_err();
        assert_eq!(
            message(error),
            "counts: expected at most the 3 positions given, found 4"
        );
        let error = Method::DENSE
            .decode(zeros([1, 2, 1, 16]), &mut cache)
            .unwrap_err();
        assert_eq!(
            message(error),
            "cache: expected at least the current token's position, found none"
        );
        cache
            .append(zeros([1, 2, 3, 16]), zeros([1, 2, 3, 16]))
            .unwrap();
        assert!(
            matches!(
                Method::DENSE.decode(zeros([1, 3, 1, 16]), &mut cache),
                Err(SparqError::Shape { .. })
            ),
            "3 heads over 2"
        );
        let coded = Method::from(SparqConfig::new(4, 1).with_sketch(Sketch::Bits4));
        let error = coded.decode(zeros([1, 2, 1, 16]), &mut cache).unwrap_err();
        assert!(message(error).contains(
            "the method sparq needs codes of 4 bits as key sketch, but the cache holds a full copy of K"
        ));
        let error = Method::from(SparqConfig::new(17, 4))
            .decode(zeros([1, 2, 1, 16]), &mut cache)
            .unwrap_err();
        assert!(message(error).starts_with("rank: expected 1 to 16"));
        assert!(cache.set_left_padding(&[1]).is_err(), "not empty");
        assert_eq!(cache.len(), 3, "a refused call changes nothing");
    }
}

#[cfg(feature = "ndarray")]
#[test]
fn a_type_that_the_device_lacks_is_an_error() {
    #[allow(deprecated)]
    let device = burn::tensor::Device::ndarray();
    let error = KvCacheConfig {
        dtype: FloatDType::F16,
        ..config(1, 8, None)
    }
    .init(&device)
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("does not support F16; choose one of F32"),
        "{error}"
    );
}

/// f16 keeps 11 significant bits and bf16 8, so that rounding K and V changes each by at most u = 2^-11 or 2^-8 of itself.
///
/// A logit q.k / sqrt(d) then moves by at most e = u |q|_1 max|k| / sqrt(d), a softmax weight by a factor within exp(+-2e), and the
/// output by at most (exp(2e) - 1) max|v| + u max|v|. With the same positions kept, SparQ's own step is bounded like the dense one.
#[cfg(feature = "flex")]
#[test]
fn a_16_bit_cache_differs_by_its_rounding_alone() {
    let device = burn::tensor::Device::flex();
    for (dtype, unit) in [
        (FloatDType::F16, 2f32.powi(-11)),
        (FloatDType::BF16, 2f32.powi(-8)),
    ] {
        for sketch in [Sketch::Full, Sketch::Bits8, Sketch::Bits4] {
            let mut noise = Noise(16);
            let (k, v) = (
                noise.tensor([2, 2, 300, 64], &device),
                noise.tensor([2, 2, 300, 64], &device),
            );
            let q = noise.tensor([2, 4, 1, 64], &device);
            let largest = |t: &Tensor<4>| values(t).iter().fold(0f32, |m, x| m.max(x.abs()));
            let l1 = values(&q)
                .chunks(64)
                .map(|head| head.iter().map(|x| x.abs()).sum::<f32>())
                .fold(0.0, f32::max);
            let e = unit * l1 * largest(&k) / 8.0;
            let bound = ((2.0 * e).exp() - 1.0 + unit) * largest(&v);
            let (mut exact, mut rounded) = (
                cache_of(&k, &v, FloatDType::F32, Some(sketch)),
                cache_of(&k, &v, dtype, Some(sketch)),
            );
            let dense = |cache: &mut KvCache| Method::DENSE.decode(q.clone(), cache).unwrap();
            assert!(
                max_difference(&dense(&mut exact), &dense(&mut rounded)) < bound,
                "{dtype:?}"
            );
            // All positions kept: the sets agree by construction, and the sparse path is bounded like the dense one.
            let config = SparqConfig::new(16, 300).with_sketch(sketch);
            let sparq =
                |cache: &mut KvCache| config.decode_traced(q.clone(), cache).unwrap().output;
            assert!(
                max_difference(&sparq(&mut exact), &sparq(&mut rounded)) < bound,
                "{dtype:?}"
            );
            // With fewer, nearly equal scores may change places; what is compared is the same cache in fp32, which holds the rounded numbers.
            let config = SparqConfig::new(16, 40).with_sketch(sketch);
            let through = |t: &Tensor<4>| t.clone().cast(dtype).cast(FloatDType::F32);
            let mut same = cache_of(&through(&k), &through(&v), FloatDType::F32, Some(sketch));
            let (a, b) = (
                config.decode_traced(q.clone(), &mut rounded).unwrap(),
                config.decode_traced(q.clone(), &mut same).unwrap(),
            );
            assert_eq!(a.positions.into_data(), b.positions.into_data());
            assert!(
                max_difference(&a.output, &b.output) < 1e-6,
                "arithmetic is fp32 whatever the cache's type"
            );
        }
    }
}

#[test]
fn a_budget_is_met_and_nearly_used_up() {
    let shape = CacheShape {
        head_dim: 128,
        kv_heads: 8,
        element_bytes: 2,
    };
    for sketch in [Sketch::Full, Sketch::Bits8, Sketch::Bits4] {
        for seq_len in [4096, 16384, 131072] {
            for ratio in [0.5, 0.25, 0.125, 0.0625] {
                let config = SparqConfig::new(1, 1)
                    .with_sketch(sketch)
                    .for_compression(128, seq_len, ratio)
                    .unwrap();
                config.validate(128).unwrap();
                let share = Transfers::sparq(&shape, seq_len, &config).bytes()
                    / Transfers::dense(&shape, seq_len).bytes();
                assert!(
                    share <= ratio && share > 0.98 * ratio,
                    "{sketch:?} {seq_len} {ratio}: {share}"
                );
            }
        }
    }
    let error = SparqConfig::new(1, 1)
        .for_compression(128, 64, 0.001)
        .unwrap_err();
    assert!(error.to_string().contains("0.001"), "{error}");
    assert!(
        SparqConfig::new(1, 1)
            .for_compression(128, 4096, 0.0)
            .is_err()
            && SparqConfig::new(1, 1)
                .for_compression(128, 4096, 1.5)
                .is_err()
    );
}

#[test]
fn settings_survive_json_and_unknown_fields_are_refused() {
    let config = SparqConfig::new(16, 128)
        .with_sketch(Sketch::Bits4)
        .with_mean_value(MeanValue::Never);
    let json = serde_json::to_string(&config).unwrap();
    assert!(json.contains(r#""sketch":"4bits""#), "{json}");
    assert_eq!(serde_json::from_str::<SparqConfig>(&json).unwrap(), config);
    assert!(serde_json::from_str::<SparqConfig>(&json.replace("rank", "rang")).is_err());
    let method = Method::from(config);
    assert_eq!(
        serde_json::from_str::<Method>(&serde_json::to_string(&method).unwrap()).unwrap(),
        method
    );
}

#[test]
fn a_later_append_of_any_length_keeps_the_ranges_and_writes_its_codes_by_them() {
    for device in devices() {
        let mut noise = Noise(17);
        let k = noise.tensor([2, 2, 130, 16], &device);
        for cuts in [vec![100, 101, 108, 130], vec![100, 130]] {
            let mut cache = config(2, 1, Some(Sketch::Bits4)).init(&device).unwrap();
            cache.append(span(&k, 0, 100), span(&k, 0, 100)).unwrap();
            cache.refresh_sketch();
            let parts = |cache: &KvCache| match &cache.tensors().sketch {
                SketchTensors::Codes {
                    codes,
                    zero_point: lo,
                    scale: step,
                    ..
                } => (codes.clone(), lo.clone(), step.clone()),
                _ => panic!("a sketch in bits"),
            };
            let (_, lo, step) = parts(&cache);
            for pair in cuts.windows(2) {
                let new = span(&k, pair[0], pair[1]);
                cache.append(new.clone(), new).unwrap();
                cache.refresh_sketch();
            }
            let (codes, lo_after, step_after) = parts(&cache);
            assert_eq!(
                (values(&lo), values(&step)),
                (values(&lo_after), values(&step_after))
            );
            let found = sparq::ops::sketch::unpack(codes, 4).slice_dim(3, 0..130);
            let expected = sparq::ops::sketch::encode(k.clone(), lo, step, 4);
            assert_eq!(found.into_data(), expected.into_data());
        }
    }
}

#[test]
fn a_row_that_doubles_leaves_the_ranges_of_the_others() {
    for device in devices() {
        let mut noise = Noise(18);
        let k = noise.tensor([2, 2, 110, 16], &device);
        let q = noise.tensor([2, 2, 1, 16], &device);
        let method = SparqConfig::new(6, 20).with_sketch(Sketch::Bits4);
        let run = |row: std::ops::Range<usize>| {
            let counts = &[10, 100][row.clone()];
            let rows = |t: &Tensor<4>| t.clone().slice_dim(0, row.clone());
            let mut cache = config(row.len(), 1, Some(Sketch::Bits4))
                .init(&device)
                .unwrap();
            cache
                .append_ragged(span(&rows(&k), 0, 100), span(&rows(&k), 0, 100), counts)
                .unwrap();
            cache.refresh_sketch();
            // The short row doubles here, the long one does not.
            cache
                .append(span(&rows(&k), 100, 110), span(&rows(&k), 100, 110))
                .unwrap();
            method.decode_traced(rows(&q), &mut cache).unwrap().output
        };
        let together = run(0..2);
        for row in 0..2 {
            let alone = run(row..row + 1);
            assert!(max_difference(&together.clone().slice_dim(0, row..row + 1), &alone) < 1e-6);
        }
    }
}
