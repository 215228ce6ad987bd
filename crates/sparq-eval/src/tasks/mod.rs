//! The tasks. A new task is a file in this folder with a `TASK`, and a line in `tasks!`.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use sparq_models::text::TextTokenizer;

use crate::datasets::wrong;
use crate::sample::Sample;
use crate::score::Judge;
use crate::{EvalError, Metric, Passage, Work};

/// Declares the tasks, each by its file and its name in code. The file gives the name in records.
macro_rules! tasks {
    ($($file:ident: $name:ident,)*) => {
        $(mod $file;)*

        /// The name of a task.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(into = "&'static str", try_from = "String")]
        pub enum TaskName {
            $(#[doc = concat!("The task of the file `tasks/", stringify!($file), ".rs`.")] $name,)*
        }

        impl TaskName {
            /// All tasks, in the order of tables.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the name in records.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($file),)*
                }
            }

            fn task(self) -> &'static Task {
                match self {
                    $(Self::$name => &$file::TASK,)*
                }
            }
        }
    };
}

tasks! {
    repetition: Repetition,
    needle: Needle,
    bpc: Bpc,
    key_value: KeyValue,
    niah_single_1: NiahSingle1,
    niah_single_2: NiahSingle2,
    niah_single_3: NiahSingle3,
    niah_multikey_1: NiahMultikey1,
    niah_multikey_2: NiahMultikey2,
    niah_multikey_3: NiahMultikey3,
    niah_multivalue: NiahMultivalue,
    niah_multiquery: NiahMultiquery,
    variable_tracking: VariableTracking,
    common_words: CommonWords,
    frequent_words: FrequentWords,
    ruler_qa: RulerQa,
    ruler_file: RulerFile,
    babilong_qa1: BabilongQa1,
    babilong_qa2: BabilongQa2,
    babilong_qa3: BabilongQa3,
    babilong_qa4: BabilongQa4,
    babilong_qa5: BabilongQa5,
    extraction: Extraction,
    long_generation: LongGeneration,
    squad: Squad,
    trivia_qa: TriviaQa,
    cnn_dailymail: CnnDailymail,
    longbench_v2: LongbenchV2,
    infinitebench: Infinitebench,
    mrcr: Mrcr,
}

/// A kind of test for a model.
struct Task {
    /// The heading of reports and the description in help texts.
    title: &'static str,
    /// The meaning of a score, for reports.
    about: &'static str,
    /// The score of an example.
    metric: Metric,
    /// Makes the examples.
    passages: fn(&TaskOptions, &TextTokenizer) -> Result<Vec<Passage>, EvalError>,
}

impl TaskName {
    /// Returns the heading of reports.
    pub fn title(self) -> &'static str {
        self.task().title
    }

    /// Returns a sentence on the meaning of a score.
    pub fn about(self) -> &'static str {
        self.task().about
    }

    /// Returns the score of an example.
    pub fn metric(self) -> Metric {
        self.task().metric
    }

    /// Makes the examples.
    ///
    /// # Errors
    /// If a context is longer than the model's or too short for the task, if the text is too short,
    /// or if a file has another form than the task reads.
    pub fn passages(
        self,
        options: &TaskOptions,
        tokenizer: &TextTokenizer,
    ) -> Result<Vec<Passage>, EvalError> {
        (self.task().passages)(options, tokenizer)
    }
}

impl From<TaskName> for &'static str {
    fn from(task: TaskName) -> Self {
        task.name()
    }
}

impl TryFrom<String> for TaskName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|task| task.name() == name);
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|task| task.name()).collect();
            format!("expected one of {}, found {name}", names.join(", "))
        })
    }
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The options that examples are made from.
#[derive(Clone, Debug)]
pub struct TaskOptions {
    /// The seed of all random draws.
    pub seed: u64,
    /// The number of examples of every task and context. A smaller number gives a prefix of a
    /// larger.
    pub examples: usize,
    /// The numbers of positions to fill, for tasks whose data do not determine the length.
    pub contexts: Vec<usize>,
    /// The number of facts in a text, each the subject of a question (needle, key_value).
    pub needles: usize,
    /// The number of tokens to generate (long_generation).
    pub generated: usize,
    /// The number of depths at which needles are placed, from the beginning to the end (needle).
    pub depths: usize,
    /// A text in UTF-8 instead of the embedded one, for tasks made of prose.
    pub text: Option<PathBuf>,
    /// The file of the data set, for tasks that read one.
    pub data: Option<PathBuf>,
    /// The most positions a question may take: the model's context.
    pub most: usize,
}

