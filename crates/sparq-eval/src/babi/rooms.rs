//! Rooms that lie in directions from each other (qa4).

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::facts::{Facts, Prompt, ROOMS};

pub(super) const PROMPT: Prompt = Prompt {
    instruction: "I will give you context with the facts about different rooms and their \
                  directions, hidden in some random text and a question. You need to answer the \
                  question based only on the information from the facts.",
    examples: "<example>\nThe attic is south of the cellar. The balcony is north of the cellar. \
               What is the attic south of?\nAnswer: cellar\n</example>\n\n<example>\nThe garage \
               is west of the shop. The shop is west of the cellar. What is west of the \
               shop?\nAnswer: garage\n</example>",
    format: "Your answer should contain only one word - location. Do not write anything else after \
             that.",
};

const DIRECTIONS: [[&str; 2]; 2] = [["north", "south"], ["east", "west"]];

/// Draws two facts on three rooms, and asks for an outer one.
pub(super) fn draw(rng: &mut SmallRng) -> Facts {
    let rooms: Vec<&str> = ROOMS.choose_multiple(rng, 3).copied().collect();
    let [first, middle, last] = rooms[..] else {
        unreachable!("three rooms were drawn");
    };
    let mut axis = DIRECTIONS[rng.random_range(0..2)];
    if rng.random_bool(0.5) {
        axis.reverse();
    }
    let [forward, back] = axis;
    // From the first room over the middle to the last leads `forward`.
    let mut sentences = vec![
        format!("The {middle} is {forward} of the {first}."),
        format!("The {last} is {forward} of the {middle}."),
    ];
    if rng.random_bool(0.5) {
        sentences.swap(0, 1);
    }
    let (question, answer) = match rng.random_range(0..4) {
        0 => (format!("What is {forward} of the {middle}?"), last),
        1 => (format!("What is {back} of the {middle}?"), first),
        2 => (format!("What is the {middle} {forward} of?"), first),
        _ => (format!("What is the {middle} {back} of?"), last),
    };
    Facts {
        sentences,
        question,
        answer: answer.into(),
        labels: ROOMS,
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn answers_follow_from_a_fact() {
        let opposite = |direction: &str| match direction {
            "north" => "south",
            "south" => "north",
            "east" => "west",
            _ => "east",
        };
        for seed in 0..100 {
            let facts = draw(&mut SmallRng::seed_from_u64(seed));
            let asked = facts.question.trim_end_matches('?').split(' ');
            let words: Vec<&str> = asked.filter(|word| !["the", "of"].contains(word)).collect();
            let answer = &facts.answer;
            // "What is north kitchen" or "What is kitchen north".
            let is = |a: &str, direction: &str, b: &str| {
                let same = format!("The {a} is {direction} of the {b}.");
                let turned = format!("The {b} is {} of the {a}.", opposite(direction));
                facts.sentences.contains(&same) || facts.sentences.contains(&turned)
            };
            let right = match ROOMS.contains(&words[2]) {
                true => is(words[2], words[3], answer),
                false => is(answer, words[2], words[3]),
            };
            assert!(right, "{facts:?}");
        }
    }
}
