//! Logits and greedy tokens of every family, compared with Hugging Face transformers.

use burn::tensor::{Device, Tensor};
use sparq::{Method, Sketch, SparqConfig};
use sparq_models::checkpoint::Checkpoint;
use sparq_models::{CausalLm, Decoder, embedded};
use sparq_tests::*;

const CASES: [&str; 22] = [
    "llama2",
    "llama3",
    "llama_tied_head_dim",
    "mistral",
    "mistral_sliding",
    "gemma",
    "gemma_mqa",
    "gpt_neox",
    "gpt_neox_serial",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3_longrope",
    "smollm3",
    "olmo2",
    "granite",
    "qwen3_moe",
    "mixtral",
    "llama_yarn",
    "llama_dynamic",
];

/// The cases whose RoPE depends on the length of the sequence. A prefill in one pass then differs
/// from one in parts, in transformers too.
const BY_LENGTH: [&str; 1] = ["llama_dynamic"];

fn on_every_case(check: impl Fn(&str, &Device, &Decoder, &Expected)) {
    for device in devices() {
        for case in CASES {
            let checkpoint = Checkpoint::open(&fixture(&format!("hf/{case}"))).unwrap();
            let model = load(&checkpoint, &device);
            let expected = Expected::read(&format!("hf/{case}/expected.safetensors"));
            check(case, &device, &model, &expected);
        }
    }
}

/// [`on_every_case`] without those of [`BY_LENGTH`].
fn on_every_case_in_parts(check: impl Fn(&str, &Device, &Decoder, &Expected)) {
    on_every_case(|case, device, model, expected| {
        if !BY_LENGTH.contains(&case) {
            check(case, device, model, expected);
        }
    });
}

/// Returns dense attention, and SparQ with settings that make it dense: full rank and all
/// positions, or a top-k that covers all positions or the window.
fn dense_methods(model: &Decoder) -> [Method; 3] {
    let cache = new_cache(model, 1, 1, &Method::DENSE);
    let cache = cache.layers[0].config();
    [
        Method::DENSE,
        SparqConfig::new(cache.head_dim, 1000).into(),
        SparqConfig::new(2, cache.attended(40).max(40))
            .with_sketch(Sketch::Bits4)
            .into(),
    ]
}

fn assert_close(found: &[f32], expected: &[f32], device: &Device, what: &str) {
    assert_within(tolerance(device), found, expected, device, what);
}

fn assert_within(bound: f32, found: &[f32], expected: &[f32], device: &Device, what: &str) {
    let worst = max_difference(found, expected);
    println!("{what} on {device:?}: {worst:.1e}");
    assert!(worst < bound, "{what} on {device:?}: {worst} above {bound}");
}

#[test]
fn prefill_equals_transformers() {
    on_every_case(|case, device, model, expected| {
        let found = prefill_logits(model, expected);
        assert_close(&found, &expected.floats("logits").1, device, case);
    });
}

#[test]
fn prefill_in_chunks_equals_transformers() {
    on_every_case_in_parts(|case, device, model, expected| {
        let (shape, ids) = expected.ints("input_ids");
        let (_, logits) = expected.floats("logits");
        let ids = tokens(&ids, shape[0], device);
        let mut cache = new_cache(model, shape[0], 16, &Method::DENSE);
        let chunks = [0..1, 1..15, 15..39, 39..shape[1]].map(|chunk| {
            let (len, chunk) = (chunk.len(), ids.clone().slice_dim(1, chunk));
            model.prefill(chunk, &mut cache, len).unwrap()
        });
        let found = values(Tensor::cat(chunks.to_vec(), 1));
        assert_close(&found, &logits, device, case);
    });
}

#[test]
fn decode_steps_equal_transformers() {
    on_every_case_in_parts(|case, device, model, expected| {
        let (shape, ids) = expected.ints("input_ids");
        let (_, logits) = expected.floats("logits");
        let ids = tokens(&ids, shape[0], device);
        for method in dense_methods(model) {
            let mut cache = new_cache(model, shape[0], 1, &method);
            let found = decode(model, &ids, 0..shape[1], &mut cache, &method);
            let what = format!("{case} with {}", method.name());
            assert_close(&found, &logits, device, &what);
        }
    });
}

