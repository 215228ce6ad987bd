//! Rendering a chat template: [`ChatTemplate`].

use std::{collections::BTreeMap, time::SystemTime};

use minijinja::{Environment, Error, ErrorKind, syntax::SyntaxConfig, value::Value};

use super::{
    error::ChatTemplateError,
    functions::{raise_exception, raised, without_generation_blocks},
    message::ChatMessage,
    python,
    strftime::strftime,
};

/// The budget of a template per conversation, in instructions and in 64-byte pieces of text.
///
/// A template is an untrusted program: nested loops could run forever or exhaust the memory. The
/// templates of real models use some hundreds per message.
const FUEL: u64 = 4_000_000;

/// Renders a conversation in the text format that a checkpoint was trained on.
///
/// The text contains the special tokens, BOS included.
/// [Encode](crate::text::TextTokenizer::encode) it without adding special tokens.
///
/// ```
/// # use sparq_models::text::{ChatMessage, ChatTemplate, ChatTemplateError};
/// let source = "{% for message in messages %}\
///     <|{{ message.role }}|>{{ message.content.strip() }}{{ eos_token }}
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
    /// Begins a text that the template does not begin with it.
    beginning: Option<String>,
}

impl ChatTemplate {
    /// Compiles a template. Errors call it `origin`.
    ///
    /// `special_tokens` are pairs of a variable of the template (`bos_token`, `eos_token`) and a
    /// token.
    ///
    /// # Errors
    /// If `source` is not a valid template.
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
        // As `ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)`. minijinja
        // selects HTML escaping by the extension of the name, which is a file here: never escape.
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(compile)?);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", raise_exception);
        python::install(&mut environment);
        // As jinja2 reads a file of any system.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let source = python::without_percent_operators(&without_generation_blocks(&source));
        environment
            .add_template_owned(origin.to_owned(), source)
            .map_err(compile)?;
        let template = Self {
            environment,
            origin: origin.to_owned(),
            special_tokens: special_tokens
                .into_iter()
                .map(|(name, token)| (name.into(), token.into()))
                .collect(),
            beginning: None,
        };
        Ok(template.with_clock(SystemTime::now))
    }

    /// Replaces the clock of `strftime_now`, which renders UTC. A fixed clock makes prompts
    /// reproducible.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        let strftime_now = move |format: String| {
            strftime(clock(), &format).map_err(|directive| {
                let detail = format!(
                    "strftime_now: expected supported directives, found {directive} in {format:?}"
                );
                Error::new(ErrorKind::InvalidOperation, detail)
            })
        };
        self.environment.add_function("strftime_now", strftime_now);
        self
    }

    /// Begins every conversation with the special token `bos_token`, also if the template does not.
    /// The tokenizer of a GGUF file may ask for it.
    #[must_use]
    pub fn with_bos(mut self) -> Self {
        self.beginning = self.special_tokens.get("bos_token").cloned();
        self
    }

    /// Renders a conversation. With `add_generation_prompt`, the text ends where the model's answer
    /// begins.
    ///
    /// # Errors
    /// If the template rejects the conversation, for example its order of roles, or fails on it.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, ChatTemplateError> {
        let messages: Vec<Value> = messages.iter().cloned().map(Value::from_object).collect();
        // transformers passes None for missing arguments, and templates test for it.
        let mut context: BTreeMap<&str, Value> = BTreeMap::from([
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ]);
        for (name, token) in &self.special_tokens {
            context.insert(name, Value::from(token.as_str()));
        }
        let text = self
            .environment
            .get_template(&self.origin)
            .and_then(|template| template.render(Value::from_pairs(context)));
        let text = text.map_err(|error| match raised(&error) {
            Some(message) => ChatTemplateError::Refused {
                origin: self.origin.clone(),
                message,
            },
            None => ChatTemplateError::Render {
                origin: self.origin.clone(),
                error,
            },
        })?;
        Ok(match &self.beginning {
            Some(beginning) if !text.starts_with(beginning.as_str()) => {
                format!("{beginning}{text}")
            }
            _ => text,
        })
    }
}
