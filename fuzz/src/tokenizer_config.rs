//! `tokenizer_config.json`: adds its tokens to a small vocabulary, and renders its chat template.

use std::fs;

use sparq_models::text::{ChatMessage, ChatTemplate, TextTokenizer};

use super::{accepted, tokenizer::use_it};

const NAME: &str = "tokenizer_config.json";

const TOKENIZER: &str = r#"{"version": "1.0",
    "added_tokens": [{"id": 3, "content": "<s>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true}],
    "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": false},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}"#;

pub(super) fn run(data: &[u8]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [("tokenizer.json", TOKENIZER.as_bytes()), (NAME, data)] {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    // A token that cannot be added is an error of the tokenizer, in the same folder.
    let tokenizer = accepted(TextTokenizer::from_folder(folder.path()), "tokenizer");
    let is_read = tokenizer.is_some();
    if let Some(tokenizer) = tokenizer {
        use_it(tokenizer, "tokenizer");
    }
    let template = accepted(ChatTemplate::from_folder(folder.path(), None), NAME);
    if let Some(template) = template.flatten() {
        accepted(template.render(&[ChatMessage::user("a")], true), NAME);
    }
    is_read
}
