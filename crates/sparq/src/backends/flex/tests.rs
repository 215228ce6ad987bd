//! Each instruction set of this CPU against the definitions and the reference.

use burn::backend::Flex;
use burn::tensor::{Device, Distribution, FloatDType, Tensor};

use super::online_softmax::{OnlineSoftmax, exp};
use super::simd::{Kernel, Level, Simd, sort_key};
use super::sketch::{Codes4, Codes8, Full, Slots, Storage};
use super::*;
use crate::methods::{Components, GroupScore, MeanValue};
use crate::ops::primitive::lower;
use crate::ops::reference;
use crate::{KvCacheConfig, RowFormat, Sketch};

/// Applies a vector function to a slice whose length is a multiple of every vector's.
macro_rules! apply {
    ($level:expr, $input:expr, |$simd:ident, $x:ident| $value:expr) => {{
        struct Apply<'a>(&'a [f32]);
        impl Kernel for Apply<'_> {
            type Output = Vec<f32>;
            #[inline(always)]
            fn run<S: Simd>(self, $simd: S) -> Vec<f32> {
                let mut output = vec![0.0; self.0.len()];
                for (input, output) in self
                    .0
                    .chunks_exact(S::LANES)
                    .zip(output.chunks_exact_mut(S::LANES))
                {
                    let $x = $simd.load(input);
                    $simd.store($value, output);
                }
                output
            }
        }
        $level.run(Apply($input))
    }};
}

#[test]
fn exp_is_exact_at_its_ends_and_close_between() {
    let mut x: Vec<f32> = (0..4096).map(|i| -(i as f32) * 0.0211).collect();
    x[..6].copy_from_slice(&[0.0, -0.0, f32::NEG_INFINITY, f32::NAN, f32::MIN, -104.1]);
    for level in Level::all() {
        let found = apply!(level, &x, |simd, x| exp(simd, x));
        assert_eq!(found[..3], [1.0, 1.0, 0.0], "{level:?}");
        assert!(found[3].is_nan(), "{level:?}");
        assert_eq!(found[4..6], [0.0, 0.0], "{level:?}");
        for (x, found) in x[6..].iter().zip(&found[6..]) {
            let expected = f64::from(*x).exp();
            let bound = (3e-7 + 1e-7 * f64::from(x.abs())) * expected + 1e-37;
            assert!(
                (f64::from(*found) - expected).abs() <= bound,
                "{level:?} {x}: {found} for {expected}"
            );
        }
    }
}

#[test]
fn max_and_min_return_the_second_operand_for_nan() {
    let x: Vec<f32> = [f32::NAN, 1.0, f32::INFINITY, -3.0].repeat(4);
    for level in Level::all() {
        let largest = apply!(level, &x, |simd, x| simd.max(x, simd.splat(0.5)));
        assert_eq!(largest[..4], [0.5, 1.0, f32::INFINITY, 0.5], "{level:?}");
        let smallest = apply!(level, &x, |simd, x| simd.min(x, simd.splat(0.5)));
        assert_eq!(smallest[..4], [0.5, 0.5, 0.5, -3.0], "{level:?}");
    }
}

#[test]
fn stores_round_to_the_nearest_element() {
    struct Round<'a, T>(&'a [f32], std::marker::PhantomData<T>);
    impl<T: Element> Kernel for Round<'_, T> {
        type Output = Vec<T>;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<T> {
            let mut output = vec![T::default(); self.0.len()];
            for index in (0..self.0.len()).step_by(S::LANES) {
                T::store_at(simd, f32::load_at(simd, self.0, index), &mut output, index);
            }
            output
        }
    }
    // Every exponent, with fractions on, just above and just below a tie of either type.
    let fractions = [
        0, 1, 0xfff, 0x1000, 0x1001, 0x3000, 0x7fff, 0x8000, 0x8001, 0x1_8000, 0x7f_ffff,
    ];
    let bits = (0..512u32).flat_map(|top| fractions.map(|fraction| (top << 23) | fraction));
    let values: Vec<f32> = bits.map(f32::from_bits).collect();
    for level in Level::all() {
        let half = level.run(Round::<f16>(&values, std::marker::PhantomData));
        let brain = level.run(Round::<bf16>(&values, std::marker::PhantomData));
        for (i, &value) in values.iter().enumerate() {
            let (f, b) = (f16::from_f32(value), bf16::from_f32(value));
            let same = half[i].to_bits() == f.to_bits() || (half[i].is_nan() && f.is_nan());
            assert!(same, "{level:?} {value:e}: {} for {f}", half[i]);
            let same = brain[i].to_bits() == b.to_bits() || (brain[i].is_nan() && b.is_nan());
            assert!(same, "{level:?} {value:e}: {} for {b}", brain[i]);
        }
    }
}

