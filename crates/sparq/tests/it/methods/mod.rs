//! The baselines, and the methods as a whole.

// The bytes that methods move, settings for a budget, and methods as text.
mod budget;
// Properties of every method for random inputs.
mod properties;
// Cases computed by hand.
mod worked_examples;

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use proptest::prelude::*;
use sparq::cost::CacheShape;
use sparq::methods::baselines::{
    Directions, FlexGen, H2o, Hybrid, KeyPrecision, LmInfinite, Oracle, PageBound, Projection,
    Quest, SparqVariant,
};
use sparq::methods::{Anchors, Budget, GroupScore, MeanValue};
use sparq::{
    KvCache, KvCacheConfig, Method, RotaryConfig, Sketch, SparqAttentionConfig, SparqConfig,
    SparqError, Transfers,
};

use crate::common::{
    Noise, SKETCHES, cache_config, cache_f32, devices, max_difference, new_cache, positions,
    sequence, values,
};

fn tensor(values: &[f32], shape: [usize; 4], device: &Device) -> Tensor<4> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// Returns settings of a cache without a sketch for a shape [B, H_kv, d].
fn config(shape: [usize; 3], window: Option<usize>) -> KvCacheConfig {
    cache_config(shape, None).with_window(window)
}

/// Returns a cache of one head with d = 1, five keys whose weights for q = 1 are 4, 1, 2, 1, 8, and
/// the values 1 to 5.
fn five(device: &Device) -> KvCache {
    let keys = [4f32, 1.0, 2.0, 1.0, 8.0].map(f32::ln);
    cache_f32(
        &tensor(&keys, [1, 1, 5, 1], device),
        &tensor(&[1.0, 2.0, 3.0, 4.0, 5.0], [1, 1, 5, 1], device),
        None,
    )
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() < 1e-5,
            "{found} instead of {expected}"
        );
    }
}

#[test]
fn missing_state_and_bad_settings_are_errors() {
    for device in devices() {
        let mut cache = five(&device);
        let q = || tensor(&[1.0], [1, 1, 1, 1], &device);
        let h2o = Method::from(H2o::new(4));
        let error = h2o.decode(q(), &mut cache).unwrap_err();
        assert!(error.to_string().contains("record_attention"), "{error}");
        assert!(matches!(
            cache.for_method(&h2o),
            Err(SparqError::MissingAttention { .. })
        ));
        assert!(cache.record_attention().is_err(), "the cache is not empty");
        for (method, field) in [
            ("h2o:k=4,l=0", "local_window"),
            ("h2o:k=2,l=3", "top_k"),
            ("lm-infinite:k=16,first=16", "top_k"),
            ("flexgen:k=0", "top_k"),
            ("quest:k=15", "top_k"),
            ("hybrid:r=1,k=8,m=7", "candidates"),
            ("random-projection:r=2,k=4", "rank"),
            ("sparq-variant:r=1,k=4,then=1", "second_rank"),
        ] {
            let method: Method = method.parse().unwrap();
            let error = method.decode(q(), &mut cache).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: expected ")), "{error}");
        }
    }
}

#[test]
fn one_prefill_serves_every_method() {
    for device in devices() {
        let mut noise = Noise(8);
        let [k, v] = noise.tensors([2, 2, 70, 16], &device);
        let new = |sketch| {
            let config = config([2, 2, 16], Some(40)).with_sketch(sketch);
            let mut cache = new_cache(&config, &device);
            let first = |t| positions(t, 0..60);
            cache.append(first(&k), first(&v)).unwrap();
            cache
        };
        let prefilled = new(None);
        for sketch in SKETCHES {
            let base = SparqConfig::new(4, 12).with_mean_value(MeanValue::Always);
            let method = Method::from(base.with_sketch(sketch));
            let (mut own, mut copy) = (new(Some(sketch)), prefilled.for_method(&method).unwrap());
            for at in 60..70 {
                let q = noise.tensor([2, 4, 1, 16], &device);
                let steps = [&mut own, &mut copy].map(|cache| {
                    let new = |t| positions(t, at..at + 1);
                    cache.append(new(&k), new(&v)).unwrap();
                    method.decode(q.clone(), cache).unwrap()
                });
                assert!(
                    max_difference(&steps[0], &steps[1]) < 1e-5,
                    "{sketch:?} at {at}"
                );
            }
        }
        assert_eq!(prefilled.len(), 60);
    }
}
