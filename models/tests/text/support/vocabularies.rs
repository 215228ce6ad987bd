//! Small vocabularies of the two common kinds: byte-level BPE, and SentencePiece with byte
//! fallback.

use serde_json::{Value, json};
use sparq_models::text::TextTokenizer;

/// The special token of [`byte_level`], which follows the bytes.
pub const END: u32 = 256;

/// Returns the character of a byte in byte-level BPE: printable Latin-1 maps to itself, other bytes
/// to the characters from U+0100 on.
fn letter(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(256 + before).unwrap()
}

/// Returns a tokenizer.json with the bytes, then `<|end|>`, then one token for each of `words`.
pub fn byte_level_json(words: &[&[u8]]) -> Value {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255 {
        vocab.insert(letter(byte).to_string(), json!(byte));
    }
    // Without this entry, the added token would get the next free id instead of its own.
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

/// Returns the tokenizer of [`byte_level_json`].
pub fn byte_level(words: &[&[u8]]) -> TextTokenizer {
    parse(&byte_level_json(words))
}

/// Returns a tokenizer like that of Llama 2: `▁` for spaces, of which the first is stripped,
/// `<0xHH>` for bytes, and the BOS token `<s>`.
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
