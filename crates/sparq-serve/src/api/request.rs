//! The bodies of requests.

use serde_json::Value;
use sparq_models::text::ChatMessage;

use super::fields::{Fields, brief, wrong};
use super::{ApiError, Params};

/// A text or its tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A text, to be encoded with the tokenizer's special tokens.
    Text(String),
    /// Tokens.
    Tokens(Vec<u32>),
}

/// The most prompts of a request.
const MOST_PROMPTS: usize = 128;

const PROMPT: &str =
    "a string, an array of token ids, or an array of at most 128 strings or arrays of token ids";

/// A request to `/v1/completions`.
#[derive(Clone, Debug)]
pub struct CompletionRequest {
    /// The shared parameters.
    pub params: Params,
    /// The prompts.
    pub prompts: Vec<Prompt>,
    /// The most tokens of an answer. OpenAI's default is 16.
    pub max_tokens: usize,
    /// The number of most probable tokens to report.
    pub logprobs: Option<usize>,
    /// Whether the answers begin with their prompts.
    pub echo: bool,
}

impl CompletionRequest {
    /// Parses a body.
    ///
    /// # Errors
    /// If it is no JSON object, or for the first parameter that is wrong or unknown.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let params = Params::take(&mut fields)?;
        let prompts = prompts(fields.required("prompt", PROMPT)?)?;
        let max_tokens = fields.integer("max_tokens", 0..=usize::MAX)?.unwrap_or(16);
        let logprobs = fields.integer("logprobs", 0..=20)?;
        let echo = fields.flag("echo")?;
        if echo && logprobs.is_some() {
            let message = "expected false with logprobs, found true";
            return Err(ApiError::param("echo", message));
        }
        if let Some(best) = fields.integer("best_of", 1..=128)?
            && best != params.choices
        {
            let message = format!("expected {} (n), found {best}", params.choices);
            return Err(ApiError::param("best_of", message));
        }
        if let Some(suffix) = fields.value("suffix") {
            return Err(wrong("suffix", "none", &suffix));
        }
        fields.finish()?;
        Ok(Self {
            params,
            prompts,
            max_tokens,
            logprobs,
            echo,
        })
    }
}

fn prompts(value: Value) -> Result<Vec<Prompt>, ApiError> {
    let error = wrong("prompt", PROMPT, &value);
    let items = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) if !items.is_empty() => items,
        _ => return Err(error),
    };
    if items[0].is_number() {
        return Ok(vec![Prompt::Tokens(tokens(&items)?)]);
    }
    if items.len() > MOST_PROMPTS {
        return Err(error);
    }
    let prompt = |item: Value| match item {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) => Ok(Prompt::Tokens(tokens(&ids)?)),
        other => Err(wrong("prompt", PROMPT, &other)),
    };
    items.into_iter().map(prompt).collect()
}

fn tokens(items: &[Value]) -> Result<Vec<u32>, ApiError> {
    let id = |item: &Value| {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| wrong("prompt", "token ids", item))
    };
    items.iter().map(id).collect()
}

/// A request to `/v1/chat/completions`.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// The shared parameters.
    pub params: Params,
    /// The conversation.
    pub messages: Vec<ChatMessage>,
    /// The most tokens of an answer.
    pub max_tokens: Option<usize>,
    /// The number of most probable tokens to report.
    pub logprobs: Option<usize>,
}

impl ChatRequest {
    /// Parses a body.
    ///
    /// # Errors
    /// As [`CompletionRequest::parse`].
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let params = Params::take(&mut fields)?;
        let messages = messages(fields.required("messages", MESSAGES)?)?;
        let old = fields.integer("max_tokens", 0..=usize::MAX)?;
        let max_tokens = fields
            .integer("max_completion_tokens", 0..=usize::MAX)?
            .or(old);
        let top = fields.integer("top_logprobs", 0..=20)?;
        let logprobs = match (fields.flag("logprobs")?, top) {
            (true, top) => Some(top.unwrap_or(0)),
            (false, None | Some(0)) => None,
            (false, Some(top)) => {
                let message = format!("expected with \"logprobs\": true only, found {top}");
                return Err(ApiError::param("top_logprobs", message));
            }
        };
        refuse(&mut fields, "tools", &[Value::Array(Vec::new())])?;
        refuse(&mut fields, "tool_choice", &["none".into(), "auto".into()])?;
        refuse(&mut fields, "modalities", &[serde_json::json!(["text"])])?;
        fields.ignore(&["parallel_tool_calls", "reasoning_effort", "verbosity"]);
        fields.finish()?;
        Ok(Self {
            params,
            messages,
            max_tokens,
            logprobs,
        })
    }
}

/// Refuses all but some values of a parameter whose others this server does not have.
fn refuse(fields: &mut Fields, name: &'static str, allowed: &[Value]) -> Result<(), ApiError> {
    match fields.value(name) {
        Some(value) if !allowed.contains(&value) => {
            let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
            let expected = format!("none or {}", allowed.join(" or "));
            let found = value.to_string();
            let found: String = found.chars().take(80).collect();
            let message = format!("expected {expected}, found {found}");
            Err(ApiError::param(name, message))
        }
        _ => Ok(()),
    }
}

const MESSAGES: &str = "an array of at least one message {\"role\": ..., \"content\": ...}";

fn messages(value: Value) -> Result<Vec<ChatMessage>, ApiError> {
    match value {
        Value::Array(items) if !items.is_empty() => {
            items.into_iter().enumerate().map(message).collect()
        }
        other => Err(wrong("messages", MESSAGES, &other)),
    }
}

