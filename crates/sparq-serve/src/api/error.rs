//! Errors in the form of OpenAI's API: [`ApiError`].

use serde::Serialize;

use crate::engine::EngineError;

/// An error of a request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ApiError {
    /// The status of HTTP.
    #[serde(skip)]
    pub status: u16,
    /// The seconds after which a retry may succeed.
    #[serde(skip)]
    pub retry_seconds: Option<u64>,
    /// The message, with the expected and the found value.
    pub message: String,
    /// The kind of error.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The parameter at fault.
    pub param: Option<String>,
    /// A name for programs.
    pub code: Option<&'static str>,
}

impl ApiError {
    /// An error of the client with any status.
    pub fn new(status: u16, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self {
            status,
            retry_seconds: None,
            message: message.into(),
            kind: match status {
                401 => "authentication_error",
                404 => "not_found_error",
                429 => "rate_limit_error",
                500.. => "server_error",
                _ => "invalid_request_error",
            },
            param: None,
            code,
        }
    }

    /// A body that is wrong as a whole.
    pub fn body(message: impl Into<String>) -> Self {
        Self::new(400, None, message)
    }

    /// A parameter that is wrong. `message` tells what was expected and found.
    pub fn param(name: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(name.to_owned()),
            ..Self::new(400, None, format!("{name}: {}", message.into()))
        }
    }

    /// Returns the document `{"error": ...}`.
    pub fn document(&self) -> serde_json::Value {
        serde_json::json!({ "error": self })
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Prompt { .. } | EngineError::Request { .. } => Self::body(message),
            EngineError::Choices { .. } => Self {
                param: Some("n".into()),
                ..Self::body(message)
            },
            EngineError::Schema { .. } => Self::param("response_format", message),
            EngineError::Context { .. } => Self::new(400, Some("context_length_exceeded"), message),
            EngineError::Memory { .. } => Self::new(400, Some("cache_memory_exceeded"), message),
            EngineError::QueueFull { retry_seconds, .. } => Self {
                retry_seconds: Some(retry_seconds),
                ..Self::new(429, Some("rate_limit_exceeded"), message)
            },
            EngineError::Stopping => Self {
                retry_seconds: Some(1),
                ..Self::new(503, Some("stopping"), message)
            },
            EngineError::Failed { .. } => Self::new(500, None, message),
        }
    }
}
