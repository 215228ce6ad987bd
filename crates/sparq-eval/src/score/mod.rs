//! Scores of answers.

mod fields;
mod matching_characters;
mod prefix_match;
mod rouge;
mod sequence;
mod short;
mod single_label;
mod string_match;

pub use fields::field_match;
pub use matching_characters::matching_characters;
pub use prefix_match::prefix_match;
pub use rouge::rouge_l;
pub use sequence::sequence_similarity;
pub use short::{chosen_letter, first_number, has_word, token_f1};
pub use single_label::single_label;
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
    /// Continues the beginning of a JSON object and counts these fields by [`field_match`].
    Fields {
        /// The beginning of the object, at the end of the prompt.
        begun: String,
        /// The keys and values.
        fields: Vec<(String, String)>,
    },
    /// Searches one of several labels by [`single_label`].
    Label {
        /// The right label.
        target: String,
        /// All labels that the question does not name.
        labels: Vec<String>,
    },
    /// Compares with this letter by [`chosen_letter`].
    Letter(char),
    /// Compares with this number by [`first_number`].
    Number(f64),
    /// Searches any of these words by [`has_word`].
    Words(Vec<String>),
    /// Compares with these references by [`token_f1`].
    Tokens(Vec<String>),
    /// Compares by [`sequence_similarity`] what follows a prefix that the answer has to begin with.
    Similar {
        /// The prefix.
        prefix: String,
        /// The text after the prefix.
        reference: String,
    },
}

impl Judge {
    /// Returns the score of an answer.
    pub fn score(&self, answer: &str) -> f64 {
        match self {
            Judge::Answers(answers) => share(prefix_match(answer, answers)),
            Judge::Continuation(reference) => matching_characters(answer, reference) as f64,
            Judge::Summary(reference) => rouge_l(answer, reference),
            Judge::AllOf(references) => string_match_all(answer, references),
            Judge::AnyOf(references) => string_match_part(answer, references),
            Judge::Fields { begun, fields } => field_match(&format!("{begun}{answer}"), fields),
            Judge::Label { target, labels } => share(single_label(answer, target, labels)),
            Judge::Letter(letter) => share(chosen_letter(answer) == Some(*letter)),
            Judge::Number(number) => share(first_number(answer) == Some(*number)),
            Judge::Words(words) => share(words.iter().any(|word| has_word(answer, word))),
            Judge::Tokens(references) => token_f1(answer, references),
            Judge::Similar { prefix, reference } => {
                let after = answer.trim_start().strip_prefix(prefix.as_str());
                after.map_or(0.0, |text| sequence_similarity(text, reference))
            }
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
            Judge::Fields { begun, .. } => fields::end(&format!("{begun}{answer}")).is_some(),
            Judge::Label { .. } => answer.contains('.'),
            Judge::Similar { prefix, .. } => {
                let answer = answer.trim_start();
                !answer.starts_with(prefix.as_str()) && !prefix.starts_with(answer)
            }
            // An answer may continue the last word or number.
            Judge::Summary(_)
            | Judge::Letter(_)
            | Judge::Number(_)
            | Judge::Words(_)
            | Judge::Tokens(_) => false,
            // A reference that occurs once stays.
            Judge::AllOf(_) | Judge::AnyOf(_) => self.score(answer) >= 1.0,
        }
    }
}

/// Returns the score of a right or wrong answer.
fn share(is_right: bool) -> f64 {
    f64::from(u8::from(is_right))
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
                Judge::Label {
                    target: "ab".into(),
                    labels: vec!["ab".into(), "the".into()],
                },
                Judge::Similar {
                    prefix: "ab".into(),
                    reference: "the a".into(),
                },
            ] {
                if judge.is_settled(&answer) {
                    prop_assert_eq!(judge.score(&answer), judge.score(&format!("{answer}{rest}")), "{:?}", judge);
                }
            }
        }
    }
}
