//! Prefills of few tokens against decode steps, and rolling a cache back to a mark.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use sparq::{
    KvCache, Method, RotaryConfig, Sketch, SparqAttention, SparqAttentionConfig, SparqConfig,
};

use crate::common::{
    ALL_SKETCHES, Noise, cache_config, devices, max_difference, new_cache, values,
};

/// Two layers, so that differences in the first reach the keys of the second.
struct Model {
    layers: Vec<SparqAttention>,
    width: usize,
    dtype: FloatDType,
    device: Device,
}

impl Model {
    fn new(
        [width, heads, kv_heads, d]: [usize; 4],
        window: Option<usize>,
        dtype: FloatDType,
        device: &Device,
    ) -> Self {
        device.seed(7);
        let config = SparqAttentionConfig::new(width, heads, kv_heads, d)
            .with_rotary(Some(RotaryConfig::new(d)))
            .with_window(window);
        // The weights [out, in] of a checkpoint.
        let linear = |[from, to]: [usize; 2]| {
            let normal = Distribution::Normal(0.0, (from as f64).powf(-0.5));
            let weight = Tensor::<2>::random([to, from], normal, device).cast(dtype);
            Linear {
                weight: Param::from_tensor(weight.transpose()),
                bias: None,
            }
        };
        let sizes = [
            [width, heads * d],
            [width, kv_heads * d],
            [width, kv_heads * d],
            [heads * d, width],
        ];
        let layer = || config.init_with(sizes.map(linear)).unwrap();
        Self {
            layers: vec![layer(), layer()],
            width,
            dtype,
            device: device.clone(),
        }
    }

    fn random(&self, batch: usize, len: usize) -> Tensor<3> {
        let shape = [batch, len, self.width];
        let x = Tensor::<3>::random(shape, Distribution::Normal(0.0, 1.0), &self.device);
        x.cast(self.dtype)
    }

    fn caches(&self, batch: usize, method: &Method) -> Vec<KvCache> {
        let cache = |layer: &SparqAttention| layer.new_cache(batch, 64, method).unwrap();
        self.layers.iter().map(cache).collect()
    }

    /// Runs a prefill, or a decode step with a method.
    fn run(&self, x: Tensor<3>, caches: &mut [KvCache], method: Option<&Method>) -> Tensor<3> {
        let layers = self.layers.iter().zip(caches);
        layers.fold(x, |x, (layer, cache)| match method {
            None => layer.forward(x, Some(cache)).unwrap(),
            Some(method) => layer.decode(x, cache, method).unwrap(),
        })
    }
}

/// Compares a prefill of `len` tokens with as many dense decode steps, after `before` positions.
fn compare(model: &Model, before: usize, len: usize, counts: &[usize], padding: &[usize]) {
    let batch = counts.len();
    let mut caches = model.caches(batch, &Method::DENSE);
    for cache in &mut caches {
        cache.set_left_padding(padding).unwrap();
    }
    model.run(model.random(batch, before), &mut caches, None);
    for cache in &mut caches {
        let mark = cache.mark();
        let shape = [batch, cache.config().kv_heads, 8, cache.config().head_dim];
        let [k, v] = Noise(3).tensors(shape, &model.device);
        cache.append(k, v).unwrap();
        cache.roll_back(&mark, counts).unwrap();
    }
    let x = model.random(batch, len);
    let mut stepped = caches.clone();
    let steps = (0..len).map(|t| {
        let x = x.clone().slice_dim(1, t..t + 1);
        model.run(x, &mut stepped, Some(&Method::DENSE))
    });
    let steps = Tensor::cat(steps.collect(), 1);
    let whole = model.run(x, &mut caches, None);
    let case = format!("{before} and {len}, {counts:?}, {:?}", model.dtype);
    let exact = format!("{:?}", model.device).contains("Flex");
    let alike = |a: &[f32], b: &[f32], what: &str| {
        let pairs = || std::iter::zip(a, b);
        let difference = pairs().fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        let differ = pairs().filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        let alike = if exact {
            differ == 0
        } else {
            difference < 1e-2
        };
        assert!(
            alike,
            "{what}: {case}: {differ} values differ, by {difference}"
        );
    };
    alike(&values(&whole), &values(&steps), "outputs");
    for (whole, steps) in caches.iter().zip(&stepped) {
        let (whole, steps) = (whole.tensors(), steps.tensors());
        alike(&values(&whole.k), &values(&steps.k), "keys");
        alike(&values(&whole.v), &values(&steps.v), "values");
        assert_eq!(whole.spans.to_data(), steps.spans.to_data());
    }
}