#[test]
fn sort_keys_order_as_values_do() {
    struct Keys<'a>(&'a [f32]);
    impl Kernel for Keys<'_> {
        type Output = Vec<u32>;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<u32> {
            let mut keys = vec![0; self.0.len()];
            for at in (0..self.0.len()).step_by(S::LANES) {
                simd.store_sort_keys(simd.load(&self.0[at..]), &mut keys[at..]);
            }
            keys
        }
    }
    let (min, max) = (f32::MIN, f32::MAX);
    let mut values = [min, -1e30, -2.0, -1.5, -1e-40, -0.0, 0.0, 1e-40].to_vec();
    values.extend([1e-30, 0.5, 1.0, 1.5, 2.0, 1e20, 1e30, max]);
    let keys: Vec<u32> = values.iter().copied().map(sort_key).collect();
    assert!(keys[0] > 0 && keys.is_sorted_by(|a, b| a < b));
    for level in Level::all() {
        assert_eq!(level.run(Keys(&values)), keys, "{level:?}");
    }
}

#[test]
fn reductions_cover_every_lane() {
    struct Reduce<'a>(&'a [f32]);
    impl Kernel for Reduce<'_> {
        type Output = (usize, [f32; 4], f32, f32);
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let mut vectors = [simd.splat(0.0); 4];
            for (i, vector) in vectors.iter_mut().enumerate() {
                *vector = simd.load(&self.0[i * S::LANES..]);
            }
            (
                S::LANES,
                simd.sums(vectors),
                simd.sum(vectors[1]),
                simd.largest(vectors[2]),
            )
        }
    }
    let values: Vec<f32> = (0..64).map(|i| (i * 37 % 101) as f32).collect();
    for level in Level::all() {
        let (lanes, sums, sum, largest) = level.run(Reduce(&values));
        for (i, lanes) in values.chunks(lanes).take(4).enumerate() {
            assert_eq!(sums[i], lanes.iter().sum::<f32>(), "{level:?}");
        }
        assert_eq!(sum, sums[1], "{level:?}");
        let third = values[2 * lanes..3 * lanes].iter().copied();
        assert_eq!(largest, third.fold(0.0, f32::max), "{level:?}");
    }
}

#[test]
fn slots_match_the_order_of_loaded_codes() {
    /// Returns the vectors of one strip in order.
    struct Strip<'a, C: Storage>(&'a [C::Cell]);
    impl<C: Storage> Kernel for Strip<'_, C> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f32> {
            let mut output = vec![0.0; 8 * S::LANES];
            for (vector, lanes) in output.chunks_exact_mut(S::LANES).enumerate() {
                simd.store(C::vector(simd, self.0, vector), lanes);
            }
            output
        }
    }
    let code = |bits: usize, position: usize| (position * 7 + position / 16) as u32 % (1 << bits);
    let pack = |bits: usize| -> Vec<u32> {
        let per_word = 32 / bits;
        (0..128usize.div_ceil(per_word))
            .map(|word| {
                (0..per_word)
                    .map(|i| code(bits, word * per_word + i) << (i * bits))
                    .sum()
            })
            .collect()
    };
    for level in Level::all() {
        let strip = 8 * level.lanes();
        let (eight, four) = (Slots::of::<Codes8>(level), Slots::of::<Codes4>(level));
        for (bits, slots, found) in [
            (8, eight, level.run(Strip::<Codes8>(&pack(8)))),
            (4, four, level.run(Strip::<Codes4>(&pack(4)))),
        ] {
            for position in 0..strip {
                assert_eq!(
                    found[slots.slot(position)],
                    code(bits, position) as f32,
                    "{level:?} {bits}"
                );
                let later = position + 5 * strip;
                assert_eq!(slots.position(slots.slot(later)), later);
            }
        }
        let slots = Slots::of::<Full<f32>>(level);
        assert_eq!((slots.slot(77), slots.position(77)), (77, 77));
    }
}

