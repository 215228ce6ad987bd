//! BABILong (Kuratov et al., "BABILong: Testing the Limits of LLMs with Long Context
//! Reasoning-in-a-Haystack", 2024): facts in the form of bAbI (Weston et al., 2015) among the
//! sentences of a long text, with a question on one, two or three of them.
//!
//! The facts are drawn here and not taken from bAbI's files. The text is prose, as in BABILong, but
//! the embedded plays or `--text` instead of PG19.

mod facts;
mod gifts;
mod places;
mod rooms;

use rand::Rng;
use rand::rngs::SmallRng;
use serde_json::Map;
use sparq_models::text::TextTokenizer;

use crate::filler::Filler;
use crate::prose::PLAYS;
use crate::sample::{self, Sample};
use crate::score::Judge;
use crate::tasks::TaskOptions;
use crate::{EvalError, Passage, TaskName, Work};
use facts::{Facts, Prompt};

/// The tokens of an answer.
const ANSWER_TOKENS: usize = 20;

/// The kind of question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// qa1: the place of a person.
    OneFact,
    /// qa2: the place of an object that persons carry.
    TwoFacts,
    /// qa3: the place of an object before another place.
    ThreeFacts,
    /// qa4: a room that lies in a direction from another.
    TwoRooms,
    /// qa5: a giver, a receiver or a gift.
    ThreeRoles,
}

impl Kind {
    fn facts(self, rng: &mut SmallRng) -> Facts {
        match self {
            Self::OneFact => places::of_person(rng),
            Self::TwoFacts => places::of_object(rng),
            Self::ThreeFacts => places::before(rng),
            Self::TwoRooms => rooms::draw(rng),
            Self::ThreeRoles => gifts::draw(rng),
        }
    }

    fn prompt(self) -> Prompt {
        match self {
            Self::OneFact => places::OF_PERSON,
            Self::TwoFacts => places::OF_OBJECT,
            Self::ThreeFacts => places::BEFORE,
            Self::TwoRooms => rooms::PROMPT,
            Self::ThreeRoles => gifts::PROMPT,
        }
    }

    /// Makes the examples.
    ///
    /// # Errors
    /// If a context is too long or too short, or the text cannot be read.
    pub(crate) fn passages(
        self,
        task: TaskName,
        options: &TaskOptions,
        tokenizer: &TextTokenizer,
    ) -> Result<Vec<Passage>, EvalError> {
        let filler = Filler::new(options.text.as_deref(), PLAYS)?;
        sample::passages(task, options, tokenizer, 1, &|_, rng, size| {
            Ok(self.of_size(&filler, rng, size))
        })
    }

    /// Makes a sample with `size` sentences of prose.
    fn of_size(self, filler: &Filler, rng: &mut SmallRng, size: usize) -> Sample {
        let Facts {
            sentences,
            question,
            answer,
            labels,
        } = self.facts(rng);
        let mut text: Vec<&str> = filler.draw(rng, size);
        let mut places: Vec<usize> = sentences
            .iter()
            .map(|_| rng.random_range(0..=size))
            .collect();
        places.sort_unstable();
        for (place, sentence) in places.into_iter().zip(&sentences).rev() {
            text.insert(place, sentence);
        }
        // Labels in the question are never the answer.
        let asked = question.to_lowercase();
        let labels = labels.iter().map(|label| (*label).to_owned());
        let labels = labels.filter(|label| !asked.contains(&label.to_lowercase()));
        let Prompt {
            instruction,
            examples,
            format,
        } = self.prompt();
        Sample {
            text: format!(
                "{instruction}\n\n{examples}\n\n{format}\n\n<context>\n{}\n</context>",
                text.join(" ")
            ),
            question: format!("\n\nQuestion: {question}\nAnswer:"),
            work: Work::Answer {
                max_tokens: ANSWER_TOKENS,
                judge: Judge::Label {
                    labels: labels.collect(),
                    target: answer,
                },
            },
            detail: Map::from_iter([("facts".to_owned(), sentences.len().into())]),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn facts_are_in_order_and_answers_not_in_questions() {
        let filler = Filler::new(None, PLAYS).unwrap();
        for kind in [
            Kind::OneFact,
            Kind::TwoFacts,
            Kind::ThreeFacts,
            Kind::TwoRooms,
            Kind::ThreeRoles,
        ] {
            for seed in 0..30 {
                let rng = SmallRng::seed_from_u64(seed);
                let facts = kind.facts(&mut rng.clone());
                let sample = kind.of_size(&filler, &mut rng.clone(), 40);
                let mut rest = sample.text.split_once("<context>").unwrap().1;
                for sentence in &facts.sentences {
                    let (_, after) = rest.split_once(sentence.as_str()).unwrap();
                    rest = after;
                }
                assert!(sample.question.contains(&facts.question));
                let Work::Answer {
                    judge: Judge::Label { target, labels },
                    ..
                } = &sample.work
                else {
                    panic!("{:?}", sample.work);
                };
                assert!(labels.contains(target), "{kind:?} {seed} {sample:?}");
                assert!(!facts.question.contains(target.as_str()));
            }
        }
    }
}
