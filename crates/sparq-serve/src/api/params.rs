//! The parameters that completions and chats share: [`Params`].

use std::hash::{BuildHasher, RandomState};

use serde_json::Value;
use sparq_models::text::SamplingConfig;

use super::ApiError;
use super::fields::{Fields, brief, wrong};
use super::format;
use crate::engine::Penalties;

/// The most stop strings.
const MOST_STOPS: usize = 16;
/// The most tokens with a bias, as in OpenAI's API.
const MOST_BIASES: usize = 300;

/// The parameters that completions and chats share.
#[derive(Clone, Debug)]
pub struct Params {
    /// The model.
    pub model: Option<String>,
    /// The number of answers to each prompt.
    pub choices: usize,
    /// The settings of sampling.
    pub sampling: SamplingConfig,
    /// The changes of logits.
    pub penalties: Penalties,
    /// The stop strings.
    pub stop: Vec<String>,
    /// The JSON schema of the answers. `None` allows any text.
    pub schema: Option<Value>,
    /// Whether end-of-sequence tokens do not end an answer.
    pub ignore_eos: bool,
    /// Whether the answer is sent in chunks.
    pub stream: bool,
    /// Whether the last chunk has the numbers of tokens.
    pub stream_usage: bool,
    /// The name of the method of decode steps.
    pub method: Option<String>,
}

impl Params {
    /// Takes the parameters.
    ///
    /// # Errors
    /// For the first one of the wrong type or outside its range.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let model = fields.text("model")?;
        let stream = fields.flag("stream")?;
        let sampling = SamplingConfig {
            temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
            top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
            top_k: fields.integer("top_k", 0..=usize::MAX)?.unwrap_or(0),
            repetition_penalty: fields
                .number("repetition_penalty", 0.01..=10.0)?
                .unwrap_or(1.0),
            repetition_window: 0,
            seed: seed(fields)?,
        };
        let penalties = Penalties {
            presence: fields
                .number("presence_penalty", -2.0..=2.0)?
                .unwrap_or(0.0),
            frequency: fields
                .number("frequency_penalty", -2.0..=2.0)?
                .unwrap_or(0.0),
            bias: biases(fields)?,
        };
        fields.ignore(&[
            "user",
            "metadata",
            "store",
            "service_tier",
            "safety_identifier",
        ]);
        fields.ignore(&["prompt_cache_key"]);
        Ok(Self {
            model,
            choices: fields.integer("n", 1..=128)?.unwrap_or(1),
            sampling,
            penalties,
            stop: stops(fields)?,
            schema: format::schema(fields)?,
            ignore_eos: fields.flag("ignore_eos")?,
            stream,
            stream_usage: stream_usage(fields, stream)?,
            method: fields.text("method")?,
        })
    }
}

/// Takes the seed. Without one, every request has another.
fn seed(fields: &mut Fields) -> Result<u64, ApiError> {
    match fields.value("seed") {
        // The keys of a new state are random.
        None => Ok(RandomState::new().hash_one(0)),
        Some(value) => {
            let number = value.as_u64().or(value.as_i64().map(i64::cast_unsigned));
            number.ok_or_else(|| wrong("seed", "a whole number of 64 bits", &value))
        }
    }
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let expected = format!("a string, or an array of at most {MOST_STOPS} strings, none empty");
    let values = match fields.value("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) if values.len() <= MOST_STOPS => values,
        Some(value @ Value::String(_)) => vec![value],
        Some(other) => return Err(wrong("stop", &expected, &other)),
    };
    let text = |value: &Value| match value.as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(wrong("stop", &expected, value)),
    };
    values.iter().map(text).collect()
}

fn biases(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let expected =
        format!("an object of at most {MOST_BIASES} numbers from -100 to 100 by token id");
    let map = match fields.value("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) if map.len() <= MOST_BIASES => map,
        Some(other) => return Err(wrong("logit_bias", &expected, &other)),
    };
    let pair = |(id, value): (String, Value)| {
        let bias = value
            .as_f64()
            .filter(|bias| (-100.0..=100.0).contains(bias));
        let pair = id.parse().ok().zip(bias.map(|bias| bias as f32));
        let found = || format!("expected {expected}, found {id:?}: {}", brief(&value));
        pair.ok_or_else(|| ApiError::param("logit_bias", found()))
    };
    map.into_iter().map(pair).collect()
}

fn stream_usage(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(value) = fields.value("stream_options") else {
        return Ok(false);
    };
    if !stream {
        let message = "expected with \"stream\": true only, found without";
        return Err(ApiError::param("stream_options", message));
    }
    let expected = "{\"include_usage\": true or false}";
    let error = wrong("stream_options", expected, &value);
    let Value::Object(mut map) = value else {
        return Err(error);
    };
    map.remove("include_obfuscation");
    match (map.remove("include_usage"), map.is_empty()) {
        (Some(Value::Bool(usage)), true) => Ok(usage),
        (None, true) => Ok(false),
        _ => Err(error),
    }
}
