//! The text of a generation as it grows.

use std::ops::ControlFlow;

use super::{
    generate::{FinishReason, GenerateError, GenerateEvent},
    session::OnEvent,
    stop_strings::{Released, StopStrings},
    token_stream::TokenStream,
    tokenizer::TextTokenizer,
};

/// Tokens on their way to text: made into characters, looked through for stop strings, told to the caller.
pub(super) struct Output {
    stream: TokenStream,
    stops: StopStrings,
    /// The stop strings, to name the one that was found.
    names: Vec<String>,
    text: String,
    /// The caller wants to hear nothing more.
    broken_off: bool,
}

impl Output {
    pub(super) fn new(tokenizer: TextTokenizer, stops: &[String]) -> Result<Self, GenerateError> {
        Ok(Self {
            stream: TokenStream::new(tokenizer, true),
            stops: StopStrings::new(stops)?,
            names: stops.to_vec(),
            text: String::new(),
            broken_off: false,
        })
    }

    /// Takes a token; breaks with the reason when it ends the text.
    pub(super) fn push(
        &mut self,
        token: u32,
        on_event: OnEvent<'_>,
    ) -> Result<ControlFlow<FinishReason>, GenerateError> {
        let text = self.stream.push(token)?;
        let released = self.stops.push(&text);
        Ok(self.release(released, on_event))
    }

    /// Takes the end and returns the whole text. What was held back may complete a stop string, which is then the reason.
    pub(super) fn finish(
        mut self,
        finish: FinishReason,
        on_event: OnEvent<'_>,
    ) -> Result<(String, FinishReason), GenerateError> {
        let rest = self.stream.finish()?;
        let mut released = self.stops.push(&rest);
        released.text += &self.stops.finish();
        let finish = match self.release(released, on_event) {
            ControlFlow::Break(stop @ FinishReason::StopString(_)) => stop,
            // A caller who breaks off at the last piece does not change why it was the last.
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
            Some(stop) => ControlFlow::Break(FinishReason::StopString(self.names[stop].clone())),
            None if self.broken_off => ControlFlow::Break(FinishReason::Cancelled),
            None => ControlFlow::Continue(()),
        }
    }
}
