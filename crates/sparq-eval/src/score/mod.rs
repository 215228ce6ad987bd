//! Scores of answers.

mod matching_characters;
mod prefix_match;
mod rouge;
mod string_match;

pub use matching_characters::matching_characters;
pub use prefix_match::prefix_match;
pub use rouge::rouge_l;
pub use string_match::{string_match_all, string_match_part};

/// The scoring of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Judge {
    /// Compares with any of these answers by [`prefix_match`].
    Answers(Vec<String>),
    /// Compares with this text by [`matching_characters`].
    Continuation(String),
    /// Compares with this summary by [`rouge_l`].
    Summary(String),
    /// Counts these references by [`string_match_all`].
    AllOf(Vec<String>),
    /// Searches these references by [`string_match_part`].
    AnyOf(Vec<String>),
}

impl Judge {
    /// Returns the score of an answer.
    pub fn score(&self, answer: &str) -> f64 {
        match self {
            Judge::Answers(answers) => f64::from(u8::from(prefix_match(answer, answers))),
            Judge::Continuation(reference) => matching_characters(answer, reference) as f64,
            Judge::Summary(reference) => rouge_l(answer, reference),
            Judge::AllOf(references) => string_match_all(answer, references),
            Judge::AnyOf(references) => string_match_part(answer, references),
        }
    }

    /// Returns whether no further text can change the score, so that generation can stop.
    pub fn is_settled(&self, answer: &str) -> bool {
        // The last bytes of a character are missing.
        if answer.ends_with(char::REPLACEMENT_CHARACTER) {
            return false;
        }
        match self {
            Judge::Answers(answers) => prefix_match::is_settled(answer, answers),
            Judge::Continuation(reference) => {
                let (answer, reference) = (answer.trim_start(), reference.trim_start());
                !reference.starts_with(answer) || answer.len() == reference.len()
            }
            Judge::Summary(_) => false,
            // A reference that occurs once stays.
            Judge::AllOf(_) | Judge::AnyOf(_) => self.score(answer) >= 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn continuations_settle_at_a_difference_or_the_end() {
        let judge = Judge::Continuation(" to be or".into());
        for (answer, settled) in [
            ("", false),
            (" ", false),
            (" to b", false),
            (" to c", true),
            (" to be or", true),
            (" to be or not", true),
            (" to\u{fffd}", false),
        ] {
            assert_eq!(judge.is_settled(answer), settled, "{answer:?}");
        }
    }

    fn text() -> impl Strategy<Value = String> {
        // Few letters make answers and references often begin alike.
        "[ab\\. the]{0,8}"
    }

    proptest! {
        #[test]
        fn settled_scores_do_not_change(answer in text(), rest in text(), reference in text()) {
            let references = vec![reference.clone()];
            for judge in [
                Judge::Answers(references.clone()),
                Judge::Continuation(reference),
                Judge::AllOf(references.clone()),
                Judge::AnyOf(references),
            ] {
                if judge.is_settled(&answer) {
                    prop_assert_eq!(judge.score(&answer), judge.score(&format!("{answer}{rest}")), "{:?}", judge);
                }
            }
        }
    }
}
