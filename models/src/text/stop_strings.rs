//! Ending a text at given strings: [`StopStrings`].

/// Text that may be shown, and the stop string that ended it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// The text up to the stop string, or up to what may be the beginning of one.
    pub text: String,
    /// The index of the stop string that was found; nothing follows then.
    pub stop: Option<usize>,
}

/// A stop string is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "stop: expected strings of at least one character, found an empty one at index {index}: it would stop every text at once"
)]
pub struct EmptyStopString {
    /// Its index in the list.
    pub index: usize,
}

/// Lets text through up to the first of some stop strings, wherever the borders between the pieces of text are.
///
/// What may be the beginning of a stop string is held back until it turns out to be none. Of several stop strings the one that is
/// complete first ends the text, and of those complete at the same character the longest: so the result does not depend
/// on how the text was cut into pieces, and no further token is needed to know it.
///
/// ```
/// # use sparq_models::text::{EmptyStopString, StopStrings};
/// let mut stops = StopStrings::new(["\n\n", "User:"])?;
/// assert_eq!(stops.push("Paris.\n").text, "Paris.");
/// let released = stops.push("\nAnd");
/// assert_eq!((released.text.as_str(), released.stop), ("", Some(0)));
/// # Ok::<(), EmptyStopString>(())
/// ```
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that was not released: always a proper beginning of a stop string.
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// Looks for these strings, in the order of their indices.
    ///
    /// # Errors
    /// When one of them is empty.
    pub fn new(
        stops: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Self, EmptyStopString> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        match stops.iter().position(String::is_empty) {
            Some(index) => Err(EmptyStopString { index }),
            None => Ok(Self {
                stops,
                held: String::new(),
                stopped: false,
            }),
        }
    }

    /// Takes the next piece of text and returns what may be shown. After a stop string that is nothing.
    pub fn push(&mut self, text: &str) -> Released {
        if self.stopped {
            return Released::default();
        }
        let seen = self.held.len();
        self.held.push_str(text);
        let ends = text
            .char_indices()
            .map(|(at, char)| seen + at + char.len_utf8());
        for end in ends {
            if let Some(stop) = self.stop_at(end) {
                let mut text = std::mem::take(&mut self.held);
                text.truncate(end - self.stops[stop].len());
                self.stopped = true;
                return Released {
                    text,
                    stop: Some(stop),
                };
            }
        }
        let rest = self.held.split_off(self.held.len() - self.beginning());
        Released {
            text: std::mem::replace(&mut self.held, rest),
            stop: None,
        }
    }

    /// Ends the text and returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The longest stop string that is complete at byte `end` of the held text, the first of equal ones.
    fn stop_at(&self, end: usize) -> Option<usize> {
        let mut longest: Option<usize> = None;
        for (index, stop) in self.stops.iter().enumerate() {
            let longer = longest.is_none_or(|other| stop.len() > self.stops[other].len());
            if longer && self.held[..end].ends_with(stop.as_str()) {
                longest = Some(index);
            }
        }
        longest
    }

    /// Length in bytes of the longest end of the held text with which a stop string begins.
    fn beginning(&self) -> usize {
        let longest = |stop: &String| {
            let lengths = stop.char_indices().map(|(at, _)| at);
            lengths.filter(|&at| self.held.ends_with(&stop[..at])).max()
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}
