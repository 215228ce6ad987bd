//! The attention module: prefill and decode steps against dense attention over the whole sequence.

use burn::module::Param;
use burn::nn::RmsNormConfig;
use burn::tensor::{Device, Distribution, FloatDType, Int, Tensor, Tolerance};
use sparq::ops::RowTensors;
use sparq::{
    KvCache, Method, RotaryConfig, Sketch, SparqAttention, SparqAttentionConfig, SparqConfig,
    SparqError,
};

use crate::common::{Noise, devices, new_cache, sequence, tf32_error};

const D_MODEL: usize = 48;

fn config(heads: usize, kv_heads: usize) -> SparqAttentionConfig {
    SparqAttentionConfig::new(D_MODEL, heads, kv_heads, 16)
        .with_rotary(Some(RotaryConfig::new(16)))
        .with_qkv_bias(true)
}

fn modules() -> impl Iterator<Item = (Device, SparqAttention)> {
    let heads = [(4, 4), (4, 2), (3, 1)];
    devices().into_iter().flat_map(move |device| {
        heads.map(|(heads, kv_heads)| {
            (
                device.clone(),
                config(heads, kv_heads).init(&device).unwrap(),
            )
        })
    })
}

fn inputs(batch: usize, len: usize, device: &Device) -> Tensor<3> {
    Tensor::random(
        [batch, len, D_MODEL],
        Distribution::Normal(0.0, 1.0),
        device,
    )
}

fn cache_for(
    attention: &SparqAttention,
    batch: usize,
    method: &Method,
    device: &Device,
) -> KvCache {
    let config = attention.cache_config(batch, 8, FloatDType::F32, method);
    new_cache(&config, device)
}

fn part(x: &Tensor<3>, from: usize, to: usize) -> Tensor<3> {
    x.clone().slice_dim(1, from..to)
}

/// Continues the cached sequences with dense attention.
fn prefill(attention: &SparqAttention, x: Tensor<3>, cache: &mut KvCache) -> Tensor<3> {
    attention.forward(x, Some(cache)).unwrap()
}

fn step(
    attention: &SparqAttention,
    x: Tensor<3>,
    cache: &mut KvCache,
    method: &Method,
) -> Tensor<3> {
    attention.decode(x, cache, method).unwrap()
}

fn assert_close(found: Tensor<3>, expected: Tensor<3>, tolerance: f32) {
    let tolerance = tolerance + tf32_error(&found.device());
    found
        .into_data()
        .assert_approx_eq::<f32>(&expected.into_data(), Tolerance::absolute(tolerance));
}

#[test]
fn residual_blocks_equal_separate_operations() {
    let method = Method::from(SparqConfig::new(16, 30));
    for (device, attention) in modules() {
        let x = inputs(2, 12, &device);
        let norm = RmsNormConfig::new(D_MODEL).init(&device);
        let normed = norm.forward(x.clone());
        let whole = attention.forward(normed.clone(), None).unwrap() + x.clone();
        let found = attention.forward_residual(x.clone(), (&norm).into(), None);
        assert_close(found.unwrap(), whole.clone(), 1e-4);

        let mut cache = cache_for(&attention, 2, &method, &device);
        let first = part(&x, 0, 11);
        let read = attention.forward_residual(first, (&norm).into(), Some(&mut cache));
        assert_close(read.unwrap(), part(&whole, 0, 11), 1e-4);
        let last = part(&x, 11, 12);
        let step = attention.decode_residual(last, (&norm).into(), &mut cache, &method);
        assert_close(step.unwrap(), part(&whole, 11, 12), 1e-4);
    }
}

#[test]
fn prefill_and_decode_equal_the_whole_sequence() {
    let everything = Method::from(SparqConfig::new(16, 30));
    for (device, attention) in modules() {
        let x = inputs(2, 30, &device);
        let whole = attention.forward(x.clone(), None).unwrap();
        for method in [Method::DENSE, everything] {
            let mut cache = cache_for(&attention, 2, &method, &device);
            let mut parts = vec![prefill(&attention, part(&x, 0, 20), &mut cache)];
            parts.extend(
                (20..30).map(|at| step(&attention, part(&x, at, at + 1), &mut cache, &method)),
            );
            assert_eq!(cache.len(), 30);
            assert_close(Tensor::cat(parts, 1), whole.clone(), 1e-5);
        }
    }
}

#[test]
fn prefill_in_parts_equals_one_prefill() {
    for (device, attention) in modules() {
        let x = inputs(2, 30, &device);
        let mut cache = cache_for(&attention, 2, &Method::DENSE, &device);
        let parts = [(0, 1), (1, 13), (13, 30)]
            .map(|(from, to)| prefill(&attention, part(&x, from, to), &mut cache));
        assert_close(
            Tensor::cat(parts.to_vec(), 1),
            attention.forward(x, None).unwrap(),
            1e-5,
        );
    }
}

