//! Models whose weights stay in the blocks of the file, against their dequantised weights.

use std::sync::Arc;

use burn::tensor::Device;
use sparq::Method;
use sparq::ops::BlockFormat;
use sparq_models::checkpoint::{Conversion, StoredType};
use sparq_models::{CausalLm, Decoder};

use super::vocabularies::sentence_piece;
use super::*;

const HIDDEN: usize = 256;
const INNER: usize = 512;
const VOCAB: usize = 96;
const LAYERS: usize = 2;

/// Numbers of the types in GGUF files.
const TYPES: [(BlockFormat, u32); 8] = [
    (BlockFormat::Q4_0, 2),
    (BlockFormat::Q4_1, 3),
    (BlockFormat::Q5_0, 6),
    (BlockFormat::Q5_1, 7),
    (BlockFormat::Q8_0, 8),
    (BlockFormat::Q4_K, 12),
    (BlockFormat::Q5_K, 13),
    (BlockFormat::Q6_K, 14),
];

/// Returns numbers between -size and size that repeat for the same seed.
fn random(seed: usize, len: usize, size: f32) -> Vec<f32> {
    let mut state = seed as u64 * 7919 + 1;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * size
    };
    (0..len).map(next).collect()
}

/// Writes a Llama with four query heads and two KV heads of 64, whose matrices have the formats
/// that `format` returns for their index.
fn llama(format: impl Fn(usize) -> (BlockFormat, u32), tied: bool) -> GgufFile {
    let mut file = sentence_piece();
    file.tensors.clear();
    for (key, size) in [
        ("embedding_length", HIDDEN),
        ("feed_forward_length", INNER),
        ("block_count", LAYERS),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ] {
        file.set(&format!("llama.{key}"), Meta::U32(size as u32));
    }
    let mut matrices = vec![("token_embd".to_owned(), [VOCAB, HIDDEN])];
    if !tied {
        matrices.push(("output".into(), [VOCAB, HIDDEN]));
    }
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("attn_q", [256, HIDDEN]),
            ("attn_k", [128, HIDDEN]),
            ("attn_v", [128, HIDDEN]),
            ("attn_output", [HIDDEN, 256]),
            ("ffn_gate", [INNER, HIDDEN]),
            ("ffn_up", [INNER, HIDDEN]),
            ("ffn_down", [HIDDEN, INNER]),
        ] {
            matrices.push((format!("blk.{layer}.{name}"), shape));
        }
        for name in ["attn_norm", "ffn_norm"] {
            let name = format!("blk.{layer}.{name}.weight");
            file.floats(&name, &[HIDDEN as u64], &[1.0; HIDDEN]);
        }
    }
    file.floats("output_norm.weight", &[HIDDEN as u64], &[1.0; HIDDEN]);
    for (index, (name, shape)) in matrices.into_iter().enumerate() {
        let (format, kind) = format(index);
        let weights = random(index, shape[0] * shape[1], 0.1);
        let shape = shape.map(|size| size as u64);
        file.push(
            &format!("{name}.weight"),
            &shape,
            kind,
            format.quantize(&weights),
        );
    }
    file
}

fn ids(device: &Device) -> burn::tensor::Tensor<2, burn::tensor::Int> {
    let ids: Vec<i64> = (0..40).map(|at| at * 37 % VOCAB as i64).collect();
    tokens(&ids, 1, device)
}

fn logits(model: &Decoder) -> Vec<f32> {
    let mut cache = new_cache(model, 1, 64, &Method::DENSE);
    let logits = model.prefill(ids(&model.device()), &mut cache, 40);
    values(logits.unwrap())
}

/// Returns the root mean square of the difference, in that of the expected numbers.
fn relative(found: &[f32], expected: &[f32]) -> f32 {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    let mut differences = found.iter().zip(expected).map(|(a, b)| a - b);
    (squares(&mut differences) / squares(&mut expected.iter().copied())).sqrt()
}

/// x in bytes is off by up to half of 1/127 of the largest of 32, evenly: 0.7 % of its root mean
/// square. The errors of the products in a row, five in a layer and the head, add up like 11
/// independent ones.
const ROUNDING: f32 = 0.007 * 3.4 * 1.5;

#[test]
fn logits_are_close_to_those_of_floats() {
    let mixed = |index: usize| TYPES[index % TYPES.len()];
    for case in 0..=TYPES.len() {
        let file = match TYPES.get(case) {
            Some(&one) => llama(|_| one, case % 2 == 0),
            None => llama(mixed, false),
        };
        let (_folder, path) = write(&file.bytes());
        let open = |floats| Checkpoint::open(&path).unwrap().with_floats(floats);
        for device in devices() {
            let (packed, floats) = (load(&open(false), &device), load(&open(true), &device));
            let error = relative(&logits(&packed), &logits(&floats));
            assert!(error <= ROUNDING, "case {case}, {device:?}: {error}");
        }
    }
}