#[test]
fn left_padded_sequences_equal_transformers() {
    on_every_case(|case, device, model, expected| {
        let (shape, ids) = expected.ints("input_ids");
        let (_, padding) = expected.ints("left_pad");
        let (_, logits) = expected.floats("padded_last_logits");
        let padding: Vec<usize> = padding.iter().map(|&pad| pad as usize).collect();
        assert!(padding.iter().any(|&pad| pad > 0), "the fixture pads");
        let ids = tokens(&ids, shape[0], device);
        let splits = [shape[1], shape[1] - 10];
        let splits = match BY_LENGTH.contains(&case) {
            true => &splits[..1],
            false => &splits,
        };
        for &split in splits {
            for method in dense_methods(model) {
                let mut cache = new_cache(model, shape[0], 8, &method);
                for layer in &mut cache.layers {
                    layer.set_left_padding(&padding).unwrap();
                }
                let mut last = model
                    .prefill(ids.clone().slice_dim(1, 0..split), &mut cache, 1)
                    .unwrap();
                for t in split..shape[1] {
                    last = model
                        .decode(ids.clone().slice_dim(1, t..t + 1), &mut cache, &method)
                        .unwrap();
                }
                let what = format!("{case} with {} from {split}", method.name());
                assert_close(&values(last), &logits, device, &what);
            }
        }
    });
}

/// Compares the greedy continuation of `prompt` with `expected`.
fn assert_greedy(model: &Decoder, device: &Device, prompt: &[i64], expected: &[i64], what: &str) {
    let mut cache = new_cache(model, 1, 16, &Method::DENSE);
    let logits = model.prefill(tokens(prompt, 1, device), &mut cache, 1);
    let mut logits = values(logits.unwrap());
    for (step, &token) in expected.iter().enumerate() {
        assert_eq!(argmax(&logits), token, "{what} on {device:?}, token {step}");
        let token = tokens(&[token], 1, device);
        logits = decode(model, &token, 0..1, &mut cache, &Method::DENSE);
    }
}

#[test]
fn greedy_tokens_equal_transformers() {
    on_every_case(|case, device, model, expected| {
        let (shape, ids) = expected.ints("input_ids");
        let (_, greedy) = expected.ints("greedy");
        let (prompt, continuation) = greedy.split_at(shape[1]);
        // The prompt is the first sequence.
        assert_eq!(prompt, &ids[..shape[1]]);
        assert_greedy(model, device, prompt, continuation, case);
    });
}

#[test]
fn embedded_model_equals_transformers() {
    let expected = Expected::read("embedded/expected.safetensors");
    let (shape, ids) = expected.ints("input_ids");
    let (logits_shape, logits) = expected.floats("last_logits");
    let (_, greedy) = expected.ints("greedy");
    let (len, last) = (shape[1], logits_shape[1]);
    for device in devices() {
        let model = load(&embedded::checkpoint().unwrap(), &device);
        let all = tokens(&ids, 1, &device);
        let mut cache = new_cache(&model, 1, len, &Method::DENSE);
        let found = values(model.prefill(all.clone(), &mut cache, last).unwrap());
        // Its logits are ten times those of the tiny models. Errors of TF32 grow with them; those
        // of f32 are small beside the tolerance.
        let bound = match tolerance(&device) {
            of_tf32 if of_tf32 > 1e-3 => 10.0 * of_tf32,
            of_f32 => of_f32,
        };
        assert_within(bound, &found, &logits, &device, "prefill");

        cache.truncate(len - last);
        let found = decode(&model, &all, len - last..len, &mut cache, &Method::DENSE);
        assert_within(bound, &found, &logits, &device, "decode");
        let greedy = &greedy[greedy.len() - 32..];
        assert_greedy(&model, &device, &ids, greedy, "embedded");
    }
}
