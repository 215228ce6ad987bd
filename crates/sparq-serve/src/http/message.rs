//! Messages of HTTP/1.1: [`HttpRequest`], [`HttpResponse`].

use serde_json::Value;

use crate::api::ApiError;

/// A request.
#[derive(Debug)]
pub(super) struct HttpRequest {
    pub(super) method: String,
    /// Without the query.
    pub(super) path: String,
    pub(super) authorization: Option<String>,
    pub(super) body: Vec<u8>,
    /// Whether the client takes chunks, which HTTP/1.0 does not have.
    pub(super) takes_chunks: bool,
    /// Whether the connection serves more requests.
    pub(super) keep_alive: bool,
}

/// A response with its whole body.
#[derive(Debug)]
pub(super) struct HttpResponse {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    /// More headers, each with its value.
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

pub(super) const JSON: &str = "application/json";

impl HttpResponse {
    pub(super) fn new(content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            content_type,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    pub(super) fn json(document: &Value) -> Self {
        Self::new(JSON, document.to_string())
    }
}

impl From<&ApiError> for HttpResponse {
    fn from(error: &ApiError) -> Self {
        let mut headers = Vec::new();
        if let Some(seconds) = error.retry_seconds {
            headers.push(("retry-after", seconds.to_string()));
        }
        if error.status == 401 {
            headers.push(("www-authenticate", "Bearer".into()));
        }
        Self {
            status: error.status,
            headers,
            ..Self::json(&error.document())
        }
    }
}

/// The phrase of a status.
pub(super) fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}