#[test]
fn left_padding_changes_no_valid_output() {
    let padding = [0, 7, 20];
    for (device, attention) in modules() {
        let x = inputs(3, 24, &device);
        let mut cache = cache_for(&attention, 3, &Method::DENSE, &device);
        cache.set_left_padding(&padding).unwrap();
        let parts = [
            prefill(&attention, part(&x, 0, 9), &mut cache),
            prefill(&attention, part(&x, 9, 23), &mut cache),
            step(&attention, part(&x, 23, 24), &mut cache, &Method::DENSE),
        ];
        let padded = Tensor::cat(parts.to_vec(), 1);
        assert!(
            padded.clone().is_finite().all().into_scalar::<bool>(),
            "the outputs of padding must be finite, since later layers read them"
        );
        for (index, &pad) in padding.iter().enumerate() {
            let alone = sequence(&part(&x, pad, 24), index);
            let alone = attention.forward(alone, None).unwrap();
            let found = sequence(&part(&padded, pad, 24), index);
            assert_close(found, alone, 1e-5);
        }
    }
}

#[test]
fn ragged_sequences_equal_each_sequence_alone() {
    let lengths = [9, 4];
    for (device, attention) in modules() {
        let x = inputs(2, 12, &device);
        let mut cache = cache_for(&attention, 2, &Method::DENSE, &device);
        // Fills the buffers with keys and values that later steps must not read.
        prefill(
            &attention,
            inputs(2, 12, &device) * f32::INFINITY,
            &mut cache,
        );
        cache.clear();
        let mut alone: Vec<KvCache> = (0..2)
            .map(|_| cache_for(&attention, 1, &Method::DENSE, &device))
            .collect();
        for (index, &len) in lengths.iter().enumerate() {
            let x = sequence(&part(&x, 0, len), index);
            prefill(&attention, x, &mut alone[index]);
        }
        // One batch of both caches. Past its length, the shorter one holds unused memory.
        let batch = |rows: fn(&KvCache) -> &RowTensors| {
            let parts = alone.iter().map(|cache| rows(cache).at(0..9));
            Tensor::cat(parts.collect(), 0)
        };
        let k = batch(|cache| &cache.tensors().k);
        let v = batch(|cache| &cache.tensors().v);
        cache.append_ragged(k, v, &lengths).unwrap();

        let next = part(&x, 9, 11);
        let two = prefill(&attention, next.clone(), &mut cache);
        let third = step(&attention, part(&x, 11, 12), &mut cache, &Method::DENSE);
        for (index, own) in alone.iter_mut().enumerate() {
            let expected = prefill(&attention, sequence(&next, index), own);
            assert_close(sequence(&two, index), expected, 1e-5);
            let last = sequence(&part(&x, 11, 12), index);
            let expected = step(&attention, last, own, &Method::DENSE);
            assert_close(sequence(&third, index), expected, 1e-5);
        }
    }
}

/// Returns a module with the same weights in every run.
fn deterministic(
    noise: &mut Noise,
    heads: usize,
    kv_heads: usize,
    device: &Device,
) -> SparqAttention {
    let mut attention = config(heads, kv_heads).init(device).unwrap();
    let projections = [
        &mut attention.q_proj,
        &mut attention.k_proj,
        &mut attention.v_proj,
        &mut attention.o_proj,
    ];
    for projection in projections {
        let projection = projection.float_mut().unwrap();
        let [from, to] = projection.weight.dims();
        let weight = noise.tensor([1, 1, from, to], device).reshape([from, to]);
        projection.weight = Param::from_tensor(weight / (from as f32).sqrt());
    }
    attention
}

