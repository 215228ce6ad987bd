//! Stop strings: [`StopStrings`].

use std::ops::Range;

/// Text to show, and the stop string that ended it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// The text up to the stop string, or up to a suffix that may begin one.
    pub text: String,
    /// The index of the stop string that ended the text.
    pub stop: Option<usize>,
}

/// The error about an empty stop string, which would end every text at its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stop: expected non-empty strings, found an empty one at index {index}")]
pub struct EmptyStopString {
    /// The index of the string.
    pub index: usize,
}

/// Releases text up to the first stop string, independent of how the text is split into pieces.
///
/// A suffix that may begin a stop string is held back until it is known not to. The stop string
/// that completes first ends the text. If several complete at the same character, the longest
/// counts.
///
/// ```
/// # use sparq_models::text::{EmptyStopString, StopStrings};
/// let mut stops = StopStrings::new(["\n\n", "User:"])?;
/// assert_eq!(stops.push("Paris.\n").text, "Paris.");
/// let released = stops.push("\nAnd");
/// assert_eq!((released.text.as_str(), released.stop), ("", Some(0)));
///
/// // The text of a special token can end the text but is not shown.
/// let mut stops = StopStrings::new(["<|user|>"])?;
/// assert_eq!(stops.push_hidden("<|think|>").text, "");
/// assert_eq!(stops.push_hidden("<|user|>").stop, Some(0));
/// # Ok::<(), EmptyStopString>(())
/// ```
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The text held back: always a proper prefix of a stop string.
    held: String,
    /// The ranges of the text held back that are not shown, in bytes and ascending.
    hidden: Vec<Range<usize>>,
    stopped: bool,
}

impl StopStrings {
    /// Makes a filter for these strings.
    ///
    /// # Errors
    /// If one of them is empty.
    pub fn new(
        stops: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Self, EmptyStopString> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        match stops.iter().position(String::is_empty) {
            Some(index) => Err(EmptyStopString { index }),
            None => Ok(Self {
                stops,
                held: String::new(),
                hidden: Vec::new(),
                stopped: false,
            }),
        }
    }

    /// Takes the next piece of text and returns the text to show: none after a stop string.
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
                let text = self.release(end - self.stops[stop].len());
                self.held.clear();
                self.stopped = true;
                return Released {
                    text,
                    stop: Some(stop),
                };
            }
        }
        Released {
            text: self.release(self.held.len() - self.prefix_len()),
            stop: None,
        }
    }

    /// Takes the text of a special token. It is searched like other text, but not shown.
    pub fn push_hidden(&mut self, text: &str) -> Released {
        let seen = self.held.len();
        self.hidden.push(seen..seen + text.len());
        self.push(text)
    }

    /// Ends the text and returns the part held back.
    pub fn finish(&mut self) -> String {
        self.release(self.held.len())
    }

    /// Removes the first `length` bytes of the text held back and returns what is shown of them.
    fn release(&mut self, length: usize) -> String {
        let text: String = self.held.drain(..length).collect();
        let mut shown = String::new();
        let mut at = 0;
        for hidden in &mut self.hidden {
            shown.push_str(&text[at..hidden.start.min(length)]);
            at = hidden.end.min(length);
            *hidden = hidden.start.saturating_sub(length)..hidden.end.saturating_sub(length);
        }
        shown.push_str(&text[at..]);
        self.hidden.retain(|hidden| !hidden.is_empty());
        shown
    }

    /// Returns the longest stop string that ends at byte `end` of the held text, the first of
    /// equals.
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

    /// Returns the length in bytes of the longest suffix of the held text that begins a stop
    /// string.
    fn prefix_len(&self) -> usize {
        let longest = |stop: &String| {
            let lengths = stop.char_indices().map(|(at, _)| at);
            lengths.filter(|&at| self.held.ends_with(&stop[..at])).max()
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}
