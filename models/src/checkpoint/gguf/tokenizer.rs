//! Restores the `tokenizer.json` and `tokenizer_config.json` of a GGUF file.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::super::CheckpointError;
use super::{
    Gguf,
    pre_tokenizer::{PreTokenizer, byte_level},
};

/// The character that SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// The tokens that end a turn or a text, by their text: llama.cpp's list. Many files name one of
/// them as the end of a text and only use another in their chat template.
const TURN_ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "[e~[",
];

/// The entry of `tokenizer_config.json` that makes a conversation begin with the BOS token.
pub(crate) const CHAT_BEGINS_WITH_BOS: &str = "chat_begins_with_bos";

/// The name of the pre-tokenizer.
const PRE: &str = "tokenizer.ggml.pre";

/// The kind of a token, as in SentencePiece.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    /// A special token, which is not shown.
    Control,
    /// Matched as a whole anywhere in a text.
    UserDefined,
}

/// The most bytes in a token of SentencePiece. Real ones have far fewer. The search for merges
/// splits a token at every position.
const MAX_PIECE: usize = 1024;

/// The vocabulary. The id of a token is its index.
pub(super) struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<Kind>,
}

impl Gguf {
    /// Returns the tokenizer in the form of `tokenizer.json`.
    pub(crate) fn tokenizer(&self) -> Result<Value, CheckpointError> {
        let vocabulary = self.vocabulary()?;
        const MODEL: &str = "tokenizer.ggml.model";
        let mut tokenizer = match self.required_str(MODEL)? {
            "gpt2" => self.byte_level(&vocabulary)?,
            "llama" => self.sentence_piece(&vocabulary)?,
            _ => return Err(self.unexpected(MODEL, "gpt2 or llama")),
        };
        tokenizer["version"] = "1.0".into();
        let tokens = vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate();
        let added = tokens.filter(|(_, (_, kind))| **kind != Kind::Text);
        let added = added.map(|(id, (token, kind))| {
            json!({
                "id": id, "content": token, "special": *kind == Kind::Control,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        });
        tokenizer["added_tokens"] = added.collect();
        if let Some(processor) = self.beginning(&vocabulary)? {
            tokenizer["post_processor"] = processor;
        }
        Ok(tokenizer)
    }

    /// Returns the chat template and the tokens that it uses, in the form of
    /// `tokenizer_config.json`.
    pub(crate) fn tokenizer_config(&self) -> Result<Value, CheckpointError> {
        let vocabulary = self.vocabulary()?;
        let mut config = Map::new();
        let names = [
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("unk_token", "unknown_token_id"),
            ("pad_token", "padding_token_id"),
        ];
        for (name, key) in names {
            if let Some(id) = self.token(key, &vocabulary)? {
                config.insert(name.into(), vocabulary.tokens[id].into());
            }
        }
        const TEMPLATE: &str = "tokenizer.chat_template";
        match self.get(TEMPLATE) {
            None => {}
            Some(Value::String(template)) => {
                config.insert("chat_template".into(), template.as_str().into());
                let begins = self.bos(&vocabulary)?.is_some();
                config.insert(CHAT_BEGINS_WITH_BOS.into(), begins.into());
            }
            Some(_) => return Err(self.unexpected(TEMPLATE, "a string")),
        }
        Ok(Value::Object(config))
    }

    pub(super) fn vocabulary(&self) -> Result<Vocabulary<'_>, CheckpointError> {
        let tokens = self.strings("tokenizer.ggml.tokens")?;
        const KINDS: &str = "tokenizer.ggml.token_type";
        let kinds = match self.get(KINDS) {
            None => vec![Kind::Text; tokens.len()],
            Some(_) => {
                let kind = |kind: &Value| match kind.as_i64() {
                    // The unknown token (2) counts as control (3): neither is text.
                    Some(2 | 3) => Kind::Control,
                    Some(4) => Kind::UserDefined,
                    _ => Kind::Text,
                };
                self.required_list(KINDS)?.iter().map(kind).collect()
            }
        };
        self.same_length(KINDS, kinds.len(), tokens.len())?;
        let mut vocabulary = Vocabulary { tokens, kinds };
        for id in vocabulary.turn_ends() {
            vocabulary.kinds[id] = Kind::Control;
        }
        Ok(vocabulary)
    }

    fn strings(&self, key: &str) -> Result<Vec<&str>, CheckpointError> {
        let strings = self.required_list(key)?.iter().map(Value::as_str);
        let strings: Option<Vec<_>> = strings.collect();
        strings.ok_or_else(|| self.unexpected(key, "a list of strings"))
    }

    fn same_length(&self, key: &str, found: usize, tokens: usize) -> Result<(), CheckpointError> {
        match found == tokens {
            true => Ok(()),
            false => Err(self.unexpected(key, format!("a list of {tokens}, one for each token"))),
        }
    }

    /// Returns the id of the token that `tokenizer.ggml.{key}` names. -1, as a signed or unsigned
    /// number, means none.
    pub(super) fn token(
        &self,
        key: &str,
        vocabulary: &Vocabulary<'_>,
    ) -> Result<Option<usize>, CheckpointError> {
        let key = format!("tokenizer.ggml.{key}");
        let Some(id) = self.get(&key).filter(|id| !is_no_token(id)) else {
            return Ok(self.default_token(&key, vocabulary));
        };
        let count = vocabulary.tokens.len();
        let place = id.as_u64().and_then(|id| usize::try_from(id).ok());
        let place = place.filter(|&place| place < count);
        place
            .map(Some)
            .ok_or_else(|| self.unexpected(&key, format!("one of {count} tokens")))
    }

    /// Returns the token of the entry `key` in a file that does not name one: those of
    /// SentencePiece have the ids of Llama.
    fn default_token(&self, key: &str, vocabulary: &Vocabulary<'_>) -> Option<usize> {
        const DEFAULTS: [(&str, usize); 3] = [
            ("tokenizer.ggml.unknown_token_id", 0),
            ("tokenizer.ggml.bos_token_id", 1),
            ("tokenizer.ggml.eos_token_id", 2),
        ];
        let (_, id) = DEFAULTS.into_iter().find(|(own, _)| *own == key)?;
        (self.is_sentence_piece() && id < vocabulary.tokens.len()).then_some(id)
    }

    fn is_sentence_piece(&self) -> bool {
        let model = self.get("tokenizer.ggml.model").and_then(Value::as_str);
        model == Some("llama")
    }

    fn switch(&self, key: &str, default: bool) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(default)
    }

