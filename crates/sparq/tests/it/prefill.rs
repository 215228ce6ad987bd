//! Causal attention of many queries against fp64 on the host.

use burn::tensor::{Device, FloatDType, Tensor};
use sparq::ops::causal_attention;
use sparq::{KvCache, KvCacheConfig, Method, Sketch, SparqAttentionConfig, SparqConfig};

use crate::common::{Noise, cache_config, devices, max_difference, new_cache, tf32_error, values};

const F32: FloatDType = FloatDType::F32;

/// Queries after the positions that a cache holds.
#[derive(Clone, Debug)]
struct Case {
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    len: usize,
    /// The positions of each sequence before the queries.
    before: Vec<usize>,
    padding: Vec<usize>,
    window: Option<usize>,
    /// The types of the queries and of the cache.
    dtypes: [FloatDType; 2],
}

impl Case {
    fn new(len: usize, before: usize, [kv_heads, group, head_dim]: [usize; 3]) -> Self {
        Self {
            kv_heads,
            group,
            head_dim,
            len,
            before: vec![before],
            padding: vec![0],
            window: None,
            dtypes: [F32; 2],
        }
    }

    /// Returns a cache with the keys and values, NaN after its end, and the queries.
    fn filled(&self, noise: &mut Noise, device: &Device) -> (Tensor<4>, KvCache) {
        let [batch, heads, d] = [self.before.len(), self.kv_heads, self.head_dim];
        let longest = self.before.iter().max().unwrap() + self.len;
        let config = KvCacheConfig::new(batch, heads, d)
            .with_capacity(longest + 40)
            .with_dtype(self.dtypes[1])
            .with_window(self.window);
        let mut cache = new_cache(&config, device);
        let nan = Tensor::<4>::full([batch, heads, cache.capacity(), d], f32::NAN, device);
        cache.append(nan.clone(), nan).unwrap();
        cache.clear();
        cache.set_left_padding(&self.padding).unwrap();
        for counts in [self.before.clone(), vec![self.len; batch]] {
            let most = *counts.iter().max().unwrap();
            if most > 0 {
                let [k, v] = noise.tensors([batch, heads, most, d], device);
                cache.append_ragged(k, v, &counts).unwrap();
            }
        }
        let q = noise.tensor([batch, heads * self.group, self.len, d], device);
        (q.cast(self.dtypes[0]), cache)
    }

    fn attend(&self, q: Tensor<4>, cache: &KvCache) -> Tensor<4> {
        let tensors = cache.tensors();
        let rows = [tensors.k.clone(), tensors.v.clone()];
        causal_attention(
            q,
            rows,
            tensors.spans.clone(),
            cache.spans(),
            self.window,
            None,
        )
    }

    /// Compares attention with the definition in fp64.
    fn check(&self, device: &Device) {
        if self
            .dtypes
            .iter()
            .any(|&dtype| !device.supports_dtype(dtype))
        {
            return;
        }
        let (q, cache) = self.filled(&mut Noise(self.len as u64), device);
        let found = self.attend(q.clone(), &cache);
        assert_eq!(found.dims(), q.dims());
        assert_eq!(FloatDType::from(found.dtype()), self.dtypes[0]);
        let rows = [&cache.tensors().k, &cache.tensors().v].map(|rows| values(&rows.floats()));
        let (q, found) = (values(&q), values(&found));
        // Matrix units round weights and queries to the type of the cache.
        let unit = |dtype: FloatDType| match dtype {
            FloatDType::F16 => 2f64.powi(-11),
            FloatDType::BF16 => 2f64.powi(-8),
            _ => 0.0,
        };
        let [of_query, mut of_cache] = self.dtypes.map(unit);
        let d = self.head_dim;
        // The kernels read vectors of 4; other sizes are burn's products.
        if self.dtypes == [F32; 2] && !d.is_multiple_of(4) {
            of_cache = f64::from(tf32_error(device));
        }
        for (at, (q, found)) in q.chunks(d).zip(found.chunks(d)).enumerate() {
            if self.is_padding(at) {
                assert!(found.iter().all(|x| x.is_finite()), "{self:?}, query {at}");
                continue;
            }
            let (expected, size) = self.expected(at, q, &rows, cache.capacity());
            let of_logits = match self.dtypes[0] == self.dtypes[1] && self.dtypes[0] != F32 {
                true => 0.0,
                false => (2.0 * of_cache * size).exp() - 1.0,
            };
            for (expected, &found) in expected.into_iter().zip(found) {
                let error = (expected - f64::from(found)).abs();
                // The values are below 4.3 in size.
                let bound = 1e-5 + of_query * expected.abs() + 4.3 * (of_cache + of_logits);
                assert!(
                    error <= bound,
                    "{self:?}, query {at}: {error} above {bound}"
                );
            }
        }
    }

    /// Returns whether query `at` of [B, H, T] is left padding, whose result has no meaning.
    fn is_padding(&self, at: usize) -> bool {
        let sequence = at / self.len / self.group / self.kv_heads;
        self.before[sequence] + at % self.len < self.padding[sequence]
    }

