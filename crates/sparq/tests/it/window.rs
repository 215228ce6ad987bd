//! Sliding windows: every step equals the step on a cache of the window's positions alone.

use burn::tensor::{Device, FloatDType, Tensor};
use sparq::methods::{Components, GroupScore, MeanValue};
use sparq::{
    KvCache, KvCacheConfig, Method, RotaryConfig, Sketch, SparqAttention, SparqAttentionConfig,
    SparqConfig, SparqError, reference,
};

use crate::common::{
    Noise, cache_config, cache_f32, devices, is_finite, max_difference, method_for, new_cache,
    positions, sequence, tf32_error, values,
};

const WINDOW: usize = 24;
const HEAD_DIM: usize = 16;
const TOLERANCE: f32 = 1e-5;

fn config(batch: usize, kv_heads: usize, sketch: Option<Sketch>, window: usize) -> KvCacheConfig {
    cache_config([batch, kv_heads, HEAD_DIM], sketch).with_window(Some(window))
}

fn settings(sketch: Sketch) -> Vec<SparqConfig> {
    let base = SparqConfig::new(6, 8).with_sketch(sketch);
    vec![
        base.with_mean_value(MeanValue::Always),
        base.with_group_score(GroupScore::Logits)
            .with_components(Components::AbsSum)
            .with_mean_value(MeanValue::Always),
        base.with_local_window(0).with_mean_value(MeanValue::Never),
        // The whole window is selected, so this is dense attention.
        SparqConfig::new(6, WINDOW).with_sketch(sketch),
    ]
}

/// Returns a cache of those positions of one sequence that are in the window and not padding.
fn sliced(
    [k, v]: [&Tensor<4>; 2],
    index: usize,
    start: usize,
    end: usize,
    sketch: Option<Sketch>,
) -> KvCache {
    let first = end.saturating_sub(WINDOW).max(start);
    let part = |t| positions(&sequence(t, index), first..end);
    cache_f32(&part(k), &part(v), sketch)
}

/// The query heads, KV heads and left padding of a test sequence, and the length of its prompt.
#[derive(Clone, Copy, Debug)]
struct Sequences {
    heads: usize,
    kv_heads: usize,
    padding: [usize; 2],
    prompt: usize,
}

impl Sequences {
    /// Fills a windowed cache of two sequences with the prompt at once and the rest one by one.
    /// After each append, calls `check` with the cache, a query, the caches of each sequence's
    /// window alone, and the length.
    fn check(
        self,
        sketch: Option<Sketch>,
        check: impl Fn(&mut KvCache, &Tensor<4>, &mut [KvCache; 2], usize),
    ) {
        let (prompt, kv_heads) = (self.prompt, self.kv_heads);
        for device in devices() {
            let mut noise = Noise(5 + prompt as u64);
            let len = prompt + 2 * WINDOW + 3;
            let [k, v] = noise.tensors([2, kv_heads, len, HEAD_DIM], &device);
            let mut cache = new_cache(&config(2, kv_heads, sketch, WINDOW), &device);
            cache.set_left_padding(&self.padding).unwrap();
            for end in prompt..len {
                let new = if end == prompt { 0..end } else { end - 1..end };
                let part = |t| positions(t, new.clone());
                cache.append(part(&k), part(&v)).unwrap();
                let q = noise.tensor([2, self.heads, 1, HEAD_DIM], &device);
                let alone = |index| sliced([&k, &v], index, self.padding[index], end, sketch);
                check(&mut cache, &q, &mut [0, 1].map(alone), end);
            }
        }
    }

    /// Checks that the steps of a method equal those on the caches of the windows alone.
    fn check_steps(self, method: Method) {
        let has_ranges = method.sketch().and_then(Sketch::bits).is_some();
        self.check(method.sketch(), |cache, q, alone, end| {
            // The first use sets the ranges. They are set again after every WINDOW appends.
            if has_ranges && !(end - self.prompt).is_multiple_of(WINDOW) {
                return cache.refresh_sketch();
            }
            let found = method.decode(q.clone(), cache).unwrap();
            let worst = max_difference(&found, &each_alone(&method, q, alone));
            assert!(
                worst < TOLERANCE,
                "{method}, {self:?}, {end} positions: {worst}"
            );
        });
    }
}

