//! Small vocabularies in the metadata of GGUF files.

use super::writer::{GgufFile, Meta};

const CONTROL: i32 = 3;
const BYTE: i32 = 6;
const NORMAL: i32 = 1;

/// Returns a file with a SentencePiece vocabulary: words begin with U+2581, and characters without
/// a token are bytes.
pub fn sentence_piece() -> GgufFile {
    let mut file = GgufFile::llama();
    let tokens = [
        ("<unk>", 2, 0.0),
        ("<s>", CONTROL, 0.0),
        ("</s>", CONTROL, 0.0),
        ("<0xC3>", BYTE, 0.0),
        ("<0xA9>", BYTE, 0.0),
        ("\u{2581}", NORMAL, -10.0),
        ("a", NORMAL, -11.0),
        ("b", NORMAL, -12.0),
        ("c", NORMAL, -13.0),
        // "bc" merges before "ab" because of its higher score.
        ("bc", NORMAL, -1.0),
        ("ab", NORMAL, -2.0),
        ("\u{2581}a", NORMAL, -3.0),
    ];
    file.set("tokenizer.ggml.model", Meta::Text("llama".into()));
    let texts = tokens.map(|token| token.0);
    let kinds = tokens.map(|token| token.1).into();
    let scores = tokens.map(|token| token.2).into();
    file.set("tokenizer.ggml.tokens", Meta::texts(&texts));
    file.set("tokenizer.ggml.token_type", Meta::Ints(kinds));
    file.set("tokenizer.ggml.scores", Meta::Floats(scores));
    for (key, id) in [("unknown", 0), ("bos", 1), ("eos", 2)] {
        file.set(&format!("tokenizer.ggml.{key}_token_id"), Meta::U32(id));
    }
    file
}

/// Returns a file with a vocabulary like that of GPT-2: byte-level characters and a list of merges.
pub fn byte_level(pre: &str) -> GgufFile {
    let mut file = GgufFile::llama();
    let tokens = ["<|end|>", "<|turn|>", "a", "b", "1", "Ġ", "ab", "Ġab", "11"];
    file.set("tokenizer.ggml.model", Meta::Text("gpt2".into()));
    file.set("tokenizer.ggml.pre", Meta::Text(pre.into()));
    file.set("tokenizer.ggml.tokens", Meta::texts(&tokens));
    let kinds = vec![3, 3, 1, 1, 1, 1, 1, 1, 1];
    file.set("tokenizer.ggml.token_type", Meta::Ints(kinds));
    let merges = Meta::texts(&["a b", "Ġ ab", "1 1"]);
    file.set("tokenizer.ggml.merges", merges);
    file.set("tokenizer.ggml.eos_token_id", Meta::U32(0));
    file.set("tokenizer.ggml.eot_token_id", Meta::U32(1));
    file
}
