//! The routes, from a request to a response: [`handle`].

use std::io;

use serde_json::json;
use sparq::Method;
use sparq_models::text::ChatMessage;

use super::answer::{self, Job};
use super::connection::Connection;
use super::message::{HttpRequest, HttpResponse};
use super::server::State;
use crate::api::request::TokenizeInput;
use crate::api::response::Kind;
use crate::api::{ApiError, ChatRequest, CompletionRequest, Params, Prompt, TokenizeRequest};
use crate::engine::Request;

/// The resource of a request.
enum Route {
    Page,
    Health,
    Metrics,
    Models,
    Model(String),
    Completions,
    Chat,
    Tokenize,
}

impl Route {
    /// Finds the route of a request.
    fn of(request: &HttpRequest) -> Result<Self, ApiError> {
        let (route, expected) = match request.path.as_str() {
            "/" => (Route::Page, "GET"),
            "/health" => (Route::Health, "GET"),
            "/metrics" => (Route::Metrics, "GET"),
            "/v1/models" => (Route::Models, "GET"),
            "/v1/completions" => (Route::Completions, "POST"),
            "/v1/chat/completions" => (Route::Chat, "POST"),
            "/tokenize" => (Route::Tokenize, "POST"),
            path => match path.strip_prefix("/v1/models/") {
                Some(name) => (Route::Model(percent_decoded(name)), "GET"),
                None => {
                    let path: String = path.chars().take(80).collect();
                    let message = format!("expected a path of this server, found {path:?}");
                    return Err(ApiError::new(404, Some("unknown_url"), message));
                }
            },
        };
        let found = request.method.as_str();
        match found == expected || (expected == "GET" && found == "HEAD") {
            true => Ok(route),
            false => {
                let found: String = found.chars().take(20).collect();
                let message = format!(
                    "method of {}: expected {expected}, found {found}",
                    request.path
                );
                Err(ApiError::new(405, None, message))
            }
        }
    }

    /// Returns whether clients need a key. Probes and scrapers have none, and the page is public.
    fn needs_key(&self) -> bool {
        !matches!(self, Route::Page | Route::Health | Route::Metrics)
    }
}

/// Responds to a request.
///
/// # Errors
/// If the connection ends.
pub(super) fn handle(
    state: &State,
    request: &HttpRequest,
    connection: &mut Connection,
    keep_alive: bool,
) -> io::Result<()> {
    let response = match respond(state, request, connection, keep_alive) {
        Ok(Some(response)) => response,
        // It has been streamed.
        Ok(None) => return Ok(()),
        Err(Failure::Api(error)) => HttpResponse::from(&*error),
        Err(Failure::Connection(error)) => return Err(error),
    };
    connection.write(&response, request.method != "HEAD", keep_alive)
}

/// Why there is no response yet.
pub(super) enum Failure {
    /// The client gets this error.
    Api(Box<ApiError>),
    /// There is no client any more.
    Connection(io::Error),
}

impl<E: Into<ApiError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Api(Box::new(error.into()))
    }
}

fn respond(
    state: &State,
    request: &HttpRequest,
    connection: &mut Connection,
    keep_alive: bool,
) -> Result<Option<HttpResponse>, Failure> {
    let route = Route::of(request)?;
    if route.needs_key() && !state.config.keys.allow(request.authorization.as_deref()) {
        let found = request.authorization.as_ref().map_or("none", |_| "another");
        let message = format!(
            "expected the header \"authorization: Bearer KEY\" with a key of this server, found {found}"
        );
        return Err(ApiError::new(401, Some("invalid_api_key"), message).into());
    }
    let mut stream = answer::Stream {
        connection,
        in_chunks: request.takes_chunks,
        keep_alive,
    };
    Ok(Some(match route {
        Route::Page => page(),
        Route::Health => health(state)?,
        Route::Metrics => HttpResponse::new(
            "text/plain; version=0.0.4; charset=utf-8",
            state.metrics.render(),
        ),
        Route::Models => {
            HttpResponse::json(&json!({ "object": "list", "data": [model_document(state)] }))
        }
        Route::Model(name) => {
            check_model(state, Some(&name))?;
            HttpResponse::json(&model_document(state))
        }
        Route::Tokenize => tokenize(state, &request.body)?,
        Route::Completions => {
            let job = completion_job(state, &request.body)?;
            return answer::answer(state, job, &mut stream);
        }
        Route::Chat => {
            let job = chat_job(state, &request.body)?;
            return answer::answer(state, job, &mut stream);
        }
    }))
}

/// The chat page, which loads nothing else.
fn page() -> HttpResponse {
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                  connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'";
    HttpResponse {
        headers: vec![("content-security-policy", policy.into())],
        ..HttpResponse::new("text/html; charset=utf-8", include_str!("page.html"))
    }
}

fn health(state: &State) -> Result<HttpResponse, ApiError> {
    match state.engine.is_running() {
        true => Ok(HttpResponse::json(&json!({ "status": "ok" }))),
        false => Err(ApiError::new(
            503,
            Some("stopping"),
            "the server takes no requests",
        )),
    }
}