/// Returns sequences with and without groups and left padding, for prompts of these lengths.
fn sequences(prompts: &[usize]) -> impl Iterator<Item = Sequences> {
    let prompts = prompts.iter().copied();
    prompts.flat_map(|prompt| {
        [(2, [0, 0]), (2, [0, 9]), (4, [0, 0]), (4, [0, 9])].map(|(heads, padding)| Sequences {
            heads,
            kv_heads: 2,
            padding,
            prompt,
        })
    })
}

/// Decodes each sequence alone and returns the outputs as a batch.
fn each_alone(method: &Method, q: &Tensor<4>, alone: &mut [KvCache; 2]) -> Tensor<4> {
    let outputs = alone
        .iter_mut()
        .enumerate()
        .map(|(index, cache)| method.decode(sequence(q, index), cache).unwrap());
    Tensor::cat(outputs.collect(), 0)
}

#[test]
fn dense_attention_reads_only_the_window() {
    sequences(&[12, WINDOW, 60]).for_each(|sequences| sequences.check_steps(Method::DENSE));
}

#[test]
fn sparq_reads_only_the_window() {
    for settings in settings(Sketch::Full) {
        sequences(&[12, 60]).for_each(|sequences| sequences.check_steps(settings.into()));
    }
}

#[test]
fn ranges_are_set_from_the_window() {
    for sketch in [Sketch::Bits8, Sketch::Bits4] {
        for settings in settings(sketch) {
            let grouped = sequences(&[60]).filter(|sequences| sequences.heads == 4);
            grouped.for_each(|sequences| sequences.check_steps(settings.into()));
        }
    }
}

#[test]
fn traces_equal_the_reference_on_a_slice() {
    let settings = SparqConfig::new(6, 8).with_mean_value(MeanValue::Always);
    let sequences = Sequences {
        heads: 2,
        kv_heads: 2,
        padding: [0, 9],
        prompt: 40,
    };
    sequences.check(Some(Sketch::Full), |cache, q, alone, end| {
        let found = settings.decode_traced(q.clone(), cache).unwrap();
        let selected: Vec<i32> = found.positions.into_data().iter::<i32>().collect();
        for (index, alone) in alone.iter().enumerate() {
            let own = sequence(q, index);
            let trace = reference::sparq_decode(own, alone.tensors(), alone.spans(), &settings);
            let output = sequence(&found.output, index);
            let tolerance = TOLERANCE + tf32_error(&q.device());
            assert!(max_difference(&output, &trace.output) < tolerance);
            let alpha = sequence(&found.alpha, index);
            assert!(max_difference(&alpha, &trace.alpha) < tolerance);
            let first = (end - alone.len()) as i32;
            let expected = trace.positions.into_data();
            for (head, expected) in expected
                .iter::<i32>()
                .collect::<Vec<_>>()
                .chunks(8)
                .enumerate()
            {
                let mut expected: Vec<i32> = expected.iter().map(|at| at + first).collect();
                let mut selected = selected[(index * 2 + head) * 8..][..8].to_vec();
                expected.sort_unstable();
                selected.sort_unstable();
                assert_eq!(
                    selected, expected,
                    "sequence {index}, head {head}, {end} positions"
                );
            }
        }
    });
}

