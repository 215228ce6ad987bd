//! The body of a request to the server: parsed as one of each route. The schema of an answer is
//! compiled for the tokens of the embedded model.

use std::sync::LazyLock;

use sparq_models::embedded;
use sparq_serve::api::{ApiError, ChatRequest, CompletionRequest, Params, TokenizeRequest};
use sparq_serve::engine::Grammars;

/// More bytes than any message has: it quotes a part of the body only.
const LONGEST_MESSAGE: usize = 2000;

pub(super) fn run(data: &[u8]) -> bool {
    let parsed = [
        CompletionRequest::parse(data).and_then(|request| compile(&request.params)),
        ChatRequest::parse(data).and_then(|request| compile(&request.params)),
        TokenizeRequest::parse(data).map(drop),
    ];
    parsed.map(accepted).contains(&true)
}

fn compile(params: &Params) -> Result<(), ApiError> {
    static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| {
        let tokenizer = embedded::tokenizer().expect("the embedded tokenizer is valid");
        let vocab = tokenizer.vocab_size();
        Grammars::new(tokenizer, vocab)
    });
    match &params.schema {
        Some(schema) => Ok(GRAMMARS.compile(schema).map(drop)?),
        None => Ok(()),
    }
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
