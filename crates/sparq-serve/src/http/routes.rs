//! The routes, from a request to a response: [`router`].

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{self, Path, Request as HttpRequest};
use axum::http::{HeaderValue, Method as HttpMethod, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use sparq_models::text::ChatMessage;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::set_header::SetResponseHeaderLayer;
use tower_http::trace::TraceLayer;

use super::answer::{self, Job};
use super::body;
use super::response::json;
use super::server::State;
use crate::api::request::TokenizeInput;
use crate::api::response::Kind;
use crate::api::{ApiError, ChatRequest, CompletionRequest, Params, Prompt, TokenizeRequest};
use crate::engine::{Decoding, Grammar, Request};

type Shared = extract::State<Arc<State>>;

/// Returns the routes of the server.
pub(super) fn router(state: Arc<State>) -> Router {
    // Probes and scrapers have no key, and the page is public.
    let open = Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics));
    let guarded = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/tokenize", post(tokenize))
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(&state),
            check_key,
        ));
    let routes = open
        .merge(guarded)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method);
    with_layers(routes.with_state(state))
}

/// Returns the routes of a connection beyond the limit: none.
pub(super) fn refusal(most: usize) -> Router {
    let refuse = move || async move {
        let message = format!("expected at most {most} connections, found more");
        let error = ApiError {
            retry_seconds: Some(1),
            ..ApiError::new(503, Some("too_many_connections"), message)
        };
        ([(header::CONNECTION, "close")], error)
    };
    with_layers(Router::new().fallback(refuse))
}

fn with_layers(router: Router) -> Router {
    let set =
        |name, value| SetResponseHeaderLayer::overriding(name, HeaderValue::from_static(value));
    router
        .layer(set(header::CACHE_CONTROL, "no-store"))
        .layer(set(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(TraceLayer::new_for_http())
}

/// The response to a request whose handler panicked. The panic itself is on stderr.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    server_failed().into_response()
}

fn server_failed() -> ApiError {
    ApiError::new(500, None, "the server failed; see its log")
}

async fn unknown_path(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(80).collect();
    let message = format!("expected a path of this server, found {path:?}");
    ApiError::new(404, Some("unknown_url"), message)
}

async fn wrong_method(method: HttpMethod, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(80).collect();
    let takes_body = path == "/tokenize" || path.ends_with("/completions");
    let expected = if takes_body { "POST" } else { "GET" };
    let found: String = method.as_str().chars().take(20).collect();
    let message = format!("method of {path}: expected {expected}, found {found}");
    ApiError::new(405, None, message)
}

/// Refuses requests without a key.
async fn check_key(
    extract::State(state): Shared,
    request: HttpRequest,
    next: Next,
) -> Result<Response, ApiError> {
    let header = request.headers().get(header::AUTHORIZATION);
    let given = header.and_then(|value| value.to_str().ok());
    if !state.config.keys.allow(given) {
        let found = header.map_or("none", |_| "another");
        let message = format!(
            "expected the header \"authorization: Bearer KEY\" with a key of this server, found \
             {found}"
        );
        return Err(ApiError::new(401, Some("invalid_api_key"), message));
    }
    Ok(next.run(request).await)
}

/// The chat page, which loads nothing else.
async fn page() -> Response {
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                  connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
    ];
    (headers, include_str!("page.html")).into_response()
}

async fn health(extract::State(state): Shared) -> Result<Response, ApiError> {
    match state.engine.is_running() {
        true => Ok(json(&json!({ "status": "ok" }))),
        false => Err(ApiError::new(
            503,
            Some("stopping"),
            "expected a server that takes requests, found one that has stopped",
        )),
    }
}

async fn metrics(extract::State(state): Shared) -> Response {
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    let headers = [(header::CONTENT_TYPE, content_type)];
    (headers, state.metrics.render()).into_response()
}

async fn models(extract::State(state): Shared) -> Response {
    json(&json!({ "object": "list", "data": [model_document(&state)] }))
}

async fn model(
    extract::State(state): Shared,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // A name that is no UTF-8 is not that of the model.
    let name = name.map_or_else(|_| "\u{fffd}".into(), |Path(name)| name);
    check_model(&state, Some(&name))?;
    Ok(json(&model_document(&state)))
}

fn model_document(state: &State) -> Value {
    let methods = state.model.methods.iter();
    let methods: Vec<&str> = methods.map(|(name, _)| name.as_str()).collect();
    json!({
        "id": state.model.name,
        "object": "model",
        "created": state.created,
        "owned_by": "sparq",
        "max_model_len": state.engine.config().context,
        "methods": methods,
    })
}

async fn completions(state: Shared, request: HttpRequest) -> Result<Response, ApiError> {
    let job = read(&state, request, completion_job).await?;
    answer::answer(state.0, job).await
}

async fn chat(state: Shared, request: HttpRequest) -> Result<Response, ApiError> {
    let job = read(&state, request, chat_job).await?;
    answer::answer(state.0, job).await
}

async fn tokenize(state: Shared, request: HttpRequest) -> Result<Response, ApiError> {
    let document = read(&state, request, token_document).await?;
    Ok(json(&document))
}

/// Reads the body of a request and lets a thread of its own parse it and encode its texts, which
/// may take long.
async fn read<T: Send + 'static>(
    state: &Arc<State>,
    request: HttpRequest,
    parse: fn(&State, &[u8]) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let body = body::read(state, request).await?;
    let (bytes, of_thread) = (body.bytes, Arc::clone(state));
    let parsed = tokio::task::spawn_blocking(move || parse(&of_thread, &bytes)).await;
    drop(body.permit);
    parsed.unwrap_or_else(|_| Err(server_failed()))
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

fn decoding(state: &State, name: Option<&str>) -> Result<Decoding, ApiError> {
    let methods = &state.model.methods;
    let Some(name) = name else {
        return Ok(methods[0].1);
    };
    let method = methods.iter().find(|(other, _)| other == name);
    method.map(|&(_, decoding)| decoding).ok_or_else(|| {
        let names: Vec<&str> = methods.iter().map(|(name, _)| name.as_str()).collect();
        let found: String = name.chars().take(40).collect();
        let message = format!("expected one of {}, found {found:?}", names.join(", "));
        ApiError::param("method", message)
    })
}

/// Compiles the form of the answers.
fn grammar(state: &State, params: &Params) -> Result<Option<Grammar>, ApiError> {
    let schema = params.schema.as_ref();
    let grammar = schema.map(|schema| state.engine.grammars().compile(schema));
    Ok(grammar.transpose()?)
}

/// Makes the engine's request for one prompt.
fn engine_request(
    state: &State,
    params: &Params,
    grammar: Option<Grammar>,
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
        grammar,
        decoding: decoding(state, params.method.as_deref())?,
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
    let grammar = grammar(state, &params)?;
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
            grammar.clone(),
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
    let grammar = grammar(state, &params)?;
    let prompt = encode_chat(state, &messages)?;
    let request = engine_request(state, &params, grammar, prompt, max_tokens, logprobs)?;
    Ok(Job {
        kind: Kind::Chat,
        requests: vec![request],
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

fn token_document(state: &State, body: &[u8]) -> Result<Value, ApiError> {
    let TokenizeRequest { model, input } = TokenizeRequest::parse(body)?;
    check_model(state, model.as_deref())?;
    let tokens = match input {
        TokenizeInput::Text { text, special } => encode(state, &text, special)?,
        TokenizeInput::Chat(messages) => encode_chat(state, &messages)?,
    };
    Ok(json!({
        "count": tokens.len(),
        "max_model_len": state.engine.config().context,
        "tokens": tokens,
    }))
}