    /// Returns BPE over bytes, as in GPT-2.
    fn byte_level(&self, vocabulary: &Vocabulary<'_>) -> Result<Value, CheckpointError> {
        let pre_tokenizer = self.pre_tokenizer()?;
        if pre_tokenizer.is_default() {
            // Files of early converters, which did not know the tokenizer of the model.
            tracing::warn!(
                "{}: \"{PRE}\" names no pre-tokenizer; texts are split as llama.cpp does by default, \
                 perhaps not as the model was trained",
                self.path().display(),
            );
        }
        let merges = self.strings("tokenizer.ggml.merges")?;
        Ok(json!({
            "normalizer": pre_tokenizer.normalizer(),
            "pre_tokenizer": pre_tokenizer.pre_tokenizer(),
            "decoder": byte_level(),
            "model": {
                "type": "BPE",
                "vocab": vocabulary.ids(),
                "merges": merges,
                "ignore_merges": pre_tokenizer.ignores_merges,
            },
        }))
    }

    /// Returns how a byte-level tokenizer splits a text.
    fn pre_tokenizer(&self) -> Result<&'static PreTokenizer, CheckpointError> {
        let name = self.get(PRE).and_then(Value::as_str);
        let found = PreTokenizer::find(name);
        found.ok_or_else(|| self.unexpected(PRE, format!("one of {}", PreTokenizer::names())))
    }

    /// Returns BPE over characters with a fallback to bytes, as in SentencePiece. Its merges are
    /// the pairs of tokens whose concatenation is a token, in the order of that token's score.
    fn sentence_piece(&self, vocabulary: &Vocabulary<'_>) -> Result<Value, CheckpointError> {
        const SCORES: &str = "tokenizer.ggml.scores";
        let scores = self.required_list(SCORES)?.iter().map(Value::as_f64);
        let scores: Option<Vec<_>> = scores.collect();
        let scores = scores.ok_or_else(|| self.unexpected(SCORES, "a list of numbers"))?;
        self.same_length(SCORES, scores.len(), vocabulary.tokens.len())?;

        let ids: HashMap<&str, usize> = vocabulary
            .tokens
            .iter()
            .enumerate()
            .map(|(id, token)| (*token, id))
            .collect();
        let mut merges = Vec::new();
        for (id, token) in vocabulary.tokens.iter().enumerate() {
            if vocabulary.kinds[id] != Kind::Text {
                continue;
            }
            if token.len() > MAX_PIECE {
                let expected = format!("pieces of at most {MAX_PIECE} bytes");
                let found = format!("one of {}", token.len());
                return Err(self.error("tokenizer.ggml.tokens", expected, found));
            }
            for (cut, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(cut);
                if let (Some(&first), Some(&second)) = (ids.get(left), ids.get(right)) {
                    merges.push((scores[id], first, second));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let tokens = &vocabulary.tokens;
        let merges: Vec<_> = merges
            .iter()
            .map(|merge| json!([tokens[merge.1], tokens[merge.2]]))
            .collect();

        let mut normalizers =
            vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.switch("tokenizer.ggml.add_space_prefix", true) {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = self.token("unknown_token_id", vocabulary)?;
        Ok(json!({
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE",
                "vocab": vocabulary.ids(),
                "merges": merges,
                "unk_token": unknown.map(|id| tokens[id]),
                "fuse_unk": true,
                "byte_fallback": true,
            },
        }))
    }

    /// Returns the token that every text begins with, if the model needs one.
    fn bos(&self, vocabulary: &Vocabulary<'_>) -> Result<Option<usize>, CheckpointError> {
        let by_default = self.is_sentence_piece() || self.pre_tokenizer()?.begins_with_bos;
        let id = self.token("bos_token_id", vocabulary)?;
        Ok(id.filter(|_| self.switch("tokenizer.ggml.add_bos_token", by_default)))
    }

    /// Returns the post-processor that adds the first token to a text, if the model needs it.
    fn beginning(&self, vocabulary: &Vocabulary<'_>) -> Result<Option<Value>, CheckpointError> {
        let Some(id) = self.bos(vocabulary)? else {
            return Ok(None);
        };
        let token = vocabulary.tokens[id];
        let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
        let text = |part: &str| json!({"Sequence": {"id": part, "type_id": 0}});
        Ok(Some(json!({
            "type": "TemplateProcessing",
            "single": [special, text("A")],
            "pair": [special, text("A"), special, text("B")],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
        })))
    }
}

/// Returns whether a token id means that there is none.
pub(super) fn is_no_token(id: &Value) -> bool {
    id.as_i64() == Some(-1) || id.as_u64() == Some(u64::from(u32::MAX))
}

impl Vocabulary<'_> {
    /// Returns the tokens that end a turn or a text by their text, each text once.
    pub(super) fn turn_ends(&self) -> Vec<usize> {
        let has = |text: &str| self.tokens.contains(&text);
        // Models with these two continue after <|end|>, and Gemma 4 after </s>.
        let calls = has("<|return|>") && has("<|call|>");
        let flushes = (has("<|call|>") || has("<|calls|>")) && has("<|flush|>");
        let ends = |token: &str| match token {
            "<|end|>" => !(calls || flushes),
            "</s>" => !has("<|tool_response>"),
            token => TURN_ENDS.contains(&token),
        };
        let mut seen = HashSet::new();
        let tokens = self.tokens.iter().enumerate();
        let found = tokens.filter(|(_, token)| ends(token) && seen.insert(**token));
        found.map(|(id, _)| id).collect()
    }

    /// Returns the ids by token. A duplicate token keeps its first id.
    fn ids(&self) -> Value {
        let mut ids = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            ids.entry(*token).or_insert(id.into());
        }
        Value::Object(ids)
    }
}
