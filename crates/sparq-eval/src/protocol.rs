//! [`Protocol`]: the attention that reads the question of an example.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The attention that reads a question. The text before it is always read densely.
///
/// Scores of different protocols must not be compared: dense attention to the question has often
/// found the answer already, so that the method only has to repeat it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// The method reads the question, token by token, and answers.
    #[default]
    Method,
    /// Dense attention reads the question, and the method only answers.
    Dense,
}

impl Protocol {
    /// Both protocols, the default first.
    pub const ALL: [Self; 2] = [Self::Method, Self::Dense];

    /// Returns the name in records and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Dense => "dense",
        }
    }

    /// Returns a sentence for help texts and reports.
    pub fn about(self) -> &'static str {
        match self {
            Self::Method => "The method reads the question and answers",
            Self::Dense => "Dense attention reads the question, the method answers",
        }
    }

    /// Returns the protocol of records in format 1, which do not name it.
    pub(crate) fn of_format_1() -> Self {
        Self::Dense
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_equal_the_serialized_ones() {
        for protocol in Protocol::ALL {
            assert_eq!(serde_json::to_value(protocol).unwrap(), protocol.name());
        }
    }
}
