//! The text of a generation: [`Output`].

use std::ops::ControlFlow;

use super::{
    generation::{FinishReason, GenerateError, GenerateEvent, OnEvent},
    stop_strings::{Released, StopStrings},
    token_stream::TokenStream,
    tokenizer::TextTokenizer,
};

/// Decodes tokens, searches their text for stop strings and reports it to the caller.
pub(super) struct Output {
    tokenizer: TextTokenizer,
    stream: TokenStream,
    filter: StopStrings,
    /// The stop strings, for the finish reason.
    stops: Vec<String>,
    text: String,
    /// Whether the callback broke off. It is not called again then.
    broken_off: bool,
}

impl Output {
    pub(super) fn new(tokenizer: TextTokenizer, stops: &[String]) -> Result<Self, GenerateError> {
        Ok(Self {
            stream: TokenStream::new(tokenizer.clone(), true),
            tokenizer,
            filter: StopStrings::new(stops)?,
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
        let text = self.stream.push(token)?;
        let special = self.tokenizer.is_special(token);
        let special = self.tokenizer.token(token).filter(|_| special);
        let released = match special {
            Some(special) => self.filter.push_hidden(&special),
            None => self.filter.push(&text),
        };
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
        let rest = self.stream.finish()?;
        let mut released = self.filter.push(&rest);
        released.text += &self.filter.finish();
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
