//! OpenAI's API as types: requests, responses and errors.
//!
//! | module | content |
//! |---|---|
//! | [`fields`] | reads the parameters of a request, and refuses unknown ones |
//! | [`mod@format`] | the form of an answer, as a JSON schema |
//! | [`params`] | the parameters that completions and chats share |
//! | [`request`] | the bodies of requests |
//! | [`response`] | the bodies of responses, whole and in chunks |
//! | [`error`] | errors with their status |

pub mod error;
pub mod fields;
pub mod format;
pub mod params;
pub mod request;
pub mod response;

pub use error::ApiError;
pub use params::Params;
pub use request::{ChatRequest, CompletionRequest, Prompt, TokenizeRequest};