#[test]
fn online_softmax_merges_to_the_whole_softmax() {
    let part = |logits: &[f32], values: &[f32]| {
        let mut state = OnlineSoftmax::new(1, 1);
        state.largest[0] = logits.iter().copied().fold(f32::MIN, f32::max);
        for (x, v) in logits.iter().zip(values) {
            let weight = (x - state.largest[0]).exp();
            state.weight[0] += weight;
            state.sum[0] += weight * v;
        }
        state
    };
    let (logits, values) = ([1.0, -2.0, 30.0, 28.5, 0.0], [3.0, 5.0, -1.0, 2.0, 9.0]);
    let read = |state: OnlineSoftmax| {
        let mut output = [0.0];
        state.write(0, &mut output);
        output[0]
    };
    let whole = read(part(&logits, &values));
    for cut in 0..=logits.len() {
        let a = part(&logits[..cut], &values[..cut]);
        let b = part(&logits[cut..], &values[cut..]);
        assert!((read(a.merge(&b)) - whole).abs() < 1e-6, "{cut}");
    }
    let empty = OnlineSoftmax::new(1, 1);
    assert_eq!(read(empty.clone().merge(&empty)), 0.0);
}

#[test]
fn decode_matches_the_reference_on_every_level() {
    let device = Device::flex();
    let shapes = [(1, 64), (2, 20), (3, 128), (4, 33), (7, 80)];
    for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
        for (case, (group, dim)) in shapes.into_iter().enumerate() {
            for sketch in [Sketch::Full, Sketch::Bits8, Sketch::Bits4] {
                let config = SparqConfig {
                    group_score: [GroupScore::Probabilities, GroupScore::Logits][case % 2],
                    components: [Components::SumAbs, Components::AbsSum][case / 2 % 2],
                    ..SparqConfig::new(dim / 3, 90)
                        .with_sketch(sketch)
                        .with_mean_value(MeanValue::Always)
                };
                decode_on_every_level(&device, dtype, [2, 2, 1400, dim], group, &config);
                if dim.is_multiple_of(4) {
                    let config = config.with_rows(RowFormat::Int8);
                    decode_on_every_level(&device, dtype, [2, 2, 1400, dim], group, &config);
                }
            }
        }
    }
}

/// Compares dense and SparQ steps at each level with the reference, for a cache [B, H_kv, S, d]
/// with one full and one ragged sequence.
fn decode_on_every_level(
    device: &Device,
    dtype: FloatDType,
    shape: [usize; 4],
    group: usize,
    config: &SparqConfig,
) {
    let [batch, kv_heads, len, dim] = shape;
    let random =
        |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), device);
    let cache = KvCacheConfig::new(batch, kv_heads, dim)
        .with_capacity(len)
        .with_dtype(dtype)
        .with_rows(config.rows)
        .with_sketch(Some(config.sketch))
        // Small enough to bend every logit.
        .with_softcap(group.is_multiple_of(2).then_some(1.5));
    let mut cache = cache.init(device).unwrap();
    cache.set_left_padding(&[0, 11]).unwrap();
    cache
        .append_ragged(random(shape), random(shape), &[len, len - 100])
        .unwrap();
    cache.refresh_sketch();
    // Not rounded to the cache's type: in 16 bits some components are equal, and either may be
    // selected.
    let q = random([batch, kv_heads * group, 1, dim]);
    let spans = cache.spans();
    let exact = reference::dense_decode(q.clone(), cache.tensors(), spans);
    let trace = reference::sparq_decode(q.clone(), cache.tensors(), spans, config);
    let floats = |data: TensorData| -> Vec<f32> { data.try_to_vec::<f32>().unwrap() };
    let (exact, expected) = (floats(exact.into_data()), floats(trace.output.into_data()));
    let scores = group_scores(&floats(trace.logits.into_data()), spans, config, group, len);
    let alpha = floats(trace.alpha.into_data());
    let mut positions: Vec<i64> = trace.positions.clone().into_data().iter::<i64>().collect();
    let sort = |positions: &mut [i64]| positions.chunks_mut(90).for_each(<[i64]>::sort_unstable);
    sort(&mut positions);

    let buffers: CacheBuffers<Flex> = lower(cache.tensors().clone());
    let lists = trace.positions;
    let map = Tensor::<1, Int>::from_data([1u32, 0], (device, DType::U32));
    let given = (lists.clone(), map.clone());
    let reused = reference::attend_positions(q.clone(), cache.tensors(), given.0, given.1, spans);
    let reused = floats(reused.into_data());
    let given = [Flex::int_primitive(lists), Flex::int_primitive(map)];
    let q = Flex::float_primitive(q);
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-5);
    for level in Level::all() {
        let case = format!("{level:?} {dtype:?} {shape:?} g {group} {config:?}");
        let dense = dense(level, &q, &buffers, spans).unwrap();
        assert!(close(&dense, &exact), "{case}");
        let found = over_positions(level, &q, &buffers, [&given[0], &given[1]], spans).unwrap();
        assert!(close(&found, &reused), "{case}");
        let mut found = sparq(level, &q, &buffers, spans, config, true).unwrap();
        sort(&mut found.positions);
        // Of scores that are equal up to the order of a sum, either may be selected.
        for (head, (found, expected)) in
            std::iter::zip(found.positions.chunks(90), positions.chunks(90)).enumerate()
        {
            let differ = found
                .iter()
                .filter(|position| !expected.contains(position))
                .chain(expected.iter().filter(|position| !found.contains(position)))
                .map(|&position| scores[head * len + position as usize]);
            let (least, most) = differ.fold((f32::MAX, f32::MIN), |(least, most), score| {
                (least.min(score), most.max(score))
            });
            assert!(
                most - least <= 1e-5 * most.abs().max(least.abs()),
                "{case}: {least} and {most} for batch head {head}"
            );
        }
        if found.positions == positions {
            assert!(close(&found.alpha, &alpha), "{case}");
            assert!(close(&found.output, &expected), "{case}");
        }
    }
}

