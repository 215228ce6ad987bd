//! The native kernels of the `flex` backend: decode steps against fp64, within the error of fp32
//! sums, and appends against tensor operations.

mod fp64;

use burn::tensor::{Device, FloatDType, Tensor};
use sparq::methods::{Anchors, Components, GroupScore, Magnitude, MeanValue};
use sparq::ops::{CacheTensors, SketchTensors, Spans};
use sparq::{KvCache, Method, RowFormat, Sketch, SparqConfig, ops, reference};

use self::fp64::{check_dense, check_sparq, read};
use crate::common::{ALL_SKETCHES, Noise, SKETCHES, cache_config, new_cache, values};

const DTYPES: [FloatDType; 3] = [FloatDType::F32, FloatDType::F16, FloatDType::BF16];

/// A generator of random settings.
struct Choice(u64);

impl Choice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
    fn within(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last + 1 - first)
    }
    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    batch: usize,
    kv_heads: usize,
    group: usize,
    dim: usize,
    len: usize,
    dtype: FloatDType,
    ragged: bool,
}

/// A shape of which the tests change some sizes.
const SHAPE: Shape = Shape {
    batch: 1,
    kv_heads: 2,
    group: 2,
    dim: 64,
    len: 300,
    dtype: FloatDType::F16,
    ragged: false,
};

/// Returns a cache filled with noise and a query for it.
fn problem(shape: Shape, config: &SparqConfig, choice: &mut Choice) -> (KvCache, Tensor<4>) {
    let device = Device::flex();
    let Shape {
        batch,
        kv_heads,
        group,
        dim,
        len,
        dtype,
        ragged,
    } = shape;
    let config = cache_config([batch, kv_heads, dim], Some(config.sketch))
        .with_capacity(len)
        .with_dtype(dtype)
        .with_rows(config.rows);
    let mut cache = new_cache(&config, &device);
    let mut noise = Noise(choice.0);
    let mut counts = vec![len; batch];
    if ragged {
        for count in &mut counts[1..] {
            *count = choice.within(1, len);
        }
        let padding: Vec<usize> = counts.iter().map(|&count| choice.below(count)).collect();
        cache.set_left_padding(&padding).unwrap();
    }
    let [k, v] = noise.tensors([batch, kv_heads, len, dim], &device);
    cache.append_ragged(k, v, &counts).unwrap();
    let q = noise.tensor([batch, kv_heads * group, 1, dim], &device);
    (cache, q.cast(dtype))
}

fn random_config(choice: &mut Choice, dim: usize, len: usize) -> SparqConfig {
    let top_k = choice.within(1, len);
    SparqConfig {
        rank: choice.within(1, dim),
        top_k,
        local_window: choice.of(&[0, 1, top_k / 4, top_k]),
        sketch: choice.of(&SKETCHES),
        mean_value: choice.of(&[MeanValue::Always, MeanValue::Never, MeanValue::Paper]),
        group_score: choice.of(&[GroupScore::Probabilities, GroupScore::Logits]),
        components: choice.of(&[Components::SumAbs, Components::AbsSum]),
        magnitude: choice.of(&[Magnitude::Query, Magnitude::Contribution]),
        rows: RowFormat::Float,
        anchors: Anchors::All,
    }
}

