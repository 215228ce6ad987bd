//! Attention over positions that another layer selected, against fp64 and against SparQ.

use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use sparq::methods::MeanValue;
use sparq::ops::{
    Spans, attend_positions, has_kernels, positions_take_lengths_from_device,
    sparq_decode_with_positions,
};
use sparq::{KvCache, RowFormat, SparqConfig};

use crate::common::{Noise, SKETCHES, cache_config, devices, max_difference, new_cache, values};

/// Sizes of a cache, its queries and the lists.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    kv_heads: usize,
    heads: usize,
    head_dim: usize,
    len: usize,
    /// The KV heads that selected positions.
    lists: usize,
    k: usize,
}

/// Lists of positions with the lists that the KV heads take.
struct Lists {
    positions: Vec<i32>,
    heads: Vec<u32>,
}

impl Lists {
    /// Draws distinct valid positions in no order, and -1 behind them.
    fn draw(sizes: &Sizes, spans: &Spans, noise: &mut Noise) -> Self {
        let mut positions = Vec::new();
        for list in 0..sizes.batch * sizes.lists {
            let sequence = list / sizes.lists;
            let mut valid: Vec<i32> =
                (spans.start[sequence] as i32..spans.end[sequence] as i32).collect();
            let keys = noise.values(valid.len());
            let first = valid[0];
            valid.sort_by(|&a, &b| {
                keys[(a - first) as usize].total_cmp(&keys[(b - first) as usize])
            });
            valid.resize(valid.len().max(sizes.k), -1);
            positions.extend(&valid[..sizes.k]);
        }
        // Neither the identity nor a permutation.
        let heads = (0..sizes.kv_heads).map(|h| (h.div_ceil(2) % sizes.lists) as u32);
        Self {
            positions,
            heads: heads.collect(),
        }
    }

    fn tensors(&self, sizes: &Sizes, device: &Device) -> (Tensor<3, Int>, Tensor<1, Int>) {
        let shape = [sizes.batch, sizes.lists, sizes.k];
        let positions = TensorData::new(self.positions.clone(), shape);
        let heads = TensorData::new(self.heads.clone(), [sizes.kv_heads]);
        (
            Tensor::from_data(positions, (device, DType::I32)),
            Tensor::from_data(heads, (device, DType::U32)),
        )
    }

