//! A long prompt in parts: the same text, in memory that does not grow.

use std::ops::ControlFlow;

use burn::tensor::{Device, FloatDType};
use sparq::{Method, Sketch, SparqConfig};
use sparq_models::text::{GenerateEvent, GenerateOptions, Generated, Session};
use sparq_models::{CausalLm, Decoder, embedded};

use crate::embedded_model;

/// The number of tokens that are generated.
const NEW: usize = 8;

/// Generates after `prompt` in a cache of exactly the positions needed, whose memory must not
/// change. Returns the result and the numbers of tokens read after each part.
fn generate(
    model: &Decoder,
    prompt: &[u32],
    method: Method,
    prefill_chunk: usize,
) -> (Generated, Vec<usize>) {
    let capacity = prompt.len() + NEW;
    let cache = model.new_cache(1, capacity, FloatDType::F32, &method);
    let mut session = Session::new(cache.unwrap(), embedded::tokenizer().unwrap());
    let before = session.cache().memory().total();
    let mut parts = Vec::new();
    let options = GenerateOptions {
        method,
        max_new_tokens: NEW,
        prefill_chunk,
        ..GenerateOptions::default()
    };
    let generated = session.generate(model, prompt, &options, &mut |event| {
        if let GenerateEvent::Prefill { done, .. } = event {
            parts.push(done);
        }
        ControlFlow::Continue(())
    });
    let generated = generated.unwrap();
    assert_eq!(session.cache().memory().total(), before, "{method:?}");
    assert_eq!(generated.tokens.len(), NEW);
    (generated, parts)
}

#[test]
fn parts_give_the_text_of_the_whole_prompt() {
    let model = embedded_model(&Device::default());
    let text = "And the LORD said unto him, Who hath made man's mouth? ".repeat(12);
    let prompt: Vec<u32> = text.bytes().map(u32::from).collect();
    let sparq = SparqConfig::new(16, 64).with_sketch(Sketch::Bits4);
    for method in [Method::DENSE, sparq.into()] {
        let (whole, once) = generate(&model, &prompt, method, prompt.len());
        assert_eq!(once, [0, prompt.len()]);
        let (parts, done) = generate(&model, &prompt, method, 256);
        assert_eq!(done, [0, 256, 512, prompt.len()]);
        assert_eq!(parts.tokens, whole.tokens, "{method:?}");
    }
}