#[test]
fn weights_stay_in_their_blocks() {
    let (_folder, path) = write(&llama(|_| TYPES[0], true).bytes());
    let checkpoint = Checkpoint::open(&path).unwrap();
    let floats = Checkpoint::open(&path).unwrap().with_floats(true);
    let (packed, floats) = (
        load(&checkpoint, &Device::flex()),
        load(&floats, &Device::flex()),
    );
    use burn::module::Module;
    // The norms alone are parameters.
    assert_eq!(packed.num_params(), HIDDEN * (2 * LAYERS + 1));
    assert!(floats.num_params() > VOCAB * HIDDEN);
    // Products round x, so the results differ.
    assert!(relative(&logits(&packed), &logits(&floats)) > 1e-5);
    assert_eq!(checkpoint.unused().count(), 0);
}

#[test]
fn steps_equal_a_prefill() {
    for (case, &one) in TYPES.iter().enumerate() {
        let (_folder, path) = write(&llama(|_| one, case % 2 == 1).bytes());
        let checkpoint = Checkpoint::open(&path).unwrap();
        for device in devices() {
            let model = load(&checkpoint, &device);
            let mut cache = new_cache(&model, 1, 64, &Method::DENSE);
            let ids = ids(&device);
            let prompt = ids.clone().slice_dim(1, 0..24);
            model.prefill(prompt, &mut cache, 1).unwrap();
            let steps = decode(&model, &ids, 24..40, &mut cache, &Method::DENSE);
            let whole = logits(&model);
            // Sums in another order can move an element of x to the next byte.
            let error = relative(&steps, &whole[24 * VOCAB..]);
            assert!(error < 0.02, "{:?} on {device:?}: {error}", one.0);
        }
    }
}

#[test]
fn non_finite_scales_are_refused() {
    let mut file = llama(|_| TYPES[4], true);
    let tensor = file.tensors.iter_mut().find(|t| t.name.contains("ffn_up"));
    // The scale of the second block of Q8_0.
    tensor.unwrap().bytes[34..36].copy_from_slice(&0x7e00_u16.to_le_bytes());
    let (_folder, path) = write(&file.bytes());
    let checkpoint = Checkpoint::open(&path).unwrap();
    let config = sparq_models::DecoderConfig::from_checkpoint(&checkpoint).unwrap();
    for device in devices() {
        let error = Decoder::load(&checkpoint, &config, FloatDType::F32, &device);
        let error = error.unwrap_err().to_string();
        assert_contains(&error, &["mlp.up_proj.weight", "found 32 of", "[0, 32]"]);
    }
}

#[test]
fn conversion_keeps_blocks() {
    let (_folder, path) = write(&llama(|index| TYPES[index % TYPES.len()], false).bytes());
    let source = Arc::new(Checkpoint::open(&path).unwrap());
    let out = tempfile::tempdir().unwrap();
    Conversion::new(source.clone()).write(out.path()).unwrap();
    let converted = Checkpoint::open(out.path()).unwrap();
    for name in source.names() {
        let [own, other] = [&*source, &converted].map(|from| from.entry(name).unwrap().dtype);
        assert_eq!(own, other, "{name}");
    }
    let device = Device::flex();
    let [own, other] = [&*source, &converted].map(|from| logits(&load(from, &device)));
    assert_eq!(own, other);
}

#[test]
fn conversion_writes_blocks() {
    let mut file = llama(|_| TYPES[4], true);
    // A matrix whose rows are not blocks of 256, and one that is no model's.
    file.floats("odd.weight", &[4, 96], &random(1, 4 * 96, 1.0));
    file.floats("none.weight", &[4, 9], &random(2, 36, 1.0));
    let (_folder, path) = write(&file.bytes());
    let source = Arc::new(Checkpoint::open(&path).unwrap());
    let expected = logits(&load(&source, &Device::flex()));
    // The root mean square error of 4 bits is about 0.08 of that of the weights, 5 bits halve it.
    for (stored, odd, table, bound) in [
        (StoredType::Q4_K, StoredType::Q5_0, StoredType::Q6_K, 0.4),
        (StoredType::Q5_K, StoredType::Q5_1, StoredType::Q6_K, 0.2),
        (StoredType::Q4_0, StoredType::Q4_0, StoredType::Q6_K, 0.5),
        (StoredType::Q8_0, StoredType::Q8_0, StoredType::Q8_0, 0.05),
    ] {
        let out = tempfile::tempdir().unwrap();
        let conversion = Conversion::new(source.clone()).with_dtype(Some(stored));
        conversion.write(out.path()).unwrap();
        let converted = Checkpoint::open(out.path()).unwrap();
        converted.verify().unwrap();
        let dtype = |name| converted.entry(name).unwrap().dtype;
        assert_eq!(dtype("model.layers.1.mlp.up_proj.weight"), stored);
        assert_eq!(dtype("model.embed_tokens.weight"), table);
        assert_eq!(dtype("odd.weight"), odd);
        assert_eq!(dtype("none.weight"), StoredType::F32);
        assert_eq!(dtype("model.norm.weight"), StoredType::F32);
        let found = logits(&load(&converted, &Device::flex()));
        let error = relative(&found, &expected);
        assert!(error < bound, "{stored}: {error}");

        let back = tempfile::tempdir().unwrap();
        let conversion = Conversion::new(Arc::new(converted));
        conversion.write_safetensors(back.path()).unwrap();
        let floats = Checkpoint::open(back.path()).unwrap();
        let name = "model.layers.1.mlp.up_proj.weight";
        assert_eq!(floats.entry(name).unwrap().dtype, StoredType::F32);
    }
}
