//! Caches whose rows are codes of 8 bits, against caches in floats that hold the rounded rows.

use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use sparq::methods::{Dense, MeanValue};
use sparq::{
    KvCache, KvCacheConfig, Method, RotaryConfig, RowFormat, Sketch, SparqAttention,
    SparqAttentionConfig, SparqConfig,
};

use crate::common::{
    ALL_SKETCHES, Noise, SKETCHES, cache_config, devices, max_difference, new_cache, positions,
    values,
};

const INT8: RowFormat = RowFormat::Int8;

/// Returns SparQ on a sketch, always with the mean value, or dense attention without one.
fn method(sketch: Option<Sketch>) -> Method {
    sketch.map_or(Dense { rows: INT8 }.into(), |sketch| {
        SparqConfig::new(6, 20)
            .with_sketch(sketch)
            .with_mean_value(MeanValue::Always)
            .with_rows(INT8)
            .into()
    })
}

/// A cache in codes, and one in floats to which the rounded rows are appended.
struct Twins {
    codes: KvCache,
    floats: KvCache,
}

impl Twins {
    fn new(config: &KvCacheConfig, padding: &[usize], device: &Device) -> Self {
        let cache = |rows| {
            let mut cache = new_cache(&config.with_rows(rows), device);
            cache.set_left_padding(padding).unwrap();
            cache
        };
        Self {
            codes: cache(INT8),
            floats: cache(RowFormat::Float),
        }
    }

    fn append(&mut self, k: &Tensor<4>, v: &Tensor<4>, counts: &[usize]) {
        let len = k.dims()[2];
        let before = self.codes.spans().end.clone();
        self.codes
            .append_ragged(k.clone(), v.clone(), counts)
            .unwrap();
        let tensors = self.codes.tensors();
        let rounded = [&tensors.k, &tensors.v].map(|rows| {
            let of = |(b, &end): (usize, &usize)| rows.at(end..end + len).slice_dim(0, b..b + 1);
            Tensor::cat(before.iter().enumerate().map(of).collect(), 0)
        });
        let [k, v] = rounded;
        self.floats.append_ragged(k, v, counts).unwrap();
    }

    fn each(&mut self, change: impl Fn(&mut KvCache)) {
        change(&mut self.codes);
        change(&mut self.floats);
    }

    fn assert_step(&mut self, method: &Method, q: &Tensor<4>, case: &str) {
        let want = method.decode(q.clone(), &mut self.floats).unwrap();
        let got = method.decode(q.clone(), &mut self.codes).unwrap();
        let difference = max_difference(&got, &want);
        assert!(difference < 1e-5, "{case}: {difference}");
    }
}

#[test]
fn steps_equal_those_of_the_rounded_rows_in_floats() {
    for device in devices() {
        for sketch in ALL_SKETCHES {
            for window in [None, Some(50)] {
                let (case, method) = (format!("{sketch:?} {window:?}"), method(sketch));
                let config = cache_config([2, 2, 16], sketch).with_window(window);
                let mut twins = Twins::new(&config.with_capacity(200), &[0, 5], &device);
                let (q, [k, v]) = Noise(3).problem([2, 2, 130, 16], 6, &device);
                let part = |t: &Tensor<4>, at: usize, len| positions(t, at..at + len);
                twins.append(&part(&k, 0, 100), &part(&v, 0, 100), &[100, 80]);
                twins.assert_step(&method, &q, &case);
                for at in 100..110 {
                    twins.append(&part(&k, at, 1), &part(&v, at, 1), &[1, 1]);
                    twins.assert_step(&method, &q, &case);
                }
                let mut marks = [twins.codes.mark(), twins.floats.mark()];
                twins.append(&part(&k, 110, 4), &part(&v, 110, 4), &[4, 4]);
                twins.codes.roll_back(&mut marks[0], &[1, 3]).unwrap();
                twins.floats.roll_back(&mut marks[1], &[1, 3]).unwrap();
                twins.assert_step(&method, &q, &case);
                twins.each(|cache| cache.truncate(60));
                twins.assert_step(&method, &q, &case);
            }
        }
    }
}

fn attention(window: Option<usize>, device: &Device) -> SparqAttention {
    device.seed(5);
    SparqAttentionConfig::new(32, 4, 2, 16)
        .with_rotary(Some(RotaryConfig::new(16)))
        .with_window(window)
        .init(device)
        .unwrap()
}

#[test]
fn prompts_may_be_divided_anywhere() {
    for device in devices() {
        for window in [None, Some(20)] {
            let attention = attention(window, &device);
            let x = Tensor::<3>::random([2, 70, 32], Distribution::Normal(0.0, 1.0), &device);
            let prefill = |cuts: &[usize]| {
                let mut cache = attention.new_cache(2, 8, &method(None)).unwrap();
                let parts = cuts.windows(2).map(|cut| {
                    let part = x.clone().slice_dim(1, cut[0]..cut[1]);
                    attention.forward(part, Some(&mut cache)).unwrap()
                });
                let y = Tensor::cat(parts.collect(), 1);
                (y, cache.tensors().k.at(0..70))
            };
            let (whole, keys) = prefill(&[0, 70]);
            for cuts in [vec![0, 33, 70], vec![0, 1, 40, 42, 69, 70]] {
                let (y, k) = prefill(&cuts);
                assert!(max_difference(&y, &whole) < 1e-5, "{cuts:?} {window:?}");
                // A projection of other shape may differ in the last bits, and a code by 1.
                assert!(max_difference(&k, &keys) < 0.02, "{cuts:?} {window:?}");
            }
            // The rounding itself is seen.
            let floats = attention.forward(x.clone(), None).unwrap();
            let rounding = max_difference(&whole, &floats);
            assert!((1e-4..0.1).contains(&rounding), "{rounding}");
        }
    }
}