fn model_document(state: &State) -> serde_json::Value {
    let methods: Vec<&str> = state
        .model
        .methods
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    json!({
        "id": state.model.name,
        "object": "model",
        "created": state.created,
        "owned_by": "sparq",
        "max_model_len": state.engine.config().context,
        "methods": methods,
    })
}

/// Checks the name of a model. None stands for the only one.
fn check_model(state: &State, name: Option<&str>) -> Result<(), ApiError> {
    match name {
        Some(name) if name != state.model.name => {
            let found: String = name.chars().take(80).collect();
            let message = format!("model: expected {:?}, found {found:?}", state.model.name);
            Err(ApiError {
                param: Some("model".into()),
                ..ApiError::new(404, Some("model_not_found"), message)
            })
        }
        _ => Ok(()),
    }
}

fn method(state: &State, name: Option<&str>) -> Result<Method, ApiError> {
    let methods = &state.model.methods;
    let Some(name) = name else {
        return Ok(methods[0].1);
    };
    let method = methods.iter().find(|(other, _)| other == name);
    method.map(|&(_, method)| method).ok_or_else(|| {
        let names: Vec<&str> = methods.iter().map(|(name, _)| name.as_str()).collect();
        let found: String = name.chars().take(40).collect();
        let message = format!("expected one of {}, found {found:?}", names.join(", "));
        ApiError::param("method", message)
    })
}

/// Makes the engine's request for one prompt.
fn engine_request(
    state: &State,
    params: &Params,
    prompt: Vec<u32>,
    max_tokens: Option<usize>,
    logprobs: Option<usize>,
) -> Result<Request, ApiError> {
    Ok(Request {
        prompt,
        choices: params.choices,
        max_tokens,
        sampling: params.sampling,
        penalties: params.penalties.clone(),
        stop: params.stop.clone(),
        ignore_eos: params.ignore_eos,
        logprobs,
        method: method(state, params.method.as_deref())?,
    })
}

fn completion_job(state: &State, body: &[u8]) -> Result<Job, ApiError> {
    let CompletionRequest {
        params,
        prompts,
        max_tokens,
        logprobs,
        echo,
    } = CompletionRequest::parse(body)?;
    check_model(state, params.model.as_deref())?;
    let tokenizer = state.engine.tokenizer();
    let (mut requests, mut beginnings) = (Vec::new(), Vec::new());
    for prompt in prompts {
        let (tokens, text) = match prompt {
            Prompt::Text(text) => (encode(state, &text, true)?, text),
            Prompt::Tokens(tokens) => {
                let text = tokenizer.decode(&tokens, true);
                (
                    tokens,
                    text.map_err(|error| ApiError::body(error.to_string()))?,
                )
            }
        };
        beginnings.push(if echo { text } else { String::new() });
        requests.push(engine_request(
            state,
            &params,
            tokens,
            Some(max_tokens),
            logprobs,
        )?);
    }
    Ok(Job {
        kind: Kind::Completion,
        requests,
        beginnings,
        stream: params.stream,
        stream_usage: params.stream_usage,
    })
}

fn chat_job(state: &State, body: &[u8]) -> Result<Job, ApiError> {
    let ChatRequest {
        params,
        messages,
        max_tokens,
        logprobs,
    } = ChatRequest::parse(body)?;
    check_model(state, params.model.as_deref())?;
    let prompt = encode_chat(state, &messages)?;
    Ok(Job {
        kind: Kind::Chat,
        requests: vec![engine_request(
            state, &params, prompt, max_tokens, logprobs,
        )?],
        beginnings: vec![String::new()],
        stream: params.stream,
        stream_usage: params.stream_usage,
    })
}

fn encode(state: &State, text: &str, special: bool) -> Result<Vec<u32>, ApiError> {
    let tokens = state.engine.tokenizer().encode(text, special);
    tokens.map_err(|error| ApiError::body(error.to_string()))
}

/// Encodes a conversation up to the beginning of the answer.
fn encode_chat(state: &State, messages: &[ChatMessage]) -> Result<Vec<u32>, ApiError> {
    match &state.model.template {
        Some(template) => {
            let text = template.render(messages, true);
            let text = text.map_err(|error| ApiError::param("messages", error.to_string()))?;
            encode(state, &text, false)
        }
        None => {
            let texts: Vec<&str> = messages.iter().map(|message| &*message.content).collect();
            encode(state, &texts.join("\n\n"), true)
        }
    }
}

fn tokenize(state: &State, body: &[u8]) -> Result<HttpResponse, ApiError> {
    let TokenizeRequest { model, input } = TokenizeRequest::parse(body)?;
    check_model(state, model.as_deref())?;
    let tokens = match input {
        TokenizeInput::Text { text, special } => encode(state, &text, special)?,
        TokenizeInput::Chat(messages) => encode_chat(state, &messages)?,
    };
    Ok(HttpResponse::json(&json!({
        "count": tokens.len(),
        "max_model_len": state.engine.config().context,
        "tokens": tokens,
    })))
}

/// Decodes the escapes of a part of a path.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| first == b'%');
        let hex = hex.and_then(|digits| std::str::from_utf8(digits).ok());
        match hex.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_a_path_are_decoded() {
        assert_eq!(percent_decoded("org%2Fname"), "org/name");
        assert_eq!(percent_decoded("a%zz%4"), "a%zz%4");
    }
}