#[test]
fn causal_attention_equals_the_reference() {
    let device = Device::flex();
    let random = |heads, len, dim| {
        let shape = [2, heads, len, dim];
        Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device)
    };
    let spans = Spans {
        start: vec![0, 20],
        end: vec![230, 190],
    };
    // Few rows, less than a vector of rows, several panels, and several tiles.
    for (len, group, dim) in [
        (2, 3, 64),
        (5, 3, 20),
        (30, 3, 6),
        (130, 1, 80),
        (70, 5, 32),
    ] {
        let cases = [
            (None, None),
            (Some(9), None),
            (Some(90), Some(1.5)),
            (None, Some(0.5)),
        ];
        for (window, softcap) in cases {
            let (q, k, v) = (
                random(2 * group, len, dim),
                random(2, 240, dim),
                random(2, 240, dim),
            );
            let [of_q, of_k, of_v] = [&q, &k, &v].map(Clone::clone);
            let exact = reference::causal_attention(of_q, of_k, of_v, &spans, window, softcap);
            let exact = exact.into_data().try_to_vec::<f32>().unwrap();
            let [q, k, v] = [q, k, v].map(Flex::float_primitive);
            for level in Level::all() {
                let rows = [&k, &v].map(|rows| float_rows::<f32>(rows).unwrap());
                let found = causal(level, &q, rows, &spans, window, softcap).unwrap();
                let case = format!("{level:?} T{len} g{group} d{dim} {window:?} {softcap:?}");
                let close = exact.iter().zip(&found).all(|(a, b)| (a - b).abs() < 2e-5);
                assert!(close, "{case}");
            }
        }
    }
}

/// Returns the group's score of every position, [B, H_kv, S], from logits [B, H_kv, g, S].
fn group_scores(
    logits: &[f32],
    spans: &Spans,
    config: &SparqConfig,
    group: usize,
    len: usize,
) -> Vec<f32> {
    let kv_heads = logits.len() / (spans.batch() * group * len);
    let mut scores = Vec::new();
    for (batch_head, heads) in logits.chunks(group * len).enumerate() {
        let sequence = batch_head / kv_heads;
        let valid = spans.start[sequence]..spans.end[sequence];
        let mut sums = vec![0.0; len];
        for head in heads.chunks(len) {
            let exp = |&logit: &f32| f64::from(logit).exp();
            let total: f64 = head[valid.clone()].iter().map(exp).sum();
            for (sum, logit) in sums.iter_mut().zip(head) {
                *sum += match config.group_score {
                    GroupScore::Logits => f64::from(*logit),
                    GroupScore::Probabilities => exp(logit) / total,
                };
            }
        }
        scores.extend(sums.into_iter().map(|sum| sum as f32));
    }
    scores
}

/// Rows of a verification are added in other places, and beside other rows, than alone.
#[test]
fn sum_of_lanes_does_not_depend_on_its_place() {
    struct Sums<'a>(&'a [f32]);
    impl Kernel for Sums<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let (lanes, other) = (simd.load(self.0), simd.load(&self.0[16..]));
            let expected = simd.sums([lanes; 4])[0].to_bits();
            for place in 0..4 {
                let mut vectors = [other; 4];
                vectors[place] = lanes;
                assert_eq!(simd.sums(vectors)[place].to_bits(), expected);
            }
        }
    }
    for seed in 0..50 {
        let values: Vec<f32> = (0..32)
            .map(|lane| ((seed * 32 + lane) as f32 * 12.9898).sin() * 10f32.powi(lane % 5))
            .collect();
        for level in Level::all() {
            level.run(Sums(&values));
        }
    }
}
