//! Repetition: after a long text comes an excerpt of it, which the model has to continue as the
//! text does.

use rand::Rng;
use sparq_models::text::TextTokenizer;

use super::{Task, TaskOptions};
use crate::prose::{PLAYS, Prose, place, text_or};
use crate::score::Judge;
use crate::{EvalError, Metric, Passage, Question, TaskName, Work};

/// The least number of characters of the excerpt, which ends with a word.
const GIVEN: usize = 128;

/// The number of characters the model has to continue with.
const ASKED: usize = 256;

/// The text between the long text and the excerpt.
const SEPARATOR: &str = "\n";

pub(super) const TASK: Task = Task {
    title: "Repetition",
    about: "Characters of an excerpt of the text continued without an error; more is better.",
    metric: Metric::Characters,
    passages,
};

/// Makes texts that fill a context, each with one excerpt.
fn passages(options: &TaskOptions, tokenizer: &TextTokenizer) -> Result<Vec<Passage>, EvalError> {
    let task = TaskName::Repetition;
    let contexts = options.checked_contexts(task)?;
    let prose = Prose::new(&text_or(options.text.as_deref(), PLAYS)?, tokenizer)?;
    let mut passages = Vec::new();
    for &context in contexts {
        let first = options.rng(task, context, 0).random();
        for index in 0..options.examples {
            let within = options.rng(task, context, index + 1).random();
            let at = place(first, index);
            passages.push(passage(&prose, context, index, at, within)?);
        }
    }
    Ok(passages)
}

/// Makes an example of the text at `at` in the prose and the excerpt at `within` in the text.
fn passage(
    prose: &Prose,
    context: usize,
    index: usize,
    at: f64,
    within: f64,
) -> Result<Passage, EvalError> {
    let task = TaskName::Repetition.name();
    let window = prose.window(task, at, context)?;
    // Excerpt and answer take tokens from the text, and depend on it. The text shrinks until they
    // fit.
    let mut reserve = prose.opening().len();
    while reserve < context {
        let text = &window[..context - reserve];
        let Some(excerpt) = excerpt(&prose.decode(text)?, within) else {
            break;
        };
        let prompt = prose.encode(&format!("{SEPARATOR}{}", excerpt.given))?;
        let max_tokens = prose.encode(&excerpt.asked)?.len();
        let needed = prose.opening().len() + prompt.len() + max_tokens;
        if needed > reserve {
            reserve = needed;
            continue;
        }
        let mut detail = serde_json::Map::new();
        detail.insert("depth".into(), excerpt.depth.into());
        return Ok(Passage {
            context: Some(context),
            text: [prose.opening(), text].concat(),
            questions: vec![Question {
                example: format!("context={context} text={index}"),
                prompt,
                work: Work::Answer {
                    max_tokens,
                    judge: Judge::Continuation(excerpt.asked),
                },
                detail,
            }],
        });
    }
    Err(EvalError::Context {
        task,
        expected: format!("room for more than {} characters twice", GIVEN + ASKED),
        found: context,
    })
}

struct Excerpt {
    given: String,
    asked: String,
    /// The place in the text where the excerpt begins, from 0 to 1.
    depth: f64,
}

/// Takes whole words from a place in the text, and the characters that follow. Returns `None` if
/// the text is too short.
fn excerpt(text: &str, within: f64) -> Option<Excerpt> {
    let characters: Vec<char> = text.chars().collect();
    let is_space = |index: &usize| characters[*index].is_whitespace();
    let last = characters.len().checked_sub(GIVEN + ASKED + 1)?;
    let place = (within * last as f64) as usize;
    // Searching backwards finds a word from any place.
    let begin = |place: usize| {
        (0..=place)
            .rev()
            .find(|&start| start == 0 || is_space(&(start - 1)))
    };
    let start = begin(place)?;
    let end = (start + GIVEN..characters.len()).find(is_space)?;
    let asked = characters.get(end..)?;
    let leading = asked
        .iter()
        .take_while(|character| character.is_whitespace())
        .count();
    let asked = asked.get(..leading + ASKED)?;
    Some(Excerpt {
        given: characters[start..end].iter().collect(),
        asked: asked.iter().collect(),
        depth: start as f64 / characters.len() as f64,
    })
}

#[cfg(test)]
mod tests {
    use sparq_models::embedded;

    use super::*;
    use crate::tasks::tests::options;

    #[test]
    fn excerpts_occur_in_the_text_with_their_answers() {
        let tokenizer = embedded::tokenizer().unwrap();
        for passage in passages(&options(&[1024, 2048], 12), &tokenizer).unwrap() {
            let question = &passage.questions[0];
            let text = tokenizer.decode(&passage.text, false).unwrap();
            let given = tokenizer.decode(&question.prompt, false).unwrap();
            let Work::Answer {
                judge: Judge::Continuation(asked),
                max_tokens,
            } = &question.work
            else {
                panic!("{:?}", question.work);
            };
            let given = given.strip_prefix('\n').unwrap();
            assert!(text.contains(&format!("{given}{asked}")), "{given}|{asked}");
            assert!(given.len() >= GIVEN && asked.starts_with(char::is_whitespace));
            assert_eq!(asked.trim_start().len(), ASKED);
            assert_eq!(*max_tokens, asked.len());
        }
    }

    #[test]
    fn excerpts_come_from_all_depths() {
        let tokenizer = embedded::tokenizer().unwrap();
        let passages = passages(&options(&[8192], 40), &tokenizer).unwrap();
        let depth = |passage: &Passage| passage.questions[0].detail["depth"].as_f64().unwrap();
        let depths: Vec<f64> = passages.iter().map(depth).collect();
        assert!(depths.iter().any(|&depth| depth < 0.2));
        assert!(depths.iter().any(|&depth| depth > 0.7));
    }

    #[test]
    fn contexts_that_are_too_short_are_refused() {
        let tokenizer = embedded::tokenizer().unwrap();
        let error = passages(&options(&[600], 1), &tokenizer).unwrap_err();
        assert!(error.to_string().contains("found 600"), "{error}");
    }
}
