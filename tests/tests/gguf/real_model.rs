//! A real GGUF file, SmolLM2-135M-Instruct, compared with transformers on its weights dequantised
//! to fp32.

use std::sync::Arc;

use sparq::Method;
use sparq_models::checkpoint::{Checkpoint, Conversion};
use sparq_models::text::{ChatMessage, ChatTemplate, TextTokenizer};
use sparq_models::{CausalLm, Decoder};
use sparq_tests::*;

/// Returns the greedy continuation of a prompt, up to and including the token `eos`.
fn greedy(model: &Decoder, prompt: &[i64], eos: i64, most: usize) -> Vec<i64> {
    let device = model.device();
    let mut cache = new_cache(model, 1, prompt.len() + most, &Method::DENSE);
    let logits = model.prefill(tokens(prompt, 1, &device), &mut cache, 1);
    let mut generated = vec![argmax(&values(logits.unwrap()))];
    while generated.len() < most && generated[generated.len() - 1] != eos {
        let last = tokens(&generated[generated.len() - 1..], 1, &device);
        let logits = decode(model, &last, 0..1, &mut cache, &Method::DENSE);
        generated.push(argmax(&logits));
    }
    generated
}

/// Returns the mean negative log likelihood of the tokens after their predecessors.
fn loss(logits: &[f32], ids: &[i64]) -> f64 {
    let vocab = logits.len() / ids.len();
    let rows = logits.chunks_exact(vocab).zip(&ids[1..]);
    let each = rows.map(|(row, &id)| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
        sum.ln() + f64::from(largest - row[id as usize])
    });
    each.sum::<f64>() / (ids.len() - 1) as f64
}

#[test]
fn packed_smollm2_is_close_to_its_floats() {
    let Some((path, _)) = real_model(env!("CARGO_TARGET_TMPDIR")) else {
        return;
    };
    let expected = Expected::read("smollm2/expected.safetensors");
    let (shape, ids) = expected.ints("input_ids");
    for device in devices() {
        let losses = [false, true].map(|floats| {
            let checkpoint = Checkpoint::open(&path).unwrap().with_floats(floats);
            let model = load(&checkpoint, &device);
            let mut cache = new_cache(&model, 1, 256, &Method::DENSE);
            let logits = model.prefill(tokens(&ids, shape[0], &device), &mut cache, shape[1]);
            loss(&values(logits.unwrap()), &ids)
        });
        println!("nats per token on {device:?}, packed and floats: {losses:?}");
        assert!(
            (losses[0] - losses[1]).abs() < 0.02,
            "{device:?}: {losses:?}"
        );
    }
}

#[test]
fn smollm2_equals_transformers() {
    let Some((path, _)) = real_model(env!("CARGO_TARGET_TMPDIR")) else {
        return;
    };
    let expected = Expected::read("smollm2/expected.safetensors");
    let checkpoint = Checkpoint::open(&path).unwrap().with_floats(true);
    let checkpoint = Arc::new(checkpoint);
    for device in devices() {
        let model = load(&checkpoint, &device);
        let (shape, ids) = expected.ints("input_ids");
        let (logits_shape, logits) = expected.floats("last_logits");
        let mut cache = new_cache(&model, 1, 256, &Method::DENSE);
        let found = model.prefill(tokens(&ids, shape[0], &device), &mut cache, logits_shape[1]);
        let found = values(found.unwrap());
        let worst = max_difference(&found, &logits);
        println!("largest difference of a logit on {device:?}: {worst}");
        assert!(worst < 5e-3, "{device:?}: {worst}");

        // Conversion keeps the logits.
        let folder = tempfile::tempdir().unwrap();
        Conversion::new(checkpoint.clone())
            .write(folder.path())
            .unwrap();
        let converted = Checkpoint::open(folder.path()).unwrap();
        let converted = load(&converted.with_floats(true), &device);
        cache.clear();
        let again = converted.prefill(tokens(&ids, shape[0], &device), &mut cache, logits_shape[1]);
        assert_eq!(values(again.unwrap()), found, "{device:?}");

        let (_, prompt) = expected.ints("chat_ids");
        let (_, answer) = expected.ints("chat_greedy");
        assert_eq!(greedy(&model, &prompt, 2, 20), answer, "{device:?}");
    }

    let tokenizer = TextTokenizer::from_folder(&path).unwrap();
    let template = ChatTemplate::from_folder(&path, None).unwrap().unwrap();
    let chat = template
        .render(&[ChatMessage::user("What is the capital of France?")], true)
        .unwrap();
    assert_eq!(chat, expected.text("chat"));
    let as_ids = |text: &str| -> Vec<i64> {
        let ids = tokenizer.encode(text, false).unwrap();
        ids.into_iter().map(i64::from).collect()
    };
    assert_eq!(as_ids(&chat), expected.ints("chat_ids").1);
    // The fixture has the first 200 tokens of the text.
    assert_eq!(
        as_ids(&expected.text("text"))[..200],
        expected.ints("input_ids").1[..200]
    );
    let (_, answer) = expected.ints("chat_greedy");
    let answer: Vec<u32> = answer.into_iter().map(|id| id as u32).collect();
    assert_eq!(
        tokenizer.decode(&answer, false).unwrap(),
        "The capital of France is Paris.<|im_end|>"
    );
    assert!(tokenizer.eos_ids().contains(&2));
}
