//! [`Record`]: the result of one method on one example, a line of a results file.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sparq::Method;

use crate::{Protocol, TaskName};

/// The version of the format of a [`Record`].
pub const FORMAT: u32 = 2;

/// The kind of a line of a results file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The result of a method on an example.
    Example,
}

/// The quantity that a score measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// 1 if the normalised answer begins with a correct one, else 0.
    PrefixMatch,
    /// The number of characters of the reference before the first difference.
    Characters,
    /// The bits needed to predict a character of the reference.
    BitsPerCharacter,
    /// The F score of the longest common subsequence of words, from 0 to 1.
    RougeL,
    /// The share of references that occur in the answer.
    StringMatch,
    /// The data set's own score of an answer, from 0 to 1.
    Accuracy,
    /// The share of the fields of an object that are right.
    FieldMatch,
    /// The similarity to the reference, from 0 to 1.
    Similarity,
    /// The share of positions whose most probable token is that of dense attention.
    Agreement,
}

impl Metric {
    /// Returns the name in records.
    pub fn name(self) -> &'static str {
        match self {
            Metric::PrefixMatch => "prefix_match",
            Metric::Characters => "characters",
            Metric::BitsPerCharacter => "bits_per_character",
            Metric::RougeL => "rouge_l",
            Metric::StringMatch => "string_match",
            Metric::Accuracy => "accuracy",
            Metric::FieldMatch => "field_match",
            Metric::Similarity => "similarity",
            Metric::Agreement => "agreement",
        }
    }

    /// Returns which direction is better.
    pub fn better(self) -> Better {
        match self {
            Metric::BitsPerCharacter => Better::Lower,
            _ => Better::Higher,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The direction in which a score improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Higher is better.
    Higher,
    /// Lower is better.
    Lower,
}

/// The result of a method on an example.
///
/// A results file holds JSON lines, one record per line, in the order in which the examples
/// finished. Every line is complete in itself, so files can be cut, joined and sorted. Model, task,
/// example, method and budget identify a record. Records that differ only in method and budget have
/// the same tokens, so their scores can be compared in pairs, within a protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The kind of the line.
    pub kind: Kind,
    /// The version of the format, [`FORMAT`].
    pub format: u32,
    /// The model: `embedded`, the last part of a path, or an ID on the Hugging Face Hub.
    pub model: String,
    /// The device, spelled as on the command line.
    pub device: String,
    /// The type of weights and cache, spelled as on the command line.
    pub dtype: String,
    /// The seed that the examples were drawn with.
    pub seed: u64,
    /// The attention that read the question.
    #[serde(default = "Protocol::of_format_1")]
    pub question: Protocol,
    /// The task.
    pub task: TaskName,
    /// The name of the example within the task, the same for all methods and budgets.
    pub example: String,
    /// The number of positions the example was made to fill. `None` if the data determine the
    /// length.
    pub context: Option<usize>,
    /// The number of tokens of text and question before the first token of the answer's first step.
    pub prompt_tokens: usize,
    /// The CRC-32 of these tokens as little-endian u32, followed by the reference tokens if the
    /// task has them.
    pub prompt_crc32: u32,
    /// The method, spelled as on the command line.
    pub method: String,
    /// The method with its settings.
    pub settings: Method,
    /// The share of dense attention's bytes that the settings were chosen for. `None` for dense.
    pub budget: Option<f64>,
    /// The share of dense attention's bytes that a step moves with these settings, counted by the
    /// cost model on a 16-bit cache of `context` positions (or the example's own length).
    pub transfer: f64,
    /// The quantity that the score measures.
    pub metric: Metric,
    /// The direction in which the score improves.
    pub better: Better,
    /// The score.
    pub score: f64,
    /// Details of the task: the answer, the depth of a needle, the nats and characters of a text.
    pub detail: Map<String, Value>,
    /// The number of decode steps of the answer, without those of the question.
    pub steps: usize,
    /// The time of these decode steps.
    pub seconds: f64,
    /// The version of the program.
    pub version: String,
}

#[cfg(test)]
impl Record {
    /// A record of dense attention, for tests to change.
    pub(crate) fn dense(task: TaskName) -> Self {
        Self {
            kind: Kind::Example,
            format: FORMAT,
            model: "embedded".into(),
            device: "flex".into(),
            dtype: "f32".into(),
            seed: 0,
            question: Protocol::Method,
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

    const LINE: &str = concat!(
        r#"{"kind":"example","format":2,"model":"embedded","device":"flex","dtype":"f32","#,
        r#""seed":0,"question":"method","task":"needle","#,
        r#""example":"context=4096 text=0 depth=0.25","context":4096,"#,
        r#""prompt_tokens":4088,"prompt_crc32":7,"method":"sparq","settings":{"method":"sparq","#,
        r#""rank":16,"top_k":128,"local_window":32,"sketch":"4bits","mean_value":"paper","#,
        r#""group_score":"probabilities","components":"sum_abs"},"budget":0.125,"#,
        r#""transfer":0.1243,"metric":"prefix_match","better":"higher","score":1.0,"#,
        r#""detail":{"answer":" 123456.","depth":0.25},"steps":8,"seconds":1.2,"version":"0.1.0"}"#,
    );

    #[test]
    fn records_serialize_to_the_line_they_were_read_from() {
        let record: Record = serde_json::from_str(LINE).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), LINE);
    }

    #[test]
    fn records_without_a_protocol_are_of_the_first() {
        let line = LINE.replace(r#""question":"method","#, "");
        let record: Record = serde_json::from_str(&line).unwrap();
        assert_eq!(record.question, Protocol::Dense);
    }

    #[test]
    fn unknown_fields_are_refused() {
        let line = LINE.replace("\"seed\"", "\"sede\"");
        let error = serde_json::from_str::<Record>(&line)
            .unwrap_err()
            .to_string();
        assert!(error.contains("sede"), "{error}");
    }

    #[test]
    fn metrics_have_their_serialized_names() {
        for metric in TaskName::ALL.iter().map(|task| task.metric()) {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
        }
    }
}