    /// Attention in fp64 over the rows of the cache.
    fn attend(&self, sizes: &Sizes, q: &Tensor<4>, cache: &KvCache) -> Vec<f32> {
        let tensors = cache.tensors();
        let [k, v] = [&tensors.k, &tensors.v].map(|rows| values(&rows.at(0..sizes.len)));
        let (q, d, group) = (values(q), sizes.head_dim, sizes.heads / sizes.kv_heads);
        let mut y = Vec::new();
        for (row, q) in q.chunks_exact(d).enumerate() {
            let (batch, kv_head) = (row / sizes.heads, row % sizes.heads / group);
            let list = batch * sizes.lists + self.heads[kv_head] as usize;
            let list = &self.positions[list * sizes.k..(list + 1) * sizes.k];
            let of = |rows: &[f32], position: i32| -> Vec<f64> {
                let at = (batch * sizes.kv_heads + kv_head) * sizes.len + position as usize;
                rows[at * d..(at + 1) * d]
                    .iter()
                    .map(|&x| x.into())
                    .collect()
            };
            let chosen: Vec<i32> = list.iter().copied().filter(|&p| p >= 0).collect();
            let logit = |&position: &i32| -> f64 {
                let key = of(&k, position);
                let dot: f64 = key.iter().zip(q).map(|(k, &q)| k * f64::from(q)).sum();
                dot / (d as f64).sqrt()
            };
            let logits: Vec<f64> = chosen.iter().map(logit).collect();
            let top = logits.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = logits.iter().map(|x| (x - top).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut out = vec![0.0; d];
            for (weight, &position) in weights.iter().zip(&chosen) {
                let value = of(&v, position);
                out.iter_mut()
                    .zip(value)
                    .for_each(|(y, x)| *y += weight / sum * x);
            }
            y.extend(out.into_iter().map(|y| y as f32));
        }
        y
    }
}

/// Returns a query and a cache whose sequences have left padding of 0, 3, 6 .. positions.
fn problem(
    sizes: &Sizes,
    rows: RowFormat,
    dtype: FloatDType,
    device: &Device,
    noise: &mut Noise,
) -> (Tensor<4>, KvCache) {
    let shape = [sizes.batch, sizes.kv_heads, sizes.len, sizes.head_dim];
    let (q, [k, v]) = noise.problem(shape, sizes.heads, device);
    let config = cache_config([sizes.batch, sizes.kv_heads, sizes.head_dim], None)
        .with_capacity(sizes.len)
        .with_dtype(dtype)
        .with_rows(rows);
    let mut cache = new_cache(&config, device);
    let padding: Vec<usize> = (0..sizes.batch).map(|b| 3 * b).collect();
    cache.set_left_padding(&padding).unwrap();
    cache.append(k, v).unwrap();
    (q, cache)
}

fn assert_attends(sizes: &Sizes, rows: RowFormat, dtype: FloatDType, device: &Device) {
    let noise = &mut Noise(sizes.k as u64);
    let (q, cache) = problem(sizes, rows, dtype, device, noise);
    let lists = Lists::draw(sizes, cache.spans(), noise);
    let (positions, heads) = lists.tensors(sizes, device);
    // The kernels cover all of these cases, and a captured step may run them.
    let covered = positions_take_lengths_from_device(&q, cache.tensors(), sizes.k);
    assert_eq!(covered, has_kernels(device), "{sizes:?}");
    let tensors = cache.tensors().clone();
    let found = attend_positions(q.clone(), tensors, positions, heads, cache.spans());
    let expected = TensorData::new(lists.attend(sizes, &q, &cache), q.dims());
    let difference = max_difference(&found, &Tensor::from_data(expected, device));
    assert!(
        difference < 2e-5,
        "{device:?} {sizes:?} {rows} {dtype:?}: {difference}"
    );
}

#[test]
fn lists_of_another_layer() {
    let sizes = |batch, [kv_heads, heads]: [usize; 2], head_dim, len, lists, k| Sizes {
        batch,
        kv_heads,
        heads,
        head_dim,
        len,
        lists,
        k,
    };
    let all = [
        sizes(2, [2, 6], 16, 90, 2, 20),
        sizes(1, [1, 8], 64, 90, 1, 1),
        sizes(3, [4, 4], 20, 70, 3, 33),
        // More than the valid positions of some sequences, and of all.
        sizes(2, [3, 3], 32, 40, 1, 38),
        sizes(2, [2, 4], 128, 30, 2, 64),
        // Long lists of few heads, which GPUs split.
        sizes(1, [1, 5], 128, 1400, 2, 1300),
        sizes(1, [2, 2], 96, 1400, 1, 1025),
    ];
    for device in devices() {
        for (index, sizes) in all.iter().enumerate() {
            let half = index % 2 == 1 && device.supports_dtype(FloatDType::F16);
            let dtype = if half {
                FloatDType::F16
            } else {
                FloatDType::F32
            };
            for rows in [RowFormat::Float, RowFormat::Int8] {
                assert_attends(sizes, rows, dtype, &device);
            }
        }
    }
}

#[test]
fn own_lists_give_the_step_of_sparq() {
    for device in devices() {
        let (q, [k, v]) = Noise(9).problem([2, 4, 150, 32], 8, &device);
        let heads = Tensor::<1, Int>::from_data([0u32, 1, 2, 3], (&device, DType::U32));
        for sketch in SKETCHES {
            for rows in [RowFormat::Float, RowFormat::Int8] {
                let config = cache_config([2, 4, 32], Some(sketch)).with_rows(rows);
                let mut cache = new_cache(&config, &device);
                cache.set_left_padding(&[0, 130]).unwrap();
                cache.append(k.clone(), v.clone()).unwrap();
                let config = SparqConfig::new(8, 40)
                    .with_sketch(sketch)
                    .with_rows(rows)
                    .with_mean_value(MeanValue::Never);
                cache.refresh_sketch();
                let (tensors, spans) = (cache.tensors().clone(), cache.spans());
                let (step, positions) =
                    sparq_decode_with_positions(q.clone(), tensors.clone(), spans, &config);
                let y = attend_positions(q.clone(), tensors, positions, heads.clone(), spans);
                let difference = max_difference(&y, &step);
                assert!(
                    difference < 1e-5,
                    "{device:?} {sketch:?} {rows}: {difference}"
                );
            }
        }
    }
}
