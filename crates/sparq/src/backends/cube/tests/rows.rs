//! Rows in codes of 8 bits, against the reference on a CPU.

use burn::tensor::{Device, Distribution, FloatDType, Tensor};

use super::devices;
use crate::attention::rotary::Rotary;
use crate::methods::{Dense, GroupScore, MeanValue};
use crate::{KvCache, KvCacheConfig, Method, RotaryConfig, RowFormat, Sketch, SparqConfig, ops};

const KV_HEADS: usize = 2;

/// A cache on a GPU and the same on a CPU.
struct Pair {
    caches: [KvCache; 2],
    devices: [Device; 2],
    rotary: [Rotary; 2],
    dim: usize,
    group: usize,
}

impl Pair {
    fn new(gpu: &Device, sketch: Option<Sketch>, dim: usize, group: usize) -> Self {
        let devices = [gpu.clone(), Device::flex()];
        let config = KvCacheConfig::new(2, KV_HEADS, dim)
            .with_capacity(64)
            .with_dtype(FloatDType::F32)
            .with_rows(RowFormat::Int8)
            .with_sketch(sketch);
        let rotary = RotaryConfig::new(dim);
        Self {
            caches: devices
                .each_ref()
                .map(|device| config.init(device).unwrap()),
            rotary: devices
                .each_ref()
                .map(|device| rotary.init(device).unwrap()),
            devices,
            dim,
            group,
        }
    }

    /// Draws the same numbers for both devices, [2, heads, len, d].
    fn random(&self, heads: usize, len: usize) -> [Tensor<4>; 2] {
        let shape = [2, heads, len, self.dim];
        let drawn =
            Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &self.devices[1]).to_data();
        self.devices
            .each_ref()
            .map(|device| Tensor::from_data(drawn.clone(), device))
    }

    /// Prepares tokens in both caches, and compares the caches and the attention of the queries.
    fn prepare(&mut self, len: usize) {
        let queries = self.random(KV_HEADS * self.group, len);
        let (keys, values) = (self.random(KV_HEADS, len), self.random(KV_HEADS, len));
        let mut outputs = Vec::new();
        for (index, q) in queries.into_iter().enumerate() {
            let cache = &mut self.caches[index];
            let (k, v) = (keys[index].clone(), values[index].clone());
            let q = cache.prepare(q, k, v, Some(&self.rotary[index])).unwrap();
            let tensors = cache.tensors();
            let rows = [tensors.k.clone(), tensors.v.clone()];
            let spans = tensors.spans.clone();
            outputs.push(ops::causal_attention(
                q,
                rows,
                spans,
                cache.spans(),
                None,
                None,
            ));
        }
        self.compare_contents();
        assert_near(&outputs[0], &outputs[1], 1.0, "causal attention");
    }

    /// Compares the rows and the sum of V.
    fn compare_contents(&self) {
        let [found, expected] = self.caches.each_ref().map(|cache| {
            let (tensors, len) = (cache.tensors(), cache.len());
            [
                tensors.k.at(0..len),
                tensors.v.at(0..len),
                tensors.v_sum.clone().unsqueeze_dim(2),
            ]
        });
        // RoPE may differ in the last bit, and so a code by 1.
        for (what, (found, expected)) in ["keys", "values", "the sum of V"]
            .into_iter()
            .zip(found.iter().zip(&expected))
        {
            assert_near(found, expected, 0.05, what);
        }
        assert_eq!(self.caches[0].memory(), self.caches[1].memory());
    }

    /// Compares a decode step.
    fn decode(&mut self, method: &Method) {
        let queries = self.random(KV_HEADS * self.group, 1);
        let outputs: Vec<Tensor<4>> = queries
            .into_iter()
            .zip(&mut self.caches)
            .map(|(q, cache)| method.decode(q, cache).unwrap())
            .collect();
        assert_near(&outputs[0], &outputs[1], 1.0, &method.to_string());
    }
}

/// Asserts that all numbers are near, and that at most the share `far` differs by more than an
/// operation in fp32 does.
fn assert_near(found: &Tensor<4>, expected: &Tensor<4>, far: f32, what: &str) {
    let [found, expected] = [found, expected].map(|tensor| {
        let data = tensor.clone().cast(FloatDType::F32).into_data();
        data.iter::<f32>().collect::<Vec<f32>>()
    });
    let pairs = || found.iter().zip(&expected);
    let difference = pairs().fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    let differ = pairs().filter(|(a, b)| (*a - *b).abs() > 1e-4).count();
    assert!(
        pairs().all(|(a, b)| (a - b).is_finite()),
        "{what}: not finite"
    );
    assert!(difference <= 0.05, "{what}: {difference}");
    let count = found.len();
    assert!(
        differ as f32 <= far * count as f32,
        "{what}: {differ} of {count} differ"
    );
}

#[test]
fn codes_of_rows_equal_those_of_the_reference() {
    let sketches = [
        None,
        Some(Sketch::Full),
        Some(Sketch::Bits8),
        Some(Sketch::Bits4),
    ];
    for gpu in devices() {
        for sketch in sketches {
            for (dim, group) in [(64, 3), (20, 1), (128, 4)] {
                let mut pair = Pair::new(&gpu, sketch, dim, group);
                let dense = Method::from(Dense::default());
                // All positions but a few are selected, so that few choices are close.
                let sparq = sketch.map(|sketch| {
                    let config = SparqConfig::new(dim, 40).with_sketch(sketch);
                    let config = config.with_mean_value(MeanValue::Always);
                    Method::from(config.with_group_score(GroupScore::Logits))
                });
                for len in [45, 1, 1, 7, 1, 40, 1] {
                    pair.prepare(len);
                    pair.decode(&dense);
                    if pair.caches[0].len() <= 40 {
                        pair.decode(&sparq.unwrap_or(dense));
                    }
                }
                if let Some(method) = sparq {
                    let all = pair.caches[0].len();
                    let Method::Sparq(config) = method else {
                        unreachable!()
                    };
                    let method = SparqConfig {
                        top_k: all - 1,
                        local_window: 8,
                        ..config
                    };
                    pair.decode(&method.into());
                }
            }
        }
    }
}
