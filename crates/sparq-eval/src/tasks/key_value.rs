//! Key-value retrieval: the text is nothing but facts of one form, so that what distinguishes them is the key alone.

use std::collections::BTreeSet;

use rand::seq::SliceRandom;
use sparq_models::text::TextTokenizer;

use super::TaskOptions;
use super::needle::question;
use crate::haystack::{MAX_NEEDLES, Needle};
use crate::prose::{BIBLE, PLAYS, Prose};
use crate::{EvalError, Passage, TaskName};

/// Letters of a name.
const LETTERS: std::ops::RangeInclusive<usize> = 4..=10;

/// Texts of as many facts as the context has room for, of which some, evenly spread over the text, are asked for.
pub(super) fn passages(
    options: &TaskOptions,
    tokenizer: &TextTokenizer,
) -> Result<Vec<Passage>, EvalError> {
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
            let mut table = Table::new(&prose)?;
            for name in names {
                if !table.add(Needle::new(name, &mut rng), context)? {
                    break;
                }
            }
            if table.needles.len() < 2 * options.needles {
                return Err(EvalError::Context {
                    task: task.name(),
                    expected: format!("room for {} facts", 2 * options.needles),
                    found: context,
                });
            }
            let asked = options
                .needles
                .min(options.examples - text * options.needles);
            passages.push(table.passage(context, text, options.needles, asked)?);
        }
    }
    Ok(passages)
}

/// The capitalised words of the texts inside the program.
fn names() -> Vec<&'static str> {
    let is_name = |word: &&str| {
        let mut letters = word.chars();
        LETTERS.contains(&word.len())
            && letters
                .next()
                .is_some_and(|first| first.is_ascii_uppercase())
            && letters.all(|letter| letter.is_ascii_lowercase())
    };
    let words = [BIBLE, PLAYS]
        .into_iter()
        .flat_map(|text| text.split(|c: char| !c.is_ascii_alphabetic()));
    words
        .filter(is_name)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// Facts as tokens.
struct Table<'a> {
    prose: &'a Prose,
    tokens: Vec<u32>,
    needles: Vec<Needle>,
    /// Tokens of the longest question with its answer.
    tail: usize,
}

impl<'a> Table<'a> {
    fn new(prose: &'a Prose) -> Result<Self, EvalError> {
        Ok(Self {
            prose,
            tokens: prose.opening().to_vec(),
            needles: Vec::new(),
            tail: 0,
        })
    }

    /// Adds a fact; false where the context has no room for it.
    fn add(&mut self, needle: Needle, context: usize) -> Result<bool, EvalError> {
        let fact = self.prose.encode(&needle.fact())?;
        let asked = self.prose.encode(&needle.question())?.len();
        let tail = self
            .tail
            .max(asked + self.prose.encode(&needle.answer())?.len());
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
            // In the middle of equal parts, one fact further in every text.
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
    fn keys_are_unique_and_those_asked_for_are_there() {
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