    /// Returns the output of query `at` of [B, H, T], and the largest sum of the sizes of the
    /// products in a logit.
    fn expected(
        &self,
        at: usize,
        q: &[f32],
        [k, v]: &[Vec<f32>; 2],
        capacity: usize,
    ) -> (Vec<f64>, f64) {
        let d = self.head_dim;
        let (batch_head, query) = (at / self.len / self.group, at % self.len);
        let sequence = batch_head / self.kv_heads;
        let own = self.before[sequence] + query;
        let window = self.window.unwrap_or(usize::MAX);
        let first = self.padding[sequence].min(own);
        let first = first.max((own + 1).saturating_sub(window));
        let row = |position: usize| (batch_head * capacity + position) * d;
        let scale = (d as f64).sqrt();
        let mut size = 0f64;
        let mut logit = |position: usize| {
            let products = q.iter().zip(&k[row(position)..]);
            let products = products.map(|(&q, &k)| f64::from(q) * f64::from(k));
            let sizes: f64 = products.clone().map(f64::abs).sum();
            size = size.max(sizes / scale);
            (products.sum::<f64>() / scale).exp()
        };
        let weights: Vec<f64> = (first..=own).map(&mut logit).collect();
        let total: f64 = weights.iter().sum();
        let mut output = vec![0f64; d];
        for (position, weight) in (first..=own).zip(weights) {
            for (output, &value) in output.iter_mut().zip(&v[row(position)..]) {
                *output += weight / total * f64::from(value);
            }
        }
        (output, size)
    }
}

#[test]
fn causal_attention_equals_the_definition() {
    let types = [
        [F32, F32],
        [FloatDType::F16, FloatDType::F16],
        [F32, FloatDType::F16],
        [FloatDType::BF16, FloatDType::BF16],
        [F32, FloatDType::BF16],
        [FloatDType::F16, F32],
    ];
    let windows = [None, Some(3), None, Some(70), Some(1000)];
    for device in devices() {
        let mut number = 0;
        for len in [1, 2, 5, 16, 17, 64, 130] {
            for before in [0, 7, 300] {
                for group in [1, 4, 8] {
                    // Every length, group and head_dim, with changing types and windows.
                    for head_dim in [32, 64, 80, 96, 128, 256] {
                        number += 1;
                        let case = Case {
                            window: windows[number % 5],
                            dtypes: types[(number + number / 6) % 6],
                            ..Case::new(len, before, [1 + number / 3 % 2, group, head_dim])
                        };
                        case.check(&device);
                    }
                }
            }
        }
    }
}

#[test]
fn left_padding_and_ragged_batches_are_masked() {
    for device in devices() {
        for (before, padding) in [
            ([0, 0, 0], [0, 13, 70]),
            ([9, 9, 9], [3, 0, 12]),
            ([0, 70, 301], [0, 0, 0]),
            ([3, 200, 64], [2, 150, 65]),
        ] {
            for len in [1, 4, 71] {
                for window in [None, Some(50)] {
                    for dtype in [F32, FloatDType::F16] {
                        let case = Case {
                            before: before.to_vec(),
                            padding: padding.map(|n: usize| n.min(len + 300)).to_vec(),
                            window,
                            dtypes: [dtype; 2],
                            ..Case::new(len, 0, [2, 4, 64])
                        };
                        case.check(&device);
                    }
                }
            }
        }
    }
}

#[test]
fn unusual_head_dims_and_types_are_supported() {
    for device in devices() {
        for head_dim in [1, 6, 20, 36] {
            Case::new(37, 11, [2, 3, head_dim]).check(&device);
        }
        let double = Case {
            dtypes: [FloatDType::F64; 2],
            ..Case::new(37, 11, [2, 2, 8])
        };
        double.check(&device);
    }
}

/// A prompt in chunks, and in one piece, leaves the same outputs.
#[test]
fn chunks_of_a_prompt_equal_one_prefill() {
    for device in devices() {
        let attention = SparqAttentionConfig::new(32, 4, 2, 16)
            .init(&device)
            .unwrap();
        let x = Noise(3).tensor([1, 2, 300, 32], &device);
        let x = x.reshape([2, 300, 32]);
        let whole = attention.forward(x.clone(), None).unwrap();
        let mut cache = attention.new_cache(2, 10, &Method::DENSE).unwrap();
        for (from, to) in [(0, 130), (130, 133), (133, 300)] {
            let part = x.clone().slice_dim(1, from..to);
            let y = attention.forward(part, Some(&mut cache)).unwrap();
            let expected = whole.clone().slice_dim(1, from..to);
            assert!(max_difference(&y, &expected) < 1e-5, "{from}..{to}");
        }
    }
}

/// The sketch that is set at the end of a prompt serves the next steps without new ranges.
#[test]
fn a_refresh_after_the_prompt_sets_every_code() {
    for device in devices() {
        let mut noise = Noise(4);
        let [k, v] = noise.tensors([1, 2, 90, 16], &device);
        let method = Method::from(SparqConfig::new(4, 12).with_sketch(Sketch::Bits8));
        let config = cache_config([1, 2, 16], method.sketch());
        let codes = |cache: &KvCache| match cache.tensors().sketch.clone() {
            sparq::ops::SketchTensors::Codes { codes, scale, .. } => {
                (codes.into_data(), scale.into_data())
            }
            other => panic!("expected codes, found {other:?}"),
        };
        let mut expected = new_cache(&config, &device);
        expected.append(k.clone(), v.clone()).unwrap();
        method
            .decode(noise.tensor([1, 4, 1, 16], &device), &mut expected)
            .unwrap();

        let mut cache = new_cache(&config, &device);
        cache.append(k, v).unwrap();
        assert_ne!(
            codes(&cache),
            codes(&expected),
            "a prefill leaves the codes to the end"
        );
        cache.refresh_sketch();
        assert_eq!(codes(&cache), codes(&expected));
        let [k, v] = noise.tensors([1, 2, 1, 16], &device);
        cache.append(k, v).unwrap();
        let scales = codes(&cache).1;
        method
            .decode(noise.tensor([1, 4, 1, 16], &device), &mut cache)
            .unwrap();
        assert_eq!(
            codes(&cache).1,
            scales,
            "the first step must not set the ranges again"
        );
    }
}