impl TaskOptions {
    /// Returns the contexts, after checking that none is longer than the model's.
    pub(crate) fn checked_contexts(&self, task: TaskName) -> Result<&[usize], EvalError> {
        match self.contexts.iter().find(|&&context| context > self.most) {
            Some(&found) => Err(EvalError::Context {
                task: task.name(),
                expected: format!("at most {} tokens (the model's context)", self.most),
                found,
            }),
            None => Ok(&self.contexts),
        }
    }

    /// Checks that there are 1 to `most` needles.
    fn check_needles(&self, most: usize) -> Result<(), EvalError> {
        match self.needles {
            found if found == 0 || found > most => Err(EvalError::Needles { most, found }),
            _ => Ok(()),
        }
    }

    /// Returns the file of the data set, or an error if none was given.
    pub(crate) fn data(&self, task: TaskName) -> Result<&Path, EvalError> {
        self.data
            .as_deref()
            .ok_or(EvalError::NoData { task: task.name() })
    }

    /// Returns the random numbers of example `index` of a task at a context. Other examples have
    /// independent ones.
    pub(crate) fn rng(&self, task: TaskName, context: usize, index: usize) -> SmallRng {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(task.name().as_bytes());
        for number in [context, index] {
            hasher.update(&(number as u64).to_le_bytes());
        }
        SmallRng::seed_from_u64(self.seed.rotate_left(32) ^ u64::from(hasher.finalize()))
    }
}

/// The characters of a page or article: long enough for a test, short enough for the paper's
/// models.
const LENGTHS: RangeInclusive<usize> = 4000..=8000;

/// The most tokens of a short answer.
const MAX_TOKENS: usize = 30;

/// The tokens of a short answer beyond the longest correct one.
const SPARE_TOKENS: usize = 5;

/// Returns the work of a short answer that begins with one of `answers`.
fn short_answer(tokenizer: &TextTokenizer, answers: &[String]) -> Result<Work, EvalError> {
    let mut longest = 0;
    for answer in answers {
        longest = longest.max(tokenizer.encode(answer, false)?.len());
    }
    Ok(Work::Answer {
        max_tokens: MAX_TOKENS.min(longest + SPARE_TOKENS),
        judge: Judge::Answers(answers.to_vec()),
    })
}

