//! Tests on the GPUs of this build: an append writes in place, linear layers, causal attention,
//! rows in codes, and top-k.

mod linear;
mod packed;
mod prefill;
mod rows;
mod topk;

use burn::tensor::{Device, FloatDType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use crate::ops::primitive::lower;
use crate::ops::{CacheBuffers, RowBuffers, SketchBuffers};
use crate::{KvCache, KvCacheConfig, Method, RowFormat, Sketch, SparqConfig};

/// Returns the runtime's number of each buffer's memory; the spans come last.
fn memory(cache: &KvCache) -> Vec<usize> {
    let CacheBuffers {
        k,
        v,
        v_sum,
        spans,
        sketch,
        ..
    } = lower::<CubeBackend>(cache.tensors().clone());
    let mut all = Vec::new();
    for rows in [k, v] {
        match rows {
            RowBuffers::Float(rows) => all.push(rows),
            RowBuffers::Int8 { codes, scale } => all.extend([codes, scale]),
        }
    }
    all.push(v_sum);
    match sketch {
        SketchBuffers::None => {}
        SketchBuffers::Full(kt) => all.push(kt),
        SketchBuffers::Codes {
            codes,
            zero_point,
            scale,
            ..
        } => all.extend([codes, zero_point, scale]),
    }
    all.push(spans);
    let number = |tensor: &CubeTensor| tensor.handle.memory.descriptor().id.value;
    all.iter().map(number).collect()
}

/// Returns the GPUs of this build that answer, or the one that `BURN_DEVICE` names.
fn devices() -> Vec<Device> {
    let devices = sparq_device::for_tests().unwrap();
    let gpus = devices.into_iter().filter(|device| device.is_gpu());
    gpus.map(|device| device.open()).collect()
}

#[test]
fn append_writes_in_place() {
    let (kv_heads, head_dim) = (2, 32);
    let sketches = [
        None,
        Some(Sketch::Full),
        Some(Sketch::Bits8),
        Some(Sketch::Bits4),
    ];
    for device in devices() {
        let formats = [RowFormat::Float, RowFormat::Int8];
        for (sketch, rows) in sketches
            .iter()
            .flat_map(|sketch| formats.map(|rows| (*sketch, rows)))
        {
            let config = KvCacheConfig::new(2, kv_heads, head_dim)
                .with_capacity(256)
                .with_dtype(FloatDType::F32)
                .with_rows(rows)
                .with_sketch(sketch);
            let some = |len| Tensor::<4>::ones([2, kv_heads, len, head_dim], &device);
            let mut cache = config.init(&device).unwrap();
            let method = match sketch {
                Some(sketch) => Method::from(SparqConfig::new(8, 16).with_sketch(sketch)),
                None => Method::DENSE,
            };
            // A prefill, a ragged prefill, and single tokens. The decode steps in between read the
            // buffers through shared handles.
            for counts in [[100, 100], [30, 7], [1, 1], [1, 1], [0, 1]] {
                let len = counts[0].max(counts[1]);
                let before = memory(&cache);
                cache.append_ragged(some(len), some(len), &counts).unwrap();
                let after = memory(&cache);
                // The host uploads new spans, unless one token of each sequence advances them on
                // the device.
                let kept = before.len() - usize::from(counts != [1, 1]);
                assert_eq!(
                    before[..kept],
                    after[..kept],
                    "{device:?} {sketch:?} {rows} {counts:?}"
                );
                method.decode(some(1).repeat_dim(1, 2), &mut cache).unwrap();
                assert_eq!(
                    after,
                    memory(&cache),
                    "{device:?} {sketch:?}: a decode step moved a buffer"
                );
            }

            // The check itself: a clone that is still alive must make the next append copy.
            let (shared, before) = (cache.clone(), memory(&cache));
            cache.append(some(1), some(1)).unwrap();
            assert_eq!(before, memory(&shared));
            let after = memory(&cache);
            assert!(
                before.iter().zip(&after).take(3).all(|(a, b)| a != b),
                "{device:?} {sketch:?}: an append wrote to a shared cache in place"
            );
        }
    }
}
