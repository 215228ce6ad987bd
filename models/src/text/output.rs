//! The text of a generation: [`GeneratedText`], and its report to a callback.

use std::ops::ControlFlow;

use super::{
    generation::{FinishReason, GenerateError, GenerateEvent, OnEvent},
    stop_strings::{EmptyStopString, Released, StopStrings},
    token_stream::TokenStream,
    tokenizer::{TextTokenizer, TokenizerError},
};

/// The text of generated tokens: decodes them as they arrive and ends at a stop string.
///
/// ```
/// use sparq_models::{embedded, text::GeneratedText};
///
/// let mut text = GeneratedText::new(embedded::tokenizer()?, &["end".into()])?;
/// assert_eq!(text.push(b'a'.into())?.text, "a");
/// assert_eq!(text.push(b'e'.into())?.text, "");
/// assert_eq!(text.finish()?.text, "e");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct GeneratedText {
    tokenizer: TextTokenizer,
    stream: TokenStream,
    filter: StopStrings,
}

impl GeneratedText {
    /// Starts a text that ends before any of the stop strings.
    ///
    /// # Errors
    /// If a stop string is empty.
    pub fn new(tokenizer: TextTokenizer, stops: &[String]) -> Result<Self, EmptyStopString> {
        Ok(Self {
            stream: TokenStream::new(tokenizer.clone(), true),
            tokenizer,
            filter: StopStrings::new(stops)?,
        })
    }

    /// Takes a token and returns the text that is certain now. Special tokens have no text, but
    /// their spelling can end it.
    ///
    /// # Errors
    /// If the decoder of the tokenizer fails.
    pub fn push(&mut self, token: u32) -> Result<Released, TokenizerError> {
        let text = self.stream.push(token)?;
        let special = self.tokenizer.is_special(token);
        let special = self.tokenizer.token(token).filter(|_| special);
        Ok(match special {
            Some(special) => self.filter.push_hidden(&special),
            None => self.filter.push(&text),
        })
    }

    /// Ends the text and returns what was held back, which may complete a stop string.
    ///
    /// # Errors
    /// As [`GeneratedText::push`].
    pub fn finish(&mut self) -> Result<Released, TokenizerError> {
        let rest = self.stream.finish()?;
        let mut released = self.filter.push(&rest);
        released.text += &self.filter.finish();
        Ok(released)
    }
}

/// Reports the text of a generation to the caller.
pub(super) struct Output {
    generated: GeneratedText,
    /// The stop strings, for the finish reason.
    stops: Vec<String>,
    text: String,
    /// Whether the callback broke off. It is not called again then.
    broken_off: bool,
}

impl Output {
    pub(super) fn new(tokenizer: TextTokenizer, stops: &[String]) -> Result<Self, GenerateError> {
        Ok(Self {
            generated: GeneratedText::new(tokenizer, stops)?,
            stops: stops.to_vec(),
            text: String::new(),
            broken_off: false,
        })
    }

    /// Takes a token. Breaks with the reason if it ends the text.
    pub(super) fn push(
        &mut self,
        token: u32,
        on_event: OnEvent<'_>,
    ) -> Result<ControlFlow<FinishReason>, GenerateError> {
        let released = self.generated.push(token)?;
        Ok(self.release(released, on_event))
    }

    /// Ends the text and returns it with its finish reason.
    ///
    /// The reason is `finish`, unless the text held back completes a stop string.
    pub(super) fn finish(
        mut self,
        finish: FinishReason,
        on_event: OnEvent<'_>,
    ) -> Result<(String, FinishReason), GenerateError> {
        let released = self.generated.finish()?;
        let finish = match self.release(released, on_event) {
            ControlFlow::Break(stop @ FinishReason::StopString(_)) => stop,
            // A callback that breaks off at the last text does not change the reason.
            _ => finish,
        };
        Ok((self.text, finish))
    }

    fn release(
        &mut self,
        Released { text, stop }: Released,
        on_event: OnEvent<'_>,
    ) -> ControlFlow<FinishReason> {
        self.text += &text;
        if !text.is_empty() && !self.broken_off {
            self.broken_off = on_event(GenerateEvent::Text(&text)).is_break();
        }
        match stop {
            Some(stop) => ControlFlow::Break(FinishReason::StopString(self.stops[stop].clone())),
            None if self.broken_off => ControlFlow::Break(FinishReason::Cancelled),
            None => ControlFlow::Continue(()),
        }
    }
}
