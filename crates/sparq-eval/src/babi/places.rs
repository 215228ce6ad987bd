//! Persons who move between rooms and carry objects (qa1 to qa3).

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::facts::{Facts, Prompt, ROOMS, one};

const PERSONS: [&str; 4] = ["Daniel", "John", "Mary", "Sandra"];
const OBJECTS: [&str; 3] = ["apple", "football", "milk"];
const MOVES: [&str; 5] = [
    "journeyed to",
    "moved to",
    "travelled to",
    "went back to",
    "went to",
];
const TAKES: [&str; 4] = ["got", "grabbed", "picked up", "took"];
const DROPS: [&str; 4] = ["discarded", "dropped", "left", "put down"];

pub(super) const OF_PERSON: Prompt = Prompt {
    instruction: "I will give you context with the facts about positions of different persons \
                  hidden in some random text and a question. You need to answer the question based \
                  only on the information from the facts. If a person was in different locations, \
                  use the latest location to answer the question.",
    examples: "<example>\nAnna went to the cellar. Peter moved to the attic. Anna travelled to the \
               balcony. Where is Anna?\nAnswer: The most recent location of Anna is \
               balcony.\n</example>\n\n<example>\nPaul moved to the garage. Anna went to the \
               beach. Paul went to the shop. Where is Paul?\nAnswer: The most recent location of \
               Paul is shop.\n</example>",
    format: "Always return your answer in the following format: The most recent location of \
             'person' is 'location'. Do not write anything else after that.",
};

pub(super) const OF_OBJECT: Prompt = Prompt {
    instruction: "I will give you context with the facts about locations and actions of different \
                  persons hidden in some random text and a question. You need to answer the \
                  question based only on the information from the facts. If a person got an item \
                  and travelled, the item is in the new location. If a person dropped an item and \
                  moved, the item remains in the old location.",
    examples: "<example>\nAnna went to the cellar. Anna got a bottle. Anna moved to the balcony. \
               Where is the bottle?\nAnswer: The bottle is in the \
               balcony.\n</example>\n\n<example>\nPaul moved to the garage. Paul got a rope. Paul \
               moved to the attic. Where is the rope?\nAnswer: The rope is in the \
               attic.\n</example>",
    format: "Always return your answer in the following format: The 'item' is in the 'location'. \
             Do not write anything else after that.",
};

pub(super) const BEFORE: Prompt = Prompt {
    instruction: OF_OBJECT.instruction,
    examples: "<example>\nAnna went to the cellar. Anna got a bottle. Anna moved to the balcony. \
               Anna moved to the attic. Where was the bottle before the attic?\nAnswer: Before the \
               attic the bottle was in the balcony.\n</example>\n\n<example>\nPaul moved to the \
               garage. Paul got a rope. Paul moved to the shop. Where was the rope before the \
               shop?\nAnswer: Before the shop the rope was in the garage.\n</example>",
    format: "Always return your answer in the following format: Before the 'location 1' the 'item' \
             was in the 'location 2'. Do not write anything else after that.",
};

