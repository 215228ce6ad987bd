//! The bodies of responses.

use serde::Serialize;
use serde_json::{Value, json};
use sparq_models::text::TextTokenizer;

use crate::engine::{Finish, TokenLogprobs, Traffic};

/// The two kinds of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/completions`.
    Completion,
    /// `/v1/chat/completions`.
    Chat,
}

/// The part that all documents of one response share.
#[derive(Clone, Debug)]
pub struct Head {
    /// The kind.
    pub kind: Kind,
    /// The name of the response.
    pub id: String,
    /// When it began, in seconds since 1970.
    pub created: u64,
    /// The model.
    pub model: String,
}

/// The numbers of tokens of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// The tokens of the prompts.
    pub prompt_tokens: usize,
    /// The tokens of the answers.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// A part of the tokens of the prompts.
    pub prompt_tokens_details: PromptDetails,
}

/// The details of the tokens of prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PromptDetails {
    /// The tokens whose keys and values were known from an earlier request.
    pub cached_tokens: usize,
}

impl Usage {
    /// Counts the tokens of a prompt.
    pub fn add_prompt(&mut self, tokens: usize) {
        self.prompt_tokens += tokens;
        self.total_tokens += tokens;
    }

    /// Counts the tokens of an answer.
    pub fn add_answer(&mut self, tokens: usize) {
        self.completion_tokens += tokens;
        self.total_tokens += tokens;
    }
}

/// An answer, whole or a piece.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// The index among the answers of the response.
    pub index: usize,
    /// The text.
    pub text: String,
    /// Its tokens, if they were asked for.
    pub logprobs: Option<Vec<TokenLogprobs>>,
    /// The characters of the answer before this piece.
    pub offset: usize,
    /// The reason for the end, in the last piece.
    pub finish: Option<Finish>,
}

impl Head {
    fn document(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    /// Returns the document of whole answers.
    pub fn whole(
        &self,
        pieces: &[Piece],
        usage: &Usage,
        traffic: &SparqStats,
        tokenizer: &TextTokenizer,
    ) -> Value {
        let choice = |piece: &Piece| {
            let mut choice = json!({
                "index": piece.index,
                "logprobs": self.logprobs(piece, tokenizer),
                "finish_reason": finish_name(piece.finish),
            });
            match self.kind {
                Kind::Completion => choice["text"] = json!(piece.text),
                Kind::Chat => {
                    let message =
                        json!({ "role": "assistant", "content": piece.text, "refusal": null });
                    choice["message"] = message;
                }
            }
            choice
        };
        let object = match self.kind {
            Kind::Completion => "text_completion",
            Kind::Chat => "chat.completion",
        };
        let mut document = self.document(object, pieces.iter().map(choice).collect());
        document["usage"] = json!(usage);
        document["sparq"] = json!(traffic);
        document
    }

    /// Returns the document of a piece.
    pub fn chunk(&self, piece: &Piece, tokenizer: &TextTokenizer) -> Value {
        let mut choice = json!({
            "index": piece.index,
            "logprobs": self.logprobs(piece, tokenizer),
            "finish_reason": finish_name(piece.finish),
        });
        match self.kind {
            Kind::Completion => choice["text"] = json!(piece.text),
            Kind::Chat if piece.text.is_empty() => choice["delta"] = json!({}),
            Kind::Chat => choice["delta"] = json!({ "content": piece.text }),
        }
        self.document(self.chunk_object(), vec![choice])
    }

    /// Returns the first document of an answer in a chat, which has the role.
    pub fn opening(&self, index: usize) -> Value {
        let choice = json!({
            "index": index,
            "delta": { "role": "assistant", "content": "" },
            "logprobs": null,
            "finish_reason": null,
        });
        self.document(self.chunk_object(), vec![choice])
    }

    /// Returns the last document of a stream.
    pub fn closing(&self, usage: &Usage, traffic: &SparqStats) -> Value {
        let mut document = self.document(self.chunk_object(), Vec::new());
        document["usage"] = json!(usage);
        document["sparq"] = json!(traffic);
        document
    }

    fn chunk_object(&self) -> &'static str {
        match self.kind {
            Kind::Completion => "text_completion",
            Kind::Chat => "chat.completion.chunk",
        }
    }

    fn logprobs(&self, piece: &Piece, tokenizer: &TextTokenizer) -> Value {
        let Some(tokens) = &piece.logprobs else {
            return Value::Null;
        };
        // A token that is a part of a character has no text of its own.
        let text = |id: u32| tokenizer.decode(&[id], false).unwrap_or_default();
        match self.kind {
            Kind::Chat => {
                let entry = |id: u32, logprob: f32| {
                    let text = text(id);
                    json!({ "token": text, "logprob": finite(logprob), "bytes": text.as_bytes() })
                };
                let token = |token: &TokenLogprobs| {
                    let mut document = entry(token.token, token.logprob);
                    let top = token.top.iter().map(|&(id, logprob)| entry(id, logprob));
                    document["top_logprobs"] = top.collect();
                    document
                };
                let content: Vec<Value> = tokens.iter().map(token).collect();
                json!({ "content": content, "refusal": null })
            }
            Kind::Completion => {
                let mut offset = piece.offset;
                let offsets: Vec<usize> = tokens
                    .iter()
                    .map(|token| {
                        let before = offset;
                        offset += text(token.token).chars().count();
                        before
                    })
                    .collect();
                let top = |token: &TokenLogprobs| {
                    let pairs = token.top.iter();
                    let pairs = pairs.map(|&(id, logprob)| (text(id), json!(finite(logprob))));
                    Value::Object(pairs.collect())
                };
                json!({
                    "tokens": tokens.iter().map(|token| text(token.token)).collect::<Vec<_>>(),
                    "token_logprobs":
                        tokens.iter().map(|token| finite(token.logprob)).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": offsets,
                })
            }
        }
    }
}

/// JSON has no infinity. OpenAI's API has this number for what is out of reach.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

fn finish_name(finish: Option<Finish>) -> Option<&'static str> {
    finish.map(|finish| match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    })
}

/// The bytes that the decode steps of a response moved: the field `sparq` beside OpenAI's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SparqStats {
    /// The method.
    pub method: &'static str,
    /// The bytes of cache that a step of an answer moved, on average.
    pub cache_bytes_per_token: f64,
    /// Those of dense attention.
    pub dense_bytes_per_token: f64,
}

impl SparqStats {
    /// Divides the bytes of all answers by their steps.
    pub fn new(method: &'static str, traffic: &Traffic) -> Self {
        let steps = traffic.steps.max(1) as f64;
        Self {
            method,
            cache_bytes_per_token: traffic.bytes / steps,
            dense_bytes_per_token: traffic.dense_bytes / steps,
        }
    }
}
