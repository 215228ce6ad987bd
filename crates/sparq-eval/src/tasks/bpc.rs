//! Language modelling: bits per character of what goes on from a long text, read token by token so that the method is at work.

use rand::Rng;
use sparq_models::text::TextTokenizer;

use super::TaskOptions;
use crate::prose::{PLAYS, Prose, place, text_or};
use crate::{EvalError, Passage, Question, TaskName, Work};

/// Characters that are scored: at least so many, as far as tokens divide them.
const SCORED: usize = 400;

/// Texts that fill a context, of which the last characters are scored.
pub(super) fn passages(
    options: &TaskOptions,
    tokenizer: &TextTokenizer,
) -> Result<Vec<Passage>, EvalError> {
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
    let prompt = [prose.opening(), read].concat();
    Ok(Passage {
        context: Some(context),
        text: Vec::new(),
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

/// How many of the last tokens stand for [`SCORED`] characters, and for how many they do; `None` where that leaves nothing to read before.
fn scored(prose: &Prose, window: &[u32]) -> Result<Option<(usize, usize)>, EvalError> {
    let all = prose.decode(window)?.chars().count();
    // By the text before them, because tokenizers may write a text's first token in another way than those inside it.
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
    // All tokens would leave none before.
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
    fn a_text_fills_its_context_and_ends_in_what_is_scored() {
        let tokenizer = embedded::tokenizer().unwrap();
        let passages = passages(&options(&[1024, 500], 2), &tokenizer).unwrap();
        assert_eq!(passages.len(), 4);
        for (passage, context) in passages.iter().zip([1024, 1024, 500, 500]) {
            let question = &passage.questions[0];
            let Work::Predict { tokens, characters } = &question.work else {
                panic!("{:?}", question.work);
            };
            assert_eq!((tokens.len(), *characters), (SCORED, SCORED));
            assert_eq!(question.prompt.len() + tokens.len(), context);
            let text: Vec<u8> = question
                .prompt
                .iter()
                .chain(tokens)
                .map(|&token| token as u8)
                .collect();
            assert!(PLAYS.contains(std::str::from_utf8(&text).unwrap()));
        }
        assert_ne!(passages[0], passages[1]);
    }

    #[test]
    fn a_context_that_what_is_scored_would_fill_is_refused() {
        let tokenizer = embedded::tokenizer().unwrap();
        let error = passages(&options(&[SCORED], 1), &tokenizer).unwrap_err();
        assert!(error.to_string().contains("found 400"), "{error}");
    }
}
