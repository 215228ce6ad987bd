//! The attention probability that SparQ keeps, compared with probabilities in float64.

use burn::tensor::{Device, FloatDType, Int, Tensor};
use sparq::{KvCache, Method, Sketch, SparqConfig};
use sparq_models::{CausalLm, Decoder, ModelCache, calibration::kept_mass};

use crate::embedded_model;

const LENGTH: usize = 200;

/// Returns the cache after a text.
fn read(model: &Decoder, method: &Method) -> ModelCache {
    let text = "And God said, Let there be light: and there was light. ".repeat(4);
    let ids: Vec<i64> = text.bytes().take(LENGTH).map(i64::from).collect();
    let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &model.device()).unsqueeze();
    let mut cache = model
        .new_cache(1, LENGTH + 8, FloatDType::F32, method)
        .unwrap();
    model.prefill(ids, &mut cache, 1).unwrap();
    cache
}

/// Returns the attention probability of each query head and position.
fn probabilities(cache: &KvCache) -> Vec<Vec<f64>> {
    let [_, kv_heads, capacity, d] = cache.tensors().k.dims();
    let floats = |data: burn::tensor::TensorData| data.try_to_vec::<f32>().unwrap();
    let keys = floats(cache.tensors().k.floats().into_data());
    let query = floats(cache.query().unwrap().to_data());
    let group = query.len() / d / kv_heads;
    let head = |(head, q): (usize, &[f32])| {
        let keys = keys[head / group * capacity * d..].chunks_exact(d);
        let keys = keys.take(cache.len());
        let dot = |key: &[f32]| -> f64 {
            let pairs = key.iter().zip(q);
            pairs.map(|(&k, &q)| f64::from(k) * f64::from(q)).sum()
        };
        let logits: Vec<f64> = keys.map(|key| dot(key) / (d as f64).sqrt()).collect();
        let largest = logits.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    };
    query.chunks_exact(d).enumerate().map(head).collect()
}

#[test]
fn full_rank_keeps_the_top_positions_of_each_group() {
    let model = embedded_model(&Device::flex());
    // With exact scores, the selected positions have the largest sums over the group. The last
    // position is always among them.
    let head_dim = 64;
    let configs = [10, 50].map(|top_k| {
        let config = SparqConfig::new(head_dim, top_k).with_sketch(Sketch::Full);
        config.with_local_window(1)
    });
    let method = Method::from(configs[0]);
    let mut cache = read(&model, &method);
    assert_eq!(cache.layers[0].config().head_dim, head_dim);
    let mut watched = read(&model, &method);
    for layer in &mut watched.layers {
        layer.keep_query(true);
    }
    let token = Tensor::<2, Int>::from_ints([[65]], &model.device());
    model.decode(token, &mut watched, &Method::DENSE).unwrap();

    let found = kept_mass(&model, &mut cache, &[65], &configs, &mut || ()).unwrap();
    for (found, config) in found.iter().zip(configs) {
        assert_eq!(found.config, config);
        assert_eq!(found.layers.len(), cache.layers.len());
        for (index, layer) in watched.layers.iter().enumerate() {
            let heads = probabilities(layer);
            let group = heads.len() / layer.config().kv_heads;
            assert_eq!(found.layers[index].len(), heads.len());
            for (kv_head, heads) in heads.chunks_exact(group).enumerate() {
                let last = layer.len() - 1;
                let sum = |position: usize| heads.iter().map(|head| head[position]).sum::<f64>();
                let mut others: Vec<f64> = (0..last).map(sum).collect();
                others.sort_by(|a, b| b.total_cmp(a));
                let largest = sum(last) + others[..config.top_k - 1].iter().sum::<f64>();
                let kept: f64 = found.layers[index][kv_head * group..][..group].iter().sum();
                assert!(
                    (kept - largest).abs() < 1e-4,
                    "layer {index}: {kept} of {largest}"
                );
                assert!(largest > 0.0 && largest < group as f64);
            }
        }
        let heads: Vec<f64> = found.layers.iter().flatten().copied().collect();
        let mean = heads.iter().sum::<f64>() / heads.len() as f64;
        assert!((found.mean() - mean).abs() < 1e-12);
        assert_eq!(heads.into_iter().reduce(f64::min), Some(found.worst()));
    }
}

#[test]
fn steps_are_averaged_and_append_to_the_cache() {
    let model = embedded_model(&Device::flex());
    let config = SparqConfig::new(4, 16).with_sketch(Sketch::Bits4);
    let method = Method::from(config);
    let mut steps = 0;
    let mut cache = read(&model, &method);
    let both = kept_mass(&model, &mut cache, &[65, 66], &[config], &mut || steps += 1).unwrap();
    assert_eq!((steps, cache.len()), (2, LENGTH + 2));
    assert!(cache.layers.iter().all(|layer| layer.query().is_none()));

    let mut cache = read(&model, &method);
    let mut one = |token| kept_mass(&model, &mut cache, &[token], &[config], &mut || ()).unwrap();
    let (first, second) = (one(65), one(66));
    for (layer, heads) in both[0].layers.iter().enumerate() {
        for (head, kept) in heads.iter().enumerate() {
            let mean = (first[0].layers[layer][head] + second[0].layers[layer][head]) / 2.0;
            assert!((kept - mean).abs() < 1e-9, "{kept} {mean}");
        }
    }
    // The cache lacks this sketch.
    let other = SparqConfig::new(4, 16).with_sketch(Sketch::Bits8);
    assert!(kept_mass(&model, &mut cache, &[65], &[other], &mut || ()).is_err());
}