fn message((index, value): (usize, Value)) -> Result<ChatMessage, ApiError> {
    let name = |key: &str| format!("messages[{index}]{key}");
    let Value::Object(mut map) = value else {
        return Err(wrong(&name(""), "an object with role and content", &value));
    };
    let role = map.remove("role").unwrap_or_default();
    let role = match role.as_str() {
        // The later name of the same role.
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        _ => {
            let expected = "system, developer, user, assistant or tool";
            return Err(wrong(&name(".role"), expected, &role));
        }
    };
    let content = map.remove("content").unwrap_or_default();
    let text = match &content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(part).collect::<Option<String>>(),
        _ => None,
    };
    let expected = "a string or an array of {\"type\": \"text\", \"text\": ...}";
    let text = text.ok_or_else(|| wrong(&name(".content"), expected, &content))?;
    // Clients send back what answers had.
    let unused = [
        "name",
        "refusal",
        "annotations",
        "audio",
        "function_call",
        "tool_calls",
    ];
    map.retain(|key, value| !(unused.contains(&key.as_str()) && is_empty(value) || key == "name"));
    match map.iter().next() {
        None => Ok(ChatMessage::new(role, text)),
        Some((key, value)) => {
            let found = format!("{key:?}: {}", brief(value));
            let message = format!("expected role, content and name, found {found}");
            Err(ApiError::param(&name(""), message))
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// The text of a part of a content.
fn part(part: &Value) -> Option<&str> {
    let map = part.as_object()?;
    let text = map.get("text")?.as_str()?;
    (map.get("type")?.as_str()? == "text").then_some(text)
}

/// A request to `/tokenize`, of a text or a conversation.
#[derive(Clone, Debug)]
pub struct TokenizeRequest {
    /// The model.
    pub model: Option<String>,
    /// The input to encode.
    pub input: TokenizeInput,
}

/// The input to encode.
#[derive(Clone, Debug)]
pub enum TokenizeInput {
    /// A text, with the special tokens of the tokenizer or without.
    Text {
        /// The text.
        text: String,
        /// Whether special tokens are added.
        special: bool,
    },
    /// A conversation, up to the beginning of the answer.
    Chat(Vec<ChatMessage>),
}

impl TokenizeRequest {
    /// Parses a body.
    ///
    /// # Errors
    /// As [`CompletionRequest::parse`].
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.text("model")?;
        let special = match fields.value("add_special_tokens") {
            None => true,
            Some(Value::Bool(special)) => special,
            Some(other) => return Err(wrong("add_special_tokens", "true or false", &other)),
        };
        let (text, chat) = (fields.text("prompt")?, fields.value("messages"));
        let input = match (text, chat) {
            (Some(text), None) => TokenizeInput::Text { text, special },
            (None, Some(chat)) => TokenizeInput::Chat(messages(chat)?),
            (Some(_), Some(_)) => {
                return Err(ApiError::body("expected prompt or messages, found both"));
            }
            (None, None) => {
                return Err(ApiError::body("expected prompt or messages, found neither"));
            }
        };
        fields.finish()?;
        Ok(Self { model, input })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: &str) -> Result<ChatRequest, ApiError> {
        ChatRequest::parse(body.as_bytes())
    }

    #[test]
    fn prompt_has_four_forms() {
        let of = |prompt: &str| {
            let body = format!("{{\"prompt\": {prompt}}}");
            CompletionRequest::parse(body.as_bytes()).map(|request| request.prompts)
        };
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(of("\"a\""), Ok(vec![text("a")]));
        assert_eq!(of("[1, 2]"), Ok(vec![Prompt::Tokens(vec![1, 2])]));
        assert_eq!(of("[\"a\", \"b\"]"), Ok(vec![text("a"), text("b")]));
        let two = vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])];
        assert_eq!(of("[[1], [2, 3]]"), Ok(two));
        for wrong in [
            "[]",
            "{}",
            "1",
            "[true]",
            "[1, \"a\"]",
            "[-1]",
            "[4294967296]",
        ] {
            let error = of(wrong).unwrap_err();
            assert_eq!(
                (error.param.as_deref(), error.status),
                (Some("prompt"), 400)
            );
        }
    }

    #[test]
    fn content_is_a_string_or_parts() {
        let body = r#"{"messages": [{"role": "developer", "content": "a"}, {"role": "user",
            "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]}]}"#;
        let expected = [ChatMessage::system("a"), ChatMessage::user("bc")];
        assert_eq!(chat(body).unwrap().messages, expected);
        let image = r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#;
        let error = chat(image).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages[0].content"));
    }

    #[test]
    fn what_the_server_lacks_is_refused() {
        let messages = r#""messages": [{"role": "user", "content": "a"}]"#;
        for (parameter, name) in [
            (r#""tools": [{"type": "function"}]"#, "tools"),
            (r#""top_logprobs": 2"#, "top_logprobs"),
            (
                r#""stream_options": {"include_usage": true}"#,
                "stream_options",
            ),
            (r#""temperature": 3"#, "temperature"),
            (r#""stop": [""]"#, "stop"),
            (r#""logit_bias": {"1": 200}"#, "logit_bias"),
            (r#""surprise": 1"#, "surprise"),
        ] {
            let error = chat(&format!("{{{messages}, {parameter}}}")).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name));
            assert!(error.message.contains("expected") && error.message.contains("found"));
        }
        let allowed = r#""tools": [], "tool_choice": "none", "user": "u", "n": 2, "seed": -1"#;
        let request = chat(&format!("{{{messages}, {allowed}}}")).unwrap();
        assert_eq!(
            (request.params.choices, request.params.sampling.seed),
            (2, u64::MAX)
        );
    }
}
