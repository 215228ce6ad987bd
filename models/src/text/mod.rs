//! From text to tokens and back, and everything of text generation that is not the model.
//!
//! Each stage is a type of its own that knows nothing of the next: [`ChatTemplate`] writes a conversation as text, [`TextTokenizer`]
//! makes tokens of it, [`Sampler`] chooses the next one, [`TokenStream`] makes text of the tokens as they come, [`StopStrings`]
//! ends the text. [`Session`] puts them together around a model and its cache. So each is tested without a model, and a
//! program that generates in its own way takes the stages it wants.

mod cancel;
mod chat;
mod config_file;
mod generate;
mod output;
mod sampler;
mod sampling_config;
mod session;
mod stop_strings;
mod token_stream;
mod tokenizer;
mod tokenizer_json;

pub use cancel::CancelToken;
pub use chat::{ChatMessage, ChatTemplate, ChatTemplateError};
pub use config_file::ConfigFileError;
pub use generate::{FinishReason, GenerateError, GenerateEvent, GenerateOptions, Generated};
pub use sampler::{Candidate, Sampler, SamplingError};
pub use sampling_config::SamplingConfig;
pub use session::Session;
pub use stop_strings::{EmptyStopString, Released, StopStrings};
pub use token_stream::TokenStream;
pub use tokenizer::{TextTokenizer, TokenizerError};