#[test]
fn windows_on_the_device_equal_those_of_the_host() {
    for device in devices() {
        let mut noise = Noise(7);
        let mut cache = new_cache(&config(3, 1, None, WINDOW), &device);
        cache.set_left_padding(&[0, 70, 200]).unwrap();
        for counts in [[10, 90, 90], [14, 0, 0], [1, 3, 4], [60, 10, 1]] {
            let [k, v] = noise.tensors([3, 1, 90, HEAD_DIM], &device);
            cache.append_ragged(k, v, &counts).unwrap();
            let spans = reference::append::last_spans(cache.tensors().spans.clone(), WINDOW);
            let found: Vec<usize> = spans
                .into_data()
                .iter::<u32>()
                .map(|at| at as usize)
                .collect();
            let last = cache.spans().last(WINDOW);
            let expected = [last.start, last.end, vec![0; 3]].concat();
            assert_eq!(found, expected, "{device:?}");
        }
    }
}

#[test]
fn the_sum_of_v_follows_the_window() {
    for device in devices() {
        let mut noise = Noise(9);
        let [k, v] = noise.tensors([1, 2, 200, HEAD_DIM], &device);
        let sketch = Some(Sketch::Full);
        let mut cache = new_cache(&config(1, 2, sketch, WINDOW), &device);
        let append = |cache: &mut KvCache, range: std::ops::Range<usize>| {
            let part = |t| positions(t, range.clone());
            cache.append(part(&k), part(&v)).unwrap();
        };
        let check = |cache: &KvCache| {
            let end = cache.len();
            let inside = positions(&v, end.saturating_sub(WINDOW)..end);
            let sum = inside.sum_dim(2).squeeze_dim::<3>(2);
            let worst = max_difference(&cache.tensors().v_sum, &sum);
            assert!(worst < TOLERANCE, "{end} positions on {device:?}: {worst}");
        };
        for range in [0..10, 10..11, 11..50, 50..51, 51..52] {
            append(&mut cache, range);
            check(&cache);
        }
        for at in 52..150 {
            append(&mut cache, at..at + 1);
            check(&cache);
        }
        for len in [140, 60, 20] {
            cache.truncate(len);
            check(&cache);
        }
        // After the truncation, positions that had left the window are in it again.
        append(&mut cache, 20..90);
        cache.truncate(70);
        let q = noise.tensor([1, 4, 1, HEAD_DIM], &device);
        let method = Method::from(SparqConfig::new(6, 8).with_mean_value(MeanValue::Always));
        let found = method.decode(q.clone(), &mut cache).unwrap();
        let mut alone = sliced([&k, &v], 0, 0, 70, sketch);
        let expected = method.decode(q, &mut alone).unwrap();
        assert!(max_difference(&found, &expected) < TOLERANCE);
    }
}

#[test]
fn nan_leaves_with_the_window() {
    for device in devices() {
        let mut noise = Noise(11);
        let method = Method::from(SparqConfig::new(6, 8).with_mean_value(MeanValue::Always));
        let mut cache = new_cache(&config(1, 2, method.sketch(), WINDOW), &device);
        let mut append = |cache: &mut KvCache, len: usize, factor: f32| {
            let [k, v] = noise.tensors([1, 2, len, HEAD_DIM], &device);
            cache.append(k, v * factor).unwrap();
            method
                .decode(noise.tensor([1, 2, 1, HEAD_DIM], &device), cache)
                .unwrap()
        };
        append(&mut cache, 40, 1.0);
        let spoiled = append(&mut cache, 1, f32::NAN);
        assert!(values(&spoiled).iter().any(|y| y.is_nan()));
        for _ in 0..2 * WINDOW {
            append(&mut cache, 1, 1.0);
        }
        let clean = append(&mut cache, 1, 1.0);
        assert!(is_finite(&clean), "{device:?}");
    }
}

#[test]
fn a_window_longer_than_the_sequence_has_no_effect() {
    for device in devices() {
        for sketch in [Sketch::Full, Sketch::Bits4] {
            let mut noise = Noise(13);
            let [k, v] = noise.tensors([2, 2, 90, HEAD_DIM], &device);
            let method = method_for(Some(sketch), 6, 8);
            let mut plain = cache_f32(&k, &v, Some(sketch));
            let mut windowed = new_cache(&config(2, 2, Some(sketch), 90), &device);
            windowed.append(k, v).unwrap();
            let q = noise.tensor([2, 4, 1, HEAD_DIM], &device);
            for method in [method, Method::DENSE] {
                let [a, b] = [&mut plain, &mut windowed]
                    .map(|cache| values(&method.decode(q.clone(), cache).unwrap()));
                assert_eq!(a, b, "{} on {device:?}", method.name());
            }
        }
    }
}