#[test]
fn decode_is_the_method_between_projections() {
    for device in devices() {
        for (heads, kv_heads) in [(4, 4), (4, 2), (3, 1)] {
            let mut noise = Noise(21);
            let attention = deterministic(&mut noise, heads, kv_heads, &device);
            let settings = SparqConfig::new(12, 24).with_sketch(Sketch::Bits4);
            let method = Method::from(settings);
            let x = noise
                .tensor([1, 1, 65, D_MODEL], &device)
                .reshape([1, 65, D_MODEL]);
            let token = part(&x, 64, 65);
            let mut cache = cache_for(&attention, 1, &method, &device);
            prefill(&attention, part(&x, 0, 64), &mut cache);
            let mut by_hand = cache.clone();
            let sparse = step(&attention, token.clone(), &mut cache, &method);

            let heads_of =
                |y: Tensor<3>, heads: usize| y.reshape([1, 1, heads, 16]).swap_dims(1, 2);
            let at = Tensor::<2, Int>::from_ints([[64]], &device);
            let rotate = |y| attention.rotary.as_ref().unwrap().apply(y, at.clone());
            let q = rotate(heads_of(attention.q_proj.forward(token.clone()), heads));
            let k = rotate(heads_of(attention.k_proj.forward(token.clone()), kv_heads));
            let v = heads_of(attention.v_proj.forward(token.clone()), kv_heads);
            by_hand.append(k, v).unwrap();
            let traced = settings.decode_traced(q, &mut by_hand).unwrap();
            let y = traced.output.swap_dims(1, 2).reshape([1, 1, heads * 16]);
            assert_close(sparse.clone(), attention.o_proj.forward(y), 1e-5);

            cache.truncate(64);
            let dense = step(&attention, token, &mut cache, &Method::DENSE);
            let difference = (sparse - dense).abs().max().into_scalar::<f32>();
            assert!(
                difference > 1e-2,
                "24 of 65 positions must not give the output of all: {difference}"
            );
        }
    }
}

#[test]
#[cfg(feature = "flex")]
fn a_16_bit_cache_serves_an_fp32_module() {
    let device = Device::flex();
    let attention = config(4, 2).init(&device).unwrap();
    let x = inputs(1, 30, &device);
    let whole = attention.forward(x.clone(), None).unwrap();
    // K and V are rounded once: half a unit in the last of 11 or 8 bits, for elements up to about
    // 4.
    for (dtype, tolerance) in [(FloatDType::F16, 4e-3), (FloatDType::BF16, 3e-2)] {
        let config = attention.cache_config(1, 8, dtype, &Method::DENSE);
        let mut cache = new_cache(&config, &device);
        let first = prefill(&attention, part(&x, 0, 29), &mut cache);
        let last = step(&attention, part(&x, 29, 30), &mut cache, &Method::DENSE);
        assert_close(Tensor::cat(vec![first, last], 1), whole.clone(), tolerance);
    }
}

#[test]
fn refused_inputs_leave_the_cache_unchanged() {
    for device in devices() {
        let attention = config(4, 2).init(&device).unwrap();
        let mut cache = cache_for(&attention, 2, &Method::DENSE, &device);
        prefill(&attention, inputs(2, 3, &device), &mut cache);

        let narrow = Tensor::<3>::zeros([2, 3, D_MODEL - 1], &device);
        assert!(matches!(
            attention.forward(narrow.clone(), None),
            Err(SparqError::Shape { .. })
        ));
        assert!(matches!(
            attention.forward(narrow, Some(&mut cache)),
            Err(SparqError::Shape { .. })
        ));
        let error = attention
            .forward(inputs(3, 1, &device), Some(&mut cache))
            .unwrap_err();
        let expected =
            "attention input [batch, length, d_model]: expected shape [2, 0, 48], found [3, 1, 48]";
        assert_eq!(error.to_string(), expected);
        assert!(matches!(
            attention.decode(inputs(2, 2, &device), &mut cache, &Method::DENSE),
            Err(SparqError::Shape { .. })
        ));

        let x = inputs(2, 1, &device);
        let sparq = Method::from(SparqConfig::new(8, 24));
        assert!(matches!(
            attention.decode(x.clone(), &mut cache, &sparq),
            Err(SparqError::MissingSketch { .. })
        ));
        let wide = Method::from(SparqConfig::new(17, 24));
        assert!(matches!(
            attention.decode(x, &mut cache, &wide),
            Err(SparqError::Config { field: "rank", .. })
        ));
        assert_eq!(cache.len(), 3);
    }
}

#[test]
fn invalid_sizes_are_errors() {
    let error =
        |config: SparqAttentionConfig| config.init(&Device::default()).unwrap_err().to_string();
    let uneven = "n_heads: expected a multiple of 3 (the n_kv_heads), found 4; \
                  every KV head serves the same number of query heads";
    assert_eq!(error(config(4, 3)), uneven);
    assert!(error(config(4, 0)).starts_with("n_kv_heads: expected at least 1, found 0"));
    assert!(error(config(0, 1)).starts_with("n_heads: expected at least 1, found 0"));
    let rotary = error(config(4, 2).with_rotary(Some(RotaryConfig::new(8))));
    assert_eq!(
        rotary,
        "rotary head_dim: expected 16 (the attention's), found 8; set both to the same value"
    );
    assert!(
        error(config(4, 2).with_rotary(Some(RotaryConfig::new(16).with_theta(-1.0))))
            .contains("rotary theta")
    );
}
