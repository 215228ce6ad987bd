//! How answers are judged.

mod prefix_match;
mod repetition;
mod rouge;

pub use prefix_match::prefix_match;
pub use repetition::matching_characters;
pub use rouge::rouge_l;

/// What an answer is held to.
#[derive(Clone, Debug, PartialEq)]
pub enum Judge {
    /// Any of these answers, by [`prefix_match`].
    Answers(Vec<String>),
    /// How far it goes along this text, by [`matching_characters`].
    Continuation(String),
    /// This summary, by [`rouge_l`].
    Summary(String),
}

impl Judge {
    /// The score of an answer.
    pub fn score(&self, answer: &str) -> f64 {
        match self {
            Judge::Answers(answers) => f64::from(u8::from(prefix_match(answer, answers))),
            Judge::Continuation(reference) => matching_characters(answer, reference) as f64,
            Judge::Summary(reference) => rouge_l(answer, reference),
        }
    }

    /// Whether the score stays what it is, whatever follows: the rest need not be generated.
    pub fn is_settled(&self, answer: &str) -> bool {
        // A character whose last bytes have not come yet.
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
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_continuation_is_settled_by_its_first_difference_and_by_its_end() {
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
        // Few letters, so that answers and references often begin alike.
        "[ab\\. the]{0,8}"
    }

    proptest! {
        #[test]
        fn what_is_settled_does_not_change(answer in text(), rest in text(), reference in text()) {
            for judge in [Judge::Answers(vec![reference.clone()]), Judge::Continuation(reference)] {
                if judge.is_settled(&answer) {
                    prop_assert_eq!(judge.score(&answer), judge.score(&format!("{answer}{rest}")), "{:?}", judge);
                }
            }
        }
    }
}
