//! Answers that follow a JSON schema: [`Grammars`] compile it and a [`Grammar`] is the state of an
//! answer. The crate `llguidance` does the work.

use std::fmt::{self, Display};
use std::sync::{Arc, OnceLock};
use std::thread;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory, token_bytes_from_tokenizer_json};
use serde_json::Value;
use sparq_models::text::TextTokenizer;

use super::EngineError;

/// The most bytes of a schema, written without spaces. The depth of the compiler's recursion grows
/// with it: a schema may refer to its definitions in a chain.
const MOST_BYTES: usize = 64 << 10;
/// A bound on the numbers of a schema. The compiler never ends on integers that become the least
/// one of 64 bits.
const LEAST_NUMBER: f64 = -9e18;
/// The stack of the compiler, several times what the deepest schema takes.
const STACK: usize = 256 << 20;
/// The most states of a schema's lexer, of 1 to 2 kB each.
const MOST_STATES: usize = 50_000;
/// The most characters of a message of the compiler.
const MOST_MESSAGE: usize = 500;
/// The spaces between two parts of a document. Without a bound, models may write spaces until their
/// last token.
const SPACES: &str = r" |\n[ \t]{0,20}";

/// The compiler of JSON schemas to grammars over the tokens of a model.
pub struct Grammars {
    tokenizer: TextTokenizer,
    /// The number of logits.
    vocab: usize,
    /// Made for the first schema, or the reason why the tokenizer does not allow it.
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl Grammars {
    /// A compiler for a model with `vocab` logits. The tokenizer is read when it is first needed.
    pub fn new(tokenizer: TextTokenizer, vocab: usize) -> Self {
        Self {
            tokenizer,
            vocab,
            factory: OnceLock::new(),
        }
    }

    /// Compiles a schema, within limits of size and work. It blocks the thread for as long.
    ///
    /// # Errors
    /// [`EngineError::Schema`] if the schema is too large or wrong, has keywords that the compiler
    /// lacks, or allows no document, or if the bytes of the tokenizer's tokens are not known.
    pub fn compile(&self, schema: &Value) -> Result<Grammar, EngineError> {
        let found = schema.to_string().len();
        let mut schema = match schema {
            Value::Object(_) if found <= MOST_BYTES => schema.clone(),
            Value::Object(_) => {
                let expected = format!("a schema of at most {MOST_BYTES} bytes");
                return Err(schema_error(&expected, format!("{found} bytes")));
            }
            _ => return Err(schema_error("a schema that is an object", "another value")),
        };
        if let Some(number) = number_below(&schema, LEAST_NUMBER) {
            let expected = format!("a schema of numbers above {LEAST_NUMBER:e}");
            return Err(schema_error(&expected, number));
        }
        let options = JsonCompileOptions {
            whitespace_pattern: Some(SPACES.into()),
            coerce_one_of: true,
            ..JsonCompileOptions::default()
        };
        options.apply_to(&mut schema);
        let compile = || -> Result<Box<Matcher>, String> {
            let factory = self
                .factory
                .get_or_init(|| factory(&self.tokenizer, self.vocab));
            let parser = factory.as_ref().map_err(String::clone)?;
            let parser = parser.create_parser(TopLevelGrammar::from_json_schema(schema));
            let mut matcher = Matcher::new(parser);
            // It fails if no document follows the schema.
            matcher.compute_mask().map_err(reason)?;
            Ok(Box::new(matcher))
        };
        let compiled = thread::scope(|scope| {
            let thread = thread::Builder::new().stack_size(STACK);
            let thread = thread.spawn_scoped(scope, compile).map_err(reason)?;
            thread
                .join()
                .unwrap_or_else(|_| Err("the compiler panicked".into()))
        });
        compiled
            .map(|matcher| Grammar { matcher })
            .map_err(|reason| schema_error("a JSON schema that can be compiled", reason))
    }
}

fn schema_error(expected: &str, found: impl Display) -> EngineError {
    let reason = format!("expected {expected}, found {found}");
    EngineError::Schema { reason }
}

/// Returns a number of a document that is not above a bound.
fn number_below(value: &Value, bound: f64) -> Option<f64> {
    let below = |value| number_below(value, bound);
    match value {
        Value::Number(number) => number.as_f64().filter(|&number| number <= bound),
        Value::Array(items) => items.iter().find_map(below),
        Value::Object(map) => map.values().find_map(below),
        _ => None,
    }
}

/// Returns the message of an error, without the state and the backtrace that may follow it.
fn reason(error: impl Display) -> String {
    let text = error.to_string();
    let message = text.split("\n<").next().unwrap_or_default();
    message.chars().take(MOST_MESSAGE).collect()
}

/// Makes the compiler for the tokens of a model.
fn factory(tokenizer: &TextTokenizer, vocab: usize) -> Result<ParserFactory, String> {
    let words = words(tokenizer, vocab)?;
    let ends: Vec<u32> = match tokenizer.eos_ids() {
        // A token beyond the logits, which is never sampled.
        [] => vec![words.len() as u32 - 1],
        ids => ids.to_vec(),
    };
    let info = TokRxInfo::new(words.len() as u32, ends[0]);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
    let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&tokens).map_err(reason)?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        max_lexer_states: MOST_STATES,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Ok(factory)
}