#[test]
fn a_prefilled_cache_is_rounded_for_a_method() {
    for device in devices() {
        let (q, [k, v]) = Noise(4).problem([2, 2, 90, 16], 6, &device);
        let floats = cache_config([2, 2, 16], None);
        let mut prefilled = new_cache(&floats, &device);
        prefilled.append(k.clone(), v.clone()).unwrap();
        for sketch in SKETCHES.map(Some).into_iter().chain([None]) {
            let method = method(sketch);
            let mut rounded = prefilled.for_method(&method).unwrap();
            let mut own = new_cache(&floats.with_sketch(sketch).with_rows(INT8), &device);
            own.append(k.clone(), v.clone()).unwrap();
            assert_eq!(rounded.memory(), own.memory());
            let got = method.decode(q.clone(), &mut rounded).unwrap();
            let want = method.decode(q.clone(), &mut own).unwrap();
            assert!(max_difference(&got, &want) < 1e-5, "{sketch:?}");
            let sums = [&rounded, &own].map(|cache| cache.tensors().v_sum.clone());
            assert!(max_difference(&sums[0], &sums[1]) < 1e-4, "{sketch:?}");
        }
        // Rounding cannot be undone.
        let rounded = prefilled.for_method(&method(None)).unwrap();
        let error = rounded.for_method(&Method::DENSE).unwrap_err().to_string();
        assert_eq!(error, "rows of the cache: expected float, found int8");
    }
}

#[test]
fn rows_in_8_bits_take_half_the_memory() {
    let device = &devices()[0];
    let memory = |rows, dtype| {
        let config = KvCacheConfig::new(2, 3, 64)
            .with_capacity(128)
            .with_dtype(dtype);
        new_cache(&config.with_rows(rows), device).memory()
    };
    let floats = memory(RowFormat::Float, FloatDType::F32);
    let codes = memory(INT8, FloatDType::F32);
    assert_eq!(floats.keys, 2 * 3 * 128 * 64 * 4);
    assert_eq!(
        (codes.keys, codes.values),
        (2 * 3 * 128 * (64 + 4), codes.keys)
    );
    assert_eq!(codes.sums, floats.sums);
}

#[test]
fn a_row_of_nan_reaches_only_its_outputs() {
    for device in devices() {
        let (q, [k, v]) = Noise(6).problem([1, 2, 40, 16], 4, &device);
        let mut cache = new_cache(&cache_config([1, 2, 16], None).with_rows(INT8), &device);
        let infinite = v
            .clone()
            .slice_fill([0..1, 1..2, 7..8, 3..4], f32::INFINITY);
        cache.append(k, infinite).unwrap();
        let y = values(&method(None).decode(q, &mut cache).unwrap());
        // Query heads 0 and 1 read KV head 0.
        assert!(y[..32].iter().all(|y| y.is_finite()));
        assert!(y[32..].iter().all(|y| y.is_nan()));
    }
}

#[test]
fn a_head_dim_that_is_no_multiple_of_4_is_refused() {
    let expected = "rows: expected float, or a head_dim that is a multiple of 4, found int8 with a \
                    head_dim of 6";
    let config = KvCacheConfig::new(1, 1, 6).with_rows(INT8);
    let error = config.init(&devices()[0]).unwrap_err();
    assert_eq!(error.to_string(), expected);
    for method in [method(None), SparqConfig::new(2, 4).with_rows(INT8).into()] {
        assert_eq!(method.validate(6).unwrap_err().to_string(), expected);
        assert!(method.validate(8).is_ok());
    }
}

#[test]
fn methods_name_their_rows() {
    for (text, rows) in [("dense", RowFormat::Float), ("dense:rows=int8", INT8)] {
        let method: Method = text.parse().unwrap();
        assert_eq!((method.rows(), method.to_string()), (rows, text.to_owned()));
    }
    let sparq: Method = "sparq-4bit:r=16,k=256,rows=int8".parse().unwrap();
    assert!(sparq.to_string().ends_with(",components=sum-abs,rows=int8"));
    assert_eq!(sparq.to_string().parse::<Method>().unwrap(), sparq);
    let json = serde_json::to_string(&sparq).unwrap();
    assert!(json.contains(r#""rows":"int8""#), "{json}");
    assert_eq!(serde_json::from_str::<Method>(&json).unwrap(), sparq);
    // Files from before rows had a format.
    let json = serde_json::to_string(&Method::from(SparqConfig::new(1, 1))).unwrap();
    assert!(!json.contains("rows"), "{json}");
}
