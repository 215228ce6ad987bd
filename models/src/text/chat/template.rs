//! A checkpoint's chat template: [`ChatTemplate`].

use std::{collections::BTreeMap, time::SystemTime};

use minijinja::{Environment, Error, ErrorKind, syntax::SyntaxConfig, value::Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{
    error::ChatTemplateError,
    functions::{raise_exception, raised, tojson, without_generation_blocks},
    message::ChatMessage,
    strftime::strftime,
};

/// What a template may do with one conversation: instructions, and pieces of 64 bytes that it makes. A template is a program, and loops in loops would take for
/// ever or all memory. Those of real models use some hundreds for a message.
const FUEL: u64 = 4_000_000;

/// Writes a conversation as the text that a checkpoint was trained on.
///
/// The text holds the special tokens written out, BOS included: [`encode`](crate::text::TextTokenizer::encode) it without
/// adding special tokens.
///
/// ```
/// # use sparq_models::text::{ChatMessage, ChatTemplate, ChatTemplateError};
/// let source = "{% for message in messages %}<|{{ message.role }}|>{{ message.content.strip() }}{{ eos_token }}
/// {% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
/// let template = ChatTemplate::new(source, "example", [("eos_token", "</s>")])?;
/// let text = template.render(&[ChatMessage::user(" Hello ")], true)?;
/// assert_eq!(text, "<|user|>Hello</s>\n<|assistant|>");
/// # Ok::<(), ChatTemplateError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    origin: String,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Compiles a template; errors call it `origin`.
    ///
    /// `special_tokens` are the names by which templates know them (`bos_token`, `eos_token`) and the tokens.
    ///
    /// # Errors
    /// When the source is no template.
    pub fn new<N: Into<String>, T: Into<String>>(
        source: &str,
        origin: &str,
        special_tokens: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Self, ChatTemplateError> {
        let compile = |error| ChatTemplateError::Compile {
            origin: origin.to_owned(),
            error,
        };
        let mut environment = Environment::new();
        // As `ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)`. The name of a template selects HTML
        // escaping in minijinja, and the name here is a file's: never escape.
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(compile)?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(origin.to_owned(), without_generation_blocks(source))
            .map_err(compile)?;
        let template = Self {
            environment,
            origin: origin.to_owned(),
            special_tokens: special_tokens
                .into_iter()
                .map(|(name, token)| (name.into(), token.into()))
                .collect(),
        };
        Ok(template.with_clock(SystemTime::now))
    }

    /// The same template with another clock behind `strftime_now`, which writes UTC: a fixed one makes prompts repeatable.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        let strftime_now = move |format: String| {
            strftime(clock(), &format).map_err(|directive| {
                let detail = format!(
                    "strftime_now: expected a format of known directives, found {directive} in {format:?}"
                );
                Error::new(ErrorKind::InvalidOperation, detail)
            })
        };
        self.environment.add_function("strftime_now", strftime_now);
        self
    }

    /// The file that the template came from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The text of a conversation, ending where the model has to go on when `add_generation_prompt` is set.
    ///
    /// # Errors
    /// When the template refuses the conversation (roles that don't alternate, a role it does not know) or fails on it.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, ChatTemplateError> {
        let messages: Vec<Value> = messages.iter().cloned().map(Value::from_object).collect();
        // transformers passes None for what the caller did not give, and templates ask whether it is.
        let mut context: BTreeMap<&str, Value> = BTreeMap::from([
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ]);
        for (name, token) in &self.special_tokens {
            context.insert(name, Value::from(token.as_str()));
        }
        self.environment
            .get_template(&self.origin)
            .and_then(|template| template.render(Value::from_pairs(context)))
            .map_err(|error| match raised(&error) {
                Some(message) => ChatTemplateError::Refused {
                    origin: self.origin.clone(),
                    message,
                },
                None => ChatTemplateError::Render {
                    origin: self.origin.clone(),
                    error,
                },
            })
    }
}
