//! Captured decode steps of every family, compared with transformers.
//!
//! A binary with one test: while a device captures, no other test may use it.

use burn::tensor::Tensor;
use sparq::{Method, Sketch, SparqConfig};
use sparq_models::checkpoint::Checkpoint;
use sparq_models::{CapturedLm, CausalLm};
use sparq_tests::*;

#[test]
fn captured_steps_equal_transformers() {
    for device in devices() {
        for case in [
            "llama3",
            "mistral_sliding",
            "gemma_mqa",
            "gpt_neox",
            "qwen2",
            "qwen3",
            "gemma3",
            "phi3",
            "smollm3",
            "olmo2",
            "granite",
            "llama_yarn",
        ] {
            let checkpoint = Checkpoint::open(&fixture(&format!("hf/{case}"))).unwrap();
            let model = load(&checkpoint, &device);
            assert!(model.is_capturable());
            let expected = Expected::read(&format!("hf/{case}/expected.safetensors"));
            let (shape, ids) = expected.ints("input_ids");
            let (_, logits) = expected.floats("logits");
            let ids = tokens(&ids, shape[0], &device);
            let sketched = SparqConfig::new(2, 40).with_sketch(Sketch::Bits4);
            for method in [Method::DENSE, Method::from(sketched)] {
                let mut cache = new_cache(&model, shape[0], 1, &method);
                let mut decode = CapturedLm::new(&model, &mut cache, method);
                let steps = (0..shape[1]).map(|t| {
                    let token = ids.clone().slice_dim(1, t..t + 1);
                    decode.step(token).unwrap()
                });
                let found = values(Tensor::cat(steps.collect(), 1));
                let worst = max_difference(&found, &logits);
                let what = format!("{case} on {device:?} with {}", method.name());
                assert!(worst < tolerance(&device), "{what}: {worst}");
            }
        }
    }
}
