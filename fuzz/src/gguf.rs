//! A GGUF file: header, configuration, tensors, tokenizer and chat template.

use std::fs;

use sparq_models::{
    DecoderConfig,
    checkpoint::Checkpoint,
    text::{ChatTemplate, TextTokenizer},
};

use super::{accepted, tensors, tokenizer};

pub(super) fn run(data: &[u8]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, data).unwrap();
    if let Some(tokenizer) = accepted(TextTokenizer::from_folder(&path), "model.gguf") {
        tokenizer::use_it(tokenizer, "model.gguf");
    }
    accepted(ChatTemplate::from_folder(&path, None), "model.gguf");
    let Some(checkpoint) = accepted(Checkpoint::open(&path), "model.gguf") else {
        return false;
    };
    assert!(checkpoint.names().all(|name| checkpoint.contains(name)));
    accepted(DecoderConfig::from_checkpoint(&checkpoint), "model.gguf");
    tensors::read(&checkpoint);
    true
}
