//! Persons who give objects to others (qa5).

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::facts::{Facts, Prompt, one};

pub(super) const PROMPT: Prompt = Prompt {
    instruction: "I will give you context with the facts about persons and the objects that they \
                  give to each other, hidden in some random text and a question. You need to \
                  answer the question based only on the information from the facts.",
    examples: "<example>\nAnna gave the bottle to Paul. Who gave the bottle?\nAnswer: \
               Anna\n</example>\n\n<example>\nPaul passed the rope to Peter. What did Paul give to \
               Peter?\nAnswer: rope\n</example>",
    format: "Your answer should contain only one word. Do not write anything else after that.",
};

const PERSONS: [&str; 4] = ["Bill", "Fred", "Jeff", "Mary"];
const OBJECTS: [&str; 3] = ["apple", "football", "milk"];
const LABELS: &[&str] = &["Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"];
const VERBS: [&str; 3] = ["gave", "handed", "passed"];

/// Draws gifts. The last one with an object is asked for.
pub(super) fn draw(rng: &mut SmallRng) -> Facts {
    let mut gifts: Vec<[&'static str; 3]> = Vec::new();
    let mut sentences = Vec::new();
    for _ in 0..rng.random_range(1..=6) {
        let pair: Vec<&str> = PERSONS.choose_multiple(rng, 2).copied().collect();
        let object = one(rng, &OBJECTS);
        let verb = one(rng, &VERBS);
        sentences.push(format!("{} {verb} the {object} to {}.", pair[0], pair[1]));
        gifts.push([pair[0], object, pair[1]]);
    }
    let [giver, object, receiver] = gifts[gifts.len() - 1];
    let (question, answer) = match rng.random_range(0..4) {
        0 => (format!("Who gave the {object} to {receiver}?"), giver),
        1 => (format!("What did {giver} give to {receiver}?"), object),
        2 => (format!("Who received the {object}?"), receiver),
        _ => (format!("Who did {giver} give the {object} to?"), receiver),
    };
    Facts {
        sentences,
        question,
        answer: answer.into(),
        labels: LABELS,
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn answers_are_in_the_last_gift() {
        for seed in 0..100 {
            let facts = draw(&mut SmallRng::seed_from_u64(seed));
            let last = facts.sentences.last().unwrap();
            assert!(last.contains(&facts.answer), "{facts:?}");
            assert!(!facts.question.contains(&facts.answer), "{facts:?}");
        }
    }
}
