//! Layers that share their selected positions: one layer selects, the others attend to its
//! positions.

use anyhow::Result;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use sparq::{SparqConfig, Transfers, ops};

use super::buffers::Source;
use super::case::Case;
use super::implementation::{Implementation, Prepared, cache_bytes};
use super::record::MethodName;
use crate::calls::{Calls, Kept};

/// One layer that selects positions, and `layers - 1` that attend to them.
pub struct Sharing {
    pub config: SparqConfig,
    /// The number of layers, at least 1.
    pub layers: usize,
}

impl Implementation for Sharing {
    fn method(&self) -> MethodName {
        MethodName::Sharing
    }

    fn settings(&self) -> Option<SparqConfig> {
        Some(self.config)
    }

    fn layers(&self) -> Option<usize> {
        Some(self.layers)
    }

    fn transfers(&self, case: &Case) -> Transfers {
        let cache = case.shape.cache(case.dtype);
        let selecting = Transfers::sparq(&cache, case.shape.seq_len, &self.config);
        let given = Given(self.config).transfers(case);
        let mean = |one, others| (one + (self.layers - 1) * others) / self.layers;
        Transfers {
            elements: mean(selecting.elements, given.elements),
            bits: mean(selecting.bits, given.bits),
        }
    }

    fn set_bytes(&self, case: &Case) -> f64 {
        let rows = cache_bytes(case, self.config.rows, None);
        let selecting = cache_bytes(case, self.config.rows, Some(self.config.sketch));
        selecting + (self.layers - 1) as f64 * rows
    }

    fn prepare(&self, source: &Source, sets: usize) -> Result<Prepared> {
        let (config, others) = (self.config, self.layers - 1);
        let selecting = source.caches(config.rows, Some(config.sketch), sets)?;
        let given = match others {
            0 => None,
            _ => Some(source.caches(config.rows, None, sets * others)?),
        };
        let q = source.q.clone();
        let heads = own_lists(source);
        let whole: Calls = Box::new(move |set| {
            let (cache, spans) = (selecting.sets[set].clone(), &selecting.spans);
            let Some(given) = &given else {
                return Kept::output(ops::sparq_decode(q.clone(), cache, spans, &config));
            };
            let (mut output, selected) =
                ops::sparq_decode_with_positions(q.clone(), cache, spans, &config);
            for cache in &given.sets[set * others..(set + 1) * others] {
                let (positions, heads) = (selected.clone(), heads.clone());
                output = ops::attend_positions(q.clone(), cache.clone(), positions, heads, spans);
            }
            Kept::output(output)
        });
        let until = vec![];
        Ok(Prepared { whole, until })
    }
}

/// One layer that attends to k positions of another one.
pub struct Given(pub SparqConfig);

impl Implementation for Given {
    fn method(&self) -> MethodName {
        MethodName::Given
    }

    fn settings(&self) -> Option<SparqConfig> {
        Some(self.0)
    }

    fn transfers(&self, case: &Case) -> Transfers {
        let cache = case.shape.cache(case.dtype);
        let k = self.0.top_k.min(case.shape.seq_len);
        Transfers::dense_rows(&cache, k, self.0.rows)
    }

    fn set_bytes(&self, case: &Case) -> f64 {
        cache_bytes(case, self.0.rows, None)
    }

    fn prepare(&self, source: &Source, sets: usize) -> Result<Prepared> {
        let caches = source.caches(self.0.rows, None, sets)?;
        let (q, heads) = (source.q.clone(), own_lists(source));
        let positions = scattered(source, self.0.top_k, &source.q.device());
        let whole: Calls = Box::new(move |set| {
            let (positions, heads) = (positions.clone(), heads.clone());
            let cache = caches.sets[set].clone();
            Kept::output(ops::attend_positions(
                q.clone(),
                cache,
                positions,
                heads,
                &caches.spans,
            ))
        });
        let until = vec![];
        Ok(Prepared { whole, until })
    }
}

/// Each KV head takes its own list, [H_kv].
fn own_lists(source: &Source) -> Tensor<1, Int> {
    let heads: Vec<u32> = (0..source.k.dims()[1] as u32).collect();
    Tensor::from_data(heads.as_slice(), (&source.q.device(), DType::U32))
}

/// Returns k positions for each batch head, [B, H_kv, k], one in each of k equal parts of the
/// sequence and in no order.
fn scattered(source: &Source, k: usize, device: &Device) -> Tensor<3, Int> {
    let [batch, kv_heads, len, _] = source.k.dims();
    let k = k.min(len);
    let positions = (0..batch * kv_heads).flat_map(|list| {
        (0..k).map(move |i| {
            // An odd factor permutes the parts if k is a power of two.
            let part = (i * 37 + list) % k;
            let inside = (i * 101 + list * 13) % (len / k);
            (part * (len / k) + inside) as i32
        })
    });
    let data = TensorData::new(positions.collect::<Vec<i32>>(), [batch, kv_heads, k]);
    Tensor::from_data(data, (device, DType::I32))
}
