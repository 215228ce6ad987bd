//! The body of a request to the server: parsed as one of each route.

use sparq_serve::api::{ApiError, ChatRequest, CompletionRequest, TokenizeRequest};

/// More bytes than any message has: it quotes a part of the body only.
const LONGEST_MESSAGE: usize = 2000;

pub(super) fn run(data: &[u8]) -> bool {
    let parsed = [
        CompletionRequest::parse(data).map(drop),
        ChatRequest::parse(data).map(drop),
        TokenizeRequest::parse(data).map(drop),
    ];
    parsed.map(accepted).contains(&true)
}

/// Returns whether there is no error.
///
/// # Panics
/// If the error is not one of the client, or does not say what was expected and found.
fn accepted(result: Result<(), ApiError>) -> bool {
    let Err(error) = result else {
        return true;
    };
    let message = &error.message;
    assert_eq!(error.status, 400, "{message}");
    assert!(
        message.contains("expected") && message.contains("found"),
        "{message}"
    );
    assert!(message.len() < LONGEST_MESSAGE, "{message}");
    false
}