/// Checks random problems with at most `longest` positions.
fn check_random_problems(cases: u64, longest: usize, dims: &[usize]) {
    for case in 0..cases {
        let mut choice = Choice((case + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let shape = Shape {
            batch: choice.within(1, 3),
            kv_heads: choice.within(1, 3),
            group: choice.of(&[1, 2, 3, 4, 5, 8]),
            dim: choice.of(dims),
            len: choice.within(1, longest),
            dtype: choice.of(&DTYPES),
            ragged: choice.below(2) == 0,
        };
        let mut config = random_config(&mut choice, shape.dim, shape.len);
        // A full sketch of 16 bits would round the rounded keys again.
        let once = config.sketch != Sketch::Full || shape.dtype == FloatDType::F32;
        if shape.dim.is_multiple_of(4) && once {
            config.rows = choice.of(&[RowFormat::Float, RowFormat::Int8]);
        }
        let (mut cache, q) = problem(shape, &config, &mut choice);
        check_dense(shape, &mut cache, &q);
        check_sparq(shape, &mut cache, &q, &config);
    }
}

#[test]
fn short_caches_match_fp64() {
    check_random_problems(300, 200, &[32, 64, 80, 96, 128, 256]);
}

#[test]
fn odd_head_dims_match_fp64() {
    check_random_problems(100, 150, &[1, 2, 3, 7, 20, 33, 100]);
}

#[test]
fn long_caches_match_fp64() {
    check_random_problems(24, 4000, &[32, 64, 80, 96, 128]);
}

#[test]
fn one_head_divided_among_threads_matches_fp64() {
    for (case, sketch) in SKETCHES.into_iter().enumerate() {
        for (group, group_score) in [
            (1, GroupScore::Probabilities),
            (4, GroupScore::Probabilities),
            (4, GroupScore::Logits),
        ] {
            let mut choice = Choice(77 + case as u64);
            let shape = Shape {
                kv_heads: 1,
                group,
                len: 9001,
                dtype: DTYPES[case],
                ragged: true,
                ..SHAPE
            };
            let config = SparqConfig::new(16, 1500)
                .with_sketch(sketch)
                .with_group_score(group_score)
                .with_mean_value(MeanValue::Always);
            let (mut cache, q) = problem(shape, &config, &mut choice);
            check_dense(shape, &mut cache, &q);
            check_sparq(shape, &mut cache, &q, &config);
        }
    }
}

#[test]
fn steps_are_deterministic() {
    let mut choice = Choice(5);
    let shape = Shape {
        group: 4,
        len: 6000,
        ..SHAPE
    };
    let config = SparqConfig::new(16, 900).with_sketch(Sketch::Bits4);
    let (mut cache, q) = problem(shape, &config, &mut choice);
    let dense = values(&Method::DENSE.decode(q.clone(), &mut cache).unwrap());
    let sparq = config.decode_traced(q.clone(), &mut cache).unwrap();
    for _ in 0..20 {
        let again = Method::DENSE.decode(q.clone(), &mut cache).unwrap();
        assert_eq!(values(&again), dense);
        let again = config.decode_traced(q.clone(), &mut cache).unwrap();
        assert_eq!(values(&again.output), values(&sparq.output));
        assert_eq!(
            again.positions.into_data(),
            sparq.positions.clone().into_data()
        );
    }
}

#[test]
fn fp64_caches_run_the_reference() {
    let mut choice = Choice(6);
    let shape = Shape {
        batch: 2,
        dim: 32,
        len: 100,
        dtype: FloatDType::F64,
        ragged: true,
        ..SHAPE
    };
    for sketch in SKETCHES {
        let config = SparqConfig::new(8, 20).with_sketch(sketch);
        let (mut cache, q) = problem(shape, &config, &mut choice);
        check_dense(shape, &mut cache, &q);
        check_sparq(shape, &mut cache, &q, &config);
    }
}

#[test]
fn outputs_have_the_type_of_the_query() {
    let mut choice = Choice(8);
    let config = SparqConfig::new(16, 40).with_sketch(Sketch::Bits8);
    let (mut cache, q) = problem(SHAPE, &config, &mut choice);
    let shape = Shape {
        dtype: FloatDType::F32,
        ..SHAPE
    };
    let q = q.cast(FloatDType::F32);
    check_dense(shape, &mut cache, &q);
    check_sparq(shape, &mut cache, &q, &config);
}

/// Returns the bits of every buffer of a cache.
fn contents(tensors: &CacheTensors) -> Vec<Vec<u32>> {
    let floats =
        |tensor: Tensor<1>| -> Vec<u32> { values(&tensor).into_iter().map(f32::to_bits).collect() };
    let mut all = vec![
        floats(tensors.k.floats().flatten(0, 3)),
        floats(tensors.v.floats().flatten(0, 3)),
        floats(tensors.v_sum.clone().flatten(0, 2)),
        read(tensors.spans.clone()),
    ];
    match tensors.sketch.clone() {
        SketchTensors::None => {}
        SketchTensors::Full(kt) => all.push(floats(kt.flatten(0, 3))),
        SketchTensors::Codes {
            codes,
            zero_point,
            scale,
            ..
        } => {
            all.push(read(codes));
            all.push(floats(zero_point.flatten(0, 2)));
            all.push(floats(scale.flatten(0, 2)));
        }
    }
    all
}

#[test]
fn append_equals_tensor_operations() {
    for dtype in DTYPES {
        for sketch in ALL_SKETCHES {
            for encode in [false, true] {
                for rows in [RowFormat::Float, RowFormat::Int8] {
                    check_appends(dtype, rows, sketch, encode);
                }
            }
        }
    }
}

/// Compares the buffers after each of several ragged appends.
fn check_appends(dtype: FloatDType, rows: RowFormat, sketch: Option<Sketch>, encode: bool) {
    let device = Device::flex();
    let config = cache_config([3, 2, 20], sketch)
        .with_dtype(dtype)
        .with_rows(rows);
    let mut noise = Noise(3);
    let mut cache = new_cache(&config.with_capacity(64), &device);
    // The third sequence is still in its padding, so its token must not change the sum of V.
    cache.set_left_padding(&[0, 2, 30]).unwrap();
    let prefill = noise.tensor([3, 2, 21, 20], &device);
    cache
        .append_ragged(prefill.clone(), prefill, &[21, 13, 20])
        .unwrap();
    cache.refresh_sketch();
    let mut native = cache.tensors().clone();
    let mut expected = native.clone();
    let mut spans: Spans = cache.spans().clone();
    for counts in [[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 1]] {
        let mut token = noise.values(3 * 2 * 20);
        token[3] = f32::NAN;
        token[44] = f32::INFINITY;
        token[85] = -1e4;
        let token = Tensor::<1>::from_floats(token.as_slice(), &device).reshape([3, 2, 1, 20]);
        // A projection stores positions before heads, so k is not contiguous.
        let k = token.clone().reshape([3, 1, 2, 20]).swap_dims(1, 2);
        let v = token * 0.5;
        native = ops::append(native, k.clone(), v.clone(), &spans, &counts, encode);
        expected = reference::append::append(expected, k, v, &spans, &counts, encode);
        spans = spans.grown(&counts);
        assert_eq!(
            contents(&native),
            contents(&expected),
            "{dtype:?} {rows} {sketch:?} encode {encode}"
        );
    }
}
