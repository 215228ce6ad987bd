//! Tests of text generation, in one binary.
//!
//! | module | subject |
//! |---|---|
//! | `chat` | chat templates, compared with Python's jinja2 as transformers configures it |
//! | `tokenizer` | `TextTokenizer`: encoding, decoding, end-of-sequence tokens, malformed files |
//! | `token_stream` | `TokenStream`: tokens to text, complete characters only |
//! | `stop_strings` | `StopStrings`: the end of a text |
//! | `sampling` | `Sampler`, compared with the definitions of its settings |
//! | `session` | `Session` over several turns, with a scripted model |
//! | `speculative` | drafts and their verification: scripted, embedded and small random models |
//! | `speculative_sampling` | the distribution of verified tokens |
//! | `cancellation` | generations that are cancelled, fail or are refused |
//! | `support` | a scripted model and small vocabularies |

mod cancellation;
mod chat;
/// Folders and files for tests.
#[path = "../checkpoint_support/mod.rs"]
mod files;
mod jinja;
mod sampling;
mod session;
mod speculative;
mod speculative_sampling;
mod stop_strings;
mod support {
    pub mod scripted_lm;
    pub mod vocabularies;
}
mod token_stream;
mod tokenizer;
