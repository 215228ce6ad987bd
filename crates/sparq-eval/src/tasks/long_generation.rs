//! Long generation: many tokens after a long prompt. Every token is compared with that of dense
//! attention.

use rand::Rng;
use sparq_models::text::TextTokenizer;

use super::{Task, TaskOptions};
use crate::prose::{PLAYS, Prose, place, text_or};
use crate::{EvalError, Metric, Passage, Question, TaskName, Work};

pub(super) const TASK: Task = Task {
    title: "Long generation",
    about: "The share of dense attention's tokens that are also the method's; more is better.",
    metric: Metric::Agreement,
    passages,
};

/// Makes texts that fill a context with their continuations.
fn passages(options: &TaskOptions, tokenizer: &TextTokenizer) -> Result<Vec<Passage>, EvalError> {
    let task = TaskName::LongGeneration;
    let prose = Prose::new(&text_or(options.text.as_deref(), PLAYS)?, tokenizer)?;
    let tokens = options.generated;
    let mut passages = Vec::new();
    for &context in options.checked_contexts(task)? {
        // At least as many tokens are read as generated, or there is no long prompt.
        let beside = prose.opening().len() + tokens;
        let room = context.saturating_sub(beside);
        if room < tokens.max(2) {
            return Err(EvalError::Context {
                task: task.name(),
                expected: format!("at least {} (twice --generated)", beside + tokens.max(2)),
                found: context,
            });
        }
        let first = options.rng(task, context, 0).random();
        for index in 0..options.examples {
            let window = prose.window(task.name(), place(first, index), room)?;
            let mut text = [prose.opening(), window].concat();
            let prompt = text.split_off(text.len() - 1);
            passages.push(Passage {
                context: Some(context),
                text,
                questions: vec![Question {
                    example: format!("context={context} text={index}"),
                    prompt,
                    work: Work::Continue { tokens },
                    detail: serde_json::Map::new(),
                }],
            });
        }
    }
    Ok(passages)
}
