//! Key-value retrieval: a text of facts of one form, which only their keys distinguish.

use std::collections::BTreeSet;

use rand::seq::SliceRandom;
use sparq_models::text::TextTokenizer;

use super::needle::question;
use super::{Task, TaskOptions};
use crate::haystack::{MAX_NEEDLES, Needle};
use crate::prose::{BIBLE, PLAYS, Prose};
use crate::{EvalError, Metric, Passage, TaskName};

/// The number of letters of a key.
const LETTERS: std::ops::RangeInclusive<usize> = 4..=10;

pub(super) const TASK: Task = Task {
    title: "Keys and values",
    about: "The share of keys whose values are found among many; more is better.",
    metric: Metric::PrefixMatch,
    passages,
};

/// Makes texts of as many facts as fit into the context, with questions spread evenly over them.
fn passages(options: &TaskOptions, tokenizer: &TextTokenizer) -> Result<Vec<Passage>, EvalError> {
    let task = TaskName::KeyValue;
    let contexts = options.checked_contexts(task)?;
    options.check_needles(MAX_NEEDLES)?;
    let prose = Prose::new("", tokenizer)?;
    let names = names();
    let mut passages = Vec::new();
    for &context in contexts {
        for text in 0..options.examples.div_ceil(options.needles) {
            let mut rng = options.rng(task, context, text);
            let mut names = names.clone();
            names.shuffle(&mut rng);
            let mut facts = Facts::new(&prose)?;
            for name in names {
                if !facts.add(Needle::new(name, &mut rng), context)? {
                    break;
                }
            }
            if facts.needles.len() < 2 * options.needles {
                return Err(EvalError::Context {
                    task: task.name(),
                    expected: format!("room for {} facts", 2 * options.needles),
                    found: context,
                });
            }
            let asked = options
                .needles
                .min(options.examples - text * options.needles);
            passages.push(facts.passage(context, text, options.needles, asked)?);
        }
    }
    Ok(passages)
}

/// Returns the capitalised words of the embedded texts.
fn names() -> Vec<&'static str> {
    let is_name = |word: &&str| {
        let mut letters = word.chars();
        LETTERS.contains(&word.len())
            && letters.next().is_some_and(|c| c.is_ascii_uppercase())
            && letters.all(|letter| letter.is_ascii_lowercase())
    };
    let texts = [BIBLE, PLAYS].into_iter();
    let words = texts.flat_map(|text| text.split(|c: char| !c.is_ascii_alphabetic()));
    let names: BTreeSet<_> = words.filter(is_name).collect();
    names.into_iter().collect()
}

/// The tokens of facts.
struct Facts<'a> {
    prose: &'a Prose,
    tokens: Vec<u32>,
    needles: Vec<Needle>,
    /// The number of tokens of the longest question with its answer.
    tail: usize,
}

impl<'a> Facts<'a> {
    fn new(prose: &'a Prose) -> Result<Self, EvalError> {
        Ok(Self {
            prose,
            tokens: prose.opening().to_vec(),
            needles: Vec::new(),
            tail: 0,
        })
    }

    /// Adds a fact. Returns false if it does not fit into the context.
    fn add(&mut self, needle: Needle, context: usize) -> Result<bool, EvalError> {
        let fact = self.prose.encode(&needle.fact())?;
        let asked = self.prose.encode(&needle.question())?.len();
        let answer = self.prose.encode(&needle.answer())?.len();
        let sentence = self.prose.encode(&needle.sentence())?.len();
        let tail = self.tail.max(asked + answer.max(sentence));
        if self.tokens.len() + fact.len() + tail > context {
            return Ok(false);
        }
        self.tokens.extend(fact);
        self.tail = tail;
        self.needles.push(needle);
        Ok(true)
    }

    fn passage(
        self,
        context: usize,
        text: usize,
        spread: usize,
        asked: usize,
    ) -> Result<Passage, EvalError> {
        let count = self.needles.len();
        let ask = |index: usize| {
            // In the middle of equal parts, moved by one fact in every text.
            let at = ((2 * index + 1) * count / (2 * spread) + text) % count;
            let example = format!("context={context} text={text} key={at}");
            let mut question = question(self.prose, &self.needles[at], example)?;
            let depth = at as f64 / (count - 1).max(1) as f64;
            question.detail.insert("depth".into(), depth.into());
            question.detail.insert("keys".into(), count.into());
            Ok(question)
        };
        Ok(Passage {
            context: Some(context),
            questions: (0..asked).map(ask).collect::<Result<_, EvalError>>()?,
            text: self.tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use sparq_models::embedded;

    use super::*;
    use crate::tasks::tests::options;

    #[test]
    fn keys_are_unique_and_present() {
        let tokenizer = embedded::tokenizer().unwrap();
        for passage in passages(&options(&[8192], 8), &tokenizer).unwrap() {
            let text = tokenizer.decode(&passage.text, false).unwrap();
            assert!(text.matches("secret code").count() > 150);
            for question in &passage.questions {
                let of = |key| question.detail[key].as_str().unwrap();
                let fact = format!(" The secret code of {} is {}. ", of("name"), of("code"));
                assert_eq!(text.matches(&fact).count(), 1, "{fact}");
                let key = format!("code of {} is", of("name"));
                assert_eq!(text.matches(&key).count(), 1, "{key}");
            }
        }
    }
}
