//! Small vocabularies in the two forms that checkpoints have: byte-level BPE, and SentencePiece with byte fallback.

// Each test binary compiles its own copy and uses a part of it.
#![allow(dead_code)]

use serde_json::{Value, json};
use sparq_models::text::TextTokenizer;

/// The special token that [`byte_level`] has behind its bytes.
pub const END: u32 = 256;

/// The letter by which byte-level BPE writes a byte: printable Latin-1 stands for itself, the others follow from U+0100 on.
fn letter(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(256 + before).unwrap()
}

/// A tokenizer.json whose token ids are bytes, then `<|end|>`, then one token for each of `words`.
pub fn byte_level_json(words: &[&[u8]]) -> Value {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255 {
        vocab.insert(letter(byte).to_string(), json!(byte));
    }
    // An added token that the vocabulary lacks would get the first id behind it, whatever its entry says.
    vocab.insert("<|end|>".to_owned(), json!(END));
    for (id, word) in (END + 1..).zip(words) {
        let word: String = word.iter().map(|&byte| letter(byte)).collect();
        vocab.insert(word, json!(id));
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(END, "<|end|>")],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

/// The tokenizer of [`byte_level_json`].
pub fn byte_level(words: &[&[u8]]) -> TextTokenizer {
    parse(&byte_level_json(words))
}

/// A tokenizer in the form of Llama 2: `▁` for spaces, the first of which is stripped, `<0xHH>` for bytes, `<s>` in front.
pub fn llama2(words: &[&str]) -> TextTokenizer {
    let mut vocab = serde_json::Map::new();
    for (id, token) in ["<unk>", "<s>", "</s>"].iter().enumerate() {
        vocab.insert((*token).to_owned(), json!(id));
    }
    for byte in 0..=255 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(3 + byte));
    }
    for word in words {
        vocab.insert((*word).to_owned(), json!(vocab.len()));
    }
    parse(&json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": [],
        },
    }))
}

fn added(id: u32, content: &str) -> Value {
    json!({
        "id": id, "content": content, "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
    })
}

fn parse(json: &Value) -> TextTokenizer {
    TextTokenizer::from_bytes(json.to_string().as_bytes(), "test").unwrap()
}