/// A story of moves, and the state after it.
#[derive(Default)]
struct Story {
    sentences: Vec<String>,
    /// The room of each person.
    rooms: [Option<&'static str>; PERSONS.len()],
    /// The carrier of each object.
    carriers: [Option<usize>; OBJECTS.len()],
    /// The rooms of each object in order, without repetitions in a row.
    paths: [Vec<&'static str>; OBJECTS.len()],
}

impl Story {
    fn go(&mut self, rng: &mut SmallRng, person: usize) {
        let room = loop {
            let room = one(rng, ROOMS);
            if self.rooms[person] != Some(room) {
                break room;
            }
        };
        self.rooms[person] = Some(room);
        let verb = one(rng, &MOVES);
        let sentence = format!("{} {verb} the {room}.", PERSONS[person]);
        self.sentences.push(sentence);
        for (object, carrier) in self.carriers.into_iter().enumerate() {
            if carrier == Some(person) {
                self.arrive(object, room);
            }
        }
    }

    fn arrive(&mut self, object: usize, room: &'static str) {
        if self.paths[object].last() != Some(&room) {
            self.paths[object].push(room);
        }
    }

    /// Lets a person take a free object of its room or of no known room. Does nothing without one.
    fn take(&mut self, rng: &mut SmallRng, person: usize) {
        let Some(room) = self.rooms[person] else {
            return;
        };
        let near = |object: &usize| {
            let last = self.paths[*object].last();
            self.carriers[*object].is_none() && last.is_none_or(|last| *last == room)
        };
        let free: Vec<usize> = (0..OBJECTS.len()).filter(near).collect();
        if let Some(&object) = free.choose(rng) {
            self.carriers[object] = Some(person);
            self.arrive(object, room);
            let verb = one(rng, &TAKES);
            let sentence = format!("{} {verb} the {}.", PERSONS[person], OBJECTS[object]);
            self.sentences.push(sentence);
        }
    }

    /// Lets a person drop an object. Does nothing without one.
    fn drop(&mut self, rng: &mut SmallRng, person: usize) {
        let carried = |object: &usize| self.carriers[*object] == Some(person);
        let carried: Vec<usize> = (0..OBJECTS.len()).filter(carried).collect();
        if let Some(&object) = carried.choose(rng) {
            self.carriers[object] = None;
            let verb = one(rng, &DROPS);
            let sentence = format!("{} {verb} the {}.", PERSONS[person], OBJECTS[object]);
            self.sentences.push(sentence);
        }
    }

    /// Draws events until an object has been in at least `rooms` rooms. Returns the object.
    fn of_object(rng: &mut SmallRng, rooms: usize) -> (Self, usize) {
        let mut story = Self::default();
        loop {
            let person = rng.random_range(0..PERSONS.len());
            match rng.random_range(0..10) {
                0..5 => story.go(rng, person),
                5..9 => story.take(rng, person),
                _ => story.drop(rng, person),
            }
            let moved = story.paths.iter().position(|path| path.len() >= rooms);
            if let Some(object) = moved {
                return (story, object);
            }
        }
    }
}

/// Where is a person?
pub(super) fn of_person(rng: &mut SmallRng) -> Facts {
    let mut story = Story::default();
    for _ in 0..rng.random_range(2..=10) {
        let person = rng.random_range(0..PERSONS.len());
        story.go(rng, person);
    }
    let known: Vec<(usize, &str)> = story
        .rooms
        .iter()
        .enumerate()
        .filter_map(|(person, room)| Some((person, (*room)?)))
        .collect();
    let (person, room) = *known.choose(rng).expect("somebody moved");
    Facts {
        sentences: story.sentences,
        question: format!("Where is {}?", PERSONS[person]),
        answer: room.into(),
        labels: ROOMS,
    }
}

/// Where is an object?
pub(super) fn of_object(rng: &mut SmallRng) -> Facts {
    let (story, object) = Story::of_object(rng, 2);
    let room = story.paths[object].last().expect("the object has moved");
    Facts {
        question: format!("Where is the {}?", OBJECTS[object]),
        answer: (*room).into(),
        sentences: story.sentences,
        labels: ROOMS,
    }
}

/// Where was an object before its last room?
pub(super) fn before(rng: &mut SmallRng) -> Facts {
    let (story, object) = Story::of_object(rng, 3);
    let path = &story.paths[object];
    let [.., before, last] = path[..] else {
        unreachable!("the object was in three rooms");
    };
    Facts {
        question: format!("Where was the {} before the {last}?", OBJECTS[object]),
        answer: before.into(),
        sentences: story.sentences,
        labels: ROOMS,
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    /// Returns the last room that the sentences of a person name.
    fn last_room<'a>(facts: &'a Facts, person: &str) -> &'a str {
        let own = |sentence: &&String| {
            let moves = ROOMS.iter().any(|room| sentence.contains(room));
            sentence.starts_with(person) && moves
        };
        let sentence = facts.sentences.iter().rfind(own).unwrap();
        sentence.trim_end_matches('.').rsplit(' ').next().unwrap()
    }

    #[test]
    fn persons_are_in_the_last_room_they_went_to() {
        for seed in 0..50 {
            let facts = of_person(&mut SmallRng::seed_from_u64(seed));
            let person = facts.question.rsplit(' ').next().unwrap();
            let person = person.trim_end_matches('?');
            assert_eq!(last_room(&facts, person), facts.answer, "{facts:?}");
        }
    }

    #[test]
    fn objects_are_with_their_last_carrier() {
        for seed in 0..200 {
            let facts = of_object(&mut SmallRng::seed_from_u64(seed));
            let object = facts
                .question
                .trim_end_matches('?')
                .rsplit(' ')
                .next()
                .unwrap();
            let with = |sentence: &&String| sentence.contains(object);
            // The story ends when the object arrives, so its carrier has not dropped it.
            let carrier = facts.sentences.iter().rfind(with).unwrap();
            let person = carrier.split(' ').next().unwrap();
            assert_eq!(last_room(&facts, person), facts.answer, "{facts:?}");
            assert!(facts.sentences.last().unwrap().starts_with(person));
        }
    }

    #[test]
    fn rooms_before_differ_from_the_last() {
        for seed in 0..200 {
            let facts = before(&mut SmallRng::seed_from_u64(seed));
            assert!(!facts.question.contains(&facts.answer), "{facts:?}");
            let last = facts.question.trim_end_matches('?').rsplit(' ').next();
            assert!(facts.sentences.last().unwrap().contains(last.unwrap()));
        }
    }
}
