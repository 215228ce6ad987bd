//! A tokenizer with one token per byte, and prompts for it.

use serde_json::{Map, Value, json};

use super::random::mix;

/// A `tokenizer.json` with `vocab_size` tokens, at least 256. The first 256 are the bytes. A text
/// never contains the others, but a model with random weights generates them; each decodes to a
/// space and its number.
pub fn json(vocab_size: usize) -> Value {
    let mut vocab: Map<String, Value> = alphabet()
        .into_iter()
        .enumerate()
        .map(|(byte, letter)| (letter.to_string(), byte.into()))
        .collect();
    let space = alphabet()[usize::from(b' ')];
    vocab.extend((256..vocab_size).map(|id| (format!("{space}{id}"), id.into())));
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "vocab": vocab,
            "merges": [],
        },
    })
}

/// The tokens of the same vocabulary in their order, and the kind of each in GGUF: 1 for text.
pub fn byte_level(vocab_size: usize) -> (Vec<String>, Vec<i32>) {
    let bytes = alphabet();
    let space = bytes[usize::from(b' ')];
    let others = (bytes.len()..vocab_size).map(|id| format!("{space}{id}"));
    let tokens: Vec<String> = bytes.iter().map(char::to_string).chain(others).collect();
    let kinds = vec![1; tokens.len()];
    (tokens, kinds)
}

/// The letter that stands for each byte in a byte-level vocabulary: a printable byte stands for
/// itself, and the n-th of the others is U+0100 + n.
fn alphabet() -> Vec<char> {
    let mut others = 0x100..;
    let mut letter = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            let other = others.next().expect("the range has no end");
            char::from_u32(other).expect("letters follow U+0100")
        }
    };
    (0..=u8::MAX).map(&mut letter).collect()
}

/// A text of this number of tokens: random words, in ASCII.
pub fn prompt(tokens: usize, seed: u64) -> String {
    const WORDS: [&str; 16] = [
        "the", "river", "stone", "of", "and", "light", "went", "to", "house", "in", "a", "tall",
        "king", "spoke", "before", "winter",
    ];
    let mut text = String::with_capacity(tokens + 8);
    let mut word = mix(seed);
    while text.len() < tokens {
        text += WORDS[(word % WORDS.len() as u64) as usize];
        text.push(' ');
        word = mix(word);
    }
    text.truncate(tokens);
    text
}