/// Returns the bytes of each token, and a token after those of the model. Special tokens, which are
/// no part of a document, begin with a mark.
fn words(tokenizer: &TextTokenizer, vocab: usize) -> Result<Vec<Vec<u8>>, String> {
    let unknown = |error: String| format!("tokens of the model whose bytes are unknown: {error}");
    let json = tokenizer
        .to_json()
        .map_err(|error| unknown(reason(error)))?;
    let json = serde_json::from_str(&json).map_err(|error| unknown(reason(error)))?;
    let bytes = llguidance::panic_utils::catch_unwind(|| token_bytes_from_tokenizer_json(&json));
    let mut words = bytes.map_err(|error| unknown(reason(error)))?;
    let last_end = tokenizer.eos_ids().last().map_or(0, |&id| id as usize + 1);
    words.resize(words.len().max(vocab).max(last_end), Vec::new());
    for &id in tokenizer.eos_ids() {
        let word = &mut words[id as usize];
        if word.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
            word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
    }
    let mut end = vec![TokTrie::SPECIAL_TOKEN_MARKER];
    end.extend(b"<end of the document>");
    words.push(end);
    Ok(words)
}

/// The form of an answer, and the part of the answer so far. Clones begin where the original is.
#[derive(Clone)]
pub struct Grammar {
    matcher: Box<Matcher>,
}

impl Grammar {
    /// Excludes the tokens that the form does not allow next from logits [vocab].
    ///
    /// # Errors
    /// If the grammar is too complex at this point.
    pub(super) fn mask(&mut self, logits: &mut [f32]) -> Result<(), EngineError> {
        let allowed = self.matcher.compute_mask();
        let allowed = allowed.map_err(|error| EngineError::model(reason(error)))?;
        let words = allowed.as_slice().iter().chain(std::iter::repeat(&0));
        for (logits, &word) in logits.chunks_mut(u32::BITS as usize).zip(words) {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word & (1 << bit) == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }

    /// Takes the next token of the answer. Returns whether the answer is complete.
    ///
    /// # Errors
    /// If the form does not allow the token, or if the grammar becomes too complex.
    pub(super) fn push(&mut self, token: u32) -> Result<bool, EngineError> {
        let taken = self.matcher.consume_token(token);
        taken.map_err(|error| EngineError::model(reason(error)))?;
        Ok(self.matcher.is_stopped())
    }
}

impl fmt::Debug for Grammar {
    // The state has thousands of lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}
