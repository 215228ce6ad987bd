//! How byte-level tokenizers split a text before they merge, by the names in
//! `tokenizer.ggml.pre`.

use serde_json::{Value, json};

/// A pre-tokenizer of llama.cpp.
pub(super) struct PreTokenizer {
    /// The patterns that split a text, one after the other. A match is a part of its own.
    patterns: &'static [&'static str],
    /// Whether a part that is a token stays whole, even if no merges produce it.
    pub(super) ignores_merges: bool,
    /// Whether every text begins with the BOS token, if the file does not say.
    pub(super) begins_with_bos: bool,
    /// Whether composed characters are normalised (NFC).
    normalizes: bool,
}

/// The pattern of GPT-2.
const GPT2: &str = concat!(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+",
    r"|\s+(?!\S)|\s+",
);

/// A single digit.
const DIGIT: &str = r"\p{N}";

/// The pattern of GPT-4, with the digits that stay together.
macro_rules! words {
    ($digits:literal) => {
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    };
}

/// The pattern of GPT-4o, in which a capital begins a part, with the endings that stay with a word
/// and the digits that stay together.
macro_rules! cased_words {
    ($endings:literal, $digits:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $endings,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $endings,
            "|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    };
}

/// The one of a file without a name, whatever model it has.
static DEFAULT: PreTokenizer =
    PreTokenizer::new(&[r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]);

/// The known pre-tokenizers by their names.
static ALL: [(&[&str], PreTokenizer); 8] = [
    (
        &[
            "gpt-2",
            "phi-2",
            "olmo",
            "mpt",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "mellum",
            "a.x-4.0",
        ],
        PreTokenizer::new(&[GPT2]),
    ),
    (
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "minerva-7b",
            "mellum2",
        ],
        PreTokenizer::new(&[DIGIT, GPT2]),
    ),
    (
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "pixtral",
            "midm-2.0",
        ],
        PreTokenizer {
            ignores_merges: true,
            begins_with_bos: true,
            ..PreTokenizer::new(&[words!(r"\p{N}{1,3}")])
        },
    ),
    (
        &["dbrx", "smaug-bpe"],
        PreTokenizer::new(&[words!(r"\p{N}{1,3}")]),
    ),
    (
        &["qwen2", "deepseek-r1-qwen", "megrez", "kormo"],
        PreTokenizer {
            normalizes: true,
            ..PreTokenizer::new(&[words!(r"\p{N}")])
        },
    ),
    (
        &["stablelm2", "hunyuan", "solar-open"],
        PreTokenizer::new(&[words!(r"\p{N}")]),
    ),
    (
        &["gpt-4o", "kanana2"],
        PreTokenizer::new(&[cased_words!("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}")]),
    ),
    (
        &["tekken"],
        PreTokenizer {
            ignores_merges: true,
            begins_with_bos: true,
            ..PreTokenizer::new(&[cased_words!("", r"\p{N}")])
        },
    ),
];

impl PreTokenizer {
    const fn new(patterns: &'static [&'static str]) -> Self {
        Self {
            patterns,
            ignores_merges: false,
            begins_with_bos: false,
            normalizes: false,
        }
    }

    /// Returns the pre-tokenizer of a name, or of a file that names none.
    pub(super) fn find(name: Option<&str>) -> Option<&'static Self> {
        let Some(name) = name.filter(|&name| name != "default") else {
            return Some(&DEFAULT);
        };
        let mut all = ALL.iter();
        let found = all.find(|(names, _)| names.contains(&name));
        found.map(|(_, pre_tokenizer)| pre_tokenizer)
    }

    /// Returns whether this is the one of a file that names none.
    pub(super) fn is_default(&self) -> bool {
        std::ptr::eq(self, &raw const DEFAULT)
    }

    /// Returns the names of all pre-tokenizers, for messages.
    pub(super) fn names() -> String {
        let names: Vec<_> = ALL.iter().flat_map(|(names, _)| *names).copied().collect();
        names.join(", ")
    }

    /// Returns the entry `pre_tokenizer` of a `tokenizer.json`.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let split = |pattern: &&str| {
            json!({
                "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                "invert": false,
            })
        };
        let splits = self.patterns.iter().map(split);
        let all: Vec<_> = splits.chain([byte_level()]).collect();
        json!({"type": "Sequence", "pretokenizers": all})
    }

    /// Returns the entry `normalizer` of a `tokenizer.json`.
    pub(super) fn normalizer(&self) -> Value {
        match self.normalizes {
            true => json!({"type": "NFC"}),
            false => Value::Null,
        }
    }
}

/// Returns the conversion between bytes and characters, which splits nothing.
pub(super) fn byte_level() -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    })
}