#[test]
fn few_tokens_equal_decode_steps_bit_for_bit() {
    for device in devices() {
        for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
            if !device.supports_dtype(dtype) {
                continue;
            }
            // Inputs of several blocks, one head with many parts, and head sizes of partial
            // vectors.
            for shape in [[1600, 2, 1, 64], [96, 4, 4, 24], [64, 8, 1, 16]] {
                let model = Model::new(shape, None, dtype, &device);
                for (before, len) in [(1, 2), (30, 5), (300, 4), (2100, 3), (2100, 9), (511, 16)] {
                    compare(&model, before, len, &[0], &[0]);
                }
                compare(&model, 540, 6, &[0, 7, 3], &[0, 0, 0]);
                compare(&model, 20, 6, &[0, 0], &[5, 0]);
                let model = Model::new(shape, Some(37), dtype, &device);
                compare(&model, 35, 5, &[0, 1], &[0, 0]);
                compare(&model, 300, 5, &[2, 0], &[0, 0]);
            }
        }
    }
}

#[test]
fn rolling_back_gives_the_cache_before_the_appends() {
    for device in devices() {
        for sketch in ALL_SKETCHES {
            for window in [None, Some(12)] {
                let config = cache_config([2, 2, 24], sketch).with_window(window);
                let mut noise = Noise(11);
                let [k, v] = noise.tensors([2, 2, 40, 24], &device);
                let mut cache = new_cache(&config, &device);
                cache.append(k.clone(), v.clone()).unwrap();
                cache.refresh_sketch();
                let mark = cache.mark();
                let [wrong_k, wrong_v] = noise.tensors([2, 2, 6, 24], &device);
                cache.append(wrong_k.clone(), wrong_v.clone()).unwrap();
                cache.roll_back(&mark, &[2, 5]).unwrap();
                assert_eq!(cache.spans().end, [42, 45]);
                // The cache that got only the kept positions.
                let mut kept = new_cache(&config, &device);
                kept.append(k, v).unwrap();
                kept.refresh_sketch();
                kept.append_ragged(wrong_k, wrong_v, &[2, 5]).unwrap();
                let (found, want) = (cache.tensors(), kept.tensors());
                assert_eq!(found.spans.to_data(), want.spans.to_data());
                assert!(max_difference(&found.v_sum, &want.v_sum) < 1e-4);
                let method = match sketch {
                    None => Method::DENSE,
                    Some(sketch) => SparqConfig::new(8, 10).with_sketch(sketch).into(),
                };
                let q = noise.tensor([2, 4, 1, 24], &device);
                let steps = [&mut cache, &mut kept].map(|cache| {
                    let [k, v] = Noise(5).tensors([2, 2, 1, 24], &device);
                    cache.append(k, v).unwrap();
                    method.decode(q.clone(), cache).unwrap()
                });
                assert!(max_difference(&steps[0], &steps[1]) < 1e-4, "{sketch:?}");
            }
        }
    }
}

#[test]
fn rolling_back_too_far_is_an_error() {
    for device in devices() {
        let mut cache = new_cache(&cache_config([1, 1, 8], Some(Sketch::Full)), &device);
        let [k, v] = Noise(1).tensors([1, 1, 3, 8], &device);
        cache.append(k.clone(), v.clone()).unwrap();
        let mark = cache.mark();
        cache.append(k, v).unwrap();
        let error = cache.roll_back(&mark, &[4]).unwrap_err().to_string();
        assert!(
            error.contains("at most 3") && error.contains('4'),
            "{error}"
        );
        let error = cache.roll_back(&mark, &[1, 1]).unwrap_err().to_string();
        assert!(error.contains("1 entries"), "{error}");
        assert_eq!(cache.len(), 6);
    }
}
