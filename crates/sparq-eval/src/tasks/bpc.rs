//! Language modelling: bits per character of the continuation of a long text. The continuation is
//! read token by token, so that every token is a decode step with the method.

use rand::Rng;
use sparq_models::text::TextTokenizer;

use super::{Task, TaskOptions};
use crate::prose::{PLAYS, Prose, place, text_or};
use crate::{EvalError, Metric, Passage, Question, TaskName, Work};

/// The least number of characters scored. Whole tokens may add a few.
const SCORED: usize = 400;

pub(super) const TASK: Task = Task {
    title: "Bits per character",
    about: "Bits needed to predict a character of a text; less is better.",
    metric: Metric::BitsPerCharacter,
    passages,
};

/// Makes texts that fill a context. Their last characters are scored.
fn passages(options: &TaskOptions, tokenizer: &TextTokenizer) -> Result<Vec<Passage>, EvalError> {
    let contexts = options.checked_contexts(TaskName::Bpc)?;
    let prose = Prose::new(&text_or(options.text.as_deref(), PLAYS)?, tokenizer)?;
    let mut passages = Vec::new();
    for &context in contexts {
        let first = options.rng(TaskName::Bpc, context, 0).random();
        for index in 0..options.examples {
            let at = place(first, index);
            passages.push(passage(&prose, context, index, at)?);
        }
    }
    Ok(passages)
}

fn passage(prose: &Prose, context: usize, index: usize, at: f64) -> Result<Passage, EvalError> {
    let room = context.saturating_sub(prose.opening().len());
    let window = prose.window(TaskName::Bpc.name(), at, room)?;
    let Some((scored, characters)) = scored(prose, window)? else {
        return Err(EvalError::Context {
            task: TaskName::Bpc.name(),
            expected: format!("room for more than {SCORED} characters"),
            found: context,
        });
    };
    let (read, scored) = window.split_at(window.len() - scored);
    let mut text = [prose.opening(), read].concat();
    // The last token predicts the first one scored.
    let prompt = text.split_off(text.len() - 1);
    Ok(Passage {
        context: Some(context),
        text,
        questions: vec![Question {
            example: format!("context={context} text={index}"),
            prompt,
            work: Work::Predict {
                tokens: scored.to_vec(),
                characters,
            },
            detail: serde_json::Map::new(),
        }],
    })
}

/// Returns the number of last tokens that hold [`SCORED`] characters, and their exact number of
/// characters. Returns `None` if no token is left before them.
fn scored(prose: &Prose, window: &[u32]) -> Result<Option<(usize, usize)>, EvalError> {
    let all = prose.decode(window)?.chars().count();
    // Counts by the text before, because a tokenizer may decode the first token of a text
    // differently.
    let characters = |count: usize| -> Result<usize, EvalError> {
        let before = prose.decode(&window[..window.len() - count])?;
        Ok(all.saturating_sub(before.chars().count()))
    };
    let (mut low, mut high) = (0, window.len());
    while low < high {
        let middle = low.midpoint(high);
        if characters(middle)? >= SCORED {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    if low >= window.len() {
        return Ok(None);
    }
    Ok(Some((low, characters(low)?)))
}

#[cfg(test)]
mod tests {
    use sparq_models::embedded;

    use super::*;
    use crate::tasks::tests::options;

    #[test]
    fn texts_fill_their_context() {
        let tokenizer = embedded::tokenizer().unwrap();
        let passages = passages(&options(&[1024, 500], 2), &tokenizer).unwrap();
        assert_eq!(passages.len(), 4);
        for (passage, context) in passages.iter().zip([1024, 1024, 500, 500]) {
            let question = &passage.questions[0];
            let Work::Predict { tokens, characters } = &question.work else {
                panic!("{:?}", question.work);
            };
            assert_eq!((tokens.len(), *characters), (SCORED, SCORED));
            assert_eq!(question.prompt.len(), 1);
            let read = [passage.text.as_slice(), &question.prompt].concat();
            assert_eq!(read.len() + tokens.len(), context);
            let text: Vec<u8> = read
                .iter()
                .chain(tokens)
                .map(|&token| token as u8)
                .collect();
            assert!(PLAYS.contains(std::str::from_utf8(&text).unwrap()));
        }
        assert_ne!(passages[0], passages[1]);
    }

    #[test]
    fn contexts_without_a_prompt_are_refused() {
        let tokenizer = embedded::tokenizer().unwrap();
        let error = passages(&options(&[SCORED], 1), &tokenizer).unwrap_err();
        assert!(error.to_string().contains("found 400"), "{error}");
    }
}
