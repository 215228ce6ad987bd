//! Needle in a haystack: prose with hidden facts, and a question for each fact.

use sparq_models::text::TextTokenizer;

use super::{Task, TaskOptions};
use crate::haystack::{Depths, Haystack, MAX_NEEDLES, Needle, sentence_excess};
use crate::prose::{BIBLE, Prose, text_or};
use crate::score::Judge;
use crate::{EvalError, Metric, Passage, Question, TaskName, Work};

pub(super) const TASK: Task = Task {
    title: "Needles in a haystack",
    about: "The share of facts found in a long text; more is better.",
    metric: Metric::PrefixMatch,
    passages,
};

/// Makes texts with needles at the depths of a grid. After as many texts as depths, every depth has
/// had the same number of questions.
fn passages(options: &TaskOptions, tokenizer: &TextTokenizer) -> Result<Vec<Passage>, EvalError> {
    let task = TaskName::Needle;
    let contexts = options.checked_contexts(task)?;
    options.check_needles(options.depths.min(MAX_NEEDLES))?;
    let prose = Prose::new(&text_or(options.text.as_deref(), BIBLE)?, tokenizer)?;
    let sentence = sentence_excess(&prose)?;
    let mut passages = Vec::new();
    for &context in contexts {
        for text in 0..options.examples.div_ceil(options.needles) {
            let depths = depths(text, options.needles, options.depths);
            let mut rng = options.rng(task, context, text);
            let haystack = Haystack::new(&prose, &mut rng, context, sentence, Depths::At(&depths))?;
            let asked = options
                .needles
                .min(options.examples - text * options.needles);
            let questions = haystack.needles.iter().zip(&depths).take(asked);
            let question = |(needle, &depth): (&Needle, &f64)| {
                let example = format!("context={context} text={text} depth={depth}");
                let mut question = question(&prose, needle, example)?;
                question.detail.insert("depth".into(), depth.into());
                Ok(question)
            };
            passages.push(Passage {
                context: Some(context),
                text: [prose.opening(), &prose.encode(&haystack.text)?].concat(),
                questions: questions.map(question).collect::<Result<_, EvalError>>()?,
            });
        }
    }
    Ok(passages)
}

/// Returns the depths of a text's needles: spread over the grid, and moved by one in every text.
fn depths(text: usize, needles: usize, grid: usize) -> Vec<f64> {
    let stride = grid / needles;
    (0..needles)
        .map(|needle| ((text + needle * stride) % grid) as f64 / (grid - 1).max(1) as f64)
        .collect()
}

/// Makes the question for a needle. Correct answers are the code, alone or in its sentence.
pub(super) fn question(
    prose: &Prose,
    needle: &Needle,
    example: String,
) -> Result<Question, EvalError> {
    let mut detail = serde_json::Map::new();
    detail.insert("name".into(), needle.name.clone().into());
    detail.insert("code".into(), needle.code.clone().into());
    let answer = prose.encode(&needle.answer())?.len();
    let sentence = prose.encode(&needle.sentence())?.len();
    Ok(Question {
        example,
        prompt: prose.encode(&needle.question())?,
        work: Work::Answer {
            max_tokens: answer.max(sentence),
            judge: Judge::Answers(vec![needle.answer(), needle.sentence()]),
        },
        detail,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sparq_models::embedded;

    use super::*;
    use crate::tasks::tests::options;

    #[test]
    fn depths_get_equally_many_questions() {
        let mut counts = BTreeMap::new();
        for text in 0..17 {
            let depths = depths(text, 4, 17);
            for depth in &depths {
                *counts.entry(depth.to_bits()).or_insert(0) += 1;
            }
        }
        assert_eq!(counts.len(), 17);
        assert!(counts.values().all(|&count| count == 4), "{counts:?}");
        assert_eq!(depths(0, 1, 1), [0.0]);
    }

    #[test]
    fn answers_are_the_code_or_its_sentence() {
        let tokenizer = embedded::tokenizer().unwrap();
        let passage = passages(&options(&[2048], 1), &tokenizer)
            .unwrap()
            .remove(0);
        let question = &passage.questions[0];
        let of = |key| question.detail[key].as_str().unwrap();
        let Work::Answer { judge, .. } = &question.work else {
            panic!("{:?}", question.work);
        };
        let (name, code) = (of("name"), of("code"));
        for (answer, score) in [
            (format!(" {code}."), 1.0),
            (format!(" The secret code of {name} is {code}."), 1.0),
            (format!(" The secret code of {name} is 12"), 0.0),
            (format!(" The secret code of God is {code}."), 0.0),
            (String::new(), 0.0),
        ] {
            assert_eq!(judge.score(&answer), score, "{answer}");
        }
    }

    #[test]
    fn answers_occur_once_in_the_text() {
        let tokenizer = embedded::tokenizer().unwrap();
        for passage in passages(&options(&[2048], 8), &tokenizer).unwrap() {
            let text = tokenizer.decode(&passage.text, false).unwrap();
            for question in &passage.questions {
                let code = question.detail["code"].as_str().unwrap();
                assert_eq!(text.matches(code).count(), 1, "{code}");
            }
        }
    }
}
