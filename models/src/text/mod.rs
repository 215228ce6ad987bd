//! Text generation: chat templates, tokenizers, sampling and sessions.
//!
//! Each stage is a type that does not depend on the next and can be used alone:
//!
//! | stage | type |
//! |---|---|
//! | conversation to text | [`ChatTemplate`] |
//! | text to tokens | [`TextTokenizer`] |
//! | logits to the next token | [`Sampler`] |
//! | tokens to text, while they arrive | [`TokenStream`] |
//! | end of the text | [`StopStrings`] |
//! | the last two together | [`GeneratedText`] |
//!
//! A [`Session`] connects them with a model and its cache. [`SpeculativeDecoder`] decodes with
//! drafts by SparQ that dense attention verifies.

mod cancel;
mod chat;
mod config_file;
mod generation;
mod output;
mod sampler;
mod sampling_config;
mod session;
mod speculative;
mod stop_strings;
mod token_stream;
mod tokenizer;
mod tokenizer_json;
mod transfer;

pub use cancel::CancelToken;
pub use chat::{ChatMessage, ChatTemplate, ChatTemplateError};
pub use generation::{FinishReason, GenerateError, GenerateEvent, GenerateOptions, Generated};
pub use output::GeneratedText;
#[doc(hidden)]
pub use sampler::Candidate;
pub use sampler::{Sampler, SamplingError};
pub use sampling_config::SamplingConfig;
pub use session::{Session, check_prompt};
#[doc(hidden)]
pub use speculative::judge;
pub use speculative::{SpeculativeConfig, SpeculativeDecoder, SpeculativeRow, SpeculativeStats};
pub use stop_strings::{EmptyStopString, Released, StopStrings};
pub use token_stream::TokenStream;
pub use tokenizer::{TextTokenizer, TokenizerError};