#[test]
fn a_window_of_at_most_k_positions_is_dense() {
    let config = config(1, 2, Some(Sketch::Full), WINDOW);
    let method = |top_k| Method::from(SparqConfig::new(6, top_k));
    assert!(!method(WINDOW).is_sparse(&config, 1000));
    assert!(method(WINDOW - 1).is_sparse(&config, 1000));
    assert!(!method(WINDOW - 1).is_sparse(&config, WINDOW - 1));
    assert_eq!((config.attended(10), config.attended(1000)), (10, WINDOW));
}

const D_MODEL: usize = 32;

fn attention(device: &Device, window: Option<usize>) -> SparqAttention {
    SparqAttentionConfig::new(D_MODEL, 4, 2, HEAD_DIM)
        .with_rotary(Some(RotaryConfig::new(HEAD_DIM)))
        .with_qk_norm_eps(Some(1e-6))
        .with_window(window)
        .init(device)
        .unwrap()
}

fn input(noise: &mut Noise, len: usize, device: &Device) -> Tensor<3> {
    noise
        .tensor([1, 1, len, D_MODEL], device)
        .reshape([1, len, D_MODEL])
}

#[test]
fn training_prefill_and_decode_read_one_window() {
    for device in devices() {
        let attention = attention(&device, Some(WINDOW));
        let x = input(&mut Noise(15), 90, &device);
        let part = |from: usize, to: usize| x.clone().slice_dim(1, from..to);
        let whole = attention.forward(x.clone(), None).unwrap();
        for method in [Method::DENSE, SparqConfig::new(4, WINDOW).into()] {
            let cache = attention.cache_config(1, 1, FloatDType::F32, &method);
            let mut cache = new_cache(&cache, &device);
            let mut parts = vec![
                attention.forward(part(0, 10), Some(&mut cache)).unwrap(),
                attention.forward(part(10, 50), Some(&mut cache)).unwrap(),
            ];
            for at in 50..90 {
                let x = part(at, at + 1);
                parts.push(attention.decode(x, &mut cache, &method).unwrap());
            }
            let worst = max_difference(&Tensor::cat(parts, 1), &whole);
            assert!(
                worst < TOLERANCE + tf32_error(&device),
                "{} on {device:?}: {worst}",
                method.name()
            );
        }
    }
}

#[test]
fn invalid_and_mismatched_windows_are_refused() {
    let device = &devices()[0];
    for window in [0, 1 << 31, usize::MAX] {
        let refused = config(1, 2, None, window).init(device).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("window: expected 1 (the current token) to 2147483647, found {window}")
        );
    }
    let config = SparqAttentionConfig::new(D_MODEL, 4, 2, HEAD_DIM).with_window(Some(0));
    assert!(matches!(
        config.init(device),
        Err(SparqError::Config {
            field: "window",
            ..
        })
    ));
    let cache = attention(device, None).cache_config(1, 1, FloatDType::F32, &Method::DENSE);
    let mut cache = new_cache(&cache, device);
    let x = input(&mut Noise(19), 1, device);
    let attention = attention(device, Some(WINDOW));
    let expected = "window of the cache: expected 24 positions (the attention's), found none";
    let forward = attention.forward(x.clone(), Some(&mut cache)).unwrap_err();
    assert_eq!(forward.to_string(), expected);
    let decode = attention.decode(x, &mut cache, &Method::DENSE).unwrap_err();
    assert_eq!(decode.to_string(), expected);
    assert!(cache.is_empty());
}
