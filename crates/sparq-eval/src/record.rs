//! [`Record`]: one finished example with one method, a line of a file of results.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sparq::Method;

/// The version of the form of a [`Record`].
pub const FORMAT: u32 = 1;

/// What a line of a file of results is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An example that a method has finished.
    Example,
}

/// The tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskName {
    /// Go on with an excerpt of the text before.
    Repetition,
    /// Find a fact in a long text.
    Needle,
    /// Predict a text, token by token: bits per character.
    Bpc,
    /// Find the value of a key among many.
    KeyValue,
    /// SQuAD v1.1, one shot, the context among seven others.
    Squad,
    /// TriviaQA, zero shot, with a page of Wikipedia.
    TriviaQa,
    /// CNN/DailyMail 3.0.0: summaries.
    CnnDailymail,
}

impl TaskName {
    /// All tasks, in the order of tables.
    pub const ALL: [TaskName; 7] = [
        TaskName::Repetition,
        TaskName::Needle,
        TaskName::Bpc,
        TaskName::KeyValue,
        TaskName::Squad,
        TaskName::TriviaQa,
        TaskName::CnnDailymail,
    ];

    /// The name in records.
    pub fn name(self) -> &'static str {
        match self {
            TaskName::Repetition => "repetition",
            TaskName::Needle => "needle",
            TaskName::Bpc => "bpc",
            TaskName::KeyValue => "key_value",
            TaskName::Squad => "squad",
            TaskName::TriviaQa => "trivia_qa",
            TaskName::CnnDailymail => "cnn_dailymail",
        }
    }

    /// How an example of the task is scored.
    pub fn metric(self) -> Metric {
        match self {
            TaskName::Repetition => Metric::Characters,
            TaskName::Bpc => Metric::BitsPerCharacter,
            TaskName::CnnDailymail => Metric::RougeL,
            TaskName::Needle | TaskName::KeyValue | TaskName::Squad | TaskName::TriviaQa => {
                Metric::PrefixMatch
            }
        }
    }
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a score counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// 1 where the normalised answer begins with a right one, else 0.
    PrefixMatch,
    /// Characters of the reference before the first difference.
    Characters,
    /// Bits that predicting a character of the reference takes.
    BitsPerCharacter,
    /// F of the longest common subsequence of words, 0 to 1.
    RougeL,
}

impl Metric {
    /// The name in records.
    pub fn name(self) -> &'static str {
        match self {
            Metric::PrefixMatch => "prefix_match",
            Metric::Characters => "characters",
            Metric::BitsPerCharacter => "bits_per_character",
            Metric::RougeL => "rouge_l",
        }
    }

    /// Which way is better.
    pub fn better(self) -> Better {
        match self {
            Metric::BitsPerCharacter => Better::Lower,
            Metric::PrefixMatch | Metric::Characters | Metric::RougeL => Better::Higher,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which way a score is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// A finished example.
///
/// A file of results is JSON lines, one record each, in the order in which they were finished. A line is complete in itself, so that files can be
/// cut, joined and sorted; what identifies it are model, task, example, method and budget. Records of different methods that agree in the others
/// are of the same tokens, so that scores can be compared in pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What the line is about.
    pub kind: Kind,
    /// [`FORMAT`].
    pub format: u32,
    /// The model: `embedded`, the last part of a path, or an id on the hub.
    pub model: String,
    /// The device, as on the command line.
    pub device: String,
    /// The type of weights and cache, as on the command line.
    pub dtype: String,
    /// What the examples were drawn from.
    pub seed: u64,
    /// The task.
    pub task: TaskName,
    /// The example within the task: the same for all methods and budgets.
    pub example: String,
    /// Positions that the example was made to fill; `None` where the data give the length.
    pub context: Option<usize>,
    /// Tokens that were read before the first was decoded.
    pub prompt_tokens: usize,
    /// CRC-32 of these tokens as little-endian u32, followed by the tokens of the reference if the task has them.
    pub prompt_crc32: u32,
    /// The method, as on the command line.
    pub method: String,
    /// The method with its settings.
    pub settings: Method,
    /// The share of dense attention's bytes that the settings were chosen for; `None` for dense.
    pub budget: Option<f64>,
    /// The share of dense attention's bytes that a step moves with these settings, by the cost model, at `context` positions (or else the example's) of a
    /// 16-bit cache.
    pub transfer: f64,
    /// What the score counts.
    pub metric: Metric,
    /// Which way it is better.
    pub better: Better,
    /// The score.
    pub score: f64,
    /// What the task has to add: the answer, the depth of a needle, nats and characters of a text.
    pub detail: Map<String, Value>,
    /// Tokens that were decoded with the method.
    pub steps: usize,
    /// Time of these steps.
    pub seconds: f64,
    /// The version of the program.
    pub version: String,
}

#[cfg(test)]
impl Record {
    /// A finished example of dense attention, for tests to change.
    pub(crate) fn dense(task: TaskName) -> Self {
        Self {
            kind: Kind::Example,
            format: FORMAT,
            model: "embedded".into(),
            device: "flex".into(),
            dtype: "f32".into(),
            seed: 0,
            task,
            example: "text=0".into(),
            context: Some(1024),
            prompt_tokens: 1000,
            prompt_crc32: 0,
            method: "dense".into(),
            settings: Method::DENSE,
            budget: None,
            transfer: 1.0,
            metric: task.metric(),
            better: task.metric().better(),
            score: 1.0,
            detail: Map::new(),
            steps: 1,
            seconds: 0.1,
            version: "0".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"kind":"example","format":1,"model":"embedded","device":"flex","dtype":"f32","seed":0,"task":"needle","example":"context=4096 text=0 depth=0.25","context":4096,"prompt_tokens":4088,"prompt_crc32":7,"method":"sparq","settings":{"method":"sparq","rank":16,"top_k":128,"local_window":32,"sketch":"4bits","mean_value":"paper","group_score":"probabilities","components":"sum_abs"},"budget":0.125,"transfer":0.1243,"metric":"prefix_match","better":"higher","score":1.0,"detail":{"answer":" 123456.","depth":0.25},"steps":8,"seconds":1.2,"version":"0.1.0"}"#;

    #[test]
    fn a_record_is_the_line_that_it_was_read_from() {
        let record: Record = serde_json::from_str(LINE).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), LINE);
    }

    #[test]
    fn a_field_that_is_not_known_is_refused() {
        let line = LINE.replace("\"seed\"", "\"sede\"");
        let error = serde_json::from_str::<Record>(&line)
            .unwrap_err()
            .to_string();
        assert!(error.contains("sede"), "{error}");
    }

    #[test]
    fn names_are_those_of_serde() {
        for task in TaskName::ALL {
            assert_eq!(serde_json::to_value(task).unwrap(), task.name());
            assert_eq!(
                serde_json::to_value(task.metric()).unwrap(),
                task.metric().name()
            );
        }
    }
}