/// Chooses examples among the `count` rows of a data set, in an order that depends on the seed.
///
/// `ask` makes the name and the sample of a row. Skips a row if it returns `None` or a passage
/// longer than the model's context. Cutting the text could remove the answer.
pub(crate) fn choose(
    options: &TaskOptions,
    tokenizer: &TextTokenizer,
    task: TaskName,
    count: usize,
    mut ask: impl FnMut(usize, &mut SmallRng) -> Result<Option<(String, Sample)>, EvalError>,
) -> Result<Vec<Passage>, EvalError> {
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut options.rng(task, 0, 0));
    let mut passages = Vec::new();
    for index in order {
        if passages.len() == options.examples {
            break;
        }
        let Some((example, sample)) = ask(index, &mut options.rng(task, 0, index + 1))? else {
            continue;
        };
        let passage = sample.passage(tokenizer, None, example)?;
        if passage.positions(&passage.questions[0]) <= options.most {
            passages.push(passage);
        }
    }
    if passages.is_empty() {
        let reason = format!(
            "expected one that fits the model's context of {} tokens, found none",
            options.most
        );
        return Err(wrong(
            options.data(task)?,
            format!("{count} usable rows"),
            reason,
        ));
    }
    Ok(passages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_equal_the_serialized_ones() {
        for task in TaskName::ALL {
            assert_eq!(serde_json::to_value(task).unwrap(), task.name());
        }
    }

    /// Options for the embedded model.
    pub(super) fn options(contexts: &[usize], examples: usize) -> TaskOptions {
        TaskOptions {
            seed: 0,
            examples,
            contexts: contexts.to_vec(),
            needles: 4,
            generated: 300,
            depths: 17,
            text: None,
            data: None,
            most: 8192,
        }
    }

    /// The tasks that need no file.
    const EMBEDDED: [TaskName; 4] = [
        TaskName::Repetition,
        TaskName::Needle,
        TaskName::Bpc,
        TaskName::KeyValue,
    ];

    fn made(task: TaskName, options: &TaskOptions) -> Vec<Passage> {
        let tokenizer = sparq_models::embedded::tokenizer().unwrap();
        task.passages(options, &tokenizer).unwrap()
    }

    #[test]
    fn examples_are_a_prefix_of_more_examples() {
        for task in EMBEDDED {
            let examples = |count| {
                let passages = made(task, &options(&[1536], count));
                let questions = passages.iter().flat_map(|passage| {
                    let of = |question| (passage.text.clone(), passage.crc32(question));
                    passage.questions.iter().map(of)
                });
                questions.collect::<Vec<_>>()
            };
            let (few, many) = (examples(3), examples(7));
            assert_eq!((few.len(), many.len()), (3, 7), "{task}");
            assert_eq!(few, many[..3], "{task}");
        }
    }

    #[test]
    fn examples_have_unique_names_and_fit_the_context() {
        for task in EMBEDDED {
            let passages = made(task, &options(&[1024, 2048], 9));
            let mut names: Vec<&str> = Vec::new();
            for passage in &passages {
                for question in &passage.questions {
                    names.push(&question.example);
                    let (positions, context) = (passage.positions(question), passage.context);
                    let context = context.unwrap();
                    let fits = positions <= context && positions + 120 > context;
                    assert!(fits, "{task}: {positions} of {context}");
                }
            }
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), 18, "{task}");
        }
    }

    /// The other generated tasks.
    const GENERATED: [TaskName; 18] = [
        TaskName::NiahSingle1,
        TaskName::NiahSingle2,
        TaskName::NiahSingle3,
        TaskName::NiahMultikey1,
        TaskName::NiahMultikey2,
        TaskName::NiahMultikey3,
        TaskName::NiahMultivalue,
        TaskName::NiahMultiquery,
        TaskName::VariableTracking,
        TaskName::CommonWords,
        TaskName::FrequentWords,
        TaskName::BabilongQa1,
        TaskName::BabilongQa2,
        TaskName::BabilongQa3,
        TaskName::BabilongQa4,
        TaskName::BabilongQa5,
        TaskName::Extraction,
        TaskName::LongGeneration,
    ];

    #[test]
    fn generated_tasks_fill_their_contexts() {
        let mut options = options(&[7168, 8000], 2);
        options.generated = 500;
        for task in GENERATED {
            let passages = made(task, &options);
            assert_eq!(passages.len(), 4, "{task}");
            for passage in &passages {
                let positions = passage.positions(&passage.questions[0]);
                let context = passage.context.unwrap();
                let fills = positions <= context && 10 * positions > 9 * context;
                assert!(fills, "{task}: {positions} of {context}");
            }
            options.seed += 1;
            assert_ne!(made(task, &options)[0].text, passages[0].text, "{task}");
            options.contexts[0] = 9000;
            let tokenizer = sparq_models::embedded::tokenizer().unwrap();
            let error = task.passages(&options, &tokenizer).unwrap_err();
            assert!(error.to_string().contains("at most 8192"), "{error}");
            options.contexts[0] = 7168;
        }
    }

    #[test]
    fn examples_depend_on_the_seed() {
        for task in EMBEDDED {
            let text = |seed| {
                let options = TaskOptions {
                    seed,
                    ..options(&[1024], 1)
                };
                let passage = made(task, &options).remove(0);
                passage.crc32(&passage.questions[0])
            };
            assert_ne!(text(0), text(1), "{task}");
        }
    }

    #[test]
    fn contexts_beyond_the_model_are_refused() {
        let tokenizer = sparq_models::embedded::tokenizer().unwrap();
        for task in EMBEDDED {
            let error = task
                .passages(&options(&[1024, 8193], 1), &tokenizer)
                .unwrap_err();
            let message = error.to_string();
            assert!(
                message.contains("at most 8192") && message.contains("8193"),
                "{message}"
            );
        }
    }
}
